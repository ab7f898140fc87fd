"""The main job: which notebooks, with what, and what it says when one fails."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat
import psutil
import pytest
import torch
from PIL import Image
from small import Threads, late

from processes.machine import environment
from storage.atomic_files import held
from study import __main__

ROOT = Path(__file__).parents[2]


def write(path, *cells):
    """A notebook of these cells, after one with the usual parameters."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = nbformat.v4.new_notebook(metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    first = nbformat.v4.new_code_cell('preset = "auto"\ndata = "auto"\nseed = 0\nword = ""')
    first.metadata["tags"] = ["parameters"]
    book.cells = [first, *map(nbformat.v4.new_code_cell, cells)]
    nbformat.write(book, path)


def wait_until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """A folder of small notebooks: one that works, one that fails in its second cell."""
    write(tmp_path / "01_works.ipynb", "print(preset, data, seed, word)")
    write(tmp_path / "02_fails.ipynb", "print('before')", "broken = 1 / 0", "print('after')")
    monkeypatch.setattr(__main__, "NOTEBOOKS", tmp_path)
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path / "runs"))
    return tmp_path


def test_runs_all_keeps_the_partial_one_and_says_what_failed(notebooks, capsys):
    assert __main__.main(["--preset", "smoke", "--seed", "3", "-p", "word=hello"]) == 1
    out = capsys.readouterr()
    assert "[1/2] 01_works\n[1/2] 01_works ended after 0:0" in out.out
    assert "Executing" not in out.err  # papermill's bar
    assert "failed: 02_fails" in out.out
    assert "02_fails.ipynb failed in cell" in out.err
    assert "ZeroDivisionError: division by zero" in out.err
    assert "broken = 1 / 0" in out.err
    kept = notebooks / "runs" / "smoke-shapes" / "notebooks"
    works = nbformat.read(kept / "01_works.ipynb", 4)
    assert works.cells[2].outputs[0].text == "smoke shapes 3 hello\n"
    assert works.metadata.papermill.commit == environment("cpu")["commit"]
    fails = nbformat.read(kept / "02_fails.ipynb", 4)
    printed = [
        output.text for cell in fails.cells for output in cell.get("outputs", []) if output.output_type == "stream"
    ]
    assert printed == ["before\n"]


@pytest.mark.parametrize("broken", ["1 / 0", "import os; os.kill(os.getpid(), 9)"])
def test_what_ran_well_stays_when_it_fails_the_next_time(notebooks, capsys, broken):
    kept = notebooks / "runs" / "smoke-shapes" / "notebooks"
    assert __main__.main(["01", "--preset", "smoke"]) == 0
    before = (kept / "01_works.ipynb").read_text()
    write(notebooks / "01_works.ipynb", "print('second')", broken)
    for _ in range(2):
        assert __main__.main(["01", "--preset", "smoke"]) == 1
        assert str(kept / "failed" / "01_works.ipynb") in capsys.readouterr().err
        assert (kept / "01_works.ipynb").read_text() == before
        assert "second" in (kept / "failed" / "01_works.ipynb").read_text()
    write(notebooks / "01_works.ipynb", "print('third')")
    assert __main__.main(["01", "--preset", "smoke"]) == 0
    assert "third" in (kept / "01_works.ipynb").read_text()
    assert not (kept / "failed" / "01_works.ipynb").exists()


def test_a_damaged_notebook_is_written_anew(notebooks):
    kept = notebooks / "runs" / "smoke-shapes" / "notebooks"
    kept.mkdir(parents=True)
    for text in ("{", "[]", '{"cells": [{"metadata": {}}]}'):
        (kept / "01_works.ipynb").write_text(text)
        assert not __main__._whole(kept / "01_works.ipynb")
    assert __main__.main(["01", "--preset", "smoke"]) == 0
    assert __main__._whole(kept / "01_works.ipynb")


def test_a_wrong_choice_is_one_line(notebooks):
    with pytest.raises(SystemExit, match=r"data='CIFAR-10' is not known; .* or folder:PATH.*Did you mean 'cifar'"):
        __main__.main(["--data", "CIFAR-10"])
    with pytest.raises(SystemExit, match=r"preset='qick'.*Did you mean 'quick'"):
        __main__.main(["--preset", "qick"])


def test_a_kernel_that_dies_is_no_traceback_but_its_last_words(notebooks, capsys, monkeypatch):
    write(notebooks / "01_works.ipynb", "import os; os.kill(os.getpid(), 9)")
    assert __main__.main(["01", "--preset", "smoke"]) == 1
    assert "01_works.ipynb: its kernel died" in capsys.readouterr().err
    (notebooks / "ipykernel_launcher.py").write_text("import a_library_that_is_not_there")
    monkeypatch.setenv("PYTHONPATH", str(notebooks))
    assert __main__.main(["01", "--preset", "smoke"]) == 1
    assert "No module named 'a_library_that_is_not_there'" in capsys.readouterr().err


def test_one_by_the_beginning_of_its_name(notebooks, capsys):
    assert __main__.main(["01", "--preset", "smoke"]) == 0
    assert "02_fails" not in capsys.readouterr().out


def test_what_is_too_long_for_a_preset_runs_there_by_name_alone(notebooks, capsys):
    path = notebooks / "02_fails.ipynb"
    book = nbformat.read(path, 4)
    book.metadata["not_in"] = ["smoke"]
    nbformat.write(book, path)
    assert __main__.main(["--preset", "smoke"]) == 0
    assert "not in the preset smoke: 02_fails" in capsys.readouterr().out
    assert __main__.main(["02", "--preset", "smoke"]) == 1


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
        __main__.main([*arguments, "--preset", "smoke"])


def test_an_unknown_parameter_is_no_silent_default(notebooks):
    with pytest.raises(SystemExit, match=r"-p epohcs: no notebook has this parameter; they have .*preset"):
        __main__.main(["01", "--preset", "smoke", "-p", "epohcs=3"])
    assert not (notebooks / "runs").exists()


def test_a_parameter_reaches_the_notebooks_that_know_it(notebooks):
    book = nbformat.read(__main__.NOTEBOOKS / "01_works.ipynb", 4)
    book.cells[0].source, book.cells[1].source = 'preset = ""\ndata = ""\nseed = 0', "assert preset == 'smoke'"
    nbformat.write(book, __main__.NOTEBOOKS / "03_knows_less.ipynb")
    assert __main__.main(["01", "03", "--preset", "smoke", "-p", 'word="there"']) == 0


def test_a_folder_of_ones_own_pictures_goes_to_the_notebooks(notebooks, monkeypatch, capsys):
    monkeypatch.setenv("STUDY_DATA", str(notebooks / "data"))
    for number in range(8):
        file = notebooks / "mine" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), number).save(file)
    folder = f"folder:{notebooks / 'mine'}"
    assert __main__.main(["01", "--preset", "smoke", "--data", f"{folder}/"]) == 0
    kept = nbformat.read(notebooks / "runs" / "smoke-mine" / "notebooks" / "01_works.ipynb", 4)
    assert kept.cells[2].outputs[0].text.split() == ["smoke", folder, "0"]
    file.write_bytes(b"junk")
    with pytest.raises(SystemExit, match="1 of 8 pictures cannot be read"):
        __main__.main(["01", "--preset", "smoke", "--data", folder])


def test_cifar_that_cannot_be_had_is_told_before_any_notebook(notebooks, monkeypatch):
    (notebooks / "cifar-10-python.tar.gz").write_bytes(b"cut off")
    monkeypatch.setenv("STUDY_DATA", str(notebooks))
    with pytest.raises(SystemExit, match=r"is damaged(.|\n)*make study DATA=shapes"):
        __main__.main(["01", "--preset", "smoke", "--data", "cifar"])
    assert not list((notebooks / "runs").rglob("*.ipynb"))


@pytest.mark.parametrize(
    ("text", "value"),
    [("a=true", True), ("a=False", False), ("a=None", None), ("a=1e-3", 0.001), ("a=word", "word")],
)
def test_values_are_read_as_json_or_python(text, value):
    assert __main__._parameter(text) == ("a", value)


LONG = """import models, trainer, utils
session = utils.start("03_long", preset=preset, data=data)
shapes = utils.load_data("shapes10", session)
recipe = trainer.Recipe(epochs=2000, precision="float32", validation_images=16)
run = trainer.train(models.build("shallow_cnn", 10), shapes, recipe, session.folder("run"))"""


def script(notebooks):
    """The command, for the notebooks of that folder."""
    return f"""import sys
from study import __main__
__main__.NOTEBOOKS = __main__.utils.Path({str(notebooks)!r})
sys.exit(__main__.main(sys.argv[1:]))"""


@contextmanager
def at_work(notebooks, until):
    """A study of 03_long, when that file is there: its process and its kernel."""
    command = [sys.executable, "-c", script(notebooks), "03", "--preset", "smoke"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    wait_until(until.exists)
    (kernel,) = psutil.Process(process.pid).children()
    yield process, kernel
    process.kill()


def gone(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.long
def test_a_kernel_that_does_not_end_is_killed_and_its_notebook_kept(notebooks):
    deaf = "import pathlib, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    there = notebooks / "deaf"
    write(notebooks / "03_long.ipynb", f"{deaf}; pathlib.Path({str(there)!r}).touch(); time.sleep(60)")
    with at_work(notebooks, there) as (process, kernel):
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        assert process.returncode == 75
        assert time.monotonic() - begun < 12
    wait_until(lambda: gone(kernel))
    assert (notebooks / "runs" / "smoke-shapes" / "notebooks" / "03_long.ipynb").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), late(signal.SIGINT, 130)])
def test_a_study_that_is_stopped_saves_and_takes_its_kernel_along(notebooks, shapes, number, code):
    write(notebooks / "03_long.ipynb", *LONG.splitlines())
    checkpoint = notebooks / "runs" / "smoke-shapes" / "03_long" / "run" / "last.pt"
    with at_work(notebooks, checkpoint) as (process, kernel):
        begun = time.monotonic()
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
        assert process.returncode == code
        assert time.monotonic() - begun < 10
    assert "stopped; the same command goes on from here" in said
    assert "Traceback" not in said
    assert "while stopping" not in said
    wait_until(lambda: gone(kernel))
    assert torch.load(checkpoint, weights_only=True)["step"] > 0
    assert (checkpoint.parents[2] / "notebooks" / "03_long.ipynb").exists()
    with held(checkpoint.parent / ".lock", "the run is free again"):
        pass


def test_a_kernel_does_not_outlive_its_study(notebooks):
    """SIGKILL, which nobody can pass on: the kernel sees that its parent is gone."""
    begun = notebooks / "begun"
    cell = f"import pathlib, time; pathlib.Path({str(begun)!r}).touch(); time.sleep(600)"
    write(notebooks / "03_long.ipynb", cell)
    with at_work(notebooks, begun) as (process, kernel):
        process.kill()
        process.wait()
        wait_until(lambda: gone(kernel))


def test_a_notebook_runs_once_at_a_time(notebooks, capsys):
    kept = notebooks / "runs" / "smoke-shapes" / "notebooks"
    with held(kept / ".01_works.lock", "01_works is being run"):
        assert __main__.main(["01", "--preset", "smoke"]) == 1
    assert f"01_works is being run by process {os.getpid()}" in capsys.readouterr().err
    assert not (kept / "01_works.ipynb").exists()
    assert __main__.main(["01", "--preset", "smoke"]) == 0


@pytest.fixture
def chained(notebooks):
    """The first notebook leaves a file that the third needs; how a part of the study is started."""
    here = "import os, pathlib, time; first = pathlib.Path(os.environ['STUDY_RUNS']) / 'first'"
    write(notebooks / "01_works.ipynb", f"{here}\ntime.sleep(1)\nfirst.touch()\nprint(word)")
    write(notebooks / "03_reads_01.ipynb", f"{here}\nassert first.exists()\nprint('there')")
    book = nbformat.read(notebooks / "03_reads_01.ipynb", 4)
    book.metadata["after"] = "01_works"
    nbformat.write(book, notebooks / "03_reads_01.ipynb")
    (notebooks / "start.py").write_text(script(notebooks))
    return [sys.executable, str(notebooks / "start.py")]


def printed(notebooks, name):
    book = nbformat.read(notebooks / "runs" / "smoke-shapes" / "notebooks" / f"{name}.ipynb", 4)
    return [output.text for cell in book.cells for output in cell.get("outputs", []) if "text" in output]


def test_all_at_once(notebooks, chained, capsys, monkeypatch):
    """As one after the other; each in a process of its own, after those that it reads."""
    for name, value in {"STUDY_ON": "", "STUDY_PER_GPU": "1", "PYTHONPATH": str(ROOT)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(__main__, "SELF", chained)
    monkeypatch.setattr(__main__.many_runs, "chosen", Threads)
    book = nbformat.read(notebooks / "03_reads_01.ipynb", 4)
    book.cells.append(nbformat.v4.new_code_cell("broken = 1 / 0"))
    nbformat.write(book, notebooks / "03_reads_01.ipynb")
    arguments = ["01", "03", "--preset", "smoke", "--on", "local:2", "-p", "word='at once'"]
    assert __main__.main(arguments) == 1
    said = capsys.readouterr()
    assert "failed: 03_reads_01" in said.out
    assert "ZeroDivisionError" in said.err
    assert printed(notebooks, "01_works") == ["at once\n"]
    assert printed(notebooks, "03_reads_01") == ["there\n"]


@pytest.mark.long
def test_all_at_once_on_ray(notebooks, chained):
    book = nbformat.read(notebooks / "03_reads_01.ipynb", 4)
    book.cells[0].source += "\nonly_04 = 0"
    nbformat.write(book, notebooks / "04_reads_01.ipynb")
    command = f"from study import __main__; __main__.SELF = {chained}\n" + script(notebooks)
    done = subprocess.run(
        [sys.executable, "-c", command, "--preset", "smoke", "--on", "local:2", "-p", "only_04=1"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "failed: 02_fails" in done.stdout
    assert "ZeroDivisionError" in done.stderr
    for name in ("03_reads_01", "04_reads_01"):
        assert printed(notebooks, name) == ["there\n"]


@pytest.mark.parametrize("on", ["slurm", "local:0"])
def test_an_unknown_scheduler_is_answered_at_once(notebooks, on, monkeypatch):
    monkeypatch.setenv("STUDY_ON", "")  # which it sets, for what it starts
    with pytest.raises(SystemExit, match=f"--on {on}: .*local:3"):
        __main__.main(["--preset", "smoke", "--on", on])


def test_the_study_is_copied_where_it_is_asked_for(notebooks, capsys, tmp_path):
    target = tmp_path / "bucket" / "study"
    assert __main__.main(["01", "--preset", "smoke", "--copy-to", f"file://{target}"]) == 0
    assert (target / "notebooks" / "01_works.ipynb").exists()
    assert not list(target.rglob(".*"))
    assert f"copied to file://{target}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--copy-to nowhere://x: Protocol not known"):
        __main__.main(["01", "--preset", "smoke", "--copy-to", "nowhere://x"])
    (tmp_path / "file").touch()
    assert __main__.main(["01", "--preset", "smoke", "--copy-to", f"file://{tmp_path / 'file' / 'study'}"]) == 1
    assert "The study is whole in" in capsys.readouterr().err


def test_commands_are_noted_once_each(notebooks):
    for _ in range(2):
        __main__.main(["01", "--preset", "smoke"])
    __main__.main(["01", "--preset", "smoke", "-p", "word=é"])
    lines = (notebooks / "runs" / "smoke-shapes" / "command.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    assert lines[1].endswith("word=é'")


def test_a_damaged_file_is_named_and_the_study_does_not_end_well(notebooks, capsys):
    scores = notebooks / "runs" / "smoke-shapes" / "01_works" / "run" / "scores.json"
    scores.parent.mkdir(parents=True)
    scores.write_text('{"split": "x", ')
    assert __main__.main(["01", "--preset", "smoke"]) == 1
    out = capsys.readouterr()
    assert "scores.json is damaged" in out.err
    assert "Delete it and run test() again" in out.err
    assert "failed: the report" in out.out
