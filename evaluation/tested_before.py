"""What was tested is not tested again: the batches that are done, and what they may be used for."""

import hashlib
import importlib.metadata
import logging
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from attacks import evaluating, input_gradient
from models.fingerprint import fingerprint, structure
from processes import data_parallel
from storage import code_checksum
from storage.atomic_files import Damaged, held, read_json, write_json
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

    def __init__(self, folder=None, source=None, victim=None, split=None):
        super().__init__()
        self.folder = None if folder is None else Path(folder)
        self.of = source, victim, split
        self.written = time.monotonic()
        self.new = self.known = 0  # batches of this test

    def __enter__(self):
        self.hold = ExitStack()
        if self.folder is not None:
            self.update(data_parallel.from_first(self._open))
        return self

    def _open(self):
        """The batches that earlier tests have left, where they were of the same."""
        self.hold.enter_context(held(self.folder / ".lock", f"{self.folder} is being tested"))
        tested, self.probe = _tested(*self.of), _probe(*self.of)
        self.key = [_code(), *tested]
        name = hashlib.sha256(repr(tested).encode()).hexdigest()[:8]
        self.path = self.folder / f"tested-{name}.json"
        try:
            saved = read_json(self.path)
            # As near as the order of additions on a GPU allows. NaN is near nothing, so broken models begin anew.
            if saved["key"] == self.key and np.allclose(saved["probe"], self.probe, rtol=1e-2, atol=1e-5):
                return dict(saved["batches"])
        except FileNotFoundError:
            pass
        except (Damaged, KeyError, TypeError, ValueError) as error:
            log.warning("%s cannot be used (%s): the test begins anew", self.path, error)
        return {}

    def __exit__(self, kind, error, trace):
        """Everything that is done is saved, also where the test breaks off."""
        with self.hold:
            if self.folder is None or not data_parallel.leads():
                return
            if self.new:
                self._save()
            if kind is not None:
                log.info("%s: the test was stopped; %d batches are kept", self.folder.name, self.new + self.known)
            elif self.known:
                of = f"{self.known} of {self.known + self.new} batches"
                log.info(
                    "%s: %s were tested before; to test anew, delete %s", self.folder.name, of, self.path.name
                )

    def _save(self):
        write_json(self.path, {"key": self.key, "probe": self.probe, "batches": self})
        self.written = time.monotonic()

    def place(self, attack, seed, stage, batch, indices):
        """What a batch is known by: the attack with its code and every digit of its settings, and its pictures."""
        if self.folder is None:
            return None
        settings = [(name, code_checksum.plain_text(value) or repr(value)) for name, value in vars(attack).items()]
        pictures = hashlib.sha256(repr(indices.tolist()).encode()).hexdigest()[:16]
        code = code_checksum.of_objects([attack])
        return f"{attack!r}, {code}, {settings}, seed {seed}, stage {stage}, batch {batch}, {pictures}"

    def keep(self, place, found):
        """Remember what was found for a batch, now or before."""
        if self.folder is None:
            return
        if place in self:
            self.known += 1
            return
        self[place] = found
        self.new += 1
        if data_parallel.leads() and time.monotonic() - self.written > SAVE_EVERY:
            self._save()


def _code():
    """A checksum over what crafts, judges and computes, by its bytes, and the libraries' versions."""
    digest = hashlib.sha256(repr([importlib.metadata.version(name) for name in LIBRARIES]).encode())
    for path in sorted(path for folder in JUDGES for path in (ROOT / folder).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _tested(source, victim, split):
    parts = [part(model) for model in (source, victim) for part in (fingerprint, structure, _code_of_model)]
    return [split.name, split.checksum, *parts]


def _probe(source, victim, split):
    """Logits and gradients of a few pictures, because weights and code do not show all that a model does."""
    images, labels = split.batch(torch.arange(min(8, len(split)), device=split.labels.device))
    values = []
    for model in (source, victim):
        with evaluating(model), torch.autocast(images.device.type, enabled=False):
            gradient = input_gradient(model, images, labels).flatten(1)
            with torch.no_grad():
                values += model(images).flatten().tolist()
        values += gradient.norm(dim=1).tolist() + gradient[:, ::2].sum(1).tolist()
    return values


def _code_of_model(model):
    modules = list(model.modules())
    functions = [value for module in modules for value in vars(module).values() if hasattr(value, "__code__")]
    return code_checksum.of_objects(modules, functions)
