"""Before a run: do its steps fit into the memory, and what will they cost?"""

import logging
import math
import resource
import time

import torch

from attacks import dead_gradients, evaluating, input_gradient
from models import copied
from processes import data_parallel
from processes.machine import ran_out_of_memory
from training import precision
from training.cuda_graphs import WARM_UP
from training.step import State, train_step

log = logging.getLogger("study")


def rehearse(state, data, run):
    """A few steps of full strength on a copy: do they fit into the memory, and what will the run cost?

    Where a batch does not fit, it will go through the network in parts; raises OutOfMemoryError, which says how
    many pictures fit, for a defence that needs it whole.
    """
    size, fits = state.recipe.batch_size, False
    while not fits:
        try:
            seconds, fits = _trial(state, data, size), True
        except RuntimeError as error:
            if not ran_out_of_memory(error) or size == 1 or 2 * state.parts > size:
                raise
            if data_parallel.world() > 1:  # the others wait for this one, in the middle of a step
                error.add_note(f"{run.path.name}: more processes, or a smaller batch_size, which is another run")
                raise
        # Outside of `except`, which would hold on to what had been computed.
        if not fits and getattr(state.defence, "whole_batch", False):
            size //= 2
        elif not fits:
            state.parts *= 2
    if size < state.recipe.batch_size:
        raise torch.OutOfMemoryError(
            f"{run.path.name}: a batch of {state.recipe.batch_size} pictures does not fit into the memory, and "
            f"{type(state.defence).__name__} needs it whole. batch_size={size} fits, and is another run"
        )
    if state.precision == "float16":
        _compare_gradients(state, data, run)
    _say(state, run, seconds)


def _compare_gradients(state, data, run):
    """Say for how many pictures float16 loses the gradient: an attack could not move them."""
    images, labels = data.train.batch(
        torch.arange(min(state.recipe.batch_size // state.parts, 128), device=state.device)
    )
    dead = {}
    for name in ("float16", "float32"):
        with evaluating(state.model), precision.computing(name, state.device):
            dead[name] = dead_gradients(input_gradient(state.model, images, labels))
    lost = int((dead["float16"] & ~dead["float32"]).sum())
    if lost:
        log.warning(
            "%s: in float16 the input gradient of %d of %d pictures is lost, so no attack can move them, and the "
            'network would only look robust to training: precision="float32" keeps them, in another run',
            *(run.path.name, lost, len(images)),
        )


def _trial(state, data, size):
    """The seconds of a step of so many pictures, at the attack's full ε: the fastest of a few."""
    trial = State(copied(state.model).train(), state.recipe, state.steps, state.device, "a trial")
    trial.step, trial.parts, trial.rescued = trial.total, state.parts, state.rescued
    if state.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(state.device)
    indices = torch.arange(size, device=state.device)
    seconds = math.inf
    with data_parallel.sharing(size) as mine:
        images, labels = data.train.batch(indices[mine])
        for _ in range(WARM_UP + 3 if trial.graphed.possible else 4):
            trial.generator.manual_seed(0)
            begun = time.perf_counter()
            loss, _ = train_step(trial, images, labels)
            float(loss)  # waits for the device
            seconds = min(seconds, time.perf_counter() - begun)
    return seconds


def _say(state, run, seconds):
    """What a run will cost."""
    size = state.recipe.batch_size
    if state.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(state.device) / 2**20
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    if state.parts > 1:
        log.warning(
            "%s: %d pictures at once do not fit into the memory. Each batch goes through the network in %d parts, "
            "whose gradients add up to the same step; but BatchNorm takes its statistics over %d pictures each, "
            "and its running ones follow after each part",
            *(run.path.name, size, state.parts, -(-size // state.parts)),
        )
        run.note(parts=state.parts)
    minutes = seconds * state.total / 60
    spent = f"{minutes:.0f} min" if minutes > 2 else f"{60 * minutes:.0f} s"
    spent = f"{minutes / 60:.1f} hours" if minutes > 90 else spent
    steps = f"{state.total} steps of {seconds:.3g} s ({size} pictures each)"
    log.info(
        "%s: %s will take about %s, and the validations; peak memory %.0f MB", run.path.name, steps, spent, memory
    )
