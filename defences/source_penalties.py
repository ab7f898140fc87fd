"""Pulls back to the network that another one was adapted from, beside any other defence."""

import math
from dataclasses import dataclass

import torch

from attacks import evaluating
from attacks.settings import check_setting
from defences.adversarial import Wrapped
from models import LowRank, model_of
from models.low_rank import is_adapted


@dataclass(frozen=True)
class Penalty(Wrapped):
    """Another defence, plus `strength` times a distance from the source that the network was adapted from."""

    source: torch.nn.Module
    strength: float

    at = Wrapped.at  # it adds nothing that changes from moment to moment

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.source, torch.nn.Module):
            raise TypeError(f"{type(self).__name__}: source={self.source!r}; the source model is needed")
        check_setting(self, "strength", 0, math.inf)

    def loss(self, model, images, labels, **rest):
        loss, logits = self.defence.loss(model, images, labels, **rest)
        source = model_of(self.source.to(images.device))
        return loss + self.strength * self.distance(model_of(model), images, source), logits

    def distance(self, model, images, source):
        """A scalar, zero where the model is the source; both are Models."""
        raise NotImplementedError


@dataclass(frozen=True)
class L2SP(Penalty):
    """A pull of the weights back to the source's: strength / 2 · |w - w_source|².

    Li et al. 2018, arXiv:1802.01483. The head, which the source has for other classes, is left free; low-rank
    adapters count with the change that they make. The recipe's weight decay still pulls everything to zero; set it
    to 0 for the paper's form. Raises ValueError where the network was not adapted from that source.
    """

    strength: float = 0.01

    def distance(self, model, images, source):
        start = dict(source.named_parameters())
        start |= {f"{name}.weight": layer.weight for name, layer in source.named_modules() if is_adapted(layer)}
        head = f"network.{model.find_head(images)}."
        changes = [module.change() for module in model.modules() if isinstance(module, LowRank)]
        for name, weight in model.named_parameters():
            if weight.requires_grad and not name.startswith(head) and ".parametrizations." not in name:
                if name not in start or start[name].shape != weight.shape:
                    raise ValueError(
                        f"L2SP: the source has no {name!r} of shape {tuple(weight.shape)} to stay near"
                    )
                changes.append(weight - start[name].detach())
        return sum(change.square().sum() for change in changes) / 2


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
