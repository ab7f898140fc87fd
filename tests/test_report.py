"""Tables and figures from run folders, and the page."""

import re

import pandas as pd
import pytest
import torch

import evaluation
import models
import report
import utils
from attacks import FGSM, PGD
from defences import Standard
from runs import read_json
from trainer import Recipe, train


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """One small experiment, as a notebook would leave it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDY_RUNS", str(tmp_path_factory.mktemp("report")))
        session = utils.start("01_small <experiment>", preset="smoke")
    data = utils.load_data("shapes10", session)
    runs, scores = {}, {}
    for name in ("standard", "other"):
        model = models.build("shallow_cnn", 10, seed=len(name))
        recipe = Recipe(epochs=2, validation_images=20, defence=Standard())
        runs[name] = train(model, data, recipe, session.folder(name), progress=False)
        scores[name] = evaluation.test(runs[name].model, data.test, [FGSM(), PGD(steps=2)], progress=False)
        scores[name].save(runs[name].folder)
    return session, data, runs, scores


def test_figures(study, tmp_path):
    session, data, runs, scores = study
    named = {name: run.model for name, run in runs.items()}
    along = {
        name: evaluation.accuracy_against_eps(m, data.test, PGD(), [0.1], progress=False)
        for name, m in named.items()
    }
    figures = {
        "training": report.plot_training(runs),
        "scores": report.plot_scores(scores),
        "examples": report.plot_examples(named, data.test, FGSM(), count=3),
        "eps": report.plot_eps(along, "PGD-10"),
    }
    for name, figure in figures.items():
        report.save_figure(figure, session, name)
        for ending in ("png", "pdf"):
            assert (session.runs / "figures" / f"{name}.{ending}").stat().st_size > 5000
        text = " ".join(item.get_text() for item in figure.findobj(lambda item: hasattr(item, "get_text")))
        assert "a demonstration" in text  # every figure from drawn pictures says so


def test_invalid_bars_are_left_out(study):
    scores = study[3]
    assert all(score.verdict() == "invalid" for score in scores.values())  # two epochs on 640 pictures
    assert all(patch.get_height() == 0 for patch in report.plot_scores(scores).axes[0].patches)


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


def test_the_page_is_whole_and_self_contained(study):
    session, _, _, scores = study
    report.save_figure(report.plot_scores(scores), session, "scores")
    path = report.write_page(session.runs.parent)
    page = path.read_text()
    assert "drawn pictures" in page
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
    report.save_figure(report.plot_scores(scores), session, "scores")
    (folder / "command.txt").write_text("python study.py\n")
    report.keep(folder, tmp_path / "expected")
    kept = {str(path.relative_to(tmp_path / "expected")) for path in (tmp_path / "expected").rglob("*.*")}
    assert {"scores.csv", "provenance.json", f"{session.experiment}/figures/scores.png"} <= kept
    assert not [name for name in kept if name.endswith((".safetensors", ".pt", ".pdf"))]
    provenance = read_json(tmp_path / "expected" / "provenance.json")
    assert provenance["commands"] == ["python study.py"]
    assert [group["runs"] for group in provenance["environments"]] == [2]


def test_seeds_share_a_colour_and_a_legend_entry():
    looks = list(report._looks(["a, seed 0", "b-seed0", "a, seed 1", "seedless"]))
    assert [look["label"] for look in looks] == ["a", "b", None, "seedless"]
    assert looks[0]["color"] == looks[2]["color"] != looks[1]["color"]


def test_a_folder_without_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match="no scored run"):
        report.write_page(tmp_path)


def test_what_was_written(study):
    session, _, runs, _ = study
    assert {f"{session.experiment}/{name}" for name in runs} <= set(report.written(session).index)
