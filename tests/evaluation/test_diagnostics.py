"""Curves of accuracy, margins and the loss around a picture."""

import pytest
import torch
from small import small_network

from attacks import PGD
from evaluation import diagnostics, testing


@pytest.fixture(scope="module")
def model(sound):
    return sound["standard"]


def test_curve_along_eps_falls_and_begins_at_clean(model, blobs):
    table = diagnostics.accuracy_against_eps(
        model, blobs.test, PGD(), [8 / 255, 2 / 255, 64 / 255], progress=False
    )
    assert list(table.columns) == ["eps", "accuracy", "low", "high", "n"]
    assert list(table.eps) == [0, 2 / 255, 8 / 255, 64 / 255]
    assert table.accuracy[0] == testing.test(model, blobs.test, [], progress=False).clean_accuracy
    assert table.accuracy.is_monotonic_decreasing
    assert table.accuracy.iloc[-1] < 0.05
    assert (table.low <= table.accuracy).all()
    assert (table.accuracy <= table.high).all()


def test_more_steps_and_restarts_only_help(model, blobs):
    attack = PGD(eps=4 / 255, step_size=1 / 255)
    steps = diagnostics.accuracy_against_steps(model, blobs.test, attack, [8, 1, 2], progress=False)
    assert list(steps.steps) == [1, 2, 8]
    assert steps.accuracy.iloc[0] > steps.accuracy.iloc[-1]
    alone = testing.test(model, blobs.test, [PGD(eps=4 / 255, step_size=1 / 255, steps=8)], progress=False)
    assert steps.accuracy.iloc[-1] == pytest.approx(alone.robust_accuracy())
    restarts = diagnostics.accuracy_against_restarts(model, blobs.test, attack, 4, progress=False)
    assert list(restarts.restarts) == [1, 2, 3, 4]
    assert restarts.accuracy.is_monotonic_decreasing
    assert restarts.accuracy[0] > restarts.accuracy[3] - 1e-9


def test_margins_have_the_sign_of_the_answer(model, blobs):
    scores = testing.test(model, blobs.test, [], progress=False)
    values = diagnostics.margins(model, blobs.test, PGD())
    assert list(values) == ["clean", "PGD-10"]
    assert torch.equal(values["clean"] > 0, scores.outcomes["clean"])
    assert values["PGD-10"].mean() < values["clean"].mean()


def test_the_loss_climbs_along_the_gradient():
    model = small_network().eval()
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2])
    surface = diagnostics.loss_surface(model, images, labels, eps=1 / 255, points=5)
    assert surface.shape == (5, 5)
    with torch.no_grad():
        here = torch.nn.functional.cross_entropy(model(images), labels)
    assert surface[2, 2] == pytest.approx(float(here))
    assert (surface[1:, 2] > surface[:-1, 2]).all()
