"""One's own pictures become data: arrays are checked, stored with 8 bits and cut into three splits."""

from collections import Counter
from numbers import Real
from operator import index

import numpy as np
import torch

from loaders.cache import DataError, checksum
from loaders.mapped import Mapped, Rows, lazily
from loaders.split import Data, Split, stratified
from processes.machine import own_device, prepare

CALLED = {"train": "train", "val": "validation", "test": "test"}


def from_arrays(images, labels, classes=None, *, name="arrays", validation=0.1, test=0.1, seed=0, device="auto"):
    """Data of pictures in memory: arrays of numpy or torch.

    images: (N, C, H, W), (N, H, W, C) or (N, H, W), with C 1 or 3, uint8 or floats in [0, 1], which are stored
    with 8 bits. labels: N whole numbers, or words. `classes` names them in the order of the labels; without it
    their names are the labels. `test` is the share of the pictures of each class that becomes the test split,
    `validation` that of the rest, by `seed`; in place of either may stand a pair (images, labels). All splits are
    shuffled. Raises DataError for pictures and labels that do not fit or are not what they seem, ValueError for
    other shares.
    """
    shares = {"val": validation, "test": test}
    given = {part: pair for part, pair in shares.items() if isinstance(pair, (tuple, list))}
    parts = {"train": (images, labels)} | given
    pictures = {part: as_pictures(pair[0], f"{name} {CALLED[part]}") for part, pair in parts.items()}
    arrays, classes = joined(pictures, {part: pair[1] for part, pair in parts.items()}, classes, name)
    return cut(name, arrays, classes, checksum(arrays), shares, seed, device)


def as_pictures(images, name):
    """Pictures in any of the usual forms as a uint8 tensor (N, C, H, W). Raises DataError with the remedy."""
    try:
        images = images.detach() if isinstance(images, torch.Tensor) else _as_tensor(np.asarray(images))
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: the images are no array ({error}). All need one size") from error
    shape = tuple(images.shape)

    def refuse(what):
        raise DataError(f"{name}: images {images.dtype} {shape}: {what}")

    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or not images.numel():
        refuse("(N, C, H, W), (N, H, W, C) or (N, H, W) is needed; flat rows want images.reshape(-1, 1, H, W)")
    first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
    if first == last:
        told = "two axes may be the channels" if first else "1 or 3 channels are needed"
        refuse(
            f"{told}; (N, C, H, W) with C 1 or 3 and larger sides is clear. Of RGBA take the first three channels"
        )
    images = images if first else images.permute(0, 3, 1, 2)
    floats = images.is_floating_point()
    if images.dtype != torch.uint8 and not floats:
        refuse("uint8 from 0 to 255 or floats in [0, 1] are needed; whole numbers up to 255 want .astype('uint8')")
    low, high = (float(value) for value in images.aminmax())
    if not (low >= 0 and high <= (1 if floats else 255)):  # NaN, too
        reason = "they hold NaN or infinity" if not np.isfinite(low + high) else "divide them by 255"
        if low < 0:
            reason = "are they normalised? Undo it (images * std + mean): models.build normalises inside the model"
        refuse(f"values from {low:.4g} to {high:.4g}, where [0, 1] is needed: {reason}")
    if (high * 255 if floats else high) < 2:
        reason = (
            "were they divided by 255 twice?" if floats else "were they cut from floats? Two values want * 255"
        )
        refuse(f"values from {low:.4g} to {high:.4g} are all black: {reason}")
    return (images.float() * 255).round().to(torch.uint8) if floats else images


def _as_tensor(array):
    """An array of any strides and byte order as a tensor; one that may not be written is copied."""
    return torch.as_tensor(np.require(array, array.dtype.newbyteorder("="), "CW"))


def joined(pictures, labels, classes, name):
    """The arrays of all parts, each shuffled, with labels from 0 on, and the names of the classes."""
    shapes = {part: tuple(images.shape[1:]) for part, images in pictures.items()}
    if len(set(shapes.values())) > 1:
        raise DataError(f"{name}: its parts have pictures of other shapes: {shapes}")
    marks = {part: _as_labels(labels[part], len(images), f"{name} {part}") for part, images in pictures.items()}
    kinds, numbers = np.unique(np.concatenate(list(marks.values())), return_inverse=True)
    known = [str(kind) for kind in kinds]
    if classes is not None:
        classes, whole = [str(kind) for kind in classes], kinds.dtype.kind in "ib"
        if twice := [kind for kind, count in Counter(classes).items() if count > 1]:
            raise DataError(f"{name}: classes= has {_shown(twice)} more than once: each class needs its own name")
        if whole and kinds[0] >= 0 and kinds[-1] < len(classes):
            numbers = kinds[numbers]
        elif not whole and set(known) <= set(classes):
            numbers = np.array([classes.index(kind) for kind in known])[numbers]
        elif not whole or len(classes) != len(kinds):
            raise DataError(f"{name}: labels {_shown(known)} and classes {_shown(classes)} do not fit together")
    arrays, begin = {}, 0
    for part, images in pictures.items():
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        mine = torch.as_tensor(numbers[begin : begin + len(images)], dtype=torch.int64)
        arrays |= {f"{part}_images": images[order.to(images.device)].cpu(), f"{part}_labels": mine[order]}
        begin += len(images)
    return arrays, known if classes is None else classes


def _as_labels(labels, count, name):
    """Labels as a numpy array (count,) of whole numbers or words."""
    labels = np.asarray(labels.detach().cpu() if isinstance(labels, torch.Tensor) else labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype == object and all(isinstance(label, str) for label in labels.flat):
        labels = labels.astype(str)
    if labels.dtype.kind in "iuS":  # of any size and byte order; words of bytes are words
        labels = labels.astype(str if labels.dtype.kind == "S" else np.int64)
    remedy = "one whole number or word a picture is needed"
    if labels.ndim == 2:
        remedy += "; one-hot rows become numbers by labels.argmax(1)"
    elif labels.dtype.kind == "f":
        remedy += "; labels.astype(int) makes whole numbers"
    if labels.ndim != 1 or labels.dtype.kind not in "ibU":
        raise DataError(f"{name}: labels {labels.dtype} {labels.shape}: {remedy}")
    if len(labels) != count:
        raise DataError(f"{name}: {count} pictures and {len(labels)} labels; as many are needed")
    return labels


def _shown(names, most=5):
    """A few of many names."""
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def cut(name, arrays, classes, checksum, shares, seed, device):
    """Data of arrays, a share of whose training pictures becomes each part that is not there."""
    device, seed = own_device() if device == "auto" else torch.device(device), index(seed)
    prepare(device)
    arrays = lazily(arrays, device)
    for part in ("test", "val"):
        if f"{part}_labels" not in arrays:
            arrays = set_aside(arrays, part, shares[part], seed)
    check_classes(name, arrays, classes)
    data = assembled(name, arrays, classes, checksum, seed, device)
    data.warn_of_leak()
    return data


def set_aside(arrays, part, share, seed):
    """The arrays with a share, above 0 and below 1, of the training pictures of each class as another part."""
    if not isinstance(share, Real) or not 0 < share < 1:
        raise ValueError(f"{CALLED[part]}={share!r}: a share above 0 and below 1 is needed")
    chosen = dict(zip(("train", part), stratified(arrays["train_labels"], float(share), seed), strict=True))
    return arrays | {
        f"{to}_{what}": arrays[f"train_{what}"][some]
        for to, some in chosen.items()
        for what in ("images", "labels")
    }


def check_classes(name, arrays, classes):
    """Raise DataError for a single class, or where no training picture is left of one."""
    if len(classes) < 2:
        raise DataError(f"{name}: the only class is {_shown(classes)}; two are needed to tell pictures apart")
    there = arrays["train_labels"].bincount(minlength=len(classes))
    if missing := [kind for kind, count in zip(classes, there.tolist(), strict=True) if not count]:
        raise DataError(
            f"{name}: no training picture of {_shown(missing)} (left). Each class needs at least three, one each "
            "for training, validation and test, more where the shares of these are large"
        )


def assembled(name, arrays, classes, checksum, seed, device, note=None, mirror=True):
    """Data on the device, of arrays that hold train, val and test; `note` and `mirror` as of a Source."""
    splits = {}
    for part, called in CALLED.items():
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"].to(device)
        kind, images = (Mapped, images) if isinstance(images, Rows) else (Split, images.to(device))
        splits[part] = kind(images, labels, classes, f"{name} {called}", mirror)
    provenance = {"name": name} | {part: len(split) for part, split in splits.items()}
    provenance |= {"split_seed": seed, "sha256": checksum} | ({} if note is None else {"note": note})
    return Data(name, **splits, classes=classes, provenance=provenance)
