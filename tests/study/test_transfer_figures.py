"""Figures of transfer: each is drawn, says what it shows, and is true to its numbers."""

import numpy as np
import pandas as pd
import torch

from attacks import FGSM, PGD
from evaluation import carried_matrix, carried_outcomes, features
from evaluation.finding import Finding
from evaluation.scores import Scores
from study import figures, transfer_figures


def texts(figure):
    return [item.get_text() for item in figure.findobj(lambda item: hasattr(item, "get_text"))]


def test_all_are_drawn_and_say_that_drawn_pictures_are_a_demonstration(study):
    session, data, runs, scores = study
    named = {name: run.model for name, run in runs.items()}
    few = data.test.first(20)
    stood = {a.label: carried_outcomes(named, few, a, progress=False) for a in (FGSM(), PGD(steps=1))}
    layers = {name: features.through_layers(model, few, FGSM()) for name, model in named.items()}
    drawn = {
        "carried": transfer_figures.plot_carried(carried_matrix(named, few, FGSM(), progress=False)),
        "carried_attacks": transfer_figures.plot_carried_attacks(stood, few),
        "layers": transfer_figures.plot_layers(layers),
        "amounts": transfer_figures.plot_amounts({name: {10: s, 100: s} for name, s in scores.items()}, "PGD-2"),
        "stages": transfer_figures.plot_stages({name: [[s]] for name, s in scores.items()}, "PGD-2"),
        "plane": figures.plot_plane({"a": scores}, "PGD-2", {"a": scores["other"]}),
    }
    for name, figure in drawn.items():
        figures.save(figure, session, name)
        assert (session.runs / "figures" / f"{name}.png").stat().st_size > 5000
        assert "a demonstration" in " ".join(texts(figure)), name


def test_the_field_of_carried_attacks_has_its_numbers_in_their_places(blobs):
    right = torch.arange(100)
    stood = {
        attack: {
            (s, v): right < 10 * k + j for k, s in enumerate(("v", "t", "u")) for j, v in enumerate(("v", "w"))
        }
        for attack in ("PGD-10", "NI-FGSM")
    }
    figure = transfer_figures.plot_carried_attacks(stood, blobs.test)
    left, other = figure.axes
    assert [text.get_text() for text in left.texts] == ["0", "0", "10", "10", "20", "20"]
    assert [text.get_text() for text in other.texts] == ["1", "1", "11", "11", "21", "21"]
    assert [text.get_weight() for text in left.texts] == ["bold"] * 2 + ["normal"] * 4
    assert {text.get_weight() for text in other.texts} == {"normal"}
    assert left.get_title() == "victim: v"


def test_amounts_leave_out_what_is_invalid(blobs):
    def score(share, findings=()):
        outcome = torch.arange(200) < 200 * share
        return Scores("x test", {"clean": outcome, "PGD": outcome}, {"PGD": "PGD"}, findings=list(findings))

    broken = Finding("", "invalid", 1, 0, "", ("PGD",))
    amounts = {"head": {10: score(0.2), 100: score(0.4)}, "all": {10: score(0.3, [broken]), 100: score(0.5)}}
    clean, robust = transfer_figures.plot_amounts(amounts, "PGD").axes
    lines = [[line.get_xydata().tolist() for line in axis.get_lines()] for axis in (clean, robust)]
    assert [[10, 30], [100, 50]] in lines[0]
    assert [[100, 50]] in lines[1]
    assert [[10, 20], [100, 40]] in lines[1]


def test_a_line_leads_through_the_stages_in_the_mean_of_their_seeds():
    def score(clean, robust):
        right = torch.arange(100)
        return Scores("x test", {"clean": right < clean, "PGD": right < robust}, {"PGD": "PGD"})

    stages = [[score(40, 10), score(60, 20)], [score(70, 50)]]
    (axis,) = transfer_figures.plot_stages({"head": stages}, "PGD").axes
    assert axis.get_lines()[0].get_xydata().tolist() == [[50, 15], [70, 50]]


def test_layers_show_what_the_tables_hold():
    numbers = {"shift": [0.1, 0.5], "noise": [0.05, 0.1], "cka": [1, 0.5], "alignment": [0.2, 0.3]}
    plain = pd.DataFrame(numbers, ["pixels", "stem"])
    tables = {"one": plain, "two": plain.assign(source_cka=[1, 0.8])}
    for table in tables.values():
        table.attrs |= {"split": "x test", "n": 5, "attack": "PGD"}
    axes = transfer_figures.plot_layers(tables).axes
    assert len(axes) == 4
    assert [len(axis.get_lines()) for axis in axes] == [4, 2, 2, 1]
    assert np.allclose(axes[0].get_lines()[0].get_ydata(), [0.1, 0.5])
    assert axes[0].get_lines()[1].get_linestyle() == ":"


def test_the_plane_leads_a_line_from_a_source_to_each_that_was_made_of_it():
    def score(clean, robust):
        right = torch.arange(100)
        outcomes = {"clean": right < clean, "PGD-20": right < robust}
        return Scores("x test", outcomes, {"PGD-20": "PGD"})

    made = {"robust": {"head": score(60, 30), "all": score(80, 10)}, "none": {"all": score(50, 20)}}
    axis = figures.plot_plane(made, "PGD-20", {"robust": score(40, 20)}).axes[0]
    lines = [line.get_xydata().tolist() for line in axis.get_lines()]
    assert [[40, 20], [60, 30]] in lines
    assert [[40, 20], [80, 10]] in lines
    assert sum(line == [[40.0, 20.0]] for line in lines) == 1  # the star
    assert not any([50.0, 20.0] in line and len(line) == 2 for line in lines)


def test_stages_leave_out_what_is_invalid():
    outcome = torch.arange(40) < 20
    good, bad = (Scores("x test", {"clean": outcome, "FGSM": outcome}, {"FGSM": "FGSM"}) for _ in range(2))
    bad.findings = [Finding("odd", "invalid", 1, 0, "so")]
    (axis,) = transfer_figures.plot_stages({"a": [[bad], [good]], "b": [[bad]]}, "FGSM").axes
    assert [len(container[0].get_xdata()) for container in axis.containers] == [1]
    assert axis.get_title().endswith("invalid numbers left out")
