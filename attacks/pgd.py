"""FGSM (Goodfellow et al. 2014, arXiv:1412.6572) and PGD (Madry et al. 2017, arXiv:1706.06083), L∞ and L2."""

from dataclasses import dataclass

import torch

from attacks.base import Attack, input_gradient, moved
from attacks.settings import NORMS, norm_setting, setting
from processes.data_parallel import drawn

USUAL_STEP = 2 / 255


@dataclass(frozen=True, kw_only=True, repr=False)
class FGSM(Attack):
    """One step of size ε along the sign of the gradient (L2: along the gradient itself), from the picture."""

    norm: str = norm_setting(*NORMS, written=True)

    takes_tensors = True

    def craft(self, model, images, labels, generator, targeted=False):
        gradient = input_gradient(model, images, labels, targeted)
        return stepped(images.clone(), gradient, self.eps, self.norm).clamp_(0, 1)


@dataclass(frozen=True, kw_only=True, repr=False)
class PGD(Attack):
    """Steps of size `step_size`, projected on the ε-ball and [0, 1] after each; the last iterate counts.

    `step_size` None is 2/255, in L2 2.5 ε / steps, so that the border is reached from any start and walked along
    (Madry et al.'s rule). `restarts` runs again, from new random points, on the examples that still stand, so each
    keeps the worst case found.
    """

    step_size: float | None = setting(None, 0, open_low=True, hint="2/255 is usual, in L2 2.5 ε / steps")
    steps: int = setting(10, 1)
    restarts: int = setting(1, 1)
    random_start: bool = True
    norm: str = norm_setting(*NORMS, written=True)

    takes_tensors = True

    def __post_init__(self):
        follows = self._is_open("step_size")
        if follows:
            self._take("step_size", USUAL_STEP)
        super().__post_init__()
        if follows and self.norm == "L2" and self.eps > 0:
            self._take("step_size", 2.5 * self.eps / self.steps)
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
        project = projection(images, self.eps, self.norm)
        adversarial = images.clone()
        if self.random_start:
            self._start(adversarial, project, generator)
        for _ in range(self.steps):
            gradient = input_gradient(model, adversarial, labels, targeted)
            project(stepped(adversarial, gradient, self.step_size, self.norm))
        return adversarial

    def _start(self, images, project, generator):
        """The images moved, in place: anywhere in the box; in L2 in any direction, by a length up to ε."""
        if self.norm == "Linf":
            noise = drawn(images, lambda noise: noise.uniform_(-1, 1, generator=generator))
            return project(moved(images, noise, self.eps))
        noise = drawn(images, lambda noise: noise.normal_(generator=generator))
        length = drawn(lengths(noise), lambda length: length.uniform_(0, 1, generator=generator))
        return images.add_(noise.mul_(length.mul_(self.eps) / lengths(noise))).clamp_(0, 1)


def bounds(images, eps):
    """The lowest and highest picture that L∞ and [0, 1] allow."""
    return (images - eps).clamp_(min=0), (images + eps).clamp_(max=1)


def projection(images, eps, norm):
    """A function that brings points, in place, into [0, 1] and to within ε of the images, and returns them."""
    if norm == "Linf":
        lower, upper = bounds(images, eps)
        return lambda points: points.clamp_(lower, upper)

    def project(points):
        change = points.sub_(images)
        change *= (eps / lengths(change)).clamp_max(1)
        return change.add_(images).clamp_(0, 1)

    return project


def stepped(images, gradient, size, norm):
    """Move the images, in place, by `size` along the gradient's sign (L∞) or its direction (L2)."""
    return moved(images, gradient.sign_() if norm == "Linf" else direction(gradient), size)


def direction(gradient):
    """The gradient of each example at the length 1; zero where it is zero."""
    # Scaled by the largest entry first: the squares of a tiny gradient would underflow to length 0.
    largest = gradient.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
    gradient = gradient / largest
    return gradient / lengths(gradient)


def lengths(tensor):
    """L2 length of each example, shape (N, 1, 1, 1), never zero."""
    return tensor.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]
