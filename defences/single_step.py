"""Training on examples that a single step makes: as cheap as two epochs of standard training are."""

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from attacks import evaluating, input_gradient
from attacks.base import check_setting


@dataclass(frozen=True)
class NFGSM:
    """Cross-entropy on examples of one step from a noisy picture, which may lie outside ε.

    De Jorge et al. 2022, "Make Some Noise", arXiv:2202.01181. The noise is uniform in ±noise · ε, the step is
    step · ε along the sign of the gradient at the noisy picture. Nothing is projected on ε, so this is no attack:
    that and the strong noise keep the network from learning to fool a single step. While crafting, BatchNorm is
    in eval mode.
    """

    eps: float = 8 / 255
    noise: float = 2.0
    step: float = 1.0

    def __post_init__(self):
        check_setting(self, "eps", 0, 1, open_low=True, hint="8/255 is usual; a plain 8 forgets the division")
        check_setting(self, "noise", 0, math.inf, hint="A multiple of ε: 2 is usual")
        check_setting(self, "step", 0, math.inf, open_low=True, hint="A multiple of ε: 1 is usual")

    def loss(self, model, images, labels, *, progress, generator, smoothing=0.0):
        reach = self.noise * self.eps
        noise = torch.empty_like(images).uniform_(-reach, reach, generator=generator)
        noisy = noise.add_(images).clamp_(0, 1)
        with evaluating(model):
            gradient = input_gradient(model, noisy, labels)
        logits = model(noisy.add_(gradient.sign_(), alpha=self.step * self.eps).clamp_(0, 1))
        return cross_entropy(logits.float(), labels, label_smoothing=smoothing), logits
