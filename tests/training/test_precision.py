"""What a run computes in: the device decides, and what the recipe asks for goes before it."""

import pytest
import torch

from trainer import Recipe
from training import precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("fast", "auto"), [(True, "bfloat16"), (False, "float32")])
def test_the_recipe_goes_first_then_the_device(fast, auto, monkeypatch):
    monkeypatch.setattr(precision, "fast_bfloat16", lambda device: fast and device == CPU)
    assert precision.chosen(Recipe(epochs=1), CPU) == auto
    for name in ("bfloat16", "float32"):
        assert precision.chosen(Recipe(epochs=1, precision=name), CPU) == name
