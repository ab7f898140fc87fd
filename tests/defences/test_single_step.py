"""N-FGSM and guided training: examples of a single step."""

import copy

import pytest
import torch
from one_step import call, given
from small import generator, small_network
from torch.nn.functional import cross_entropy

from attacks import FGSM
from defences import (
    NFGSM,
    Adversarial,
    Free,
    Guided,
)


@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_nfgsm_takes_one_step_from_a_noisy_picture_and_stays_in_the_picture_alone(noise, batch):
    images, labels = batch
    network, before = small_network().train(), small_network().eval()
    seen = given(network)
    loss, logits = NFGSM(eps=0.02, noise=noise).loss(
        network, images, labels, progress=0, generator=generator(), smoothing=0.1
    )
    assert torch.equal(loss, cross_entropy(logits, labels, label_smoothing=0.1))
    (noisy,), (trained,) = seen[False], seen[True]  # one gradient, in eval mode
    assert (noisy - images).abs().max() == pytest.approx(0.02 * noise, abs=2e-4)
    gradient = torch.autograd.grad(cross_entropy(before(noisy.requires_grad_()), labels), noisy)[0]
    assert torch.allclose(trained, (noisy + 0.02 * gradient.sign()).clamp(0, 1), atol=1e-6)
    assert 0 <= trained.min() <= trained.max() <= 1
    outside = ((trained - images).abs() > 0.02 + 1e-6).float().mean()
    assert (outside > 0.2) == bool(noise)  # no projection on ε


def test_nfgsm_without_noise_is_training_with_fgsm(batch):
    network = small_network().eval()
    plain = call(Adversarial(FGSM(eps=0.02)), network, batch)
    assert torch.allclose(call(NFGSM(eps=0.02, noise=0), network, batch), plain)
    assert call(NFGSM(eps=0.02, noise=0, step=2), network, batch) > plain


def test_guided_climbs_and_then_closes_the_distance_of_the_probabilities(batch):
    """Against the paper's formulas, written out, with the guiding term and without it."""
    images, labels = batch
    eps, turns = 0.1, set()
    for seed in range(6):
        network, twin = small_network().train(), small_network().train()
        network[3].p = twin[3].p = 0.0
        seen = given(network)
        source = torch.Generator().manual_seed(seed)
        loss, logits = Guided(eps, 50.0).loss(network, images, labels, progress=0, generator=source)
        (start,), (clean, trained) = seen[False], seen[True]
        assert torch.equal(clean, images)
        corners = (images - eps / 2).clamp(0, 1), (images + eps / 2).clamp(0, 1)
        assert ((start - corners[0]).abs().minimum((start - corners[1]).abs()) < 1e-6).all()
        p = twin(images)  # which moves BatchNorm's statistics, before the step is taken
        before = copy.deepcopy(twin).eval()
        q = twin(trained)
        pull = (p.softmax(1) - q.softmax(1)).square().sum(1).mean()
        assert torch.allclose(loss, cross_entropy(p, labels) + 50 * pull)
        assert torch.allclose(logits, q)
        reached = []
        for weight in (0, 50):
            x = start.clone().requires_grad_()
            far = (before(x).softmax(1) - p.softmax(1).detach()).square().sum()
            (cross_entropy(before(x), labels, reduction="sum") + weight * far).backward()
            reached.append((start + eps * x.grad.sign()).clamp(images - eps, images + eps).clamp(0, 1))
        assert not torch.allclose(*reached)
        turns.add([torch.allclose(trained, each, atol=1e-6) for each in reached].index(True))
    assert turns == {0, 1}


def test_errors_are_clear():
    for wrong in ({"eps": 8}, {"eps": 0}, {"noise": -1}, {"step": 0}):
        name, value = next(iter(wrong.items()))
        with pytest.raises(ValueError, match=f"NFGSM: {name}={value}; a number .* usual"):
            NFGSM(**wrong)
    with pytest.raises(ValueError, match="Guided: weight=-1; a number"):
        Guided(weight=-1)
    for kind in (NFGSM, Guided, Free):
        assert kind(norm="Linf") == kind()
        with pytest.raises(
            ValueError, match=f"{kind.__name__}: norm='L2'; 'Linf' is needed: it is defined for no other"
        ):
            kind(norm="L2")
