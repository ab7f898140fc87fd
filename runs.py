"""A run is a folder: what was asked, what happened, the weights, the scores. Nothing else remembers a run.

recipe.json           what decides the run: recipe, model, initial weights, data
environment.json      versions, device, commit
history.csv           a row an epoch
events.out.tfevents.* the same for TensorBoard
last.pt               where to go on from; gone when the run is finished
best.safetensors      the weights after the best epoch so far, by robust accuracy on the validation split
weights.safetensors   the result: the weights after the last epoch
scores.json, .csv     what test() found, if it was saved here
"""

import copy
import fcntl
import functools
import hashlib
import json
import os
import platform
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from pickle import UnpicklingError

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from files import replacing
from utils import ROOT, runs_root

# What a run that is taken over brings along, besides its weights and its environment.
SHARED = ("history", "best", "events")


class RunRefused(RuntimeError):
    """The folder holds another run; the message names the fields that differ."""


class RunDamaged(RuntimeError):
    """A file of a run cannot be used; the message names it and what to do."""


class RunFolder:
    """The files of one run. `identity` is everything that decides its result."""

    def __init__(self, path):
        self.path = Path(path)

    @property
    def finished(self):
        return (self.path / "weights.safetensors").exists()

    @property
    def begun(self):
        return self.finished or (self.path / "last.pt").exists()

    @contextmanager
    def locked(self):
        """Hold the folder against other processes; raises RunRefused where one has it. A dead one's is void."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise RunRefused(
                    f"{self.path} is being trained by {lock.read().strip() or 'another process'}"
                ) from None
            lock.truncate(0)
            lock.write(f"process {os.getpid()} since {datetime.now(UTC).isoformat(timespec='seconds')}\n")
            lock.flush()
            try:
                yield
            finally:
                lock.truncate(0)

    def claim(self, identity, device):
        """Make the folder this run's, or check that it is; raises RunRefused where it holds another run.

        A folder in which nothing was trained yet is given to whoever asks.
        """
        identity = json.loads(json.dumps(identity))
        recipe = self.path / "recipe.json"
        for name in ("last", "best", "weights", "history", "recipe", "environment"):
            for partial in self.path.glob(f".{name}-*"):  # of a process that was killed while it wrote
                partial.unlink()
        if not self.begun:
            write_json(self.path / "environment.json", environment(device))
            write_json(recipe, identity)
            return
        if not recipe.exists():
            raise RunRefused(
                f"{self.path} holds weights but no recipe.json, so nobody knows of what. Delete the folder"
            )
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
        if not path.exists():
            return None
        try:
            return torch.load(path, map_location=device, weights_only=True)
        except (RuntimeError, UnpicklingError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
            raise RunDamaged(
                f"{path} is damaged ({_first_line(error)}). Delete it, and the run begins anew"
            ) from error

    def save_history(self, history):
        with replacing(self.path / "history.csv") as partial:
            pd.DataFrame(history).to_csv(partial, index=False)

    def load_history(self):
        path = self.path / "history.csv"
        return pd.read_csv(path) if path.exists() else pd.DataFrame()

    def copy_finished_twin(self, model):
        """Take over the finished run of the same study that is exactly this one; returns its name, or None.

        A study is what lies in one folder below runs/: notebooks that ask for the same run, with the same recipe,
        initial weights and data, share it. Only for a folder in which nothing was trained yet, and only for a
        `model` made by models.build: what another one computes cannot be known from outside. Twins that are
        damaged are passed over.
        """
        known = isinstance(getattr(model, "spec", None), dict)
        if self.begun or not known or runs_root() not in self.path.resolve().parents:
            return None
        study = runs_root() / self.path.resolve().relative_to(runs_root()).parts[0]
        asked = read_json(self.path / "recipe.json")
        for weights in sorted(study.glob("*/*/weights.safetensors")):
            twin = weights.parent
            if (twin / "recipe.json").exists() and read_json(twin / "recipe.json") == asked:
                try:
                    RunFolder(twin).load_result(copy.deepcopy(model))
                except RunDamaged:
                    continue
                names = [path.name for path in twin.iterdir() if path.name.startswith(SHARED)]
                for name in (*names, weights.name):  # the weights last: they make a run a finished one
                    with replacing(self.path / name) as partial:
                        shutil.copyfile(twin / name, partial)
                name = str(twin.relative_to(study))
                environment = read_json(twin / "environment.json")
                write_json(self.path / "environment.json", {"same_run_as": name} | environment)
                return name
        return None

    def load_result(self, model):
        """Read the weights of a finished run into the model, if they are what was written."""
        self._load(model, "weights.safetensors", "it")

    def load_best(self, model, epoch):
        """Read the weights after the best epoch into the model, if they are those of that epoch."""
        self._load(model, "best.safetensors", "the run's folder")
        there = weights_in(self.path, "best.safetensors", "epoch")
        if there != str(epoch):
            raise RunDamaged(
                f"{self.path / 'best.safetensors'} is of epoch {there}, but by history.csv epoch {epoch} is the "
                "best: the training was broken off in between. Delete the run's folder to train again"
            )

    def _load(self, model, name, remedy):
        path = self.path / name
        try:
            load_weights(model, path)
            written = weights_in(self.path, name)
        except (SafetensorError, RuntimeError, OSError) as error:
            what = _first_line(error)
            raise RunDamaged(
                f"{path} is damaged, missing or of another model ({what}). Delete {remedy} to train again"
            ) from error
        if written != fingerprint(model):
            raise RunDamaged(f"{path} holds other weights than this run wrote. Delete {remedy} to train again")

    def save_best(self, model, epoch):
        metadata = {"weights": fingerprint(model), "epoch": epoch}
        save_weights(model, self.path / "best.safetensors", metadata)

    def finish(self, model, metadata):
        """Write the result; the checkpoint is no longer needed."""
        save_weights(model, self.path / "weights.safetensors", metadata)
        (self.path / "last.pt").unlink(missing_ok=True)


def save_weights(model, path, metadata=None):
    """The weights as safetensors, with string metadata."""
    tensors = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata={key: str(value) for key, value in (metadata or {}).items()})


def weights_in(folder, name="weights.safetensors", what="weights"):
    """What was written beside the weights of a run: their fingerprint, or "epoch"; None where there are none."""
    path = Path(folder) / name
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        return (file.metadata() or {}).get(what)


def load_weights(model, path):
    """Read weights into the model; raises where names or shapes differ."""
    model.load_state_dict(load_file(path))


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
    described = repr((model, layers, trains, sorted(getattr(model, "rates", {}).items())))
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _is_plain(name, value):
    """A setting of a layer that can be written down, and is one."""
    plain = value is None or isinstance(value, (bool, int, float, str, tuple))
    return plain and name != "training" and not name.startswith("_")


def _first_line(error):
    return (str(error) or type(error).__name__).splitlines()[0]


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
        weights = {"weights": fingerprint(settings), "structure": structure(settings)}
        return {"kind": type(settings).__name__} | weights
    if isinstance(settings, dict):
        return {key: as_dict(value) for key, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return [as_dict(value) for value in settings]
    if settings is None or isinstance(settings, (bool, int, float, str)):
        return settings
    raise TypeError(
        f"{settings!r} cannot be written into recipe.json; make {type(settings).__name__} a frozen dataclass, "
        "so that its settings say which run this is"
    )


def read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_json(path, value):
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def environment(device):
    """What a reader needs to judge or repeat a number: versions, device, commit, time."""
    cuda = torch.device(device).type == "cuda"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if cuda else _processor(),
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
