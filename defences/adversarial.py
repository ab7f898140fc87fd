"""Training on the pictures as they are, or on what an attack makes of them."""

import copy
import math
from dataclasses import dataclass, replace

from torch.nn.functional import cross_entropy

from attacks import FGSM, Attack, evaluating, wide
from attacks.settings import check_settings, setting


def moment(defence, progress):
    """The defence that this one is at that moment: steps of equal ones are alike. None where it does not say.

    What `at` says holds for the loss that it was written for, not for that of somebody's subclass.
    """
    decisive = {"at", "loss", "craft", "objective"}
    nearest = next((vars(kind) for kind in type(defence).__mro__ if decisive & vars(kind).keys()), {})
    return defence.at(progress) if "at" in nearest else None


class TwoHalves:
    """A defence that first makes the pictures to learn from, then says what is to be minimised there.

    craft(model, images, labels, progress, generator)           pictures (N, C, H, W) in [0, 1]
    objective(model, images, adversarial, labels, smoothing)    the loss, and the logits of `adversarial`
    """

    def loss(self, model, images, labels, *, progress, generator, smoothing=0.0, memory=None):
        adversarial = self.craft(model, images, labels, progress, generator)
        return self.objective(model, images, adversarial, labels, smoothing)

    def objective(self, model, images, adversarial, labels, smoothing):
        logits = model(adversarial)
        return cross_entropy(wide(logits), labels, label_smoothing=smoothing), logits


@dataclass(frozen=True)
class Standard(TwoHalves):
    """Cross-entropy on the pictures as they are."""

    def at(self, progress):
        return self

    def craft(self, model, images, labels, progress, generator):
        return images


@dataclass(frozen=True)
class Adversarial(TwoHalves):
    """Cross-entropy on adversarial examples, crafted anew on the model at each step (Madry et al. 2017).

    ε rises linearly from 0 over the first `ramp` of the training (step sizes with it): small networks
    that stay at chance when ε starts at its full size learn that way, or from the weights of a standard
    network (pass its model to `train`). With a pair, ramp=(0.25, 0.75), it is 0 until the first moment and full
    from the second on: a standard source that is fine-tuned adversarially needs that (epsilon scheduling, ICLR
    2026). While ε is 0 training is standard. The attack's steps rise evenly from 1 to `attack.steps` over the
    first `grow` of the training, which saves half of them there. While crafting, BatchNorm is in eval mode.
    """

    attack: Attack
    ramp: float | tuple[float, float] = 0.0
    grow: float = setting(0.0, 0, 1, hint="A share of the training")

    def __post_init__(self):
        if not isinstance(self.attack, Attack):
            raise TypeError(f"attack={self.attack!r}: an attack is needed, for instance PGD()")
        check_settings(self)
        ramp = self._ramp
        numbers = all(isinstance(share, (int, float)) and type(share) is not bool for share in ramp)
        if not numbers or len(ramp) != 2 or not 0 <= ramp[0] <= ramp[1] <= 1:
            raise ValueError(
                f"{type(self).__name__}: ramp={self.ramp}; a share of the training, 0 to 1, is needed, or two, "
                "(0.25, 0.75), from where to where ε rises"
            )
        if self.grow and not hasattr(self.attack, "steps"):
            raise ValueError(f"grow={self.grow}: {self.attack} has no `steps` that could rise; PGD() has")

    @property
    def _ramp(self):
        return self.ramp if isinstance(self.ramp, (tuple, list)) else (0.0, self.ramp)

    def _strength(self, progress):
        """The share of its full size that ε has reached, 0 to 1."""
        begin, end = self._ramp
        if progress >= end or progress <= begin:
            return float(progress >= end)
        return (progress - begin) / (end - begin)

    def single_step_eps(self, progress):
        single = isinstance(self.attack, FGSM) or getattr(self.attack, "steps", math.inf) == 1
        if not single or self.attack.norm != "Linf":
            return None
        return self.attack.eps * self._strength(progress)

    def at(self, progress):
        attack = self._attack_at(progress)
        return Standard() if attack is None else replace(self, attack=attack, ramp=0.0, grow=0.0)

    def loss(self, model, images, labels, *, progress, generator, smoothing=0.0, memory=None):
        how = Standard() if self._attack_at(progress) is None else super()
        return how.loss(model, images, labels, progress=progress, generator=generator, smoothing=smoothing)

    def craft(self, model, images, labels, progress, generator):
        attack = self._attack_at(progress)
        if attack is None:
            return images
        with evaluating(model):
            return self._crafted(attack, model, images, labels, generator)

    def _crafted(self, attack, model, images, labels, generator):
        return attack.craft(model, images, labels, generator)

    def _attack_at(self, progress):
        attack, strength = self.attack, self._strength(progress)
        if progress < self.grow:
            attack = replace(attack, steps=1 + int((attack.steps - 1) * progress / self.grow))
        if strength == 1:
            return attack
        return attack.scaled(strength) if strength else None


@dataclass(frozen=True)
class Wrapped:
    """Another defence, with something around it."""

    defence: object

    def __post_init__(self):
        if not callable(getattr(self.defence, "loss", None)):
            raise TypeError(f"{type(self).__name__}: defence={self.defence!r}; one such as Standard() is needed")
        check_settings(self)

    def at(self, progress):
        inner = moment(self.defence, progress)
        return inner and replace(self, defence=inner)

    @property
    def replays(self):
        return getattr(self.defence, "replays", 1)

    @property
    def whole_batch(self):
        return getattr(self.defence, "whole_batch", False)


def with_sizes(defence, sizes):
    """The same defence with other values for its attack's ε and step size, if they may be tensors there."""
    inner = {}  # nothing is checked: these are no settings of anybody's
    if isinstance(defence, Wrapped):
        inner["defence"] = with_sizes(defence.defence, sizes)
    elif isinstance(defence, Adversarial) and defence.attack.takes_tensors:
        inner["attack"] = defence.attack.with_sizes(sizes)
    other = copy.copy(defence)
    vars(other).update(inner)
    return other


def innermost(defence):
    """The defence that all the others are around."""
    return innermost(defence.defence) if isinstance(defence, Wrapped) else defence
