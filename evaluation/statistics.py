"""Intervals of accuracies, differences of networks with theirs, what several seeds have in common."""

import functools
import math
from dataclasses import dataclass
from statistics import NormalDist, stdev

import numpy as np
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


def wilson_of_mean(share, n, confidence=0.95):
    """Of a mean of n values in [0, 1], such as shares over seeds: `wilson`, rounded outwards to whole examples.

    No such values spread more than zeros and ones of the same mean, so it is too wide rather than too narrow.
    """
    hits = round(share * n, 6)  # whole where it is but for the last digits
    return wilson(math.floor(hits), n, confidence)[0], wilson(math.ceil(hits), n, confidence)[1]


@dataclass(frozen=True)
class Difference:
    """A minus B, in shares, with its 95 % interval. It is told apart from zero or it is not."""

    value: float
    low: float  # over the examples
    high: float
    consistent: bool = True  # every pair of seeds says the same
    p: float | None = None  # McNemar's exact test where one run is compared with one, else of the widest interval
    over_seeds: tuple | None = None  # the interval over seeds and examples, where both have as many seeds

    @property
    def widest(self):
        """The interval that decides: (low, high) over seeds and examples where there are seeds, else examples."""
        return self.over_seeds or (self.low, self.high)

    @property
    def sign(self):
        """1 or -1 where the widest interval, as printed, leaves out zero, p < 0.05 and all seeds agree, else 0."""
        low, high = (round(100 * end, 1) for end in self.widest)
        noise = low <= 0 <= high or (self.p is not None and self.p >= 0.05)
        return 0 if noise or not self.consistent else 1 if low > 0 else -1

    def __str__(self):
        p = "" if self.p is None else f", {p_shown(self.p)}"
        noise = "" if self.sign else ", inside the noise"
        seeds = f", over seeds {_ends(self.over_seeds)}" if self.over_seeds else ""
        return f"{_points(self.value)} points {_ends((self.low, self.high))}{seeds}{p}{noise}"


def _ends(interval):
    return f"[{', '.join(map(_points, interval))}]"


def _points(share):
    return f"{round(100 * share, 1) + 0:+.1f}"  # no -0.0


def p_shown(p):
    """ "p = 0.012" or "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def difference(a, b, label, against=None):
    """How much more of "clean", of an attack or of the "worst case" A withstands than B, paired by example.

    `a` and `b` are lists of Scores on the same split, one a seed; an example counts with its mean over the
    seeds. `against` is what B is to withstand, where that is something else than for A. Seeds stand in the same
    order in both. Raises ValueError where the examples are not the same.
    """
    other = label if against is None else against
    check_examples((*a, *b))
    for one in {label, other}:
        check_attacks((*a, *b), one)
    return paired([s.outcome(label) for s in a], [s.outcome(other) for s in b])


def paired(a, b):
    """The difference of two shares of the same examples; `a` and `b` are lists of outcomes, bool (N,), one a seed.

    The interval over examples is Bonett & Price's of 2012 for paired shares (two pseudo-examples, one each way).
    """
    mean_a, mean_b = (torch.stack([outcome.double() for outcome in some]).mean(0) for some in (a, b))
    n = len(mean_a) + 2
    gaps = mean_a - mean_b
    centre = float(gaps.sum()) / n
    error = math.sqrt(((float(gaps.square().sum()) + 2) / n - centre**2) / n)
    shares = ([float(outcome.double().mean()) for outcome in some] for some in (a, b))
    p = mcnemar(a[0], b[0]) if len(a) == len(b) == 1 else None
    return difference_of(float(gaps.mean()), _normal(centre, error), *shares, p)


def paired_kept(a, b):
    """The difference of two shares of the right answers, of the same examples.

    `a` and `b` are lists of (right, withstands), bool (N,) each, one a seed. A share moves with an example that
    withstands, and the other way with one that is right and falls: the interval over examples is that of the mean
    of these moves (the delta method), with a pseudo-example each way, as in `paired`.
    """

    def kept(some):
        shares, moves = [], []
        for right, withstands in some:
            right, withstands = right.double(), (withstands & right).double()
            shares.append(float(withstands.sum() / right.sum()))
            moves.append((withstands - shares[-1] * right) / right.mean())
        return shares, torch.stack(moves).mean(0), min(float(right.double().mean()) for right, _ in some)

    (one, move_one, right_one), (two, move_two, right_two) = kept(a), kept(b)
    value, n = sum(one) / len(one) - sum(two) / len(two), len(move_one) + 2
    squares = float((move_one - move_two).square().sum()) + 2 / min(right_one, right_two) ** 2
    error, centre = math.sqrt(squares) / n, value * (n - 2) / n
    return difference_of(value, _normal(centre, error), one, two)


def _normal(centre, error):
    """The interval of a difference of shares, a function of the confidence, from its standard error."""

    def interval(confidence):
        reach = NormalDist().inv_cdf((1 + confidence) / 2) * error
        return max(-1.0, centre - reach), min(1.0, centre + reach)

    return interval


def difference_of(value, over_examples, a, b, p=None):
    """A Difference from its interval over examples, a function of the confidence, and the shares by seed.

    With several seeds, as many on both sides, the unit is the seed: Student's t of the differences seed by seed.
    Its reach and that over the examples add as squares, as variances do (Zou & Donner 2008), so that the interval
    covers another training and other pictures. Of two seeds t is 12.7, of three 4.3: few seeds make it wide.
    """
    gaps = [one - two for one, two in zip(a, b, strict=False)] if len(a) == len(b) > 1 else []
    error = stdev(gaps) / math.sqrt(len(gaps)) if gaps else 0.0

    def widest(confidence):
        low, high = over_examples(confidence)
        reach = student(confidence, len(gaps) - 1) * error if gaps else 0.0
        down, up = math.hypot(max(0.0, value - low), reach), math.hypot(max(0.0, high - value), reach)
        return max(-1.0, value - down), min(1.0, value + up)

    agree = len({(one > two) - (one < two) for one in a for two in b}) == 1  # do all pairs of seeds say the same?
    p = _p_of(widest) if p is None else p
    return Difference(value, *over_examples(0.95), agree, p, widest(0.95) if gaps else None)


@functools.cache
def student(confidence, freedom):
    """How many standard errors Student's interval (1908) reaches each way, with `freedom` degrees of freedom."""
    from scipy.stats import t  # imported late: it takes a second

    return float(t.ppf((1 + confidence) / 2, freedom))


def _p_of(interval):
    """The p at which an interval, a function of the confidence, begins to leave out zero; not below 1e-12."""
    low, high = math.log(1e-12), 0.0
    for _ in range(25):
        middle = (low + high) / 2
        one, two = interval(1 - math.exp(middle))
        low, high = (middle, high) if one <= 0 <= two else (low, middle)
    return math.exp(high)


def holm(p):
    """Holm's correction (1979) of a list of p, in its order: with 5 % for all of them, those below 0.05 hold.

    The smallest is taken times their number, the next times one less, and so on; none falls below one before it.
    """
    corrected, largest = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[place]))
        corrected[place] = largest
    return corrected


def expected_robustness(sizes, shares, limit=None):
    """The mean accuracy over all ε from 0 to the limit, 0 to 1: the area under accuracy over ε, over the limit.

    It is the *expected robustness* of arXiv:2509.23325; between its points the curve is taken as straight. `sizes`
    rise from 0, clean accuracy; the limit is the last of them where none is given. Raises ValueError where the
    curve does not reach from 0 to the limit.
    """
    sizes, shares = np.asarray(sizes, dtype=float), np.asarray(shares, dtype=float)
    limit = sizes[-1] if limit is None else limit
    if len(sizes) < 2 or sizes[0] != 0 or not 0 < limit <= sizes[-1] + 1e-9 or (np.diff(sizes) <= 0).any():
        raise ValueError(f"ε from 0 to {limit:.4g}, rising, are needed, and these are {sizes.round(4).tolist()}")
    within = np.append(sizes[sizes < limit], limit)
    return float(np.trapezoid(np.interp(within, sizes, shares), within) / limit)


def mcnemar(a, b):
    """Two-sided p of McNemar's exact test (1947): do A and B, bool (N,), differ on the same examples?

    Only examples that one of them gets right count; if the two were equally good, each would have half of these.
    """
    from scipy.stats import binomtest  # imported late: it takes a second

    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return float(binomtest(min(only_a, only_b), only_a + only_b).pvalue) if only_a + only_b else 1.0


def interval_of_mean(mean, spread, count):
    """Student's 95 % interval, within 0 and 100, of a mean in percent; the spread is the standard deviation."""
    reach = student(0.95, count - 1) * spread / math.sqrt(count) if count > 1 else math.nan
    return max(mean - reach, 0.0), min(mean + reach, 100.0)


def over_seeds(scores):
    """What runs that differ in their seed have in common: a row an evaluation, in percent.

    `scores` is a list of Scores, one a seed, of the same examples and attacks. The spread is the standard
    deviation between seeds (n - 1): how far another seed may lie. From low to high is Student's 95 % interval of
    the mean over seeds, wide where they are few. The intervals of single runs say how far other pictures may.
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
        mean = float(shares.mean())
        low, high = interval_of_mean(mean, spread, len(shares))
        rows[label] = {"mean": mean, "spread": spread, "low": low, "high": high, "lowest": float(shares.min())}
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


def independent_difference(a, b):
    """The difference of two shares of different examples, each a list of (hits, n), one a seed.

    The interval over examples is Newcombe's of 1998 (method 10), from the Wilson intervals; seeds count with their
    mean, which for these is rounded outwards to whole examples.
    """

    def mean(counts):
        share = sum(hits / max(n, 1) for hits, n in counts) / len(counts)
        return share, max(1, round(sum(n for _, n in counts) / len(counts)))

    (one, n), (two, m) = mean(a), mean(b)

    def over_examples(confidence=0.95):
        (low, high), (least, most) = (wilson_of_mean(*some, confidence) for some in ((one, n), (two, m)))
        return one - two - math.hypot(one - low, most - two), one - two + math.hypot(high - one, two - least)

    return difference_of(one - two, over_examples, *([x / max(size, 1) for x, size in some] for some in (a, b)))


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
