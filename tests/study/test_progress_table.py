"""The table of a study at work, from files that other processes write."""

import sys
import time

import pandas as pd
import pytest

from storage.atomic_files import write_json
from study import progress_table


def test_what_runs_where_and_how_far_it_is(tmp_path, capsys, monkeypatch):
    run = tmp_path / "01_small" / "pgd-seed0"
    run.mkdir(parents=True)
    write_json(run / "recipe.json", {"recipe": {"epochs": 5}})
    pd.DataFrame({"epoch": [1, 2], "time/epoch_s": [20.0, 40.0]}).to_csv(run / "history.csv", index=False)
    (run / "last.pt").touch()
    states = {"pgd-seed0": "runs", "standard-seed0": "done", "ni-seed0": "waits"}
    write_json(
        tmp_path / ".jobs" / "01_small.json", {"what": "train", "states": states | {"standard-seed0": "runs"}}
    )
    write_json(tmp_path / ".jobs" / "01_small" / "pgd-seed0.json", {"where": "node a1b2, GPU 3"})
    now = [1000.0]
    monkeypatch.setattr(progress_table.time, "time", lambda: now[0])
    table = progress_table.Table(tmp_path, "a cluster")
    notebooks = {"01_small": "runs", "02_later": "waits"}
    table.show(notebooks)
    assert "0 of 3 runs and tests done" in capsys.readouterr().out
    now[0] += 60
    write_json(tmp_path / ".jobs" / "01_small.json", {"what": "train", "states": states})
    table.show(notebooks)
    out = capsys.readouterr().out
    assert "1:00 min; 1 of 3 runs and tests done; on a cluster" in out
    assert "2 of 5 epochs, about 1:30 min left in this run" in out
    assert "node a1b2, GPU 3" in out
    assert "02_later" in out
    now[0] += 60
    write_json(tmp_path / ".jobs" / "01_small.json", {"what": "test", "states": {"pgd-seed0": "waits"}})
    table.show(notebooks)
    out = capsys.readouterr().out
    assert "3 of 4 runs and tests done" in out  # what was asked for before still counts
    assert "3 done, 1 waits, in its own cells" in out
    table.show(notebooks)
    assert capsys.readouterr().out == ""  # not that soon
    table.show(dict.fromkeys(notebooks, "done"))
    assert capsys.readouterr().out


def test_a_folder_that_tells_nothing(tmp_path):
    assert progress_table.progress(tmp_path) is None
    (tmp_path / "last.pt").touch()
    (tmp_path / "history.csv").write_text("epoch,time/epoch_s\n1,2.0\n")
    (tmp_path / "recipe.json").write_text("{half")
    assert progress_table.progress(tmp_path) is None


@pytest.fixture
def long_run(tmp_path, monkeypatch):
    """A study that trains the second of its three notebooks' runs; it is looked at all the time."""
    run = tmp_path / "02_middle" / "pgd-seed0"
    run.mkdir(parents=True)
    write_json(run / "recipe.json", {"recipe": {"epochs": 5}})
    pd.DataFrame({"epoch": [1, 2], "time/epoch_s": [20.0, 40.0]}).to_csv(run / "history.csv", index=False)
    monkeypatch.setitem(progress_table.REFRESH, True, 0.01)
    return tmp_path


NAMES = ["01_first", "02_middle", "03_last"]


def test_a_log_has_a_line_when_something_begins_or_ends(long_run, capsys):
    line = progress_table.Line(long_run, NAMES, {})
    with line.of("02_middle"):
        time.sleep(0.3)
    assert capsys.readouterr().out.splitlines() == [
        "[2/3] 02_middle",
        "    pgd-seed0: 2 of 5 epochs, about 1:30 min left in this run",
        "[2/3] 02_middle ended after 0:00 min",
    ]


def test_a_terminal_has_one_line_that_is_gone_at_the_end(long_run, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    line = progress_table.Line(long_run, NAMES, dict.fromkeys(NAMES, 1.0))
    with line.of("02_middle"):
        time.sleep(0.1)
    line.took["01_first"] = 60.0
    with line.of("02_middle"):
        time.sleep(0.1)
    out = capsys.readouterr().out
    assert "\n" not in out
    shown = out.split("\r\x1b[K")
    assert "[2/3] 02_middle · 0:00 min so far · epoch 3 of 5 of pgd-see" in shown
    assert any("· about 1:00 min left in all · epoch" in text for text in shown)
    assert shown[-1] == ""
    assert max(map(len, shown)) == 59


def test_what_is_left_goes_by_the_pace_of_notebooks_that_trained_here(tmp_path):
    line = progress_table.Line(tmp_path, NAMES, {"01_first": 120.0, "02_middle": 180.0, "03_last": 60.0})
    assert line.left("01_first", 60) is None
    line.took["01_first"] = 240.0  # two minutes, expected: this machine takes twice as long
    assert line.left("02_middle", 60) == pytest.approx(2 * 180 - 60 + 2 * 60)
    assert line.left("02_middle", 3600) == pytest.approx(2 * 60)
    line.expected.pop("03_last")
    assert line.left("02_middle", 60) is None
    (tmp_path / "03_last" / "run").mkdir(parents=True)
    (tmp_path / "03_last" / "run" / "weights.safetensors").touch()
    with line.of("03_last"):
        pass
    assert "03_last" not in line.took  # it loaded, which says nothing of the others
