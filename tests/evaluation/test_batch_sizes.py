"""Batches that do not fit, and those that are filled up: the same results as from a device without limits."""

import gc
import weakref
from contextlib import nullcontext

import pytest
import torch
from small import Blobs, small_network
from torch import nn

from attacks import APGD, FAB, FGSM, PGD, AutoAttack, Square, Torchattacks, evaluating, input_gradient
from evaluation import batch_sizes, per_example
from evaluation.batch_sizes import AnySize, filled_up


class Small(nn.Module):
    """A network on a device that runs out of memory above so many pictures, with their gradient above half."""

    def __init__(self, most, network=None):
        super().__init__()
        self.network, self.most, self.seen = network or small_network(), most, []

    def forward(self, images):
        follows = torch.is_grad_enabled() and images.requires_grad
        if len(images) > self.most // (2 if follows else 1):
            raise torch.OutOfMemoryError("made to run out")
        self.seen.append(len(images))
        return self.network(images)


class Backward(Small):
    """Runs out of it only where the gradient is computed."""

    def forward(self, images):
        out = self.network(images)
        if out.requires_grad and len(images) > self.most:
            out.register_hook(self.run_out)
        return out

    def run_out(self, gradient):
        raise torch.OutOfMemoryError("made to run out")


@pytest.fixture
def split():
    return Blobs().split(100, 3, "test")


@pytest.fixture
def warned(monkeypatch):
    said = []
    monkeypatch.setattr(batch_sizes.log, "warning", lambda text, *parts: said.append(text % parts))
    return said


@pytest.mark.parametrize("kind", [Small, Backward])
@pytest.mark.parametrize(
    "attack",
    [PGD(steps=3), APGD(steps=5), FAB(steps=3), Square(queries=20), AutoAttack(steps=5, queries=20)],
    ids=str,
)
def test_a_device_that_runs_out_finds_what_one_without_limits_finds(sound, split, warned, kind, attack):
    indices = torch.arange(100)
    network = sound["pgd"]
    stood, extent = per_example.attacked(network, network, split, attack, indices, 0)
    limited = kind(20, network).eval()
    found, reach = per_example.attacked(limited, limited, split, attack, indices, 0)
    assert 20 < int(stood.sum()) < 100
    assert torch.equal(stood, found)
    assert reach[:3] == pytest.approx(extent[:3], abs=1e-6)
    assert torch.allclose(per_example.predict(limited, split), per_example.predict(network, split), atol=1e-5)
    assert all("do not fit into the memory" in line for line in warned)
    before = len(warned)
    per_example.attacked(limited, limited, split, attack, indices, 0)
    assert len(warned) == before


@pytest.mark.parametrize("name", ["DeepFool", "FAB"])
def test_attacks_that_ask_twice_for_a_gradient_may(sound, split, name):
    attack = Torchattacks(name)
    stood, _ = per_example.attacked(sound["pgd"], sound["pgd"], split, attack, torch.arange(20), 0)
    assert len(stood) == 20


class OnFeatures(FGSM):
    """An attack of somebody's own, which looks into the model."""

    def craft(self, model, images, labels, generator, targeted=False):
        seen = []
        with torch.enable_grad(), model.features.register_forward_hook(lambda _, __, out: seen.append(out)):
            points = images.requires_grad_()
            model(points)
            (gradient,) = torch.autograd.grad(seen[0].square().sum(), points)
        return (images.detach() + self.eps * gradient.sign()).clamp(0, 1)


def test_an_attack_may_look_into_the_model(sound, split):
    network = Small(1000, sound["pgd"])
    network.features = network.network[0]
    _, extent = per_example.attacked(network, network, split, OnFeatures(), torch.arange(20), 0)
    assert extent.largest == pytest.approx(8 / 255, abs=1e-6)


def test_other_errors_are_what_they_were(split):
    class Broken(nn.Module):
        def forward(self, images):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        per_example.predict(Broken(), split)


def test_one_picture_that_does_not_fit_is_the_error_it_was(split):
    with pytest.raises(torch.OutOfMemoryError):
        per_example.predict(Small(0), split)


def test_it_is_remembered_for_a_network_and_forgotten_with_it(split, warned):
    network = Small(30)
    for _ in range(2):
        per_example.predict(network, split)
    assert [line.split(":")[0] for line in warned] == [
        f"{count} pictures at once do not fit into the memory" for count in (100, 50)
    ]
    assert network.seen == 8 * [25]
    per_example.predict(Small(100), split)
    assert len(warned) == 2
    gone = weakref.ref(network)
    del network
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("low", [False, True])
def test_gradients_are_those_of_the_bare_network(split, low):
    images, labels = split.batch(torch.arange(40))
    for network in (small_network().eval(), Small(20).eval()):
        bare = getattr(network, "network", network)
        with evaluating(network), torch.autocast("cpu", torch.bfloat16, enabled=low):
            expected = input_gradient(bare, images, labels)
            found = input_gradient(AnySize(network), images, labels)
        assert found.abs().max() > 0
        assert torch.allclose(found, expected, rtol=0, atol=(0.03 if low else 1e-5) * float(expected.abs().max()))


def test_a_network_without_a_gradient_has_none_here_either(split):
    images, labels = split.batch(torch.arange(4))

    class Deaf(nn.Module):
        def forward(self, images):
            return torch.zeros(len(images), 4)

    assert not AnySize(Deaf())(images.requires_grad_()).requires_grad
    assert (input_gradient(AnySize(Deaf()), images, labels) == 0).all()


def test_on_cuda_batches_are_filled_up_to_few_sizes_and_cut_again(split, monkeypatch):
    cuda = torch.device("cuda")
    assert [filled_up(n, cuda) for n in (1, 8, 9, 33, 100, 250, 818, 1000)] == [8, 8, 16, 40, 112, 256, 896, 1024]
    sizes = {filled_up(n, cuda) for n in range(1, 1001)}
    assert len(sizes) < 30
    assert all(n <= filled_up(n, cuda) <= max(8, 1.25 * n + 8) for n in range(1, 1001))
    assert filled_up(7, torch.device("cpu")) == 7
    network = Small(1000).eval()
    expected = per_example.attacked(network, network, split, APGD(steps=5), torch.arange(100), 0)[0]
    logits = network(split.batch(torch.arange(100))[0])
    network.seen.clear()
    monkeypatch.setattr(batch_sizes, "filled_up", lambda count, device: filled_up(count, cuda))
    assert torch.equal(
        per_example.attacked(network, network, split, APGD(steps=5), torch.arange(100), 0)[0], expected
    )
    assert torch.allclose(per_example.predict(network, split), logits, atol=1e-5)
    assert set(network.seen) <= sizes


def test_the_first_size_follows_from_the_free_memory_and_what_a_few_pictures_take(monkeypatch):
    """With a made-up device: each picture takes 3 MB, 700 MB are free."""
    asked = []
    peak = {"now": 0}

    class Counted(nn.Module):
        def forward(self, images):
            asked.append(len(images))
            peak["now"] = max(peak["now"], 3e6 * len(images))
            return images.flatten(1)[:, :4]

    for name, value in {
        "reset_peak_memory_stats": lambda device: None,
        "memory_allocated": lambda device: 0,
        "memory_reserved": lambda device: 100e6,
        "max_memory_allocated": lambda device: peak["now"],
        "mem_get_info": lambda device: (600e6, 0),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: nullcontext())
    found = batch_sizes._measured(Counted(), Meta(1000), True)
    assert asked == 2 * [batch_sizes.MEASURED]  # the first time also chooses its algorithms
    assert found == int(batch_sizes.SPARE * 700 / 3)


class Meta:
    """Pictures that say that they are on CUDA."""

    def __init__(self, count):
        self.images, self.device = torch.rand(count, 3, 8, 8), torch.device("cuda")

    def __getitem__(self, some):
        return self.images[some]
