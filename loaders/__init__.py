"""The data sets: files that are checked, and the splits that networks are trained and tested on.

A new data set is a line of DATASETS: a function that makes it, and what a file of it must hold. One's own pictures
become data by from_folder, from_arrays, from_dataset and from_torchvision.
"""

from functools import partial
from pathlib import Path

from loaders import cache, cifar, drawn_shapes
from loaders import folder as own
from loaders.arrays import assembled, from_arrays, set_aside
from loaders.cache import DataError, Source
from loaders.folder import PREFIX as FOLDER
from loaders.folder import from_folder
from loaders.mapped import lazily
from loaders.published import from_dataset, from_torchvision
from loaders.split import Data, Split


def _shapes(num_classes):
    make, names = partial(drawn_shapes.make, num_classes), drawn_shapes.class_names(num_classes)
    return Source(num_classes, make, names, drawn_shapes.VERSION)


DATASETS = {
    "cifar10": Source(10, partial(cifar.read, "cifar10"), cifar.CIFAR10_CLASSES),
    "cifar100": Source(100, partial(cifar.read, "cifar100")),
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
