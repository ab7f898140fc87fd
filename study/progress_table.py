"""A study at work: what runs where, and how far it is."""

import shutil
import sys
import threading
import time
from contextlib import contextmanager, suppress

from storage.atomic_files import Damaged, read_json
from training.run_folder import RunFolder

REFRESH = {True: 1.0, False: 60.0}  # seconds, on a terminal and elsewhere
WORTH_A_LINE = 30  # seconds that a run must still take to be told of in a log


def minutes(seconds):
    return f"{int(seconds // 60)}:{int(seconds % 60):02d} min"


def epochs_of(folder):
    """Of the run that is being trained in a folder: epochs done, epochs in all, seconds left; None without one."""
    run = RunFolder(folder)
    try:
        if run.finished or not len(history := run.load_history()):
            return None
        epochs = read_json(run.path / "recipe.json")["recipe"]["epochs"]
    except (Damaged, FileNotFoundError, KeyError):  # it is being written, or not ours
        return None
    return len(history), epochs, (epochs - len(history)) * history["time/epoch_s"].mean()


def progress(folder):
    """How far the run in a folder is, in words; None where it tells nothing."""
    if known := epochs_of(folder):
        done, epochs, left = known
        return f"{done} of {epochs} epochs, about {minutes(left)} left in this run"
    return None


class Line:
    """Shows how far a study is whose notebooks run one after the other.

    In a terminal one line, rewritten in place; elsewhere a line when a notebook begins or ends, and one for a run.
    `expected` maps notebooks' names to the seconds that they take on another machine (lengths.json).
    """

    def __init__(self, study, names, expected):
        self.study, self.names, self.expected = study, list(names), expected
        self.begun, self.took = time.monotonic(), {}  # seconds, of notebooks that have trained all their runs here
        self.terminal = sys.stdout.isatty()

    @contextmanager
    def of(self, name):
        """While that notebook is at work."""
        begun, ended = time.monotonic(), threading.Event()
        anew = not any((self.study / name).glob("*/weights.safetensors"))
        where = f"[{self.names.index(name) + 1}/{len(self.names)}] {name}"
        self._say(where)
        watch = threading.Thread(target=self._watch, args=(name, where, begun, ended), daemon=True)
        watch.start()
        try:
            yield
        finally:
            ended.set()
            watch.join()
            print("\r\x1b[K" if self.terminal else "", end="", flush=True)
        seconds = time.monotonic() - begun
        self._say(f"{where} ended after {minutes(seconds)}")
        if anew:
            self.took[name] = seconds

    def left(self, name, seconds):
        """Seconds until the last notebook ends, when this one has been at work for so many; None: not known yet.

        By the pace of this study, which is known when a tenth of it is done.
        """
        if not set(self.names) <= self.expected.keys():
            return None
        done, later = sum(map(self.expected.get, self.took)), self.names[self.names.index(name) + 1 :]
        if done < sum(map(self.expected.get, self.names)) / 10:
            return None
        pace = sum(self.took.values()) / done
        return max(pace * self.expected[name] - seconds, 0) + pace * sum(map(self.expected.get, later))

    def _watch(self, name, where, begun, ended):
        told = set()
        while True:
            run = self._run(name)
            known = run and epochs_of(run)
            if self.terminal:
                left, words = self.left(name, time.monotonic() - begun), [where]
                so_far = f"{minutes(time.monotonic() - self.begun)} so far"
                words += [so_far if left is None else f"about {minutes(left)} left in all"]
                words += [f"epoch {min(known[0] + 1, known[1])} of {known[1]} of {run.name}"] if known else []
                print("\r\x1b[K" + " · ".join(words)[: shutil.get_terminal_size().columns - 1], end="", flush=True)
            elif known and known[2] >= WORTH_A_LINE and run not in told:
                told.add(run)
                self._say(f"    {run.name}: {progress(run)}")
            if ended.wait(REFRESH[True]):
                return

    def _run(self, name):
        """The folder of the run that was last written to, of those that are not finished."""
        runs = {}
        for path in (self.study / name).glob("*/history.csv"):
            with suppress(FileNotFoundError):
                if not RunFolder(path.parent).finished:
                    runs[path.stat().st_mtime] = path.parent
        return runs[max(runs)] if runs else None

    def _say(self, text):
        if not self.terminal:
            print(text, flush=True)


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
