"""The session (seed, device, preset, run folders) and the data (CIFAR-10/100, Shapes-10/100, other targets).

session = start("01_shallow_cnn", preset="auto", seed=0)
data = load_data(session.dataset("cifar10"), session)
"""

import difflib
import logging
import os
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch

import loaders
from loaders import DATASETS, FOLDER, Data, DataError, Split
from processes import data_parallel
from processes.device_speed import gflops
from processes.machine import prepare
from storage.atomic_files import read_json
from storage.paths import ROOT, data_root, runs_root

log = logging.getLogger("study")

PRESETS = ("smoke", "quick", "hour", "full")
TARGETS = ("stl10", "svhn")  # which may take the place of CIFAR-10

__all__ = ["ROOT", "Data", "DataError", "Session", "Split", "load_data", "start"]


@dataclass(frozen=True)
class Session:
    """Where and how an experiment runs. Made by `start`."""

    experiment: str
    preset: str
    family: str  # "cifar" or "shapes"
    seed: int
    device: torch.device
    runs: Path  # runs/<preset>-<family>/<experiment>, or of the name of the own folder
    data: Path
    own: str | None = None  # the data set in place of CIFAR-10: one of TARGETS, or "folder:" and a path
    begun: float = field(default_factory=time.monotonic, compare=False)

    @property
    def seeds(self):
        """The seeds to train with: three in the full preset, one elsewhere."""
        return tuple(range(self.seed, self.seed + 3)) if self.preset == "full" else (self.seed,)

    def pick(self, *, quick, full, smoke=None, hour=None):
        """The value for this preset; smoke takes quick's, hour takes full's, where they have none of their own."""
        own = {"smoke": smoke, "hour": hour}.get(self.preset)
        return own if own is not None else quick if self.preset in ("smoke", "quick") else full

    def dataset(self, name):
        """The data set to use for `name`: itself, or its drawn stand-in where the session runs on Shapes.

        One's own pictures, or one of TARGETS, take the place of cifar10, the target; sources stay cifar100's.
        """
        if name not in ("cifar10", "cifar100"):
            raise ValueError(f"data set {name!r}: 'cifar10' or 'cifar100' is needed")
        if self.own and name == "cifar10":
            return self.own
        return name if self.family == "cifar" else name.replace("cifar", "shapes")

    def folder(self, name, seed=None):
        """The folder of a run of this experiment; made when the run starts."""
        return self.runs / (name if seed is None else f"{name}-seed{seed}")


def start(experiment, preset="auto", seed=0, data="auto", device="auto"):
    """Begin an experiment: seed torch, choose device, preset and data, and say so in one line.

    preset: "smoke" (seconds), "quick" (minutes on two CPU cores), "hour" (the study on one GPU, one seed),
    "full" (three seeds, for papers), or "auto", which is "hour" where torch has a CUDA device and "quick"
    elsewhere. data: "cifar", "shapes" or "auto" (CIFAR in the presets hour and full); "stl10" or "svhn", which are
    then the target, with sources of CIFAR-100; or "folder:" and the path of a folder of one's own pictures
    (loaders.from_folder), from this repository on where it is relative: these are then the target, and sources are
    what "auto" means. STUDY_RUNS and STUDY_DATA in the environment move the folders `runs/` and `data/` away from
    the repository. Raises ValueError for any other value.
    """
    cuda = torch.cuda.is_available()
    _check_choice("device", str(device).split(":")[0], ("auto", "cpu", "cuda"))
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if not cuda and not hidden and Path("/proc/driver/nvidia/version").exists():
        warnings.warn(
            f"this machine has an NVIDIA GPU, but torch {torch.__version__} cannot use it: the driver is older "
            f"than CUDA {torch.version.cuda} needs, or torch was built without CUDA. Update the driver, or "
            "install a torch for it: rm -rf .venv && UV_TORCH_BACKEND=auto make setup",
            RuntimeWarning,
            stacklevel=2,
        )
    _check_choice("preset", preset, ("auto", *PRESETS))
    own = called = None
    if str(data).startswith(FOLDER):
        path = (ROOT / Path(data.removeprefix(FOLDER)).expanduser()).resolve()
        own, data = f"{FOLDER}{path}", "auto"
        if not path.is_dir():
            raise ValueError(f"data={own!r}: there is no such folder; a relative path begins at {ROOT}")
        called = f"{path.name}-folder" if path.name in ("cifar", "shapes", *TARGETS) else path.name
    _check_choice("data", data, ("auto", "cifar", "shapes", *TARGETS), f" or {FOLDER}PATH, your own pictures")
    if data in TARGETS:
        own = called = data
        data = "cifar"
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed={seed!r}: a whole number of at least 0 is needed")
    chosen = torch.device(("cuda" if cuda else "cpu") if device == "auto" else device)
    gpu, processes, why = chosen.type == "cuda", data_parallel.world(), ""
    if gpu and not cuda:
        raise ValueError(f"device={device!r}: torch {torch.__version__} sees no CUDA device here")
    if gpu and chosen.index is None and processes > 1:
        chosen = torch.device("cuda", data_parallel.own_gpu())
    if preset == "auto":
        preset, why = ("hour", " (on a CUDA device)") if gpu else ("quick", " (no CUDA device)")
    family = data if data != "auto" else "cifar" if preset in ("hour", "full") else "shapes"
    called = called or family
    runs = runs_root() / f"{preset}-{called}" / experiment
    where = torch.cuda.get_device_name(chosen) if gpu else f"CPU, {torch.get_num_threads()} threads"
    where += f", one of {processes} processes" if processes > 1 else ""
    if data_parallel.leads():
        line = f"{experiment} · preset {preset}{why} · data {called} · seed {seed} · {where} · {runs}"
        print(line)  # noqa: T201
    prepare(chosen)
    if data_parallel.leads() and (estimate := _estimate(experiment, f"{preset}-{called}", chosen)):
        print(estimate)  # noqa: T201
    torch.manual_seed(seed)  # at the end: measuring draws numbers
    return Session(experiment, preset, family, seed, chosen, runs, data_root(), own)


def lengths(study):
    """How long the notebooks of a study such as "quick-shapes" take, and on what: {} where that is not known.

    {"how": text, "gflops": speed of that device, "seconds": {notebook: seconds}}; benchmarks/plan.py writes it.
    """
    return read_json(ROOT / "notebooks" / "lengths.json", sealed=False).get(study, {})


def _estimate(experiment, study, device):
    """A line that says how long a notebook takes here; None where nothing is known of it (lengths.json)."""
    known = lengths(study)
    if experiment not in known.get("seconds", {}) or os.environ.get("STUDY_ON"):
        return None
    faster = gflops(device) / known["gflops"]
    minutes = known["seconds"][experiment] / faster / 60
    return (
        f"about {minutes:.1f} minutes here, with the preset's settings, where nothing is done yet "
        f"({known['how']}; this device trains {faster:.2g} times as fast)"
    )


def _check_choice(name, value, allowed, more=""):
    if value not in allowed:
        near = difflib.get_close_matches(str(value).lower(), allowed, 1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"{name}={value!r} is not known; choose one of {', '.join(map(repr, allowed))}{more}.{meant}"
        )


SMOKE = {"train": 640, "test": 200}  # pictures of each part in the smoke preset


def load_data(name, session, *, validation=0.1, train_pictures=None):
    """Load a data set onto the session's device, downloading or drawing it the first time.

    name: cifar10, cifar100, shapes10, shapes100, stl10 or svhn, or a folder, as session.dataset gives them.
    `validation` is the share of the training pictures of each class that is set aside; the same seed sets the same
    aside. `train_pictures` keeps only that many of the rest; of one's own and of TARGETS, all where there are
    fewer. Raises DataError for files that cannot be used, ValueError for bad arguments.
    """
    if not isinstance(name, str):
        raise TypeError(f"{name!r:.60} is no name of a data set: it is load_data(name, session)")
    own = name.startswith(FOLDER)
    if name not in DATASETS and not own:
        raise ValueError(f"data set {name!r} is not known; the data sets are: {', '.join(DATASETS)}")
    if not 0 < validation < 1:
        raise ValueError(f"validation={validation}: a share above 0 and below 1 is needed")
    try:
        arrays, classes, checksum = loaders.load(name, session.data)
    except DataError as error:
        if session.family == "shapes" and name in ("cifar10", "cifar100"):
            raise DataError(f"{error}. In this session, of Shapes: session.dataset({name!r})") from None
        raise
    if session.family == "cifar" and name.startswith("shapes"):
        log.warning("%s in a session of CIFAR: its runs will lie among those of CIFAR", name)
    arrays = loaders.lazily(arrays, session.device)
    if session.preset == "smoke":
        arrays = {key: tensor[: SMOKE.get(key.partition("_")[0])] for key, tensor in arrays.items()}
    if "val_labels" not in arrays:
        arrays = loaders.set_aside(arrays, "val", validation, session.seed)
    if train_pictures is not None:
        most = len(arrays["train_labels"])
        train_pictures = min(train_pictures, most) if own or name in TARGETS else train_pictures
        if not 1 <= train_pictures <= most:
            raise ValueError(f"train_pictures={train_pictures}: 1 to {most} is possible")
        arrays |= {key: arrays[key][:train_pictures] for key in ("train_images", "train_labels")}
    called = Path(name).name if own else name
    said = {} if own else {"note": DATASETS[name].note, "mirror": DATASETS[name].mirror}
    return loaders.assembled(called, arrays, classes, checksum, session.seed, session.device, **said)
