"""Small networks that were trained here and lie in models/weights/, with a card each: what, how, how good.

Convolutions and linear layers are stored in 16 bits, all else in 32; a card's scores are those of what is stored.
`python -m study.make_weights NAME` makes one anew.
"""

import hashlib
from pathlib import Path

import safetensors.torch as safetensors

import models
from storage.atomic_files import Damaged, read_json, replacing, write_json

FOLDER = Path(__file__).with_name("weights")
REMEDY = "Fetch it again with: git checkout -- models/weights"


def names():
    """What there is, in order: "cifar10-robust-w16" and so on."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def card(name):
    """The card of one: model, recipe, data, scores with n and interval, commit and command, as a dict.

    Raises KeyError for a name that is not there, Damaged for an edited card.
    """
    if name not in names():
        raise KeyError(f"ours/{name} is not there; there are {', '.join(f'ours/{known}' for known in names())}")
    return read_json(FOLDER / f"{name}.json", REMEDY)


def load(name):
    """The model, on the CPU, in eval mode and float32. Raises as card does, and Damaged for other weights."""
    known, path = card(name), FOLDER / f"{name}.safetensors"
    content = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(content).hexdigest() != known["weights_sha256"]:
        raise Damaged(f"{path} is missing, cut off or not the one that its card describes. {REMEDY}")
    model = models.build(**known["model"])
    model.load_state_dict(safetensors.load(content))
    return model.eval()


def store(model, name, card):
    """Write the weights of a model of models.build and, with their checksum, its card."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    small = {key: value.half() for key, value in tensors.items() if value.ndim > 1 and key.startswith("network.")}
    content = safetensors.save(tensors | small)
    with replacing(FOLDER / f"{name}.safetensors") as partial:
        partial.write_bytes(content)
    write_json(
        FOLDER / f"{name}.json",
        {"model": model.spec} | card | {"weights_sha256": hashlib.sha256(content).hexdigest()},
    )
