"""The checks of gradients: what they measure by hand, from which threshold on, and that sound networks pass."""

import math

import pytest
import torch
from small import Quarters, generator, pictures, quarters
from torch import nn

from attacks import PGD, evaluating
from evaluation import gradients
from evaluation.flaws.models import Flawed


class Told(torch.autograd.Function):
    """The identity, with a gradient that many times too large for the first `count` pictures."""

    @staticmethod
    def forward(ctx, images, factor, count):
        ctx.factor, ctx.count = factor, count
        return images.clone()

    @staticmethod
    def backward(ctx, gradient):
        wrong = torch.arange(len(gradient)) < ctx.count
        return torch.where(wrong[:, None, None, None], ctx.factor * gradient, gradient), None, None


def told(factor, count):
    return Flawed(Quarters(), lambda inner, images: inner(Told.apply(images, factor, count)))


@pytest.mark.parametrize(
    ("factor", "count", "is_found"),
    [
        (1, 10, False),
        (1.9, 10, False),
        (2.2, 10, True),
        (0.55, 10, False),
        (0.45, 10, True),
        (-1, 10, True),
        (3, 1, False),
        (3, 2, True),
        (0, 10, False),
        (math.nan, 10, False),
    ],
)
def test_a_gradient_is_the_slope_of_the_answers(factor, count, is_found):
    """Off by over a factor of two, for over a tenth of 10 pictures; none at all is another check's."""
    images, labels = quarters(10).batch(slice(None))
    images = images * 0.9 + 0.05
    found = gradients.true_gradient(told(factor, count), images, labels)
    assert (found is not None) == is_found
    if is_found:
        assert (found.severity, found.measured) == ("suspect", pytest.approx(count / 10))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_what_the_ball_still_offers_is_counted_from_nothing_to_all(norm):
    """The network is linear: its gradient is the same everywhere, so the share is known."""
    model, attack = Quarters(), PGD(norm=norm, eps=0.01)
    images, labels = quarters(20).batch(slice(None))
    images = images * 0.5 + 0.25
    gradient = gradients.input_gradient(model, images, labels)
    ahead = gradient.sign() if norm == "Linf" else gradient / gradients.lengths(gradient)
    for part, share in ((1.0, None), (0.6, None), (0.4, 0.6), (0.0, 1.0), (-1.0, 2.0)):
        found = gradients.first_order(model, attack, images, images + part * attack.eps * ahead, labels)
        assert (found and found.measured) == (share and pytest.approx(share, abs=1e-3)), part


def test_what_the_box_takes_is_not_offered():
    """At a white picture nothing above 1 can be had: going down where the gradient says so is all there is."""
    model, labels = Quarters(), torch.zeros(4, dtype=torch.int64)
    images = torch.ones(4, 3, 8, 8) - 0.005 * torch.eye(8)
    with torch.no_grad():
        images[:, :, 4:] -= 0.1  # so that it is right
        ends = (images + 0.01 * gradients.input_gradient(model, images, labels).sign()).clamp(0, 1)
    assert gradients.first_order(model, PGD(eps=0.01), images, ends, labels) is None


class Rounds(nn.Module):
    def forward(self, images):
        return (images * 20).round() / 20


class Negative(nn.Module):
    def forward(self, images):
        return 1 - images


class Same(nn.Module):
    def forward(self, images):
        return images.clone()


def test_parts_that_a_gradient_does_not_get_through_are_taken_out(network):
    images, _ = pictures(32)
    network.eval()
    smooth, kinds = gradients.without_odd_parts(nn.Sequential(Rounds(), nn.Sequential(Rounds(), network)), images)
    assert kinds == "Rounds"
    with torch.no_grad():
        assert torch.equal(smooth(images), network(images))
    assert gradients.without_odd_parts(network, images) is None  # all layers are torch's
    for part in (Negative(), Same(), nn.Dropout()):  # another picture altogether; nothing; a layer of torch
        assert gradients.without_odd_parts(nn.Sequential(part, network), images) is None


def test_the_network_keeps_its_parts_and_no_hook(network):
    images, _ = pictures()
    model = nn.Sequential(Rounds(), network).eval()
    before = model(images)
    gradients.without_odd_parts(model, images)
    assert isinstance(model[0], Rounds)
    assert not model[0]._forward_hooks
    assert torch.equal(model(images), before)


def test_pgd_arrives_on_sound_networks(sound, blobs):
    images, labels = blobs.test.batch(slice(64))
    for model in sound.values():
        for attack in (PGD(), PGD(norm="L2", eps=0.2)):
            with evaluating(model):
                points = attack.craft(model, images, labels, generator())
                assert gradients.first_order(model, attack, images, points, labels) is None
                assert gradients.true_gradient(model, points * 0.9 + 0.05, labels) is None
