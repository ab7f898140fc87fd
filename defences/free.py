"""Training on examples that cost nothing: the backward pass of the weights moves the pictures too."""

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from attacks import wide
from attacks.settings import setting
from defences.adversarial import Standard
from defences.single_step import SingleStep


@dataclass(frozen=True)
class Free(SingleStep):
    """Cross-entropy under a perturbation that each training step moves by ε, in its one backward pass.

    Shafahi et al. 2019, arXiv:1904.12843. A batch is shown, with the same shifts and flips, `replays` steps in a
    row. Each step's backward pass gives the gradient of the weights and that of the perturbation, which goes ε
    along its sign, is cut to ±ε and kept for the next step, be it on the same batch or on another. So a step
    costs what one of standard training does. An epoch has as many steps as ever, hence shows 1 / `replays` of the
    pictures: with fewer epochs than `replays` some are never seen.
    """

    replays: int = setting(8, 1, 1000, hint="8 is usual for CIFAR-10, 4 for ImageNet")

    whole_batch = True  # for which the perturbation is kept
    at = Standard.at  # it is the same at all moments

    def loss(self, model, images, labels, *, progress, generator, memory, smoothing=0.0):
        kept = memory.get("perturbation")
        if kept is None or kept.shape != images.shape:  # the first step, or the pictures have grown
            kept = memory["perturbation"] = torch.zeros_like(images)
        perturbation = kept.detach().requires_grad_()  # shares the memory of what is kept
        perturbation.register_hook(lambda gradient: self._move(kept, gradient))
        logits = model((images + perturbation).clamp(0, 1))
        return cross_entropy(wide(logits), labels, label_smoothing=smoothing), logits

    def _move(self, kept, gradient):
        # In float16 a gradient can overflow, and the perturbation stays.
        kept.add_(torch.nan_to_num(gradient.sign()), alpha=self.eps).clamp_(-self.eps, self.eps)
