"""The page of a study."""

import html
import re
import shutil

import nbformat
import pandas as pd
import pytest
import torch

from evaluation.scores import Scores
from study import __main__, figures, report


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
    assert "The checks found the numbers of 2 evaluations invalid" in page
    assert "01 small &lt;experiment&gt;" in page
    assert 'src="data:image/png;base64,' in page
    assert not re.search(r'(src|href)="(https?:)?//', page)
    table = pd.read_csv(session.runs.parent / "scores.csv")
    assert len(table) == 2 * 4
    accuracy = table[(table.model == "01_small <experiment>/other") & (table.evaluation == "FGSM")].accuracy.item()
    assert accuracy == pytest.approx(100 * scores["other"].robust_accuracy("FGSM"), abs=1e-3)


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


def test_the_figure_and_the_answers_stand_at_the_top(study, tmp_path):
    assert 'id="answers"' not in report.write_page(study[0].runs.parent).read_text()
    folder = shutil.copytree(study[0].runs, tmp_path / "quick-shapes" / "01_shallow_cnn")
    (folder / "other").rename(folder / "pgd")
    figures.save(figures.plot_scores(study[3]), study[0], "scores")
    shutil.copytree(study[0].runs / "figures", folder / "figures", dirs_exist_ok=True)
    assert "no question is answered by these runs" in report.write_page(folder.parent).read_text()
    for name, share in (("standard", 0.9), ("pgd", 0.6)):
        score = Scores.load(folder / name)
        right = torch.arange(score.n) < share * score.n
        score.outcomes, score.findings = dict.fromkeys(score.outcomes, right), []
        score.save(folder / name)
    page = report.write_page(folder.parent).read_text()
    order = (
        "<figure>",
        "Yes: 90.0\u00a0% (standard) against",
        "<h2 ",
        "<td>90.0 % (standard) against",
        "Accuracy in %",
    )
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    assert "Not asked, because their notebooks were not run" in page
    assert "broke off with an error" not in page


def test_the_figure_that_shows_most(tmp_path):
    assert report.telling(tmp_path) is None
    for name in ("01_x/figures/1_a.png", "99_y/figures/.2.png", "99_y/figures/1_b.png", "06_z/figures/2_c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert report.telling(tmp_path).name == "1_b.png"
    (tmp_path / "06_z" / "figures" / "1_clean_against_robust.png").touch()
    assert report.telling(tmp_path).parts[-3] == "06_z"


def test_each_name_leads_to_its_run_and_what_is_invalid_is_folded(study, tmp_path):
    folder = shutil.copytree(study[0].runs, tmp_path / "smoke-shapes" / "01_small")
    good = Scores.load(folder / "standard")
    good.findings = []
    good.save(folder / "standard")
    page = report.write_page(folder.parent).read_text()
    shown, folded = page.index('<a href="#01_small/standard">'), page.index('<a href="#01_small/other">')
    assert shown < page.index("<details><summary>1 evaluation without a valid number") < folded
    for name in ("standard", "other"):
        run = page.split(f'id="01_small/{name}">')[1].split('<div class="run"')[0]
        clean, _ = re.findall(r'points="(.*?)"', run)
        assert clean.startswith("0.0,")
        assert " 300.0," in clean
        assert "&#34;epochs&#34;: 2" in run
        assert "&#34;torch&#34;" in run


def test_a_study_that_shows_only_that_everything_runs_says_so(study, capsys):
    folder = study[0].runs.parent
    assert __main__._report(folder, None)
    assert "no number counts" in (said := capsys.readouterr().out)
    assert "INVALID" not in said
    page = (folder / "report.html").read_text()
    assert "no number here counts" in page
    assert "<figure>" not in page.partition("<h2")[0]


def test_a_study_ends_with_what_matters_and_where_it_is(study, capsys, tmp_path):
    figures.save(figures.plot_scores(study[3]), study[0], "scores")
    folder = shutil.copytree(study[0].runs.parent, tmp_path / "quick-shapes")
    assert __main__._report(folder, None)
    said = capsys.readouterr().out.strip().splitlines()
    assert said[0].startswith("On drawn pictures, which are easy")
    assert said[2] == "no question is answered by these runs"
    assert f"figure: {report.telling(folder)}" in said  # other tests leave figures in this folder too
    assert f"report: {(folder / 'report.html').as_uri()}" in said
    assert f"scores: {folder / 'scores.csv'}" in said
    assert any(line.startswith("INVALID: ") for line in said)
