"""audit() and judge(): what they measure and find, and how little the checks of test() cost."""

import math

import pytest
import torch
from conftest import small_network

import evaluation
import report
from attacks import APGD, FGSM, NIFGSM, PGD, VMIFGSM, AutoAttack, Torchattacks
from audit import Audit, audit, judge
from scores import ATTACKED, CLEAN, Finding, Scores


@pytest.mark.parametrize("name", ["standard", "pgd"])
@pytest.mark.parametrize("attack", [PGD(), PGD(steps=20), NIFGSM(), APGD(steps=20)], ids=str)
def test_sound_models_are_not_accused(name, attack, sound, blobs):
    audited = audit(sound[name], blobs.test, attack, surrogates={"other": sound["standard"]}, progress=False)
    assert [finding for finding in audited.findings if finding.severity == "invalid"] == []
    assert len(audited.findings) <= 1


def test_an_audit_says_what_it_measured(sound, blobs):
    audited = audit(sound["pgd"], blobs.test, PGD(), surrogates={"its twin": sound["standard"]}, progress=False)
    rows = set(audited.table().index)
    assert {CLEAN, "PGD-10", "FGSM", "50 steps", "5 restarts", "noise", "Square-1000"} <= rows
    assert {"carried from its twin", "ε = 4/255", "ε = 16/255", "ε = 64/255", "ε = 255/255"} <= rows
    assert audited.share("ε = 255/255") == 0
    assert audited.share("noise") > audited.share("PGD-10")
    tested = evaluation.test(sound["pgd"], blobs.test, [PGD()], progress=False)
    assert audited.share("PGD-10") == pytest.approx(tested.robust_accuracy(), abs=0.02)
    assert "audit of PGD(ε=8/255, α=2/255, 10 steps), blobs test, n = 128" in str(audited)


def test_an_audit_leaves_the_model_as_it_was(sound, blobs):
    model = sound["pgd"].train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    audit(model, blobs.test.first(32), PGD(steps=2), progress=False)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def kept(folder, model, split, weights, attack, findings, epoch="last"):
    """Scores under PGD-10 in a run's folder, and an audit of `attack` on `weights` beside them."""
    folder.mkdir()
    evaluation.test(model, split, [FGSM(), PGD()], progress=False).save(folder, epoch)
    outcomes = {CLEAN: torch.ones(3) > 0, attack.label: torch.ones(3) > 0}
    audited = Audit(split.name, outcomes, {attack.label: repr(attack)}, findings=findings)
    audited.weights = evaluation.fingerprint(weights)
    audited.save(folder)


def test_the_findings_join_the_scores_that_they_concern(sound, blobs, tmp_path):
    model, split = sound["pgd"], blobs.test
    found = [Finding("collapse", "invalid", 1, 0, "planted", ("PGD-10",))]
    kept(tmp_path / "same", model, split, model, PGD(), found)
    kept(tmp_path / "best", model, split, model, PGD(), found, "best")
    kept(tmp_path / "weights", model, split, sound["standard"], PGD(), found)
    kept(tmp_path / "settings", model, split, model, PGD(step_size=1 / 255), found)
    everywhere = [Finding("masked gradient", "invalid", 1, 0, "planted", ATTACKED)]
    kept(tmp_path / "everywhere", model, split, model, PGD(step_size=1 / 255), everywhere)
    loaded = report.load_scores(tmp_path)
    verdicts = {name: list(score.table().verdict == "invalid") for name, score in loaded.items()}
    assert verdicts["same"] == verdicts["best, best"] == [False, False, True, False]
    assert verdicts["weights"] == verdicts["settings"] == [False] * 4
    assert verdicts["everywhere"] == [False, True, True, True]
    (path,) = (tmp_path / "best").glob("audit-*.json")
    assert path.name == "audit-PGD-ε-8_255-α-2_255-10-steps.json"
    assert Scores.read(path).share("PGD-10") == 1


def test_rows_of_an_audit_that_are_not_in_doubt_have_no_verdict():
    audited = Audit("x", {CLEAN: torch.ones(3) > 0, "PGD-10": torch.ones(3) > 0, "noise": torch.ones(3) > 0})
    audited.attacks = {"PGD-10": "PGD"}
    audited.findings = [Finding("masked gradient", "invalid", 1, 0, "planted", ATTACKED)]
    assert list(audited.table().verdict) == ["no finding", "invalid", "–"]
    assert audited.verdict() == "invalid"


@pytest.mark.parametrize(
    "attack", [FGSM(), AutoAttack(steps=5, queries=20, targets=2), Torchattacks("PGD")], ids=str
)
def test_other_attacks_can_be_audited(attack, sound, blobs):
    audited = audit(sound["pgd"], blobs.test.first(40), attack, progress=False)
    assert audited.verdict() != "invalid"


def test_no_eps_no_audit(sound, blobs):
    with pytest.raises(ValueError, match="no ε to vary"):
        audit(sound["pgd"], blobs.test, PGD(eps=0))
    with pytest.raises(TypeError, match="'pgd' is no attack"):
        audit(sound["pgd"], blobs.test, "pgd")
    with pytest.raises(TypeError, match="a dictionary"):
        audit(sound["pgd"], blobs.test, surrogates=sound["standard"])
    with pytest.raises(ValueError, match="built for another data set"):
        audit(small_network(classes=3), blobs.test)
    with pytest.raises(ValueError, match="norm='L2'"):
        audit(sound["pgd"], blobs.test, PGD(norm="L2", eps=0.3))
    with pytest.raises(ValueError, match="no ε to scale"):
        audit(sound["pgd"], blobs.test, Torchattacks("CW"))


def test_a_model_that_is_always_wrong_is_no_error(blobs):
    model = small_network()
    with torch.no_grad():
        model[-1].bias[0] = 1e6
    audited = audit(model, blobs.test.first(20), progress=False)
    assert audited.verdict() == "invalid"


def test_published_tables_are_judged():
    # The earlier study's rows: ResNet-18 trained on stale examples, and the small CNN.
    found = {f.check: f.severity for f in judge(0.11, {"FGSM": 0.743, "PGD": 0.744, "NI": 0.74}, chance=0.1)}
    assert found["robust above clean"] == found["better than chance"] == "invalid"
    assert [f.check for f in judge(0.48, {"FGSM": 0.431, "PGD": 0.43, "NI": 0.429})] == ["attacks alike"]
    assert judge(0.824, {"FGSM": 0.56, "PGD": 0.52, "AutoAttack": 0.48}, chance=0.1) == []
    assert judge(0.9, {"FGSM": 0.897, "PGD": 0.896, "NI": 0.895, "VMI": math.nan}) == []
    assert [f.check for f in judge(0.9, {"FGSM": 0.8, "PGD-20": 0.05})] == ["catastrophic overfitting"]


def test_the_checks_of_test_cost_little(sound, blobs, monkeypatch):
    """Counted in pictures that pass the network, which is what takes the time."""
    passed = {"all": 0, "checks": 0}
    real = evaluation.audit.examine

    def examine(*arguments):
        before = passed["all"]
        found = real(*arguments)
        passed["checks"] += passed["all"] - before
        return found

    monkeypatch.setattr(evaluation.audit, "examine", examine)
    model = sound["pgd"]
    hook = model.register_forward_hook(lambda _, inputs, out: passed.update(all=passed["all"] + len(inputs[0])))
    for attacks in ([FGSM()], [PGD()], [FGSM(), PGD(steps=20), NIFGSM(), VMIFGSM()]):
        passed.update(all=0, checks=0)
        evaluation.test(model, blobs.test, attacks, progress=False)
        assert passed["checks"] < 0.3 * passed["all"]  # few pictures here; 0.15 of those of a real test
    hook.remove()
