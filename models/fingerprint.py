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
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _settings(module):
    """The settings of a layer that can be written down."""
    settings = {name: value for name, value in vars(module).items() if name != "training" and name[0] != "_"}
    plain = bool, int, float, str, tuple, type(None)
    return sorted((name, value) for name, value in settings.items() if isinstance(value, plain))
