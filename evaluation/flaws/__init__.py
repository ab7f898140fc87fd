"""Flaws, planted on purpose: models that mask, broken attacks, wrong protocols, and what must be found of each.

Each has been published, or has cost somebody a number. Notebook 05 shows some of them beside the right way; the
tests and benchmarks/verdicts.py plant all that stand in catalogue.py and count what the checks find. Nothing else
may use this package.
"""

from evaluation.flaws.models import Flawed, quantised, scaled, training_mode
from evaluation.flaws.protocols import NormalisedOutside, beside, stale_split
