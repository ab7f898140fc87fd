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
    layers = [
        (
            name,
            hasattr(type(module), "thawed"),
            [item for item in sorted(vars(module).items()) if _is_plain(*item)],
        )
        for name, module in model.named_modules()
    ]
    code = code_checksum.of_strangers(model.modules())
    described = repr((model, layers, trains, sorted(getattr(model, "rates", {}).items()), code))
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _is_plain(name, value):
    """A setting of a layer that can be written down, and is one."""
    plain = value is None or isinstance(value, (bool, int, float, str, tuple))
    return plain and name != "training" and not name.startswith("_")
