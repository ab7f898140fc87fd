"""A study at work on many devices: what runs where, how far it is, and how long the rest may take."""

import shutil
import sys
import time

from storage.atomic_files import Damaged, read_json
from training.run_folder import RunFolder

REFRESH = {True: 1.0, False: 15.0}  # seconds, on a terminal and elsewhere


def minutes(seconds):
    return f"{int(seconds // 60)}:{int(seconds % 60):02d} min"


def progress(folder):
    """How far the run in a folder is, in words, and the seconds left; (None, None) where it tells nothing."""
    run = RunFolder(folder)
    try:
        history = run.load_history()
        if run.finished or not len(history):
            return None, None
        epochs = read_json(run.path / "recipe.json")["recipe"]["epochs"]
    except (Damaged, FileNotFoundError, KeyError):  # it is being written, or not ours
        return None, None
    left = (epochs - len(history)) * history["time/epoch_s"].mean()
    return f"{len(history)} of {epochs} epochs, about {minutes(left)} left in this run", left


class Table:
    """Shows, when asked, the notebooks of a study and the runs and tests that they have at work.

    It reads what notebooks and processes write below .jobs/, wherever they are, as long as the folder is shared.
    """

    def __init__(self, study, pool):
        self.study, self.pool = study, pool
        self.begun, self.written, self.lines = time.time(), 0.0, 0
        self.known = {}  # the states of all jobs that each notebook has asked for, its earlier batches included
        self.seen = {}  # when each job was first seen at work, and for how long it was

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
            for (_, job), at in jobs[name].items() if state == "runs" else ():
                if at == "runs":
                    yield self._line(name, job)

    def _line(self, name, job):
        words, _ = progress(self.study / name / job)
        place = self._place(name, job)
        return f"      {job:<42} {words or ('at work' if place else 'in the queue'):<46} {place}"

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
        now = time.time()
        for job, state in states.items():
            first, lasted = self.seen.get((name, job), (now, None))
            if state == "runs":
                self.seen[name, job] = first, None
            elif (name, job) in self.seen and lasted is None:
                self.seen[name, job] = first, now - first
        return states

    def _summary(self, jobs):
        states = [state for some in jobs.values() for state in some.values()]
        running = [
            (name, job) for name, some in jobs.items() for (_, job), state in some.items() if state == "runs"
        ]
        lasted = [seconds for _, seconds in self.seen.values() if seconds]
        usual = sum(lasted) / len(lasted) if lasted else None
        at_work = sum(bool(self._place(name, job)) for name, job in running)
        lefts = [progress(self.study / name / job)[1] or usual for name, job in running]
        done = sum(state in ("done", "failed") for state in states)
        text = f"{minutes(time.time() - self.begun)}; {done} of {len(states)} runs and tests done"
        if at_work and usual and None not in lefts:
            left = (sum(lefts) + usual * states.count("waits")) / at_work
            text += f", the rest of these in about {minutes(left)}"
        return f"{text}; on {self.pool}"


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
