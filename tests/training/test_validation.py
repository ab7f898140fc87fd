"""What an epoch ends in."""

from dataclasses import replace

import pytest
import torch
from small import small_network
from torch import nn

from trainer import Recipe, train


def dead():
    """Its ReLUs let nothing through, so it says the same of every picture for ever."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 4))
    nn.init.constant_(network[0].bias, -100)
    nn.init.zeros_(network[3].bias)
    return network


RECIPE = Recipe(epochs=8, batch_size=32, augment=False, validation_images=16)


def test_a_training_that_sits_at_chance_says_so_while_it_runs(blobs, tmp_path, caplog):
    train(dead(), blobs, RECIPE, tmp_path / "run", progress=False)
    (said,) = [record for record in caplog.records if "nearly the same" in record.getMessage()]
    assert said.levelname == "WARNING"
    assert (
        "run: after 16 of 64 steps the network says nearly the same of every picture (25.0 % right"
        in said.getMessage()
    )


def late():
    """Confident nonsense to begin with."""
    network = small_network()
    with torch.no_grad():
        network[-1].weight.mul_(30)
    return network


@pytest.mark.parametrize(("network", "rate"), [(small_network, 0.05), (late, 1e-4)])
def test_one_that_learns_early_or_late_does_not(network, rate, blobs, tmp_path, caplog):
    run = train(network(), blobs, replace(RECIPE, learning_rate=rate), tmp_path / "run", progress=False)
    assert (run.history["accuracy/clean"].iloc[-1] > 0.5) == (network is small_network)
    assert "nearly the same" not in caplog.text
