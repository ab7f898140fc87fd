"""Every notebook runs from another folder under `smoke`, twice, and keeps the form that readers rely on."""

import ast
import re
from pathlib import Path

import nbformat
import papermill
import pytest

import report

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_runs_from_another_folder_and_again(path, tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path / "runs"))
    (tmp_path / "elsewhere").mkdir()
    tables = []
    for name in ("first", "second"):
        target = tmp_path / f"{name}.ipynb"
        papermill.execute_notebook(
            path,
            target,
            {"preset": "smoke"},
            kernel_name="python3",
            cwd=str(tmp_path / "elsewhere"),
            progress_bar=False,
        )
        experiment = tmp_path / "runs" / "smoke-shapes" / path.stem
        tables.append(report.long_table(report.load_scores(experiment)).drop(columns="seconds"))
    assert tables[0].equals(tables[1])
    text = target.read_text()
    assert "is finished: loaded, not trained again" in text
    assert list((experiment / "figures").glob("*.png"))
    assert not list((tmp_path / "elsewhere").iterdir())
