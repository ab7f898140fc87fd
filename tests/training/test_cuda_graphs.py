"""Steps as graphs: when one is captured, what it is given, and what happens where it cannot be.

The machine that runs the tests may have no CUDA: a stand-in records what would be captured and replays it.
"""

import math
from dataclasses import dataclass

import pytest
import torch
from small import small_network

from attacks import DIFGSM, FGSM, MIFGSM, NIFGSM, PGD, SINIFGSM, TIFGSM, VMIFGSM, VNIFGSM
from defences import AWP, MART, NFGSM, TRADES, Adversarial, Free, Guided, Standard, innermost, with_sizes
from processes.seeds import seed_global
from trainer import Recipe
from training import cuda_graphs
from training import step as steps
from training.cuda_graphs import WARM_UP, Graphed


class Recorded(Graphed):
    """Captures by remembering the function, and replays by calling it on the memory that it was captured with."""

    def __init__(self, generator, name):
        super().__init__(generator, name)
        self.possible, self.captures, self.replays = True, 0, 0

    def _capture(self, function, tensors):
        self.captures += 1
        self.inputs = [tensor.clone() for tensor in tensors]
        self.outputs = [torch.empty(0)]

        def replay():
            self.replays += 1
            self.outputs = function(*self.inputs)

        self.replay = replay


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "_beside", lambda function, tensors: function(*tensors))
    monkeypatch.setattr(steps, "Graphed", Recorded)


def test_calls_that_are_alike_are_captured_and_others_are_not(recorded):
    graphed = Recorded(torch.Generator(), "a run")
    ones = torch.ones(3)
    for count in range(1, 8):
        assert torch.equal(graphed("same", lambda x: (2 * x,), count * ones)[0], 2 * count * ones)
    assert (graphed.captures, graphed.replays) == (1, 7 - WARM_UP)
    for count in range(8):
        graphed(f"other {count}", lambda x: (x,), ones)
    for count in range(1, WARM_UP + 1):
        graphed("same", lambda x: (x,), torch.ones(count))  # other shapes
    assert graphed.captures == 1
    for _ in range(WARM_UP):
        graphed("same", lambda x: (x,), torch.ones(WARM_UP))
    assert graphed.captures == 2


RISING = (
    FGSM(),
    FGSM(norm="L2", eps=0.5),
    PGD(steps=2),
    PGD(steps=2, norm="L2", eps=0.5, step_size=0.2),
    MIFGSM(steps=2),
    NIFGSM(steps=2),
    VMIFGSM(steps=2),
    VNIFGSM(steps=2),
    DIFGSM(steps=2),
    SINIFGSM(steps=2),
    TIFGSM(steps=2, kernel=3),
)


CUDA = [pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else []


@pytest.mark.parametrize("device", ["cpu", *CUDA])
@pytest.mark.parametrize(
    ("defence", "captures"),
    [
        (Standard(), 1),
        (Adversarial(PGD(steps=2)), 1),
        (Adversarial(PGD(steps=2), ramp=0.5), 1),
        (Adversarial(PGD(steps=2), ramp=(0.4, 1.0)), 2),  # before ε rises, steps are standard
        (Adversarial(PGD(steps=2), ramp=1.0, grow=0.5), 2),  # a graph for each number of steps
        (NFGSM(), 1),
        (Guided(), 1),
        (Free(replays=2), 1),
        (TRADES(PGD(steps=2)), 1),
        (AWP(MART(PGD(steps=2), ramp=0.5)), 1),
        (TRADES(PGD(steps=2), ramp=1.0), 1),
        *((Adversarial(attack, ramp=1.0), 1) for attack in RISING),
    ],
    ids=str,
)
def test_replayed_steps_reach_the_same_weights(request, blobs, defence, captures, device):
    """With CUDA by a graph itself, elsewhere by its stand-in, which is exact."""
    cuda, device = device == "cuda", torch.device(device)
    if not cuda:
        request.getfixturevalue("recorded")

    def trained(graph):
        torch.manual_seed(0)
        recipe = Recipe(epochs=4, batch_size=64, defence=defence, ema=0.9, precision="float32")
        state = steps.State(small_network().to(device).train(), recipe, 4, device)
        state.graphed.possible = graph
        for step in range(state.total):
            state.generator.manual_seed(step)
            images, labels = blobs.train.batch(torch.arange(64) + 64 * (step % 4))
            seed_global(step, device)
            state.losses[step % 4], _ = steps.train_step(state, images.to(device), labels.to(device))
            state.step += 1
        return state

    plain, replayed = trained(False), trained(True)
    assert (replayed.graphed.replay is not None) == bool(captures)
    if not cuda:
        assert replayed.graphed.captures == captures
    # On an H100 TRADES' losses were 2e-4 apart: the order of additions.
    apart = 1e-3 if cuda else 1e-6
    assert torch.allclose(plain.losses, replayed.losses, rtol=0, atol=apart)
    for one, other in zip(plain.average.parameters(), replayed.average.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=apart)


def test_a_restored_state_is_captured_anew(recorded):
    recipe = Recipe(epochs=10, batch_size=8, precision="float32")
    state = steps.State(small_network().train(), recipe, 1, torch.device("cpu"))
    images, labels = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
    for _ in range(WARM_UP + 1):
        steps.train_step(state, images, labels)
    assert state.graphed.captures == 1
    state.restore(state.snapshot())
    for _ in range(WARM_UP + 1):
        steps.train_step(state, images, labels)
    assert state.graphed.captures == 2


@pytest.fixture
def warned(monkeypatch):
    """What the log warns of."""
    said = []
    monkeypatch.setattr(cuda_graphs.log, "warning", lambda text, *parts: said.append(text % parts))
    return said


def test_what_cannot_be_captured_runs_as_it_is_written_and_the_log_says_why(monkeypatch, warned):
    monkeypatch.setattr(cuda_graphs, "_beside", lambda function, tensors: function(*tensors))
    graphed = Graphed(torch.Generator(), "a run")
    graphed.possible = True  # without CUDA, capturing itself fails
    for count in range(WARM_UP + 3):
        assert float(graphed("same", lambda x: (x + 1,), torch.tensor(float(count)))[0]) == count + 1
    assert len(warned) == 1
    assert "a run: no CUDA graph" in warned[0]


def test_a_defence_that_does_not_say_when_steps_are_alike_is_not_captured(recorded, warned):
    class Own:
        def loss(self, model, images, labels, **rest):
            logits = model(images)
            return torch.nn.functional.cross_entropy(logits, labels), logits

    recipe = Recipe(epochs=10, batch_size=8, defence=Own(), precision="float32")
    state = steps.State(small_network().train(), recipe, 1, torch.device("cpu"))
    for _ in range(WARM_UP + 2):
        steps.train_step(state, torch.rand(8, 3, 8, 8), torch.arange(8) % 4)
    assert state.graphed.captures == 0
    assert len(warned) == 1
    assert "no at(progress)" in warned[0]


@dataclass(frozen=True, kw_only=True, repr=False)
class Doubled(PGD):
    """An attack of one's own, which may do with its ε what only numbers can."""

    def craft(self, model, images, labels, generator, targeted=False):
        return super().craft(model, images, labels, generator, targeted) if math.sin(self.eps) else images


def test_an_attack_of_ones_own_is_given_numbers():
    sizes = {"eps": torch.tensor(0.1), "step_size": torch.tensor(0.05)}
    assert PGD().with_sizes(sizes).eps is sizes["eps"]
    assert FGSM().with_sizes(sizes).eps is sizes["eps"]
    for around in (lambda defence: defence, AWP):
        (ours, own) = (around(Adversarial(kind(), ramp=0.5)) for kind in (PGD, Doubled))
        assert with_sizes(own, sizes) == own
        assert innermost(with_sizes(ours, sizes)).attack.step_size is sizes["step_size"]
        assert ours == around(Adversarial(PGD(), ramp=0.5))


@dataclass(frozen=True)
class Checked(Adversarial):
    """A defence of one's own that checks what it is given, when it is made."""

    def __post_init__(self):
        super().__post_init__()
        assert 0 < self.attack.eps < 0.1


@dataclass(frozen=True, kw_only=True, repr=False)
class Sizeless(Doubled):
    step_size: float | None = None

    def craft(self, model, images, labels, generator, targeted=False):
        return images


@pytest.mark.parametrize(
    "defence", [Checked(PGD(steps=1), ramp=0.5), Adversarial(Sizeless())], ids=["checked", "sizeless"]
)
def test_settings_of_ones_own_are_not_looked_at(recorded, defence):
    recipe = Recipe(epochs=10, batch_size=8, defence=defence, precision="float32")
    state = steps.State(small_network().train(), recipe, 1, torch.device("cpu"))
    for _ in range(8):
        state.step += 1
        steps.train_step(state, torch.rand(8, 3, 8, 8), torch.arange(8) % 4)
    assert state.graphed.captures == 1


class Growing(NFGSM):
    """A loss of one's own on top of another's: what at() says of that one's steps does not hold for it."""

    def loss(self, model, images, labels, *, progress, **rest):
        SEEN.append(progress)
        return super().loss(model, images, labels, progress=progress, **rest)


class Weighted(Adversarial):
    def loss(self, model, images, labels, **rest):
        SEEN.append("mine")
        return super().loss(model, images, labels, **rest)


SEEN = []


@pytest.mark.parametrize("defence", [Growing(), Weighted(PGD(steps=1)), Weighted(PGD(steps=1), ramp=0.5)], ids=str)
def test_the_loss_of_a_subclass_is_the_one_that_counts(recorded, defence):
    SEEN.clear()
    recipe = Recipe(epochs=10, batch_size=8, defence=defence, precision="float32")
    state = steps.State(small_network().train(), recipe, 1, torch.device("cpu"))
    for _ in range(8):
        steps.train_step(state, torch.rand(8, 3, 8, 8), torch.arange(8) % 4)
        state.step += 1
    assert len(SEEN) == 8
    assert state.graphed.captures == 0


@pytest.mark.parametrize("share", [0.0, 0.002, 0.75, 1.0])
def test_averages_follow_by_a_share_in_a_tensor_as_by_a_number(share):
    torch.manual_seed(0)
    averages, model = [small_network() for _ in range(2)], small_network()
    averages[1].load_state_dict(averages[0].state_dict())
    with torch.no_grad():
        model[0].weight.mul_(1e6)  # so large that a difference would swallow what it is the difference to
        model[1].num_batches_tracked.fill_(7)
    for average, by in zip(averages, (share, torch.tensor(share)), strict=True):
        steps._follow(average, model, by)
    for one, other in zip(*(average.state_dict().values() for average in averages), strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-7)
    if share == 1:
        assert all(map(torch.equal, averages[1].state_dict().values(), model.state_dict().values()))
    only_complex = [torch.nn.ParameterList([torch.full((2,), value, dtype=torch.complex64)]) for value in (1, 2)]
    steps._follow(*only_complex, torch.tensor(share))
    assert torch.equal(*(network[0] for network in only_complex))
