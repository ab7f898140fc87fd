"""What an evaluation found: outcomes of every example, accuracies with their intervals, the verdict."""

import math
import re
from dataclasses import asdict, dataclass, field

import pandas as pd
import torch

from files import replacing
from runs import read_json, write_json

CLEAN = "clean"
WORST = "worst case"


def wilson(correct, n, z=1.959964):
    """The 95 % Wilson interval of a share (Wilson 1927): (low, high), both in [0, 1]."""
    if not 0 <= correct <= n or n < 1:
        raise ValueError(f"{correct} correct of {n}: 0 to n of at least 1 is possible")
    share = correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - reach), min(1.0, centre + reach)


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

    def interval(self, label):
        """The 95 % Wilson interval for "clean", an attack's label or "worst case"."""
        outcome = self.worst_case if label == WORST else self.outcomes[label]
        return wilson(int(outcome.sum()), self.n)

    def verdict(self, label=None):
        """ "invalid", "suspect" or "" for one row of the table, or for the whole evaluation."""
        severities = {f.severity for f in self.findings if label is None or f.concerns(label)}
        return "invalid" if "invalid" in severities else "suspect" if severities else ""

    def table(self):
        """A row for clean, each attack and the worst case: accuracy and 95 % interval in percent, n, verdict."""
        rows = {}
        for label in [*self.outcomes, *([WORST] if len(self.attacks) > 1 else [])]:
            outcome = self.worst_case if label == WORST else self.outcomes[label]
            low, high = self.interval(label)
            rows[label] = {
                "accuracy": 100 * self._share(outcome),
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

    def save(self, folder):
        """Write scores.json (with every outcome) and scores.csv into a run's folder.

        Scores of carried attacks go to carried-from-<source>.json and .csv: they are never taken for robustness.
        """
        name = "scores" if self.carried is None else "carried-from-" + re.sub(r"[^\w.-]+", "-", self.carried)
        outcomes = {label: "".join("01"[int(bit)] for bit in value) for label, value in self.outcomes.items()}
        values = {"split": self.split, "carried": self.carried, "weights": self.weights}
        values |= {"attacks": self.attacks, "seconds": self.seconds}
        findings = [asdict(finding) for finding in self.findings]
        write_json(f"{folder}/{name}.json", values | {"findings": findings, "outcomes": outcomes})
        with replacing(f"{folder}/{name}.csv") as partial:
            self.table().to_csv(partial, index_label="evaluation", float_format="%.2f")

    @classmethod
    def load(cls, folder):
        """Read what `save` wrote."""
        from audit import Finding

        values = read_json(f"{folder}/scores.json")
        values["findings"] = [
            Finding(**finding | {"rows": tuple(finding["rows"])}) for finding in values["findings"]
        ]
        values["outcomes"] = {
            label: torch.tensor([bit == "1" for bit in bits]) for label, bits in values["outcomes"].items()
        }
        return cls(**values)

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
