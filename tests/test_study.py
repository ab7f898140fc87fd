"""The main job: which notebooks, with what, and what it says when one fails."""

import nbformat
import pytest

import study


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """A folder of small notebooks: one that works, one that fails in its second cell."""

    def write(name, *cells):
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        book = nbformat.v4.new_notebook(metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
        first = nbformat.v4.new_code_cell('preset = "auto"\ndata = "auto"\nseed = 0\nword = ""')
        first.metadata["tags"] = ["parameters"]
        book.cells = [first, *map(nbformat.v4.new_code_cell, cells)]
        nbformat.write(book, tmp_path / name)

    write("01_works.ipynb", "print(preset, data, seed, word)")
    write("02_fails.ipynb", "print('before')", "broken = 1 / 0", "print('after')")
    monkeypatch.setattr(study, "NOTEBOOKS", tmp_path)
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path / "runs"))
    return tmp_path


def test_runs_all_keeps_the_partial_one_and_says_what_failed(notebooks, capsys):
    assert study.main(["--preset", "smoke", "--seed", "3", "-p", "word=hello"]) == 1
    out = capsys.readouterr()
    assert "[1/2] 01_works" in out.out
    assert "failed: 02_fails" in out.out
    assert "02_fails.ipynb failed in cell" in out.err
    assert "ZeroDivisionError: division by zero" in out.err
    assert "broken = 1 / 0" in out.err
    kept = notebooks / "runs" / "smoke-shapes" / "notebooks"
    works = nbformat.read(kept / "01_works.ipynb", 4)
    assert works.cells[2].outputs[0].text == "smoke shapes 3 hello\n"
    fails = nbformat.read(kept / "02_fails.ipynb", 4)
    printed = [
        output.text for cell in fails.cells for output in cell.get("outputs", []) if output.output_type == "stream"
    ]
    assert printed == ["before\n"]


def test_one_by_the_beginning_of_its_name(notebooks, capsys):
    assert study.main(["01", "--preset", "smoke"]) == 0
    assert "02_fails" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["07"], "no notebook begins with '07'; there are 01_works, 02_fails"),
        (["-p", "epochs"], "NAME=VALUE"),
        (["-p", "seed=3"], "--seed sets this"),
    ],
)
def test_wrong_arguments(notebooks, arguments, message):
    with pytest.raises(SystemExit, match=message):
        study.main([*arguments, "--preset", "smoke"])


def test_an_unknown_parameter_is_no_silent_default(notebooks):
    with pytest.raises(SystemExit, match=r"-p epohcs: no notebook has this parameter; they have .*preset"):
        study.main(["01", "--preset", "smoke", "-p", "epohcs=3"])
    assert not (notebooks / "runs").exists()


def test_a_parameter_reaches_the_notebooks_that_know_it(notebooks):
    book = nbformat.read(study.NOTEBOOKS / "01_works.ipynb", 4)
    book.cells[0].source, book.cells[1].source = 'preset = ""\ndata = ""\nseed = 0', "assert preset == 'smoke'"
    nbformat.write(book, study.NOTEBOOKS / "03_knows_less.ipynb")
    assert study.main(["01", "03", "--preset", "smoke", "-p", 'word="there"']) == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [("a=true", True), ("a=False", False), ("a=None", None), ("a=1e-3", 0.001), ("a=word", "word")],
)
def test_values_are_read_as_json_or_python(text, value):
    assert study._parameter(text) == ("a", value)
