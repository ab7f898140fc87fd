"""Tables and figures from run folders, and the page."""

import html
import re
import shutil

import nbformat
import pandas as pd
import pytest
import torch

from evaluation.finding import Finding
from evaluation.scores import Scores
from storage.atomic_files import read_json, write_json
from study import figures, report
from training.weights import save_weights


def test_the_table_strikes_out_what_is_invalid(study):
    page = report.table(study[3]).to_html()
    assert page.count("<s>") == 2 * 4
    assert "a demonstration" in page
    assert "Wilson" in page


def test_scores_are_read_back_in_order_of_training(study):
    session, _, _, scores = study
    loaded = report.load_scores(session.runs)
    assert list(loaded) == ["standard", "other"]
    for name, score in loaded.items():
        assert torch.equal(score.worst_case, scores[name].worst_case)


def test_the_page_is_whole_and_self_contained(study, tmp_path):
    session, _, _, scores = study
    figures.save(figures.plot_scores(scores), session, "scores")
    path = report.write_page(session.runs.parent)
    page = path.read_text()
    assert "drawn pictures" in page
    assert "One seed: intervals" not in page  # these runs' names have no seed
    folder = shutil.copytree(session.runs, tmp_path / "smoke-shapes" / "01_small")
    (folder / "other").rename(folder / "other-seed0")
    (folder / "standard").rename(folder / "standard-seed0")
    assert "One seed: intervals" in report.write_page(folder.parent).read_text()
    shutil.copytree(folder / "other-seed0", folder / "other-seed1")
    assert "One seed: intervals" not in report.write_page(folder.parent).read_text()
    assert "2 evaluation(s) hold numbers that the audit found invalid" in page
    assert "01 small &lt;experiment&gt;" in page
    assert 'src="data:image/png;base64,' in page
    assert not re.search(r'(src|href)="(https?:)?//', page)
    table = pd.read_csv(session.runs.parent / "scores.csv")
    assert len(table) == 2 * 4
    accuracy = table[(table.model == "01_small <experiment>/other") & (table.evaluation == "FGSM")].accuracy.item()
    assert accuracy == pytest.approx(100 * scores["other"].robust_accuracy("FGSM"), abs=1e-3)


def test_what_is_kept_for_readers(study, tmp_path):
    session, _, _, scores = study
    folder = session.runs.parent
    figures.save(figures.plot_scores(scores), session, "scores")
    (folder / "command.txt").write_text("python -m study\n")
    report.keep(folder, tmp_path / "expected")
    kept = {str(path.relative_to(tmp_path / "expected")) for path in (tmp_path / "expected").rglob("*.*")}
    assert {"scores.csv", "provenance.json", f"{session.experiment}/figures/scores.png"} <= kept
    assert not [name for name in kept if name.endswith((".safetensors", ".pt", ".pdf"))]
    provenance = read_json(tmp_path / "expected" / "provenance.json")
    assert provenance["commands"] == ["python -m study"]
    assert [group["runs"] for group in provenance["environments"]] == [2]


def test_a_folder_without_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match="no scored run"):
        report.write_page(tmp_path)


def test_what_was_written(study):
    session, _, runs, _ = study
    assert {f"{session.experiment}/{name}" for name in runs} <= set(report.written(session).index)


def test_a_notebook_that_failed_keeps_its_title_and_its_cells(study):
    session, _, _, _ = study
    banner = nbformat.v4.new_markdown_cell('<span style="color:red">An Exception was encountered</span>')
    error = nbformat.v4.new_output("error", ename="ZeroDivisionError", evalue="division by zero", traceback=[])
    broken = nbformat.v4.new_code_cell("1 / 0", outputs=[error])
    cells = [banner, nbformat.v4.new_markdown_cell("# Is it so?\n\nText."), broken]
    path = session.runs.parent / "notebooks" / f"{session.experiment}.ipynb"
    path.parent.mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    page = report.write_page(session.runs.parent).read_text()
    path.unlink()
    assert f'<h2 id="{html.escape(session.experiment)}">Is it so?</h2>' in page
    assert "An Exception was encountered" in page
    assert "broke off with an error" in page.split("<h2")[0]
    assert "1 / 0" in re.sub("<[^>]+>", "", page).replace("  ", " ")


def test_a_notebook_that_is_just_being_written_has_no_place_yet(study):
    folder = study[0].runs.parent / "notebooks"
    folder.mkdir(exist_ok=True)
    partial = folder / ".02_other.partial.ipynb"
    partial.write_text("{")
    try:
        assert "02 other" not in report.write_page(folder.parent).read_text()
    finally:
        partial.unlink()


def test_the_answers_stand_at_the_top(study):
    answers = pd.DataFrame([{"question": "Is it?", "answer": "yes", "why": "50 % against 5 %"}])
    page = report.write_page(study[0].runs.parent, {"One by one": answers, "Of old": answers}).read_text()
    assert page.index("<h3>One by one</h3>") < page.index("50 % against 5 %") < page.index("<h3>Of old</h3>")
    assert page.rindex("50 % against 5 %") < page.index("Accuracy in %")
    assert "broke off with an error" not in page
    assert 'id="answers"' not in report.write_page(study[0].runs.parent).read_text()


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
        assert list(report._found_beside(folder, Scores.load(folder), "best")) == []
    found = {
        name: list(report._found_beside(tmp_path / name, score, "last"))
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
    page = report.descent_table(some, scores, "PGD").to_html()
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
