"""The data sets: files that are checked, and the splits that networks are trained and tested on.

A new data set is a line of DATASETS: a function that makes it, and what a file of it must hold. One's own pictures
become data by from_folder, from_arrays, from_dataset and from_torchvision.
"""

from functools import partial
from pathlib import Path

from loaders import cache, downloads, drawn_shapes
from loaders import folder as own
from loaders.arrays import assembled, from_arrays, set_aside
from loaders.cache import DataError, Source
from loaders.folder import PREFIX as FOLDER
from loaders.folder import from_folder
from loaders.mapped import lazily
from loaders.split import Data, Split
from loaders.torch_datasets import from_dataset, from_torchvision


def _shapes(num_classes):
    make, names = partial(drawn_shapes.make, num_classes), drawn_shapes.class_names(num_classes)
    return Source(num_classes, make, names, drawn_shapes.VERSION)


DATASETS = {
    "cifar10": Source(10, partial(downloads.read, "cifar10"), downloads.CIFAR10_CLASSES),
    "cifar100": Source(100, partial(downloads.read, "cifar100")),
    "stl10": Source(
        10, partial(downloads.read, "stl10"), downloads.STL10_CLASSES, note="96 pixels, resized to 32; shuffled"
    ),
    "svhn": Source(
        10, partial(downloads.read, "svhn"), downloads.SVHN_CLASSES, note="never mirrored; shuffled", mirror=False
    ),
    "shapes10": _shapes(10),
    "shapes100": _shapes(100),
}


def load(name, folder):
    """The tensors of a data set, its class names and its checksum; made in the folder on first use.

    name: one of DATASETS, or "folder:" and the absolute path of a folder of pictures. These are cropped to
    32 pixels a side, and where they have no test split a tenth of each class is one, the same whatever the seed.
    """
    if name.startswith(FOLDER):
        return own.load(Path(name.removeprefix(FOLDER)), folder)
    return cache.load(name, DATASETS[name], folder)
