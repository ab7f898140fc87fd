"""AutoAttack: ours against torchattacks' and pyautoattack's, on the same pictures and networks.

    python -m benchmarks.autoattack runs/quick-shapes/01_shallow_cnn/pgd-seed0 [...]
    python -m benchmarks.autoattack ours/cifar10-robust-w16 --data cifar --norm L2
    python -m benchmarks.autoattack ours/cifar10-robust-w16 --data cifar --only ours "ours, NearFirst"

torchattacks' AutoAttack runs its gradient attacks with 10 steps each; the published standard has 100. So there are
two rows of it: as it is packaged, and its own attacks in the standard configuration, which is what ours and
pyautoattack's are. Everybody attacks the pictures that the network gets right, in batches of 250, one after the
other in this process. pyautoattack takes part where it is installed.
"""

import argparse
import importlib.util
import shlex
import sys
import time
from pathlib import Path

import torch
import torchattacks

import utils
from attacks import AutoAttack, NearFirst
from attacks.settings import NORMS, USUAL_EPS
from benchmarks.suite import RESULTS
from evaluation.per_example import attacked, predict
from finetune_framework import load_source
from models import ours as shelf
from processes.machine import environment
from storage.atomic_files import read_json, write_json

BATCH = 250


def ours(kind=AutoAttack, **settings):
    """As test() does it: what stands after one of its attacks is put into full batches again."""

    def stood(model, split, indices, norm):
        return attacked(model, model, split, kind(norm=norm, **settings), indices, 0)[0]

    return stood


def theirs(craft):
    """Batch by batch, as their documentation has it."""

    def stood(model, split, indices, norm):
        parts = []
        for some in indices.split(BATCH):
            images, labels = split.batch(some)
            # Nine targets, as everybody's: torchattacks would take all there are.
            ball = {"norm": norm, "eps": USUAL_EPS[norm], "seed": 0}
            found = craft(model, images.contiguous(), labels, min(split.num_classes, 10), ball)
            with torch.no_grad():
                parts.append(model.eval()(found).argmax(1) == labels)
        return torch.cat(parts)

    return stood


def packaged(model, images, labels, classes, ball):
    return torchattacks.AutoAttack(model, **ball, n_classes=classes)(images, labels)


def standard(model, images, labels, classes, ball):
    """torchattacks' own attacks with the steps that the paper gives them."""
    attack = torchattacks.MultiAttack(
        [
            torchattacks.APGD(model, **ball, steps=100),
            torchattacks.APGDT(model, **ball, steps=100, n_classes=classes),
            torchattacks.FAB(model, **ball, steps=100, multi_targeted=True, n_classes=classes),
            torchattacks.Square(model, **ball, n_queries=5000),
        ]
    )
    return attack(images, labels)


def pyautoattack(model, images, labels, classes, ball):
    from pyautoattack import AutoAttack as Reference

    attack = Reference(model, **ball, version="standard", device=images.device)
    found = attack.run_standard_evaluation(images, labels, batch_size=len(images))
    return found[0] if isinstance(found, tuple) else found


CONTENDERS = {
    "ours": ours(),
    "ours, float32": ours(precision="float32"),
    "ours, NearFirst": ours(NearFirst),
    "torchattacks, standard": theirs(standard),
    "torchattacks, as packaged": theirs(packaged),
    "pyautoattack": theirs(pyautoattack),
}


def measure(source, pictures, names, session, norm):
    """Robust accuracy and seconds of each contender on the first `pictures` test pictures of the run's data."""
    model, run = load_source(source).to(session.device).eval(), source.rpartition("/")[2]
    known = shelf.card(run) if source.startswith("ours/") else read_json(Path(source) / "recipe.json")
    split = utils.load_data(known["data"]["name"], session).test.first(pictures)
    indices = (predict(model, split).argmax(1) == split.labels).nonzero()[:, 0]
    AutoAttack(norm=norm, steps=1, targets=1, queries=2)(model, *split.batch(indices[:2]))  # warms up
    rows = []
    for name in names:
        layout = torch.channels_last if name.startswith("ours") else torch.contiguous_format
        model.to(memory_format=layout).eval()
        begun = time.perf_counter()
        stood = int(CONTENDERS[name](model, split, indices, norm).sum())  # waits for the device
        row = {"name": name, "robust_accuracy": stood / len(split), "seconds": time.perf_counter() - begun}
        rows.append(row | {"times_ours": row["seconds"] / rows[0]["seconds"] if rows else 1.0})
        print(
            f"{name:<28} {100 * row['robust_accuracy']:6.2f} % robust {row['seconds']:8.1f} s "
            f"{rows[-1]['times_ours']:6.2f} times ours",
            flush=True,
        )
    what = {"run": run, "norm": norm, "model": known["model"], "data": split.name, "n": len(split)}
    return what | {"clean_accuracy": len(indices) / len(split), "results": rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="folders of finished runs, or ours/...")
    parser.add_argument("--norm", choices=NORMS, default="Linf", help="with ε = 8/255, in L2 0.5")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--only", nargs="*", default=list(CONTENDERS), help=f"of {', '.join(CONTENDERS)}")
    parser.add_argument("--data", default="shapes", help="cifar or shapes: what the runs were trained on")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    session = utils.start("benchmark", preset="quick", data=options.data)
    there = importlib.util.find_spec("pyautoattack") is not None
    names = [name for name in CONTENDERS if name in options.only and (there or name != "pyautoattack")]
    kind = "autoattack" if options.norm == "Linf" else "autoattack-l2"
    target = options.output or RESULTS / f"{kind}-{session.device.type}.json"
    results = []
    for source in options.runs:
        print(f"\n{source}, {options.pictures} pictures, {options.norm}", flush=True)
        results.append(measure(source, options.pictures, names, session, options.norm))
        values = {"environment": environment(session.device), "threads": torch.get_num_threads()}
        values["command"] = "python -m benchmarks.autoattack " + shlex.join(sys.argv[1:])
        write_json(target, values | {"results": results})


if __name__ == "__main__":
    main()
