"""Standard and adversarial training, how ε and the steps grow, and what goes around another defence."""

import pytest
import torch
from one_step import call, given, small_model
from small import generator, small_network
from torch.nn.functional import cross_entropy

from attacks import FGSM, PGD
from defences import (
    AWP,
    L2SP,
    MART,
    NFGSM,
    TRADES,
    Adversarial,
    Free,
    Standard,
    innermost,
    moment,
)


def test_standard_is_cross_entropy(batch):
    network = small_network().eval()
    images, labels = batch
    loss, logits = Standard().loss(network, images, labels, progress=0.5, generator=generator(), smoothing=0.1)
    assert torch.equal(logits, network(images))
    assert torch.equal(loss, cross_entropy(logits, labels, label_smoothing=0.1))


@pytest.mark.parametrize("defence", [NFGSM(), Free(), Adversarial(PGD(steps=2))])
def test_what_is_trained_on_has_smoothed_labels(defence, batch):
    common = {"progress": 1, "generator": generator(), "memory": {}, "smoothing": 0.1}
    loss, logits = defence.loss(small_network().eval(), *batch, **common)
    assert torch.equal(loss, cross_entropy(logits, batch[1], label_smoothing=0.1))


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


def test_a_pair_says_from_where_to_where_eps_rises(batch):
    defence = Adversarial(PGD(eps=0.04, step_size=0.01), ramp=(0.25, 0.75))
    assert defence._attack_at(0.1) is defence._attack_at(0.25) is None
    assert defence._attack_at(0.5).eps == pytest.approx(0.02)
    assert defence._attack_at(0.5).step_size == pytest.approx(0.005)
    assert defence._attack_at(0.75) is defence.attack
    assert Adversarial(FGSM(eps=0.04), ramp=(0.5, 0.5))._attack_at(0.5).eps == 0.04
    assert Adversarial(FGSM(eps=0.04), ramp=(0.5, 0.5))._attack_at(0.4) is None
    assert Adversarial(FGSM(eps=0.04), ramp=(0.25, 0.75)).single_step_eps(0.5) == pytest.approx(0.02)
    network = small_network().eval()
    for kind in (Adversarial, TRADES, MART):  # while ε is 0
        early = kind(PGD(), ramp=(0.6, 1))
        assert torch.equal(call(early, network, batch), call(Standard(), network, batch))
        assert moment(early, 0.5) == Standard()
        assert moment(early, 1.0) == kind(PGD())
        assert not torch.equal(call(kind(PGD()), network, batch), call(Standard(), network, batch))


def test_wrappers_stack_and_know_what_is_inside(batch):
    source = small_model()
    stacked = L2SP(AWP(TRADES(PGD(steps=2), ramp=(0.2, 0.4))), source)
    assert innermost(stacked) == TRADES(PGD(steps=2), ramp=(0.2, 0.4))
    assert moment(stacked, 0.1) == L2SP(AWP(Standard()), source)
    assert moment(stacked, 0.5) == L2SP(AWP(TRADES(PGD(steps=2))), source)
    assert moment(stacked, 0.5) is not None
    assert torch.isfinite(call(stacked, small_model(1), batch))
    assert L2SP(Free(replays=3), source).replays == 3

    class Own(Adversarial):
        def objective(self, model, images, adversarial, labels, smoothing):
            return super().objective(model, images, adversarial, labels, smoothing)

    assert moment(Own(PGD()), 1) is None  # what it does at a moment is not known
    assert moment(AWP(Own(PGD())), 1) is None


def test_grow_raises_the_steps_evenly(batch):
    defence = Adversarial(PGD(eps=0.04, step_size=0.01, steps=4), ramp=0.2, grow=0.6)
    steps = [defence._attack_at(k / 100).steps for k in range(1, 101)]
    assert steps == sorted(steps)
    assert [steps.count(k) for k in (1, 2, 3)] == pytest.approx([20, 20, 20], abs=1)
    assert defence._attack_at(0.6) is defence._attack_at(1) is defence.attack
    assert (defence._attack_at(0.1).eps, defence._attack_at(0.1).steps) == (pytest.approx(0.02), 1)
    network = small_network().train()
    seen = given(network)
    defence.loss(network, *batch, progress=0.45, generator=generator())
    assert len(seen[False]) == 3


def test_errors_are_clear():
    with pytest.raises(TypeError, match="an attack is needed"):
        Adversarial("pgd")
    for ramp in (2, (0.5, 0.2), (0.1, 0.2, 0.3), "half", (0.2, 1.5), None, True):
        with pytest.raises(ValueError, match=r"ramp=.*from where to where"):
            TRADES(PGD(), ramp=ramp)
    with pytest.raises(ValueError, match="grow=-1"):
        Adversarial(PGD(), grow=-1)
    with pytest.raises(ValueError, match=r"FGSM\(ε=8/255\) has no `steps`"):
        Adversarial(FGSM(), grow=0.5)
