"""On a Ray cluster of two nodes, one of which is lost in the middle: the same results, nothing trained twice."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import on_ray
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import grid
import utils
from runs import fingerprint, weights_in

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def lost(session, shapes):
    """The folder of the runs on Ray, and what was lost on the way."""
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # a short name: it becomes that of sockets
        environment = os.environ | {"PYTHONPATH": str(ROOT), "STUDY_DATA": str(session.data)}
        command = [sys.executable, str(ROOT / "tests" / "on_ray.py"), folder]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        yield Path(folder) / "runs" / "smoke-shapes" / "ray", json.loads((Path(folder) / "lost.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory, session):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDY_RUNS", str(tmp_path_factory.mktemp("alone")))
        here = utils.start("ray", preset="smoke")
    data = utils.load_data("shapes10", here)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as a task has with one CPU
    runs = grid.train_all(on_ray.asked_for(data), here, progress=False)
    torch.set_num_threads(before)
    return here, runs


def test_every_result_is_the_one_of_the_sequential_study(lost, alone):
    folder, _ = lost
    session, runs = alone
    for key, run in runs.items():
        assert weights_in(folder / session.folder(*key).name) == fingerprint(run.model), key


def test_the_lost_run_went_on_and_nothing_was_trained_twice(lost):
    folder, what = lost
    starts = {run.name: sorted(run.glob("events*")) for run in folder.iterdir()}
    assert len(starts) == 6
    assert {name: len(files) for name, files in starts.items()} == {n: 1 + (n == what["run"]) for n in starts}
    first_epochs = []
    for file in starts[what["run"]]:
        events = EventAccumulator(str(file)).Reload()
        first_epochs.append(events.Scalars("loss/train")[0].step)
    assert first_epochs[0] == 1
    assert first_epochs[1] >= what["epoch"]
