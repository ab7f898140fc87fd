"""Every notebook runs from another folder under `smoke`, twice, and keeps the form that readers rely on."""

import ast
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from storage.atomic_files import read_json
from study import report, summary

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def ids(path):
    return path.stem


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_form(path):
    book = nbformat.read(path, 4)
    nbformat.validate(book)
    assert book.cells[0].source.startswith("# ")
    assert book.cells[0].source.splitlines()[0].endswith("?") or path.stem.startswith("99")
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.metadata.get("tags") for cell in code].count(["parameters"]) == 1
    lines = 0
    for cell in code:
        assert cell.outputs == []
        assert cell.execution_count is None
        assert len(cell.source.splitlines()) <= 15, cell.source
        assert not any(
            isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in ast.walk(ast.parse(cell.source))
        )
        lines += len([line for line in cell.source.splitlines() if line.strip()])
    assert lines <= 120
    for cell in book.cells:  # ids with a meaning, which stay when cells are moved
        assert not re.fullmatch(r"[0-9a-f-]{8,}|\d+", cell.id)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """All notebooks, in order as `study.py` runs them, each twice: the folder, {name: texts and tables}."""
    base = tmp_path_factory.mktemp("notebooks")
    (base / "elsewhere").mkdir()
    texts = {path.stem: [] for path in NOTEBOOKS}
    environment = os.environ | {"STUDY_RUNS": str(base / "runs"), "OMP_NUM_THREADS": "1"}

    def run(path, name):
        target = base / f"{path.stem}-{name}.ipynb"
        command = [sys.executable, "-m", "papermill", str(path), str(target), "-p", "preset", "smoke"]
        command += ["--kernel", "python3", "--cwd", str(base / "elsewhere"), "--no-progress-bar"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        scores = report.load_scores(base / "runs" / "smoke-shapes" / path.stem)
        table = report.long_table(scores).drop(columns="seconds") if scores else None
        if (carried := base / "runs" / "smoke-shapes" / path.stem / "carried.csv").exists():
            table = pd.read_csv(carried)  # what 07 measures instead
        texts[path.stem].append((target.read_text(), table))

    with ThreadPoolExecutor(1) as beside:  # on one core the first time, meanwhile on another the ones before again
        second = []
        for path in NOTEBOOKS:
            run(path, "first")
            second.append(beside.submit(run, path, "second"))
        for done in second:
            done.result()
    assert not list((base / "elsewhere").iterdir())
    return base / "runs" / "smoke-shapes", texts


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_runs_from_another_folder_and_again(path, study):
    folder, texts = study
    (_, before), (text, after) = texts[path.stem]
    assert list((folder / path.stem / "figures").glob("*.png"))
    if path.stem == "99_summary":  # it trains nothing
        assert not list((folder / path.stem).glob("*/recipe.json"))
        return
    assert before.equals(after)
    assert "is finished: loaded, not trained again" in text


def test_nothing_is_trained_twice(study):
    folder, _ = study
    recipes, shared = {}, {}
    for path in sorted(folder.glob("*/*/recipe.json")):
        name = str(path.parent.relative_to(folder))
        environment = read_json(path.parent / "environment.json")
        if "same_run_as" in environment:
            shared[name] = environment["same_run_as"]
            assert path.read_text() == (folder / shared[name] / "recipe.json").read_text()
        else:
            assert path.read_text() not in recipes, f"{name} and {recipes[path.read_text()]} are the same run"
            recipes[path.read_text()] = name
    assert shared == {
        "04_more_classes/shallow-10-pgd-seed0": "01_shallow_cnn/pgd-seed0",
        "04_more_classes/shallow-10-seed0": "01_shallow_cnn/standard-seed0",
        "04_more_classes/resnet-10-pgd-seed0": "03_from_scratch/pgd-seed0",
        "04_more_classes/resnet-10-seed0": "03_from_scratch/standard-seed0",
        "04_more_classes/resnet-100-pgd-seed0": "02_transfer_learning/source-robust-seed0",
        "04_more_classes/resnet-100-seed0": "02_transfer_learning/source-standard-seed0",
        "05_flawed_protocols/pgd-seed0": "01_shallow_cnn/pgd-seed0",
        "05_flawed_protocols/standard-seed0": "01_shallow_cnn/standard-seed0",
        "05_flawed_protocols/resnet-pgd-seed0": "03_from_scratch/pgd-seed0",
        "05_flawed_protocols/resnet-seed0": "03_from_scratch/standard-seed0",
        "07_public_source/stranger-seed0": "03_from_scratch/standard-seed0",
        "07_public_source/robust-stranger-seed0": "03_from_scratch/pgd-seed0",
        "06_robust_transfer/from-scratch-all-seed0": "02_transfer_learning/scratch-seed0",
        **{
            f"06_robust_transfer/{name}-seed0": f"02_transfer_learning/{name}-seed0"
            for source in ("standard", "robust")
            for name in (
                f"source-{source}",
                *(
                    f"from-{source}-{part}{kind}"
                    for part in ("head", "last-stage", "all")
                    for kind in ("", "-pgd")
                ),
            )
        },
        **{
            f"06_robust_transfer/{name}-320-pictures-seed0": f"{place}/{name}-seed0"
            for name, place in (
                ("from-robust-head", "02_transfer_learning"),
                ("from-robust-all-pgd", "02_transfer_learning"),
                ("from-standard-all-pgd", "02_transfer_learning"),
                ("from-scratch-all-pgd", "06_robust_transfer"),
            )
        },
    }


def test_every_question_of_the_summary_was_put_to_runs_that_exist(study):
    answers = summary.answers(summary.load_study(study[0]))
    assert len(answers) == len(summary.QUESTIONS)
    assert "not run" not in set(answers.answer)


def test_the_page_holds_all_notebooks(study, tmp_path):
    folder = shutil.copytree(study[0], tmp_path / "study")
    (folder / "notebooks").mkdir()
    for path in NOTEBOOKS:
        shutil.copyfile(study[0].parents[1] / f"{path.stem}-second.ipynb", folder / "notebooks" / path.name)
    page = report.write_page(folder).read_text()
    for path in NOTEBOOKS:
        assert f'<a href="#{path.stem}">' in page
        assert f'<h2 id="{path.stem}">' in page
    assert page.count("The notebook as it ran") == len(NOTEBOOKS)
    assert "shared with an earlier experiment" in page
    assert not re.search(
        r"(src|href)=.(?!data:|#)", page.split("<h2 id", 1)[1]
    )  # nothing is fetched from elsewhere
    assert "widget" not in page
