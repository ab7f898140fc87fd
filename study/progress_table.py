"""A study at work on many devices: what runs where, and how far it is."""

import shutil
import sys
import time

from storage.atomic_files import Damaged, read_json
from training.run_folder import RunFolder

REFRESH = {True: 1.0, False: 15.0}  # seconds, on a terminal and elsewhere


def minutes(seconds):
    return f"{int(seconds // 60)}:{int(seconds % 60):02d} min"


def progress(folder):
    """How far the run in a folder is, in words; None where it tells nothing."""
    run = RunFolder(folder)
    try:
        history = run.load_history()
        if run.finished or not len(history):
            return None
        epochs = read_json(run.path / "recipe.json")["recipe"]["epochs"]
    except (Damaged, FileNotFoundError, KeyError):  # it is being written, or not ours
        return None
    left = (epochs - len(history)) * history["time/epoch_s"].mean()
    return f"{len(history)} of {epochs} epochs, about {minutes(left)} left in this run"


class Table:
    """Shows, when asked, the notebooks of a study and the runs and tests that they have at work.

    It reads what notebooks and processes write below .jobs/, wherever they are, as long as the folder is shared.
    """

    def __init__(self, study, pool):
        self.study, self.pool = study, pool
        self.begun, self.written, self.lines = time.time(), 0.0, 0
        self.known = {}  # the states of all jobs that each notebook has asked for, its earlier batches included

    def show(self, states):
        terminal = sys.stdout.isatty()
        over = not {"waits", "runs"} & set(states.values())
        if time.time() - self.written < REFRESH[terminal] and not over:
            return
        self.written = time.time()
        width = shutil.get_terminal_size((120, 24)).columns - 1 if terminal else 200
        text = "\n".join(line[:width] for line in self._lines(states))
        back = f"\x1b[{self.lines}F\x1b[J" if terminal and self.lines else ""
        self.lines = text.count("\n") + 1
        print(back + text, flush=True)

    def _lines(self, states):
        jobs = {name: self._jobs(name) for name in states}
        yield self._summary(jobs)
        for name, state in states.items():
            yield f"  {name:<24} {state:<7}" + (f" {_counts(jobs[name])}" if state == "runs" else "")
            for (_, job), at in jobs[name].items():
                if state == at == "runs":
                    words, place = progress(self.study / name / job), self._place(name, job)
                    yield f"      {job:<42} {words or ('at work' if place else 'in the queue'):<46} {place}"

    def _place(self, name, job):
        """Where it is at work; empty for one that its cluster has not begun."""
        return _read(self.study / ".jobs" / name / f"{job}.json").get("where", "")

    def _jobs(self, name):
        """The states of what a notebook has asked for, by ("train" or "test", name)."""
        batch = _read(self.study / ".jobs" / f"{name}.json")
        states = {(batch["what"], job): state for job, state in batch.get("states", {}).items()}
        before = self.known.get(name, {})
        ended = {job: "failed" if state == "failed" else "done" for job, state in before.items()}
        states = self.known[name] = ended | states if states else before
        return states

    def _summary(self, jobs):
        states = [state for some in jobs.values() for state in some.values()]
        done = sum(state in ("done", "failed") for state in states)
        return f"{minutes(time.time() - self.begun)}; {done} of {len(states)} runs and tests done; on {self.pool}"


def _counts(states):
    """How many jobs of a notebook there are of each state; without one at work, it computes something itself."""
    counts = {kind: list(states.values()).count(kind) for kind in ("done", "failed", "runs", "waits")}
    told = [f"{number} {kind}" for kind, number in counts.items() if number]
    return ", ".join(told if counts["runs"] else [*told, "in its own cells"])


def _read(path):
    try:
        return read_json(path)
    except (FileNotFoundError, Damaged):
        return {}
