"""Intervals, differences with theirs, and seeds combined."""

import itertools
import math
import random
from statistics import mean

import pytest
import torch
from scipy.stats import binomtest, ttest_1samp
from small import late, outcomes

from evaluation.finding import CLEAN
from evaluation.scores import Scores
from evaluation.statistics import (
    Difference,
    difference,
    expected_robustness,
    holm,
    independent_difference,
    independent_ratio,
    mcnemar,
    over_seeds,
    paired,
    paired_kept,
    survival,
    wilson,
)


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (1, 7), (480, 1000), (4999, 10_000)])
def test_wilson_equals_scipys(correct, n):
    expected = binomtest(correct, n).proportion_ci(0.95, "wilson")
    assert wilson(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_the_interval_holds_its_share():
    for n in (1, 3, 7, 200, 1000):
        for correct in {0, 1, n // 2, n - 1, n}:
            low, high = wilson(correct, n)
            assert 0 <= low <= correct / n <= high <= 1


@pytest.mark.parametrize(("correct", "n"), [(3, 2), (-1, 2), (0, 0)])
def test_wilson_refuses_nonsense(correct, n):
    with pytest.raises(ValueError, match=f"{correct} correct of {n}"):
        wilson(correct, n)


def test_paired_difference_is_that_of_the_literature():
    # Fagerland, Lydersen & Laake 2014, airway hyperresponsiveness: 1, 1, 7, 12.
    a, b = outcomes(1, 1, 7, 12)
    gap = difference([a], [b], "clean")
    assert gap.value == pytest.approx(-6 / 21)
    assert (gap.low, gap.high) == pytest.approx((-0.508, -0.013), abs=1e-3)
    # The exact test has p = 0.070: interval and test do not agree, so nothing is claimed.
    assert gap.p == pytest.approx(0.0703, abs=1e-4)
    assert gap.sign == 0


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (5, 5), (3, 17), (40, 12), (900, 1100)])
def test_mcnemar_is_the_binomial_test(only_a, only_b):
    a, b = (score.outcomes["clean"] for score in outcomes(50, only_a, only_b, 10))
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1
    assert mcnemar(a, b) == mcnemar(b, a) == pytest.approx(expected, rel=1e-9)


def test_seeds_are_combined_with_their_spread(scores):
    other = Scores("blobs test", scores.outcomes | {"FGSM": torch.ones(5, dtype=torch.bool)}, scores.attacks)
    table = over_seeds([scores, other])
    assert table.loc["FGSM", ["mean", "lowest", "highest", "seeds"]].tolist() == [70, 40, 100, 2]
    assert table.spread["FGSM"] == pytest.approx(30 * 2**0.5)
    assert list(table.verdict) == ["no finding", "invalid", "no finding", "no finding"]
    assert over_seeds([scores]).spread.isna().all()
    with pytest.raises(ValueError, match="different attacks"):
        over_seeds([scores, Scores("blobs test", scores.outcomes, scores.attacks | {"FGSM": "FGSM(ε=2/255)"})])


def test_independent_difference_is_newcombes():
    gap = independent_difference([(56, 70)], [(48, 80)])  # his example, method 10
    assert (gap.value, gap.low, gap.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
    assert gap.sign == 1
    assert independent_difference([(0, 0)], [(1, 2)]).sign == 0


def test_a_ratio_covers_the_truth_and_knows_its_limits():
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(1000):
        one, two = (int((torch.rand(n, generator=generator) < p).sum()) for n, p in ((150, 0.2), (120, 0.4)))
        ratio = independent_ratio((one, 150), (two, 120))
        assert ratio.low <= ratio.value <= ratio.high
        held += ratio.low <= 0.5 <= ratio.high
    assert 0.93 < held / 1000 < 0.98
    # The textbook's interval on the logarithm agrees where counts are large.
    large = independent_ratio((4000, 10_000), (5000, 10_000))
    reach = 1.96 * math.sqrt(1 / 4000 + 1 / 5000 - 2 / 10_000)
    assert (large.low, large.high) == pytest.approx((0.8 * math.exp(-reach), 0.8 * math.exp(reach)), rel=1e-3)
    none = independent_ratio((0, 50), (20, 50))
    assert none.value == none.low == 0 < none.high < 0.25
    assert str(independent_ratio((5, 50), (0, 50))) == "–"
    few = independent_ratio((3, 50), (1, 50))
    assert 0 < few.low < 1 < few.value < few.high
    assert str(independent_ratio((30, 100), (60, 100))).startswith("50 % [")


def test_survival_compares_shares_of_right_answers():
    right = torch.arange(100)

    def score(split, clean, robust, attack="PGD(20 steps)"):
        return Scores(split, {"clean": right < clean, "PGD": right < robust}, {"PGD": attack})

    found = survival(score("100 classes", 40, 20), score("10 classes", 80, 20), "PGD")
    assert found.value == pytest.approx((20 / 80) / (20 / 40))
    assert found == independent_ratio((20, 80), (20, 40))
    assert math.isnan(survival(score("a", 40, 20), score("b", 0, 0), "PGD").value)
    assert math.isnan(survival(score("a", 40, 9), score("b", 40, 20), "PGD").value)
    assert survival(score("a", 40, 10), score("b", 40, 0), "PGD").value == 0
    with pytest.raises(ValueError, match="different attacks"):
        survival(score("a", 40, 20), score("b", 40, 20, "PGD(5 steps)"), "PGD")


def test_one_network_under_two_attacks_is_compared_by_example():
    right = torch.arange(100)
    score = Scores("x", {"clean": right < 80, "FGSM": right < 60, "PGD": right < 30}, {"FGSM": "a", "PGD": "b"})
    gap = difference([score], [score], "FGSM", "PGD")
    assert gap.value == pytest.approx(0.3)
    assert gap.sign == 1
    assert gap == paired([score.outcomes["FGSM"]], [score.outcomes["PGD"]])


def test_the_paired_interval_covers_the_truth():
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(400):
        draw = torch.rand(200, generator=generator)
        counts = [int(((draw >= low) & (draw < high)).sum()) for low, high in ((0, 0.4), (0.4, 0.6), (0.6, 0.7))]
        gap = difference(*[[one] for one in outcomes(*counts, 200 - sum(counts))], "clean")
        held += gap.low <= 0.1 <= gap.high
    assert held / 400 > 0.92


@pytest.mark.parametrize(("right", "withstands", "alike"), [(0.8, 0.5, 0.9), (0.75, 0.4, 0.0), (0.5, 0.95, 0.5)])
def test_the_interval_of_shares_of_right_answers_covers_the_truth(right, withstands, alike):
    """Two networks that are right, and withstand, with these chances, so far as alike on the same pictures."""
    generator, covered, widths = torch.Generator().manual_seed(0), 0, []
    for _ in range(400):
        luck = torch.rand(3, 2, 400, generator=generator)
        shared = torch.rand(400, generator=generator) < alike
        one, two = ((luck[side, 0] < right, luck[side, 1] < withstands) for side in (0, 1))
        two = tuple(torch.where(shared, *pair) for pair in zip(one, two, strict=True))
        gap = paired_kept([one], [two])
        covered += gap.low <= 0 <= gap.high
        widths.append(gap.high - gap.low)
    assert 0.93 <= covered / 400 <= 0.99
    alone = independent_difference(*([(round(400 * right * withstands), round(400 * right))] for _ in range(2)))
    assert mean(widths) < (1.07 - 0.6 * alike) * (alone.high - alone.low)


def test_shares_of_right_answers_of_the_same_network_do_not_differ():
    right, withstands = torch.ones(100, dtype=torch.bool), torch.arange(100) < 30
    gap = paired_kept([(right, withstands)], [(right, withstands)])
    assert gap.value == 0
    assert -0.05 < gap.low < 0 < gap.high < 0.05
    assert paired_kept([(right, right)], [(right, withstands)]).sign == 1


def test_equal_networks_cannot_be_told_apart():
    a, b = outcomes(100, 0, 0, 50)
    gap = difference([a], [b], "clean")
    assert gap.sign == 0
    shown = f"+0.0 points [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}], p = 1.000, inside the noise"
    assert str(gap) == shown
    assert str(Difference(-0.0002, -0.006, -0.0001)).startswith("+0.0 points [-0.6, +0.0]")  # no -0.0


def test_other_examples_are_not_paired():
    a, _ = outcomes(1, 1, 1, 1)
    with pytest.raises(ValueError, match="not of the same examples"):
        difference([a], [Scores("other test", a.outcomes)], "clean")


def test_seeds_that_tie_are_no_agreement():
    highs, lows = (
        [outcomes(300, 0, 0, 100)[0], outcomes(200, 0, 0, 200)[0]],
        [outcomes(200, 0, 0, 200)[0], outcomes(100, 0, 0, 300)[0]],
    )
    assert difference(highs, lows, "clean").sign == difference(lows, highs, "clean").sign == 0
    assert difference(highs[:1], lows, "clean").sign == -difference(lows, highs[:1], "clean").sign == 1
    assert independent_difference([(300, 400), (200, 400)], [(200, 400), (100, 400)]).sign == 0


def test_one_label_for_two_attacks_is_not_compared():
    a, b = outcomes(10, 5, 1, 5)
    for score, eps in ((a, 2), (b, 8)):
        score.outcomes["PGD-20"] = score.outcomes["clean"]
        score.attacks["PGD-20"] = f"PGD(ε={eps}/255)"
    with pytest.raises(ValueError, match="stands for different attacks"):
        difference([a], [b], "PGD-20")


def test_an_end_that_is_printed_as_zero_is_zero():
    assert Difference(0.019, 0.0001, 0.038).sign == 0  # +0.0 to +3.8 points
    assert Difference(0.019, 0.001, 0.038).sign == 1
    assert Difference(-0.019, -0.038, -0.001).sign == -1


def test_the_worst_case_over_other_attacks_is_not_compared(scores):
    stronger = Scores("blobs test", scores.outcomes, scores.attacks | {"PGD-10": "PGD(ε=16/255)"})
    with pytest.raises(ValueError, match="over different attacks"):
        difference([scores], [stronger], "worst case")
    with pytest.raises(ValueError, match="not of the same examples"):
        over_seeds([scores, Scores("other test", scores.outcomes, scores.attacks)])


def test_holm_is_the_closed_test_of_bonferroni():
    """A hypothesis is rejected where every set of hypotheses that holds it is (Marcus, Peritz & Gabriel 1976)."""
    draw = random.Random(0)
    for count in (1, 2, 3, 5, 7):
        p = [round(draw.random() ** 3, 3) for _ in range(count)]  # ties among them
        places = range(count)
        sets = [s for size in places for s in itertools.combinations(places, size + 1)]
        closed = [max(min(1, len(s) * min(p[i] for i in s)) for s in sets if place in s) for place in places]
        assert holm(p) == pytest.approx(closed)
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # by hand
    assert holm([]) == []


def test_without_effects_holm_claims_something_in_one_study_of_twenty():
    draw, studies = random.Random(0), 4000
    plain = corrected = 0
    for _ in range(studies):
        p = [draw.random() for _ in range(26)]
        plain += min(p) < 0.05
        corrected += min(holm(p)) < 0.05
    assert plain / studies > 0.7
    assert corrected / studies == pytest.approx(0.05, abs=0.015)


COVERED = [late(seeds, luck) for seeds in (2, 3, 5) for luck in (0.0, 0.01, 0.02, 0.04)]


def trained(base, luck, gap, generator, pictures=500):
    """Outcomes of A and B for each of some seeds, which differ in their luck; A is better by `gap`."""
    hard = torch.rand(pictures, generator=generator)

    def run(accuracy):
        lucky = accuracy + luck * torch.randn(1, generator=generator)
        return hard + 0.1 * torch.randn(pictures, generator=generator) < lucky

    return lambda seeds: ([run(base + gap) for _ in range(seeds)], [run(base) for _ in range(seeds)])


@pytest.mark.parametrize(("seeds", "luck"), [(2, 0.08), (3, 0.0), (3, 0.08), *COVERED])
def test_the_interval_over_seeds_covers_other_seeds_and_other_pictures(seeds, luck):
    """Where that over pictures alone does not: with much luck it mostly misses the truth."""
    generator, held, alone, times = torch.Generator().manual_seed(seeds), 0, 0, 200
    for _ in range(times):
        gap = paired(*trained(0.5, luck, 0.05, generator)(seeds))
        low, high = gap.over_seeds
        held += low <= 0.05 <= high
        alone += gap.low <= 0.05 <= gap.high
    assert held / times > 0.92
    assert luck < 0.08 or alone / times < 0.75


def test_of_many_pictures_the_interval_over_seeds_is_students():
    shares = [(0.61, 0.50), (0.66, 0.52), (0.63, 0.49)]
    gap = independent_difference(
        *([(round(share * 10**9), 10**9) for share in some] for some in zip(*shares, strict=True))
    )
    expected = ttest_1samp([one - two for one, two in shares], 0)
    assert gap.over_seeds == pytest.approx(tuple(expected.confidence_interval(0.95)), abs=1e-6)
    assert gap.p == pytest.approx(expected.pvalue, rel=1e-3)
    assert gap.widest == gap.over_seeds


def test_the_p_is_that_at_which_the_interval_touches_zero():
    touching = independent_difference([(60, 100)], [(46, 100)])
    assert touching.p < 0.05 < independent_difference([(60, 100)], [(47, 100)]).p
    assert independent_difference([(60, 100)], [(47, 100)]).low < 0 < touching.low
    assert touching.over_seeds is None
    assert independent_difference([(50, 100)], [(50, 100)]).p == pytest.approx(1)
    assert str(independent_difference([(900, 1000)], [(100, 1000)])).endswith("], p < 0.001")


def test_few_seeds_decide_little_and_unequal_numbers_of_them_are_told_by_pictures():
    a, b = ([torch.arange(1000) < count for count in counts] for counts in ((620, 580), (500, 500)))
    gap = paired(a, b)
    assert gap.low > 0.05
    assert gap.over_seeds[0] < 0 < gap.value < gap.over_seeds[1]
    assert gap.sign == 0
    assert "over seeds [-1" in str(gap)
    assert str(gap).endswith("inside the noise")
    unequal = paired(a, b[:1])
    assert unequal.over_seeds is None
    assert unequal.sign == 1
    assert unequal.p < 0.001


def test_the_mean_over_seeds_has_students_interval(scores):
    runs = [Scores("x", {CLEAN: torch.arange(100) < right}, weights=str(right)) for right in (60, 70, 71)]
    row = over_seeds(runs).loc[CLEAN]
    expected = ttest_1samp([60, 70, 71], 0).confidence_interval(0.95)
    assert (row.low, row.high) == pytest.approx(tuple(expected))
    assert over_seeds(runs[:2]).high[CLEAN] == 100  # and not 128


def test_expected_robustness_is_the_mean_over_eps():
    """Of pictures that fall at some ε each, it is the mean of where they fall, as a share of the limit."""
    limit, falls = 8 / 255, 12 / 255 * torch.rand(200, generator=torch.Generator().manual_seed(0))
    sizes = [limit * step / 2000 for step in range(2001)]
    shares = [float((falls > size).double().mean()) for size in sizes]
    mean = float((falls.clamp_max(limit) / limit).double().mean())
    assert expected_robustness(sizes, shares) == pytest.approx(mean, abs=1e-3)
    assert expected_robustness([0, 1, 2], [0.8, 0.4, 0.0]) == pytest.approx(0.4)
    assert expected_robustness([0, 1, 2], [0.8, 0.4, 0.0], 1) == pytest.approx(0.6)
    assert expected_robustness([0, 1, 2], [0.8, 0.4, 0.0], 1.5) == pytest.approx(0.5)
    assert expected_robustness([0, 8], [0.5, 0.5]) == pytest.approx(0.5)
    for sizes, limit in (([1, 2], None), ([0, 1], 2), ([0, 2, 1], None), ([0], None), ([0, 1], 0)):
        with pytest.raises(ValueError, match="from 0 to"):
            expected_robustness(sizes, [0.5] * len(sizes), limit)
