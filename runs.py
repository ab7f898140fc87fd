"""A run is a folder: what was asked, what happened, the weights, the scores. Nothing else remembers a run.

recipe.json           what decides the run: recipe, model, initial weights, data
environment.json      versions, device, commit
history.csv           a row an epoch
events.out.tfevents.* the same for TensorBoard
last.pt               where to go on from; gone when the run is finished
weights.safetensors   the result
scores.json, .csv     what test() found, if it was saved here
"""

import functools
import hashlib
import json
import os
import platform
import subprocess
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from files import replacing
from utils import ROOT


class RunRefused(RuntimeError):
    """The folder holds another run; the message names the fields that differ."""


class RunFolder:
    """The files of one run. `identity` is everything that decides its result."""

    def __init__(self, path):
        self.path = Path(path)

    @property
    def finished(self):
        return (self.path / "weights.safetensors").exists()

    def claim(self, identity):
        """Make the folder this run's, or check that it is; raises RunRefused where it holds another run."""
        identity = json.loads(json.dumps(identity))
        recipe = self.path / "recipe.json"
        if not recipe.exists():
            write_json(recipe, identity)
            write_json(self.path / "environment.json", environment())
            return
        differences = list(_differences(read_json(recipe), identity))
        if differences:
            shown = "\n".join(
                f"  {field}: {there!r} in the folder, {here!r} asked" for field, there, here in differences
            )
            raise RunRefused(
                f"{self.path} holds another run:\n{shown}\nGive this run another folder, or delete that one."
            )

    def save_checkpoint(self, state):
        with replacing(self.path / "last.pt") as partial:
            torch.save(state, partial)

    def load_checkpoint(self, device):
        """The last state saved, or None; never unpickles anything but tensors and plain values."""
        path = self.path / "last.pt"
        return torch.load(path, map_location=device, weights_only=True) if path.exists() else None

    def save_history(self, history):
        with replacing(self.path / "history.csv") as partial:
            pd.DataFrame(history).to_csv(partial, index=False)

    def load_history(self):
        path = self.path / "history.csv"
        return pd.read_csv(path) if path.exists() else pd.DataFrame()

    def finish(self, model, metadata):
        """Write the result; the checkpoint is no longer needed."""
        save_weights(model, self.path / "weights.safetensors", metadata)
        (self.path / "last.pt").unlink(missing_ok=True)


def save_weights(model, path, metadata=None):
    """The weights as safetensors, with string metadata."""
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata={key: str(value) for key, value in (metadata or {}).items()})


def load_weights(model, path):
    """Read weights into the model; raises where names or shapes differ."""
    model.load_state_dict(load_file(path))


def fingerprint(model):
    """A checksum over the weights and buffers, the same wherever they lie."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def as_dict(settings):
    """Settings as plain values for JSON: dataclasses with their class under "kind", models by their weights."""
    if is_dataclass(settings):
        inner = {field.name: as_dict(getattr(settings, field.name)) for field in fields(settings)}
        return {"kind": type(settings).__name__} | inner
    if isinstance(settings, torch.nn.Module):
        return {"kind": type(settings).__name__, "weights": fingerprint(settings)}
    if isinstance(settings, dict):
        return {key: as_dict(value) for key, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return [as_dict(value) for value in settings]
    return settings


def read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_json(path, value):
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def environment():
    """What a reader needs to judge or repeat a number: versions, device, commit, time."""
    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else _processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "cuda": torch.version.cuda if cuda else None,
        "commit": _commit(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@functools.cache  # what is imported now is what runs, whatever is committed later
def _commit():
    """The commit of the code, with a + where files differ from it; None outside a git checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _differences(there, here, prefix=""):
    """Yield (field, value there, value here) wherever two nested dicts differ."""
    for key in sorted(there.keys() | here.keys()):
        old, new = there.get(key), here.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}", old, new
