"""What the full study costs on 1, 8 and 64 GPUs, from counted arithmetic and measured speed: docs/scaling.md.

    python -m benchmarks.plan STUDY TIMED            finished studies: smoke, and quick with nothing beside it
    python -m benchmarks.plan STUDY TIMED --price 2.5

It also writes notebooks/lengths.json, what each notebook says at its beginning: how long quick took, and what is
counted for the presets hour and full (benchmarks/counting.py). How well counting tells time is seen in the study
that was timed.
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.counting import ATTACKS, SEEDS, STEPS, WIDTH, Rates, flops_of, jobs_of, step_of
from processes.device_speed import gflops
from processes.machine import own_device
from storage.atomic_files import read_json, replacing
from storage.paths import ROOT
from study.kept import markdown
from training.run_folder import RunFolder

GPUS = (1, 8, 64)
BESIDES = 15.0  # seconds of a notebook that go into its start and its figures


def makespan(jobs, gpus, seconds):
    """Wall time when a GPU that is free takes the longest job that can begin."""
    done, free, order = {}, [0.0] * gpus, sorted(jobs, key=lambda job: -seconds(job))
    names = {job.name for job in jobs}
    while order:
        free.sort()
        ready = [job for job in order if job.after not in names or done.get(job.after, 1e18) <= free[0]]
        if not ready:  # wait until something is done
            free[0] = min(moment for moment in (*done.values(), *free[1:]) if moment > free[0])
            continue
        order.remove(ready[0])
        free[0] = done[ready[0].name] = free[0] + seconds(ready[0])
    return max(done.values())


def by_notebook(studies, preset, rates):
    """Seconds, as counted, of each notebook that these studies executed."""
    seconds = {path.stem: BESIDES for one in studies for path in sorted(one.glob("notebooks/[0-9]*.ipynb"))}
    seconds = dict(sorted(seconds.items()))
    for job in jobs_of(studies[0], preset):
        for name in seconds:
            seconds[name] += rates.seconds(job) if name.startswith(job.name[:2]) else 0
    return seconds


def write(study, of_time, rates, price, target):
    jobs, seconds = list(jobs_of(study)), rates.seconds
    hours = {kind: sum(seconds(job) for job in jobs if job.kind == kind) / 3600 for kind in _kinds(jobs)}
    walls = {gpus: makespan(jobs, gpus, seconds) / 3600 for gpus in GPUS}
    chain = makespan(jobs, len(jobs), seconds) / 3600
    runs = sum(job.kind == "training" for job in jobs)
    rows = [["", "GPU hours", "share"]]
    rows += [[kind, f"{spent:.1f}", f"{100 * spent / sum(hours.values()):.0f} %"] for kind, spent in hours.items()]
    spans = [["GPUs", "wall time", "GPU hours paid for", "money", "busy"]]
    for gpus, wall in walls.items():
        busy = f"{100 * sum(hours.values()) / (gpus * wall):.0f} %"
        spans.append([gpus, _long(wall), f"{gpus * wall:.0f}", f"{gpus * wall * price:,.0f} $", busy])
    longest = sorted(jobs, key=seconds)[-1]
    smaller = rates.on("T4")
    both = [by_notebook((study, of_time), "hour", each) for each in (rates, smaller)]
    dropped = [job for job in jobs_of(study, "hour") if re.search(r"-pictures0\.(01|05|25),", job.name)]
    notebooks = [["notebook", "H100", "T4"]]
    notebooks += [[name, *(_long(each[name] / 3600) for each in both)] for name in both[0]]
    fewer = (
        each["06_robust_transfer"] - sum(map(card.seconds, dropped))
        for each, card in zip(both, (rates, smaller), strict=True)
    )
    notebooks.append(["06 with `-p 'shares=[0.1]'`", *(_long(seconds / 3600) for seconds in fewer)])
    notebooks.append(["all", *(_long(sum(each.values()) / 3600) for each in both)])
    values = {
        "command": f"python -m benchmarks.plan {study} {of_time} --price {price:g}",
        "price": f"{price:g}",
        "card": read_json(STEPS)["environment"]["device"],
        "training": f"{rates.training:.0f}",
        "evaluation": f"{rates.evaluation:.0f}",
        "small": f"{rates.small:.1f}",
        "runs": runs,
        "tests": len(jobs) - runs,
        "notebooks": _rows(notebooks),
        "t4": ", ".join(
            f"{rate:.3g}" for rate in (smaller.training, smaller.evaluation, smaller.float32, smaller.small)
        ),
        "hours": _rows(rows),
        "walls": _rows(spans),
        "chain": _long(chain),
        "longest": f"{longest.name.split(',')[0]} ({longest.kind}), {_long(seconds(longest) / 3600)}",
        "timed": _timed(of_time),
    }
    text = (Path(__file__).parent / "plan.md").read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", str(value))
    with replacing(target) as partial:
        partial.write_text(text, encoding="utf-8")
    print(f"written to {target}")


def write_lengths(study, timed, rates, target):
    """How long each notebook takes, in seconds: quick as it was timed here, hour and full as counted."""
    executed = {path.stem: read_json(path, sealed=False) for path in sorted(timed.glob("notebooks/[0-9]*.ipynb"))}
    machine = read_json(min(timed.glob("0*/*/environment.json")))
    found = {
        timed.name: {
            "how": f"measured on {_machine(machine)}",
            "gflops": gflops(own_device("cpu")),
            "seconds": {name: book["metadata"]["papermill"]["duration"] for name, book in executed.items()},
        }
    }
    for preset in SEEDS:
        seconds = by_notebook((study, timed), preset, rates)
        how = f"counted, for a GPU that trains at {rates.training:.0f} TFLOP/s and tests at {rates.evaluation:.0f}"
        found[f"{preset}-cifar"] = {"how": how, "gflops": 1000 * rates.training, "seconds": seconds}
    with replacing(target) as partial:
        partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"written to {target}")


def _kinds(jobs):
    return dict.fromkeys(job.kind for job in jobs)


def _long(hours):
    return f"{60 * hours:.0f} min" if hours < 2 else f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def _rows(rows):
    head, *rest = [[str(cell) for cell in row] for row in rows]
    return markdown(head, rest, words=len(head))


def timed(study):
    """How much of what is counted was done in a second: {(network, what): [FLOP/s, ...]}, a run or a test each.

    Of runs that train all weights: others need less than is counted.
    """
    found = {}
    for path in sorted(Path(study).glob("0*/*/recipe.json")):
        recipe, environment = read_json(path), read_json(path.parent / "environment.json")
        steps, model, data = recipe["recipe"], recipe["model"], recipe["data"]
        changes = model.get("adapted", [{"train": "all"}])[-1]
        if "same_run_as" in environment or changes["train"] != "all" or changes.get("norms"):
            continue
        flops = flops_of(model["name"], model["num_classes"], model.get("width", WIDTH))
        name = f"{model['name']}, width {model['width']}" if "width" in model else model["name"]
        crafting = re.search(r"'steps': (\d+)", str(steps["defence"]))
        spent = (
            step_of(steps["defence"], flops, int(crafting[1]) if crafting else 0) * data["train"] * steps["epochs"]
        )
        found.setdefault((name, "training"), []).append(
            spent / RunFolder(path.parent).load_history()["time/epoch_s"].sum()
        )
        if (path.parent / "scores.csv").exists():
            scores = pd.read_csv(path.parent / "scores.csv").set_index("evaluation")
            attacks = scores.loc[[attack for attack in ATTACKS if attack in scores.index]]
            if not len(attacks):
                continue
            passes = sum(ATTACKS[attack] * row.n for attack, row in attacks.iterrows())
            spent = passes * scores.accuracy["clean"] / 100 * flops["forward"]
            found.setdefault((name, "tests"), []).append(spent / attacks.seconds.sum())
    return found


def _timed(study):
    rows = [["", "", "number", "GFLOP/s, median", "from the slowest tenth to the fastest"]]
    for (name, what), rates in sorted(timed(study).items()):
        low, middle, high = np.quantile(rates, [0.1, 0.5, 0.9]) / 1e9
        rows.append([name, what, len(rates), f"{middle:.0f}", f"{low:.0f}–{high:.0f}"])
    command = (Path(study) / "command.txt").read_text(encoding="utf-8").splitlines()[0]
    machine = read_json(min(Path(study).glob("0*/*/environment.json")))
    return f"{_machine(machine)}, threads: {machine['threads']}, `{command}`:\n\n{_rows(rows)}"


def _machine(environment):
    return (
        f"{environment['device']}, {environment['cores']} cores, torch {environment['torch']}, "
        f"{environment['started'][:10]}"
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="a finished smoke study")
    parser.add_argument("timed", type=Path, help="a finished quick study, made with nothing beside it")
    parser.add_argument("--price", type=float, default=3, help="of a GPU hour, in dollars (default: 3)")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "scaling.md")
    parser.add_argument("--lengths", type=Path, default=ROOT / "notebooks" / "lengths.json")
    chosen = parser.parse_args(arguments)
    for study, preset in ((chosen.study, "smoke"), (chosen.timed, "quick")):
        if not list(study.glob("0*/*/recipe.json")):
            parser.error(f"{study} holds no runs; make one with: python -m study --preset {preset}")
    rates = Rates.measured()
    write(chosen.study, chosen.timed, rates, chosen.price, chosen.output)
    write_lengths(chosen.study, chosen.timed, rates, chosen.lengths)


if __name__ == "__main__":
    main()
