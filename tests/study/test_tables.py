"""Tables from run folders: what is invalid is struck out, what lies beside the scores counts."""

import inspect
import re

import pandas as pd
import torch

from attacks import FGSM, PGD, Torchattacks
from evaluation import checks, comparisons
from evaluation.audit import Audit
from evaluation.finding import Finding
from evaluation.scores import Scores
from storage.atomic_files import write_json
from study import figures, tables
from training.weights import save_weights


def test_the_table_strikes_out_what_is_invalid(study):
    page = tables.accuracies(study[3]).to_html()
    assert page.count("<s>") == 2 * 4
    assert "a demonstration" in page
    assert "Wilson" in page


def test_scores_are_read_back_in_order_of_training(study):
    session, _, _, scores = study
    loaded = tables.load_scores(session.runs)
    assert list(loaded) == ["standard", "other"]
    for name, score in loaded.items():
        assert torch.equal(score.worst_case, scores[name].worst_case)


def test_what_was_written(study):
    session, _, runs, _ = study
    assert {f"{session.experiment}/{name}" for name in runs} <= set(tables.written(session).index)


def test_what_is_invalid_is_told_in_a_line_a_kind(study):
    right = torch.arange(10) < 5

    def score(*findings):
        return Scores("x test", {"clean": right, "FGSM": right}, {"FGSM": "FGSM"}, findings=list(findings))

    learned, odd = (
        Finding("no better than chance", "invalid", 1, 0, "nothing"),
        Finding("odd", "invalid", 1, 0, "so"),
    )
    doubt = Finding("step size", "suspect", 1, 0, "short")
    lines = tables.invalid(
        {"01": {"a": score(learned, doubt), "b": score(learned)}, "02": {"c": score(learned, odd)}}
    )
    assert lines == [
        "INVALID: no better than chance, 3 in all (01 2, 02 1); a, all: nothing",
        f"    what to do: {tables.REMEDIES['no better than chance']}",
        "INVALID: odd, 1 in all (02 1); c, all: so",
    ]
    assert tables.invalid({"01": {"a": score(doubt)}, "02": {"b": score()}}) == ["no number is invalid"]


def test_every_remedy_is_of_a_check():
    code = inspect.getsource(checks) + inspect.getsource(comparisons)
    assert all(f'"{name}", "invalid"' in code for name in tables.REMEDIES)


def test_overfitting_is_looked_for_where_somebody_trained_adversarially(tmp_path):
    pgd = {"kind": "Adversarial", "attack": {}}
    defences = {"standard": {"kind": "Standard"}, "pgd": pgd, "awp": {"kind": "AWP", "defence": pgd}}
    for name, defence in defences.items():
        folder = tmp_path / name
        folder.mkdir()
        outcome = torch.arange(10) < 5
        Scores("x test", {"clean": outcome, "FGSM": outcome}, {"FGSM": "FGSM"}).save(folder)
        write_json(
            folder / "recipe.json",
            {"recipe": {"defence": defence, "validation_images": 1000}, "data": {"val": 1000}},
        )
        pd.DataFrame({"epoch": [1, 2], "accuracy/robust": [0.5, 0.4]}).to_csv(folder / "history.csv", index=False)
        save_weights(torch.nn.Linear(1, 1), folder / "weights.safetensors")
        assert list(tables._found_beside(folder, Scores.load(folder), "best")) == []
    found = {
        name: list(tables._found_beside(tmp_path / name, score, "last"))
        for name, score in {name: Scores.load(tmp_path / name) for name in defences}.items()
    }
    assert [f for f in found["standard"] if f] == []
    (finding,) = found["pgd"]
    assert found["awp"] == found["pgd"]
    assert finding.check == "robust overfitting"
    assert finding.concerns("FGSM")
    assert not finding.concerns("clean")


def test_descent_is_told_from_the_source_of_the_same_name_and_seed(study):
    _, _, runs, _ = study
    right = torch.arange(200)

    def score(clean, robust, findings=()):
        outcomes = {"clean": right < clean, "PGD": right < robust}
        return Scores("x test", outcomes, {"PGD": "PGD"}, findings=list(findings))

    broken = score(150, 60, [Finding("", "invalid", 1, 0, "", ("PGD",))])
    scores = {"source-robust-seed0": score(100, 50), "source-robust-seed1": score(100, 25)}
    scores |= {"from-robust-all-pgd-seed0": score(160, 40), "from-robust-head-seed1": score(160, 40)}
    scores |= {"from-scratch-all-seed0": score(100, 10), "from-robust-head-seed0": broken}
    some = {name: runs["standard"] for name in scores if name.startswith("from")}
    some["from-robust-probe-then-all-seed0"], scores["from-robust-probe-then-all-seed0"] = (
        runs["other"],
        score(160, 40),
    )
    page = tables.descent(some, scores, "PGD").to_html()
    rows = {
        match[1]: match[0] for match in re.finditer(r"<th id[^>]*row_heading[^>]*>([^<]+)<.*?</tr>", page, re.S)
    }
    assert "50 % [" in rows["from-robust-all-pgd-seed0"]  # 25 % of the right answers, of 50 %
    assert "100 % [" in rows["from-robust-head-seed1"]
    assert "–" in rows["from-scratch-all-seed0"]
    assert "–" in rows["from-robust-head-seed0"]
    assert "<s>" in rows["from-robust-head-seed0"]
    assert f"{sum(weight.numel() for weight in runs['standard'].model.parameters()):,}" in page
    both = sum(run.history["time/epoch_s"].sum() for run in runs.values())
    assert f">{both:.0f}<" in rows["from-robust-probe-then-all-seed0"]


def test_the_norm_and_eps_are_named_where_the_norm_is_l2():
    right = torch.arange(10) < 5
    attack, other = PGD(norm="L2", steps=20), Torchattacks("PGDL2", eps=0.7)
    attacks = {"PGD-20": repr(attack), "PGDL2": repr(other), "FGSM": repr(FGSM())}
    score = Scores("x test", {"clean": right} | dict.fromkeys(attacks, right), attacks)
    page = tables.accuracies({"a": score}).to_html()
    assert all(f">{title}</th>" in page for title in ("clean", "PGD-20, L2, ε = 0.5", "FGSM", "PGDL2"))
    drawn = figures.plot_scores({"a": score}).axes[0]
    assert "PGD-20\nL2, ε = 0.5" in [tick.get_text() for tick in drawn.get_xticklabels()]
    plane = figures.plot_plane({"all": {"a": score}}, "PGD-20").axes[0]
    assert plane.get_ylabel() == "accuracy under PGD-20, L2, ε = 0.5, %"


def test_seeds_have_their_mean_deviation_and_interval():
    def score(right):
        return Scores("x test", {"clean": torch.arange(100) < right})

    page = tables.seeds({"a-seed0": score(60), "a-seed1": score(64), "b-seed0": score(10)}).to_html()
    assert "62.0 ± 2.8 <small>[36.6, 87.4]</small>" in page  # 12.7 standard errors of 2 points each way
    assert "t-interval" in page
    assert tables.seeds({"b-seed0": score(10)}) is None


def test_an_audit_concerns_the_row_of_its_settings_whatever_that_is_called(tmp_path):
    outcome, collapse = torch.arange(10) < 5, Finding("collapse", "invalid", 1, 0, "so", ("PGD-20",))
    small, large = PGD(steps=20, eps=4 / 255), PGD(steps=20)
    both = {repr(attack): repr(attack) for attack in (small, large)} | {"FGSM": repr(FGSM(eps=2 / 255))}
    scores = Scores("x test", {"clean": outcome} | dict.fromkeys(both, outcome), both, weights="w")
    beside = Finding("catastrophic overfitting", "invalid", 1, 0, "so", ("FGSM",))
    audited = Audit("x test", {"clean": outcome, "PGD-20": outcome}, {"PGD-20": repr(large)}, weights="w")
    audited.findings = [collapse, beside, Finding("leak", "invalid", 1, 0, "so")]
    scores.save(tmp_path)
    audited.save(tmp_path)
    found = [finding for finding in tables._found_beside(tmp_path, scores, "last") if finding]
    assert [(finding.check, finding.rows) for finding in found] == [("collapse", (repr(large),)), ("leak", ())]
    scores.attacks["FGSM"] = repr(FGSM())
    assert beside in list(tables._found_beside(tmp_path, scores, "last"))
    scores.attacks = {"PGD-20": repr(small)}
    assert collapse not in list(tables._found_beside(tmp_path, scores, "last"))
