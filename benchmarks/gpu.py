"""What only a GPU can show: steps as graphs, speed, share of the peak, whole runs, the record, AutoAttack.

    python -m benchmarks.gpu --turns 3 --minutes 5     # a part; the same command goes on with the next
    ROBUST=runs/full-cifar/fast_robust/resnet18-seed0 python -m benchmarks.gpu --turns 3 --only AutoAttack

The record has as many pictures under AutoAttack as RECORD says: `python -m benchmarks.fast_robust` has them
all, and three seeds. AutoAttack is timed on the network in the file or run's folder ROBUST; without one, on the
record's. On a CPU only `--tiny` makes sense: does it run?
"""

import functools
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

import models
import utils
from attacks import AutoAttack
from benchmarks import fast_robust, suite, together
from benchmarks.peers import our_step
from benchmarks.speed import TRAINING, Loaders, share, training
from benchmarks.timing import compare, summary
from defences import Adversarial, Standard
from evaluation.per_example import attacked, predict
from finetune_framework import load_source
from storage.atomic_files import read_json
from trainer import Recipe, train

BATCHES = (128, 256, 512, 1024, 2048)
RECORD = ["--seeds", "1", "--pictures", "1000"]
STEPS = 20


def graphs(setting, arguments, attack):
    """Steps as one CUDA graph against the same steps kernel by kernel, and how far their weights are apart."""
    images = torch.rand(setting.batch, 3, 32, 32, device=setting.device).contiguous(
        memory_format=torch.channels_last
    )
    labels = torch.randint(10, (setting.batch,), device=setting.device)
    built = {name: models.build(num_classes=10, **arguments).to(setting.device) for name in ("graph", "plain")}
    steps = {name: our_step(model, attack, precision="float32") for name, model in built.items()}
    steps["plain"].state.graphed.possible = False
    for step in steps.values():
        for number in range(STEPS):
            step.state.generator.manual_seed(number)
            step(images, labels)
    pairs = zip(built["graph"].parameters(), built["plain"].parameters(), strict=True)
    apart = max(float((one - other).detach().abs().max()) for one, other in pairs)
    captured = steps["graph"].state.graphed.replay is not None
    fast = {name: our_step(model, attack) for name, model in built.items()}
    fast["plain"].state.graphed.possible = False
    contenders = {name: (functools.partial(step, images, labels), setting.batch) for name, step in fast.items()}
    result = {"unit": "images/s", "contenders": summary(compare(contenders, setting))}
    return result | {"captured": captured, "weights_apart_after_20_steps": apart}


def record(setting, target):
    """One seed of fast_robust."""
    arguments = ["--preset", "smoke"] if setting.tiny else []
    row = read_json(fast_robust.main([*RECORD, *arguments, "--output", str(target)]))["seeds"][0]
    wall = row["wall_seconds"] or float("nan")
    found = {"wall s": wall, "steps s": row["steps_seconds"], "not training": 1 - row["steps_seconds"] / wall}
    return {
        "unit": "",
        "found": found | {name: row[name]["accuracy"] for name in ("clean", "worst case")},
        "row": row,
    }


def whole_run(setting, arguments, attack):
    """train() as users call it, with a rising ε: its wall time, and the share in which it does not train."""
    data = utils.load_data("shapes10", setting.session)
    defence = Standard() if attack is None else Adversarial(attack, ramp=0.5)
    recipe = Recipe(
        epochs=1 if setting.tiny else 4, batch_size=setting.batch, defence=defence, validation_images=250
    )
    model = models.build(num_classes=10, **arguments).to(setting.device)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        run = train(model, data, recipe, Path(folder) / "run", progress=False)
        wall = time.perf_counter() - begun
    steps = float(run.history["time/epoch_s"].sum())
    pictures = recipe.epochs * len(data.train) // recipe.batch_size * recipe.batch_size
    found = {"wall s": wall, "not training": 1 - steps / wall, "pictures/s": pictures / wall}
    return {"unit": "", "found": found}


def autoattack(setting):
    """The standard on a robust ResNet-18 and real pictures, as test() does it, and each of its attacks' share."""
    session = replace(setting.session, family="shapes" if setting.tiny else "cifar")
    split = utils.load_data(session.dataset("cifar10"), session).test.first(20 if setting.tiny else 1000)
    folder = os.environ.get("ROBUST")
    if folder is None:
        fast = utils.start("fast_robust", preset="smoke" if setting.tiny else "auto")
        folder = fast.folder("resnet18", 0)
    model = load_source(folder).to(setting.device).eval()
    attack = AutoAttack(steps=2, queries=5) if setting.tiny else AutoAttack()
    standing, found = (predict(model, split).argmax(1) == split.labels).nonzero()[:, 0], {}
    found["clean"] = len(standing) / len(split)
    begun = time.perf_counter()
    for stage in attack.stages:
        stood, extent = attacked(model, model, split, stage, standing, 0)
        standing, found[f"{stage.label} s"] = standing[stood], extent.seconds
    return {"unit": "", "found": found | {"robust": len(standing) / len(split), "s": time.perf_counter() - begun}}


def cases(setting):
    loaders, networks = Loaders(setting), setting.networks()
    attacks = setting.shortened(TRAINING)
    for network, arguments in networks.items():
        for name in ("standard", "PGD-10"):
            measure = functools.partial(graphs, setting, arguments, attacks[name])
            yield "graphs", f"{network}, {name}", measure
    for network, arguments in networks.items():
        for name, attack in attacks.items():
            yield "whole run", f"{network}, {name}", functools.partial(whole_run, setting, arguments, attack)
    yield "record", "ResNet-18, PGD with growing steps", functools.partial(record, setting, setting.output)
    yield "AutoAttack", "standard, robust ResNet-18", functools.partial(autoattack, setting)
    for network, arguments in networks.items():
        for name, attack in attacks.items():
            measure = functools.partial(training, setting, loaders, arguments, attack)
            yield "training", f"{network}, {name}", measure
    yield "together", "trainings of the shallow CNN, PGD-10", functools.partial(together.measure, setting)
    _, resnet = list(networks.items())[-1]
    for batch in (4, 8) if setting.tiny else BATCHES:
        measure = functools.partial(share, setting, resnet, "bfloat16", batch)
        yield "share", f"ResNet-18 width {setting.width}, batch {batch}", measure


def main(arguments=None):
    suite.run(__doc__, "gpu", cases, arguments)


if __name__ == "__main__":
    main()
