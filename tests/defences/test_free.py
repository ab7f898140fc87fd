"""Free adversarial training."""

import pytest
import torch
from small import generator, small_network
from torch import nn
from torch.nn.functional import cross_entropy

from defences import (
    Free,
    Penalty,
)


def test_free_is_the_textbook_loop(batch):
    """Four steps of weights and perturbation at once, against both gradients taken by hand."""
    images, labels = batch
    ours, plain = small_network().eval(), small_network().eval()
    memory, perturbation = {}, torch.zeros_like(images)
    for step in range(4):
        loss, logits = Free(eps=0.06).loss(
            ours, images, labels, progress=0, generator=generator(), memory=memory, smoothing=0.1
        )
        loss.backward()
        moved = perturbation.requires_grad_()
        expected = plain((images + moved).clamp(0, 1))
        assert torch.allclose(logits, expected, atol=1e-5), step
        expected = cross_entropy(expected, labels, label_smoothing=0.1)
        gradient, *gradients = torch.autograd.grad(expected, [moved, *plain.parameters()])
        perturbation = (moved + 0.06 * gradient.sign()).detach().clamp(-0.06, 0.06)
        assert torch.allclose(memory["perturbation"], perturbation)
        with torch.no_grad():
            for one, other, slope in zip(ours.parameters(), plain.parameters(), gradients, strict=True):
                assert torch.allclose(one.grad, slope, atol=1e-6)
                one -= 0.1 * one.grad
                other -= 0.1 * slope
                one.grad = None


def test_free_changes_what_it_keeps_in_place_and_begins_anew_for_pictures_of_another_size(batch):
    memory, network = {}, nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 4))
    kept = []
    for images in (batch[0], batch[0], batch[0][..., ::2, ::2]):
        common = {"progress": 0, "generator": generator(), "memory": memory}
        Penalised(Free(), network, 1.0).loss(network, images, batch[1], **common)[0].backward()
        kept.append(memory["perturbation"])
    assert kept[0] is kept[1]
    assert kept[2].shape == (32, 3, 4, 4)
    assert all(each.abs().max() == pytest.approx(8 / 255) for each in kept)


class Penalised(Penalty):
    """A pull that pulls nowhere: what the other defence does passes through it."""

    def distance(self, model, images, source):
        return 0.0


def test_errors_are_clear():
    with pytest.raises(ValueError, match=r"Free: replays=0.5; a whole number"):
        Free(replays=0.5)
