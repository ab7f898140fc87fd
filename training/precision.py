"""What a run computes in: by rule, so that the same command on the same kind of machine gives the same numbers.

A stopwatch would decide otherwise from one clone to the next. Where a device has bfloat16 in hardware, that was
faster for every network that benchmarks/speed.py trains (README, Speed). Accuracy is always judged in
float32, whatever a run was trained in.
"""

from attacks import fast_bfloat16


def chosen(recipe, device):
    """The precision, as in Recipe; "auto" is bfloat16 on devices that have it in hardware, else float32."""
    if recipe.precision != "auto":
        return recipe.precision
    return "bfloat16" if fast_bfloat16(device) else "float32"
