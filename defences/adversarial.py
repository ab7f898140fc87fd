"""Training on the pictures as they are, or on what an attack makes of them."""

import math
from dataclasses import dataclass, replace

from torch.nn.functional import cross_entropy

from attacks import FGSM, Attack, evaluating, wide


def moment(defence, progress):
    """The defence that this one is at that moment: steps of equal ones are alike. None where it does not say.

    What `at` says holds for the loss that it was written for, not for that of somebody's subclass.
    """
    for kind in type(defence).__mro__:
        if "at" in vars(kind):
            return defence.at(progress)
        if "loss" in vars(kind):
            return None
    return None


@dataclass(frozen=True)
class Standard:
    """Cross-entropy on the pictures as they are."""

    def at(self, progress):
        return self

    def loss(self, model, images, labels, *, progress, generator, smoothing=0.0, memory=None):
        logits = model(images)
        return cross_entropy(wide(logits), labels, label_smoothing=smoothing), logits


@dataclass(frozen=True)
class Adversarial:
    """Cross-entropy on adversarial examples, crafted anew on the model at each step (Madry et al. 2017).

    ε rises linearly from 0 over the first `ramp` of the training (step sizes with it): small networks
    that stay at chance when ε starts at its full size learn that way, or from the weights of a standard
    network (pass its model to `train`). The attack's steps rise evenly from 1 to `attack.steps` over the first
    `grow` of the training, which saves half of them there. While crafting, BatchNorm is in eval mode.
    """

    attack: Attack
    ramp: float = 0.0
    grow: float = 0.0

    def __post_init__(self):
        if not isinstance(self.attack, Attack):
            raise TypeError(f"attack={self.attack!r}: an attack is needed, for instance PGD()")
        for name in ("ramp", "grow"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: a share of the training, 0 to 1, is needed")
        if self.grow and not hasattr(self.attack, "steps"):
            raise ValueError(f"grow={self.grow}: {self.attack} has no `steps` that could rise; PGD() has")

    def single_step_eps(self, progress):
        single = isinstance(self.attack, FGSM) or getattr(self.attack, "steps", math.inf) == 1
        if not single or getattr(self.attack, "norm", "Linf") != "Linf":
            return None
        return self.attack.eps * (1 if progress >= self.ramp else progress / self.ramp)

    def at(self, progress):
        attack = self._attack_at(progress)
        return Standard() if attack is None else Adversarial(attack)

    def loss(self, model, images, labels, *, progress, generator, smoothing=0.0, memory=None):
        attack = self._attack_at(progress)
        if attack is not None:
            with evaluating(model):
                images = attack.craft(model, images, labels, generator)
        logits = model(images)
        return cross_entropy(wide(logits), labels, label_smoothing=smoothing), logits

    def _attack_at(self, progress):
        attack = self.attack
        if progress < self.grow:
            attack = replace(attack, steps=1 + int((attack.steps - 1) * progress / self.grow))
        if progress >= self.ramp:
            return attack
        return attack.scaled(progress / self.ramp) if progress else None
