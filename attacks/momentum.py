"""The momentum family: attacks made to carry over from one model to another. L∞ only.

MI-FGSM   Dong et al. 2017, arXiv:1710.06081: sums normalised gradients
NI-FGSM   Lin et al. 2019, arXiv:1908.06281: takes the gradient one step ahead (Nesterov)
VMI, VNI  Wang & He 2021, arXiv:2103.15571: the same two, steadied by gradients from the neighbourhood
"""

from dataclasses import dataclass

import torch

from attacks.base import Attack, input_gradient, moved
from attacks.pgd import bounds
from attacks.settings import norm_setting, setting
from processes.data_parallel import drawn


@dataclass(frozen=True, kw_only=True, repr=False)
class MIFGSM(Attack):
    """Momentum iterative FGSM: `decay` of the summed direction is kept at each step."""

    step_size: float = setting(2 / 255, 0, open_low=True, hint="2/255 is usual")
    steps: int = setting(10, 1)
    decay: float = setting(1.0, 0)
    norm: str = norm_setting("Linf")

    look_ahead = False
    neighbours = 0
    takes_tensors = True

    @property
    def label(self):
        return type(self).__name__.replace("FGSM", "-FGSM").replace("SINI", "SI-NI")

    def craft(self, model, images, labels, generator, targeted=False):
        lower, upper = bounds(images, self.eps)
        adversarial = images.clone()
        momentum = torch.zeros_like(images)
        variance = torch.zeros_like(images)
        for step in range(self.steps):
            here = (
                moved(adversarial.clone(), momentum, self.decay * self.step_size)
                if self.look_ahead
                else adversarial
            )
            gradient = self._gradient(model, here, labels, generator, targeted)
            direction = gradient + variance
            # A zero gradient has no direction: it stays zero here, where 0/0 would be NaN.
            size = direction.abs().mean((1, 2, 3), keepdim=True).clamp_min(torch.finfo(direction.dtype).tiny)
            momentum.mul_(self.decay).add_(direction.div_(size))
            if self.neighbours and step < self.steps - 1:  # the last variance would never be used
                variance = self._neighbourhood(model, adversarial, labels, generator, targeted).sub_(gradient)
            moved(adversarial, momentum.sign(), self.step_size).clamp_(lower, upper)
        return adversarial

    def _gradient(self, model, images, labels, generator, targeted):
        return input_gradient(model, images, labels, targeted, scaled=self.neighbours > 0)

    def _neighbourhood(self, model, images, labels, generator, targeted):
        """Mean gradient at `neighbours` random points around the images."""
        reach = self.eps * self.radius
        total = torch.zeros_like(images)
        for _ in range(self.neighbours):
            noise = drawn(images, lambda noise: noise.uniform_(-1, 1, generator=generator))
            near = moved(images.clone(), noise, reach)
            total += input_gradient(model, near, labels, targeted, scaled=True)
        return total.div_(self.neighbours)


@dataclass(frozen=True, kw_only=True, repr=False)
class NIFGSM(MIFGSM):
    """MI-FGSM with the gradient taken one momentum step ahead."""

    look_ahead = True


@dataclass(frozen=True, kw_only=True, repr=False)
class VMIFGSM(MIFGSM):
    """MI-FGSM plus the variance of the gradient over `neighbours` points within `radius` times ε.

    It costs steps · (1 + neighbours) gradients, less the last neighbourhood, which is not needed.
    """

    neighbours: int = setting(5, 1)
    radius: float = setting(1.5, 0, open_low=True)


@dataclass(frozen=True, kw_only=True, repr=False)
class VNIFGSM(VMIFGSM):
    """VMI-FGSM with the gradient taken one momentum step ahead."""

    look_ahead = True
