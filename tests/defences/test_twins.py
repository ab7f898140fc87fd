"""Every defence beside its reference twin: the same, written plainly, slowly, from the paper's formulas.

Both train a network for twenty steps on random pictures, and must reach the same weights. In float64: in float32
the signs of tiny gradients hang on the order of additions, and drive runs apart.
"""

import copy

import pytest
import torch
from small import tiny_resnet
from torch.nn.functional import cross_entropy, kl_div, log_softmax, nll_loss, one_hot, softmax

import models
from attacks import PGD
from benchmarks.peers import usual_network
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
    Standard,
)
from training.recipe import Recipe
from training.step import State, train_step

EPS, STEP = 8 / 255, 2 / 255
STEPS, BATCH = 20, 8


def inside(points, images, eps=EPS):
    return torch.clamp(torch.min(torch.max(points, images - eps), images + eps), 0, 1)


def climb(points, images, loss, step=STEP, steps=10, eps=EPS):
    """Steps along the sign of the gradient of a loss, back into the ball after each."""
    for _ in range(steps):
        points = points.detach().requires_grad_()
        gradient = torch.autograd.grad(loss(points), points)[0]
        points = inside(points.detach() + step * gradient.sign(), images, eps)
    return points


def climb_in_l2(points, images, loss, eps=0.5, steps=10):
    """Steps of 2.5 ε / steps along the gradient, shortened to ε and cut at [0, 1] after each."""
    for _ in range(steps):
        points = points.detach().requires_grad_()
        gradient = torch.autograd.grad(loss(points), points)[0]
        change = points.detach() + 2.5 * eps / steps * gradient / length(gradient) - images
        points = (images + change * (eps / length(change)).clamp(max=1)).clamp(0, 1)
    return points


def length(pictures):
    return pictures.flatten(1).norm(dim=1)[:, None, None, None]


class Twin:
    """Plain training: what a subclass says of the loss, then its gradient for every weight."""

    def __init__(self, model, source):
        self.model, self.source = model, source

    def backward(self, images, labels, progress, generator):
        self.model.eval()
        adversarial = self.craft(images, labels, progress, generator).detach()
        self.model.train()
        self.loss(images, adversarial, labels).backward()

    def craft(self, images, labels, progress, generator):
        return images

    def loss(self, images, adversarial, labels):
        return cross_entropy(self.model(adversarial), labels)


class Madry(Twin):
    climb = staticmethod(climb)

    def craft(self, images, labels, progress, generator):
        return self.climb(images, images, lambda points: cross_entropy(self.model(points), labels))


class Scheduled(Twin):
    """ε is 0 for the first quarter, full for the last, and rises evenly in between."""

    def craft(self, images, labels, progress, generator):
        strength = min(1, max(0, (progress - 0.25) / 0.5))
        if strength == 0:
            return images
        loss = lambda points: cross_entropy(self.model(points), labels)  # noqa: E731
        return climb(images, images, loss, STEP * strength, eps=EPS * strength)


class Trades(Twin):
    """Zhang et al. 2019, arXiv:1901.08573."""

    climb = staticmethod(climb)

    def craft(self, images, labels, progress, generator):
        clean = softmax(self.model(images), 1).detach()
        start = images + torch.empty_like(images).normal_(generator=generator) * 0.001
        divergence = lambda points: kl_div(log_softmax(self.model(points), 1), clean, reduction="sum")  # noqa: E731
        return self.climb(start, images, divergence)

    def loss(self, images, adversarial, labels):
        clean = self.model(images)
        attacked = self.model(adversarial)
        pull = kl_div(log_softmax(attacked, 1), softmax(clean, 1), reduction="batchmean")
        return cross_entropy(clean, labels) + 6 * pull


class Mart(Madry):
    """Wang et al. 2020, ICLR."""

    def loss(self, images, adversarial, labels):
        clean, attacked = softmax(self.model(images), 1), softmax(self.model(adversarial), 1)
        truth = one_hot(labels, clean.shape[1]).bool()
        boosted = -attacked[truth].log() - (1 - attacked.masked_fill(truth, 0).amax(1)).log()
        pull = (clean * (clean.log() - attacked.log())).sum(1)
        return (boosted + 5 * pull * (1 - clean[truth])).mean()


class NoisyFgsm(Twin):
    """De Jorge et al. 2022, arXiv:2202.01181."""

    def craft(self, images, labels, progress, generator):
        noise = torch.empty_like(images).uniform_(-2 * EPS, 2 * EPS, generator=generator)
        noisy = (images + noise).clamp(0, 1).requires_grad_()
        gradient = torch.autograd.grad(cross_entropy(self.model(noisy), labels), noisy)[0]
        return (noisy + EPS * gradient.sign()).clamp(0, 1)


class FreeTwin(Twin):
    """Shafahi et al. 2019, arXiv:1904.12843."""

    perturbation = None

    def backward(self, images, labels, progress, generator):
        if self.perturbation is None:
            self.perturbation = torch.zeros_like(images)
        moved = self.perturbation.clone().requires_grad_()
        self.model.train()
        cross_entropy(self.model((images + moved).clamp(0, 1)), labels).backward()
        self.perturbation = (self.perturbation + EPS * moved.grad.sign()).clamp(-EPS, EPS)


class GuidedTwin(Twin):
    """Sriramanan et al. 2020, arXiv:2011.14969, the guiding term left out at random steps."""

    def backward(self, images, labels, progress, generator):
        self.model.train()
        clean = self.model(images)
        self.model.eval()
        guided = 10 * torch.randint(2, (), generator=generator)
        corner = torch.empty_like(images).bernoulli_(0.5, generator=generator) - 0.5
        start = (images + EPS * corner).clamp(0, 1).requires_grad_()
        logits = self.model(start)
        far = (softmax(logits, 1) - softmax(clean, 1).detach()).square().sum()
        loss = nll_loss(log_softmax(logits, 1), labels, reduction="sum") + guided * far
        gradient = torch.autograd.grad(loss, start)[0]
        adversarial = inside(start.detach() + EPS * gradient.sign(), images)
        self.model.train()
        attacked = self.model(adversarial)
        pull = (softmax(clean, 1) - softmax(attacked, 1)).square().sum(1).mean()
        (cross_entropy(clean, labels) + 10 * pull).backward()


class Near(Twin):
    """Li et al. 2018, arXiv:1802.01483: all weights but the last two, the head's."""

    def loss(self, images, adversarial, labels):
        pairs = list(zip(self.model.parameters(), self.source.parameters(), strict=True))[:-2]
        return super().loss(images, adversarial, labels) + 0.01 / 2 * sum((w - v).square().sum() for w, v in pairs)


class Distilled(Trades):
    """Shafahi et al. 2020, arXiv:1905.08232, around TRADES."""

    def loss(self, images, adversarial, labels):
        loss = super().loss(images, adversarial, labels)
        kept = features(self.model, images) - features(self.source.eval(), images).detach()
        return loss + 0.1 * kept.norm(dim=1).mean()


def features(model, images):
    normalise, network = model
    return network.stages(network.stem(normalise(images))).mean((2, 3))


def perturbed(twin):
    """Wu et al. 2020, arXiv:2004.05884, around another twin: up, backward, down again."""

    class Perturbed(twin):
        def backward(self, images, labels, progress, generator):
            self.model.eval()
            adversarial = self.craft(images, labels, progress, generator).detach()
            self.model.train()
            proxy = twin(copy.deepcopy(self.model), self.source)
            proxy.loss(images, adversarial, labels).backward()
            ups = [
                0.005 * w.detach().norm() * p.grad / p.grad.norm() if w.ndim > 1 else torch.zeros_like(w)
                for w, p in zip(self.model.parameters(), proxy.model.parameters(), strict=True)
            ]
            self.move(ups, 1)
            self.loss(images, adversarial, labels).backward()
            self.move(ups, -1)

        @torch.no_grad()
        def move(self, ups, sign):
            for weight, up in zip(self.model.parameters(), ups, strict=True):
                weight += sign * up

    return Perturbed


def in_l2(twin):
    return type("InL2", (twin,), {"climb": staticmethod(climb_in_l2)})


SOURCE = tiny_resnet(1).double()
STILL = PGD(random_start=False)
TWINS = {
    "standard": (Standard(), Twin),
    "pgd": (Adversarial(STILL), Madry),
    "epsilon scheduling": (Adversarial(STILL, ramp=(0.25, 0.75)), Scheduled),
    "trades": (TRADES(), Trades),
    "pgd in L2": (Adversarial(PGD(norm="L2", random_start=False)), in_l2(Madry)),
    "trades in L2": (TRADES(PGD(norm="L2")), in_l2(Trades)),
    "mart": (MART(STILL), Mart),
    "n-fgsm": (NFGSM(), NoisyFgsm),
    "free": (Free(), FreeTwin),
    "guided": (Guided(), GuidedTwin),
    "l2sp": (L2SP(Standard(), SOURCE), Near),
    "feature distillation": (FeatureDistillation(TRADES(), SOURCE), Distilled),
    "awp": (AWP(Adversarial(STILL)), perturbed(Madry)),
    "awp on standard": (AWP(Standard()), perturbed(Twin)),
    "awp on trades": (AWP(TRADES()), perturbed(Trades)),
    "awp on mart": (AWP(MART(STILL)), perturbed(Mart)),
    "awp on n-fgsm": (AWP(NFGSM()), perturbed(NoisyFgsm)),
}


def together(ours, defence, twin, side=8, **settings):
    """Twenty steps of ours and of its twin on the same random pictures; last, the twin's weights after each."""
    recipe = Recipe(
        epochs=1, learning_rate=0.05, schedule="constant", defence=defence, precision="float32", **settings
    )
    plain = twin(usual_network(ours).double(), usual_network(SOURCE).double())
    state = State(ours.train(), recipe, STEPS, torch.device("cpu"))
    trains = [w for w in plain.model.parameters() if w.requires_grad]
    optimizer = torch.optim.SGD(trains, lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    draw, seen = torch.Generator().manual_seed(0), []
    for step in range(STEPS):
        images = torch.rand(BATCH, 3, side, side, generator=draw, dtype=torch.float64)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = torch.randint(10, (BATCH,), generator=draw)
        state.generator.manual_seed(step)
        train_step(state, images, labels)
        state.step += 1
        optimizer.zero_grad()
        plain.backward(images, labels, step / STEPS, torch.Generator().manual_seed(step))
        optimizer.step()
        seen.append([value.clone() for value in plain.model.state_dict().values()])
    return state, plain, seen


def apart(one, other):
    """The largest difference of any weight or statistic; counters of batches are left out."""
    one, other = ([v for v in values if v.is_floating_point()] for values in (one.state_dict().values(), other))
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", TWINS)
def test_twenty_steps_reach_the_weights_of_the_twin(name):
    defence, twin = TWINS[name]
    ours = tiny_resnet().double()
    state, plain, _ = together(ours, defence, twin)
    assert apart(state.model, plain.model.state_dict().values()) < 1e-6
    assert apart(tiny_resnet().double(), state.model.state_dict().values()) > 0.01


def test_the_shallow_network_reaches_the_weights_of_the_textbook():
    ours = models.build("shallow_cnn", 10).double()
    state, plain, _ = together(ours, *TWINS["pgd"], side=32)
    assert furthest(state.model, plain.model) < 1e-6
    assert furthest(ours, models.build("shallow_cnn", 10).double()) > 0.01


def furthest(one, other):
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.mark.parametrize("average", [{"ema": 0.9}, {"swa": 0.5}], ids=str)
def test_averages_of_the_weights(average):
    state, _, seen = together(tiny_resnet().double(), *TWINS["standard"], **average)
    if "swa" in average:
        mean = [torch.stack(values).double().mean(0) for values in zip(*seen[STEPS // 2 :], strict=True)]
    else:
        start = usual_network(tiny_resnet().double()).state_dict().values()
        mean = [value.double().clone() for value in start]
        for step, values in enumerate(seen):
            decay = min(0.9, (1 + step) / (10 + step))
            mean = [decay * old + (1 - decay) * new for old, new in zip(mean, values, strict=True)]
    kinds = [v.is_floating_point() for v in seen[0]]
    floating = [value for value, kind in zip(mean, kinds, strict=True) if kind]
    assert apart(state.result(), floating) < 1e-6
