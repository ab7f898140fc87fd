"""The checks of accuracies beside one another."""

import pytest

from attacks import FGSM, PGD
from evaluation import comparisons
from evaluation.audit import fgsm_and_pgd


@pytest.mark.parametrize(
    ("fgsm", "pgd", "check", "severity"),
    [
        (80, 1, "catastrophic overfitting", "invalid"),
        (40, 9, "catastrophic overfitting", "invalid"),
        (58, 40, None, None),
        (40, 40.9, None, None),
        (40, 42, "attack order", "suspect"),
    ],
)
def test_order_of_fgsm_and_pgd(fgsm, pgd, check, severity):
    finding = comparisons.attack_order(fgsm / 100, pgd / 100)
    assert (finding and finding.check, finding and finding.severity) == (check, severity)


def test_large_eps_is_no_catastrophe():
    assert comparisons.attack_order(0.50, 0.15, eps=0.05) is None
    assert comparisons.attack_order(0.50, 0.15, eps=None) is None
    assert comparisons.attack_order(0.50, 0.55, eps=None).check == "attack order"


def test_different_eps_are_not_compared():
    pairs = fgsm_and_pgd({"FGSM": FGSM(eps=1 / 255), "FGSM-L2": FGSM(norm="L2", eps=8 / 255), "PGD": PGD()})
    assert list(pairs) == []
    assert list(fgsm_and_pgd({"a": FGSM(), "b": PGD()})) == [("a", "b")]


@pytest.mark.parametrize(
    ("names", "is_found"),
    [
        (["a", "b"], False),
        (["a, best", "b, best"], False),
        (["a", "a, best", "b"], False),
        (["a", "b, best"], True),
        (["a", "a, best", "b, best", "c"], True),
        (["a", "a, best", "b, best"], False),  # the best of all runs are there
    ],
)
def test_one_rule_for_all_checkpoints(names, is_found):
    assert (comparisons.one_checkpoint(names) is not None) == is_found
