"""Restarts, random starts and targets."""

import pytest
import torch
from small import pictures
from torch import nn

from attacks import (
    PGD,
)


def test_noise_differs_between_seeds_and_calls(network):
    images, labels = pictures()
    attack = PGD(steps=1, step_size=1 / 255)
    assert not torch.equal(attack(network, images, labels), attack(network, images, labels))


def test_restarts_only_help(network):
    images, _ = pictures(64)
    labels = network.eval()(images).argmax(1)
    fooled = []
    for restarts in (1, 5):
        attack = PGD(eps=3 / 255, step_size=3 / 255, steps=1, restarts=restarts)
        found = attack(network, images, labels, generator=torch.Generator().manual_seed(0))
        fooled.append(network(found).argmax(1) != labels)
    assert (fooled[1] | ~fooled[0]).all()
    assert fooled[1].sum() >= fooled[0].sum()


def test_targets_are_approached(network):
    images, labels = pictures(32)
    targets = (labels + 1) % 4
    network.eval()
    adversarial = PGD(eps=64 / 255, step_size=8 / 255)(network, images, labels, targets=targets)
    assert (network(adversarial).argmax(1) == targets).float().mean() > 0.9


@pytest.mark.parametrize(("restarts", "norm"), [(1, "Linf"), (2, "Linf"), (4, "Linf"), (3, "L2")])
def test_it_runs_as_often_as_it_is_told_and_only_on_what_stands(restarts, norm, network):
    """A network that no attack moves is attacked `restarts` times `steps`; one that has lost is left alone."""
    images, _ = pictures()
    sizes = []

    class Counted(nn.Module):
        def __init__(self, right):
            super().__init__()
            self.right = right

        def forward(self, x):
            if torch.is_grad_enabled():
                sizes.append(len(x))
            logits = torch.zeros(len(x), 4).scatter(1, self.right[: len(x), None], 1.0)
            return logits + 1e-9 * x.flatten(1)[:, :4]

    labels = torch.zeros(len(images), dtype=torch.int64)
    attack = PGD(steps=3, restarts=restarts, norm=norm)
    attack(Counted(labels), images, labels)
    assert sizes == [6] * 3 * restarts
    sizes.clear()
    attack(Counted(labels + 1), images, labels)  # wrong from the first
    assert sizes == [6] * 3
    assert attack.label == ("PGD-3" if restarts == 1 else f"PGD-3×{restarts}")


def test_restarts_need_a_random_start():
    with pytest.raises(ValueError, match="restarts from the same point find the same example"):
        PGD(restarts=2, random_start=False)
    assert PGD(restarts=1, random_start=False).restarts == 1
