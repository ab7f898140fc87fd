"""A network as graphs: captured when it pays and may be, the same as the network itself whatever comes between.

The machine that runs the tests may have no CUDA: a stand-in keeps results in memory that each pass writes anew.
"""

import pytest
import torch
from small import Blobs, small_network
from torch import nn

from attacks import APGD, FAB, PGD, VMIFGSM, AutoAttack, Square, evaluating, input_gradient
from evaluation import network_graphs, per_example
from evaluation.batch_sizes import AnySize
from evaluation.network_graphs import MOST, OFTEN, NetworkGraphs
from models import wrap

CUDA = [pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else []


class Recorded(network_graphs._Graph):
    """Keeps the memory of its passes; replays them by calling the network."""

    made = 0

    def __init__(self, model, images, follows):
        Recorded.made += 1
        self.model, self.passes, self.images = model, 0, images.detach().clone().requires_grad_(follows)
        self.logits = model(self.images)
        self.ascent = torch.zeros_like(self.logits) if self.logits.requires_grad else None
        self.gradient = torch.zeros_like(images)

    def forward(self, images):
        self.passes += 1
        with torch.no_grad():
            self.images.copy_(images)
        with torch.set_grad_enabled(self.images.requires_grad):
            self.logits = self.model(self.images)
        return self.logits.detach().clone()

    def backward(self, ascent):
        found = torch.autograd.grad(self.logits, self.images, ascent, retain_graph=True)
        self.gradient.copy_(found[0])
        self.passes += 1
        return self.gradient.clone()


@pytest.fixture
def graphs(monkeypatch):
    monkeypatch.setattr(network_graphs, "_capturable", lambda images: True)
    monkeypatch.setattr(network_graphs, "_Graph", Recorded)
    monkeypatch.setattr(network_graphs, "OFTEN", 2)
    monkeypatch.setattr(network_graphs, "KNOWN", (*network_graphs.KNOWN, "small", "test_"))
    monkeypatch.setattr(Recorded, "made", 0)


@pytest.mark.parametrize("device", ["cpu", *CUDA])
@pytest.mark.parametrize(
    "attack",
    [
        PGD(steps=12),
        APGD(steps=20),
        FAB(steps=8),
        Square(queries=80),
        VMIFGSM(steps=4),
        AutoAttack(steps=8, queries=60),
    ],
    ids=str,
)
def test_attacks_find_what_they_find_without(request, sound, monkeypatch, attack, device):
    split, network = Blobs().split(100, 3, "test").to(device), sound["pgd"]
    indices = torch.arange(100, device=device)
    network = per_example.on_device_of(split, network)
    monkeypatch.setattr(network_graphs, "OFTEN", 10**9)
    plain, reach = per_example.attacked(network, network, split, attack, indices, 0)
    if device == "cpu":
        request.getfixturevalue("graphs")
    monkeypatch.setattr(network_graphs, "OFTEN", 2)
    found, extent = per_example.attacked(network, network, split, attack, indices, 0)
    assert 20 < int(plain.sum()) < 100
    if device == "cpu":
        assert torch.equal(plain, found)
        assert Recorded.made > 0
        # In bfloat16 a processor may round otherwise in memory that is laid out otherwise, and a sign turns.
        rounded = 0.02 if isinstance(attack, (APGD, AutoAttack)) else 1e-6
        assert reach[0] == pytest.approx(extent[0], abs=1e-6)
        assert reach[1:3] == pytest.approx(extent[1:3], abs=rounded)
    assert abs(int(plain.sum()) - int(found.sum())) <= 2


def frozen(network):
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("device", ["cpu", *CUDA])
def test_a_gradient_is_that_of_the_pass_that_it_is_asked_of(request, monkeypatch, device):
    if device == "cpu":
        request.getfixturevalue("graphs")
    monkeypatch.setattr(network_graphs, "OFTEN", 0)
    monkeypatch.setattr(network_graphs, "KNOWN", (*network_graphs.KNOWN, "small"))
    network = frozen(small_network()).to(device)
    graphs = NetworkGraphs(network)
    one, two = (torch.rand(6, 3, 8, 8, device=device).requires_grad_() for _ in range(2))
    wanted = [torch.autograd.grad(network(images).square().sum(), images)[0] for images in (one, two)]
    first, second = graphs(one), graphs(two)
    assert torch.allclose(first, network(one), atol=1e-5)  # and not what the second pass has left there
    found = [torch.autograd.grad(first.square().sum(), one)[0], torch.autograd.grad(second.square().sum(), two)[0]]
    for want, have in zip(wanted, found, strict=True):
        assert torch.allclose(want, have, atol=1e-5)
    both = torch.autograd.grad(graphs(one).square().sum() + graphs(one + 0).square().sum(), one)[0]
    assert torch.allclose(both, 2 * wanted[0], atol=1e-4)
    logits = graphs(one)
    for retain in (True, False):  # attacks that want a gradient for each class
        (again,) = torch.autograd.grad(logits.square().sum(), one, retain_graph=retain)
        assert torch.allclose(again, wanted[0], atol=1e-5)


def test_it_is_captured_when_it_comes_often_and_the_least_recently_used_gives_way(graphs):
    network = NetworkGraphs(frozen(small_network()))
    for count in range(1, MOST + 3):
        for _ in range(5):
            network(torch.rand(count, 3, 8, 8))
        network(torch.rand(1, 3, 8, 8))
    assert Recorded.made == MOST + 2
    assert [shape[0] for shape, *_ in network.graphs] == [*range(4, MOST + 3), 1]
    assert OFTEN > 2


class Counting(nn.Module):
    """Answers otherwise each time."""

    def __init__(self):
        super().__init__()
        self.calls, self.layer = 0, nn.Linear(3, 4)

    def forward(self, images):
        self.calls += 1
        return self.layer(images.mean((2, 3))) + self.calls


def hooked():
    network = frozen(small_network())
    network[0].register_forward_hook(lambda *_: None)
    return network


@pytest.mark.parametrize(
    "network",
    [frozen(Counting()), frozen(wrap(Counting())), frozen(wrap(lambda images: images.mean((2, 3)))), hooked()],
    ids=["own", "wrapped", "function", "hooked"],
)
def test_what_nobody_knows_is_never_captured(graphs, monkeypatch, network):
    monkeypatch.setattr(network_graphs, "KNOWN", tuple(name for name in network_graphs.KNOWN if name != "test_"))
    graphs = NetworkGraphs(network)
    for _ in range(6):
        graphs(torch.rand(2, 3, 8, 8))
    assert Recorded.made == 0


def test_weights_that_learn_are_not_captured(graphs):
    model = AnySize(small_network().eval())
    for _ in range(6):
        model(torch.rand(2, 3, 8, 8))
    assert Recorded.made == 0
    with evaluating(model):
        for _ in range(3):
            input_gradient(model, torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))
        model(torch.rand(2, 3, 8, 8))
    assert Recorded.made == 2


def test_what_cannot_be_captured_goes_on_as_it_is_written(graphs, monkeypatch):
    def fails(*_):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(network_graphs, "_Graph", fails)
    graphs = NetworkGraphs(frozen(small_network()))
    for _ in range(5):
        assert graphs(torch.rand(2, 3, 8, 8)).shape == (2, 4)
    assert not graphs.possible
