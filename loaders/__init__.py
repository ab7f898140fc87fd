"""The data sets: files that are checked, and the splits that networks are trained and tested on.

A new data set is a line of DATASETS: a function that makes it, and what a file of it must hold.
"""

from functools import partial

from loaders import cache, cifar, drawn_shapes
from loaders.cache import DataError, Source
from loaders.split import Data, Split, stratified


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
    """The tensors of a data set, its class names and its checksum; made in the folder on first use."""
    return cache.load(name, DATASETS[name], folder)
