"""What a training step minimises.

    defence.loss(model, images, labels, progress=0.3, generator=g, smoothing=0.1) -> (loss, logits)

`progress` is the share of the training that is done. The loss is a scalar, the logits (N, K) are those of
the images that the model was trained on, for the curve of training accuracy.
"""

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from attacks import Attack, evaluating


@dataclass(frozen=True)
class Standard:
    """Cross-entropy on the pictures as they are."""

    def loss(self, model, images, labels, *, progress, generator, smoothing=0.0):
        logits = model(images)
        return cross_entropy(logits.float(), labels, label_smoothing=smoothing), logits


@dataclass(frozen=True)
class Adversarial:
    """Cross-entropy on adversarial examples, crafted anew on the model at each step (Madry et al. 2017).

    ε rises linearly from 0 over the first `ramp` of the training (step sizes with it): small networks
    that stay at chance when ε starts at its full size learn that way, or from the weights of a standard
    network (pass its model to `train`). While crafting, BatchNorm is in eval mode.
    """

    attack: Attack
    ramp: float = 0.0

    def __post_init__(self):
        if not isinstance(self.attack, Attack):
            raise TypeError(f"attack={self.attack!r}: an attack is needed, for instance PGD()")
        if not 0 <= self.ramp <= 1:
            raise ValueError(f"ramp={self.ramp}: a share of the training, 0 to 1, is needed")

    def loss(self, model, images, labels, *, progress, generator, smoothing=0.0):
        attack = self._attack_at(progress)
        if attack is not None:
            with evaluating(model):
                images = attack.craft(model, images, labels, generator)
        logits = model(images)
        return cross_entropy(logits.float(), labels, label_smoothing=smoothing), logits

    def _attack_at(self, progress):
        if progress >= self.ramp:
            return self.attack
        if progress == 0:
            return None
        return self.attack.scaled(progress / self.ramp)


@dataclass(frozen=True)
class Penalty:
    """Another defence, plus `strength` times a distance from the source that the network was adapted from."""

    defence: object
    source: torch.nn.Module
    strength: float

    def __post_init__(self):
        name = type(self).__name__
        if not callable(getattr(self.defence, "loss", None)):
            raise TypeError(f"{name}: defence={self.defence!r}; a defence such as Standard() is needed")
        if not isinstance(self.source, torch.nn.Module):
            raise TypeError(f"{name}: source={self.source!r}; the source model is needed")
        if not 0 <= self.strength < math.inf:
            raise ValueError(f"{name}: strength={self.strength!r}; a number of at least 0 is needed")

    def loss(self, model, images, labels, *, progress, generator, smoothing=0.0):
        inner = {"progress": progress, "generator": generator, "smoothing": smoothing}
        loss, logits = self.defence.loss(model, images, labels, **inner)
        return loss + self.strength * self.distance(model, images, self.source.to(images.device)), logits

    def distance(self, model, images, source):
        """A scalar, zero where the model is the source."""
        raise NotImplementedError


@dataclass(frozen=True)
class L2SP(Penalty):
    """A pull of the weights back to the source's: strength / 2 · |w - w_source|².

    Li et al. 2018, arXiv:1802.01483. The head, which the source has for other classes, is left free. The
    recipe's weight decay still pulls everything to zero; set it to 0 for the paper's form.
    """

    strength: float = 0.01

    def distance(self, model, images, source):
        start = dict(source.named_parameters())
        head = f"network.{model.head}."
        squares = [
            (weight - start[name].detach()).square().sum()
            for name, weight in model.named_parameters()
            if weight.requires_grad and not name.startswith(head)
        ]
        return sum(squares) / 2


@dataclass(frozen=True)
class FeatureDistillation(Penalty):
    """A pull of the features back to the source's: strength · mean |z(x) - z_source(x)|, x the clean picture.

    Learning without forgetting on the features that the head reads, for keeping a robust source's robustness
    while the task changes: Shafahi et al. 2020, arXiv:1905.08232. |.| is the L2 length.
    """

    strength: float = 0.1

    def distance(self, model, images, source):
        with evaluating(source), torch.no_grad():
            _, target = source.with_features(images)
        _, features = model.with_features(images)
        return (features - target).flatten(1).float().norm(dim=1).mean()
