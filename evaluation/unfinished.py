"""A test that was stopped goes on where it was: the batches that are done, and what they may be used for."""

import hashlib
import logging
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

import attacks
from attacks import evaluating, input_gradient
from models.fingerprint import fingerprint, structure
from processes import data_parallel
from storage import code_checksum
from storage.atomic_files import Damaged, held, read_json, write_json

SAVE_EVERY = 5.0  # seconds, at least, between two writes of what is done

log = logging.getLogger("study")


class Kept(dict):
    """Batches that are done, in a file of a folder, so that a test that was stopped goes on where it was.

    They are used again only for the same pictures, and for models that have the same weights, code, logits and
    gradients; they go when their test is done. Without a folder nothing is kept. Raises Held, when it is
    entered, where another process tests or trains in the folder.
    """

    def __init__(self, folder=None, source=None, victim=None, split=None):
        super().__init__()
        self.folder = None if folder is None else Path(folder)
        self.of = source, victim, split
        self.written = time.monotonic()
        self.mine = set()  # the batches of this very test; those of another one in the same folder stay

    def __enter__(self):
        self.hold = ExitStack()
        if self.folder is not None:
            self.update(data_parallel.from_first(self._open))
        return self

    def _open(self):
        """The batches that an earlier test has left, where it was of the same."""
        self.hold.enter_context(held(self.folder / ".lock", f"{self.folder} is being tested"))
        self.key, self.probe = _key(*self.of), _probe(*self.of)
        name = hashlib.sha256(repr(self.key).encode()).hexdigest()[:8]
        self.path = self.folder / f"test-unfinished-{name}.json"
        try:
            saved = read_json(self.path)
            # As near as the order of additions on a GPU allows. NaN is near nothing, so broken models begin anew.
            if saved["key"] == self.key and np.allclose(saved["probe"], self.probe, rtol=1e-2, atol=1e-5):
                log.info("%s: the test goes on after %d batches", self.folder.name, len(saved["batches"]))
                return dict(saved["batches"])
        except FileNotFoundError:
            pass
        except (Damaged, KeyError, TypeError, ValueError) as error:
            log.warning("%s cannot be used (%s): the test begins anew", self.path, error)
        return {}

    def __exit__(self, kind, error, trace):
        """Batches go when their test is done; where it breaks off, everything that is done is saved."""
        with self.hold:
            if self.folder is None or not data_parallel.leads():
                return
            if kind is None:
                for place in self.mine:
                    del self[place]
            if self:
                self._save()
            else:
                self.path.unlink(missing_ok=True)
            if kind is not None and self:
                log.info("%s: the test was stopped; %d batches are kept", self.folder.name, len(self))

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
        """Remember what was found for a batch, now or before the interruption."""
        if self.folder is None:
            return
        self.mine.add(place)
        if place not in self:
            self[place] = found
            if data_parallel.leads() and time.monotonic() - self.written > SAVE_EVERY:
                self._save()


def _key(source, victim, split):
    code = b"".join(path.read_bytes() for path in sorted(Path(attacks.__file__).parent.glob("*.py")))
    parts = [part(model) for model in (source, victim) for part in (fingerprint, structure, _code_of_model)]
    return [split.name, split.checksum, hashlib.sha256(code).hexdigest(), *parts]


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
