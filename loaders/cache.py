"""The data sets as checked files: fetched or drawn once, kept in one file each, read from it ever after.

data/<name>.safetensors holds train_images, test_images uint8 (N, 3, 32, 32) and train_labels,
test_labels int64 (N,), with the class names and a checksum in its metadata. Files of people's own data may have
other parts, and pictures of another shape.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors

from storage.atomic_files import NotWritten, held, replacing

KEYS = ("train_images", "train_labels", "test_images", "test_labels")

log = logging.getLogger("study")


class DataError(RuntimeError):
    """The data cannot be used; the message names the file and what to do."""


@dataclass(frozen=True)
class Source:
    """Where a data set comes from: make(folder) returns its arrays and the names of the classes.

    The arrays are train_images, train_labels, test_images, test_labels. `classes` are the names that a file must
    hold; None: any, in alphabetical order. A file of another `version` is made anew. `num_classes` is None for
    people's own data: their arrays have names, {"train_images": ...}, and are of any parts and sizes, and in the
    file a pixel's channels lie together. `note` is what their provenance says of the pictures beside their number;
    without `mirror` augmentation never mirrors them, as digits.
    """

    num_classes: int | None
    make: Callable
    classes: list | None = None
    version: str | None = None
    note: str | None = None
    mirror: bool = True


def load(name, source, folder):
    """The tensors of a data set, its class names and the checksum of its contents; made on first use.

    Raises DataError for files that cannot be used.
    """
    path = folder / f"{name}.safetensors"
    if _outdated(source, path):
        try:
            with held(folder / f".{name}.lock", f"{path} is being made", wait=True):
                if _outdated(source, path):  # while this process waited, another one may have made it
                    _make(name, source, path)
        except NotWritten as error:
            raise DataError(f"{error}. STUDY_DATA in the environment names another folder for data") from error
    return _read(name, source, path)


def _outdated(source, path):
    """Whether a file is not there, or was drawn by another version; an unreadable one is not."""
    if not path.exists() or source.version is None:
        return not path.exists()
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("version") != source.version
    except (SafetensorError, OSError):
        return False


def _make(name, source, path):
    log.info("%s is not here yet, or of another version: making %s", name, path)
    arrays, classes = source.make(path.parent)
    if source.num_classes is not None:
        arrays = dict(zip(KEYS, arrays, strict=True))
    else:  # as batches are wanted, in which the channels of a pixel lie together
        arrays = {
            key: np.moveaxis(np.asarray(array), 1, -1) if array.ndim == 4 else array
            for key, array in arrays.items()
        }
    tensors = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in arrays.items()}
    metadata = {"name": name, "classes": json.dumps(classes), "sha256": checksum(tensors)}
    if source.version is not None:
        metadata["version"] = source.version
    with replacing(path) as partial:
        try:
            safetensors.save_file(tensors, partial, metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error


def checksum(tensors):
    """Of arrays by name, whatever their order."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(tensors[key].contiguous().numpy())
    return digest.hexdigest()


def _read(name, source, path):
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
        classes = json.loads(metadata.get("classes", "null"))
    except ValueError:
        classes = None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        refuse("does not name its classes")
    if source.num_classes not in (None, len(classes)) or metadata.get("name", name) != name:
        refuse(f"holds {metadata.get('name', 'another data set')} with {len(classes)} classes, not {name}")
    if source.num_classes is not None and classes != (source.classes or sorted(classes)):
        refuse(f"holds the classes {', '.join(classes)}: not those of {name}")
    own = source.num_classes is None
    if len(arrays) > len(KEYS) and not own:
        refuse(f"holds {', '.join(arrays)}: more than pictures and labels")
    for part in sorted({key.rpartition("_")[0] for key in arrays}) if own else ("train", "test"):
        images, labels = arrays.get(f"{part}_images"), arrays.get(f"{part}_labels")
        if images is None or labels is None:
            refuse(f"has no {part} pictures or labels")
        if images.dtype != torch.uint8 or images.ndim != 4 or (images.shape[1:] != (3, 32, 32) and not own):
            wanted = "(N, H, W, C)" if own else "(N, 3, 32, 32)"
            refuse(f"has {part} images {images.dtype} {tuple(images.shape)}, not uint8 {wanted}")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1] or not len(labels):
            refuse(f"has {part} labels {labels.dtype} {tuple(labels.shape)} for {len(images)} images")
        if labels.min() < 0 or labels.max() >= len(classes):
            refuse(f"has {part} labels from {labels.min()} to {labels.max()} for {len(classes)} classes")
    found = checksum(arrays)
    if metadata.get("sha256", found if source.version is None else None) != found:
        refuse("holds other bytes than were written (its checksum differs); the disk may be failing")
    if own:
        arrays = {key: array.permute(0, 3, 1, 2) if array.ndim == 4 else array for key, array in arrays.items()}
    return arrays, classes, found
