"""A record to beat: how soon does a ResNet-18 withstand AutoAttack (8/255) on 48 % of CIFAR-10's test pictures?

    python -m benchmarks.fast_robust               # three seeds; on a GPU the record, on a CPU a small rehearsal
    python -m benchmarks.fast_robust --seeds 1 --pictures 1000
    python -m benchmarks.fast_robust --single-step # N-FGSM in place of PGD, with a goal of its own
    python -m benchmarks.fast_robust --dataset cifar100

PGD training, with what makes it cheap: the attack's steps grow from 1 to 5 over the first two thirds; one-cycle
learning rate, averaged weights, label smoothing; ε a little larger than the test's, which moves a short training
from clean accuracy towards robustness. Wall time is that of train(), validations and the capture of
graphs included; loading data and AutoAttack are not in it. Broken off, it goes on where it was; then there is no
wall time, but the time of all training steps.

Every card, commit and choice of options has a JSON of its own, and beside it the log of each seed:
`python -m benchmarks.show` makes a row of it in docs/record.md.
"""

import argparse
import re
import statistics
import time
from pathlib import Path

import torch

import models
import utils
from attacks import PGD, AutoAttack
from benchmarks.suite import RESULTS, Setting
from benchmarks.timing import compare, flops_of_step, matmul
from defences import NFGSM, Adversarial
from evaluation.statistics import over_seeds
from processes.machine import environment, fast_bfloat16
from storage.atomic_files import read_json, replacing, write_json
from trainer import Recipe, test, train
from training.identity import as_dict

GOALS = {"cifar10": {"worst_case": 0.48, "seconds": 60}, "cifar100": {"worst_case": 0.25, "seconds": 60}}
SINGLE_STEP = {"cifar10": {"worst_case": 0.46, "seconds": 30}, "cifar100": {"worst_case": 0.23, "seconds": 30}}


def width(session):
    return session.pick(smoke=4, quick=8, full=64)


def recipe_for(session, options, seed):
    attack = PGD(eps=9 / 255, steps=session.pick(quick=2, full=5), step_size=3 / 255)
    return Recipe(
        epochs=options.epochs or session.pick(smoke=1, quick=3, full=18 if options.single_step else 24),
        batch_size=session.pick(smoke=64, quick=128, full=256),
        defence=NFGSM() if options.single_step else Adversarial(attack, grow=2 / 3),
        learning_rate=session.pick(quick=0.1, full=0.2),
        ema=session.pick(quick=0.9, full=0.998),
        label_smoothing=0.1,
        validation_images=session.pick(smoke=20, quick=50, full=250),
        seed=seed,
    )


def one_seed(session, data, seed, options):
    """Train, then AutoAttack; a row of the record."""
    model = models.build("resnet18", data.num_classes, width=width(session), seed=seed)
    name = "resnet18-single-step" if options.single_step else "resnet18"
    name += "" if options.dataset == "cifar10" else f"-{options.dataset}"
    folder = session.folder(f"{name}-epochs{options.epochs}" if options.epochs else name, seed)
    fresh, begun, timed = not folder.exists(), time.perf_counter(), folder / "wall.json"
    run = train(model, data, recipe_for(session, options, seed), folder)
    if fresh and "same_run_as" not in read_json(folder / "environment.json"):  # trained here, not copied
        write_json(timed, {"seconds": time.perf_counter() - begun})
    weak = {
        "steps": session.pick(smoke=2, quick=5, full=None),
        "queries": session.pick(smoke=5, quick=20, full=None),
    }
    strongest = AutoAttack(**{name: value for name, value in weak.items() if value})
    split = data.test.first(options.pictures or session.pick(smoke=20, quick=100, full=10_000))
    scores = test(run.model, split, [strongest], folder=run.folder)
    scores.save(run.folder)
    row = {"seed": seed, "n": scores.n, "wall_seconds": read_json(timed)["seconds"] if timed.exists() else None}
    row["steps_seconds"] = float(run.history["time/epoch_s"].sum())
    row["attack_seconds"] = scores.seconds[strongest.label]
    for name in ("clean", "worst case"):
        row[name] = {"accuracy": scores.share(name), "interval": list(scores.interval(name))}
    return row | {"attack": str(strongest), "verdict": scores.verdict() or "no finding"}, scores, run.history


def share_of_peak(session, recipe, data, seconds):
    """What the training steps need of arithmetic, over what torch.matmul does of it in bfloat16 in these seconds.

    None where training is not in bfloat16.
    """
    if not fast_bfloat16(session.device):
        return None
    model = models.build("resnet18", data.num_classes, width=width(session))
    steps = 1
    if isinstance(recipe.defence, Adversarial):
        steps = statistics.mean(recipe.defence.at(part / 1000).attack.steps for part in range(1000))
    pictures = recipe.epochs * (len(data.train) // recipe.batch_size) * recipe.batch_size
    setting = Setting(session, 3, session.preset == "smoke", RESULTS)
    (rates,) = compare({"torch.matmul": matmul(torch.bfloat16, setting)}, setting).values()
    return pictures * flops_of_step(model, steps) / seconds / statistics.median(rates)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: 3)")
    parser.add_argument("--epochs", type=int, help="another length than the record's")
    parser.add_argument("--pictures", type=int, help="test pictures for AutoAttack (default: all 10,000)")
    parser.add_argument("--single-step", action="store_true", help="N-FGSM in place of PGD")
    parser.add_argument("--dataset", default="cifar10", choices=GOALS, help="cifar10 (default) or cifar100")
    parser.add_argument("--preset", default="auto", help="smoke, quick or full (default: hour with a GPU)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder (default: benchmarks/results)")
    options = parser.parse_args(arguments)
    chosen = {name: value for name, value in vars(options).items() if value != parser.get_default(name)}
    words = {f"--{name.replace('_', '-')}": value for name, value in chosen.items() if name != "output"}
    given = [name if value is True else f"{name} {value}" for name, value in words.items()]
    session = utils.start("fast_robust", preset=options.preset)
    data = utils.load_data(
        session.dataset(options.dataset), session, validation=session.pick(quick=0.1, full=0.02)
    )
    known = {
        "command": " ".join(["python -m benchmarks.fast_robust", *given]),
        "environment": environment(session.device),
        "preset": session.preset,
        "data": data.provenance,
        "width": width(session),
        "recipe": as_dict(recipe_for(session, options, 0)),
        "goal": (SINGLE_STEP if options.single_step else GOALS)[options.dataset],
        "seeds": [],
    }
    what = " ".join(["fast_robust", known["environment"]["device"], known["environment"]["commit"] or "", *given])
    what = re.sub(r"[^a-z0-9_]+", "-", what.lower().replace("+", "-changed")).strip("-")
    target, scored = options.output / f"{what}.json", []
    for seed in range(options.seeds):
        row, scores, history = one_seed(session, data, seed, options)
        scored.append(scores)
        known["seeds"].append(row)
        write_json(target, known)
        with replacing(target.with_name(f"{target.stem}-seed{seed}.csv")) as partial:
            history.to_csv(partial, index=False)
        wall = "broken off" if row["wall_seconds"] is None else f"{row['wall_seconds']:.1f} s"
        print(
            f"seed {seed}: {wall}, of that {row['steps_seconds']:.1f} s in training steps\n{scores}\n", flush=True
        )
    seconds = statistics.mean(row["steps_seconds"] for row in known["seeds"])
    known["share_of_peak"] = share_of_peak(session, recipe_for(session, options, 0), data, seconds)
    write_json(target, known)
    print(over_seeds(scored).round(2).to_string())
    rehearsal = session.pick(quick=" (a rehearsal: the goal is for the presets hour and full)", full="")
    print(f"\n{reached(known)}{rehearsal}\nwritten to {target}")
    return target


def good(known):
    """Has every seed reached the goal?"""
    goal = known["goal"]
    return all(
        row["worst case"]["accuracy"] >= goal["worst_case"]
        and 0 < (row["wall_seconds"] or 0) <= goal["seconds"]
        and row["verdict"] != "invalid"
        for row in known["seeds"]
    )


def reached(known):
    """In words, the goal, and whether every seed reached it."""
    goal = known["goal"]
    return f"{100 * goal['worst_case']:.0f} % in {goal['seconds']} s: {'' if good(known) else 'not '}reached"


if __name__ == "__main__":
    main()
