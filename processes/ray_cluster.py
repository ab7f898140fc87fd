"""The processes for many runs at once: Ray's, of this machine alone or of a cluster that is there.

A task whose process or node died is tried again, elsewhere if need be; what trains or tests goes on from what was
saved. Every node of a cluster needs this repository at the same place, with its .venv, and the folders of
STUDY_RUNS and STUDY_DATA shared. Ray is an extra: `make cluster` installs it, and nothing else imports it.
"""

import functools
import logging
import os
import signal
import socket
import sys
import threading
import time

import psutil
import ray
import torch

from processes.child_processes import Died
from processes.stopping import GRACE
from storage.atomic_files import Held, first_line, write_json
from storage.paths import ROOT, data_root, runs_root

TRIES = 4  # of a task whose process dies
# Of each GPU, notebooks, which mostly wait for their runs, have a tenth: else they would wait for one another.
RUNS, NOTEBOOK = 0.9, 0.0125

log = logging.getLogger("study")


class Pool:
    """The processes in which tasks run.

    `on` is "local", "local:3" (three at once), "ray", or a cluster's address, "ray:HOST:PORT" or "ray://HOST:PORT".
    A task takes a GPU, or its share of one, or a CPU where there is no GPU. On this machine alone as many are at
    work as it has GPUs (times STUDY_PER_GPU), or else cores. Raises ValueError for any other `on`.
    """

    def __init__(self, on):
        kind, _, rest = on.partition(":")
        if not (kind == "ray" or (kind == "local" and (not rest or (rest.isdecimal() and int(rest) > 0)))):
            raise ValueError(f"on={on!r}: local, local:3, ray, ray:HOST:PORT or ray://HOST:PORT is needed")
        self.local = kind == "local"
        if not ray.is_initialized():
            address = (on if rest.startswith("//") else rest) or None
            _connect(_alone(int(rest or 0)) if self.local else {"address": address})
        self.gpus = ray.cluster_resources().get("GPU", 0)

    def __repr__(self):
        total, nodes = ray.cluster_resources(), sum(node["Alive"] for node in ray.nodes())
        where = "this machine" if self.local else f"Ray, {nodes} nodes"
        return f"{where}, {total.get('CPU', 0):.0f} CPUs, {total.get('GPU', 0):.0f} GPUs"

    def submit(self, name, task):
        gpu = (NOTEBOOK if task.light else RUNS / per_gpu()) if self.gpus else 0
        options = {"name": str(name), "num_cpus": 0 if task.light else 1, "num_gpus": gpu}
        options |= {"max_retries": TRIES - 1, "runtime_env": {"env_vars": self._variables()}}
        return _perform.options(**options).remote(task.function, task.note, *task.arguments)

    def _variables(self):
        variables = {"STUDY_RUNS": str(runs_root()), "STUDY_DATA": str(data_root())}
        variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), *(path for path in sys.path if path)])
        if starter := str(os.getpid()) if self.local else os.environ.get("STUDY_STARTER"):
            variables["STUDY_STARTER"] = starter  # also of what a task begins
        if self.local and not self.gpus:  # more threads than cores wait for one another
            places = int(ray.cluster_resources()["CPU"])
            variables["OMP_NUM_THREADS"] = str(max(1, _cores() // places))
        return variables

    def done(self, references, seconds):
        """Those that are done, or have failed, when all are or the seconds are over."""
        if not references:
            time.sleep(seconds)
            return []
        return ray.wait(references, num_returns=len(references), timeout=seconds)[0]

    def result(self, reference):
        """What the function returned, or raises what it raised; Died where its process did, each time."""
        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        except ray.exceptions.RayError as error:
            raise Died(f"lost: {first_line(error)}") from error

    def stop(self, references):
        """End all together; they have some seconds to save."""
        for force in (False, True):
            for reference in references:
                ray.cancel(reference, force=force, recursive=False)
            done = self.done(references, GRACE + 1)
            # Not those that are just ending: told of their end after that, Ray 2.60 ends this process.
            references = [reference for reference in references if reference not in done]

    def lend(self, thing):
        """Something to pass to many tasks; it stays where Ray keeps it for as long as somebody holds this."""
        return ray.put(thing)


def per_gpu():
    """How many processes share a GPU."""
    asked = os.environ.get("STUDY_PER_GPU", "1")
    if not asked.isdecimal() or not 1 <= int(asked) <= 64:
        raise ValueError(f"STUDY_PER_GPU={asked!r}: a whole number from 1 to 64 is needed")
    return int(asked)


def _cores():
    return len(os.sched_getaffinity(0))


def _alone(count):
    """A cluster of this machine alone, which ends with this process, for so many tasks at once."""
    gpus = torch.cuda.device_count()
    places = {"num_cpus": count or per_gpu() * gpus or _cores(), "num_gpus": gpus}
    return places | {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}


def _connect(where):
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    before = signal.getsignal(signal.SIGTERM)
    ray.init(**where, logging_level="ERROR")
    signal.signal(signal.SIGTERM, before)  # Ray's would end us without a word


@functools.cache  # once is enough
def _end_with_starter():
    """From here on this process ends, and saves, when the one is gone that began this machine's own cluster.

    Ray's own processes need a minute to notice.
    """
    if starter := os.environ.get("STUDY_STARTER"):
        threading.Thread(target=_watch, args=(int(starter),), daemon=True).start()


def _watch(starter):
    while psutil.pid_exists(starter):
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


_failed = False  # something in this process of a cluster


@ray.remote
def _perform(function, note, *arguments):
    global _failed
    if _failed:  # it may have left this process, or the GPU in it, in a bad state; Ray takes another one
        os._exit(1)
    _end_with_starter()
    where = ray.get_runtime_context()
    os.environ["STUDY_ON"] = f"ray:{where.gcs_address}"  # for a notebook that is started from here
    log.setLevel(logging.WARNING)  # what it says is shown by the process that has started it
    if not log.handlers:
        log.addHandler(logging.StreamHandler(sys.stdout))
        log.propagate = False
    if note is not None:
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
        place = f"{socket.gethostname()}, node {where.get_node_id()[:6]}{f', GPU {gpu}' if gpu else ''}"
        write_json(note, {"where": f"{place}, process {os.getpid()}", "since": time.time()})
    try:
        return function(*arguments)
    except Exception as error:
        _failed = not isinstance(error, Held)  # which only means: later
        if _failed:  # soon, when Ray has been told of the error: a task that met this process would lose a try
            threading.Timer(2, os._exit, (1,)).start()
        raise
