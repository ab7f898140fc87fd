"""What a run computes in: measured once, remembered, and what the recipe asks for goes before it."""

import pytest
import torch
from small import small_network

from trainer import Recipe
from training import precision

SHAPE, CPU = (8, 3, 8, 8), torch.device("cpu")


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Times that a test sets, and how often they were asked for."""
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path))
    monkeypatch.setattr(precision, "fast_bfloat16", lambda device: True)
    given = {"float32": 1.0, "bfloat16": 0.5, "asked": 0}

    def measure(*_):
        given["asked"] += 1
        return {name: given[name] for name in ("float32", "bfloat16")}

    monkeypatch.setattr(precision, "_measure", measure)
    return given


def test_the_faster_one_is_chosen_and_remembered(measured):
    choose = lambda shape=SHAPE, seed=0: precision.chosen(Recipe(epochs=1), small_network(seed), shape, CPU)  # noqa: E731
    assert choose() == "bfloat16"
    measured |= {"bfloat16": 2.0}
    assert choose() == "bfloat16"  # as it was
    assert choose(seed=1) == "bfloat16"  # other weights, the same network
    assert measured["asked"] == 1
    assert choose((16, 3, 8, 8)) == "float32"
    measured |= {"bfloat16": 0.95}
    assert choose((32, 3, 8, 8)) == "float32"  # faster, but not by enough
    assert measured["asked"] == 3


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": 1}'])
def test_a_damaged_file_is_measured_anew(measured, tmp_path, damage):
    (tmp_path / "precision.json").write_text(damage)
    assert precision.chosen(Recipe(epochs=1), small_network(), SHAPE, CPU) == "bfloat16"
    assert measured["asked"] == 1


def test_the_recipe_goes_first_and_slow_bfloat16_is_not_tried(measured, monkeypatch):
    for name in ("bfloat16", "float32"):
        assert precision.chosen(Recipe(epochs=1, precision=name), small_network(), SHAPE, CPU) == name
    monkeypatch.setattr(precision, "fast_bfloat16", lambda device: False)
    assert precision.chosen(Recipe(epochs=1), small_network(), SHAPE, CPU) == "float32"
    assert measured["asked"] == 0


def test_measuring_leaves_the_model_as_it_was():
    model = small_network().train()
    before = [tensor.clone() for tensor in model.state_dict().values()]
    state = torch.get_rng_state()
    seconds = precision._measure(model, SHAPE, CPU)
    assert all(value > 0 for value in seconds.values())
    assert all(torch.equal(one, other) for one, other in zip(before, model.state_dict().values(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
