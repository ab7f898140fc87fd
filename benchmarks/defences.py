"""What robustness costs: the same network trained with each defence, its time per picture and what it withstands.

    python -m benchmarks.defences                      # ResNet-18 of width 16 on Shapes
    python -m benchmarks.defences --data cifar --pictures 10000 --epochs 8

All start from the weights of a standard training, see the same number of pictures (Free shows each batch
several times) and are tested on the same test pictures. Seconds are those of training steps alone, one defence
after the other: on a machine that does something else meanwhile they mean little.
"""

import argparse
import sys
from pathlib import Path

import models
import utils
from attacks import FGSM, PGD
from benchmarks.suite import RESULTS
from defences import AWP, MART, NFGSM, TRADES, Adversarial, Free, Guided, Standard
from processes.machine import environment
from storage.atomic_files import read_json, write_json
from trainer import Recipe, test, train

DEFENCES = {
    "standard": Standard(),
    "Free, 4 replays": Free(replays=4),
    "FGSM, random start": Adversarial(PGD(steps=1, step_size=10 / 255)),
    "N-FGSM": NFGSM(),
    "Guided": Guided(),
    "PGD-2": Adversarial(PGD(steps=2, step_size=5 / 255)),
    "PGD-10, steps grow": Adversarial(PGD(), grow=2 / 3),
    "PGD-10": Adversarial(PGD()),
    "TRADES": TRADES(),
    "MART": MART(),
    "PGD-10 and AWP": AWP(Adversarial(PGD())),
}
SMALL = {"N-FGSM, small pictures at first": NFGSM(), "PGD-10, small pictures at first": Adversarial(PGD())}


def trained(session, data, width, epochs, name, start=None, **recipe):
    model = start or models.build("resnet18", data.num_classes, width=width)
    common = {"learning_rate": 0.05, "label_smoothing": 0.1, "validation_images": 100} | recipe
    folder = name.replace(",", "").replace(" ", "-").lower()
    return train(
        model, data, Recipe(epochs=epochs, **common), session.folder(f"{folder}-{len(data.train)}x{epochs}")
    )


def row(name, run, data, few):
    here, there = environment(data.train.labels.device), read_json(run.folder / "environment.json")
    if there["commit"] != here["commit"] or "same_run_as" in there:
        raise SystemExit(
            f"{run.folder} was not trained by this code: its times are others'. Delete it to train again"
        )
    attacks = [FGSM(), PGD(), PGD(steps=20, restarts=2)]
    scores = test(run.model, data.test.first(few), attacks)
    scores.save(run.folder)
    seconds = float(run.history["time/epoch_s"].sum())
    pictures = len(run.history) * (len(data.train) // 128) * 128
    found = {
        label: {"accuracy": scores.share(label), "interval": list(scores.interval(label))}
        for label in scores.table().index
    }
    rescued = int(run.history["rescued"].max()) if "rescued" in run.history else None
    return {"defence": name, "seconds": seconds, "ms_per_picture": 1e3 * seconds / pictures, "n": scores.n} | {
        "scores": found,
        "rescued_in_epoch": rescued,
        "verdict": scores.verdict() or "no finding",
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="shapes", help="cifar or shapes")
    parser.add_argument("--pictures", type=int, help="of the training split (default: all)")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--tested", type=int, default=500, help="test pictures")
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    session = utils.start("defences", preset=options.preset, data=options.data)
    data = utils.load_data(session.dataset("cifar10"), session, train_pictures=options.pictures)
    start = trained(session, data, options.width, options.epochs, "start", learning_rate=0.1).model
    target = options.output / f"defences-{session.device.type}.json"
    said = " ".join(["python", "-m", "benchmarks.defences", *(sys.argv[1:] if arguments is None else arguments)])
    known = {
        "command": said,
        "environment": environment(session.device),
        "data": data.provenance,
        "width": options.width,
    }
    known |= {"epochs": options.epochs, "results": []}
    small = {name: {"low_resolution": data.train.images.shape[-1] // 2} for name in SMALL}
    for name, defence in (DEFENCES | SMALL).items():
        given = {"defence": defence} | small.get(name, {})
        run = trained(session, data, options.width, options.epochs, name, start, **given)
        known["results"].append(row(name, run, data, options.tested))
        write_json(target, known)
        last = known["results"][-1]
        accuracies = ", ".join(
            f"{label} {100 * found['accuracy']:.1f} %" for label, found in last["scores"].items()
        )
        print(f"{name:<34} {last['ms_per_picture']:7.2f} ms a picture, {accuracies}", flush=True)
    print(f"\nwritten to {target}")


if __name__ == "__main__":
    main()
