"""What an evaluation found: outcomes of every example, accuracies with their intervals, the verdict."""

import math
import re
from dataclasses import asdict, dataclass, field

import pandas as pd
import torch

import parallel
from files import Damaged, read_json, replacing, write_json

CLEAN = "clean"
WORST = "worst case"
ATTACKED = ("every attack",)  # the rows of a finding that concerns all but clean accuracy
VERDICTS = ("", "suspect", "invalid")
FEWEST = 10  # of a source's right answers must withstand for a share of them to mean something
SAVED_AS = {"last": "scores", "best": "scores-best"}


def wilson(correct, n, z=1.959964):
    """The 95 % Wilson interval of a share (Wilson 1927): (low, high), both in [0, 1]."""
    if not 0 <= correct <= n or n < 1:
        raise ValueError(f"{correct} correct of {n}: 0 to n of at least 1 is possible")
    share = correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # With all or none correct one end is the share itself, which rounding must not put outside.
    return max(0.0, min(share, centre - reach)), min(1.0, max(share, centre + reach))


@dataclass(frozen=True)
class Finding:
    """One doubt about a number. `rows` are the rows of the table that it concerns; empty: all of them."""

    check: str
    severity: str  # "invalid" or "suspect"
    measured: float
    threshold: float
    message: str
    rows: tuple = ()

    def concerns(self, label):
        return not self.rows or label in self.rows or (self.rows == ATTACKED and label != CLEAN)

    def __str__(self):
        where = f" [{', '.join(self.rows)}]" if self.rows else ""
        return f"{self.severity.upper()}: {self.check}{where}: {self.message}"


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
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    n, fewer = only_a + only_b, min(only_a, only_b)
    ways = term = 1
    for k in range(1, fewer + 1):
        term = term * (n - k + 1) // k
        ways += term
    return min(1.0, 2 * ways / 2**n)


def over_seeds(scores):
    """What runs that differ in their seed have in common: a row an evaluation, in percent.

    `scores` is a list of Scores, one a seed, of the same examples and attacks. The spread is the standard
    deviation between seeds (n - 1): how far another seed may lie. The intervals of single runs say how far other
    pictures may.
    """
    labels = [label for label in scores[0].table().index if all(label in one.table().index for one in scores)]
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

    The interval is Newcombe's of 1998 (method 10), from the Wilson intervals; seeds count with their mean.
    """

    def mean(counts):
        n = sum(count for _, count in counts) / len(counts)
        return sum(hits / max(count, 1) for hits, count in counts) / len(counts), max(n, 1)

    (one, n_one), (two, n_two) = mean(a), mean(b)
    low_one, high_one = wilson(one * n_one, n_one)
    low_two, high_two = wilson(two * n_two, n_two)
    down = math.hypot(one - low_one, high_two - two)
    up = math.hypot(high_one - one, two - low_two)
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


@dataclass
class Scores:
    """Outcomes of one model on one split. `outcomes` maps "clean" and each attack's label to bool (N,).

    An example withstands an attack when it is classified correctly both before and after it, so robust
    accuracy never exceeds clean accuracy. `carried` names the source where the examples were crafted on
    another model than the one that is scored; such numbers are no robustness.
    """

    split: str
    outcomes: dict
    attacks: dict = field(default_factory=dict)  # label -> the attack as it prints itself
    seconds: dict = field(default_factory=dict)
    findings: list = field(default_factory=list)
    carried: str | None = None
    weights: str | None = None  # fingerprint of the model that was scored
    pictures: str | None = None  # checksum of the pictures that it was scored on

    @property
    def n(self):
        return len(self.outcomes[CLEAN])

    @property
    def clean_accuracy(self):
        """Share of correct predictions, 0 to 1."""
        return self._share(self.outcomes[CLEAN])

    def robust_accuracy(self, attack=None):
        """Share that withstands one attack, or, without a name, every attack in the list; 0 to 1."""
        if attack is None:
            if not self.attacks:
                raise ValueError("no attack was run, so there is no robust accuracy")
            return self._share(self.worst_case)
        if attack not in self.attacks:
            raise KeyError(f"{attack!r} was not run; these were: {', '.join(self.attacks) or 'none'}")
        return self._share(self.outcomes[attack])

    @property
    def worst_case(self):
        """Per example: was it right, and did it withstand every attack? bool (N,)."""
        return torch.stack(list(self.outcomes.values())).all(0)

    def outcome(self, label):
        """Per example, bool (N,), for "clean", an attack's label or "worst case"."""
        return self.worst_case if label == WORST else self.outcomes[label]

    def share(self, label):
        """The accuracy, 0 to 1, for "clean", an attack's label or "worst case"."""
        return self._share(self.outcome(label))

    def interval(self, label):
        """The 95 % Wilson interval for "clean", an attack's label or "worst case"."""
        return wilson(int(self.outcome(label).sum()), self.n)

    def verdict(self, label=None):
        """ "invalid", "suspect" or "" for one row of the table, or for the whole evaluation."""
        severities = {f.severity for f in self.findings if label is None or f.concerns(label)}
        if label == WORST and self.attacks:  # where no attack's number holds, neither does the smallest
            severities |= {min((self.verdict(row) for row in self.attacks), key=VERDICTS.index)} - {""}
        return max(severities | {""}, key=VERDICTS.index)

    def table(self):
        """A row for clean, each attack and the worst case: accuracy and 95 % interval in percent, n, verdict."""
        rows = {}
        for label in [*self.outcomes, *([WORST] if len(self.attacks) > 1 else [])]:
            low, high = self.interval(label)
            rows[label] = {
                "accuracy": 100 * self.share(label),
                "low": 100 * low,
                "high": 100 * high,
                "n": self.n,
                "seconds": self.seconds.get(label, math.nan),
                "verdict": self.verdict(label) or "no finding",
                "attack": self.attacks.get(label, ""),
                "split": self.split,
                "carried_from": self.carried or "",
            }
        return pd.DataFrame.from_dict(rows, orient="index")

    def save(self, folder, epoch="last"):
        """Write scores.json (with every outcome) and scores.csv into a run's folder.

        Scores of the best epoch's weights, `epoch="best"`, go to scores-best.json and .csv; those of carried
        attacks to carried-from-<source>.json and .csv: they are never taken for robustness.
        """
        if epoch not in SAVED_AS:
            raise ValueError(f"epoch={epoch!r}: 'last' or 'best' is needed")
        name = SAVED_AS[epoch]
        if self.carried is not None:
            name = "carried-from-" + re.sub(r"[^\w.-]+", "-", self.carried)
        self.write(folder, name)

    def write(self, folder, name):
        """Write <name>.json (with every outcome) and <name>.csv."""
        if not parallel.leads():
            return
        outcomes = {label: "".join("01"[int(bit)] for bit in value) for label, value in self.outcomes.items()}
        values = {"split": self.split, "carried": self.carried, "weights": self.weights}
        values["pictures"] = self.pictures
        values |= {"attacks": self.attacks, "seconds": self.seconds}
        findings = [asdict(finding) for finding in self.findings]
        write_json(f"{folder}/{name}.json", values | {"findings": findings, "outcomes": outcomes})
        with replacing(f"{folder}/{name}.csv") as partial:
            self.table().to_csv(partial, index_label="evaluation", float_format="%.2f")

    @classmethod
    def load(cls, folder, epoch="last"):
        """Read what `save` wrote."""
        return cls.read(f"{folder}/{SAVED_AS[epoch]}.json")

    @classmethod
    def read(cls, path):
        """Read the .json that `write` wrote."""
        remedy = "Delete it and run test() again"
        values = read_json(path, remedy)
        try:
            values["findings"] = [
                Finding(**finding | {"rows": tuple(finding["rows"])}) for finding in values["findings"]
            ]
            values["outcomes"] = {
                label: torch.tensor([bit == "1" for bit in bits]) for label, bits in values["outcomes"].items()
            }
            scores = cls(**values)
            right = scores.outcomes[CLEAN]
            whole = len(right) > 0 and all(len(outcome) == len(right) for outcome in scores.outcomes.values())
            whole = whole and scores.attacks.keys() <= scores.outcomes.keys() - {CLEAN, WORST}
            whole = whole and all(finding.severity in VERDICTS for finding in scores.findings)
            scores.table()
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise Damaged(f"{path} holds no scores ({error!r}). {remedy}") from error
        if not whole or any(bool((outcome & ~right).any()) for outcome in scores.outcomes.values()):
            raise Damaged(f"{path} does not hold an outcome of each picture under each attack. {remedy}")
        return scores

    def __str__(self):
        return self._heading() + "\n" + self._shown().to_string() + "".join(f"\n{f}" for f in self.findings)

    __repr__ = __str__

    def _repr_html_(self):
        found = "".join(f"<p>{finding}</p>" for finding in self.findings)
        return f"<p>{self._heading()}</p>{self._shown().to_html()}{found}"

    def _heading(self):
        how = f"carried from {self.carried}" if self.carried else "white box"
        return f"{self.split}, {how}, n = {self.n}"

    def _shown(self):
        table = self.table()
        shown = pd.DataFrame(index=table.index)
        struck = [
            "\u0336".join([*f"{a:.1f}", ""]) if v == "invalid" else f"{a:.1f}"
            for a, v in zip(table.accuracy, table.verdict, strict=True)
        ]
        shown["accuracy %"] = struck
        shown["95 % interval"] = [
            f"{low:.1f} – {high:.1f}" for low, high in zip(table.low, table.high, strict=True)
        ]
        shown["verdict"] = table.verdict
        shown["attack"] = table.attack
        return shown

    @staticmethod
    def _share(outcome):
        return float(outcome.double().mean())
