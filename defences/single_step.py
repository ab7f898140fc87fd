"""Training on examples that a single step makes, for two to three times the cost of standard training."""

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from attacks import evaluating, input_gradient, wide
from attacks.base import LIFT
from attacks.pgd import bounds
from attacks.settings import EPS_HINT, check_settings, norm_setting, setting
from defences.adversarial import Standard, TwoHalves
from processes.data_parallel import drawn


@dataclass(frozen=True)
class SingleStep:
    """A defence whose examples a single step makes, of the same ε from the first moment to the last.

    Its paper defines it in L∞: `norm` takes nothing else.
    """

    eps: float = setting(8 / 255, 0, 1, open_low=True, hint=EPS_HINT)
    norm: str = norm_setting("Linf", kw_only=True, repr=False)

    __post_init__ = check_settings

    def single_step_eps(self, progress):
        return self.eps


@dataclass(frozen=True)
class NFGSM(SingleStep, TwoHalves):
    """Cross-entropy on examples of one step from a noisy picture, which may lie outside ε.

    De Jorge et al. 2022, "Make Some Noise", arXiv:2202.01181. The noise is uniform in ±noise · ε, the step is
    step · ε along the sign of the gradient at the noisy picture. Nothing is projected on ε, so this is no attack:
    that and the strong noise keep the network from learning to fool a single step. While crafting, BatchNorm is
    in eval mode.
    """

    noise: float = setting(2.0, 0, hint="A multiple of ε: 2 is usual")
    step: float = setting(1.0, 0, open_low=True, hint="A multiple of ε: 1 is usual")

    at = Standard.at  # it is the same at all moments

    def craft(self, model, images, labels, progress, generator):
        reach = self.noise * self.eps
        noise = drawn(images, lambda noise: noise.uniform_(-reach, reach, generator=generator))
        noisy = noise.add_(images).clamp_(0, 1)
        with evaluating(model):
            gradient = input_gradient(model, noisy, labels)
        return noisy.add_(gradient.sign_(), alpha=self.step * self.eps).clamp_(0, 1)


@dataclass(frozen=True)
class Guided(SingleStep):
    """Cross-entropy on the pictures, and a pull of the probabilities under one guided step to those without it.

    Guided adversarial training, Sriramanan et al. 2020, arXiv:2011.14969: cross-entropy(x) + weight · |p - q|²,
    where p and q are the softmax at x and at the adversarial picture. That picture starts in a random corner ±ε/2
    away and takes one step of ε along the sign of the gradient of cross-entropy + weight · |p - q|². At every
    other step, drawn at random, its guiding term is left out: the authors' code alternates, so that the network
    cannot adapt to one kind. They also take 4 · weight for the last 15 % of the training; here it stays. The
    logits are those of the adversarial pictures. While crafting, BatchNorm is in eval mode.
    """

    weight: float = setting(10.0, 0, hint="10 is usual")

    at = Standard.at

    def loss(self, model, images, labels, *, progress, generator, smoothing=0.0, memory=None):
        clean = model(images)
        with evaluating(model):
            adversarial = self._craft(model, images, labels, clean.detach(), generator)
        logits = model(adversarial)
        pull = self.weight * _distance(clean, logits).mean()
        return cross_entropy(wide(clean), labels, label_smoothing=smoothing) + pull, logits

    def _craft(self, model, images, labels, clean, generator):
        # A tensor, not a Python condition: the device decides, and nobody waits for it.
        guided = self.weight * torch.randint(2, (), generator=generator, device=images.device)
        corner = drawn(images, lambda corner: corner.bernoulli_(0.5, generator=generator)).sub_(0.5)
        points = corner.mul_(self.eps).add_(images).clamp_(0, 1).requires_grad_()
        with torch.enable_grad():
            logits = model(points)
            climbed = cross_entropy(wide(logits), labels, reduction="sum")
            climbed = climbed + guided * _distance(clean, logits).sum()
        gradient = torch.nan_to_num(torch.autograd.grad(LIFT * climbed, points)[0])
        return points.detach().add_(gradient.sign_(), alpha=self.eps).clamp_(*bounds(images, self.eps))


def _distance(logits, others):
    """Squared distance of the probabilities, for each example (N,): 0 to 2."""
    return (wide(logits).softmax(1) - wide(others).softmax(1)).square().sum(1)
