"""The page of a study, and what is kept of it."""

import html
import re
import shutil

import nbformat
import pandas as pd
import pytest

from storage.atomic_files import read_json
from study import figures, report


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
