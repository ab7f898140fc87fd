"""Intervals, tables and files of an evaluation."""

import pandas as pd
import pytest
import torch
from scipy.stats import binomtest

from audit import Finding
from scores import CLEAN, Scores, wilson


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (1, 7), (480, 1000), (4999, 10_000)])
def test_wilson_equals_scipys(correct, n):
    expected = binomtest(correct, n).proportion_ci(0.95, "wilson")
    assert wilson(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize(("correct", "n"), [(3, 2), (-1, 2), (0, 0)])
def test_wilson_refuses_nonsense(correct, n):
    with pytest.raises(ValueError, match=f"{correct} correct of {n}"):
        wilson(correct, n)


@pytest.fixture
def scores():
    clean, one, other = (
        torch.tensor([int(bit) for bit in bits], dtype=torch.bool) for bits in ("11110", "11000", "10100")
    )
    found = [Finding("catastrophic overfitting", "invalid", 62.0, 30.0, "planted", ("FGSM",))]
    attacks = {"FGSM": "FGSM(ε=8/255)", "PGD-10": "PGD(ε=8/255)"}
    return Scores("blobs test", {CLEAN: clean, "FGSM": one, "PGD-10": other}, attacks, {"FGSM": 0.5}, found)


def test_table(scores):
    table = scores.table()
    assert list(table.index) == ["clean", "FGSM", "PGD-10", "worst case"]
    assert list(table.accuracy) == pytest.approx([80, 40, 40, 20])
    assert list(table.verdict) == ["no finding", "invalid", "no finding", "no finding"]
    assert (table.n == 5).all()
    assert (100 * scores.interval("worst case")[0], 100 * scores.interval("worst case")[1]) == pytest.approx(
        (table.low["worst case"], table.high["worst case"])
    )


def test_invalid_numbers_are_struck_out(scores):
    assert "4̶0̶.̶0̶" in str(scores)
    assert "80.0" in str(scores)
    assert "INVALID: catastrophic overfitting [FGSM]: planted" in str(scores)
    assert "planted" in scores._repr_html_()


def test_saved_and_loaded(scores, tmp_path):
    scores.save(tmp_path)
    again = Scores.load(tmp_path)
    pd.testing.assert_frame_equal(again.table(), scores.table())
    assert torch.equal(again.worst_case, scores.worst_case)
    assert again.findings == scores.findings
    written = pd.read_csv(tmp_path / "scores.csv")
    assert list(written.accuracy) == [80, 40, 40, 20]


def test_an_attack_that_was_not_run_is_named(scores):
    with pytest.raises(KeyError, match="these were: FGSM, PGD-10"):
        scores.robust_accuracy("CW")
