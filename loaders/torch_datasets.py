"""Data sets of others: any torch Dataset of (picture, label), and torchvision's classification sets by name."""

import functools
import hashlib
import inspect
from http.client import HTTPException
from numbers import Integral

import numpy as np
import torch

from loaders import cache
from loaders.arrays import as_pictures, cut, joined
from loaders.cache import DataError, Source
from loaders.folder import check_fit, is_grey, pixels
from storage.atomic_files import impatient
from storage.paths import data_root

ASKED = 16  # pictures that are taken twice, to see whether they stay the same
SPLITS = {
    "train": ("train", "trainval"),
    "val": ("val", "valid"),
    "test": ("test",),
}  # what torchvision calls them


def from_dataset(dataset, *, name=None, classes=None, validation=0.1, test=0.1, seed=0, device="auto"):
    """Data of a Dataset whose items are (picture, label), or of several: (train, test) or (train, val, test).

    A picture is one of PIL's, or an array or tensor as from_arrays takes it, all of one size and always the same:
    augmenting is for the recipe, normalising for the model. The names of the classes are `classes`, else what the
    dataset has of them. Shares, shuffling and errors are those of from_arrays.
    """
    if isinstance(dataset, torch.utils.data.DataLoader):
        raise DataError("a DataLoader gives batches; its Dataset is loader.dataset")
    several = dataset if isinstance(dataset, (tuple, list)) else (dataset,)
    if len(several) not in (1, 2, 3):
        raise ValueError(f"{len(several)} datasets: train, (train, test) or (train, val, test) is needed")
    names = ("train", "val", "test") if len(several) == 3 else ("train", "test")[: len(several)]
    parts = dict(zip(names, several, strict=True))
    name = name or type(several[0]).__name__
    arrays, classes = _arrays_of(parts, name, classes)
    shares = {"val": validation, "test": test}
    return cut(name, arrays, classes, cache.checksum(arrays), shares, seed, device)


def from_torchvision(name, *, size=None, fit="crop", validation=0.1, test=0.1, seed=0, device="auto", **options):
    """Data of a classification set of torchvision.datasets, such as "FashionMNIST", "SVHN", "STL10", "Flowers102".

    It is fetched into the data folder at first use, and kept there as one checked file. Its own splits are used; a
    share is cut where it has none, or where `options`, which go to the class, choose one: split="extra" of SVHN.
    `size` and `fit` as in from_folder; None leaves the pictures as they are, which must then have one size.
    Raises DataError where it cannot be fetched or used, ValueError for a name that torchvision does not have.
    """
    from torchvision import datasets  # imported late: it costs a second

    kind = getattr(datasets, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, torch.utils.data.Dataset)):
        raise ValueError(f"torchvision.datasets has no {name!r}; its names are such as FashionMNIST, SVHN, STL10")
    if size is not None:
        size = check_fit(size, fit)
    key = f"{name}|{size}|{fit}|{sorted(options.items())}"
    if options.keys() & {"train", "split"}:
        key += "|shares"  # in older files all parts were the same
    which = f"{name.lower()}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    make = functools.partial(_fetched, kind, options, size, fit)
    arrays, classes, checksum = cache.load(which, Source(None, make), data_root())
    return cut(name, arrays, classes, checksum, {"val": validation, "test": test}, seed, device)


def _fetched(kind, options, size, fit, folder):
    """The arrays and classes of a set of torchvision, fetched if need be."""
    # EMNIST and its like take `train` for their base class.
    known = {name for base in kind.__mro__ for name in inspect.signature(base.__init__).parameters}
    ways = [("train", {})]
    if "train" in known - options.keys():
        ways = [("train", {"train": True}), ("test", {"train": False})]
    elif "split" in known - options.keys() and "train" not in known:
        ways = [(part, {"split": split}) for part, splits in SPLITS.items() for split in splits]
    common = {"root": folder, "download": True} if "download" in known else {"root": folder}
    parts = {}
    try:
        with impatient():
            for part, way in ways:
                if part not in parts and (dataset := _made(kind, common | way | options)) is not None:
                    parts[part] = dataset
    except (OSError, RuntimeError, EOFError, HTTPException) as error:
        raise DataError(
            f"{kind.__name__} could not be fetched: {error}. Check the network and the disk and try again, or put "
            f"what torchvision wants into {folder}"
        ) from error
    if "train" not in parts:
        raise ValueError(f"{kind.__name__} has no training pictures with {options}")
    arrays, classes = _arrays_of(parts, kind.__name__, None, size, fit)
    for part in set(parts) - {"train"}:  # which an option has made the training pictures, as what= of QMNIST
        keys = [(f"{part}_{what}", f"train_{what}") for what in ("images", "labels")]
        if all(torch.equal(arrays[one], arrays[other]) for one, other in keys):
            arrays = {key: array for key, array in arrays.items() if not key.startswith(f"{part}_")}
    return arrays, classes


def _made(kind, settings):
    """The dataset; None where torchvision does not know such a split."""
    try:
        return kind(**settings)
    except ValueError as error:
        if "split" in settings and "split" in str(error):
            return None
        raise


def _arrays_of(parts, name, classes, size=None, fit="crop"):
    """The arrays of several datasets, and the names of their classes."""
    pictures, labels = {}, {}
    for part, dataset in parts.items():
        found, numbers = _items(dataset, f"{name} {part}", size, fit)
        labels[part] = _as_in_training(numbers, dataset, parts["train"], f"{name} {part}")
        pictures[part] = as_pictures(found, f"{name} {part}")
    most = max(len(images[0]) for images in pictures.values())  # one part may be grey, and another not
    pictures = {part: images.expand(-1, most, -1, -1) for part, images in pictures.items()}
    own = getattr(parts["train"], "classes", ()) if classes is None else ()
    arrays, classes = joined(pictures, labels, classes, name)
    if own and all(kind.isdecimal() and int(kind) < len(own) for kind in classes):
        classes = [str(own[int(kind)]) for kind in classes]  # of those that there are pictures of
    return arrays, classes


def _as_in_training(labels, dataset, training, name):
    """The labels in the numbers of the training part, where both name their classes and number them otherwise."""
    ours, theirs = (list(getattr(part, "classes", None) or ()) for part in (dataset, training))
    if not ours or not theirs or ours == theirs or not all(isinstance(label, Integral) for label in labels):
        return labels
    if strange := sorted({str(ours[label]) for label in labels if ours[label] not in theirs}):
        raise DataError(f"{name}: its classes {', '.join(strange[:5])} are none of the training part's")
    return [theirs.index(ours[label]) for label in labels]


def _items(dataset, name, size, fit):
    """All pictures of a dataset, as one array, and their labels."""
    pictures, labels = [], []
    for index in range(len(dataset)):
        item = dataset[index]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise DataError(f"{name}: its items are {type(item).__name__}; (picture, label) is needed")
        pictures.append(_plain(item[0], size, fit))
        label = item[1].cpu().numpy() if isinstance(item[1], torch.Tensor) else item[1]
        labels.append(label.item() if isinstance(label, (np.ndarray, np.generic)) and label.size == 1 else label)
        if index < ASKED and not np.array_equal(
            pictures[-1], _plain(dataset[index][0], size, fit), equal_nan=True
        ):
            raise DataError(
                f"{name}: its pictures change each time: leave out random transforms. Recipe(augment=True) crops "
                "and flips, in training alone"
            )
    shapes = {picture.shape for picture in pictures}
    sides = {shape[1:] for shape in shapes}
    if len(sides) == 1 and {shape[0] for shape in shapes} == {1, 3}:  # some grey ones
        pictures = [picture.repeat(3 // len(picture), 0) for picture in pictures]
    elif len(shapes) > 1:
        some = ", ".join(map(str, sorted(shapes)[:3]))
        raise DataError(f"{name}: pictures of shapes {some}: one size is needed, by a transform such as Resize")
    return np.stack(pictures), labels


def _plain(picture, size, fit):
    """A picture as an array; one of PIL's as uint8 (C, H, W)."""
    if hasattr(picture, "convert"):
        return pixels(picture, is_grey(picture), size, fit)
    return np.asarray(picture)
