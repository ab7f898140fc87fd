"""Peak memory of a PGD-10 step, ours and the usual way's, in a fresh process each.

Fresh, because a process hardly gives memory back to the system. And by /proc rather than getrusage: the highest
memory that getrusage knows of a child begins at that of its parent.
"""

import contextlib
import io
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

import models
import utils
from attacks import PGD
from benchmarks.peers import our_step, usual_network, usual_step, with_torchattacks

STEPS = 5  # the first ones may tune, compile and capture


def peak(who, arguments, batch, device):
    """MiB that steps on `batch` pictures need on top of what the process holds after a step on two.

    So libraries, weights, gradients and momentum do not count; pictures, activations and what the attack keeps do.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(_peak, who, arguments, batch, str(device)).result()


def _peak(who, arguments, batch, device):
    device = torch.device(device)
    if who == "ours":  # with the settings that a study runs in; the usual way keeps torch's and the C library's
        with contextlib.redirect_stdout(io.StringIO()):
            utils.start("benchmark", preset="quick", device=str(device))
    model = models.build(num_classes=10, **arguments).to(device)
    if who == "ours":
        step = our_step(model, PGD())
    else:
        model = usual_network(model)
        step = usual_step(model, with_torchattacks(PGD(), model))
    step(*_noise(2, device))
    images, labels = _noise(batch, device)
    held = _begin(device)
    for _ in range(STEPS):
        step(images, labels)
    return (_highest(device) - held) / 2**20


def _noise(count, device):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, 32, 32, generator=generator)
    return images.to(device), torch.randint(10, (count,), generator=generator).to(device)


def _begin(device):
    """Bytes held now; from here on the highest counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _highest(device):
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(field):
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
