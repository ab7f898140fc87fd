"""The scheduler on a Ray cluster. Ray is an extra: `make cluster` installs it, and nothing else imports this.

Every node needs this repository at the same place, with its .venv, and the folders of STUDY_RUNS and STUDY_DATA
shared. A lost node's tasks are started again on others, and go on from their checkpoints.
"""

import os
import sys

import ray

from launch import Died
from scheduler import TRIES, Lent, call_of, per_gpu
from utils import ROOT, runs_root

# Of each GPU, notebooks, which mostly wait for their runs, have a tenth: else they would wait for one another.
RUNS, NOTEBOOK = 0.9, 0.0125


class Ray:
    """Tasks of a cluster: a run takes a GPU, or its share of one, or a CPU where the cluster has no GPU."""

    def __init__(self, on="ray"):
        address = on.removeprefix("ray:") if on != "ray" and not on.startswith("ray://") else on
        if not ray.is_initialized():
            _connect(None if address == "ray" else address)
        self.gpus = ray.cluster_resources().get("GPU", 0)
        self.lent = {}

    def __repr__(self):
        total = ray.cluster_resources()
        nodes = sum(node["Alive"] for node in ray.nodes())
        return f"Ray, {nodes} nodes, {total.get('CPU', 0):.0f} CPUs, {total.get('GPU', 0):.0f} GPUs"

    def submit(self, name, task, idle=None):
        gpu = (NOTEBOOK if task.light else RUNS / per_gpu()) if self.gpus else 0
        options = {
            "num_cpus": 0 if task.light else 1,
            "num_gpus": gpu,
            "max_retries": TRIES - 1,
            "name": str(name),
        }
        return _Handle(_perform.options(**options).remote(call_of(task)))

    def lend(self, thing):
        if id(thing) not in self.lent:
            self.lent[id(thing)] = thing, _Lent(ray.put(thing))
        return self.lent[id(thing)][1]


def _connect(address):
    folders = {
        "STUDY_RUNS": str(runs_root()),
        "STUDY_DATA": str((ROOT / os.environ.get("STUDY_DATA", "data")).resolve()),
    }
    here = {"PYTHONPATH": os.pathsep.join([str(ROOT), *(path for path in sys.path if path)])}
    ray.init(address=address, log_to_driver=False, logging_level="ERROR", runtime_env={"env_vars": folders | here})


@ray.remote
def _perform(call):
    where = ray.get_runtime_context()
    os.environ["STUDY_ON"] = f"ray:{where.gcs_address}"  # for a notebook that is started from here
    return call(node=f"node {where.get_node_id()[:6]} at {ray.util.get_node_ip_address()}")


class _Lent(Lent):
    def __init__(self, reference):
        self.reference = reference

    def get(self):
        return ray.get(self.reference)


class _Handle:
    def __init__(self, reference):
        self.reference = reference

    @property
    def done(self):
        return bool(ray.wait([self.reference], timeout=0)[0])

    def result(self):
        try:
            return ray.get(self.reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        except ray.exceptions.RayError as error:  # after so many tries
            raise Died(f"lost: {error}") from error

    def ask_to_stop(self):
        ray.cancel(self.reference, force=False, recursive=False)

    def close(self):
        if not self.done:
            ray.cancel(self.reference, force=True, recursive=False)
