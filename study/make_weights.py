"""Train the small networks that lie in models/weights/ anew, and measure what is stored.

    python -m study.make_weights                        all of them: some two hours on two CPU cores
    python -m study.make_weights shapes100-robust-w16   one, and the standard network that it starts from
    python -m study.make_weights --table                only the table of their cards, models/weights/README.md

First standard training, then adversarial training from these weights, as in the notebooks. Stopped, the same
command goes on. Nothing is chosen by the test pictures: the last epoch is kept, whatever it is worth.
"""

import argparse
import shlex

import models
import utils
from attacks import FGSM, PGD, AutoAttack
from defences import Adversarial
from models import ours
from storage.atomic_files import read_json, replacing
from trainer import Recipe, test, train
from training.identity import as_dict

WIDTH, PICTURES, FEW = 16, 2000, 100  # test pictures, and those that AutoAttack is given
SHOWN = ("clean", "FGSM", "PGD-20", "AutoAttack")
NAMES = [
    f"{data}-{kind}-w{WIDTH}"
    for data in ("shapes10", "shapes100", "cifar10", "cifar100")
    for kind in ("standard", "robust")
]


def recipes(family):
    """The standard recipe and the adversarial one for "shapes" or "cifar"."""
    watched = {"validation_attack": PGD(steps=3, step_size=6 / 255), "validation_images": 500}
    if family == "shapes":
        ramped = Adversarial(PGD(steps=2, step_size=6 / 255), ramp=0.5)
        common = {"batch_size": 64, **watched}
        return Recipe(epochs=16, **common), Recipe(epochs=12, learning_rate=0.05, defence=ramped, **common)
    ramped = Adversarial(PGD(steps=3, step_size=4 / 255), ramp=0.5)
    return Recipe(epochs=10, **watched), Recipe(epochs=10, defence=ramped, **watched)


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m study.make_weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--note", default="", help="what a reader of the cards should know besides")
    parser.add_argument("--table", action="store_true", help="only write the table of what lies there")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"{', '.join(sorted(unknown))}: the names are {', '.join(NAMES)}")
    for name in [] if options.table else options.names or NAMES:
        make(name, options.note)
    with replacing(ours.FOLDER / "README.md") as partial:
        partial.write_text(table(), encoding="utf-8")


def make(name, note=""):
    """Train one, store it, and measure what is stored on test pictures."""
    dataset, kind, _ = name.split("-")
    family = dataset.rstrip("10")
    session = utils.start("make_weights", preset="full", data=family)
    data = utils.load_data(dataset, session)
    model = models.build("resnet18", data.num_classes, width=WIDTH)
    standard, robust = recipes(family)
    run = train(model, data, standard, session.folder(f"{dataset}-standard"))
    if kind == "robust":
        run = train(run.model, data, robust, session.folder(f"{dataset}-robust"))
    card = {
        "name": name,
        "recipe": as_dict(robust if kind == "robust" else standard),
        "starts_from": f"{dataset}-standard-w{WIDTH}" if kind == "robust" else None,
        "data": data.provenance,
        "classes": data.classes,
        "command": shlex.join(["python", "-m", "study.make_weights", name, *(["--note", note] if note else [])]),
        "environment": read_json(run.folder / "environment.json"),
        "note": note,
        "scores": [],
    }
    ours.store(run.model, name, card)
    stored = ours.load(name)
    attacks = [(data.test.first(PICTURES), [FGSM(), PGD(steps=20)])]
    if family == "cifar":
        attacks.append((data.test.first(FEW), [AutoAttack()]))
    rows = []
    for split, some in attacks:
        scores = test(stored.to(session.device), split, some, folder=session.folder(f"{dataset}-{kind}"))
        table = scores.table().rename_axis("evaluation").reset_index()
        rows += table.drop(columns=["seconds", "carried_from"]).to_dict("records")
    ours.store(run.model, name, card | {"scores": rows})
    print(f"{ours.FOLDER / name}.safetensors and its card")  # noqa: T201


def table():
    """What lies there, as Markdown: a row a network, its scores in % with n and 95 % interval, from the cards."""
    lines = [
        "# Small networks that were trained here",
        "",
        'ResNet-18 of width 16; `load_source("ours/NAME")` loads one. Each has a card, a JSON file with its',
        "recipe, data, commit and command. Scores are in % of test pictures, ε = 8/255. Written by",
        "`python -m study.make_weights`.",
        "",
        "| name | " + " | ".join(SHOWN) + " | |",
        "| --- |" + " ---: |" * len(SHOWN) + " --- |",
    ]
    for name in ours.names():
        card = ours.card(name)
        rows = {}
        for row in card["scores"]:  # of the first split that has it: clean accuracy is that of the larger one
            shown = f"{row['accuracy']:.1f} ({row['low']:.1f}–{row['high']:.1f}), n = {row['n']}"
            rows.setdefault(row["evaluation"], shown)
        lines.append(
            f"| `{name}` | " + " | ".join(rows.get(label, "–") for label in SHOWN) + f" | {card['note']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
