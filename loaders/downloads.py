"""CIFAR-10, CIFAR-100, STL-10 and SVHN as they are published: fetched, with checksums, through torchvision."""

import shutil
import tarfile
from http.client import HTTPException

import numpy as np
from PIL import Image

from loaders.cache import DataError
from loaders.folder import pixels
from storage.atomic_files import impatient

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
STL10_CLASSES = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
SVHN_CLASSES = list("0123456789")
SIDE = 32


def read(name, folder):
    """A data set through torchvision: from its own folder or files where these are here, else downloaded."""
    from torchvision import datasets as published  # imported late: it costs 1.4 s
    from torchvision.datasets.utils import check_integrity

    kind = getattr(published, name.upper())
    url, files, inside = _files(kind)
    if inside and (unpacked := folder / kind.base_folder).is_dir():
        for file, md5 in inside:
            if not check_integrity(unpacked / file, md5):
                state = "is damaged (its checksum differs)" if (unpacked / file).exists() else "is missing"
                raise DataError(f"{unpacked / file} {state}. Delete {unpacked}, and {name} will be fetched again")
        return _load(kind, folder, download=False)
    here = [folder / file for file, _ in files if (folder / file).is_file()]
    for path, md5 in ((folder / file, md5) for file, md5 in files):
        if path in here and not check_integrity(path, md5):
            raise DataError(
                f"{path} is damaged or cut off (its checksum is not {md5}). "
                f"Delete it, and {name} will be fetched again"
            )
    # Everything half-done stays in a folder of its own, which goes whatever happens, here or at the next start.
    scratch = folder / f".{name}-download"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        for path in here:
            shutil.copy(path, scratch)
        with impatient():
            return _load(kind, scratch, download=True)
    except (OSError, RuntimeError, EOFError, HTTPException, tarfile.TarError) as error:
        raise DataError(
            f"{name} could not be fetched from {url}: {error}. Nothing was left behind. Check the network and the "
            f"disk and try again, or put {' and '.join(file for file, _ in files)} into {folder}, or run without "
            'it: data="shapes"'
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _files(kind):
    """Where a set is fetched from; the files that are fetched, and what is in its folder, with their MD5 sums."""
    if hasattr(kind, "split_list"):  # SVHN: two files, not packed; `extra` is left alone
        (url, *train), (_, *test) = (kind.split_list[part] for part in ("train", "test"))
        return url, [train, test], []
    names = [kind.meta["filename"], kind.meta["md5"]] if hasattr(kind, "meta") else [kind.class_names_file, None]
    return kind.url, [[kind.filename, kind.tgz_md5]], [*kind.train_list, *kind.test_list, names]


def _load(kind, root, download):
    if hasattr(kind, "meta"):  # CIFAR
        both = [kind(root, train=part, download=download) for part in (True, False)]
        parts = [(split.data, split.targets) for split in both]
    else:
        both = [kind(root, split=part, download=download) for part in ("train", "test")]
        parts = [_shuffled(split.data.transpose(0, 2, 3, 1), split.labels) for split in both]
    arrays = [each for images, labels in parts for each in (_small(images), np.asarray(labels, dtype=np.int64))]
    return arrays, list(getattr(both[0], "classes", SVHN_CLASSES))


def _shuffled(images, labels):
    """Neighbours in SVHN are digits of one house, and often only the first pictures of a split are tested on."""
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(labels))
    return images[order], labels[order]


def _small(images):
    """Pictures (N, H, W, 3) as (N, 3, 32, 32): larger ones through Pillow's bilinear filter, which is antialiased.

    That is torchvision's Resize(32), as the field's comparisons have it (GodXuxilie/RobustSSL_Benchmark).
    """
    if images.shape[1] != SIDE:
        return np.stack([pixels(Image.fromarray(image), False, SIDE, "resize") for image in images])
    return images.transpose(0, 3, 1, 2)
