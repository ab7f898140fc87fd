"""What a run computes in: bfloat16 where it is faster for this network and batch on this machine, else float32.

Which one wins is measured once and remembered in runs/precision.json, so that it does not change from one run to
the next; delete the file to measure again. Accuracy is always judged in float32, whatever a run was trained in.
"""

import logging
import math
import time

import torch

from attacks import evaluating, fast_bfloat16, input_gradient
from models.fingerprint import structure
from processes.machine import environment
from storage.atomic_files import Damaged, held, read_json, write_json
from storage.paths import runs_root

log = logging.getLogger("study")

GAIN = 1.1  # bfloat16 rounds more, so it must win by so much
TURNS = 7
NAMES = ("float32", "bfloat16")


def chosen(recipe, model, shape, device):
    """The precision, as in Recipe, for batches of this shape (N, C, H, W); "auto" is measured."""
    if recipe.precision != "auto":
        return recipe.precision
    if not fast_bfloat16(device):
        return "float32"
    machine = environment(device)
    parts = [machine["device"], f"{machine['threads']} threads", f"torch {machine['torch']}", structure(model)]
    key = ", ".join([*parts, "x".join(map(str, shape))])
    path = runs_root() / "precision.json"
    known = _read(path)
    if key not in known:
        with held(path.with_name(".precision.lock"), "the precision of a run is being measured", wait=True):
            known = _read(path)
            if key not in known:
                known[key] = _measure(model, shape, device)
                write_json(path, known)
                times = {name: 1e3 * spent for name, spent in known[key].items()}
                size = "x".join(map(str, shape))
                log.info("measured for %s: %.3g ms in float32, %.3g ms in bfloat16", size, *times.values())
    return "bfloat16" if GAIN * known[key]["bfloat16"] < known[key]["float32"] else "float32"


def _read(path):
    try:
        known = read_json(path)
        return {key: times for key, times in known.items() if {type(times[name]) for name in NAMES} == {float}}
    except (FileNotFoundError, Damaged, KeyError, TypeError):  # not there, or not ours: measured anew
        return {}


def _measure(model, shape, device):
    """Seconds of a crafting pass, forward and back to the pictures: the least of some turns, taken alternately."""
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(len(images), dtype=torch.int64, device=device)
    seconds = {"float32": math.inf, "bfloat16": math.inf}
    # Other processes on the same cores, such as other runs of a study, are to decide nothing.
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    with evaluating(model):
        for turn in range(1 + TURNS):
            for name in seconds:
                begun = clock()
                with torch.autocast(device.type, torch.bfloat16, enabled=name == "bfloat16"):
                    float(input_gradient(model, images, labels).sum())  # waits for the device
                if turn:  # the first one warms up
                    seconds[name] = min(seconds[name], clock() - begun)
    return seconds
