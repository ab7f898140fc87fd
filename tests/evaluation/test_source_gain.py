"""source_gain() and feature_bound(): exact where the truth is known, and intervals that hold it."""

from dataclasses import replace

import pytest
import torch
from small import small_network
from torch import nn

import models
from attacks import APGD, PGD
from evaluation import feature_bound, source_gain, testing
from evaluation.finding import CLEAN, Finding
from evaluation.per_example import predict
from evaluation.scores import Scores


def scores(n, clean, robust, seed=0):
    """Scores of n pictures: the first `clean` are right, of these the first `robust` withstand; in drawn order."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    outcomes = {CLEAN: order < clean, "PGD-20": order < robust}
    return Scores("a split", outcomes, {"PGD-20": "PGD(ε=8/255)"}, pictures="the same")


def test_the_parts_add_up_and_are_what_they_say():
    gain = source_gain([[scores(100, 80, 60)]], [[scores(100, 50, 20)]], "PGD-20")
    assert gain.total.value == pytest.approx(0.40)
    assert gain.by_accuracy.value == pytest.approx(0.30 * (0.75 + 0.4) / 2)
    assert gain.by_withstanding.value == pytest.approx(0.35 * (0.8 + 0.5) / 2)
    assert gain.by_accuracy.value + gain.by_withstanding.value == pytest.approx(gain.total.value)
    assert gain.equal is None
    assert "cannot be told" in str(gain)


def test_at_equal_accuracy_only_what_is_beyond_it_counts():
    """B goes from (40, 10) to (80, 30), so at 60 % it has 20 %; A has 60 and 20, or 60 and 35."""
    b = [[scores(1000, 400, 100)], [scores(1000, 800, 300)]]
    same = source_gain([[scores(1000, 500, 150)], [scores(1000, 600, 200)]], b, "PGD-20")
    assert same.at == pytest.approx(0.6)
    assert same.equal.value == pytest.approx(0)
    assert same.equal.sign == 0
    assert "no more than" in str(same)
    more = source_gain([[scores(1000, 600, 350)]], b, "PGD-20")
    assert more.equal.value == pytest.approx(0.15)
    assert "robustness itself is carried over" in str(more)
    assert "costs robustness" in str(source_gain(b, [[scores(1000, 600, 350)]], "PGD-20"))


def test_seeds_count_with_their_mean():
    a, b = [[scores(100, 80, 60), scores(100, 60, 40, seed=1)]], [[scores(100, 50, 20)]]
    gain = source_gain(a, b, "PGD-20")
    assert gain.total.value == pytest.approx(0.30)
    assert gain.by_accuracy.value == pytest.approx(0.20 * (50 / 70 + 0.4) / 2)


def test_seeds_that_disagree_carry_nothing_over():
    """In the mean A has 15 points more at 60 %, but not with each seed: the interval over seeds says so."""
    b = [[scores(1000, 400, 100)] * 2, [scores(1000, 800, 300)] * 2]
    agree = source_gain([[scores(1000, 600, 345), scores(1000, 600, 355)]], b, "PGD-20").equal
    assert agree.value == pytest.approx(0.15)
    assert agree.sign == 1
    gain = source_gain([[scores(1000, 600, 190), scores(1000, 600, 510)]], b, "PGD-20")
    assert gain.equal.value == pytest.approx(0.15)
    assert gain.equal.low > 0  # over pictures alone
    assert gain.equal.over_seeds[0] < 0
    assert "robustness itself is carried over" not in str(gain)


def test_no_interval_is_without_width_and_it_is_the_same_each_time():
    nothing = [[scores(100, 50, 0)]], [[scores(100, 50, 0)]]
    gain = source_gain(*nothing, "PGD-20")
    assert gain.total.low < 0 < gain.total.high
    assert gain == source_gain(*nothing, "PGD-20")


@pytest.mark.long
def test_the_intervals_hold_the_truth_in_95_of_100_draws():
    """C is 0.7 and 0.6, S is 0.5 and 0.4, the two networks independent: the parts are known."""
    truth = {"total": 0.11, "by_accuracy": 0.1 * 0.45, "by_withstanding": 0.1 * 0.65}
    held, draws = dict.fromkeys(truth, 0), 150
    for seed in range(draws):
        chance = torch.rand(4, 200, generator=torch.Generator().manual_seed(seed))
        right = chance[0] < 0.7, chance[1] < 0.6
        outcomes = [{CLEAN: one, "PGD-20": one & (chance[2 + i] < 0.5 - 0.1 * i)} for i, one in enumerate(right)]
        a, b = (replace(scores(200, 1, 1), outcomes=one) for one in outcomes)
        gain = source_gain([[a]], [[b]], "PGD-20")
        for name, value in truth.items():
            held[name] += getattr(gain, name).low <= value <= getattr(gain, name).high
    assert all(0.89 <= count / draws <= 0.99 for count in held.values()), held


def test_other_pictures_or_attacks_are_refused():
    with pytest.raises(ValueError, match="not of the same examples"):
        source_gain([[scores(100, 80, 60)]], [[replace(scores(100, 50, 20), pictures="others")]], "PGD-20")
    other = replace(scores(100, 50, 20), attacks={"PGD-20": "PGD(ε=4/255)"})
    with pytest.raises(ValueError, match="different attacks"):
        source_gain([[scores(100, 80, 60)]], [[other]], "PGD-20")


def test_pixels_as_features_move_as_far_as_the_ball_is_wide(blobs):
    """Features are the pixels, so the move is known; and what the bound says withstands, withstands."""
    split = blobs.test
    linear = nn.Sequential(nn.Flatten(), nn.Linear(split.images[0].numel(), 4))
    attack = PGD(eps=2 / 255, step_size=1 / 255)
    table = feature_bound(models.wrap(linear), split, attack)
    images, labels = split.batch(torch.arange(len(split)))
    inside = ((images > 2 / 255) & (images < 253 / 255)).flatten(1).sum(1)
    assert (table.moved >= 2 / 255 * inside.sqrt().numpy() - 1e-4).all()
    assert (table.moved <= 2 / 255 * images[0].numel() ** 0.5 + 1e-6).all()
    assert ((table.room > 0) == (predict(linear, split).argmax(1) == labels).numpy()).all()
    stands = testing.test(linear, split, [attack], progress=False).outcomes[attack.label].numpy()
    assert not (table.withstands.to_numpy() & ~stands).any()


def test_the_bound_holds_for_a_trained_network_and_says_something(sound, blobs):
    attack = PGD(eps=2 / 255, step_size=0.5 / 255, steps=20)
    said = {name: feature_bound(model, blobs.test, attack) for name, model in sound.items()}
    stands = testing.test(sound["pgd"], blobs.test, [attack], progress=False).outcomes[attack.label].numpy()
    assert not (said["pgd"].withstands.to_numpy() & ~stands).any()
    assert said["pgd"].withstands.mean() > said["standard"].withstands.mean()
    assert feature_bound(sound["pgd"], blobs.test, attack).equals(said["pgd"])


def test_what_it_cannot_measure_is_refused(blobs):
    with pytest.raises(ValueError, match="without restarts"):
        feature_bound(small_network(), blobs.test, PGD(restarts=2))
    with pytest.raises(ValueError, match="without restarts"):
        feature_bound(small_network(), blobs.test, APGD())
    with pytest.raises(ValueError, match="random start"):
        feature_bound(small_network(), blobs.test, PGD(random_start=False))
    pooled = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match="linear layer"):
        feature_bound(pooled, blobs.test, PGD())


@pytest.mark.parametrize("rows", [(), ("PGD-20",), (CLEAN,)])
def test_an_invalid_number_gains_nothing(rows):
    weak = scores(100, 80, 60)
    weak.findings = [Finding("masked gradient", "invalid", 1, 0, "its gradient is zero", rows)]
    told = str(source_gain([[weak]], [[scores(100, 50, 20)]], "PGD-20"))
    assert told == "cannot be told, because a number is invalid: its gradient is zero"
    weak.findings = [Finding("masked gradient", "invalid", 1, 0, "its gradient is zero", ("FGSM",))]
    assert "invalid" not in str(source_gain([[weak]], [[scores(100, 50, 20)]], "PGD-20"))
