"""Losses that bound robust error: accuracy on clean pictures against agreement under attack."""

import math
from dataclasses import dataclass, field

import torch
from torch.nn.functional import cross_entropy

from attacks import PGD, Attack, wide
from attacks.base import LIFT
from attacks.pgd import projection, stepped
from attacks.settings import setting
from defences.adversarial import Adversarial
from processes.data_parallel import drawn


@dataclass(frozen=True)
class TRADES(Adversarial):
    """cross-entropy(x) + β · KL(p(x) ‖ p(x')), where x' drives the two apart: Zhang et al. 2019, arXiv:1901.08573.

    `attack`, a PGD, says how far, in which norm and steps and how many; it climbs the divergence instead of the
    cross-entropy, from Gaussian noise of 0.001 around the picture, as in the paper. So small a change is lost in
    bfloat16, so p(x) and the first step are in the precision of the pictures. Both passes of the update are in
    training mode. The logits are those of x'.
    """

    attack: Attack = field(default_factory=PGD)
    beta: float = setting(6.0, 0, hint="5 or 6 is usual")

    at = Adversarial.at  # its halves hang on the moment by the attack alone, too

    def __post_init__(self):
        super().__post_init__()
        attack = self.attack
        if type(attack) is not PGD or attack.restarts > 1 or not attack.random_start:
            raise ValueError(f"TRADES: attack={attack}; a PGD from a random start, without restarts, is needed")

    def _crafted(self, attack, model, images, labels, generator):
        kind = images.device.type
        computing = {"dtype": torch.get_autocast_dtype(kind), "enabled": torch.is_autocast_enabled(kind)}
        with torch.no_grad(), torch.autocast(kind, enabled=False):
            clean = model(images).softmax(1)
        noise = drawn(images, lambda noise: noise.normal_(0, 0.001, generator=generator))
        adversarial, project = noise.add_(images), projection(images, attack.eps, attack.norm)
        for step in range(attack.steps):
            points = adversarial.detach().requires_grad_()
            with torch.enable_grad(), torch.autocast(kind, **computing | ({} if step else {"enabled": False})):
                logits = model(points)
                ascent = (LIFT * (wide(logits.detach()).softmax(1) - clean)).to(logits.dtype)
                gradient = torch.nan_to_num(torch.autograd.grad(logits, points, ascent)[0])
            project(stepped(adversarial, gradient, attack.step_size, attack.norm))
        return adversarial

    def objective(self, model, images, adversarial, labels, smoothing):
        clean, logits = wide(model(images)), model(adversarial)
        pull = _divergence(clean, wide(logits)).mean()
        return cross_entropy(clean, labels, label_smoothing=smoothing) + self.beta * pull, logits


@dataclass(frozen=True)
class MART(Adversarial):
    """Misclassified pictures weigh more: Wang et al. 2020, ICLR, "Improving Adversarial Robustness Requires
    Revisiting Misclassified Examples".

    -log p_y(x') - log(1 - largest other p(x')) + λ · KL(p(x) ‖ p(x')) · (1 - p_y(x)), where x' is what `attack`
    makes of x. Both passes of the update are in training mode. The logits are those of x'.
    """

    attack: Attack = field(default_factory=PGD)
    weight: float = setting(5.0, 0, hint="5 or 6 is usual")

    at = Adversarial.at

    def objective(self, model, images, adversarial, labels, smoothing):
        clean, logits = wide(model(images)), model(adversarial)
        attacked, index = wide(logits), labels[:, None]
        # The wrong class nearest to winning; log(1 - p) of it is what all the others have together.
        likely = attacked.scatter(1, index, -math.inf).argmax(1, keepdim=True)
        others = attacked.scatter(1, likely, -math.inf).logsumexp(1) - attacked.logsumexp(1)
        sure = clean.softmax(1).gather(1, index)[:, 0]
        pull = (_divergence(clean, attacked) * (1 - sure)).mean()
        boosted = cross_entropy(attacked, labels, label_smoothing=smoothing) - others.mean()
        return boosted + self.weight * pull, logits


def _divergence(clean, attacked):
    """KL(p ‖ q) of the probabilities of two tensors of logits, for each example (N,)."""
    log_p, log_q = clean.log_softmax(1), attacked.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)
