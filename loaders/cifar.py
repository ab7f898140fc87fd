"""CIFAR-10 and CIFAR-100 as they are published: fetched, with their checksums, through torchvision."""

import shutil
import tarfile
from http.client import HTTPException

import numpy as np

from loaders.cache import DataError
from storage.atomic_files import impatient

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def read(name, folder):
    """CIFAR through torchvision: from its own folder or archive where one is here, else downloaded."""
    from torchvision import datasets as published  # imported late: it costs 1.4 s
    from torchvision.datasets.utils import check_integrity

    kind = {"cifar10": published.CIFAR10, "cifar100": published.CIFAR100}[name]
    unpacked, archive = folder / kind.base_folder, folder / kind.filename
    if unpacked.is_dir():
        for file, md5 in kind.train_list + kind.test_list + [[kind.meta["filename"], kind.meta["md5"]]]:
            if not check_integrity(unpacked / file, md5):
                state = "is damaged (its checksum differs)" if (unpacked / file).exists() else "is missing"
                raise DataError(f"{unpacked / file} {state}. Delete {unpacked}, and {name} will be fetched again")
        return _load(kind, folder, download=False)
    if archive.is_file() and not check_integrity(archive, kind.tgz_md5):
        raise DataError(
            f"{archive} is damaged or cut off (its checksum is not {kind.tgz_md5}). "
            f"Delete it, and {name} will be fetched again"
        )
    # Everything half-done stays in a folder of its own, which goes whatever happens, here or at the next start.
    scratch = folder / f".{name}-download"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        if archive.is_file():
            shutil.copy(archive, scratch)
        with impatient():
            return _load(kind, scratch, download=True)
    except (OSError, RuntimeError, EOFError, HTTPException, tarfile.TarError) as error:
        raise DataError(
            f"{name} could not be fetched from {kind.url}: {error}. Nothing was left behind. Check the network "
            f'and the disk and try again, or put the archive at {archive}, or run without CIFAR: data="shapes"'
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _load(kind, root, download):
    both = [kind(root, train=part, download=download) for part in (True, False)]
    parts = [(split.data.transpose(0, 3, 1, 2), np.asarray(split.targets, dtype=np.int64)) for split in both]
    return (*parts[0], *parts[1]), list(both[0].classes)
