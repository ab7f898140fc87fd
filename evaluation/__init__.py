"""What a network withstands, and whether to believe it.

test() scores a network; transfer_attack() and its kin carry examples from another one; audit() asks whether a
number can be true, overestimates() how far an attack is from a known truth, certified() what no attack can take.
The thresholds of most verdicts stand in checks.py, comparisons.py and gradients.py.
"""

from evaluation.audit import audit
from evaluation.certified import certified
from evaluation.diagnostics import accuracy_against_eps
from evaluation.features import through_layers
from evaluation.golden import overestimates
from evaluation.published_tables import judge_table
from evaluation.scores import Scores
from evaluation.source_gain import feature_bound, source_gain
from evaluation.statistics import paired
from evaluation.testing import test
from evaluation.transfer_attack import carried_matrix, carried_outcomes, transfer_attack
