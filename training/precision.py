"""What a run computes in: by rule, so that the same command on the same kind of machine gives the same numbers.

A stopwatch would decide otherwise from one clone to the next. Where a device has bfloat16 in hardware, that was
faster for every network that benchmarks/speed.py trains (docs/speed.md). Accuracy is always judged in
float32, whatever a run was trained in.
"""

import torch

from processes.machine import fast_bfloat16

LOW = {"bfloat16": torch.bfloat16, "float16": torch.float16}
SCALE = 2.0**12  # of the loss in float16, at first: the largest at which the networks here have not overflowed


def chosen(recipe, device):
    """As the recipe says; "auto" is bfloat16 where it is in hardware, float16 on other GPUs, else float32."""
    if recipe.precision != "auto":
        return recipe.precision
    if fast_bfloat16(device):
        return "bfloat16"
    return "float16" if device.type == "cuda" else "float32"


def computing(precision, device):
    """A context in which networks compute in that precision, and keep float32 for what needs it."""
    return torch.autocast(device.type, LOW.get(precision, torch.bfloat16), enabled=precision in LOW)


def scaler(precision, device):
    """What scales the loss, so that gradients are not lost in float16, and steps over those that overflow.

    In the other precisions it does nothing.
    """
    return torch.amp.GradScaler(device.type, init_scale=SCALE, enabled=precision == "float16")
