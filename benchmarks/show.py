"""What stands between markers in the README and in docs/, and the figures of the benchmarks.

python -m benchmarks.show                      # from benchmarks/results and notebooks/expected into the pages
python -m benchmarks.show --results FOLDER     # draws there and prints the tables; the pages stay as they are
"""

import argparse
import math
import statistics
from functools import partial
from pathlib import Path

import matplotlib as mpl
import pandas as pd

from benchmarks import fast_robust, plots, readme, rivals
from benchmarks.plots import number
from benchmarks.suite import RESULTS
from evaluation.published_tables import judged, read_table
from evaluation.statistics import student
from storage.atomic_files import read_json, replacing
from storage.paths import ROOT
from study.kept import index, markdown, paired_table, seeds_table

MARKER = "<!-- {what}, written by python -m benchmarks.show: {where} -->"
KEPT = ROOT / "notebooks" / "expected"
AT_EQUAL_COST = {
    f"width {width}, {pictures} target pictures": KEPT / folder / "02_transfer_learning"
    for width, pictures, folder in ((64, "45,000", "hour-cifar"), (16, "10,000", "quick-cifar"))
}
NOTHING = "Not measured yet: `make bench` does it and writes its numbers here."
DRAWN = {"speed": plots.plot_speed, "scaling": plots.plot_scaling}

GROUPS = {"training": "Training step", "loading": "Data loading", "evaluation": "Evaluation"}


def pages():
    """What the command writes between markers: {page: {what: text}}."""
    return {
        "README.md": {"results": readme.results(), "notebooks": readme.notebooks()},
        "docs/speed.md": {"speed": table(RESULTS, SPEED)},
        "docs/record.md": {"record": record()},
        "notebooks/expected/README.md": {
            "index": index(KEPT),
            "seeds": seeds_table(KEPT / "quick-cifar", "06_robust_transfer"),
            "cost": paired_table(AT_EQUAL_COST, "scratch-pgd", "from-robust-all-pgd"),
        },
        "docs/reliability.md": {
            "faults": table(RESULTS, {"faults": faults}),
            "verdicts": table(RESULTS, {"verdicts": verdicts}),
            "published": published(),
        },
    }


def record(folder=RESULTS):
    """A row for each JSON that benchmarks.fast_robust has written there, rehearsals left out, the oldest first."""
    rows, found = [], [(read_json(path), path) for path in Path(folder).glob("fast_robust-*.json")]
    for known, path in sorted(found, key=lambda one: one[0]["environment"]["started"]):
        if known["preset"] not in ("hour", "full"):
            continue
        machine, seeds, share = known["environment"], known["seeds"], known.get("share_of_peak")
        walls, (n,) = [row["wall_seconds"] for row in seeds], {row["n"] for row in seeds}
        logs = sorted(path.parent.glob(f"{path.stem}-seed[0-9]*.csv"))
        rows.append(
            [
                f"{max(walls):.1f} s" if all(walls) else "broken off",
                _shares(seeds, "worst case"),
                fast_robust.reached(known),
                f"{max(row['steps_seconds'] for row in seeds):.1f} s",
                _shares(seeds, "clean"),
                known["data"]["name"],
                f"{len(seeds)} × {n:,}",
                f"{known['recipe']['epochs']}, {known['width']}",
                machine["device"],
                "not known" if share is None else f"{100 * share:.0f} %",
                machine["torch"],
                f"[{machine['started'][:10]}](../benchmarks/results/{path.name})",
                machine["commit"] or "not known",
                f"`{known['command']}`" if "command" in known else "not kept",
                ", ".join(f"[{log.stem[len(path.stem) + 1 :]}](../benchmarks/results/{log.name})" for log in logs),
            ]
        )
    if not rows:
        return "Nobody has run it yet."
    head = ["time", "AutoAttack", "goal", "of it in steps", "clean", "data", "seeds × n", "epochs, width", "card"]
    head += ["of the peak", "torch", "date", "commit", "command", "logs"]
    return markdown(head, rows, words=len(head))


def _shares(seeds, name):
    """In % with the 95 % interval: that of one seed's pictures, or Student's of the mean over several seeds."""
    shares, (low, high) = [row[name]["accuracy"] for row in seeds], seeds[0][name]["interval"]
    mean = statistics.mean(shares)
    if len(shares) > 1:
        reach = student(0.95, len(shares) - 1) * statistics.stdev(shares) / math.sqrt(len(shares))
        low, high = max(mean - reach, 0), min(mean + reach, 1)
    shown = f"{100 * mean:.1f} ({100 * low:.1f}–{100 * high:.1f})"
    return f"~~{shown}~~" if any(row["verdict"] == "invalid" for row in seeds) else shown


def published(path=ROOT / "benchmarks" / "robustbench.csv"):
    """What judge_table says of entries of RobustBench: a row an entry, its numbers and what is found."""
    facts, entries = read_table(path), pd.read_csv(path)
    rows, columns = [], ["clean", "reported", "AutoAttack", "external"]
    for place, found in enumerate(judged(facts)):
        entry, row = entries.iloc[place], facts.iloc[place]
        home = f"https://github.com/RobustBench/robustbench/blob/{entry.commit}/model_info/{entry.dataset}/Linf"
        says = ", ".join(f"{one.severity}: {' '.join((*one.rows, one.check))}" for one in found) or "no finding"
        shown = ["" if pd.isna(row[name]) else f"{row[name]:.2f}" for name in columns]
        rows.append([f"[{entry['name']}]({home}/{entry['name']}.json)", says, *shown])
    return markdown(["entry", "found", *columns], rows, words=2)


def table(folder, makers=None):
    """What was measured, on all devices; `makers` maps the names of results to what makes a text of them."""
    parts = []
    for device in ("cpu", "cuda"):
        for name, make in (SPEED | {"faults": faults} if makers is None else makers).items():
            path = Path(folder) / f"{name}-{device}.json"
            if path.exists():
                parts.append(make(read_json(path), device))
    return "\n\n".join(parts) or NOTHING


def _title(title, known):
    """A heading, and under it machine, versions, commit and command."""
    command = f" `{known['command']}`." if "command" in known else ""
    return f"## {title}\n\n{_where(known)}.{command}"


def _where(known):
    """Machine, versions and commit in a line."""
    machine = known["environment"]
    threads = "" if machine["cuda"] else f", {_count(machine['threads'], 'thread')}"
    commit = f", commit {machine['commit']}" if machine["commit"] else ""
    return f"{machine['device']}{threads}, torch {machine['torch']}{commit}, {machine['started'][:10]}"


def _count(number, word):
    return f"{number} {word}{'s' * (number != 1)}"


def _range(spread):
    return "{} ({}–{})".format(*(number(spread[key]) for key in ("median", "lowest", "highest")))


def _speed(known, device):
    results = known["results"]
    said = [_title("Speed", known)]
    if known["tiny"]:
        said.append("Tiny: this shows that it runs, and measures nothing.")
    if not known["complete"]:
        said.append("Some cases only.")
    compared = [result for result in results if result["group"] in GROUPS]
    parts = [" ".join(said)]
    if compared:
        turns = sorted({len(result["contenders"]["ours"]["turns"]) for result in compared})
        counts = " to ".join(map(str, dict.fromkeys([turns[0], turns[-1]])))
        parts.append(
            f"Pictures a second, medians of {counts} turns, and how many times as fast as its peers ours is, with "
            f"the lowest and the highest of the turns. Training in batches of {known['batch']}, ours in the "
            "precision that auto means there; evaluation in float32."
        )
        head = [
            "",
            "ours",
            "ours, float32",
            "usual way: torchattacks",
            "foolbox",
            "ours ÷ usual",
            "ours ÷ foolbox",
        ]
        parts.append(markdown(head, [_speed_row(result) for result in compared]))
        figure = f"../benchmarks/results/speed-{device}.png"
        parts.append(f"![Speed as a multiple of the usual way's]({figure})")
    limits = _limits(results)
    return "\n\n".join(parts + ([limits] if limits else []))


def _speed_row(result):
    rows = result["contenders"]
    usual = "torchattacks" if result["group"] == "evaluation" else "usual way"
    rates = [
        number(rows[name]["rate"]["median"]) if name in rows else "–"
        for name in ("ours", "ours, float32", usual, "foolbox")
    ]
    absent = result.get("absent", {}).get("foolbox")
    if absent == "foolbox is not installed":
        rates[-1] = absent
    ratios = [_range(rows[name]["ratio"]) if name in rows else "–" for name in (usual, "foolbox")]
    name = f"{GROUPS[result['group']]}: {result['case']}"
    return [name, *rates, *ratios]


def _limits(results):
    """What the PGD-10 step achieves and takes, network by network."""
    rows = {}
    for result in results:
        if result["group"] == "share":
            network, precision = result["case"].rsplit(", ", 1)
            achieved = result["contenders"]["ours"]["rate"]["median"]
            part = 100 * result["contenders"]["torch.matmul"]["ratio"]["median"]
            name = f"{network}, batch {result['batch']}"
            rows.setdefault(name, {})[precision] = f"{part:.0f} % ({number(achieved / 1e9)} GFLOP/s)"
        elif result["group"] == "memory":
            name = f"{result['case']}, batch {result['batch']}"
            rows.setdefault(name, {}).update({who: f"{number(size)} MiB" for who, size in result["peak"].items()})
    if not rows:
        return ""
    columns = ["bfloat16", "float32", "ours", "usual way"]
    head = ["PGD-10 step", "of the matmul peak, bfloat16", "float32", "peak memory, ours", "usual way"]
    return markdown(head, [[name, *(row.get(column, "–") for column in columns)] for name, row in rows.items()])


def _scaling(known, device):
    said = _title("How the cost grows", known)
    rows = [[result["case"], result["where"], plots.growth(result)] for result in known["results"]]
    figure = f"![Time of a step and of an evaluation](../benchmarks/results/scaling-{device}.png)"
    return "\n\n".join([said, markdown(["", "measured on", "growth"], rows), figure])


def _autoattack(known, device, title="AutoAttack"):
    names = list(dict.fromkeys(row["name"] for result in known["results"] for row in result["results"]))
    rows = []
    for result in known["results"]:
        cells = {
            row["name"]: f"{100 * row['robust_accuracy']:.1f} %, {row['seconds']:.0f} s ({row['times_ours']:.1f})"
            for row in result["results"]
        }
        network = f"{result['model']['name']}, {result['run']}, {result['data']}, n = {result['n']}"
        rows.append([network, *(cells.get(name, "–") for name in names)])
    said = f"{_title(title, known)}\n\nRobust accuracy, time, and in brackets how many times as long as ours."
    return f"{said}\n\n" + markdown(["", *names], rows)


def _devices(known, device):
    rows, kills = [], ""
    for result in known["results"]:
        if "contenders" in result:
            (first, ours), (second, other) = result["contenders"].items()
            speeds = [f"{first}: {number(ours['rate']['median'])}", f"{second}: {number(other['rate']['median'])}"]
            ratio = "{median:.2f} ({lowest:.2f}–{highest:.2f})".format(**other["ratio"])
            beside = result.get("seconds beside the training", {})
            beside = ", ".join(f"{name}: {seconds:.1f} s" for name, seconds in beside.items())
            rows.append([result["case"], *speeds, result["unit"], ratio, beside])
        elif "kills" in result["found"]:
            counted = result["found"]
            kills = f"{counted['kills']} kills of one of two processes at random moments: "
            kills += f"{counted['ended otherwise']} runs ended otherwise."
    said = f"{_title('Many devices', known)}\n\n{kills}".rstrip()
    return f"{said}\n\n" + markdown(["", "", "", "unit", "ratio", "start and end"], rows)


def faults(known, device):
    """A row a phase: how often the study was stopped there, and how long it took to end."""
    results = {result["signal"]: result for result in known["results"]}
    lasts = {row["phase"]: row["lasts"] for result in known["results"] for row in result["phases"]}
    rows, counts = [], []
    for phase, seconds in lasts.items():
        found = [[row for row in result["phases"] if row["phase"] == phase] for result in results.values()]
        cells = [", ".join(f"{row['stops']}, gone in {row['longest']:.2f} s" for row in some) for some in found]
        rows.append([phase, f"{seconds:.1f} s", *(cell or "–" for cell in cells)])
    for name, result in results.items():
        stops = sum(row["stops"] for row in result["phases"])
        differing = len({text.split(":")[0] for text in result["differences"]})
        counts.append(f"{stops} times {name}, and {differing} of {result['studies']} ended differently")
    said = (
        f"{_title('Stopped at random moments', known)}\n\nSmall studies, stopped at random moments of every "
        "phase and started again until they are through; then their weights, scores, figures and report are "
        f"compared with those of a study that nobody stopped. {'; '.join(counts)}."
    )
    return f"{said}\n\n" + markdown(["", "lasts", *results], rows)


def verdicts(known, device):
    """A row a kind of evaluation: how many raise anything, by our checks and by others' detectors."""
    planted = [(lab, flaw) for lab, flaws in known["planted"].items() for flaw in flaws]
    missed = [f"{flaw['flaw']} ({lab})" for lab, flaw in planted if not flaw["found"]]
    alarms = [f"{name}: {text}" for name, row in known["sound"].items() for text in row["ours"]]
    invalid, suspect = (known["summary"][f"sound: nothing {severity}"] for severity in ("invalid", "suspect"))
    said = (
        f"{_title('Are the verdicts right?', known)} It took {number(known['seconds'] / 60)} minutes.\n\n"
        f"How many raise anything, of so many evaluations. Of {invalid['evaluations']} tests and audits of sound "
        f"networks {invalid['as expected']} have nothing invalid, and {suspect['as expected']} nothing suspect. "
        f"The right check, with the right severity, misses: {'; '.join(missed) or 'none'}. Ours raises on sound "
        f"networks: {'; '.join(alarms) or 'nothing'}."
    )
    return f"{said}\n\n" + markdown(*rivals.counted(known))


SPEED = {
    "speed": _speed,
    "scaling": _scaling,
    "autoattack": _autoattack,
    "nearfirst": partial(_autoattack, title="NearFirst, which is not AutoAttack"),
    "devices": _devices,
}


def filled(page, texts):
    """The page with each text between the markers of its name."""
    for what, text in texts.items():
        begin, end = (MARKER.format(what=what, where=where) for where in ("begin", "end"))
        (before, _), (_, after) = page.split(begin), page.split(end)
        page = f"{before}{begin}\n\n{text}\n\n{end}{after}"
    return page


def pictures(folder):
    """Draw what was measured; returns the files."""
    drawn = []
    for device in ("cpu", "cuda"):
        for name, draw in DRAWN.items():
            path = Path(folder) / f"{name}-{device}.json"
            if path.exists():
                with replacing(path.with_suffix(".png")) as partial, mpl.rc_context(plots.STYLE):
                    draw(read_json(path)).savefig(partial)
                drawn.append(path.with_suffix(".png"))
    return drawn


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="folder of the JSONs (default: benchmarks/results)")
    folder = parser.parse_args(arguments).results
    written = pictures(folder or RESULTS)
    if folder is not None:
        print(table(folder), record(folder), sep="\n\n")
    else:
        written.append(readme.picture_of_study())
        for name, texts in pages().items():
            page = ROOT / name
            whole = filled(page.read_text(encoding="utf-8"), texts)
            with replacing(page) as partial:
                partial.write_text(whole, encoding="utf-8")
            written.append(page)
    print("\nwritten:", *written, sep="\n  ")


if __name__ == "__main__":
    main()
