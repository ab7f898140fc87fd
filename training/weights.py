"""Weights as files: safetensors, which say in their header what they are of."""

from pathlib import Path

import safetensors.torch as safetensors
from safetensors import SafetensorError, safe_open

from storage.atomic_files import Damaged, first_line, replacing


class RunDamaged(Damaged):
    """A file of a run cannot be used; the message names it and what to do."""


def save_weights(model, path, metadata=None):
    """The weights as safetensors, with string metadata."""
    tensors = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    content = safetensors.save(tensors, {key: str(value) for key, value in (metadata or {}).items()})
    with replacing(path) as partial:
        partial.write_bytes(content)


def weights_in(folder, name="weights.safetensors", what="weights"):
    """What was written beside the weights of a run: their fingerprint, or "epoch"; None where there are none."""
    path = Path(folder) / name
    if not path.exists():
        return None
    return header_of(path)[0].get(what)


def header_of(path):
    """What a file of weights says of itself: its metadata, and the shapes of its tensors by name."""
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, shapes
    except (SafetensorError, OSError) as error:
        raise RunDamaged(f"{path} is damaged ({first_line(error)}). Delete it to train again") from error


def load_weights(model, path):
    """Read weights into the model; raises where names or shapes differ."""
    model.load_state_dict(safetensors.load_file(path))
