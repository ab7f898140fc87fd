"""Every notebook runs from another folder under `smoke`, and keeps the form that readers rely on."""

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
import papermill
import pytest
from nbclient import NotebookClient
from papermill.parameterize import parameterize_notebook

from storage.atomic_files import read_json
from study import answers, report, tables
from study.kept import HEADER, MOST_BYTES

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
    assert lines <= 130
    for cell in book.cells:  # ids with a meaning, which stay when cells are moved
        assert not re.fullmatch(r"[0-9a-f-]{8,}|\d+", cell.id)


COPIES = sorted((NOTEBOOKS[0].parent / "expected").glob("*/*.ipynb"))


def sources(path):
    """The cells of a notebook; of an executed copy without what was put into it."""
    cells = nbformat.read(path, 4).cells
    return [
        cell.source for cell in cells if cell.metadata.get("tags") != ["injected-parameters"] and cell.id != HEADER
    ]


@pytest.mark.parametrize("path", COPIES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_an_executed_copy_is_of_the_notebook_as_it_is(path):
    again = f"python -m study --keep notebooks/expected/{path.parent.name} makes it anew"
    assert sources(path) == sources(NOTEBOOKS[0].parent / path.name), again
    assert path.stat().st_size <= MOST_BYTES
    assert not re.search(r"(?<![\w.:/~<])/(home|root|tmp|mnt|work|Users)/", path.read_text()), "a machine's place"


TRAIN_NOTHING = "00_first_look", "99_summary"
SMALL = {"preset": "smoke", "test_pictures": 8, "shares": [1]}
AGAIN = "03_from_scratch"


def table_of(folder, name):
    """What a notebook has measured."""
    if (carried := folder / name / "carried.csv").exists():
        return pd.read_csv(carried)  # what 07 measures instead of scores
    scores = tables.load_scores(folder / name)
    return tables.long(scores).drop(columns="seconds") if scores else None


# The summary must take networks that were tested with several ε, as the presets hour and full have them.
MIXED = {"sizes": [8, 16], "chosen": "from-(standard|robust)-(fgsm|n-fgsm|pgd)-8|from-robust-fgsm-16"}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """All notebooks, in order as the study runs them, and one of them again: the folder, [(name, text, table)].

    In one process, which saves the most of the time; what one has named the next does not know.
    """
    base = tmp_path_factory.mktemp("notebooks")
    (base / "elsewhere").mkdir()
    folder, ran = base / "runs" / "smoke-shapes", []
    environment = os.environ | {"STUDY_RUNS": str(base / "runs"), "OMP_NUM_THREADS": "1"}
    client = NotebookClient(nbformat.v4.new_notebook(), kernel_name="python3")
    with client.setup_kernel(env=environment, cwd=str(base / "elsewhere")):
        for path in [*NOTEBOOKS, *(path for path in NOTEBOOKS if path.stem == AGAIN)]:
            known = papermill.inspect_notebook(str(path))
            small = {name: value for name, value in (SMALL | MIXED).items() if name in known}
            if not path.stem.startswith("09"):
                small.pop("chosen", None)
            client.nb = parameterize_notebook(papermill.iorw.load_notebook_node(str(path)), small)
            for index, cell in enumerate(client.nb.cells):
                client.execute_cell(cell, index)
            nbformat.write(client.nb, base / path.name)
            ran.append((path.stem, (base / path.name).read_text(), table_of(folder, path.stem)))
            client.execute_cell(nbformat.v4.new_code_cell("%reset -f"), 0)
    assert not list((base / "elsewhere").iterdir())
    return folder, ran


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_runs_from_another_folder(path, study):
    folder, ran = study
    assert path.stem in {name for name, _, _ in ran}
    assert list((folder / path.stem / "figures").glob("*.png"))
    if path.stem in TRAIN_NOTHING:
        assert not list((folder / path.stem).glob("*/recipe.json"))


def test_again_it_loads_what_was_trained_and_finds_the_same(study):
    (_, _, before), (_, text, after) = (row for row in study[1] if row[0] == AGAIN)
    assert before.equals(after)
    assert "is finished: loaded, not trained again" in text


TINY = {
    "quick": {"epochs": None, "robust_epochs": None, "width": None, "pictures": 100},  # from our own networks
    "hour": {"epochs": 1, "robust_epochs": 1, "width": 4, "pictures": 200},
}
TINY_TOO = {
    "long_epochs": 1,
    "tuning_epochs": 1,
    "scratch_epochs": 1,
    "steps": 1,
    "shares": [1],
    "test_pictures": 8,
}
WEAK = {"autoattack": {"steps": 1, "targets": 1, "queries": 2}}


@pytest.mark.long
@pytest.mark.parametrize("preset", TINY)
def test_the_other_presets_run_too(tmp_path, preset):
    """With few pictures and epochs; 04, 05 and 07, which have no parameters for all of them, are left out."""
    folder = tmp_path / "runs" / f"{preset}-shapes"
    environment = os.environ | {"STUDY_RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"}
    some = ["01", "02", "03", "06", "99"]
    command = [sys.executable, "-m", "study", *some, "--preset", preset, "--data", "shapes"]
    for name, value in (TINY[preset] | TINY_TOO | WEAK).items():
        command += ["-p", f"{name}={value!r}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert set(answers.load_study(folder)) >= {"01_shallow_cnn", "02_transfer_learning", "06_robust_transfer"}
    trained = {path.parent.name for path in folder.glob("*/*/recipe.json")}
    assert ("source-robust-seed0" in trained) == (preset == "hour")
    assert "from-robust-head-seed0" in trained
    assert ("from-robust-trades-seed0" in trained) == (preset == "hour")


@pytest.mark.long
def test_each_twice_in_a_process_of_its_own(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    folder, measured = tmp_path / "runs" / "smoke-shapes", {path.stem: [] for path in NOTEBOOKS}
    environment = os.environ | {"STUDY_RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"}

    def run(path, name):
        target = tmp_path / f"{path.stem}-{name}.ipynb"
        command = [sys.executable, "-m", "papermill", str(path), str(target), "-p", "preset", "smoke"]
        command += ["--kernel", "python3", "--cwd", str(tmp_path / "elsewhere"), "--no-progress-bar"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        measured[path.stem].append(table_of(folder, path.stem))
        return target

    with ThreadPoolExecutor(1) as beside:  # on one core the first time, meanwhile on another the ones before again
        second = {}
        for path in NOTEBOOKS:
            run(path, "first")
            second[path.stem] = beside.submit(run, path, "second")
        texts = {name: done.result().read_text() for name, done in second.items()}
    assert not list((tmp_path / "elsewhere").iterdir())
    for name, (before, after) in measured.items():
        assert list((folder / name / "figures").glob("*.png"))
        if name not in TRAIN_NOTHING:
            assert before.equals(after), name
            assert "is finished: loaded, not trained again" in texts[name]
    assert_nothing_is_trained_twice(folder, amounts=())


def test_nothing_is_trained_twice(study):
    assert_nothing_is_trained_twice(study[0])


def assert_nothing_is_trained_twice(folder, amounts=(320,)):
    """`amounts` are the numbers of pictures in 06 that are all of them: those runs are there already."""
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
        "08_what_is_carried_over/from-robust-all-pgd-seed0": "02_transfer_learning/from-robust-all-pgd-seed0",
        "08_what_is_carried_over/from-robust-head-seed0": "02_transfer_learning/from-robust-head-seed0",
        "08_what_is_carried_over/from-scratch-all-pgd-seed0": "06_robust_transfer/from-scratch-all-pgd-seed0",
        "08_what_is_carried_over/from-standard-all-pgd-seed0": "02_transfer_learning/from-standard-all-pgd-seed0",
        "08_what_is_carried_over/from-standard-head-seed0": "02_transfer_learning/from-standard-head-seed0",
        "08_what_is_carried_over/source-robust-seed0": "02_transfer_learning/source-robust-seed0",
        "08_what_is_carried_over/source-standard-seed0": "02_transfer_learning/source-standard-seed0",
        "09_cheap_fine_tuning/from-robust-n-fgsm-8-seed0": "06_robust_transfer/from-robust-n-fgsm-seed0",
        "09_cheap_fine_tuning/from-robust-pgd-8-seed0": "02_transfer_learning/from-robust-all-pgd-seed0",
        "09_cheap_fine_tuning/from-standard-pgd-8-seed0": "02_transfer_learning/from-standard-all-pgd-seed0",
        "09_cheap_fine_tuning/source-robust-seed0": "02_transfer_learning/source-robust-seed0",
        "09_cheap_fine_tuning/source-standard-seed0": "02_transfer_learning/source-standard-seed0",
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
            f"06_robust_transfer/{name}-{amount}-pictures-seed0": f"{place}/{name}-seed0"
            for amount in amounts
            for name, place in (
                ("from-robust-head", "02_transfer_learning"),
                ("from-robust-all-pgd", "02_transfer_learning"),
                ("from-standard-all-pgd", "02_transfer_learning"),
                ("from-scratch-all-pgd", "06_robust_transfer"),
            )
        },
    }


def test_every_question_of_the_summary_was_put_to_runs_that_exist(study):
    answered = answers.questions(answers.load_study(study[0]))
    assert len(answered) == len(answers.QUESTIONS)
    assert not {"not run", "not asked"} & set(answered.answer)


def test_the_page_holds_all_notebooks(study, tmp_path):
    folder = shutil.copytree(study[0], tmp_path / "study")
    (folder / "notebooks").mkdir()
    for path in NOTEBOOKS:
        shutil.copyfile(study[0].parents[1] / path.name, folder / "notebooks" / path.name)
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
