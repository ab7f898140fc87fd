"""The data sets as files: fetched or drawn once, kept in one checked file each, read from it ever after.

data/<name>.safetensors holds train_images, test_images uint8 (N, 3, 32, 32) and train_labels,
test_labels int64 (N,), with the class names and a checksum in its metadata.
"""

import hashlib
import json
import logging
import shutil
import tarfile
from http.client import HTTPException

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors

import shapes
from files import NotWritten, held, impatient, replacing

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
DATASETS = {"cifar10": 10, "cifar100": 100, "shapes10": 10, "shapes100": 100}
log = logging.getLogger("study")


class DataError(RuntimeError):
    """The data cannot be used; the message names the file and what to do."""


def load(name, folder):
    """The tensors of a data set, its class names and the checksum of its contents; made on first use.

    Raises DataError for files that cannot be used.
    """
    path = folder / f"{name}.safetensors"
    if _outdated(name, path):
        try:
            with held(folder / f".{name}.lock", f"{path} is being made", wait=True):
                if _outdated(name, path):  # while this process waited, another one may have made it
                    _make_cache(name, path)
        except NotWritten as error:
            raise DataError(f"{error}. STUDY_DATA in the environment names another folder for data") from error
    return _read_cache(name, path)


def _outdated(name, path):
    """Whether a cache is not there, or Shapes as another version draws them; an unreadable one is not."""
    if not path.exists():
        return True
    if not name.startswith("shapes"):
        return False
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("version") != shapes.VERSION
    except (SafetensorError, OSError):
        return False


def _make_cache(name, path):
    log.info("%s is not here yet, or drawn by another version: making %s", name, path)
    if name.startswith("shapes"):
        train, test = shapes.draw(10_000, DATASETS[name], seed=0), shapes.draw(2_000, DATASETS[name], seed=1)
        parts = *train, *test
        classes = shapes.class_names(DATASETS[name])
    else:
        parts, classes = _read_cifar(name, path.parent)
    keys = ("train_images", "train_labels", "test_images", "test_labels")
    tensors = {key: torch.from_numpy(np.ascontiguousarray(part)) for key, part in zip(keys, parts, strict=True)}
    metadata = {"name": name, "classes": json.dumps(classes), "sha256": _checksum(tensors)}
    if name.startswith("shapes"):
        metadata["version"] = shapes.VERSION
    content = safetensors.save(tensors, metadata)
    with replacing(path) as partial:
        partial.write_bytes(content)


def _checksum(tensors):
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(tensors[key].numpy())
    return digest.hexdigest()


def _read_cache(name, path):
    """Read and judge data/<name>.safetensors: tensors, class names, checksum of the contents."""

    def refuse(what):
        raise DataError(f"{path}: {what}. Delete the file, and it will be made again")

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        refuse(f"cannot be read ({error}); it is cut off or of another kind")
    try:
        classes = json.loads(metadata["classes"])
        named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    except (KeyError, ValueError):
        named = False
    if not named:
        refuse("does not name its classes")
    if len(classes) != DATASETS[name] or metadata.get("name", name) != name:
        refuse(f"holds {metadata.get('name', 'another data set')} with {len(classes)} classes, not {name}")
    known = {"cifar10": CIFAR10_CLASSES, "cifar100": sorted(classes)}.get(name) or shapes.class_names(len(classes))
    if classes != known:
        refuse(f"holds the classes {', '.join(map(str, classes))}: not those of {name}")
    if len(arrays) > 4:
        refuse(f"holds {', '.join(arrays)}: more than pictures and labels")
    for part in ("train", "test"):
        images, labels = arrays.get(f"{part}_images"), arrays.get(f"{part}_labels")
        if images is None or labels is None:
            refuse(f"has no {part} pictures or labels")
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != (3, 32, 32):
            refuse(f"has {part} images {images.dtype} {tuple(images.shape)}, not uint8 (N, 3, 32, 32)")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1] or not len(labels):
            refuse(f"has {part} labels {labels.dtype} {tuple(labels.shape)} for {len(images)} images")
        if labels.min() < 0 or labels.max() >= len(classes):
            refuse(f"has {part} labels from {labels.min()} to {labels.max()} for {len(classes)} classes")
    checksum = _checksum(arrays)
    if metadata.get("sha256", checksum if name.startswith("cifar") else None) != checksum:
        refuse("holds other bytes than were written (its checksum differs); the disk may be failing")
    return arrays, classes, checksum


def _read_cifar(name, folder):
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
        return _load_cifar(kind, folder, download=False)
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
            return _load_cifar(kind, scratch, download=True)
    except (OSError, RuntimeError, EOFError, HTTPException, tarfile.TarError) as error:
        raise DataError(
            f"{name} could not be fetched from {kind.url}: {error}. Nothing was left behind. Check the network "
            f'and the disk and try again, or put the archive at {archive}, or run without CIFAR: data="shapes"'
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _load_cifar(kind, root, download):
    train, test = (kind(root, train=part, download=download) for part in (True, False))
    parts = []
    for split in (train, test):
        parts += [split.data.transpose(0, 3, 1, 2), np.asarray(split.targets, dtype=np.int64)]
    return parts, list(train.classes)
