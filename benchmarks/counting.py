"""The trainings and tests of the presets hour and full, in FLOP, and how many a second a GPU does.

Which runs there are, and which need which, is read from the folders of a smoke study; lengths are read from the
notebooks. The arithmetic of a step is counted. What a GPU does of it in a second is what one has done: in the
steps that benchmarks.gpu measured, and in the AutoAttack of a kept study.
"""

import ast
import functools
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

import models
import utils
from benchmarks.suite import RESULTS
from benchmarks.timing import flops_of_step
from storage.atomic_files import read_json
from storage.paths import ROOT

TRAINING_PICTURES, WIDTH = 45_000, 64  # of the presets hour and full
VALIDATION = 5000 + 1000 * (
    1 + 2 * 3
)  # forward passes after an epoch: its pictures, and PGD of three steps on some
SHARES = (0.01, 0.05, 0.1, 0.25)  # of the target's pictures, in notebook 06
EPOCHS = {  # the notebook's own name for them, by the beginning of a run's
    "01": {"": "epochs"},
    "02": {
        "source-standard": "epochs",
        "source": "robust_epochs",
        "scratch": "scratch_epochs",
        "": "tuning_epochs",
    },
    "03": {"pgd-long": "long_epochs", "pgd": "robust_epochs", "": "epochs"},
    "04": {"resnet": "epochs", "": "01 epochs"},
    "05": {"resnet": "03 epochs", "": "01 epochs"},
    "06": {"source": "epochs", "": "tuning_epochs"},
    "07": {"": "epochs"},
    "08": {"": "06 tuning_epochs"},
    "09": {"": "tuning_epochs"},
}
GRIDS = ("06", "08", "09")  # tested under AutoAttack, on fewer pictures
TWINS = {  # the same runs in two grids; a smoke study does not show all of them
    "09/from-standard-pgd-8": "06/from-standard-all-pgd",
    "09/from-robust-pgd-8": "06/from-robust-all-pgd",
    "09/from-scratch-pgd-8": "06/from-scratch-all-pgd",
    "09/from-standard-pgd-late-8": "06/from-standard-scheduled",
    "09/from-robust-n-fgsm-8": "06/from-robust-n-fgsm",
}
SEEDS = {"hour": 1, "full": 3}
TESTED = {"hour": (2000, 1000, 500), "full": (10_000, 2000, 2000)}  # test pictures, and those of GRIDS and 07
CARRIED = 11 * 210  # gradients a picture in 07: networks that are attacked, and the steps of its seven attacks
# Gradients of the pictures in a training step, and further passes of the update, in thirds of one.
CRAFTING = {"Standard": 0, "Free": 0, "NFGSM": 1, "FGSM": 1, "FeatureDistillation": 0, "L2SP": 0}
MORE = {"TRADES": 3, "MART": 3, "AWP": 3, "FeatureDistillation": 1}
# Forward passes that a test spends on a picture, and the share that is right on clean pictures.
RIGHT = 0.8
ATTACKS = {"FGSM": 2, "PGD-20": 40, "NI-FGSM": 20, "VMI-FGSM": 102}
KEPT = ROOT / "notebooks" / "expected"
STEPS, ON_GPU = RESULTS / "gpu-cuda-h100.json", KEPT / "hour-cifar"  # measured on one card
# What withstood AutoAttack, the later for the earlier: at a quarter of the width, with another seed, on that card.
WITHSTOOD = KEPT / "quick-cifar-robust-transfer", KEPT / "hour-cifar-seed1", ON_GPU
# TFLOP/s of data sheets: in training, in AutoAttack's search, in float32; and of the memory, in TB/s.
PEAKS = {"H100": (989, 495, 67, 3.35), "T4": (65, 65, 8.1, 0.32)}
HARDLY = 0.05  # where less withstands AutoAttack, its time is not that of its passes


@dataclass
class Job:
    """A training or a test; `after` names the one that it needs."""

    name: str
    flops: float
    kind: str
    after: str | None = None
    small: bool = False  # of the shallow CNN
    float32: float = 0.0  # of these FLOP, those that are in float32 where a GPU knows no TF32


@dataclass
class Rates:
    """TFLOP/s of a GPU: in training, in tests, of the shallow CNN, whose kernels are too small to fill one, and of
    what is float32 where there is no TF32."""

    training: float
    evaluation: float
    small: float
    float32: float

    @classmethod
    def measured(cls):
        """Of the card of STEPS and ON_GPU: PGD-10 in batches of 128, AutoAttack on ResNet-18s of full width."""
        spent = seconds = 0.0
        for _, rows in pd.read_csv(ON_GPU / "scores.csv").groupby("model"):
            rows = rows.set_index("evaluation")
            for label, row in rows[
                rows.index.str.startswith("AutoAttack") & (rows.accuracy > 100 * HARDLY)
            ].iterrows():
                right, left = rows.accuracy["clean"] / 100, rows.accuracy[label] / 100
                passes = autoattack(right, left, **_settings(row.attack))
                spent += row.n * passes * flops_of("resnet18", 10)["forward"]
                seconds += row.seconds
        tests = spent / seconds / 1e12
        return cls(
            _in_steps("resnet18", "ResNet-18 width 64"), tests, _in_steps("shallow_cnn", "shallow CNN"), tests
        )

    def on(self, card):
        """Of a card before Ampere that reaches the same shares of its peaks, of memory with the small CNN."""
        low, search, plain, memory = (here / there for here, there in zip(PEAKS[card], PEAKS["H100"], strict=True))
        float32 = _in_steps("resnet18", "ResNet-18 width 64", "ours, float32")
        return Rates(low * self.training, search * self.evaluation, memory * self.small, plain * float32)

    def seconds(self, job):
        if job.small:
            return job.flops / (1e12 * self.small)
        rate = self.training if job.kind == "training" else self.evaluation
        return (job.flops - job.float32) / (1e12 * rate) + job.float32 / (1e12 * self.float32)


def _in_steps(network, case, contender="ours"):
    """TFLOP/s that STEPS has measured in PGD-10."""
    (row,) = (
        row
        for row in read_json(STEPS)["results"]
        if (row["group"], row["case"]) == ("training", f"{case}, PGD-10")
    )
    step = step_of({"kind": "Adversarial"}, flops_of(network, 10), 10)
    return row["contenders"][contender]["rate"]["median"] * step / 1e12


def autoattack(right, left, steps=100, targets=9, queries=5000):
    """Forward passes a picture: APGD-CE on what is right, APGD-T, FAB-T and Square on what withstands; shares."""
    return 2 * steps * right + fab(left, steps, targets) + (2 * steps * targets + queries) * left


def fab(left, steps=100, targets=9):
    return 2 * steps * targets * left


def _settings(attack):
    """Of AutoAttack, as it prints itself."""
    named = {"steps": r"(\d+) steps", "targets": r"targets=(\d+)", "queries": r"queries=(\d+)"}
    found = {name: re.search(pattern, attack) for name, pattern in named.items()}
    return {name: int(match[1]) for name, match in found.items() if match}


@functools.cache
def lengths(notebook, preset):
    """What a notebook's cells pick for a preset, by name: of assignments and ifs, those that need nothing else."""
    (path,) = (ROOT / "notebooks").glob(f"{notebook}_*.ipynb")
    found = {"session": utils.Session("", preset, "cifar", 0, None, None, None)}
    for cell in read_json(path, sealed=False)["cells"]:
        for node in ast.parse("".join(cell["source"])).body if cell["cell_type"] == "code" else ():
            if isinstance(node, (ast.Assign, ast.If)):
                with suppress(Exception):  # of what it lacks here: data, models, runs
                    exec(compile(ast.Module([node], []), path.name, "exec"), found)
    return found


def jobs_of(study, preset="full"):
    """All trainings and tests of a study with this preset, each run once, whatever notebooks ask for it."""
    attacked = TESTED[preset][2] * CARRIED * flops_of("resnet18", 10)["gradient"]
    yield Job("07/carried, 0", attacked, "test", float32=attacked)
    for seed in range(SEEDS[preset]):
        trained = set()
        for path in sorted(Path(study).glob("0*/*/recipe.json")):
            recipe, recorded = read_json(path), path.parent.name.removesuffix("-seed0")
            notebook, network = path.parents[1].name[:2], recipe["model"]["name"]
            flops, small = flops_of(network, recipe["model"]["num_classes"]), network.startswith("shallow")
            same = read_json(path.parent / "environment.json").get("same_run_as")
            same = same and f"{same[:2]}/{Path(same).name.removesuffix('-seed0')}"
            for run in _runs_like(notebook, recorded, preset):
                twin = same if run == recorded else TWINS.get(f"{notebook}/{run}")
                own = twin not in trained  # no twin, or one that this preset leaves out
                for share in SHARES if run.endswith("-16-pictures") else (1,):
                    for job in _jobs(preset, notebook, run, recipe["recipe"]["defence"], flops, share, seed):
                        if own:
                            yield replace(job, small=small)
                        elif job.kind == "AutoAttack":  # trained elsewhere, but tested under it here, too
                            yield replace(job, after=f"{twin}, {seed}")
                if own:
                    trained.add(f"{notebook}/{run}")


def _runs_like(notebook, run, preset):
    """What the preset trains as this run of the smoke study: itself, nothing, or it in other lengths and sizes."""
    there, names = lengths(notebook, preset), [run]
    if run.startswith("source"):
        return [] if notebook in ("08", "09") else names  # those of 02
    if notebook == "08" and run.endswith("all-pgd"):
        names += [run.replace("all-pgd", f"{count}-epochs") for count in there["stages"][:-1]]
    if notebook == "09":
        if run.startswith("from-standard"):
            names.append(run.replace("standard", "scratch"))
        names += [name.replace("pgd", "pgd-late") for name in names if "pgd" in name]
        names = [name.replace("-8", f"-{size}") for name in names for size in there["sizes"]]
    if notebook in ("06", "09"):
        names = [name for name in names if re.fullmatch(rf"({there['chosen']})(-\d+-pictures)?", name)]
    return names


@functools.cache
def flops_of(name, classes, width=WIDTH):
    """Of a picture, by what is done with it."""
    model = models.build(name, classes, **({"width": width} if name == "resnet18" else {}))
    gradient = flops_of_step(model, 1) - flops_of_step(model, 0)
    return {"gradient": gradient, "update": flops_of_step(model, 0), "forward": gradient / 2}


def _jobs(preset, notebook, run, defence, flops, share, seed):
    its_name = next(name for beginning, name in EPOCHS[notebook].items() if run.startswith(beginning))
    *where, variable = its_name.split()
    there = lengths(*where or [notebook], preset)
    shorter = re.search(r"-(\d+)-epochs$", run)
    epochs, steps = int(shorter[1]) if shorter else there[variable] / share**0.5, there.get("steps", 10)
    name = f"{notebook}/{run}{'' if share == 1 else share}, {seed}"
    spent, checks = share * TRAINING_PICTURES * step_of(defence, flops, steps), VALIDATION * flops["forward"]
    yield Job(name, epochs * (spent + checks), "training", _needs(notebook, run, seed), float32=epochs * checks)
    tested, sought = TESTED[preset][notebook in GRIDS], notebook in GRIDS and share == 1
    all_attacks = share == 1 and notebook not in GRIDS and (preset == "full" or notebook == "01")
    all_passes = tested * flops["forward"]  # a pass of all test pictures
    spent = all_passes * RIGHT * sum(ATTACKS.values() if all_attacks else (2, 40))
    yield Job(f"{name}, test", spent, "test", name, float32=spent)
    if sought:
        left = left_of(notebook, run, defence["kind"] != "Standard")
        spent, nearest = all_passes * autoattack(RIGHT, left), all_passes * fab(left)
        yield Job(f"{name}, AutoAttack", spent, "AutoAttack", name, float32=nearest)


def left_of(notebook, run, attacked):
    """The share that withstands AutoAttack: as kept, else the most of any for a run that trains on such."""
    known = _withstood()
    twin = TWINS.get(f"{notebook}/{run}", run).rpartition("/")[2]
    return known.get(run, known.get(twin, max(known.values()) if attacked else 0.0))


@functools.cache
def _withstood():
    table = pd.concat([pd.read_csv(folder / "scores.csv") for folder in WITHSTOOD])
    table = table[table.evaluation.str.startswith("AutoAttack")]
    names = table.model.str.replace(r"^.*/|-seed\d+$", "", regex=True)
    return dict(zip(names, table.accuracy / 100, strict=True))


def step_of(defence, flops, steps):
    """Of a picture in a training step, by the defence as a recipe's file has it."""
    several = steps * (6 if "VMIFGSM" in str(defence) else 1)
    passes = CRAFTING.get(defence["kind"], CRAFTING.get(defence.get("attack", {}).get("kind"), several))
    return passes * flops["gradient"] + flops["update"] * (1 + MORE.get(defence["kind"], 0) / 3)


def _needs(notebook, run, seed):
    """The run that this one starts from, by name."""
    if found := re.match(r"from-(standard|robust)", run):
        return f"02/source-{found[1]}, {seed}"
    if run.startswith(("source-robust", "scratch-pgd", "pgd", "ni", "vmi")):
        start = {"source-robust": "source-standard", "scratch-pgd": "scratch"}.get(run, "standard")
        return f"{notebook}/{start}, {seed}"
    return None
