"""The confusion table counts what is found and what is left alone."""

from attacks import PGD
from benchmarks import rivals, show, verdicts
from evaluation.flaws import catalogue
from evaluation.published_tables import judge


def test_the_confusion_table_counts(sound, blobs, monkeypatch):
    first = [flaw.name for flaw in catalogue.FLAWS].index("four attacks alike")
    some = (*catalogue.FLAWS[first : first + 4], catalogue.Flaw("missed", "claim", "invalid", lambda lab: []))
    monkeypatch.setattr(verdicts, "FLAWS", some)
    lab = catalogue.Lab(sound["standard"], sound["pgd"], blobs.test.first(64), PGD())
    planted = verdicts.plant(lab)
    assert list(planted.found) == [True] * 4 + [False]
    assert set(planted.of) == {"protocol"}
    table = verdicts.confusion({"lab": planted}, {"a": [], "b": judge(0.1, {"PGD": 0.5})})
    assert table.loc["lab: planted, invalid"].tolist() == [3, 2]
    assert table.loc["lab: planted, suspect"].tolist() == [2, 2]
    assert table.loc["sound: nothing invalid"].tolist() == [2, 1]
    assert table.loc["sound: nothing suspect"].tolist() == [2, 2]


def test_ours_and_others_are_counted_side_by_side(sound, blobs, monkeypatch):
    some = [flaw for flaw in catalogue.FLAWS if flaw.name in ("quantised input", "steps too short")]
    monkeypatch.setattr(verdicts, "FLAWS", some)
    planted = verdicts.plant(catalogue.Lab(sound["standard"], sound["pgd"], blobs.test.first(64), PGD()))
    quiet = dict.fromkeys(verdicts.DETECTORS, ())
    beside = {"a": {"ours": ["SUSPECT"]} | quiet, "b": {"ours": []} | quiet, "c": {"ours": []} | quiet}
    beside["b"]["indicators of attack failure"] = [rivals.INCOMPLETE]
    assert list(planted.of) == ["model", "attack"]
    summary = verdicts.confusion({"lab": planted}, {"a": []}).to_dict("index")
    known = {"sound": beside, "summary": summary, "planted": {"lab": planted.to_dict("records")}, "seconds": 60}
    machine = {
        "device": "a CPU",
        "threads": 1,
        "cuda": None,
        "torch": "2",
        "commit": None,
        "started": "2026-11-27",
    }
    text = show.verdicts(known | {"environment": machine, "command": "python"}, "cpu")
    assert "| lab: flawed models | 1 | 1 | 1 | 1 | 1 |" in text  # AutoAttack's flags and the indicators too
    assert "| lab: flawed attacks | 1 | 1 | 1 | 0 |" in text
    assert "| sound networks | 3 | – | 1 | 0 | 1 | 0 | 0 |" in text
    assert "misses: none. Ours raises on sound networks: a: SUSPECT." in text
