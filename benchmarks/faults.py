"""A small study is killed at random moments of all its phases: does it end as if nothing had happened?

    python -m benchmarks.faults                     100 kills in 20 studies, and 25 times SIGTERM in 5
    python -m benchmarks.faults --studies 2         10 kills

Each study is stopped once in every phase and started again until it is through. Then its weights, scores, figures
and report must be those of a study that nobody stopped. Moments are drawn from the whole length of a phase.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from benchmarks import show, small_study
from benchmarks.small_study import PHASES
from benchmarks.suite import RESULTS
from finetune_framework import load_source
from models.fingerprint import fingerprint
from processes.machine import environment
from processes.stopping import RESUME
from storage.atomic_files import read_json, write_json

PATIENCE = 120  # seconds that a phase may take
PASSING = (r"\d{4}-\d\d-\d\dT[\d:+]+", r"[\d.]+ minutes of training", r"T_[0-9a-f]{5}")  # times, random names


class Process:
    """One start of the study; `phase` is what it was at when it was last heard."""

    CONTEXT = multiprocessing.get_context("forkserver")

    def __init__(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        self.CONTEXT.set_forkserver_preload(["benchmarks.small_study"])
        self.pipe, other = self.CONTEXT.Pipe(duplex=False)
        self.process = self.CONTEXT.Process(target=small_study.process, args=(folder, other))
        self.process.start()
        other.close()
        self.heard = {}

    def listen(self, until, seconds=PATIENCE):
        """Hear until that phase begins, the process ends or the time is up; returns whether it began."""
        deadline = time.monotonic() + seconds
        while until not in self.heard:
            try:
                if not self.pipe.poll(max(0.0, deadline - time.monotonic())):
                    return False
                phase, moment = self.pipe.recv()
            except EOFError:
                return False
            self.heard[phase] = moment
        return True

    @property
    def phase(self):
        return list(self.heard)[-1]

    def through(self):
        """Let it end; raises RuntimeError where it does not end well."""
        if not self.listen("end"):
            self.process.kill()
        self.process.join()
        if self.process.exitcode != 0:
            raise RuntimeError(f"the study ended with {self.process.exitcode}")


def found(folder):
    """All that a study has found, without what tells the time."""
    (run,) = (folder / "runs").glob("*/01_faults/pgd")
    page = (run.parents[1] / "report.html").read_text()
    for pattern in PASSING:
        page = re.sub(pattern, "", page)
    results = {"weights": fingerprint(load_source(run)), "report": hashlib.sha256(page.encode()).hexdigest()}
    for name in ("scores", "scores-best"):
        values = read_json(run / f"{name}.json")
        values.pop("seconds")
        results[name] = hashlib.sha256(json.dumps(values).encode()).hexdigest()
    names = sorted(path.name for path in folder.rglob("*"))
    results["left over"] = [name for name in names if re.search(r"partial|last|previous|download", name)]
    return results


def length(process):
    """Seconds of each phase of a study that was let through."""
    moments = [process.heard[phase] for phase in (*PHASES, "end")]
    return {phase: after - before for phase, (before, after) in zip(PHASES, pairwise(moments), strict=True)}


def stopped(folder, phase, moment, how):
    """Start the study and stop it that long after a phase has begun; what happened, or None if it was over."""
    process = Process(folder)
    if not process.listen(phase):
        raise RuntimeError(f"the study did not come to {phase}: see {folder / 'output.txt'}")
    process.listen("end", moment)
    begun = time.monotonic()
    os.kill(process.process.pid, how)
    process.process.join()
    seconds = time.monotonic() - begun
    if process.process.exitcode == 0:
        return None
    return {"phase": process.phase, "code": process.process.exitcode, "seconds": seconds}


def trial(folder, lengths, how, draw):
    """A study that is stopped once in each phase: the stops, and what it has found in the end."""
    stops = []
    for phase in PHASES:
        stop = None
        while stop is None:  # it was over before it could be stopped
            stop = stopped(folder, phase, draw.uniform(0, lengths[phase]), how)
        stops.append(stop)
    Process(folder).through()
    return stops, found(folder)


def measure(folder, studies, how, draw, say=print):
    """Rows of the table, a phase each, and every difference that there was."""
    whole = Process(folder / "whole")
    whole.through()
    lengths, expected = length(whole), found(folder / "whole")
    rows = {phase: {"stops": 0, "codes": set(), "longest": 0.0} for phase in (*PHASES, "end")}
    differences = []
    for number in range(studies):
        place = folder / f"{how.name}-{number}"
        try:
            stops, there = trial(place, lengths, how, draw)
        except RuntimeError as error:
            differences.append(f"study {number}: {error}")
            say(differences[-1], flush=True)
            continue
        for stop in stops:
            row = rows[stop["phase"]]
            row["stops"] += 1
            row["codes"].add(stop["code"])
            row["longest"] = max(row["longest"], stop["seconds"])
        apart = [name for name in expected if expected[name] != there[name]]
        differences += [f"study {number}: {name} differs: {there[name]}" for name in apart]
        said = f"differs in {', '.join(apart)}" if apart else "the same"
        say(f"{how.name}, study {number + 1} of {studies}: {said}", flush=True)
        if not apart:
            shutil.rmtree(place)
    table = [
        {"phase": phase, **row, "codes": sorted(row["codes"]), "lasts": lengths.get(phase, 0.0)}
        for phase, row in rows.items()
        if row["stops"]
    ]
    return {"signal": how.name, "studies": studies, "phases": table, "differences": differences}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=20, help="that are killed in all five phases (default: 20)")
    parser.add_argument("--polite", type=int, default=5, help="that get SIGTERM instead (default: 5)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the JSON")
    options = parser.parse_args(arguments)
    draw = random.Random(options.seed)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        results = [
            measure(Path(folder) / how.name, studies, how, draw)
            for how, studies in ((signal.SIGKILL, options.studies), (signal.SIGTERM, options.polite))
            if studies
        ]
    arguments = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "benchmarks.faults", *arguments])
    values = {"environment": environment("cpu"), "command": command}
    values |= {"seed": options.seed, "seconds": time.perf_counter() - begun, "results": results, "resume": RESUME}
    write_json(options.output / "faults-cpu.json", values)
    differences = [difference for result in results for difference in result["differences"]]
    print("", show.faults(values, "cpu"), *differences, sep="\n")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
