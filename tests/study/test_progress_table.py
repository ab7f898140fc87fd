"""The table of a study at work, from files that other processes write."""

import pandas as pd

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
