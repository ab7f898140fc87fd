"""Bounds are never above what any attack leaves, exact where they must be, and tighter by the relaxation."""

import itertools

import pytest
import torch
from small import generator, pictures, small_network, small_split
from torch import nn

import models
from attacks import APGD, PGD, AutoAttack, margin
from attacks.pgd import bounds
from evaluation import certified, golden
from evaluation.certified import METHODS, margins, steps_of, withstands
from evaluation.flaws.attacks import Leaving
from evaluation.per_example import attacked
from evaluation.scores import Scores


def shallow():
    """All kinds of layers that are known, in a chain."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            models.Normalise((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)),
            nn.Conv2d(3, 4, 3, stride=1, padding=1),
            nn.BatchNorm2d(4),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(4, 6, 2),
            nn.ReLU(inplace=True),
            nn.Dropout(0.3),
            nn.AvgPool2d(2, stride=1),
            nn.Flatten(),
            nn.Sequential(nn.Linear(6 * 4, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Identity(), nn.Linear(10, 4)),
        )
        for norm in (network[2], network[10][1]):
            nn.init.normal_(norm.weight)  # of either sign
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.normal_(norm.running_mean)
    return network.eval()


def worst(model, images, labels, eps, norm="Linf"):
    """The least margins (N,) that attacks and the corners of the ball find."""
    found, low_high = margin(model(images), labels), bounds(images, eps)
    points = [PGD(eps=eps, step_size=eps / 5, steps=20, norm=norm)(model, images, labels)]
    points += [APGD(eps=eps, steps=20, loss=loss, norm=norm)(model, images, labels) for loss in ("ce", "targeted")]
    if norm == "Linf":
        draws = (torch.rand(images.shape, generator=generator(seed)) < 0.5 for seed in range(100))
        points += [torch.where(draw, *low_high) for draw in draws]
    for point in points:
        found = torch.minimum(found, margin(model(point), labels))
    return found


@pytest.mark.parametrize("make", [small_network, shallow])
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 1 / 255), ("Linf", 8 / 255), ("L2", 0.1)])
def test_no_attack_gets_below_a_bound_and_the_relaxation_is_tighter(make, norm, eps):
    model, (images, _) = make().eval().requires_grad_(False), pictures(16)
    labels = model(images).argmax(1)
    chain, found = steps_of(model, images), worst(model, images, labels, eps, norm)
    ball = (images, eps) if norm == "L2" else None
    plain, tight = (margins(chain, *bounds(images, eps), labels, relaxed, ball) for relaxed in (False, True))
    assert (tight <= found + 1e-5).all()
    assert (plain <= found + 1e-5).all()
    assert float((found - tight).mean()) < float((found - plain).mean()) / 2
    still = margins(chain, images, images, labels)  # within nothing both are the margin itself
    assert torch.allclose(still, margin(model(images), labels), atol=1e-5)


@pytest.mark.parametrize("relaxed", [False, True])
def test_on_a_linear_network_both_are_the_closed_form(relaxed):
    for known in golden.networks(8 / 255)[:3]:
        assert torch.equal(withstands(known.model, known.split, 8 / 255, relaxed=relaxed), known.surely)


def test_on_a_network_of_two_inputs_it_is_below_brute_force_and_near_it():
    draw = generator(3)
    network = nn.Sequential(
        nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)
    ).requires_grad_(False)
    for weight in network.parameters():
        weight.copy_(torch.randn(weight.shape, generator=draw))
    middle = torch.rand(40, 2, generator=draw)
    labels, chain = network(middle).argmax(1), steps_of(network, middle)
    grid = torch.tensor(list(itertools.product(torch.linspace(-1, 1, 41).tolist(), repeat=2)))
    for reach in (0.02, 0.1):
        logits = network((middle[:, None] + reach * grid).flatten(0, 1))
        least = margin(logits, labels.repeat_interleave(len(grid))).view(40, -1).amin(1)
        found = margins(chain, middle - reach, middle + reach, labels)
        assert (found <= least + 1e-5).all()
        if reach < 0.1:
            assert float((least - found).max()) < 0.2 * float(least.abs().median())


def test_max_pooling_is_the_larger_of_two_twice():
    """With an odd side, where the last row and column fall away."""
    images = torch.rand(5, 3, 7, 7, generator=generator())
    chain = steps_of(nn.Sequential(nn.MaxPool2d(2), nn.Flatten()), images)
    wanted = nn.functional.max_pool2d(images, 2).flatten(1)
    given = images
    for step in chain:
        given = step(given)
    assert torch.equal(given, wanted)
    low, high = bounds(images, 0.1)
    labels = torch.zeros(5, dtype=torch.long)
    far = nn.functional.max_pool2d(low, 2).flatten(1)[:, 0] - nn.functional.max_pool2d(high, 2).flatten(1)[
        :, 1:
    ].amax(1)
    assert torch.allclose(margins(chain, low, high, labels, False), far)
    assert (margins(chain, low, high, labels) <= far + 1e-6).all()  # the windows do not overlap: it is exact


def test_the_scores_say_what_is_between_the_bounds(tmp_path):
    model = small_network().eval()
    split = small_split(40)
    split.labels = model(split.batch(slice(None))[0]).argmax(1)
    scores = certified(model, split, PGD(eps=3 / 255, step_size=1 / 255))
    low, high = scores.share(METHODS[1]), scores.robust_accuracy()
    assert 0 < low < high < 1
    assert scores.share(METHODS[0]) <= low
    assert scores.unsettled == high - low
    assert f"between {100 * low:.1f} and {100 * high:.1f} % under PGD(ε=3/255" in str(scores)
    assert f"{100 * (high - low):.1f} % of the pictures are settled by neither" in str(scores)
    assert scores.table().loc[METHODS[1], "verdict"] == "–"
    scores.write(tmp_path, "certified")
    assert Scores.read(tmp_path / "certified.json").share(METHODS[1]) == low


def test_an_attack_that_goes_further_than_it_says_contradicts_the_bound():
    model, split = small_network().eval(), small_split(40)
    split.labels = model(split.batch(slice(None))[0]).argmax(1)
    (finding,) = certified(model, split, Leaving(eps=1 / 255, step_size=2 / 255)).findings[:1]
    assert (finding.check, finding.severity) == ("certified", "invalid")
    assert not certified(model, split, PGD(eps=1 / 255)).findings


def test_the_shallow_network_and_a_wrapped_one_are_bounded():
    images, _ = pictures(2)
    split = small_split(3)
    split.images = torch.randint(256, (3, 3, 32, 32), generator=generator(), dtype=torch.uint8)
    model = models.build("shallow_cnn", 4)
    split.labels = model.eval()(split.batch(slice(None))[0]).argmax(1)
    assert withstands(model, split.first(1), 1e-4 / 255).all()
    assert not withstands(model, split, 0.5, relaxed=False).any()
    wrapped = models.wrap(shallow(), mean=(0.5,) * 3, std=(0.5,) * 3)
    assert len(steps_of(wrapped, images)) == len(steps_of(shallow(), images)) + 1
    grey = models.build("shallow_cnn", 4)
    assert steps_of(grey, torch.rand(2, 1, 32, 32))


def test_a_network_is_left_as_it_was():
    model = small_network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    withstands(model, small_split(4), 1 / 255)
    assert model.training
    assert all(weight.requires_grad for weight in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Backwards(nn.Sequential):
    """Layers in another order than they stand in."""

    def forward(self, x):
        for layer in reversed(self):
            x = layer(x)
        return x


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: models.build("resnet18", 4, width=4), "no bounds are known for ResNet"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.GELU()), "GELU"),
        (lambda: nn.Sequential(nn.MaxPool2d(3), nn.Flatten(), nn.Linear(12, 4)), "MaxPool2d\\(kernel_size=3"),
        (
            lambda: nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten(), nn.Linear(192, 4)),
            "BatchNorm2d",
        ),
        (lambda: Backwards(nn.Linear(192, 4), nn.Flatten()), "Backwards"),
    ],
)
def test_a_layer_that_is_not_known_is_refused_by_name(make, says):
    with pytest.raises(ValueError, match=says):
        withstands(make(), small_split(2), 1 / 255)


def test_a_layer_that_does_something_beside_is_refused():
    model = small_network().eval()
    model[0].register_forward_hook(lambda layer, inputs, out: 2 * out)
    model[2] = nn.ReLU()
    model[2].register_forward_hook(lambda layer, inputs, out: out + 1)
    with pytest.raises(ValueError, match="do not give what it gives"):
        withstands(model, small_split(2), 1 / 255)


def test_what_is_no_attack_or_in_another_norm_is_refused():
    with pytest.raises(TypeError, match="no attack"):
        certified(small_network(), small_split(2), 8 / 255)


def test_what_is_certified_stands_against_everything(sound, blobs):
    """On trained networks, against the strongest attack there is."""
    for name, eps in (("standard", 1 / 255), ("pgd", 3 / 255)):
        few = blobs.test.first(48)
        sure = withstands(sound[name], few, eps).nonzero()[:, 0]
        assert len(sure) > 10
        assert attacked(sound[name], sound[name], few, AutoAttack(eps=eps, steps=10, queries=50), sure, 0)[0].all()
