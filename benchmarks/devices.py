"""One study on many devices: what several processes gain, what the machinery costs, whether kills change a result.

    python -m benchmarks.devices                  all of it; some twelve minutes on two idle CPU cores
    python -m benchmarks.devices --only kills

On a CPU each run has one thread. With a GPU, several runs share it.
"""

import functools
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import torch

import models
import utils
from attacks import PGD
from benchmarks import suite, timing
from defences import Adversarial
from processes.child_processes import RESTARTS
from study import many_runs
from trainer import Recipe, train
from training.weights import weights_in

RUNS = 4


def cases(setting):
    torch.set_num_threads(1)
    pictures = {"train_pictures": None if setting.tiny or setting.device.type == "cuda" else 2500}
    data = utils.load_data("shapes10", setting.session, **pictures)
    yield "devices", f"{RUNS} runs through Ray", functools.partial(throughput, setting, data)
    yield "devices", "one run through Ray", functools.partial(overhead, setting, data)
    yield "devices", "one run on two processes", functools.partial(two_processes, setting, data)
    yield "devices", "kills of one of two processes", functools.partial(kills, setting)


def asked_for(setting, data, seeds, epochs):
    """Runs that differ in their seeds alone, so that none is another's twin."""
    recipe = {"precision": "float32", "validation_images": 16, "validation_attack": PGD(steps=1)}
    recipe |= {"defence": Adversarial(PGD(steps=3)), "epochs": 1 if setting.tiny else epochs, "batch_size": 64}
    return {("run", seed): (network(setting, seed), data, Recipe(**recipe, seed=seed)) for seed in seeds}


@contextmanager
def nowhere(setting):
    """The session with its runs in a folder that is gone afterwards, so that all are trained each time."""
    with tempfile.TemporaryDirectory() as folder:
        yield replace(setting.session, runs=Path(folder) / "study" / "benchmark")


def network(setting, seed):
    return models.build("resnet18", 10, width=4 if setting.tiny else setting.width, seed=seed)


def throughput(setting, data):
    """Runs a minute, at once and one after the other: in turns, each with seeds of its own."""
    several = 4 if setting.device.type == "cuda" else 2
    os.environ["STUDY_PER_GPU"] = str(several)
    rates, seeds = {f"{several} at once": [], "one after the other": []}, iter(range(10_000))
    for _ in range(min(setting.turns, 3)):
        for name, on in zip(rates, (f"local:{several}", None), strict=True):
            asked = asked_for(setting, data, [next(seeds) for _ in range(RUNS)], 1)
            with nowhere(setting) as session:
                begun = time.perf_counter()
                many_runs.train_all(asked, session, on=on, progress=False)
                rates[name].append(RUNS / (time.perf_counter() - begun) * 60)
    return {"unit": "runs a minute", "contenders": timing.summary(rates)}


def overhead(setting, data):
    """What a run loses by being a task: speed while it trains, and seconds beside that."""
    rates, seeds = {"as a task": [], "bare": []}, iter(range(20_000, 30_000))
    beside = {name: [] for name in rates}
    for _ in range(min(setting.turns, 3)):
        for name, on in zip(rates, ("local:2", None), strict=True):
            asked = asked_for(setting, data, [next(seeds)], 2)
            with nowhere(setting) as session:
                begun = time.perf_counter()
                (run,) = many_runs.train_all(asked, session, on=on, progress=False).values()
                whole, training = time.perf_counter() - begun, run.history["time/epoch_s"].sum()
            rates[name].append(len(run.history) * len(data.train) / training)
            beside[name].append(whole - training)
    found = {name: statistics.median(seconds) for name, seconds in beside.items()}
    unit = "pictures/s while it trains"
    return {"unit": unit, "contenders": timing.summary(rates), "seconds beside the training": found}


def two_processes(setting, data):
    """Speed of a run in two processes and in one, each with one thread or GPU."""
    if setting.device.type == "cuda" and torch.cuda.device_count() < 2:
        return {"unit": "GPU only", "found": {"there is": 1}}
    rates, seeds = {"two processes": [], "one process": []}, iter(range(30_000, 40_000))
    for _ in range(min(setting.turns, 3)):
        for name, processes in zip(rates, (2, 1), strict=True):
            ((key, (model, _, recipe)),) = asked_for(setting, data, [next(seeds)], 2).items()
            torch.set_num_threads(processes)  # of all together
            with nowhere(setting) as session:
                run = train(model, data, recipe, session.folder(*key), processes=processes, progress=False)
            rates[name].append(len(run.history) * len(data.train) / run.history["time/epoch_s"].sum())
    torch.set_num_threads(1)
    return {"unit": "pictures/s while it trains", "contenders": timing.summary(rates)}


def kills(setting, count=10):
    """How many of some runs in two processes, one of which is killed at a random moment, end otherwise."""
    count, draw = 1 if setting.tiny else count, random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        whole, _ = _run_in_two(Path(folder) / "whole")
        ends = [_run_in_two(Path(folder) / str(number), draw) for number in range(count)]
    found = {"kills": sum(at is not None for _, at in ends), "ended otherwise": sum(w != whole for w, _ in ends)}
    return {"unit": "", "found": found, "moments": [at for _, at in ends], "restarts allowed": RESTARTS}


def _run_in_two(folder, draw=None):
    """The fingerprint of the weights, and when a process was killed, in seconds from the run's first file."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    command += ["--nproc-per-node=2", f"--max-restarts={RESTARTS}", "-m", "benchmarks.small_run", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    killed = None
    while draw and process.poll() is None and not (folder / "recipe.json").exists():
        time.sleep(0.01)
    if draw:
        at = draw.uniform(0, 6)
        time.sleep(at)
        if victims := psutil.Process(process.pid).children() if process.poll() is None else []:
            draw.choice(victims).kill()
            killed = at
    if process.wait(300):
        return f"exit code {process.returncode}", killed
    return weights_in(folder), killed


def main(arguments=None):
    suite.run(__doc__, "devices", cases, arguments)


if __name__ == "__main__":
    main()
