"""What a training step minimises."""

import copy

import pytest
import torch
from small import small_network
from torch import nn
from torch.nn.functional import cross_entropy

import models
from attacks import FGSM, PGD
from defences import (
    AWP,
    L2SP,
    MART,
    NFGSM,
    TRADES,
    Adversarial,
    FeatureDistillation,
    Free,
    Guided,
    Penalty,
    Standard,
    innermost,
    moment,
)


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


@pytest.mark.parametrize("kind", [TRADES, MART])
def test_the_pull_grows_with_its_weight_and_the_pictures_stay_within_eps(kind, batch):
    network, (name, usual) = small_network(), {TRADES: ("beta", 6.0), MART: ("weight", 5.0)}[kind]
    defences = [kind(PGD(eps=0.02), **{name: w}) for w in (0, usual, 2 * usual)]
    losses = [call(defence, network.eval(), batch).item() for defence in defences]
    assert losses[1] - losses[0] == pytest.approx(losses[2] - losses[1], rel=0.01)
    assert losses[1] > losses[0]
    assert losses[1] == call(kind(PGD(eps=0.02)), network, batch).item()
    seen = given(network.train())
    kind(PGD(eps=0.02)).loss(network, *batch, progress=0, generator=generator())
    clean, adversarial = seen[True]
    assert torch.equal(clean, batch[0])
    assert 0.019 < (adversarial - clean).abs().max() <= 0.02 + 1e-6
    assert 0 <= adversarial.min() <= adversarial.max() <= 1


def test_trades_begins_in_the_precision_of_the_pictures(batch):
    """Noise of 0.001, and what it does to the logits, would be lost in bfloat16."""
    network, kinds = small_network().eval(), []
    network[6].register_forward_hook(lambda module, inputs, out: kinds.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        TRADES(PGD(steps=3)).loss(network, *batch, progress=1, generator=generator())
    assert kinds == [torch.float32] * 2 + [torch.bfloat16] * 4  # clean, first step; two steps, both passes


def test_mart_on_logits_that_leave_no_probability_is_finite(batch):
    class Sure(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1e4))

        def forward(self, images):
            return self.scale * images.flatten(1)[:, :4]

    network = Sure()
    for defence in (MART(PGD(steps=1)), TRADES(PGD(steps=1)), AWP(MART(PGD(steps=1)))):
        loss, _ = defence.loss(network, *batch, progress=0, generator=generator())
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(network.scale.grad)


def test_awp_leaves_weights_and_statistics_as_they_were_and_frozen_layers_alone(batch):
    network, plain = small_network().train(), small_network().train()
    for one in (network, plain):
        one[3].p = 0.0
        one[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    loss, _ = AWP(Standard(), 0.1).loss(network, *batch, progress=0, generator=generator())
    loss.backward()
    calm, _ = Standard().loss(plain, *batch, progress=0, generator=generator())
    calm.backward()
    assert loss > calm
    assert network[0].weight.grad is None
    assert not torch.allclose(network[6].weight.grad, plain[6].weight.grad)
    for name, value in network.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name  # BatchNorm has moved once, as for the other
        assert torch.equal(value, before[name]) == ("running" not in name and "num_batches" not in name), name
    assert torch.equal(call(AWP(Standard(), 0), network.eval(), batch), call(Standard(), network, batch))


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


def given(network):
    """Collects what a network is given in training mode, and what in eval mode."""
    seen = {True: [], False: []}
    network.register_forward_pre_hook(
        lambda module, inputs: seen[module.training].append(inputs[0].detach().clone())
    )
    return seen


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


def small_model(seed=0):
    return models.build("resnet18", 4, width=2, seed=seed).eval()


def call(defence, model, batch):
    return defence.loss(model, *batch, progress=0.5, generator=generator())[0]


@pytest.mark.parametrize("kind", [L2SP, FeatureDistillation])
@pytest.mark.parametrize("inner", [Standard(), Adversarial(PGD(steps=1, step_size=0.02))])
def test_a_pull_to_the_source_is_zero_at_the_source_and_grows(kind, inner, batch):
    source = small_model()
    assert torch.allclose(call(kind(inner, source), source, batch), call(inner, source, batch))
    other = small_model(1)
    pulls = [call(kind(inner, source, s), other, batch) - call(inner, other, batch) for s in (0.5, 1.0)]
    assert pulls[0] > 0
    assert torch.allclose(2 * pulls[0], pulls[1], rtol=1e-3)
    assert all(weight.grad is None for weight in source.parameters())


def test_l2sp_is_the_distance_of_everything_but_the_head(batch):
    source, other = small_model(), small_model(1)
    pull = call(L2SP(Standard(), source, 2.0), other, batch) - call(Standard(), other, batch)
    pairs = zip(source.named_parameters(), other.parameters(), strict=True)
    expected = sum((a - b).square().sum().item() for (name, a), b in pairs if ".head." not in name)
    assert pull.item() == pytest.approx(expected, rel=1e-4)


def test_feature_distillation_is_the_length_of_the_change(batch):
    source, other = small_model(), small_model(1)
    pull = call(FeatureDistillation(Standard(), source, 1.0), other, batch) - call(Standard(), other, batch)
    features = [
        model.network.stages(model.network.stem(model.normalise(batch[0]))).mean((2, 3))
        for model in (source, other)
    ]
    assert pull.item() == pytest.approx((features[0] - features[1]).norm(dim=1).mean().item(), rel=1e-4)


def test_errors_are_clear():
    for wrong in ({"defence": "pgd"}, {"source": None}):
        with pytest.raises(TypeError, match=next(iter(wrong))):
            L2SP(**({"defence": Standard(), "source": small_model()} | wrong))
    with pytest.raises(ValueError, match="strength=-1"):
        FeatureDistillation(Standard(), small_model(), -1)

    with pytest.raises(TypeError, match="an attack is needed"):
        Adversarial("pgd")
    for ramp in (2, (0.5, 0.2), (0.1, 0.2, 0.3), "half", (0.2, 1.5), None):
        with pytest.raises(ValueError, match=r"ramp=.*from where to where"):
            TRADES(PGD(), ramp=ramp)
    for attack in (FGSM(), PGD(norm="L2", eps=0.5), PGD(restarts=2)):
        with pytest.raises(ValueError, match="a PGD in L∞, from a random start, without restarts"):
            TRADES(attack)
    with pytest.raises(ValueError, match="TRADES: beta=-1"):
        TRADES(beta=-1)
    with pytest.raises(ValueError, match="MART: weight="):
        MART(weight=float("nan"))
    with pytest.raises(ValueError, match="from a random start"):
        TRADES(PGD(random_start=False))
    with pytest.raises(ValueError, match="ramp=True"):
        Adversarial(PGD(), ramp=True)
    with pytest.raises(ValueError, match="AWP: gamma=1"):
        AWP(Standard(), 1)

    class Own(Adversarial):
        def loss(self, model, images, labels, **rest):
            return super().loss(model, images, labels, **rest)

    for inner in (Free(), Guided(), L2SP(Standard(), small_model()), Own(PGD())):
        with pytest.raises(TypeError, match="has a loss that is not made of the halves"):
            AWP(inner)
    with pytest.raises(ValueError, match="grow=-1"):
        Adversarial(PGD(), grow=-1)
    with pytest.raises(ValueError, match=r"FGSM\(ε=8/255\) has no `steps`"):
        Adversarial(FGSM(), grow=0.5)
    for wrong in ({"eps": 8}, {"eps": 0}, {"noise": -1}, {"step": 0}):
        name, value = next(iter(wrong.items()))
        with pytest.raises(ValueError, match=f"NFGSM: {name}={value}; a number .* usual"):
            NFGSM(**wrong)
    with pytest.raises(ValueError, match="Guided: weight=-1; a number"):
        Guided(weight=-1)
    with pytest.raises(ValueError, match=r"Free: replays=0.5; a whole number"):
        Free(replays=0.5)
