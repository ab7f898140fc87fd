"""What a network withstands, and whether to believe it.

test() scores a network; transfer_attack() and its kin carry examples from another one; audit() asks whether a
number can be true. The thresholds of all verdicts stand in checks.py.
"""

from evaluation.audit import audit, judge_table
from evaluation.diagnostics import accuracy_against_eps
from evaluation.features import through_layers
from evaluation.scores import Scores
from evaluation.statistics import paired
from evaluation.testing import test
from evaluation.transfer_attack import carried_matrix, carried_outcomes, transfer_attack

__all__ = [
    "Scores",
    "accuracy_against_eps",
    "audit",
    "carried_matrix",
    "carried_outcomes",
    "judge_table",
    "paired",
    "test",
    "through_layers",
    "transfer_attack",
]
