"""What was tested is not tested again: the batches that are done, and what they may be used for.

Outcomes last where everything is known that decides them: attacks and networks of this repository and torch's.
Of another network they are kept only until the test is done, because logits and gradients of a few pictures say
nearly, not quite, whether it is the same. Those of another attack are not kept: nobody knows all that it hangs on.
"""

import hashlib
import importlib.metadata
import logging
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FunctionType

import numpy as np
import torch

from attacks import Attack, Torchattacks, evaluating, input_gradient
from evaluation.network_graphs import is_known
from models.fingerprint import fingerprint, structure
from processes import data_parallel
from processes.machine import fast_precision
from storage import code_checksum
from storage.atomic_files import Damaged, NotWritten, held, read_json, write_json
from storage.paths import ROOT

SAVE_EVERY = 5.0  # seconds, at least, between two writes of what is done
JUDGES = ("attacks", "evaluation", "models")  # where any edit makes a test begin anew
LIBRARIES = ("torch", "torchattacks")

log = logging.getLogger("study")


class Kept(dict):
    """Batches that are done, in a file of a folder: a test that was stopped goes on, one that was done is read.

    They are used again only for the same pictures, for models that have the same weights, code, logits and
    gradients, and while neither torch nor a file of the repository's attacks, evaluation or models has changed.
    Without a folder nothing is kept. Raises Held, when it is entered, where another process tests or trains in the
    folder.
    """

    def __init__(self, folder=None, model=None, split=None):
        super().__init__()
        self.folder = None if folder is None else Path(folder)
        self.of = model, split
        self.written = time.monotonic()
        self.keeps = self.lasting = False
        self.new = self.known = 0  # batches of this test

    def __enter__(self):
        self.hold = ExitStack()
        if self.folder is not None:
            try:
                self.keeps, batches = data_parallel.from_first(self._open)
                self.update(batches)
            except BaseException:
                self.hold.close()
                raise
        return self

    def _open(self):
        """Is anything kept? And the batches that earlier tests have left, where they were of the same."""
        self.hold.enter_context(held(self.folder / ".lock", f"{self.folder} is being tested"))
        model, split = self.of
        if _code() != CODE:
            log.warning("files in %s were edited since this process began: no test is kept", ", ".join(JUDGES))
            return False, {}
        self.lasting, device = split.code is None and all(map(is_known, model.modules())), split.labels.device
        parts = fingerprint(model), structure(model), _code_of_model(model)
        of = [split.name, split.checksum, split.code, device.type, self.lasting, *parts]
        self.key, self.probe = [*of, fast_precision(device), CODE], _probe(*self.of)
        self.path = self.folder / f"tested-{hashlib.sha256(repr(of).encode()).hexdigest()[:8]}.json"
        try:
            saved = read_json(self.path)
            # As near as the order of additions on a GPU allows. NaN is near nothing, so broken models begin anew.
            if saved["key"] == self.key and np.allclose(saved["probe"], self.probe, rtol=1e-2, atol=1e-5):
                return True, dict(saved["batches"])
            log.info("%s was tested with other code, or gave other logits: it is tested anew", self.folder.name)
        except FileNotFoundError:
            pass
        except (Damaged, KeyError, TypeError, ValueError) as error:
            log.warning("%s cannot be used (%s): the test begins anew", self.path, error)
        return True, {}

    def __exit__(self, kind, error, trace):
        """What lasts is saved, and where the test breaks off everything that is done."""
        with self.hold:
            if not self.keeps or not data_parallel.leads():
                return
            if kind is None and not self.lasting:
                self.clear()
            if self and self.new:
                self._save()
            elif not self:
                self.path.unlink(missing_ok=True)
            if kind is not None and self:
                log.info("%s: the test was stopped; %d batches are kept", self.folder.name, len(self))
            elif self.known:
                of = f"{self.known} of {self.known + self.new} batches"
                remedy = f"; to test anew, delete {self.path.name}" if self else ""
                log.info("%s: %s were tested before%s", self.folder.name, of, remedy)

    def _save(self):
        try:
            write_json(self.path, {"key": self.key, "probe": self.probe, "batches": self})
        except NotWritten as error:
            log.warning("what was tested is not kept: %s", error)
        self.written = time.monotonic()

    def place(self, attack, seed, stage, batch, indices):
        """What a batch is known by: the attack with its code and every digit of its settings, and its pictures."""
        if not self.keeps or not _is_told(attack):
            return None
        settings = [(name, code_checksum.plain_text(value) or repr(value)) for name, value in vars(attack).items()]
        parts = type(attack).__module__, code_checksum.of_objects([attack]), settings, seed, indices.tolist()
        return f"{attack!r}, stage {stage}, batch {batch}, {hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"

    def keep(self, place, found):
        """Remember what was found for a batch, now or before."""
        if place is None:
            return
        if place in self:
            self.known += 1
            return
        self[place] = found
        self.new += 1
        if data_parallel.leads() and time.monotonic() - self.written > SAVE_EVERY:
            self._save()


def _is_told(value):
    """Is it plain, or an attack of ours, as it stands in its file, whose settings are?"""
    if not isinstance(value, Attack):
        return code_checksum.plain_text(value) is not None
    if isinstance(value, Torchattacks) and value.origin != "torchattacks":
        return False
    kinds = [kind for kind in type(value).__mro__ if issubclass(kind, Attack)]
    methods = [(kind, part) for kind in kinds for part in vars(kind).values() if isinstance(part, FunctionType)]
    ours = all(kind.__module__.split(".")[0] == "attacks" for kind in kinds)
    ours = ours and all(part.__module__ in (kind.__module__, "dataclasses") for kind, part in methods)
    return ours and all(map(_is_told, vars(value).values()))


def _code():
    """A checksum over what crafts, judges and computes, by the files' bytes, and the libraries' versions."""
    digest = hashlib.sha256(repr([_version(name) for name in LIBRARIES]).encode())
    for path in sorted(path for folder in JUDGES for path in (ROOT / folder).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _version(name):
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)


CODE = _code()  # of the files as this process has imported them


def _probe(model, split):
    """Logits and gradients of a few pictures, because weights and code do not show all that a model does."""
    spread = torch.linspace(0, len(split) - 1, min(8, len(split)), device=split.labels.device).long()
    images, labels = split.batch(spread)
    with evaluating(model), torch.autocast(images.device.type, enabled=False):
        gradient = input_gradient(model, images, labels).flatten(1)
        with torch.no_grad():
            logits = model(images).flatten()
    return [*logits.tolist(), *gradient.norm(dim=1).tolist(), *gradient[:, ::2].sum(1).tolist()]


def _code_of_model(model):
    modules = list(model.modules())
    functions = [value for module in modules for value in vars(module).values() if hasattr(value, "__code__")]
    return code_checksum.of_objects(modules, functions)
