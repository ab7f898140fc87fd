"""A recipe: everything that decides a run besides the model's initial weights and the data."""

import math
from dataclasses import dataclass

from attacks import PGD, Attack
from attacks.settings import NamedSettings, check_choice, check_setting
from defences import Standard, innermost
from processes.machine import PRECISIONS
from training.schedule import SCHEDULES, rate_at


@dataclass(frozen=True, kw_only=True)
class Recipe(NamedSettings):
    """Everything that decides a run besides the model's initial weights and the data.

    `learning_rate` is the peak: "one_cycle" climbs to it over the first `warm_up` of the training and falls
    linearly to zero; "piecewise" divides it by 10 after half and again after three quarters of the training
    (Rice et al. 2020, arXiv:2002.11569). `ema` is the decay of the averaged weights (0: none); `swa` is the
    share of the training, at its end, over whose steps the weights are averaged evenly (0: none; stochastic weight
    averaging, Izmailov et al. 2018, arXiv:1803.05407; against robust overfitting: Chen et al. 2021, ICLR). With
    one of them, the average is validated and returned. `low_resolution` is the side, in pixels, to which training
    pictures are shrunk for the first half of the training, which makes its steps cheaper: for networks that take
    any size and do not enlarge their pictures themselves. `precision` "auto" is bfloat16 on devices that have
    it in hardware, float16 on other GPUs, else float32; float16 comes with a loss that is scaled (Micikevicius et
    al. 2018, arXiv:1710.03740). Every epoch ends in a validation on the validation split; robust
    accuracy there is measured with `validation_attack` on the first `validation_images`; None is PGD(), or, where
    the defence's attack is in L2, PGD in L2 with its ε.
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
    swa: float = 0.0
    label_smoothing: float = 0.0
    clip_gradient: float | None = None
    augment: bool = True
    low_resolution: int | None = None
    precision: str = "auto"
    validation_attack: Attack | None = None
    validation_images: int = 1000
    seed: int = 0

    def __post_init__(self):
        # dataclasses.replace hands on what was derived, as if somebody had given it.
        if self.validation_attack is None or hasattr(self.validation_attack, "derived"):
            attack = getattr(innermost(self.defence), "attack", None)
            in_l2 = getattr(attack, "norm", None) == "L2"
            derived = vars(self)["validation_attack"] = PGD(norm="L2", eps=attack.eps) if in_l2 else PGD()
            vars(derived)["derived"] = True
        for name in ("epochs", "batch_size", "validation_images"):
            check_setting(self, name, 1, math.inf, whole=True)
        check_setting(self, "seed", 0, math.inf, whole=True)
        check_setting(self, "learning_rate", 0, math.inf, open_low=True)
        check_setting(self, "weight_decay", 0, math.inf)
        for name in ("warm_up", "momentum", "ema", "label_smoothing"):
            check_setting(self, name, 0, 1, open_high=True)
        check_setting(self, "swa", 0, 1, hint="The share of the training, at its end, that is averaged: 0.25, say")
        if self.ema and self.swa:
            raise ValueError(f"Recipe: ema={self.ema}, swa={self.swa}; one average is kept, so one of them is 0")
        if self.clip_gradient is not None:
            check_setting(self, "clip_gradient", 0, math.inf, open_low=True, hint="None clips nothing")
        if self.low_resolution is not None:
            check_setting(self, "low_resolution", 1, math.inf, whole=True, hint="None shrinks nothing")
        check_choice(self, "schedule", SCHEDULES)
        check_choice(self, "precision", PRECISIONS)
        check_choice(self, "augment", (True, False))
        loss = getattr(self.defence, "loss", None)
        if isinstance(self.defence, Attack) and not callable(loss):
            raise ValueError(
                f"Recipe: defence={self.defence!r} is an attack; Adversarial(...) around it trains on its examples"
            )
        for name, good, wanted in (
            ("defence", callable(loss) and not isinstance(self.defence, type), "a defence such as Standard()"),
            ("validation_attack", isinstance(self.validation_attack, Attack), "an attack such as PGD()"),
        ):
            if not good:
                raise ValueError(f"Recipe: {name}={getattr(self, name)!r}; {wanted} is needed")

    def learning_rate_at(self, progress):
        """The learning rate when `progress`, 0 to 1, of the training is done."""
        return rate_at(self.schedule, self.learning_rate, self.warm_up, progress)
