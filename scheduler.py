"""Many pieces of work at once: in processes of this machine, or through Ray (cluster.py) on a cluster's nodes.

    found = run_all({"a": Task(function, arguments), "b": Task(other, (), after="a")}, Local())

What a scheduler is: submit(name, task, idle) starts a task and returns a handle with `done`, `result()`,
`ask_to_stop()` and `close()`, or None where there is no room at the moment; `idle` is the handle of a task that is
done, or None. A task whose process died is tried again; functions
that train or test go on from what they have saved. One that raises Held, because its folder or its run is in
another's hands, is put off.
"""

import contextlib
import fcntl
import functools
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import cloudpickle
import torch

from files import Held, write_json
from launch import Child, Died
from stopping import GRACE

LOOK_EVERY = 0.1  # seconds
AGAIN_AFTER = 5.0  # seconds, for a task that was put off
TRIES = 4  # of a task whose process dies

log = logging.getLogger("study")


@dataclass
class Task:
    """function(*arguments, progress=...), whose result can be pickled.

    `after` is the name of the task that has to be done before; `arguments` may be a function that makes them then.
    What is lent among them (a scheduler's `lend`) is sent once for all tasks. `light` is a run_command of
    what only waits for other tasks, and takes no room. `note` is a file in which it says where it works.
    """

    function: object
    arguments: object = ()
    note: Path | None = None
    after: object = None
    light: bool = False


def per_gpu():
    """How many processes share a GPU."""
    asked = os.environ.get("STUDY_PER_GPU", "1")
    if not asked.isdecimal() or not 1 <= int(asked) <= 64:
        raise ValueError(f"STUDY_PER_GPU={asked!r}: a whole number from 1 to 64 is needed")
    return int(asked)


class Local:
    """Processes of this machine: `count` at once, of all studies of this user together."""

    def __init__(self, count=None):
        # A notebook sees one GPU, and starts its runs on all.
        named = os.environ.get("STUDY_GPUS") or os.environ.get("CUDA_VISIBLE_DEVICES")
        self.gpus = (
            named.split(",")
            if named and named != "-1"
            else [str(number) for number in range(torch.cuda.device_count())]
        )
        self.count = count or per_gpu() * len(self.gpus) or _cores()
        self.slots = Path(tempfile.gettempdir()) / f"study-slots-{os.getuid()}"
        self.slots.mkdir(mode=0o700, exist_ok=True)
        found = self.slots.lstat()
        if found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise PermissionError(
                f"{self.slots} is not this user's alone: remove it, or name another folder in TMPDIR"
            )
        self.lights, self.started = [], 0
        self.place, self.lent = tempfile.TemporaryDirectory(prefix="study-"), {}

    def __repr__(self):
        kind = f"{len(self.gpus)} GPUs" if self.gpus else "CPU"
        return f"local, {self.count} processes at once on {kind}"

    def submit(self, name, task, idle=None):
        if task.light:
            return self._beside(task)
        if idle is not None:
            idle.again(call_of(task))
            return idle
        for number in range(self.count):
            slot = os.open(self.slots / self._slot(number), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(slot)
                continue
            try:  # the process keeps the slot as long as it lives, however it dies
                return Child(call_of(task), 1, self._variables(number), log.warning, keep=[slot])
            finally:
                os.close(slot)
        return None

    def _slot(self, number):
        """The first process on a GPU, the second, ...: of whichever study."""
        gpus = self.gpus or ["core"]
        return f"{gpus[number % len(gpus)].replace('/', '-')}-{number // len(gpus)}"

    def _beside(self, task):
        """One that waits for others, which takes no room; but some more than there is room for are enough."""
        self.lights = [light for light in self.lights if not light.done]
        if len(self.lights) > self.count:
            return None
        self.lights.append(Command(*task.arguments, self._variables(self.started)))
        self.started += 1
        return self.lights[-1]

    def lend(self, thing):
        """Something to pass to many tasks."""
        if id(thing) not in self.lent:
            path = Path(self.place.name) / str(len(self.lent))
            path.write_bytes(cloudpickle.dumps(thing))
            self.lent[id(thing)] = thing, Lent(path)  # kept, so that its id is nobody else's
        return self.lent[id(thing)][1]

    def _variables(self, number):
        """A GPU for the process, or its part of the cores: more threads than cores wait for one another."""
        if self.gpus:
            names = ",".join(self.gpus)
            return {"CUDA_VISIBLE_DEVICES": self.gpus[number % len(self.gpus)], "STUDY_GPUS": names}
        return {"OMP_NUM_THREADS": str(max(1, _cores() // self.count))}


def _cores():
    return len(os.sched_getaffinity(0))


@dataclass
class Lent:
    """A large thing that many tasks are given, in a file that is written once."""

    path: Path

    def get(self):
        return cloudpickle.loads(self.path.read_bytes())


def call_of(task):
    return functools.partial(perform, task.function, task.arguments, task.note)


def perform(function, arguments, note, *, progress=False, node=""):
    """What is done in the other process: the call, and a note of where it is made."""
    log.setLevel(logging.WARNING)  # what it says goes to the process that has started it
    if not log.handlers:
        log.addHandler(logging.StreamHandler(sys.stdout))
        log.propagate = False
    if note is not None:
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
        where = f"{node or socket.gethostname()}{f', GPU {gpu}' if gpu else ''}, process {os.getpid()}"
        write_json(note, {"where": where, "since": time.time()})
    return function(*(item.get() if isinstance(item, Lent) else item for item in arguments), progress=progress)


class Command:
    """A command that has been started, and ends with this process, by its stdin. It prints into a file."""

    def __init__(self, command, output, variables=()):
        with open(output, "w") as file:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | dict(variables),
            )

    @property
    def done(self):
        return self.process.poll() is not None

    def result(self):
        """Its exit code."""
        return self.process.wait()

    def ask_to_stop(self):
        self.process.terminate()

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()


def run_command(command, output, *, progress=False):
    """Run a command in a process that may be asked to stop; returns its exit code."""
    running = Command(command, output)
    try:
        while not running.done:  # a wait would not hear the request, in some schedulers
            time.sleep(LOOK_EVERY)
        return running.result()
    finally:
        running.ask_to_stop()
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.process.wait(GRACE)
        running.close()


def run_all(tasks, scheduler, show=None):
    """Run all tasks, each after the one that it needs; returns their results by name.

    When one fails, all that do not need it are run nevertheless; then its error is raised. Interrupted, it stops
    those that run, which save. `show` is called now and then with the states of all: "waits", "runs", "done" or
    "failed", by name.
    """
    work = _Work(tasks, scheduler)
    try:
        while work.waiting or work.running:
            work.begin(work.collect())
            if show is not None:
                show({name: work.state(name) for name in tasks})
            time.sleep(LOOK_EVERY)
    except BaseException:
        work.stop()
        raise
    for error in work.failures.values():
        raise error
    return work.found


class _Work:
    """What of some tasks waits, runs, is found or has failed."""

    def __init__(self, tasks, scheduler):
        self.tasks, self.scheduler = tasks, scheduler
        self.waiting, self.running, self.found, self.failures = dict(tasks), {}, {}, {}
        self.tries, self.not_before = dict.fromkeys(tasks, 0), dict.fromkeys(tasks, 0.0)

    def state(self, name):
        if name in self.failures:
            return "failed"
        return "waits" if name in self.waiting else "runs" if name in self.running else "done"

    def begin(self, idle):
        """Start what can be started; processes that have just become idle come first."""
        try:
            for name, task in list(self.waiting.items()):
                if task.after in self.failures:
                    self.failures[name] = self.failures[task.after]
                    del self.waiting[name]
                elif self.not_before[name] > time.monotonic() or task.after not in (None, *self.found):
                    continue
                elif not self._submit(name, task, idle):
                    break
        finally:
            for handle in idle:
                handle.close()

    def _submit(self, name, task, idle):
        """Start a task; returns whether there was room."""
        free = idle[-1] if idle and not task.light else None
        try:
            if callable(task.arguments):
                task.arguments = task.arguments()
            if task.note is not None:  # of what was there before
                task.note.unlink(missing_ok=True)
            handle = self.scheduler.submit(name, task, free)
        except Exception as error:  # what it needs cannot be made, or sent
            del self.waiting[name]
            self._fail(name, error)
            return True
        if handle is None:
            return False
        if handle is free:
            idle.remove(free)
        self.running[name] = handle
        del self.waiting[name]
        return True

    def collect(self):
        """Take what is done; returns the processes that are free."""
        idle = []
        for name, handle in [item for item in self.running.items() if item[1].done]:
            try:
                self.found[name] = handle.result()
            except Held as error:
                self._put_off(name, error)
            except Died as error:
                self._try_again(name, error)
            except Exception as error:
                self._fail(name, error)
            del self.running[name]
            if name in self.found and not self.tasks[name].light:
                idle.append(handle)
            else:  # what has failed may have left its process, or the GPU in it, in a bad state
                handle.close()
        return idle

    def _put_off(self, name, error):
        if self.not_before[name] == 0:
            log.info("%s waits: %s", name, error)
        self.waiting[name] = self.tasks[name]
        self.not_before[name] = time.monotonic() + AGAIN_AFTER

    def _try_again(self, name, error):
        self.tries[name] += 1
        if self.tries[name] == TRIES:
            return self._fail(name, error)
        log.warning("%s died and is tried again: %s", name, _first_line(error))
        self.waiting[name] = self.tasks[name]

    def _fail(self, name, error):
        log.error("%s failed: %s", name, _first_line(error))
        self.failures[name] = error

    def stop(self):
        """End all together; they have some seconds to save."""
        for handle in self.running.values():
            handle.ask_to_stop()
        deadline = time.monotonic() + GRACE + 1
        while any(not handle.done for handle in self.running.values()) and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY)
        for handle in self.running.values():
            handle.close()


def _first_line(error):
    return (str(error) or type(error).__name__).splitlines()[0]
