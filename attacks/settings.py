"""Settings of attacks, defences and recipes: by name, each in its range, with errors that say what is meant."""

import inspect
import math
from dataclasses import field, fields
from difflib import get_close_matches
from functools import partial
from numbers import Integral, Real

import numpy as np

EPS_HINT = "8/255 is usual; a plain 8 forgets the division"
NORMS = ("Linf", "L2")
USUAL_EPS = {"Linf": 8 / 255, "L2": 0.5}  # RobustBench's for CIFAR-10
# What other libraries call them.
MEANT = {"alpha": "step_size", "epsilon": "eps", "iters": "steps", "iterations": "steps", "num_steps": "steps"}
MEANT |= {"lr": "learning_rate", "wd": "weight_decay", "attack": "defence"}


class NamedSettings:
    """A dataclass whose settings are given by name: TypeError names those that there are."""

    def __new__(cls, /, *values, **named):
        # Somebody's own __init__ takes what it likes; those that dataclass writes begin like this.
        if getattr(getattr(cls.__init__, "__code__", None), "co_qualname", "").startswith("__create_fn__"):
            takes = [*inspect.signature(cls.__init__).parameters.values()][1:]
            there = [each.name for each in takes]
            for name in named.keys() - there:
                near = [MEANT[name]] if MEANT.get(name) in there else get_close_matches(name, there, 1)
                meant = f"is {near[0]} meant? " if near else ""
                raise TypeError(f"{cls.__name__} has no setting {name!r}: {meant}It has {', '.join(there)}")
            if values and all(each.kind is each.KEYWORD_ONLY for each in takes):
                value = values[0]
                shown = f"{255 * value:.4g}/255" if there[0] == "eps" and isinstance(value, float) else repr(value)
                first = f"{cls.__name__}({there[0]}={shown})"
                raise TypeError(
                    f"{cls.__name__}: settings are given by name, as in {first}. It has {', '.join(there)}"
                )
        make = super().__new__
        return make(cls) if make is object.__new__ else make(cls, *values, **named)


def setting(default, low, high=math.inf, **limits):
    """A field of a dataclass that `check_settings` holds to its range; whole numbers where the default is one."""
    check = partial(check_setting, low=low, high=high, whole=isinstance(default, int), **limits)
    return field(default=default, metadata={"check": check})


def choice(*choices):
    """A field of a dataclass that `check_settings` holds to these choices; the first is the default."""
    return field(default=choices[0], metadata={"check": partial(check_choice, choices=choices)})


def norm_setting(*norms, written=False, **settings):
    """A field that says in which norm ε is, one of these; the first is the default.

    Unless it always was, that one is not written into recipe.json: see training/identity.py.
    """
    metadata = {"check": partial(check_norm, norms=norms), "written": written}
    return field(default=norms[0], metadata=metadata, **settings)


def check_settings(owner):
    """Raise ValueError unless every field that was made by `setting` or `choice` is what it may be."""
    for each in fields(owner):
        if "check" in each.metadata:
            each.metadata["check"](owner, each.name)


def check_setting(owner, name, low, high, *, whole=False, open_low=False, open_high=False, hint=""):
    """Raise ValueError unless a setting is a finite number in its range; numpy's become Python's own."""
    value = getattr(owner, name)
    number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if number and (isinstance(value, np.generic) or not isinstance(value, (int, float))):
        value = int(value) if isinstance(value, Integral) else float(value)
        object.__setattr__(owner, name, value)
    inside = number and low <= value <= high and abs(value) != math.inf
    if inside and not (open_low and value == low) and not (open_high and value == high):
        return
    kind = "a whole number" if whole else "a number"
    hint = "Without quotes" if isinstance(value, str) else hint
    bounds = f"above {low:g}" if open_low else f"of at least {low:g}"
    limit = "" if math.isinf(high) else f" and below {high:g}" if open_high else f" and at most {high:g}"
    raise ValueError(
        f"{type(owner).__name__}: {name}={value!r}; {kind} {bounds}{limit} is needed. {hint}".rstrip()
    )


def check_norm(owner, name, norms):
    """Raise ValueError unless the norm is one of these."""
    if owner.norm not in norms:
        there = (
            " or ".join(map(repr, norms)) + " is needed" + ("" if norms[1:] else ": it is defined for no other")
        )
        raise ValueError(f"{type(owner).__name__}: norm={owner.norm!r}; {there}")


def check_choice(owner, name, choices):
    """Raise ValueError unless a setting is one of the choices."""
    value = getattr(owner, name)
    if type(value) not in map(type, choices) or value not in choices:
        raise ValueError(
            f"{type(owner).__name__}: {name}={value!r}; one of {', '.join(map(str, choices))} is needed"
        )
