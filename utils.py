"""The session (seed, device, preset, run folders) and the data (CIFAR-10/100, Shapes-10/100).

session = start("01_shallow_cnn", preset="auto", seed=0)
data = load_data(session.dataset("cifar10"), session)
"""

import ctypes
import functools
import hashlib
import logging
import os
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

import data_files
import parallel
from data_files import DATASETS, DataError
from parallel import drawn
from stopping import leave_on_sigterm

ROOT = Path(__file__).resolve().parent
PRESETS = ("smoke", "quick", "full")
log = logging.getLogger("study")

__all__ = ["Data", "DataError", "Session", "Split", "derive_seed", "load_data", "runs_root", "start"]

# ---------------------------------------------------------------------------------------------------
# The session


@dataclass(frozen=True)
class Session:
    """Where and how an experiment runs. Made by `start`."""

    experiment: str
    preset: str
    family: str  # "cifar" or "shapes"
    seed: int
    device: torch.device
    runs: Path  # runs/<preset>-<family>/<experiment>
    data: Path

    @property
    def seeds(self):
        """The seeds to train with: three in the full preset, one elsewhere."""
        return tuple(range(self.seed, self.seed + 3)) if self.preset == "full" else (self.seed,)

    def pick(self, *, quick, full, smoke=None):
        """The value for this preset; smoke takes quick's where it has none of its own."""
        values = {"smoke": quick if smoke is None else smoke, "quick": quick, "full": full}
        return values[self.preset]

    def dataset(self, name):
        """The data set to use for `name`: itself, or its drawn stand-in where the session runs on Shapes."""
        if name not in ("cifar10", "cifar100"):
            raise ValueError(f"data set {name!r}: 'cifar10' or 'cifar100' is needed")
        return name if self.family == "cifar" else name.replace("cifar", "shapes")

    def folder(self, name, seed=None):
        """The folder of a run of this experiment; made when the run starts."""
        return self.runs / (name if seed is None else f"{name}-seed{seed}")


def start(experiment, preset="auto", seed=0, data="auto", device="auto"):
    """Begin an experiment: seed torch, choose device, preset and data, and say so in one line.

    preset: "smoke" (seconds), "quick" (minutes on two CPU cores), "full" (the study, three seeds), or
    "auto", which is "full" where torch has a CUDA device and "quick" elsewhere. data: "cifar", "shapes"
    or "auto" (CIFAR in the full preset). STUDY_RUNS and STUDY_DATA in the environment move the folders
    `runs/` and `data/` away from the repository. Raises ValueError for any other value.
    """
    cuda = torch.cuda.is_available()
    _check_choice("device", str(device).split(":")[0], ("auto", "cpu", "cuda"))
    if not cuda and Path("/proc/driver/nvidia/version").exists():
        warnings.warn(
            f"this machine has an NVIDIA GPU, but torch {torch.__version__} cannot use it: the driver is older "
            f"than CUDA {torch.version.cuda} needs, or torch was built without CUDA. Update the driver, or "
            "install a torch for it: rm -rf .venv && UV_TORCH_BACKEND=auto make setup",
            RuntimeWarning,
            stacklevel=2,
        )
    _check_choice("preset", preset, ("auto", *PRESETS))
    _check_choice("data", data, ("auto", "cifar", "shapes"))
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed={seed!r}: a whole number of at least 0 is needed")
    chosen = torch.device(("cuda" if cuda else "cpu") if device == "auto" else device)
    if chosen.type == "cuda" and chosen.index is None and parallel.world() > 1:
        chosen = torch.device("cuda", parallel.own_gpu())
    if chosen.type == "cuda" and not cuda:
        raise ValueError(f"device={device!r}: torch {torch.__version__} sees no CUDA device here")
    why = ""
    if preset == "auto":
        on_cuda = chosen.type == "cuda"
        preset, why = ("full", " (on a CUDA device)") if on_cuda else ("quick", " (no CUDA device)")
    family = data if data != "auto" else "cifar" if preset == "full" else "shapes"

    torch.manual_seed(seed)
    runs = runs_root() / f"{preset}-{family}" / experiment
    folder = (ROOT / os.environ.get("STUDY_DATA", "data")).resolve()
    where = (
        torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    )
    if parallel.world() > 1:
        where += f", one of {parallel.world()} processes"
    if parallel.leads():
        line = f"{experiment} · preset {preset}{why} · data {family} · seed {seed} · {where} · {runs}"
        print(line)  # noqa: T201
    prepare(chosen)
    return Session(experiment, preset, family, seed, chosen, runs, folder)


def own_device(kind="auto"):
    """This process's device, "cpu" or "cuda": its GPU; "auto" is the CPU where torch has none."""
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if kind == "auto" else kind
    return torch.device(kind, parallel.own_gpu()) if kind == "cuda" else torch.device(kind)


def prepare(device):
    """Settings of this process on which numbers, speed and what it says depend; `start` makes them."""
    leave_on_sigterm()
    _keep_freed_memory()
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False  # accuracy is judged in float32; training has bf16
    parallel.join(device)
    if not log.handlers:  # the library's messages (resumed, loaded, saved) belong into the notebook
        log.addHandler(logging.StreamHandler(sys.stdout))
        log.setLevel(logging.INFO if parallel.leads() else logging.ERROR)
        log.propagate = False


def runs_root():
    """Where all runs lie. A relative STUDY_RUNS counts from here, not from where a kernel happens to run."""
    return (ROOT / os.environ.get("STUDY_RUNS", "runs")).resolve()


def _check_choice(name, value, allowed):
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not known; choose one of {', '.join(map(repr, allowed))}")


def _keep_freed_memory():
    """Have the C library keep freed blocks instead of returning them to the system.

    A training step frees and asks again for the same few megabytes hundreds of times a second. glibc
    gives blocks of that size back, and every page is cleared anew at the next touch: on two cores that
    was half the time of a PGD step of the shallow CNN.
    """
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3
        ctypes.CDLL(None).mallopt(mmap_threshold, 1 << 30)
        ctypes.CDLL(None).mallopt(trim_threshold, (1 << 31) - 1)


def derive_seed(*parts):
    """A well-mixed 32-bit seed from whole numbers, so that (0, 1) and (1, 0) share nothing."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


# ---------------------------------------------------------------------------------------------------
# The data

PADDING = 4  # pixels a training picture may shift in each direction
SMOKE_TRAIN, SMOKE_TEST = 640, 200


class Split:
    """Pictures and labels on a device: images uint8 (N, 3, H, W), labels int64 (N,), N at least 1.

    Batches are cut, shifted, flipped and converted here, without worker processes. Raises DataError for others.
    """

    def __init__(self, images, labels, classes, name):
        three = images.ndim == 4 and images.shape[1] == 3
        if images.dtype != torch.uint8 or not three or labels.dtype != torch.int64 or labels.ndim != 1:
            raise DataError(
                f"{name}: images {images.dtype} {tuple(images.shape)} with labels {labels.dtype} "
                f"{tuple(labels.shape)}; uint8 images (N, 3, H, W) and int64 labels (N,) are needed. Pictures "
                "become floats in [0, 1] batch by batch"
            )
        if len(images) != len(labels) or not len(labels):
            raise DataError(
                f"{name}: {len(images)} pictures and {len(labels)} labels; as many are needed, and some"
            )
        low, high = labels.aminmax()
        if low < 0 or high >= len(classes):
            raise DataError(f"{name}: labels from {low} to {high}; 0 to {len(classes) - 1} is needed")
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = labels
        self.classes = classes
        self.name = name  # "cifar10 test"
        self._windows = None

    def __len__(self):
        return len(self.labels)

    def __repr__(self):
        return f"Split({self.name}: {len(self)} pictures of {len(self.classes)} classes on {self.labels.device})"

    @property
    def num_classes(self):
        return len(self.classes)

    @functools.cached_property
    def checksum(self):
        """Of all pictures with their labels, in their order."""
        digest = hashlib.sha256()
        for tensor in (self.images.permute(0, 2, 3, 1), self.labels):
            digest.update(tensor.cpu().contiguous().numpy())
        return digest.hexdigest()[:16]

    def to(self, device):
        """The same split there."""
        return Split(self.images.to(device), self.labels.to(device), self.classes, self.name)

    def first(self, count):
        """A split of the first `count` pictures (all, if there are fewer)."""
        return Split(self.images[:count], self.labels[:count], self.classes, self.name)

    def last(self, count):
        """A split of the last `count` pictures (all, if there are fewer)."""
        begin = max(0, len(self) - count)
        return Split(self.images[begin:], self.labels[begin:], self.classes, self.name)

    def batch(self, indices, generator=None, augment=False):
        """Images (n, 3, 32, 32) float32 in [0, 1], channels-last, and labels (n,), for int64 `indices` (n,).

        With `augment` each picture is shifted by up to 4 pixels (black comes in) and flipped half the
        time, at random from `generator`, which lives on the split's device.
        """
        if not augment:
            return self.images[indices].div(255), self.labels[indices]
        if self._windows is None:
            self._windows = _windows(self.images)

        def draw(high):
            return drawn(indices, lambda numbers: numbers.random_(high, generator=generator))

        height, width = self.images.shape[2:]
        tall, wide = height + 2 * PADDING, width + 2 * PADDING
        which = draw(2) * len(self) + indices  # the plain picture or its mirror
        corner = (which * tall + draw(2 * PADDING + 1)) * wide + draw(2 * PADDING + 1)
        lines = corner[:, None] + wide * torch.arange(height, device=corner.device)
        cut = self._windows.index_select(0, lines.flatten())
        return cut.view(-1, height, width, 3).permute(0, 3, 1, 2).div(255), self.labels[indices]

    def batches(self, batch_size):
        """All pictures in order, unchanged: yields images, labels."""
        for begin in range(0, len(self), batch_size):
            yield self.images[begin : begin + batch_size].div(255), self.labels[begin : begin + batch_size]

    def shuffled(self, batch_size, seed):
        """The order of one epoch: index tensors of exactly `batch_size` each; the ragged rest is dropped."""
        if not 1 <= batch_size <= len(self):
            raise ValueError(
                f"batch_size={batch_size}: 1 to {len(self)} (the pictures of {self.name}) is possible"
            )
        device = self.labels.device
        order = torch.randperm(len(self), generator=torch.Generator(device).manual_seed(seed), device=device)
        return order[: len(self) // batch_size * batch_size].split(batch_size)


def _windows(images):
    """A view (positions, 32 * 3): the line of a crop that begins at any pixel of any padded picture or mirror.

    Nothing but the two padded copies is stored, and a batch is one look-up of whole lines, which is what makes
    the loader fast.
    """
    channels, width = images.shape[1], images.shape[3]
    padded = torch.nn.functional.pad(images, [PADDING] * 4).permute(0, 2, 3, 1).contiguous()
    both = torch.stack([padded, padded.flip(2)]).flatten()
    positions = (len(both) - width * channels) // channels + 1
    return both.as_strided((positions, width * channels), (channels, 1))


@dataclass(frozen=True)
class Data:
    """The three splits of a data set. The test split is for `test()` alone."""

    name: str
    train: Split
    val: Split
    test: Split
    classes: list
    provenance: dict  # what decides the pictures: name, sizes, seed of the split, checksum

    @property
    def num_classes(self):
        return len(self.classes)

    def to(self, device):
        """The same data there."""
        splits = {name: getattr(self, name).to(device) for name in ("train", "val", "test")}
        return replace(self, **splits)


def load_data(name, session, *, validation=0.1, train_pictures=None):
    """Load a data set onto the session's device, downloading or drawing it the first time.

    name: cifar10, cifar100, shapes10 or shapes100. `validation` is the share of the training pictures
    of each class that is set aside; the same seed sets the same aside. `train_pictures` keeps only that
    many of the rest. Raises DataError for files that cannot be used, ValueError for bad arguments.
    """
    if name not in DATASETS:
        raise ValueError(f"data set {name!r} is not known; the data sets are: {', '.join(DATASETS)}")
    if not 0 < validation < 1:
        raise ValueError(f"validation={validation}: a share above 0 and below 1 is needed")
    arrays, classes, checksum = data_files.load(name, session.data)
    train_images, train_labels = arrays["train_images"], arrays["train_labels"]
    test_images, test_labels = arrays["test_images"], arrays["test_labels"]
    if session.preset == "smoke":
        train_images, train_labels = train_images[:SMOKE_TRAIN], train_labels[:SMOKE_TRAIN]
        test_images, test_labels = test_images[:SMOKE_TEST], test_labels[:SMOKE_TEST]
    kept, aside = _stratify(train_labels, validation, session.seed)
    if train_pictures is not None:
        if not 1 <= train_pictures <= len(kept):
            raise ValueError(f"train_pictures={train_pictures}: 1 to {len(kept)} is possible")
        kept = kept[:train_pictures]

    def split(images, labels, part):
        return Split(images.to(session.device), labels.to(session.device), classes, f"{name} {part}")

    train = split(train_images[kept], train_labels[kept], "train")
    val = split(train_images[aside], train_labels[aside], "validation")
    test = split(test_images, test_labels, "test")
    provenance = {"name": name, "train": len(train), "val": len(val), "test": len(test)}
    return Data(name, train, val, test, classes, provenance | {"split_seed": session.seed, "sha256": checksum})


def _stratify(labels, share, seed):
    """Indices to keep and to set aside, both shuffled; of every class `share` is set aside, at least one."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(derive_seed(seed, 1)))
    aside = torch.zeros(len(labels), dtype=torch.bool)
    for value in labels.unique():
        members = order[labels[order] == value]
        aside[members[: max(1, round(share * len(members)))]] = True
    return order[~aside[order]], order[aside[order]]
