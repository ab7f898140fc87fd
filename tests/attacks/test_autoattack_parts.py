"""The parts of AutoAttack, formula by formula, against what their papers write."""

import pytest
import torch
from torch import nn

from attacks import APGD, FAB, Square, apgd


class Standing(nn.Module):
    """Nothing moves its answer, and every pixel has a gradient."""

    def forward(self, images):
        logits = torch.zeros(len(images), 3).to(images)
        logits[:, 0] = 100
        return logits + images.flatten(1) @ torch.linspace(-1, 1, images[0].numel() * 3).view(-1, 3).to(images)


def pictures(count=5):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(count).long()


@pytest.mark.parametrize(
    ("steps", "marks"),
    [(100, [22, 41, 57, 70, 80, 87, 93, 99]), (50, [11, 20, 27, 32, 35, 38, 41, 44, 47, 50])],
)
def test_apgd_looks_back_where_the_paper_does(steps, marks, monkeypatch):
    """Croce & Hein 2020, section 3.1: p = 0, 0.22, then p + max(last - 0.03, 0.06); in whole steps."""
    seen, real = [], apgd._checkpoint
    monkeypatch.setattr(apgd, "_checkpoint", lambda state, window: seen.append(window) or real(state, window))
    APGD(steps=steps)(Standing(), *pictures())
    assert torch.tensor(seen).cumsum(0).tolist() == marks


def test_apgd_halves_where_it_climbed_too_seldom_or_found_nothing_new():
    rises = torch.tensor([0.0, 16, 17, 22, 22, 22])
    state = {
        "rises": rises,
        "halved": torch.tensor([False, False, False, False, False, True]),
        "checked": torch.tensor([0.0, 0, 0, 0, 1, 1]),
        "top": torch.tensor([1.0, 1, 1, 1, 1, 1]),
        "size": torch.full((6,), 0.04),
        "here": torch.full((6, 1, 1, 1), 0.5),
        "best": torch.full((6, 1, 1, 1), 0.7),
        "gradient": torch.full((6, 1, 1, 1), 1.0),
        "uphill": torch.full((6, 1, 1, 1), 2.0),
    }
    after = apgd._checkpoint(state, 22)  # three quarters of 22 steps are 16.5
    halved = torch.tensor([True, True, False, False, True, False])
    assert torch.equal(after["halved"], halved)
    assert torch.equal(after["size"], torch.where(halved, 0.02, 0.04))
    assert torch.equal(after["here"].flatten(), torch.where(halved, 0.7, 0.5))
    assert torch.equal(after["gradient"].flatten(), torch.where(halved, 2.0, 1.0))
    assert torch.equal(after["checked"], state["top"])
    assert not after["rises"].any()


def test_apgd_moves_by_its_step_and_a_quarter_of_the_last_movement():
    """z = P(x + η sign g), then x + 0.75 (z - x) + 0.25 (x - x before), projected; the first step has no past."""
    here, before = torch.tensor([0.50, 0.50, 0.98, 0.50]), torch.tensor([0.48, 0.48, 0.97, 0.60])
    gradient = torch.tensor([3.0, -2.0, 1.0, 0.0])
    shape = (1, 1, 1, 4)
    state = {"here": here.view(shape), "before": before.view(shape), "gradient": gradient.view(shape)}
    state |= {"size": torch.tensor([0.1]), "lower": torch.zeros(shape), "upper": torch.ones(shape)}
    state["upper"][..., 1] = 0.52
    state["lower"][..., 1] = 0.46
    z = torch.tensor([0.60, 0.46, 1.0, 0.50])
    expected = (here + 0.75 * (z - here) + 0.25 * (here - before)).clamp(max=1)
    after = apgd._move(state, 0.75)
    assert torch.allclose(after["here"].flatten(), expected)
    assert torch.equal(after["before"], state["here"])
    assert torch.allclose(apgd._move(state, 1.0)["here"].flatten(), z)


def test_apgd_remembers_the_best_point_and_counts_what_rose():
    state = {name: torch.zeros(3, 1, 1, 1) for name in ("best", "uphill")}
    state |= {"here": torch.ones(3, 1, 1, 1), "rises": torch.zeros(3), "loss": torch.tensor([1.0, 1.0, 1.0])}
    state["top"] = torch.tensor([2.0, 1.0, 0.5])
    after = apgd._note(state, torch.tensor([1.5, 1.0, 0.7]), torch.full((3, 1, 1, 1), 5.0))
    assert after["best"].flatten().tolist() == [0, 0, 1]
    assert after["uphill"].flatten().tolist() == [0, 0, 5]
    assert after["top"].tolist() == [2.0, 1.0, pytest.approx(0.7)]
    assert after["rises"].tolist() == [1, 0, 0]


def points_with_gradient(attack, model, images, labels):
    """Where an attack asks for gradients, and where for answers only."""
    asked, answered = [], []

    class Noted(nn.Module):
        def forward(self, x):
            (asked if torch.is_grad_enabled() else answered).append(x.detach().clone())
            return model(x)

    attack(Noted(), images, labels, generator=torch.Generator().manual_seed(0))
    return asked, answered


def test_apgd_starts_somewhere_on_the_border_in_every_direction():
    images, labels = 0.25 + 0.5 * pictures()[0], pictures()[1]
    asked, _ = points_with_gradient(APGD(eps=0.1, steps=3), Standing(), images, labels)
    change = asked[0] - images
    assert change.abs().amax((1, 2, 3)) == pytest.approx(0.1, abs=1e-6)
    assert abs(float(change.mean())) < 0.01
    assert float(change.std()) == pytest.approx(0.1 / 3**0.5, rel=0.1)  # uniform


def test_fab_goes_back_nine_tenths_after_a_success_that_is_too_far():
    """A plane at a distance of 0.3, ε = 0.1: beyond it is won, not counted, and the next look is from nearer."""

    class Plane(nn.Module):
        def forward(self, x):
            lead = 30 * (x.flatten(1).mean(1) - 0.8)
            return torch.stack([-lead, lead], 1)

    images, labels = torch.full((2, 3, 4, 4), 0.5), torch.zeros(2).long()
    asked, answered = points_with_gradient(FAB(eps=0.1, steps=3), Plane(), images, labels)
    over = answered[1]  # the first answer is that of the pictures themselves
    assert torch.allclose(asked[0], images)
    assert torch.allclose(over, images + 1.05 * 0.3, atol=1e-5)
    assert torch.allclose(asked[1], images + 0.9 * (over - images), atol=1e-6)


@pytest.mark.parametrize(
    ("query", "side"), [(1, 18), (10, 18), (11, 12), (50, 12), (51, 9), (200, 9), (201, 6), (501, 4), (8001, 1)]
)
def test_squares_shrink_as_the_paper_says(query, side):
    """A share of 0.3 of the picture, halved after 10, 50, 200, 500 ... of 10,000 queries: the side is its root."""
    assert Square(share=0.3)._side(query, torch.zeros(1, 3, 32, 32)) == side


@pytest.mark.parametrize(("height", "width"), [(4, 9), (9, 4), (2, 2)])
def test_a_square_fits_into_any_picture(height, width):
    assert Square(share=1.0)._side(1, torch.zeros(1, 3, height, width)) == min(height, width) - 1
