"""Intervals of accuracies, differences of networks with theirs, what several seeds have in common."""

import functools
import math
from dataclasses import dataclass

import pandas as pd
import torch

from evaluation.finding import CLEAN, VERDICTS, WORST

FEWEST = 10  # of a source's right answers must withstand for a share of them to mean something


@functools.cache  # a table asks for the same intervals again and again, and each takes a millisecond
def wilson(correct, n, confidence=0.95):
    """The Wilson interval of a share (Wilson 1927): (low, high), both in [0, 1]; of 95 % if not told otherwise."""
    from scipy.stats import binomtest  # imported late: it takes a second

    if not 0 <= correct <= n or n < 1:
        raise ValueError(f"{correct} correct of {n}: 0 to n of at least 1 is possible")
    interval = binomtest(correct, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Difference:
    """A minus B, in shares, with its 95 % interval. It is told apart from zero or it is not."""

    value: float
    low: float
    high: float
    consistent: bool = True  # every pair of seeds says the same
    p: float | None = None  # of McNemar's exact test, where one run is compared with one

    @property
    def sign(self):
        """1 or -1 where the interval, as it is printed, leaves out zero, p < 0.05 and all seeds agree, else 0."""
        low, high = round(100 * self.low, 1), round(100 * self.high, 1)
        noise = low <= 0 <= high or (self.p is not None and self.p >= 0.05)
        return 0 if noise or not self.consistent else 1 if low > 0 else -1

    def __str__(self):
        p = "" if self.p is None else ", p < 0.001" if self.p < 0.001 else f", p = {self.p:.3f}"
        noise = "" if self.sign else ", inside the noise"
        return f"{100 * self.value:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}]{p}{noise}"


def difference(a, b, label, against=None):
    """How much more of "clean", of an attack or of the "worst case" A withstands than B, paired by example.

    `a` and `b` are lists of Scores on the same split, one a seed; an example counts with its mean over the
    seeds. `against` is what B is to withstand, where that is something else than for A. The interval covers the
    choice of the examples; that of the seeds shows in whether they agree. Raises ValueError where the examples are
    not the same.
    """
    other = label if against is None else against
    check_examples((*a, *b))
    for one in {label, other}:
        check_attacks((*a, *b), one)
    return paired([s.outcome(label) for s in a], [s.outcome(other) for s in b])


def paired(a, b):
    """The difference of two shares of the same examples; `a` and `b` are lists of outcomes, bool (N,), one a seed.

    The interval is that of Bonett & Price 2012 for paired shares (two pseudo-examples, one each way).
    """
    mean_a, mean_b = (torch.stack([outcome.double() for outcome in some]).mean(0) for some in (a, b))
    n = len(mean_a) + 2
    gaps = mean_a - mean_b
    centre = float(gaps.sum()) / n
    reach = 1.959964 * math.sqrt(((float(gaps.square().sum()) + 2) / n - centre**2) / n)
    pairs = [(float(one.double().mean()), float(two.double().mean())) for one in a for two in b]
    p = mcnemar(a[0], b[0]) if len(a) == len(b) == 1 else None
    return Difference(float(gaps.mean()), max(-1.0, centre - reach), min(1.0, centre + reach), _agree(pairs), p)


def mcnemar(a, b):
    """Two-sided p of McNemar's exact test (1947): do A and B, bool (N,), differ on the same examples?

    Only examples that one of them gets right count; if the two were equally good, each would have half of these.
    """
    from scipy.stats import binomtest  # imported late: it takes a second

    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return float(binomtest(min(only_a, only_b), only_a + only_b).pvalue) if only_a + only_b else 1.0


def over_seeds(scores):
    """What runs that differ in their seed have in common: a row an evaluation, in percent.

    `scores` is a list of Scores, one a seed, of the same examples and attacks. The spread is the standard
    deviation between seeds (n - 1): how far another seed may lie. The intervals of single runs say how far other
    pictures may.
    """
    tables = [score.table() for score in scores]
    labels = [label for label in tables[0].index if all(label in table.index for table in tables)]
    check_examples(scores)
    weights = [score.weights for score in scores if score.weights]
    if len(set(weights)) < len(weights):
        raise ValueError("two of these scores are of the same weights: that is one seed, not two")
    rows = {}
    for label in labels:
        check_attacks(scores, label)
        shares = 100 * torch.tensor([score.share(label) for score in scores], dtype=torch.float64)
        spread = float(shares.std()) if len(shares) > 1 else math.nan
        verdicts = {score.verdict(label) for score in scores}
        rows[label] = {"mean": float(shares.mean()), "spread": spread, "lowest": float(shares.min())}
        rows[label] |= {"highest": float(shares.max()), "seeds": len(scores)}
        rows[label]["verdict"] = max(verdicts, key=VERDICTS.index) or "no finding"
    return pd.DataFrame.from_dict(rows, orient="index")


def check_examples(scores):
    """Raise ValueError unless all scores are of the same examples, crafted on the same kind of source."""
    there = [(score.split, score.n, score.carried or "white box", score.pictures) for score in scores]
    if len(set(there)) != 1:
        raise ValueError(f"these scores are not of the same examples: {there}")


def check_attacks(scores, label):
    """Raise ValueError where the same label stands for attacks with different settings."""
    if label == WORST:
        lists = {tuple(sorted(score.attacks.values())) for score in scores}
        if len(lists) > 1:
            raise ValueError(f"the worst case is over different attacks: {'; '.join(map(str, sorted(lists)))}")
    settings = {score.attacks[label] for score in scores if label in score.attacks}
    if len(settings) > 1:
        raise ValueError(f"{label} stands for different attacks: {', '.join(sorted(settings))}")


def _agree(pairs):
    """Do all pairs of seeds say the same: above, below, or equal?"""
    return len({(one > two) - (one < two) for one, two in pairs}) == 1


def independent_difference(a, b):
    """The difference of two shares of different examples, each a list of (hits, n), one a seed.

    The interval is Newcombe's of 1998 (method 10), from the Wilson intervals; seeds count with their mean, which
    for these is rounded outwards to whole examples.
    """

    def mean(counts):
        share = sum(hits / max(n, 1) for hits, n in counts) / len(counts)
        n = max(1, round(sum(n for _, n in counts) / len(counts)))
        hits = round(share * n, 6)  # whole where it is but for the last digits
        return share, share - wilson(math.floor(hits), n)[0], wilson(math.ceil(hits), n)[1] - share

    (one, down_one, up_one), (two, down_two, up_two) = mean(a), mean(b)
    down, up = math.hypot(down_one, up_two), math.hypot(up_one, down_two)
    pairs = [(x / max(n, 1), y / max(m, 1)) for x, n in a for y, m in b]
    return Difference(one - two, one - two - down, one - two + up, _agree(pairs))


@dataclass(frozen=True)
class Ratio:
    """A share as a multiple of another, with its 95 % interval; NaN where the other is zero."""

    value: float
    low: float
    high: float

    def __str__(self):
        if math.isnan(self.value):
            return "–"
        return f"{100 * self.value:.0f} % [{100 * self.low:.0f}, {100 * self.high:.0f}]"


def independent_ratio(a, b):
    """The ratio of two shares of different examples, each (hits, n).

    The interval is that of Donner & Zou 2012 from the Wilson intervals of both (the method of variance estimates
    recovery, MOVER).
    """
    (one, low_one, high_one), (two, low_two, high_two) = ((x / n, *wilson(x, n)) for x, n in (a, b))
    if two == 0:
        return Ratio(math.nan, 0.0, math.inf)
    product, below, above = one * two, low_one * (2 * one - low_one), high_one * (2 * one - high_one)
    far, near = high_two * (2 * two - high_two), low_two * (2 * two - low_two)
    low = below / (product + math.sqrt(max(0.0, product**2 - below * far))) if one else 0.0
    high = (product + math.sqrt(max(0.0, product**2 - above * near))) / near
    return Ratio(one / two, low, high)


def survival(source, target, label):
    """How much of a source's robustness is left in a network made of it, each on its own task: a Ratio.

    Compared is the share of right answers that withstand: clean accuracies and classes may differ. `source` and
    `target` are Scores; `label` is an attack's. NaN where fewer than `FEWEST` of the source's right answers
    withstand, for then there is nothing that could survive. Raises ValueError where the label stands for different
    attacks.
    """
    check_attacks((source, target), label)
    kept = [(int(some.outcome(label).sum()), int(some.outcome(CLEAN).sum())) for some in (target, source)]
    if kept[1][0] < FEWEST or kept[0][1] == 0:
        return Ratio(math.nan, 0.0, math.inf)
    return independent_ratio(*kept)
