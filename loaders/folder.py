"""A folder of one's own pictures, a folder a class, becomes data: read once, cached as one checked file."""

import functools
import hashlib
import math
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from loaders import cache
from loaders.arrays import check_classes, cut, set_aside
from loaders.cache import DataError, Source
from loaders.split import CHUNK
from storage.paths import data_root

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
PARTS |= {"training": "train", "testing": "test"}  # as some public sets have them
PREFIX = "folder:"  # of a data set's name, in notebooks


def from_folder(path, *, size=32, fit="crop", validation=0.1, test=0.1, seed=0, device="auto"):
    """Data of a folder that holds a folder of pictures for each class, whose name is the class's.

    All pictures get `size` pixels a side, or (height, width): of each the largest middle part of that shape
    (fit="crop") or all, stretched (fit="resize"). They are grey where all files are, else RGB; transparency is
    dropped. Where the folders are train/, test/ and val/ (or valid/, validation/), with a folder a class in each,
    these are the splits. Else `test` is the share of each class that becomes the test split, `validation` that of
    the rest, by `seed`. All splits are shuffled. Hidden files, and those that are no pictures, are passed over.
    What was read is kept in the data folder, until a file in the folder changes.
    Raises DataError, which names the files, for what cannot be used; ValueError for other arguments.
    """
    path = Path(path).expanduser().resolve()
    arrays, classes, checksum = read(path, size, fit)
    return cut(path.name, arrays, classes, checksum, {"val": validation, "test": test}, seed, device)


def load(path, folder):
    """What loaders.load gives of a folder of pictures: train and test, the latter the same whatever the seed."""
    arrays, classes, checksum = read(path, 32, "crop", folder)
    if "test_labels" not in arrays:
        arrays = set_aside(arrays, "test", 0.1, seed=0)
    check_classes(path.name, arrays, classes)
    return arrays, classes, checksum


def read(path, size, fit, folder=None):
    """The arrays of each part that there is, the classes, the checksum; cached in `folder`, the data folder."""
    size = check_fit(size, fit)
    files, classes = _listed(path)
    every = [file for some in files.values() for file, _ in some]
    digest = hashlib.sha256()
    for file in every:
        known = os.stat(file)
        digest.update(f"{file}|{known.st_size}|{known.st_mtime_ns}\n".encode())
    make = functools.partial(_make, files, classes, size, fit)
    which = hashlib.sha256(f"{path}|{size}|{fit}".encode()).hexdigest()[:8]
    return cache.load(
        f"{path.name}-{which}", Source(None, make, version=digest.hexdigest()), folder or data_root()
    )


def check_fit(size, fit):
    """The size as plain numbers. Raises ValueError for sizes and ways to fit that there are not."""
    sides = size if isinstance(size, (tuple, list)) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, Integral) and side >= 8 for side in sides):
        raise ValueError(f"size={size!r}: at least 8 pixels a side, or (height, width), are needed")
    if fit not in ("crop", "resize"):
        raise ValueError(f"fit={fit!r}: 'crop' or 'resize' is needed")
    return tuple(map(int, sides)) if isinstance(size, (tuple, list)) else int(size)


def _listed(path):
    """The files of each part, with their labels, shuffled; and the names of the classes."""
    if not path.is_dir():
        raise DataError(f"{path} is no folder")
    tops = _folders(path)
    parts = {PARTS[top.name.lower()]: top for top in tops if top.name.lower() in PARTS}
    if len(parts) == len(tops) > 1 and "train" not in parts:
        raise DataError(
            f"{path} holds {', '.join(top.name for top in tops)}: these are splits, and train is missing"
        )
    if "train" not in parts or len(parts) == 1:
        parts = {"train": path}
    elif len(parts) < len(tops):
        raise DataError(
            f"{path} holds {', '.join(top.name for top in tops)}: splits (train, val, test) or classes, not both"
        )
    names = {part: [top.name for top in _folders(parts[part])] for part in parts}
    classes, files = names["train"], {}
    if len(classes) < 2:
        inner = parts["train"] / classes[0] if classes else None
        meant = f"; is {inner} meant?" if inner and len(_folders(inner)) > 1 else ""
        raise DataError(
            f"{parts['train']} holds {len(classes)} folders of pictures; one for each class is needed, and two at "
            f"least, as in {path.name}/cat/1.png{meant}"
        )
    for part in parts:
        if unknown := sorted(set(names[part]) - set(classes)):
            raise DataError(f"{parts[part]} has the class {unknown[0]!r}, which {parts['train']} has not")
        if not names[part]:
            raise DataError(f"{parts[part]} holds no folders of pictures; one for each class is needed")
        found = []
        for name in names[part]:
            pictures = _pictures(parts[part] / name)
            if not pictures:
                raise DataError(f"{parts[part] / name} holds no picture ({' '.join(ENDINGS)})")
            found += [(file, classes.index(name)) for file in pictures]
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
        files[part] = [found[place] for place in order.tolist()]
    return files, classes


def _folders(path):
    return sorted(top for top in path.iterdir() if top.is_dir() and not top.name.startswith((".", "__")))


def _pictures(folder):
    """The files of its pictures, also in folders in it; none that is hidden."""
    found = []
    for place, inner, names in os.walk(folder, followlinks=True):
        inner[:] = [name for name in inner if not name.startswith(".")]
        shown = [name for name in names if name.lower().endswith(ENDINGS) and not name.startswith(".")]
        found += [os.path.join(place, name) for name in shown]
    return sorted(found)


def _make(files, classes, size, fit, folder):
    """The arrays of all parts, and the classes."""
    arrays, broken, every = {}, [], [file for some in files.values() for file, _ in some]
    grey = all(map(_grey_file, every))
    shape = (*((size, size) if isinstance(size, int) else size), 1 if grey else 3)
    read = functools.partial(_read, grey=grey, size=size, fit=fit)
    with ThreadPoolExecutor() as pool:
        for part, some in files.items():
            images = np.moveaxis(_on_disk((len(some), *shape), folder), -1, 1)
            arrays[f"{part}_images"] = images
            arrays[f"{part}_labels"] = np.array([label for _, label in some], np.int64)
            for begin in range(0, len(some), CHUNK):
                here = slice(begin, begin + CHUNK)
                broken += filter(None, pool.map(read, [file for file, _ in some[here]], images[here]))
    if not broken and max(images.max() for images in arrays.values() if images.ndim == 4) < 2:
        raise DataError(f"{every[0]} and all others are black; do files of 16 bits use 8 of them?")
    if broken:
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise DataError(
            f"{len(broken)} of {len(every)} pictures cannot be read: {', '.join(broken[:5])}{more}. "
            "Mend or remove them"
        )
    return arrays, classes


def _on_disk(shape, folder):
    """An empty array in a file without a name, as the pictures may be larger than the memory."""
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, math.prod(shape))
        except OSError as error:
            raise DataError(f"{folder} has no room for {math.prod(shape) / 1e9:.1f} GB: {error}") from error
        return np.memmap(file, np.uint8, "r+", shape=shape)


def _grey_file(file):
    try:
        with Image.open(file) as image:
            return is_grey(image)
    except Exception:  # which _read will name
        return True


def _read(file, place, **how):
    """Put the pixels of a file into their place, or say what is wrong with it."""
    try:
        with Image.open(file) as image:
            place[:] = pixels(image, **how)
    except Exception as error:  # whatever a decoder raises
        return f"{file} ({type(error).__name__}: {error})"


def is_grey(image):
    return image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")


def pixels(image, grey, size=None, fit="crop"):
    """A PIL picture as uint8 (C, H, W), upright, of a size as told; None leaves its own."""
    image = ImageOps.exif_transpose(image)
    low, high = image.getextrema() if image.mode == "I" else (0, 65535)
    if image.mode == "F" or low < 0 or not 255 < high <= 65535:  # whole numbers of 32 bits have no usual range
        raise ValueError("its pixels have 32 bits; loaders.from_arrays takes them as floats in [0, 1]")
    if image.mode.startswith("I"):  # 16 bits, of which PIL would take the lower 8
        image = Image.fromarray((np.asarray(image, np.float64) / 257).round().astype(np.uint8))
    image = image.convert("L" if grey else "RGB")
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        make = ImageOps.fit if fit == "crop" else Image.Image.resize
        image = make(image, (width, height), Image.Resampling.BILINEAR)
    found = np.asarray(image)
    return found[None] if grey else found.transpose(2, 0, 1)
