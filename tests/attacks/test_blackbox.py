"""Attacks that see no gradient: Square and noise."""

import pytest
import torch
import torchattacks
from small import generator, small_network

from attacks import Noise, Square, blackbox


@pytest.mark.parametrize(
    ("query", "side"), [(1, 18), (10, 18), (11, 12), (50, 12), (51, 9), (200, 9), (201, 6), (501, 4), (8001, 1)]
)
def test_squares_shrink_as_the_paper_says(query, side):
    """A share of 0.3 of the picture, halved after 10, 50, 200, 500 ... of 10,000 queries: the side is its root."""
    assert Square(share=0.3)._side(query, torch.zeros(1, 3, 32, 32)) == side


@pytest.mark.parametrize(("height", "width"), [(4, 9), (9, 4), (2, 2)])
def test_a_square_fits_into_any_picture(height, width):
    assert Square(share=1.0)._side(1, torch.zeros(1, 3, height, width)) == min(height, width) - 1


def test_square_and_noise_stay_at_the_ends():
    model = small_network().eval()
    images = torch.rand(4, 3, 8, 8, generator=generator()) * 0.8 + 0.1
    labels = model(images).argmax(1)
    for attack in (Square(queries=30, eps=0.02), Noise(eps=0.02)):
        change = (attack.craft(model, images, labels, generator()) - images).abs()
        assert torch.allclose(change, torch.full_like(change, 0.02), atol=1e-6)
    for attack in (Square(norm="L2", queries=30, eps=0.05), Noise(norm="L2", eps=0.05)):
        change = attack.craft(model, images, labels, generator()) - images
        assert torch.allclose(change.flatten(1).norm(dim=1), torch.tensor(0.05), atol=1e-6)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 6, 29])
def test_the_bumps_are_those_of_torchattacks(side, monkeypatch):
    theirs = torchattacks.Square(small_network(), norm="L2")
    monkeypatch.setattr(torch, "rand", lambda *_: torch.zeros(1))  # which would lay them down
    assert torch.allclose(blackbox._pair(side, torch.float32, torch.device("cpu")), theirs.eta(side), atol=1e-6)


@pytest.mark.parametrize("spent", [1, 0.5])
def test_bumps_are_moved_from_one_square_to_another(spent, monkeypatch):
    """One square gets a pair of bumps, the other is emptied; elsewhere all changes by the same factor.

    The new ones are as long, in each channel, as both squares were, and share what was not spent of ε.
    """
    images, places, real = torch.full((6, 3, 16, 16), 0.5), [], blackbox._anywhere
    monkeypatch.setattr(blackbox, "_anywhere", lambda *given: places.append(real(*given)) or places[-1])
    attack = Square(norm="L2", eps=0.5, share=0.1)
    before = spent * (attack._begin(images, generator(1)) - images)
    change = attack._with_bumps(images, images + before, 1, generator(2)) - images
    assert torch.allclose(change.flatten(1).norm(dim=1), torch.tensor(0.5), atol=1e-5)
    filled, emptied = torch.zeros_like(images).bool(), torch.zeros_like(images).bool()
    filled[places[0]], emptied[places[1]] = True, True
    assert (change[emptied & ~filled] == 0).all()
    for now, then, elsewhere in zip(change, before, ~filled & ~emptied & (before.abs() > 1e-6), strict=True):
        ratio = now[elsewhere] / then[elsewhere]
        assert torch.allclose(ratio, ratio[0], atol=1e-3)
        assert ratio[0] > 0
    taken = (before * (filled | emptied)).square().sum((1, 2, 3))
    left = (before * ~(filled | emptied)).square().sum((1, 2, 3))
    new, kept = ((change * where).square().sum((1, 2, 3)) for where in (filled, ~filled))
    assert torch.allclose(new / kept, (0.25 * (1 - spent**2) + 3 * taken) / left, rtol=1e-3)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_square_is_as_strong_as_torchattacks(norm, attacked):
    model, few = attacked
    images, labels = few.batch(torch.arange(len(few)))
    ball = {"norm": norm, "eps": 8 / 255 if norm == "Linf" else 0.5}
    # AutoAttack's schedule of squares, whatever the budget, as ours; by itself torchattacks shrinks them sooner.
    theirs = torchattacks.Square(model.eval(), **ball, n_queries=300, resc_schedule=False)(
        images.contiguous(), labels
    )
    found = Square(**ball, queries=300)(model, images, labels, generator=generator())
    counts = [int((model(points).argmax(1) == labels).sum()) for points in (found, theirs)]
    assert 0 < counts[0] <= counts[1] + 3


@pytest.mark.parametrize(("height", "width"), [(3, 3), (4, 9), (9, 4), (2, 2), (5, 28)])
def test_square_in_l2_takes_pictures_of_any_shape(height, width):
    images = torch.full((2, 1, height, width), 0.5)
    attack = Square(norm="L2", eps=0.2)
    for points in (best := attack._begin(images, generator()), attack._with_bumps(images, best, 5, generator())):
        assert torch.allclose((points - images).flatten(1).norm(dim=1), torch.tensor(0.2), atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(1, 9), (9, 1)])
def test_a_line_of_pixels_gets_squares_of_one(height, width):
    assert Square()._side(1, torch.zeros(1, 1, height, width)) == 1
