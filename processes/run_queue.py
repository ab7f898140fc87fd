"""Many runs and tests at once, each when what it needs is done.

    found = run_all({"a": Task(function, arguments), "b": Task(other, (), after="a")}, Pool("local"))

A pool of processes (ray_cluster.py) has submit(name, task), which returns something that stands for the task at
work; done(those, seconds), which waits for some of them; result(one) and stop(those). A task that raises Held,
because its folder or its run is in another's hands, is put off.
"""

import logging
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from processes.stopping import GRACE, end
from storage.atomic_files import Held, first_line

LOOK_EVERY = 0.1  # seconds
AGAIN_AFTER = 5.0  # seconds, for a task that was put off

log = logging.getLogger("study")


@dataclass
class Task:
    """function(*arguments), whose result can be pickled.

    `after` is the name of the task that has to be done before; `arguments` may be a function that makes them then.
    What was put into the pool (`lend`) may stand among them, and is sent once for all tasks. `light` is what only
    waits for other tasks, and takes no room. `note` is a file in which it says where it works.
    """

    function: object
    arguments: object = ()
    note: Path | None = None
    after: object = None
    light: bool = False


def run_command(command, output):
    """Run a command that ends with this process, by its stdin, and prints into a file; returns its exit code."""
    with open(output, "w") as file:
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, stdin=pipe, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        while process.poll() is None:  # a wait would not hear that it is to stop
            time.sleep(LOOK_EVERY)
        return process.returncode
    finally:
        end(process, GRACE)


def run_all(tasks, pool, show=None):
    """Run all tasks, each after the one that it needs; returns their results by name.

    When one fails, all that do not need it are run nevertheless; then its error is raised. Interrupted, it stops
    those that run, which save. `show` is called now and then with the states of all: "waits", "runs", "done" or
    "failed", by name.
    """
    states = dict.fromkeys(tasks, "waits")
    running, found, failures, not_before = {}, {}, {}, {}

    def fail(name, error):
        log.error("%s failed: %s", name, first_line(error))
        states[name], failures[name] = "failed", error

    def begin(name, task):
        try:
            if callable(task.arguments):
                task.arguments = task.arguments()
            if task.note is not None:  # of what was there before
                task.note.unlink(missing_ok=True)
            running[name], states[name] = pool.submit(name, task), "runs"
        except Exception as error:  # what it needs cannot be made, or sent
            fail(name, error)

    def end(name):
        try:
            found[name], states[name] = pool.result(running.pop(name)), "done"
        except Held as error:
            if name not in not_before:
                log.info("%s waits: %s", name, error)
            states[name], not_before[name] = "waits", time.monotonic() + AGAIN_AFTER
        except Exception as error:
            fail(name, error)

    try:
        while {"waits", "runs"} & set(states.values()):
            for name in [name for name, state in states.items() if state == "waits"]:
                if tasks[name].after in failures:
                    states[name], failures[name] = "failed", failures[tasks[name].after]
                elif tasks[name].after in (None, *found) and not_before.get(name, 0) <= time.monotonic():
                    begin(name, tasks[name])
            done = pool.done(list(running.values()), LOOK_EVERY)
            for name in [name for name, reference in running.items() if reference in done]:
                end(name)
            if show is not None:
                show(dict(states))
    except BaseException:
        pool.stop(list(running.values()))
        raise
    for error in failures.values():
        raise error
    return found
