"""The small CNN in bfloat16 is the same function."""

import pytest
import torch
from photos import distance, pictures
from torch import nn

import models
from attacks import evaluating, input_gradient


@pytest.mark.parametrize("side", [32, 36])
def test_the_shallow_network_in_bfloat16_is_the_same_function(side):
    network, (images, labels) = models.build("shallow_cnn", 10).network, pictures(16, side)
    torch.manual_seed(0)
    if side != 32:  # the sizes work out, but for the linear layers
        network[7] = nn.Linear(16 * 6 * 6, 120)
    plain = nn.Sequential(*network)
    with torch.autocast("cpu", torch.bfloat16):
        fast, slow = network(images), plain(images)
        assert torch.allclose(fast, slow, atol=1e-2)
        for one, other in zip(
            torch.autograd.grad(nn.functional.cross_entropy(fast.float(), labels), list(network.parameters())),
            torch.autograd.grad(nn.functional.cross_entropy(slow.float(), labels), list(network.parameters())),
            strict=True,
        ):
            assert (one - other).norm() < 0.1 * other.norm()
        rough = input_gradient(plain, images, labels)
        near = input_gradient(network, images, labels)
    exact = input_gradient(plain.double(), images.double(), labels)
    assert distance(near, exact) < 1.2 * distance(rough, exact)


def test_the_shallow_network_has_its_own_weights_while_an_attack_lasts_and_no_longer():
    network, (images, _) = models.build("shallow_cnn", 10).network, pictures(4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with evaluating(network):
            before = network(images)
            assert torch.equal(network(images), before)
        network[0].weight.mul_(2)
        assert not torch.equal(network(images), before)
        network[2] = nn.Tanh()  # somebody's own layer counts
        other = network(images)
        network[2] = nn.ReLU()
        assert not torch.equal(network(images), other)


@pytest.mark.parametrize(
    ("place", "layer"),
    [
        (0, nn.Conv2d(3, 6, 5, bias=False)),
        (3, nn.Conv2d(6, 16, 3, padding=1, dilation=2, stride=1)),
        (0, nn.Conv2d(3, 6, 3, stride=1)),
        (3, nn.Conv2d(6, 16, 5, padding=2, groups=2)),
        (11, nn.Linear(84, 10, bias=False)),
    ],
)
def test_a_layer_of_the_shallow_network_with_other_settings_counts(place, layer):
    network, (images, _) = models.build("shallow_cnn", 10).network, pictures(4)
    network[place] = layer
    with torch.no_grad():
        network[7] = nn.Linear(nn.Sequential(*list(network)[:7])(images).shape[1], 120)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.allclose(network(images), nn.Sequential(*network)(images), atol=1e-2)


@pytest.mark.parametrize("low", [False, True])
def test_pooling_of_other_sizes_counts_with_and_without_a_gradient(low):
    network, (images, _) = models.build("shallow_cnn", 10).network, pictures(4)
    for place in (1, 4):
        network[place].kernel_size, network[place].padding = 3, 1
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        with torch.no_grad():
            network[7] = nn.Linear(nn.Sequential(*list(network)[:7])(images).shape[1], 120)
            fast = network(images)
        pools = [nn.MaxPool2d(3, 2, 1) if place in (1, 4) else layer for place, layer in enumerate(network)]
        wanted = nn.Sequential(*pools)(images)
        assert torch.allclose(fast, wanted, atol=1e-2)
        assert torch.allclose(network(images), wanted, atol=1e-2)


def test_the_shallow_network_pools_by_its_layers_where_someone_watches_or_sizes_are_odd():
    network, (images, _) = models.build("shallow_cnn", 10).network, pictures(2)
    seen = []
    network[1].register_forward_hook(lambda *_: seen.append(1))
    with torch.autocast("cpu", torch.bfloat16):
        network(images)
        assert seen
        odd = models.build("shallow_cnn", 10).network
        odd[7] = nn.Linear(16 * 5 * 5, 120)
        assert odd(pictures(2, 34)[0][:, :, :33, :33]).shape == (2, 10)
