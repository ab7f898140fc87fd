"""The checks of accuracies beside one another."""

import pytest

from evaluation import comparisons


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
