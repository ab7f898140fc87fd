"""Attacks that see no gradient: Square and noise."""

import pytest
import torch
from small import generator, small_network

from attacks import Noise, Square


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
