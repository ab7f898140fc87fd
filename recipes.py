"""A recipe: everything that decides a run besides the model's initial weights and the data."""

import math
from dataclasses import dataclass, field

from attacks import PGD, Attack
from defences import Standard

SCHEDULES = ("one_cycle", "piecewise", "constant")
PRECISIONS = ("auto", "bfloat16", "float32")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run besides the model's initial weights and the data.

    `learning_rate` is the peak: "one_cycle" climbs to it over the first `warm_up` of the training and falls
    linearly to zero; "piecewise" divides it by 10 after half and again after three quarters of the training
    (Rice et al. 2020, arXiv:2002.11569). `ema` is the decay of the averaged weights (0: none); with it, the
    average is validated and returned. `low_resolution` is the side, in pixels, to which training pictures are
    shrunk for the first half of the training, which makes its steps cheaper: for networks that take any size and
    do not enlarge their pictures themselves. `precision` "auto" is bfloat16 where precision.py has
    measured that it is faster, else float32. Every epoch ends in a validation on the validation split; robust
    accuracy there is measured with `validation_attack` on the first `validation_images`.
    """

    epochs: int
    batch_size: int = 128
    defence: object = Standard()
    learning_rate: float = 0.1
    schedule: str = "one_cycle"
    warm_up: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    ema: float = 0.0
    label_smoothing: float = 0.0
    clip_gradient: float | None = None
    augment: bool = True
    low_resolution: int | None = None
    precision: str = "auto"
    validation_attack: Attack = field(default_factory=PGD)
    validation_images: int = 1000
    seed: int = 0

    def __post_init__(self):
        def need(name, good, wanted):
            if not good(getattr(self, name)):
                raise ValueError(f"Recipe: {name}={getattr(self, name)!r}; {wanted} is needed")

        for name in ("epochs", "batch_size", "validation_images"):
            need(name, lambda v: isinstance(v, int) and v >= 1, "a whole number of at least 1")
        need("seed", lambda v: isinstance(v, int) and v >= 0, "a whole number of at least 0")
        need("learning_rate", lambda v: 0 < v < math.inf, "a number above 0")
        need("warm_up", lambda v: 0 <= v < 1, "a share of the training, 0 to below 1,")
        for name in ("momentum", "ema", "label_smoothing"):
            need(name, lambda v: 0 <= v < 1, "a number from 0 to below 1")
        need("weight_decay", lambda v: 0 <= v < math.inf, "a number of at least 0")
        need("clip_gradient", lambda v: v is None or v > 0, "None or a length above 0")
        need("low_resolution", lambda v: v is None or (isinstance(v, int) and v >= 1), "None or a side in pixels")
        need("schedule", lambda v: v in SCHEDULES, " or ".join(SCHEDULES))
        need("precision", lambda v: v in PRECISIONS, " or ".join(PRECISIONS))
        need("defence", lambda v: callable(getattr(v, "loss", None)), "a defence such as Standard()")
        need("validation_attack", lambda v: isinstance(v, Attack), "an attack such as PGD()")

    def learning_rate_at(self, progress):
        """The learning rate when `progress`, 0 to 1, of the training is done."""
        if self.schedule == "constant":
            return self.learning_rate
        if self.schedule == "piecewise":
            return self.learning_rate / (1 if progress < 0.5 else 10 if progress < 0.75 else 100)
        if progress < self.warm_up:
            return self.learning_rate * progress / self.warm_up
        return self.learning_rate * (1 - progress) / (1 - self.warm_up)
