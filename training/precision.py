"""What a run computes in: by rule, so that the same command on the same kind of machine gives the same numbers.

A stopwatch would decide otherwise from one clone to the next. Where a device has bfloat16 in hardware, that was
faster for every network that benchmarks/speed.py trains (docs/speed.md). Accuracy is always judged in
float32, whatever a run was trained in.
"""

import torch

from processes.machine import LOW, fast_precision

SCALE = 2.0**12  # of the loss in float16, at first: the largest at which the networks here have not overflowed


def chosen(recipe, device):
    """As the recipe says; "auto" is what the device is fast in."""
    return fast_precision(device) if recipe.precision == "auto" else recipe.precision


def computing(precision, device):
    """A context in which networks compute in that precision, and keep float32 for what needs it."""
    return torch.autocast(device.type, LOW.get(precision, torch.bfloat16), enabled=precision in LOW)


def scaler(precision, device):
    """What scales the loss, so that gradients are not lost in float16, and steps over those that overflow.

    In the other precisions it does nothing.
    """
    return torch.amp.GradScaler(device.type, init_scale=SCALE, enabled=precision == "float16")
