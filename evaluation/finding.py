"""A doubt about a number, and the rows of a table of scores that it may concern."""

from dataclasses import dataclass

CLEAN = "clean"
WORST = "worst case"
ATTACKED = ("every attack",)  # the rows of a finding that concerns all but clean accuracy
VERDICTS = ("", "suspect", "invalid")


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
