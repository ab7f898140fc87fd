"""Pictures with their labels on a device, and the three splits of a data set."""

import copy
import hashlib
import logging
from dataclasses import dataclass

import numpy as np
import torch

from loaders.augment import CropAndFlip
from loaders.cache import DataError
from processes.seeds import derive_seed
from storage import code_checksum

CHUNK = 4096  # pictures at once, where all are read
OWN = ("images", "rows", "labels", "classes", "name", "mirror")  # attributes of every split
LEAK = 0.01  # of the test pictures may be elsewhere too: CIFAR itself repeats a few

log = logging.getLogger("study")


def _version(tensor):
    """How often a tensor was changed in place; torch does not count for those of its inference mode."""
    return None if tensor.is_inference() else tensor._version


def checked(images, rows, labels, classes, name):
    """Raise DataError for images, as many as there are `rows`, and labels that make no split."""
    fits = images.ndim == 4 and images.shape[1] in (1, 3)
    if images.dtype != torch.uint8 or not fits or labels.dtype != torch.int64 or labels.ndim != 1:
        raise DataError(
            f"{name}: images {images.dtype} {tuple(images.shape)} with labels {labels.dtype} "
            f"{tuple(labels.shape)}; uint8 images (N, 3, H, W) or (N, 1, H, W) and int64 labels (N,) are "
            "needed. Pictures become floats in [0, 1] batch by batch; loaders.from_arrays takes other arrays"
        )
    if len(rows) != len(labels) or not len(labels):
        raise DataError(f"{name}: {len(rows)} pictures and {len(labels)} labels; as many are needed, and some")
    low, high = labels.aminmax()
    if low < 0 or high >= len(classes):
        raise DataError(f"{name}: labels from {low} to {high}; 0 to {len(classes) - 1} is needed")


class Split:
    """Pictures and labels on a device: images uint8 (N, 3, H, W) or grey (N, 1, H, W), labels int64 (N,), N > 0.

    Batches are cut, shifted, flipped and converted here, without worker processes; without `mirror` they are never
    flipped. Raises DataError for others.
    """

    def __init__(self, images, labels, classes, name, mirror=True):
        checked(images, images, labels, classes, name)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = labels
        self.classes = classes
        self.name = name  # "cifar10 test"
        self.mirror = mirror

    def __len__(self):
        return len(self.labels)

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "_kept"}

    def __repr__(self):
        return f"Split({self.name}: {len(self)} pictures of {len(self.classes)} classes on {self.labels.device})"

    @property
    def num_classes(self):
        return len(self.classes)

    def _as_is(self, what, make):
        """What `make()` gives for these pictures, kept while torch knows of no change (`checksum` sees others)."""
        state = self.stored, _version(self.stored), self.mirror
        before, found = vars(self).setdefault("_kept", {}).get(what, ((None,), None))
        if before[0] is not state[0] or before[1:] != state[1:]:  # the same tensor: an address may be used again
            found = make()
            self._kept[what] = state, found
        return found

    @property
    def stored(self):
        """The tensor that the pictures lie in."""
        return self.images

    @property
    def checksum(self):
        """Of all pictures with their labels, in their order; of their bytes: numpy changes them behind torch."""
        digest = self._of_pictures().copy()
        digest.update(self.labels.cpu().contiguous().numpy())
        kept = vars(self).setdefault("_kept", {})
        if kept.get("checksum") != digest.hexdigest():
            kept.pop("moved", None)  # what is cropped and flipped
            kept["checksum"] = digest.hexdigest()
        return digest.hexdigest()[:16]

    def _of_pictures(self):
        digest = hashlib.sha256()
        for begin in range(0, len(self), CHUNK):
            images = self.pictures(slice(begin, begin + CHUNK))
            digest.update(images.permute(0, 2, 3, 1).cpu().contiguous().numpy())
        return digest

    def to(self, device):
        """The same split there."""
        return self.some(slice(None), device)

    def first(self, count):
        """A split of the first `count` pictures (all, if there are fewer)."""
        return self.some(slice(count))

    def last(self, count):
        """A split of the last `count` pictures (all, if there are fewer)."""
        return self.some(slice(max(0, len(self) - count), None))

    def some(self, indices, device=None):
        """A split of the pictures of a slice, there or on another device."""
        other = copy.copy(self)  # of a subclass, too, which may give other batches
        vars(other).update(self._part(indices, device))
        checked(other.images, other.images, other.labels, other.classes, other.name)
        return other

    def _part(self, indices, device):
        """Of what is kept for each picture, this split's own and a subclass's: that of these."""
        found, device = {}, device or self.labels.device
        for name, value in vars(self).items():
            if isinstance(value, (torch.Tensor, np.ndarray)):
                part = value[indices] if value.ndim and len(value) == len(self) else value
                found[name] = part.to(device) if isinstance(part, torch.Tensor) else part
        return found

    @property
    def code(self):
        """Of a class of somebody's own: a checksum of its code and settings, which decide batches; else None."""
        if type(self).__module__.startswith("loaders."):
            return None
        own = {name: value for name, value in vars(self).items() if name[0] != "_" and name not in OWN}
        texts = [
            (name, code_checksum.plain_text(value) or code_checksum.of_value(value)) for name, value in own.items()
        ]
        return hashlib.sha256(repr((code_checksum.of_objects([self]), sorted(texts))).encode()).hexdigest()[:16]

    def pictures(self, indices):
        """The uint8 pictures (n, C, H, W) of int64 `indices`, or a slice."""
        return self.images[indices]

    def batch(self, indices, generator=None, augment=False):
        """Images (n, C, H, W) float32 in [0, 1], channels-last, and labels (n,), for int64 `indices` (n,).

        With `augment` each picture is cropped and flipped (augment.py), at random from `generator`, which lives
        on the split's device.
        """
        images = self._augmented(indices, generator) if augment else self.pictures(indices)
        return images.div(255), self.labels[indices]

    def _augmented(self, indices, generator):
        return self._as_is("moved", lambda: CropAndFlip(self.images, self.mirror))(indices, generator)

    def batches(self, batch_size):
        """All pictures in order, unchanged: yields images, labels."""
        for begin in range(0, len(self), batch_size):
            yield self.batch(slice(begin, begin + batch_size))

    def shuffled(self, batch_size, seed):
        """The order of one epoch: index tensors of exactly `batch_size` each; the ragged rest is dropped."""
        if not 1 <= batch_size <= len(self):
            raise ValueError(
                f"batch_size={batch_size}: 1 to {len(self)} (the pictures of {self.name}) is possible"
            )
        device = self.labels.device
        order = torch.randperm(len(self), generator=torch.Generator(device).manual_seed(seed), device=device)
        return order[: len(self) // batch_size * batch_size].split(batch_size)


@dataclass(frozen=True)
class Data:
    """The three splits of a data set. The test split is for `test()` alone."""

    name: str
    train: Split
    val: Split
    test: Split
    classes: list
    provenance: dict  # what decides the pictures: name, sizes, seed of the split, checksum

    @property
    def num_classes(self):
        return len(self.classes)

    def to(self, device):
        """The same data there."""
        moved = copy.copy(self)  # and what is known of it
        splits = {name: getattr(self, name) for name in ("train", "val", "test")}
        vars(moved).update({name: split.to(device) for name, split in splits.items() if split is not None})
        return moved

    def warn_of_leak(self):
        """Say, once for the same pictures, where over 1 % of the test pictures are in the other splits too."""
        if self.test is None:
            return
        of = [split.checksum for split in (self.train, self.val, self.test)]
        if vars(self).get("looked_for_leak") != of:
            vars(self)["looked_for_leak"] = of
            count = repeated(self.test, self.train, self.val)
            if count > LEAK * len(self.test):
                log.warning("%s: %s", self.name, said_of_leak(count, len(self.test)))


def repeated(tested, *seen):
    """How many pictures of a split are, value by value, also in another one."""
    known = set().union(*map(_checksums, seen))
    return sum(mark in known for mark in _checksums(tested))


def said_of_leak(count, total):
    says = f"{100 * count / total:.1f} % of the test pictures are in what training or choosing has seen"
    return f"{says} ({count} of {total}); choose on the validation split"


def _checksums(split):
    parts = (split.pictures(slice(begin, begin + CHUNK)).cpu() for begin in range(0, len(split), CHUNK))
    return [hashlib.sha1(image.numpy().tobytes()).digest() for part in parts for image in part.contiguous()]


def stratified(labels, share, seed):
    """Indices to keep and to set aside, both shuffled; of every class `share` is set aside, at least one."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(derive_seed(seed, 1)))
    aside = torch.zeros(len(labels), dtype=torch.bool)
    for value in labels.unique():
        members = order[labels[order] == value]
        aside[members[: max(1, round(share * len(members)))]] = True
    return order[~aside[order]], order[aside[order]]
