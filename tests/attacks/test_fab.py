"""FAB, against what its paper writes and a linear program."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from small import generator, points_with_gradient
from torch import nn
from torchattacks.attacks.fab import projection_l2

from attacks import FAB
from attacks.fab import _project


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.1 * 48**0.5)])
def test_fab_goes_back_nine_tenths_after_a_success_that_is_too_far(norm, eps):
    """A plane at a distance of 3 ε: beyond it is won, not counted, and the next look is from nearer."""

    class Plane(nn.Module):
        def forward(self, x):
            lead = 30 * (x.flatten(1).mean(1) - 0.8)
            return torch.stack([-lead, lead], 1)

    images, labels = torch.full((2, 3, 4, 4), 0.5), torch.zeros(2).long()
    asked, answered = points_with_gradient(FAB(norm=norm, eps=eps, steps=3), Plane(), images, labels)
    over = answered[1]  # the first answer is that of the pictures themselves
    assert torch.allclose(asked[0], images)
    assert torch.allclose(over, images + 1.05 * 0.3, atol=1e-5)
    assert torch.allclose(asked[1], images + 0.9 * (over - images), atol=1e-6)


def test_the_projection_is_the_smallest_change():
    """Against a linear program: least λ with |d| <= λ, normal · d = -value, and pixels within [0, 1]."""
    random = generator(3)
    points = torch.rand(20, 1, 3, 3, generator=random, dtype=torch.float64)
    points[:5] = points[:5].round()  # at the borders of the range there is room in one direction only
    normal = torch.randn(20, 1, 3, 3, generator=random, dtype=torch.float64)
    value = torch.randn(20, generator=random, dtype=torch.float64)
    change = _project(points, normal, value)
    assert (points + change).min() >= 0
    assert (points + change).max() <= 1
    solved = 0
    for x, w, v, d in zip(points, normal, value, change, strict=True):
        x, w, d = (part.flatten().numpy() for part in (x, w, d))
        ones = np.ones((9, 1))
        best = linprog(
            [*np.zeros(9), 1],
            A_ub=np.block([[np.eye(9), -ones], [-np.eye(9), -ones]]),
            b_ub=np.zeros(18),
            A_eq=[[*w, 0]],
            b_eq=[-float(v)],
            bounds=[*zip(-x, 1 - x, strict=True), (0, None)],
        )
        if best.status == 0:
            solved += 1
            assert float(w @ d) == pytest.approx(-float(v), abs=1e-9)
            assert np.abs(d).max() == pytest.approx(best.fun, abs=1e-9)
        else:  # no point of the plane is a picture: everything that helps is used
            assert np.isin(np.round(x + d, 9), (0, 1)).all()
    assert solved >= 12


def test_the_projection_in_l2_is_that_of_torchattacks_and_the_smallest_change():
    random = generator(4)
    points = torch.rand(200, 3, 8, 8, generator=random, dtype=torch.float64)
    points[:50] = points[:50].round()
    normal = torch.randn(200, 3, 8, 8, generator=random, dtype=torch.float64)
    value = 5 * torch.randn(200, generator=random, dtype=torch.float64)
    change = _project(points, normal, value, "L2").flatten(1)
    level = (normal * points).flatten(1).sum(1) - value
    theirs = projection_l2(points.flatten(1), normal.flatten(1), level)
    assert torch.allclose(change, theirs, atol=1e-9)
    assert torch.allclose((normal.flatten(1) * change).sum(1), -value)
    assert (points.flatten(1) + change).aminmax() == (0, 1)
    tiny = _project(points, 1e-25 * normal, 1e-25 * value, "L2").flatten(1)
    assert torch.allclose(tiny, change, atol=1e-9)
    beyond = _project(points, normal, value.sign() * 1e6, "L2")  # everything that helps is used
    assert torch.isin((points + beyond).round(decimals=9), torch.tensor([0.0, 1.0])).all()
