"""Figures: each is drawn, saved, and true to its numbers."""

import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex

from attacks import FGSM, PGD
from evaluation import carried_matrix, diagnostics
from evaluation.finding import Finding
from evaluation.scores import Scores
from study import figures, transfer_figures
from study.style import SOURCES


def test_figures(study, tmp_path):
    session, data, runs, scores = study
    named, few = {name: run.model for name, run in runs.items()}, data.test.first(40)
    along = {
        name: diagnostics.accuracy_against_eps(m, few, PGD(), [0.1], progress=False) for name, m in named.items()
    }
    images, labels = data.test.batch(torch.arange(4))
    tables = {
        "steps": diagnostics.accuracy_against_steps(named["other"], few, PGD(), [1, 3], progress=False),
        "restarts": diagnostics.accuracy_against_restarts(named["other"], few, PGD(), 2, progress=False),
    }
    in_l2 = PGD(norm="L2", steps=2)
    tables["in L2"] = diagnostics.accuracy_against_eps(named["other"], few, in_l2, [0.5], progress=False)
    margins = diagnostics.margins(named["other"], few, FGSM())
    claims = pd.DataFrame(
        {"claimed": [0.7], "true": [0.3], "low": [0.2], "high": [0.4], "n": [9]}, index=["stale"]
    )
    drawn = {
        "steps": figures.plot_against({"other": tables["steps"]}, "PGD"),
        "restarts": figures.plot_against({"other": tables["restarts"]}, "PGD"),
        "margins": figures.plot_margins({"other": margins}, "a demonstration"),
        "surface": figures.plot_surfaces(
            {"other": diagnostics.loss_surface(named["other"], images, labels, points=3)}, "a demonstration"
        ),
        "claims": figures.plot_claims(claims, "a demonstration"),
        "training": figures.plot_training(runs),
        "scores": figures.plot_scores(scores),
        "examples": figures.plot_examples(named, data.test, FGSM(), count=3),
        "eps": figures.plot_against(along, "PGD-10"),
        "eps in L2": figures.plot_against({"other": tables["in L2"]}, "PGD-10"),
        "examples in L2": figures.plot_examples(named, data.test, PGD(norm="L2", steps=2), count=3),
        "overfitting": figures.plot_overfitting(runs["standard"]),
        "classes": figures.plot_per_class(scores, data.test, "PGD-2"),
        "carried": transfer_figures.plot_carried(carried_matrix(named, few, FGSM(), progress=False)),
        "plane": figures.plot_plane({"01_small": scores}, "PGD-2"),
    }
    for name, figure in drawn.items():
        figure.draw_without_rendering()  # a quarter of the time of two files
        if name in ("training", "examples"):
            figures.save(figure, session, name)
            for ending in ("png", "pdf"):
                assert (session.runs / "figures" / f"{name}.{ending}").stat().st_size > 5000
        text = " ".join(item.get_text() for item in figure.findobj(lambda item: hasattr(item, "get_text")))
        assert "a demonstration" in text  # every figure from drawn pictures says so
    named = [drawn[name].axes[0].get_xlabel() for name in ("eps", "eps in L2")]
    assert named == ["ε, in 255ths of the pixel range", "ε, the length of the change in L2"]


def test_invalid_bars_are_left_out(study):
    scores = study[3]
    assert all(score.verdict() == "invalid" for score in scores.values())  # two epochs on 640 pictures
    assert all(patch.get_height() == 0 for patch in figures.plot_scores(scores).axes[0].patches)
    assert "invalid numbers left out" in figures.plot_scores(scores).axes[0].get_title()


def test_seeds_share_a_colour_and_a_legend_entry():
    looks = list(figures.looks(["a, seed 0", "b-seed0", "a, seed 1", "seedless"]))
    assert [look["label"] for look in looks] == ["a", "b", None, "seedless"]
    assert looks[0]["color"] == looks[2]["color"] != looks[1]["color"]


def test_best_and_last_are_written_once_where_they_are_the_same_epoch(study):
    run = study[2]["standard"]
    names = [text.get_text() for text in figures.plot_overfitting(run).axes[0].texts]
    assert names == (["best and last"] if run.best_epoch == len(run.history) else ["last", "best"])


def test_figures_of_two_tasks_name_both():
    outcome = torch.arange(10) < 5
    scores = {
        name: Scores(f"{name} test", {"clean": outcome[:n]}) for name, n in (("cifar10", 10), ("cifar100", 8))
    }
    title = figures.plot_scores(scores).axes[0].get_title()
    assert title == "cifar10 test, n = 10 and cifar100 test, n = 8"


def test_the_plane_draws_every_group_and_no_invalid_number():
    def score(findings=()):
        outcome = torch.arange(100) < 50
        return Scores("x test", {"clean": outcome, "PGD-20": outcome}, {"PGD-20": "PGD"}, findings=list(findings))

    groups = {f"group {number}": {"one": score()} for number in range(9)}
    groups["group 0"]["broken"] = score([Finding("", "invalid", 1, 0, "")])
    axis = figures.plot_plane(groups, "PGD-20").axes[0]
    assert len(axis.containers) == 9
    assert "invalid numbers left out" in axis.get_title()


def test_a_source_has_one_colour_in_every_plane_and_an_empty_group_none():
    right = torch.arange(100) < 50
    score = Scores("x test", {"clean": right, "PGD-20": right}, {"PGD-20": "PGD"})
    untested = Scores("y test", {"clean": right[:50]})
    for order in (("robust source", "01", "from scratch", "standard"), ("standard", "from scratch", "robust")):
        groups = {"06": {"one": untested}} | {group: {"one": score, "other": untested} for group in order}
        axis = figures.plot_plane(groups, "PGD-20").axes[0]
        texts, patches = axis.get_legend().get_texts(), axis.get_legend().get_patches()
        assert [text.get_text() for text in texts] == list(order)
        for group, patch in zip(order, patches, strict=True):
            if source := figures.source_of(group):
                assert to_hex(patch.get_facecolor()) == SOURCES[source]
            else:
                assert to_hex(patch.get_facecolor()) not in SOURCES.values()
        assert axis.get_title().startswith("x test, n = 100;")


def test_what_trains_has_its_marker_in_every_plane_filled_where_it_saw_attacks():
    right = torch.arange(100) < 50
    score = Scores("x test", {"clean": right, "PGD-20": right}, {"PGD-20": "PGD"})
    looks = {}
    for names in (("all", "head", "all-pgd", "else-seed0"), ("bn-only", "head-pgd", "all")):
        axis = figures.plot_plane({"robust": dict.fromkeys(names, score)}, "PGD-20").axes[0]
        drawn = [container.lines[0] for container in axis.containers]
        for name, line in zip(names, drawn, strict=True):
            looks.setdefault(name, []).append((line.get_marker(), line.get_markerfacecolor() != "none"))
        assert "filled: trained on\nattacked pictures" in [
            text.get_text() for text in axis.get_legend().get_texts()
        ]
    assert looks["all"] == 2 * [("D", False)]
    assert looks["all-pgd"] == [("D", True)]
    assert looks["head"] == [("o", False)]
    assert looks["head-pgd"] == [("o", True)]
    assert looks["else-seed0"] == looks["bn-only"] == [("P", False)]
    names = (
        "pgd-long",
        "pgd, best",
        "n-fgsm, seed 1",
        "01 ni",
        "source-robust",
        "01 standard",
        "from-robust-head",
    )
    drawn = figures.plot_plane({"03": dict.fromkeys(names, score)}, "PGD-20").axes[0].containers
    assert [line.lines[0].get_markerfacecolor() != "none" for line in drawn] == 5 * [True] + 2 * [False]
    twice = {name: {"all": score} for name in ("from robust, ε = 4", "from robust, ε = 8", "01", "02", "03", "04")}
    drawn = figures.plot_plane(twice, "PGD-20").axes[0].containers
    assert len({line.lines[0].get_color() for line in drawn[:5]}) == 5
    first, other, again = transfer_figures._looks(["from-robust-all-seed0", "probe", "from-robust-all-seed1"])
    assert first | {"label": None} == again
    assert other["color"] not in SOURCES.values()
    many = {f"kind {number}": score for number in range(9)}
    axis = figures.plot_plane({"robust": many}, "PGD-20").axes[0]
    assert {container.lines[0].get_marker() for container in axis.containers} == {"o"}


def test_all_and_none_correct_can_be_drawn():
    for n in (7, 200, 500, 1000):
        score = Scores("x test", {"clean": torch.ones(n) > 0, "PGD-20": torch.ones(n) < 0}, {"PGD-20": "PGD"})
        figures.plot_scores({"a": score})
        figures.plot_plane({"a": {"b": score}}, "PGD-20")


def test_a_curve_over_eps_names_its_expected_robustness():
    def curve(*shares):
        rows = [[eps, share, share, share, 100] for eps, share in zip((0, 0.1, 0.2), shares, strict=True)]
        table = pd.DataFrame(rows, columns=["eps", "accuracy", "low", "high", "n"])
        table.attrs |= {"split": "x test", "norm": "Linf"}
        return table

    named = {"a-seed0": curve(0.8, 0.4, 0.0), "a-seed1": curve(0.6, 0.2, 0.0), "b": curve(0.9, 0.9, 0.9)}
    for trained, a in ((None, 32.5), (0.1, 50.0), (0.3, 32.5)):
        legend = figures.plot_against(named, "PGD", trained=trained).axes[0].get_legend()
        assert [text.get_text() for text in legend.get_texts()][:2] == [f"a, {a} %", "b, 90.0 %"]
        assert legend.get_title().get_text().endswith(f"up to ε = {255 * min(trained or 1, 0.2):.4g}/255")


@pytest.mark.parametrize("other", [{"norm": "L2"}, {"split": "x validation"}, {"n": 20}])
def test_curves_that_cannot_be_compared_do_not_share_an_axis(other):
    tables = {}
    for name, known in (("a", {}), ("b", other)):
        known = {"norm": "Linf", "split": "x test", "n": 100} | known
        tables[name] = pd.DataFrame({"eps": [0.1], "accuracy": 0.5, "low": 0.4, "high": 0.6, "n": known.pop("n")})
        tables[name].attrs |= known
    with pytest.raises(ValueError, match="cannot be compared"):
        figures.plot_against(tables, "PGD")


def test_attacks_of_other_sizes_do_not_share_an_axis():
    outcome = torch.arange(20) < 10
    one, other = (
        Scores("x test", {"clean": outcome, "PGD-20": outcome}, {"PGD-20": repr(PGD(steps=20, eps=eps / 255))})
        for eps in (2, 8)
    )
    drawn = figures.plot_scores({"a": one, "b": other}).axes[0]
    ticks = [tick.get_text() for tick in drawn.get_xticklabels()]
    assert [tick.replace("\n", "") for tick in ticks] == ["clean", one.attacks["PGD-20"], other.attacks["PGD-20"]]
    with pytest.raises(ValueError, match="different attacks"):
        figures.plot_plane({"g": {"a": one, "b": other}}, "PGD-20")


def test_classes_are_those_of_the_pictures_that_were_tested(blobs):
    outcome = torch.ones(len(blobs.test)).bool()
    score = Scores("x test", {"clean": outcome, "FGSM": outcome}, {"FGSM": "FGSM"}, pictures=blobs.test.checksum)
    assert figures.plot_per_class({"a": score}, blobs.test, "FGSM").axes
    score.pictures = "others"
    with pytest.raises(ValueError, match="a: these scores are of other pictures"):
        figures.plot_per_class({"a": score}, blobs.test, "FGSM")
