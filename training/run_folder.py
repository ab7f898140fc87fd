"""A run is a folder: what was asked, what happened, the weights, the scores. Nothing else remembers a run.

recipe.json           what decides the run: recipe, model, initial weights, data
environment.json      versions, device, commit
history.csv           a row an epoch
events.out.tfevents.* the same for TensorBoard
last.pt, previous.pt  where to go on from, and the one before; gone when the run is finished
best.safetensors      the weights after the best epoch so far, by robust accuracy on the validation split
weights.safetensors   the result: the weights after the last epoch
scores.json, .csv     what test() found, if it was saved here

Every file that is read again shows when it was damaged or taken from another run.
"""

import hashlib
import io
import json
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError

from models import copied
from models.fingerprint import fingerprint
from processes.machine import environment
from storage.atomic_files import Damaged, Held, first_line, held, read_json, replacing, write_json
from storage.paths import runs_root
from training.identity import differences
from training.weights import RunDamaged, header_of, load_weights, save_weights, weights_in

# What a run that is taken over brings along, besides its weights and its environment.
SHARED = ("history", "best", "events")
ANEW = "Delete the run's folder to train again"

log = logging.getLogger("study")


CHECKSUMS = {
    "code": ": a checksum of code of your own, docstrings included, and of the values, functions and networks "
    "that it names. What changes with each call belongs into an attribute whose name begins with _",
    "structure": ": a checksum of the layers, their settings, hooks and code, and what trains. What changes with "
    "each call, such as a count, belongs into an attribute whose name begins with _",
    "initial_weights": ": a checksum of the weights and buffers before training. What changes with each call, "
    "such as a count, belongs into a buffer with persistent=False",
}


class RunRefused(RuntimeError):
    """The folder holds another run; the message names the fields that differ."""


class SameRunHeld(Held):
    """The same run is being trained in another folder of the study."""


class RunFolder:
    """The files of one run. `identity` is everything that decides its result."""

    def __init__(self, path):
        self.path = Path(path).expanduser()
        self.beside = Beside()
        self.claimed = None  # the identity under which this process writes, whatever recipe.json says later

    @property
    def finished(self):
        return (self.path / "weights.safetensors").exists()

    @property
    def checkpoints(self):
        """Where to go on from: the newest first."""
        return self.path / "last.pt", self.path / "previous.pt"

    def locked(self):
        """Hold the folder against other processes; raises Held where one has it."""
        return held(self.path / ".lock", f"{self.path} is being trained")

    def claim(self, identity, device):
        """Make the folder this run's, or check that it is; raises RunRefused where it holds another run.

        A folder in which nothing was trained yet is given to whoever asks.
        """
        recipe = self.path / "recipe.json"
        if not self.finished and not any(path.exists() for path in self.checkpoints):
            write_json(self.path / "environment.json", environment(device))
            write_json(recipe, identity)
        elif not recipe.exists():
            raise RunRefused(
                f"{self.path} holds weights but no recipe.json, so nobody knows of what. Delete the folder"
            )
        elif apart := list(differences(read_json(recipe, ANEW), json.loads(json.dumps(identity)))):
            shown = "\n".join(
                f"  {field}: {there!r} in the folder, {here!r} asked{CHECKSUMS.get(field.rpartition('.')[2], '')}"
                for field, there, here in apart
            )
            raise RunRefused(
                f"{self.path} holds another run:\n{shown}\nGive this run another folder, for instance "
                f"{self.path.name}-2, or delete {self.path} to train it anew. For a whole study beside this one: "
                "STUDY_RUNS=runs/second before the command, or %env STUDY_RUNS=runs/second as the first line of a "
                "notebook, whose kernel is restarted. A run cannot be changed on its way, nor made longer: the "
                "learning rate of every step depends on its length."
            )
        self.claimed = self.identity

    def note(self, **found):
        """Add to environment.json what shows only when the run begins."""
        write_json(self.path / "environment.json", read_json(self.path / "environment.json") | found)

    @property
    def identity(self):
        """A checksum over what decides the run, which its other files carry too; None without a recipe.json."""
        recipe = self.path / "recipe.json"
        if self.claimed or not recipe.exists():
            return self.claimed
        return hashlib.sha256(json.dumps(read_json(recipe, ANEW), sort_keys=True).encode()).hexdigest()[:16]

    def save_epoch(self, state, best=None):
        """The best model so far and its epoch, if no file has them, then the history, then the checkpoint.

        After a break in between, the epochs since the checkpoint before are done again.
        """
        if best is not None:
            self.save_best(*best)
        self.save_history(state["history"])
        self.save_checkpoint(state)

    def save_checkpoint(self, state):
        """Write the state; it counts when it has been read back, and the one before it is kept beside it."""
        last, previous = self.checkpoints
        content = io.BytesIO()
        torch.save(state | {"run": self.identity}, content)
        content.seek(0, io.SEEK_END)
        content.write(hashlib.sha256(content.getbuffer()).digest())
        with replacing(last) as partial:
            partial.write_bytes(content.getbuffer())
            _checked_content(partial)
            if last.exists():
                last.replace(previous)

    def load_checkpoint(self, device):
        """The last state that can be read, or None; never unpickles anything but tensors and plain values."""
        damages = []
        for path in filter(Path.exists, self.checkpoints):
            try:
                state = self._read_checkpoint(path, device)
            except RunDamaged as damage:
                damages.append(damage)
                continue
            for damage in damages:
                log.warning("%s. Going on from %s, which is older", damage, path.name)
            return state
        if damages:
            raise RunDamaged(
                f"{' and '.join(map(str, damages))}. Delete {'it' if len(damages) == 1 else 'both'}, and the run "
                "begins anew"
            )
        return None

    def _read_checkpoint(self, path, device):
        """The state in a file, if it is what was written, by this run."""
        try:
            state = torch.load(io.BytesIO(_checked_content(path)), map_location=device, weights_only=True)
            run = state.pop("run")
        except RunDamaged:
            raise
        except Exception as error:  # a broken file makes torch raise whatever it likes
            raise RunDamaged(f"{path} is damaged ({first_line(error)})") from error
        if run != self.identity:
            raise RunDamaged(f"{path} is of another run")
        return state

    def save_history(self, history):
        with replacing(self.path / "history.csv") as partial:
            pd.DataFrame(history).to_csv(partial, index=False)

    def load_history(self):
        """A row an epoch. Raises RunDamaged where it is not the one that the finished run wrote."""
        path = self.path / "history.csv"
        written = weights_in(self.path, what="history")
        if not path.exists() and written in (None, "missing"):
            return pd.DataFrame()
        if written is not None and written != _checksum_of(path):
            raise RunDamaged(f"{path} was changed after the run had written it: its checksum differs. {ANEW}")
        try:
            return pd.read_csv(path)
        except ValueError as error:  # also pandas' own
            raise RunDamaged(f"{path} is damaged ({first_line(error)}). {ANEW}") from error

    def _study(self, model):
        """The folder below runs/ in which this run may have twins; None where it has none.

        Only a `model` made by models.build has: what another one computes cannot be known from outside.
        """
        if not isinstance(getattr(model, "spec", None), dict) or runs_root() not in self.path.resolve().parents:
            return None
        return runs_root() / self.path.resolve().relative_to(runs_root()).parts[0]

    def alone_in_its_study(self, model, wait):
        """Hold this very run in all folders of the study: wait where it is being trained, or raise SameRunHeld."""
        study = self._study(model)
        if study is None:
            return nullcontext()
        lock = study / ".training" / f"{self.identity}.lock"
        return held(lock, f"this run is being trained in {self.path}", wait, SameRunHeld)

    def copy_finished_twin(self, model):
        """Take over the finished run of the same study that is exactly this one; returns its name, or None.

        A study is what lies in one folder below runs/: notebooks that ask for the same run, with the same recipe,
        initial weights and data, share it. What was trained here so far gives way. Twins that are damaged are
        passed over.
        """
        study = self._study(model)
        if self.finished or study is None:
            return None
        for weights in sorted(study.glob("*/*/weights.safetensors")):
            twin = RunFolder(weights.parent)
            try:
                if twin.identity != self.identity:
                    continue
                twin.load_result(copied(model))
                twin.load_history()
                environment = read_json(twin.path / "environment.json")
            except (Damaged, FileNotFoundError):
                continue
            name = str(twin.path.relative_to(study))
            write_json(self.path / "environment.json", {"same_run_as": name} | environment)
            mine, theirs = ([p for p in run.path.iterdir() if p.name.startswith(SHARED)] for run in (self, twin))
            for path in mine:
                path.unlink()
            for path in (*theirs, weights):  # the weights last: they make a run a finished one
                with replacing(self.path / path.name) as partial:
                    shutil.copyfile(path, partial)
            for path in self.checkpoints:
                path.unlink(missing_ok=True)
            return name
        return None

    def load_result(self, model):
        """Read the weights of a finished run into the model, if they are what was written."""
        self._load(model, "weights.safetensors", "it")

    def load_best(self, model, epoch):
        """Read the weights after the best epoch into the model, if they are those of that epoch."""
        there = self._load(model, "best.safetensors", "the run's folder").get("epoch")
        if there != str(epoch):
            raise RunDamaged(
                f"{self.path / 'best.safetensors'} is of epoch {there}, but by history.csv epoch {epoch} is the "
                "best: the training was broken off in between. Delete the run's folder to train again"
            )

    def _load(self, model, name, remedy):
        """Read the file of weights into the model; returns what else it says of them."""
        path = self.path / name
        try:
            load_weights(model, path)
        except (SafetensorError, RuntimeError, OSError) as error:
            what = f"damaged, missing or of another model ({first_line(error)})"
            raise RunDamaged(f"{path} is {what}. Delete {remedy} to train again") from error
        says, _ = header_of(path)
        if (says.get("weights"), says.get("run"), says.get("file")) != (fingerprint(model), self.identity, name):
            raise RunDamaged(f"{path} holds other weights than this run wrote. Delete {remedy} to train again")
        return says

    def save_best(self, model, epoch):
        self._save(model, "best.safetensors", {"epoch": epoch})

    def finish(self, model, metadata):
        """Write the result; when it can be read back, the checkpoints are no longer needed."""
        history = _checksum_of(self.path / "history.csv")
        self._save(model, "weights.safetensors", metadata | {"history": history})
        self.load_result(copied(model))
        for path in self.checkpoints:
            path.unlink(missing_ok=True)

    def _save(self, model, name, metadata):
        own = {"weights": fingerprint(model), "run": self.identity, "file": name}
        save_weights(model, self.path / name, own | metadata)


class Onlooker(RunFolder):
    """The folder for those processes of a run that do not write: all but the first."""

    def _nothing(self, *_, **__):
        pass

    note = save_checkpoint = save_history = save_best = finish = _nothing


class Beside:
    """Calls functions one after the other in a thread of their own, for files that need not be waited for."""

    def __init__(self):
        self.thread = self.last = None

    @property
    def busy(self):
        return self.last is not None and not self.last.done()

    def __call__(self, function, *arguments):
        self.wait()
        self.thread = self.thread or ThreadPoolExecutor(1)
        self.last = self.thread.submit(function, *arguments)

    def wait(self):
        """Until the last one is done. Raises what it raised."""
        last, self.last = self.last, None
        if last is not None:
            last.result()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        """Waits. What the last one raised is raised, or noted on the error that is under way."""
        try:
            self.wait()
        except Exception as failed:
            if error is None:
                raise
            error.add_note(f"And meanwhile: {failed}")
        finally:
            if self.thread is not None:
                self.thread.shutdown()
            self.thread = None


def _checked_content(path):
    """The bytes of a checkpoint without the SHA-256 that they end in. Raises RunDamaged where it is another."""
    content = memoryview(path.read_bytes())
    content, written = content[:-32], content[-32:]
    if hashlib.sha256(content).digest() != written:
        raise RunDamaged(f"{path} is damaged: its checksum differs")
    return content


def _checksum_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"
