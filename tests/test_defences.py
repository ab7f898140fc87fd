"""What a training step minimises."""

import pytest
import torch
from conftest import small_network
from torch.nn.functional import cross_entropy

from attacks import FGSM, PGD
from defences import Adversarial, Standard


@pytest.fixture
def batch(blobs):
    return blobs.train.batch(torch.arange(32))


def generator():
    return torch.Generator().manual_seed(0)


def test_standard_is_cross_entropy(batch):
    network = small_network().eval()
    images, labels = batch
    loss, logits = Standard().loss(network, images, labels, progress=0.5, generator=generator(), smoothing=0.1)
    assert torch.equal(logits, network(images))
    assert torch.equal(loss, cross_entropy(logits, labels, label_smoothing=0.1))


def test_adversarial_is_cross_entropy_on_what_the_attack_makes_of_this_model(batch):
    network = small_network().eval()
    images, labels = batch
    attack = PGD(steps=2)
    loss, _ = Adversarial(attack).loss(network, images, labels, progress=0, generator=generator())
    by_hand = attack(network, images, labels, generator=generator())
    assert torch.equal(loss, cross_entropy(network(by_hand), labels))
    assert loss > cross_entropy(network(images), labels)


def test_crafting_leaves_batchnorm_alone_and_the_update_does_not(batch):
    network = small_network().train()
    seen = []
    network[1].register_forward_hook(lambda module, *_: seen.append(module.training))
    Adversarial(PGD(steps=3)).loss(network, *batch, progress=0, generator=generator())
    assert seen == [False, False, False, True]
    assert network.training
    assert int(network[1].num_batches_tracked) == 1


def test_ramp_raises_eps_and_step_size_together():
    defence = Adversarial(PGD(eps=0.04, step_size=0.01), ramp=0.5)
    assert defence._attack_at(0) is None
    assert defence._attack_at(0.25).eps == pytest.approx(0.02)
    assert defence._attack_at(0.25).step_size == pytest.approx(0.005)
    assert defence._attack_at(0.5) is defence.attack
    assert Adversarial(FGSM(eps=0.04), ramp=1)._attack_at(0.5).eps == pytest.approx(0.02)


def test_errors_are_clear():
    with pytest.raises(TypeError, match="an attack is needed"):
        Adversarial("pgd")
    with pytest.raises(ValueError, match="ramp=2"):
        Adversarial(PGD(), ramp=2)
