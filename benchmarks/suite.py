"""What the commands share: options, the setting, and a JSON that is written after each case.

    suite.run(__doc__, "speed", cases)

`cases(setting)` yields (group, case, measure); what `measure()` returns is kept.
"""

import argparse
import importlib.metadata
import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import utils
from processes.machine import environment
from storage.atomic_files import Damaged, read_json, write_json

RESULTS = utils.ROOT / "benchmarks" / "results"
PEERS = ("torchvision", "torchattacks", "foolbox")


@dataclass(frozen=True)
class Setting:
    """How large and how long; `tiny` is the smallest there is, to see that everything runs."""

    session: utils.Session
    turns: int
    tiny: bool
    output: Path

    @property
    def device(self):
        return self.session.device

    @property
    def batch(self):
        return 4 if self.tiny else 128

    @property
    def width(self):
        """Of the ResNets."""
        return 4 if self.tiny else 64 if self.device.type == "cuda" else 16

    def shortened(self, attacks):
        """The attacks by name; where all is tiny, with two steps at most."""
        if not self.tiny:
            return attacks
        return {
            name: replace(one, steps=2) if getattr(one, "steps", 0) > 2 else one for name, one in attacks.items()
        }

    def networks(self):
        """What models.build() wants, by the name in the tables."""
        resnet = {"name": "resnet18", "width": self.width}
        return {"shallow CNN": {"name": "shallow_cnn"}, f"ResNet-18 width {self.width}": resnet}


def options(doc, arguments):
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7, help="at most, of each contender (default: 7)")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help='cases with this in their name, "VMI"'
    )
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, one turn: does it run?")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="begin no case after so many; the same again goes on"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder (default: benchmarks/results)")
    chosen = parser.parse_args(arguments)
    if chosen.turns < 1:
        parser.error("--turns: at least 1 is needed")
    if chosen.tiny and chosen.output == RESULTS:
        parser.error("--tiny measures nothing: say with --output where it may write")
    return chosen


def run(doc, name, cases, arguments=None):
    """Measure the cases that are asked for. Broken off, it leaves the JSON of the cases that are done.

    The same command goes on from there, on the same kind of machine, with the same code and versions.
    """
    begun = time.perf_counter()
    chosen = options(doc, arguments)
    session = utils.start("benchmark", preset="smoke" if chosen.tiny else "quick", data="shapes")
    setting = Setting(session, 1 if chosen.tiny else chosen.turns, chosen.tiny, chosen.output)
    target = chosen.output / f"{name}-{session.device.type}.json"
    kept = begun_before(target, header(name, setting, sys.argv[1:] if arguments is None else arguments))
    done = {(result["group"], result["case"]) for result in kept["results"]}
    found = False
    for group, case, measure in cases(setting):
        title = f"{group}: {case}"
        if chosen.only and not any(wanted.lower() in title.lower() for wanted in chosen.only):
            continue
        found = True
        if (group, case) in done:
            print(f"{title:<52} is measured already")
            continue
        if time.perf_counter() - begun > 60 * chosen.minutes:
            print(f"\n{chosen.minutes:g} minutes are over; the same command goes on from here")
            return
        result = {"group": group, "case": case} | measure()
        print(f"{title:<52} {line(result)}", flush=True)
        kept["results"].append(result)
        write_json(target, kept)
    if not found:
        raise SystemExit(f"no case has {' or '.join(chosen.only)} in its name")
    del kept["broken_off"]
    write_json(target, kept | {"complete": not chosen.only})
    print(f"\nwritten to {target}")


def header(name, setting, arguments):
    """Everything that a reader needs to judge or repeat the numbers; where it wrote to is nobody's concern."""
    words = [*map(str, arguments)]
    if "--output" in words:
        place = words.index("--output")
        del words[place : place + 2]
    return {
        "command": " ".join(["python", "-m", f"benchmarks.{name}", *words]),
        "environment": environment(setting.device),
        "versions": {peer: _version(peer) for peer in PEERS},
        "batch": setting.batch,
        "tiny": setting.tiny,
        "complete": False,
        "broken_off": True,
        "results": [],
    }


def begun_before(path, kept):
    """What the same command has left there when it was broken off, on the same machine; else `kept`."""
    try:
        known = read_json(path)
    except (FileNotFoundError, Damaged):
        return kept
    same = all(known.get(key) == kept[key] for key in ("command", "versions", "batch", "tiny", "broken_off"))
    where, there = ({**one["environment"], "started": None} for one in (kept, known))
    return known if same and where == there else kept


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def line(result):
    """A case in one line of the terminal."""
    if "contenders" not in result:
        points = zip(result.get("values", []), result.get("seconds", []), strict=True)
        values = result.get("peak") or result.get("found") or {value: point["median"] for value, point in points}
        return ", ".join(f"{name}: {value:.3g}" for name, value in values.items()) + f" {result['unit']}"
    parts = []
    for name, row in result["contenders"].items():
        ratio = "{median:.2f}x, {lowest:.2f} to {highest:.2f}".format(**row["ratio"])
        parts.append(f"{name} {row['rate']['median']:,.4g}" + (f" ({ratio})" if parts else ""))
    return " | ".join(parts) + f" {result['unit']}"
