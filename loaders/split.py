"""Pictures with their labels on a device, and the three splits of a data set."""

import functools
import hashlib
from dataclasses import dataclass, replace

import torch

from loaders.augment import CropAndFlip
from loaders.cache import DataError
from processes.seeds import derive_seed


class Split:
    """Pictures and labels on a device: images uint8 (N, 3, H, W) or grey (N, 1, H, W), labels int64 (N,), N > 0.

    Batches are cut, shifted, flipped and converted here, without worker processes. Raises DataError for others.
    """

    def __init__(self, images, labels, classes, name):
        fits = images.ndim == 4 and images.shape[1] in (1, 3)
        if images.dtype != torch.uint8 or not fits or labels.dtype != torch.int64 or labels.ndim != 1:
            raise DataError(
                f"{name}: images {images.dtype} {tuple(images.shape)} with labels {labels.dtype} "
                f"{tuple(labels.shape)}; uint8 images (N, 3, H, W) or (N, 1, H, W) and int64 labels (N,) are "
                "needed. Pictures become floats in [0, 1] batch by batch; loaders.from_arrays takes other arrays"
            )
        if len(images) != len(labels) or not len(labels):
            raise DataError(
                f"{name}: {len(images)} pictures and {len(labels)} labels; as many are needed, and some"
            )
        low, high = labels.aminmax()
        if low < 0 or high >= len(classes):
            raise DataError(f"{name}: labels from {low} to {high}; 0 to {len(classes) - 1} is needed")
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = labels
        self.classes = classes
        self.name = name  # "cifar10 test"
        self._moved = None

    def __len__(self):
        return len(self.labels)

    def __repr__(self):
        return f"Split({self.name}: {len(self)} pictures of {len(self.classes)} classes on {self.labels.device})"

    @property
    def num_classes(self):
        return len(self.classes)

    @functools.cached_property
    def checksum(self):
        """Of all pictures with their labels, in their order."""
        digest = hashlib.sha256()
        for tensor in (self.images.permute(0, 2, 3, 1), self.labels):
            digest.update(tensor.cpu().contiguous().numpy())
        return digest.hexdigest()[:16]

    def to(self, device):
        """The same split there."""
        return Split(self.images.to(device), self.labels.to(device), self.classes, self.name)

    def first(self, count):
        """A split of the first `count` pictures (all, if there are fewer)."""
        return Split(self.images[:count], self.labels[:count], self.classes, self.name)

    def last(self, count):
        """A split of the last `count` pictures (all, if there are fewer)."""
        begin = max(0, len(self) - count)
        return Split(self.images[begin:], self.labels[begin:], self.classes, self.name)

    def batch(self, indices, generator=None, augment=False):
        """Images (n, C, H, W) float32 in [0, 1], channels-last, and labels (n,), for int64 `indices` (n,).

        With `augment` each picture is cropped and flipped (augment.py), at random from `generator`, which lives
        on the split's device.
        """
        if not augment:
            return self.images[indices].div(255), self.labels[indices]
        if self._moved is None:
            self._moved = CropAndFlip(self.images)
        return self._moved(indices, generator).div(255), self.labels[indices]

    def batches(self, batch_size):
        """All pictures in order, unchanged: yields images, labels."""
        for begin in range(0, len(self), batch_size):
            yield self.images[begin : begin + batch_size].div(255), self.labels[begin : begin + batch_size]

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
        splits = {name: getattr(self, name).to(device) for name in ("train", "val", "test")}
        return replace(self, **splits)


def stratified(labels, share, seed):
    """Indices to keep and to set aside, both shuffled; of every class `share` is set aside, at least one."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(derive_seed(seed, 1)))
    aside = torch.zeros(len(labels), dtype=torch.bool)
    for value in labels.unique():
        members = order[labels[order] == value]
        aside[members[: max(1, round(share * len(members)))]] = True
    return order[~aside[order]], order[aside[order]]
