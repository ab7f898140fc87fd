"""What is kept of a study."""

import base64
import io

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.scores import Scores
from evaluation.statistics import paired
from storage.atomic_files import read_json
from storage.paths import ROOT, runs_root
from study import figures, kept


def test_what_is_kept_for_readers(study, tmp_path):
    session, _, _, scores = study
    folder = session.runs.parent
    figures.save(figures.plot_scores(scores), session, "scores")
    (folder / "command.txt").write_text("python -m study\n")
    kept.keep(folder, tmp_path / "expected")
    there = {str(path.relative_to(tmp_path / "expected")) for path in (tmp_path / "expected").rglob("*.*")}
    assert {"scores.csv", "provenance.json", f"{session.experiment}/figures/scores.png"} <= there
    assert not [name for name in there if name.endswith((".safetensors", ".pt", ".pdf"))]
    provenance = read_json(tmp_path / "expected" / "provenance.json")
    assert provenance["commands"] == ["python -m study"]
    assert [group["runs"] for group in provenance["environments"]] == [2]


def figure(side):
    """A PNG in base64 that no compression makes small."""
    noise, png = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8), io.BytesIO()
    Image.fromarray(noise).save(png, "PNG")
    return base64.b64encode(png.getvalue()).decode()


@pytest.fixture
def executed(study):
    """Writes the notebook of that study as papermill leaves it, with a figure; returns its text as it is kept."""
    folder = study[0].runs.parent
    path = folder / "notebooks" / f"{study[0].experiment}.ipynb"
    path.parent.mkdir(exist_ok=True)

    def write(side=8, start="2020-01-01T00:00:00+00:00", exception=None, **more):
        new = nbformat.v4.new_output
        shown = {"application/vnd.jupyter.widget-view+json": {"model_id": "abc"}}
        cell = nbformat.v4.new_code_cell("train()", metadata={"tags": ["x"], "papermill": {"duration": 1}})
        cell.outputs = [
            new("stream", name="stderr", text="10%|#"),
            new("display_data", data=shown),
            new("stream", text=f"{runs_root()}/smoke and {ROOT}/notebooks"),
            new("display_data", data={"image/png": figure(side), "text/plain": "<Figure>"}),
        ]
        book = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {"state": {}}})
        book.metadata["papermill"] = {"start_time": start, "duration": 90.0, "exception": exception} | more
        nbformat.write(book, path)
        return kept._readable(path, folder, ["python -m study"])

    yield write
    path.unlink()


def test_a_notebook_is_kept_with_its_outputs_and_without_its_machine(study, executed, tmp_path):
    book = nbformat.reads(executed(), 4)
    nbformat.validate(book)
    header, cell = book.cells
    assert header.source.startswith("*Executed on 2020-01-01, ")
    assert " 1.5 minutes, preset smoke, data shapes, commit " in header.source
    assert header.source.endswith("made by:* `python -m study`")
    said, drawn = cell.outputs
    assert said.text == "runs/smoke and notebooks"
    assert drawn.data["image/png"] == figure(8)
    assert cell.metadata == {"tags": ["x"]}
    assert not book.metadata
    assert ", commit 0a1b2c+; made by" in nbformat.reads(executed(commit="0a1b2c+"), 4).cells[0].source
    folder = study[0].runs.parent
    (folder / "command.txt").write_text("python -m study\n")
    kept.keep(folder, tmp_path)
    assert (tmp_path / f"{study[0].experiment}.ipynb").exists()


def test_what_was_loaded_says_nothing_of_the_time_that_it_takes(executed):
    book = nbformat.reads(executed(start="2999-01-01T00:00:00+00:00"), 4)
    assert "some of its runs were there already" in book.cells[0].source


def test_figures_of_a_large_notebook_shrink_until_a_code_host_shows_it(executed, monkeypatch):
    monkeypatch.setattr(kept, "MOST_BYTES", 100_000)
    text = executed(side=300)
    assert len(text) <= kept.MOST_BYTES
    png = nbformat.reads(text, 4).cells[1].outputs[1].data["image/png"]
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    assert (image.mode, image.width) == ("P", 210)
    with pytest.raises(ValueError, match="more than 100,000 bytes"):
        executed(side=600)


def test_a_notebook_that_broke_off_is_not_kept(executed):
    assert executed(exception=True) is None


def test_seeds_of_a_kept_study_in_a_row_a_network(tmp_path):
    lines = ["model,evaluation,accuracy,verdict"]
    for seed, (clean, left) in enumerate([(70, 30), (71, 33), (75, 36)]):
        for network, verdict in (
            ("from-robust-all", "no finding"),
            ("from-scratch-all", "invalid"),
            ("source-robust", ""),
        ):
            lines.append(f"06_robust_transfer/{network}-seed{seed},clean,{clean},no finding")
            lines.append(f'06_robust_transfer/{network}-seed{seed},"AutoAttack, cut short",{left},{verdict}')
    lines.append("01_shallow_cnn/pgd-seed0,AutoAttack,20,")
    (tmp_path / "scores.csv").write_text("\n".join(lines))
    assert kept.seeds_table(tmp_path, "06_robust_transfer").splitlines() == [
        "| network | clean | AutoAttack, cut short | each seed |",
        "| --- | ---: | ---: | ---: |",
        "| from-robust-all | 72.0 [65.4, 78.6] | 33.0 [25.5, 40.5] | 30.0, 33.0, 36.0 |",  # 4.303 · s / √3
        "| from-scratch-all | 72.0 [65.4, 78.6] | ~~33.0 [25.5, 40.5]~~ | 30.0, 33.0, 36.0 |",
    ]


def test_two_networks_are_compared_picture_by_picture(tmp_path):
    """Of two seeds where both have two; AutoAttack where both were tested under it."""
    right = torch.arange(40) < 32
    for seed in (0, 1):
        for network, left in (("scratch-pgd", 16 + seed), ("from-robust-all-pgd", 8)):
            outcomes = {"clean": right, "PGD-20": torch.arange(40) < left}
            (folder := tmp_path / "two" / f"{network}-seed{seed}").mkdir(parents=True)
            Scores("blobs test", outcomes, {"PGD-20": "PGD"}).write(folder, "scores")
            if seed == 0:
                outcomes = {"clean": right, "AutoAttack": torch.arange(40) < left - 4}
                Scores("blobs test", outcomes, {"AutoAttack": "AA"}).write(folder, "autoattack")
    rows = kept.paired_table({"small": tmp_path / "two"}, "scratch-pgd", "from-robust-all-pgd").splitlines()[2:]
    cells = [row.strip("| ").split(" | ") for row in rows]
    assert [row[1:5] for row in cells] == [
        ["2 × 40", "clean", "80.0", "80.0"],
        ["2 × 40", "PGD-20", "41.2", "20.0"],
        ["2 × 40", "of it, as more are right", "", ""],
        ["2 × 40", "of it, as more of the right withstand", "", ""],
        ["1 × 40", "clean", "80.0", "80.0"],
        ["1 × 40", "AutoAttack", "30.0", "10.0"],
        ["1 × 40", "of it, as more are right", "", ""],
        ["1 × 40", "of it, as more of the right withstand", "", ""],
    ]
    assert [row[5].partition(" [")[0] for row in cells[-2:]] == ["+0.0 points", "+20.0 points"]
    shares = [[torch.arange(40) < left for left in some] for some in ((16, 17), (8, 8))]
    assert cells[1][5] == str(paired(*shares))
    assert cells[1][5].startswith("+21.2 points [")
    assert not kept.paired_table({"small": tmp_path / "two"}, "scratch-pgd", "absent").splitlines()[2:]


def test_a_copy_names_the_commands_that_ran_it():
    several = [
        "python -m study 01 02 -p steps=3",
        "python study.py 06 --seed 1",
        "python -m study --preset quick --seed 6",
    ]
    several += ["python -m study --preset quick --per-gpu 2 06"]
    found = {name: [kept._is_of(command, name) for command in several] for name in ("02_b", "06_c", "99_d")}
    assert found == {
        "02_b": [True, False, True, False],
        "06_c": [False, True, True, True],
        "99_d": [False, False, True, False],
    }
