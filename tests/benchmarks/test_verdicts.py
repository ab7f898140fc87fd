"""The confusion table counts what is found and what is left alone."""

from attacks import PGD
from benchmarks import verdicts
from evaluation.flaws import catalogue
from evaluation.published_tables import judge


def test_the_confusion_table_counts(sound, blobs, monkeypatch):
    first = [flaw.name for flaw in catalogue.FLAWS].index("four attacks alike")
    some = (*catalogue.FLAWS[first : first + 4], catalogue.Flaw("missed", "claim", "invalid", lambda lab: []))
    monkeypatch.setattr(verdicts, "FLAWS", some)
    lab = catalogue.Lab(sound["standard"], sound["pgd"], blobs.test.first(64), PGD())
    planted = verdicts.plant(lab)
    assert list(planted.found) == [True] * 4 + [False]
    table = verdicts.confusion({"lab": planted}, {"a": [], "b": judge(0.1, {"PGD": 0.5})})
    assert table.loc["lab: planted, invalid"].tolist() == [3, 2]
    assert table.loc["lab: planted, suspect"].tolist() == [2, 2]
    assert table.loc["sound: nothing invalid"].tolist() == [2, 1]
    assert table.loc["sound: nothing suspect"].tolist() == [2, 2]
