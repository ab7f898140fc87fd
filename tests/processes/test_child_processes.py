"""train(processes=...) as a notebook calls it: the same run, its errors, its stop button, its end."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
import torch
from on_several import Double, blobs
from small import command_of, small_network
from test_data_parallel import distance, wait_for
from torch import nn

from defences import Free
from processes import child_processes
from trainer import Recipe, train
from training.run_folder import RunFolder, RunRefused

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class FromACell(Free):
    """A defence that no other process can import."""


def network():
    made = Double(*small_network()).double()
    made[3] = nn.Identity()
    return made


RECIPE = Recipe(epochs=2, batch_size=64, precision="float32", validation_images=16)


@pytest.mark.long
def test_killed_and_stopped_on_two_processes_it_goes_on_on_one(tmp_path, monkeypatch, capsys, stop_button):
    """Also what the defence keeps for each picture of a batch, of which each process has a part."""
    monkeypatch.setattr(FromACell, "__module__", "__main__")
    recipe = replace(RECIPE, epochs=39, batch_size=63, defence=FromACell(replays=3))
    saved, history = tmp_path / "two" / "last.pt", tmp_path / "two" / "history.csv"

    def kill_one_and_press_the_button():
        wait_for(saved.exists)
        torchrun = next(one for one in psutil.Process().children() if "distributed.run" in command_of(one))
        first = min(torchrun.children(), key=lambda child: child.pid)  # the one that writes
        first.kill()
        first.wait()
        begun = history.stat().st_mtime_ns
        wait_for(lambda: history.stat().st_mtime_ns > begun)  # both have been started again
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=kill_one_and_press_the_button).start()
    with pytest.raises(KeyboardInterrupt, match="two: stopped; the same again goes on from there"):
        train(network(), blobs(), recipe, tmp_path / "two", processes=2)
    assert not [one for one in psutil.Process().children(recursive=True) if "child_processes" in command_of(one)]
    assert "/195" in capsys.readouterr().out  # the bar
    assert RunFolder(tmp_path / "two").load_checkpoint("cpu")["memory"]["perturbation"].shape[0] == 63
    resumed, alone = (
        train(network(), blobs(), recipe, tmp_path / name, progress=False).model.state_dict()
        for name in ("two", "one")
    )
    assert distance(resumed, alone) < 1e-9


@pytest.mark.long
def test_the_same_run_on_two_processes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(FromACell, "__module__", "__main__")
    recipe = replace(RECIPE, defence=FromACell(replays=2))
    run = train(network(), blobs(), recipe, tmp_path / "two", processes=2)
    assert "10/10" in capsys.readouterr().out  # the bar
    alone = train(network(), blobs(), recipe, tmp_path / "one", progress=False)
    assert distance(alone.model.state_dict(), run.model.state_dict()) < 1e-12


def test_what_is_returned_or_raised_there_is_returned_or_raised_here(monkeypatch):
    def without_torchrun(folder, processes, errors):
        command = [sys.executable, "-m", "processes.child_processes", str(folder)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        return subprocess.Popen(command, env=environment, **pipes)

    def wrong(progress):
        raise RunRefused("as asked")

    def right(progress):
        return 42

    monkeypatch.setattr(child_processes, "_torchrun", without_torchrun)
    with pytest.raises(RunRefused, match="as asked") as caught:
        child_processes.run(wrong, 2)
    assert "In the process that did the work" in caught.value.__notes__[0]
    assert child_processes.run(right, 2) == 42


def test_another_run_is_refused(tmp_path):
    train(network(), blobs(), RECIPE, tmp_path / "run", progress=False)
    with pytest.raises(RunRefused, match=r"learning_rate: 0\.1 in the folder, 0\.2 asked"):
        train(network(), blobs(), replace(RECIPE, learning_rate=0.2), tmp_path / "run", processes=2)


@pytest.mark.long
def test_what_they_raise_is_raised_here_at_once(tmp_path):
    (tmp_path / "run").write_text("no folder")
    with pytest.raises(OSError, match="run"):
        train(network(), blobs(), RECIPE, tmp_path / "run", processes=2, progress=False)


@pytest.mark.long
def test_a_notebook_that_dies_takes_them_along_and_they_save(tmp_path):
    script = f"""import sys; sys.path[:0] = {[str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]}
from dataclasses import replace
from pathlib import Path
from test_child_processes import *
train(network(), blobs(), replace(RECIPE, epochs=100_000), Path({str(tmp_path)!r}) / "run", processes=2)"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for((tmp_path / "run" / "last.pt").exists)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) == 3  # torchrun and two processes
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert (tmp_path / "run" / "last.pt").exists()


@pytest.mark.parametrize("processes", [0, -1, True, 1.5, "every", None])
def test_only_what_can_be_had(processes, monkeypatch):
    with pytest.raises(ValueError, match="processes="):
        child_processes.count(processes, torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert child_processes.count("all", torch.device("cuda")) == 4
    assert child_processes.count("all", torch.device("cpu")) == 1
    with pytest.raises(ValueError, match=r"processes=5: .* from 1 up to 4, the GPUs of this machine"):
        child_processes.count(5, torch.device("cuda"))
