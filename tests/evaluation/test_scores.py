"""Tables and files of an evaluation, and its verdicts."""

import pandas as pd
import pytest
import torch
from small import outcomes

from evaluation.finding import Finding
from evaluation.scores import Scores


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


def test_the_best_epoch_has_files_of_its_own(tmp_path):
    a, b = outcomes(10, 1, 2, 3)
    a.save(tmp_path)
    b.save(tmp_path, epoch="best")
    assert torch.equal(Scores.load(tmp_path).outcomes["clean"], a.outcomes["clean"])
    assert torch.equal(Scores.load(tmp_path, "best").outcomes["clean"], b.outcomes["clean"])
    with pytest.raises(ValueError, match="epoch='first'"):
        a.save(tmp_path, epoch="first")


def test_the_worst_case_is_invalid_where_no_attack_holds(scores):
    scores.findings = [Finding("masked gradient", "invalid", 1, 0, "", ("FGSM",))]
    assert scores.verdict("worst case") == ""
    scores.findings.append(Finding("masked gradient", "suspect", 1, 0, "", ("PGD-10",)))
    assert scores.verdict("worst case") == "suspect"
    scores.findings.append(Finding("masked gradient", "invalid", 1, 0, "", ("PGD-10",)))
    assert scores.verdict("worst case") == scores.verdict() == "invalid"
