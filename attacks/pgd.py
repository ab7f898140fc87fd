"""FGSM (Goodfellow et al. 2014, arXiv:1412.6572) and PGD (Madry et al. 2017, arXiv:1706.06083), L∞ and L2."""

from dataclasses import dataclass, field

import torch

from attacks.base import Attack, input_gradient, moved, setting
from processes.data_parallel import drawn


def _check_norm(attack, _):
    if attack.norm not in ("Linf", "L2"):
        raise ValueError(f"{type(attack).__name__}: norm={attack.norm!r}; 'Linf' or 'L2' is needed")


@dataclass(frozen=True, kw_only=True, repr=False)
class FGSM(Attack):
    """One step of size ε along the sign of the gradient (L2: along the gradient itself), from the picture."""

    norm: str = field(default="Linf", metadata={"check": _check_norm})

    takes_tensors = True

    def craft(self, model, images, labels, generator, targeted=False):
        gradient = input_gradient(model, images, labels, targeted)
        return _step(images.clone(), gradient, self.eps, self.norm).clamp_(0, 1)


@dataclass(frozen=True, kw_only=True, repr=False)
class PGD(Attack):
    """Steps of size `step_size`, projected on the ε-ball and [0, 1] after each; the last iterate counts.

    `restarts` runs again, from new random points, on the examples that still stand, so each keeps the
    worst case found.
    """

    step_size: float = setting(2 / 255, 0, open_low=True, hint="2/255 is usual")
    steps: int = setting(10, 1)
    restarts: int = setting(1, 1)
    random_start: bool = True
    norm: str = field(default="Linf", metadata={"check": _check_norm})

    takes_tensors = True

    def __post_init__(self):
        super().__post_init__()
        if self.restarts > 1 and not self.random_start:
            raise ValueError("PGD: restarts from the same point find the same example; set random_start=True")

    @property
    def label(self):
        return f"PGD-{self.steps}" + (f"×{self.restarts}" if self.restarts > 1 else "")

    def craft(self, model, images, labels, generator, targeted=False):
        adversarial = self._once(model, images, labels, generator, targeted)
        for _ in range(self.restarts - 1):
            with torch.no_grad():
                hit = model(adversarial).argmax(1) == labels
            standing = (~hit if targeted else hit).nonzero()[:, 0]
            if len(standing) == 0:
                break
            adversarial[standing] = self._once(model, images[standing], labels[standing], generator, targeted)
        return adversarial

    def _once(self, model, images, labels, generator, targeted):
        if self.norm == "L2":
            return self._once_l2(model, images, labels, generator, targeted)
        lower, upper = bounds(images, self.eps)
        adversarial = images.clone()
        if self.random_start:
            noise = drawn(images, lambda noise: noise.uniform_(-1, 1, generator=generator))
            moved(adversarial, noise, self.eps).clamp_(lower, upper)
        for _ in range(self.steps):
            gradient = input_gradient(model, adversarial, labels, targeted)
            _step(adversarial, gradient, self.step_size, self.norm).clamp_(lower, upper)
        return adversarial

    def _once_l2(self, model, images, labels, generator, targeted):
        offset = torch.zeros_like(images)
        if self.random_start:
            # A random direction, and a length uniform in [0, ε].
            offset = drawn(images, lambda noise: noise.normal_(generator=generator))
            length = drawn(_length(offset), lambda length: length.uniform_(0, 1, generator=generator))
            offset *= length.mul_(self.eps) / _length(offset)
        adversarial = (images + offset).clamp_(0, 1)
        for _ in range(self.steps):
            gradient = input_gradient(model, adversarial, labels, targeted)
            offset = _step(adversarial, gradient, self.step_size, self.norm) - images
            offset *= (self.eps / _length(offset)).clamp_max(1)
            adversarial = (images + offset).clamp_(0, 1)
        return adversarial


def bounds(images, eps):
    """The lowest and highest picture that L∞ and [0, 1] allow."""
    return (images - eps).clamp_(min=0), (images + eps).clamp_(max=1)


def _step(images, gradient, size, norm):
    """Move the images, in place, by `size` along the gradient's sign (L∞) or its direction (L2)."""
    if norm == "Linf":
        return moved(images, gradient.sign_(), size)
    # Scaled by the largest entry first: the squares of a tiny gradient would underflow to length 0.
    largest = gradient.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
    gradient = gradient / largest
    return moved(images, gradient / _length(gradient), size)


def _length(tensor):
    """L2 length of each example, shape (N, 1, 1, 1), never zero."""
    return tensor.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]
