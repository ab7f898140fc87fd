"""Is it the same network? Checksums over its weights, and over what the weights do not show."""

import hashlib

import torch

from storage import code_checksum


def fingerprint(model):
    """A checksum over the weights and buffers, the same wherever they lie."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def structure(model):
    """A checksum over what weights do not show: layers with their settings, what trains, at which rate."""
    trains = [name for name, weight in model.named_parameters() if weight.requires_grad]
    layers = [(name, hasattr(type(module), "thawed"), _settings(module)) for name, module in model.named_modules()]
    code = code_checksum.of_strangers(model.modules())
    described = repr((model, layers, trains, sorted(getattr(model, "rates", {}).items()), code))
    if hooks := [(name, *found) for name, module in model.named_modules() if (found := _hooks(module))]:
        described += repr(hooks)
    if patched := [
        (name, of_forward) for name, module in model.named_modules() if (of_forward := _patched(module))
    ]:
        described += repr(patched)
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _patched(module):
    """The code of a forward that somebody has put on this layer alone, or on a library's layers of its kind."""
    forward, kind = vars(module).get("forward"), type(module)
    if forward is None and code_checksum.is_strange(getattr(kind.forward, "__module__", "") or ""):
        forward = None if code_checksum.is_strange(kind.__module__) else kind.forward
    return forward and code_checksum.of_objects([], [forward])


def _settings(module):
    """The settings of a layer that can be written down."""
    settings = {name: value for name, value in vars(module).items() if name != "training" and name[0] != "_"}
    plain = bool, int, float, str, tuple, type(None)
    found = [(name, value) for name, value in settings.items() if isinstance(value, plain)]
    others = {name: value for name, value in settings.items() if not isinstance(value, plain)}
    where = type(module).__module__
    if where.split(".")[0] in code_checksum.OURS:
        others = {}
    elif not code_checksum.is_strange(where):  # what libraries' layers have besides says their repr, but functions
        others = {name: value for name, value in others.items() if callable(value)}
    found += [(name, text) for name, value in others.items() if (text := _text(value)) is not None]
    return sorted(found, key=lambda setting: setting[0])


def _text(value):
    """A setting of a layer of the user's own, as a text; None for what cannot be written down."""
    if callable(value) and not isinstance(value, torch.nn.Module):
        return f"{getattr(value, '__qualname__', '')} {code_checksum.of_objects([value], [value])}"
    return code_checksum.plain_text(value) or code_checksum.of_value(value)


def _hooks(module):
    """What is done before and after a layer beside it, by its code."""
    there = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return [code_checksum.of_objects([hook], [hook]) for hook in there]
