"""What DI-FGSM shows the network."""

import torch
from small import pictures
from torch import nn

from attacks import (
    DIFGSM,
    MIFGSM,
    diverse,
)


def test_di_shrinks_and_shifts_the_whole_batch_and_always_shows_all_of_it():
    images = torch.ones(2, 3, 20, 30)
    seen = set()
    for seed in range(300):
        side, top, left = torch.rand(3, generator=torch.Generator().manual_seed(seed))
        shown = diverse._shrunk(images, 0.9, side, top, left)
        assert shown.shape == images.shape
        assert torch.equal(shown[0], shown[1])
        lit = shown[0, 0] > 0
        rows, columns = lit.any(1).nonzero()[:, 0], lit.any(0).nonzero()[:, 0]
        assert lit.sum() == len(rows) * len(columns)  # one rectangle
        seen.add((len(rows), len(columns), int(rows[0]), int(columns[0])))
    assert {size for size, *_ in seen} == {18, 19, 20}
    assert {size for _, size, *_ in seen} == {27, 28, 29, 30}
    assert {top for rows, _, top, _ in seen if rows == 18} == {0, 1, 2}
    assert {left for _, columns, _, left in seen if columns == 27} == {0, 1, 2, 3}
    photo = torch.rand(1, 3, 20, 30, dtype=torch.float64)
    small = nn.functional.interpolate(photo, size=(18, 27), mode="bilinear", align_corners=False)
    shown = diverse._shrunk(photo, 0.9, *torch.tensor([0, 0.99, 0.5]))
    assert torch.allclose(shown[..., 2:, 2:29], small)
    assert torch.equal(diverse._shrunk(photo, 0.9, *torch.tensor([1, 0.99, 0.5])), photo)


def test_di_follows_the_gradient_through_what_the_network_sees(network):
    images, labels = pictures()
    network.eval()
    fixed = torch.Generator().manual_seed(5)
    _, side, top, left = torch.rand(4, generator=fixed)
    points = images.clone().requires_grad_()
    shown = diverse._shrunk(points, 0.5, side, top, left)
    gradient = torch.autograd.grad(nn.functional.cross_entropy(network(shown), labels), points)[0]
    expected = (images + 8 / 255 * gradient.sign()).clamp(0, 1)
    attack = DIFGSM(steps=1, step_size=8 / 255, probability=1.0, smallest=0.5)
    assert torch.allclose(attack(network, images, labels, generator=torch.Generator().manual_seed(5)), expected)
    plain = MIFGSM(steps=4)(network, images, labels)
    for share in (0.0, 1.0):
        diverse_too = DIFGSM(steps=4, probability=share, smallest=0.5)
        found = diverse_too(network, images, labels, generator=torch.Generator().manual_seed(5))
        assert torch.equal(found, plain) == (share == 0)
