"""Training at the worst weights nearby, beside any defence that crafts first."""

import functools
from dataclasses import dataclass

import torch
from torch.func import functional_call

from attacks.base import LIFT
from attacks.settings import setting
from defences.adversarial import Adversarial, TwoHalves, Wrapped
from processes import data_parallel

TINY = 1e-12  # beside a length, so that none divides by zero


@dataclass(frozen=True)
class AWP(Wrapped):
    """Adversarial weight perturbation: Wu et al. 2020, arXiv:2004.05884.

    After the inner defence has made its pictures, every weight matrix that trains is moved by `gamma` times its
    own length along the gradient of the inner loss, uphill; the update is by the gradient there, applied to the
    weights as they were. It costs one more forward and backward pass a step. BatchNorm's statistics follow the
    second pass alone. The inner defence is Standard, Adversarial, TRADES, MART, NFGSM or a subclass of TwoHalves
    with a `craft` or an `objective` of its own; pulls go around: L2SP(AWP(TRADES()), source).
    """

    gamma: float = setting(0.005, 0, 1, open_high=True, hint="0.005 is usual")

    whole_batch = True  # whose gradient moves the weights
    at = Wrapped.at  # it adds nothing that changes from moment to moment

    def __post_init__(self):
        super().__post_init__()
        if getattr(type(self.defence), "loss", None) not in (TwoHalves.loss, Adversarial.loss):
            raise TypeError(
                f"AWP: defence={self.defence!r} has a loss that is not made of the halves craft and objective; "
                "Adversarial(PGD()), TRADES(), MART(), NFGSM() or a subclass of TwoHalves is needed. Pulls to a "
                "source go around: L2SP(AWP(...), source)"
            )

    def loss(self, model, images, labels, *, progress, generator, smoothing=0.0, memory=None):
        adversarial = self.defence.craft(model, images, labels, progress, generator)

        def inner(tensors):
            """Loss and logits with other weights, or buffers, of these names."""
            other = functools.partial(functional_call, model, tensors)
            return self.defence.objective(other, images, adversarial, labels, smoothing)

        return inner(self._uphill(model, inner))

    def _uphill(self, model, inner):
        """Weights by name, moved; their gradient is that of the weights themselves."""
        weights = {name: w for name, w in model.named_parameters() if w.requires_grad and w.ndim > 1}
        if not weights:
            return {}
        statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}  # moved, and forgotten
        loss, _ = inner(weights | statistics)
        loss, matrices = LIFT * data_parallel.weighed(loss), list(weights.values())  # their lengths cancel
        slopes = torch.autograd.grad(loss, matrices, allow_unused=True, materialize_grads=True)
        slopes = data_parallel.mean([torch.nan_to_num(slope, posinf=0, neginf=0) for slope in slopes])
        return {
            name: weight + slope * (self.gamma * weight.detach().norm() / (slope.norm() + TINY))
            for (name, weight), slope in zip(weights.items(), slopes, strict=True)
        }
