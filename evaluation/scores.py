"""What an evaluation found: outcomes of every example, accuracies with their intervals, the verdict."""

import math
import re
from dataclasses import asdict, dataclass, field

import pandas as pd
import torch

from evaluation.finding import CLEAN, VERDICTS, WORST, Finding
from evaluation.statistics import wilson
from processes import data_parallel
from storage.atomic_files import Damaged, read_json, replacing, write_json

SAVED_AS = {"last": "scores", "best": "scores-best"}


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
    again: dict = field(default_factory=dict)  # label -> to how many pictures it went, where not to all

    @property
    def n(self):
        return len(self.outcomes[CLEAN])

    @property
    def clean_accuracy(self):
        """Share of correct predictions, 0 to 1."""
        return self.share(CLEAN)

    def robust_accuracy(self, attack=None):
        """Share that withstands one attack, or, without a name, every attack in the list; 0 to 1."""
        if attack is None:
            if not self.attacks:
                raise ValueError("no attack was run, so there is no robust accuracy")
            return self.share(WORST)
        if attack not in self.attacks:
            raise KeyError(f"{attack!r} was not run; these were: {', '.join(self.attacks) or 'none'}")
        return self.share(attack)

    @property
    def worst_case(self):
        """Per example: was it right, and did it withstand every attack? bool (N,)."""
        return torch.stack(list(self.outcomes.values())).all(0)

    def outcome(self, label):
        """Per example, bool (N,), for "clean", an attack's label or "worst case"."""
        return self.worst_case if label == WORST else self.outcomes[label]

    def share(self, label):
        """The accuracy, 0 to 1, for "clean", an attack's label or "worst case"."""
        return float(self.outcome(label).double().mean())

    def interval(self, label):
        """The 95 % Wilson interval for "clean", an attack's label or "worst case"."""
        return wilson(int(self.outcome(label).sum()), self.n)

    def verdict(self, label=None):
        """ "invalid", "suspect" or "" for one row of the table, or for the whole evaluation."""
        severities = {f.severity for f in self.findings if label is None or f.concerns(label)}
        if label == WORST and self.attacks:  # where no attack's number holds, neither does the smallest
            severities |= {min((self.verdict(row) for row in self.attacks), key=VERDICTS.index)}
        return max(severities | {""}, key=VERDICTS.index)

    def title(self, label):
        """A label for readers: with ε and the norm, where that is L2."""
        attack = self.attacks.get(label, "")
        size = re.search(r"(?:ε|\beps)=([^,)]+)", attack)
        if not re.search("norm='?L2", attack):
            return label
        return f"{label}, L2" + (f", ε = {size[1]}" if size else "")

    def table(self):
        """A row for clean, each attack and the worst case: accuracy and 95 % interval in percent, n, verdict."""
        rows = {}
        for label in [*self.outcomes, *([WORST] if len(self.attacks) > 1 else [])]:
            bound = label in self.again  # of what was not attacked nothing is known, so it has no interval
            low, high = (math.nan, math.nan) if bound else self.interval(label)
            rows[label] = {
                "accuracy": 100 * self.share(label),
                "low": 100 * low,
                "high": 100 * high,
                "n": self.again.get(label, self.n),
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
        if not data_parallel.leads():
            return
        bits = {label: "".join("01"[bit] for bit in outcome.tolist()) for label, outcome in self.outcomes.items()}
        write_json(f"{folder}/{name}.json", asdict(self) | {"outcomes": bits})
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
            findings = [Finding(**finding | {"rows": tuple(finding["rows"])}) for finding in values["findings"]]
            outcomes = {
                label: torch.tensor([bit == "1" for bit in bits]) for label, bits in values["outcomes"].items()
            }
            scores = cls(**values | {"findings": findings, "outcomes": outcomes})
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
        accuracy = table.accuracy.map("{:.1f}".format)
        struck = accuracy.map(lambda number: "\u0336".join([*number, ""]))
        table["accuracy %"] = accuracy.mask(table.verdict == "invalid", struck)
        table["95 % interval"] = table.low.map("{:.1f} – ".format) + table.high.map("{:.1f}".format)
        for label, count in self.again.items():
            table.loc[label, "95 % interval"] = f"upper bound: {count} tried again"
        return table[["accuracy %", "95 % interval", "verdict", "attack"]]
