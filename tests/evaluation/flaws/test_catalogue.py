"""Every planted flaw is found, by the right check and with the right severity; sound evaluations stay clear."""

import pytest

from attacks import FGSM, MIFGSM, NIFGSM, PGD, VMIFGSM, VNIFGSM, AutoAttack
from evaluation import testing
from evaluation.audit import audit
from evaluation.flaws import catalogue


def test_there_are_thirty():
    assert len(catalogue.FLAWS) >= 30
    assert len({flaw.name for flaw in catalogue.FLAWS}) == len(catalogue.FLAWS)


@pytest.mark.parametrize("flaw", catalogue.FLAWS, ids=lambda flaw: flaw.name)
def test_every_flaw_is_found(flaw, lab):
    found, findings = flaw.found(lab)
    assert found, [str(finding) for finding in findings]


def sound_evaluations(lab, sound, blobs):
    """Evaluations that nothing is wrong with: (name, findings)."""
    several = [FGSM(), PGD(steps=20), NIFGSM(), VMIFGSM(steps=5)]
    cheap = AutoAttack(steps=10, queries=50, targets=3)
    for name, model in {"small CNN": lab.standard, "small CNN, PGD": lab.robust}.items():
        for attacks in (several, [PGD(), FGSM()], [MIFGSM(), VNIFGSM(steps=5)], [cheap, PGD(steps=20)]):
            scores = testing.test(model, lab.split, attacks, progress=False)
            yield f"{name}: {', '.join(attack.label for attack in attacks)}", scores.findings
        yield f"{name}: audit", audit(model, lab.split, PGD(steps=20), progress=False).findings
    for name, model in sound.items():
        for attacks in ([FGSM(), PGD(steps=20)], [NIFGSM(), PGD(steps=5, step_size=3 / 255)], [FGSM(eps=4 / 255)]):
            yield f"blobs, {name}", testing.test(model, blobs.test, attacks, progress=False).findings
        for eps in (4, 8):
            attack = PGD(eps=eps / 255, step_size=eps / 4 / 255, steps=20)
            yield f"blobs, {name}: audit", audit(model, blobs.test, attack, progress=False).findings


def test_sound_evaluations_are_not_accused(lab, sound, blobs):
    table = list(sound_evaluations(lab, sound, blobs))
    assert len(table) >= 20
    findings = [(name, finding) for name, found in table for finding in found]
    assert [pair for pair in findings if pair[1].severity == "invalid"] == []
    suspect = {name for name, finding in findings}
    assert len(suspect) <= len(table) / 10, [f"{name}: {finding}" for name, finding in findings]


def test_the_confusion_table_counts(lab, monkeypatch):
    monkeypatch.setattr(
        catalogue, "FLAWS", (*catalogue.FLAWS[-4:], catalogue.Flaw("missed", "claim", "invalid", lambda lab: []))
    )
    planted = catalogue.plant(lab)
    assert list(planted.found) == [True] * 4 + [False]
    table = catalogue.confusion({"lab": planted}, {"a": [], "b": catalogue.judge(0.1, {"PGD": 0.5})})
    assert table.loc["lab: planted, invalid"].tolist() == [3, 2]
    assert table.loc["lab: planted, suspect"].tolist() == [2, 2]
    assert table.loc["sound: nothing invalid"].tolist() == [2, 1]
    assert table.loc["sound: nothing suspect"].tolist() == [2, 2]
