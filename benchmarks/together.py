"""How many pictures a second do several small trainings make together on one GPU?

python -m benchmarks.gpu --only together    # under NVIDIA's MPS, where it was started: nvidia-cuda-mps-control -d
"""

import contextlib
import io
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import Manager, get_context
from pathlib import Path

import torch

import models
import utils
from attacks import PGD
from benchmarks.peers import our_step
from benchmarks.timing import seconds_of

RUNS, SECONDS, AT_ONCE = (1, 8), 4.0, 10


def measure(setting):
    """PGD-10 steps of the shallow CNN, in one process and in eight, and whether MPS lets their kernels overlap."""
    pipes = os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")
    found = {f"{runs} at once": together(runs, setting) for runs in ((2,) if setting.tiny else RUNS)}
    return {"unit": "pictures/s", "found": found, "mps": Path(pipes, "control").exists()}


def together(runs, setting):
    """Pictures a second of so many processes, all of which begin when the last one is ready."""
    with Manager() as manager, ProcessPoolExecutor(runs, mp_context=get_context("spawn")) as fresh:
        ready, size = manager.Barrier(runs), (setting.batch, str(setting.device), 0.1 if setting.tiny else SECONDS)
        return sum(each.result() for each in [fresh.submit(_train, ready, *size) for _ in range(runs)])


def _train(ready, batch, device, seconds):
    with contextlib.redirect_stdout(io.StringIO()):
        device = utils.start("benchmark", preset="smoke", data="shapes", device=device).device
    step = our_step(models.build("shallow_cnn", 10).to(device), PGD())
    images = torch.rand(batch, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,), device=device)
    count = 3 * AT_ONCE if device.type == "cuda" else 1  # until the step is a graph
    seconds_of(lambda: step(images, labels), count, device)
    ready.wait(timeout=120)
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        seconds_of(lambda: step(images, labels), AT_ONCE, device)
        count += AT_ONCE
    return batch * count / (time.perf_counter() - begun)
