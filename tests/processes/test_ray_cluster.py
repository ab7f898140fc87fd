"""Processes of this machine, and a cluster that loses one of two nodes: the same results, nothing done twice."""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import on_ray
import psutil
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_data_parallel import wait_for

import utils
from models.fingerprint import fingerprint
from processes.run_queue import Task, run_all
from storage.atomic_files import read_json
from study import many_runs
from training.weights import weights_in

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # as a local pool has it, before Ray is imported
from processes import ray_cluster
from processes.ray_cluster import Died

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.long  # make test starts Ray once, for a whole study: tests/study/test_main.py


@pytest.fixture(scope="module")
def pool():
    return many_runs.chosen("local:2")


def add(a, b):
    return a + b, os.getpid(), os.environ["OMP_NUM_THREADS"]


def slow(file):
    """Saves when it is stopped."""
    Path(file).write_text("began")
    try:
        for _ in range(600):  # as between the steps of a training
            time.sleep(0.1)
    finally:
        Path(file).write_text("saved")


def dies_once(file):
    with open(file, "a") as tries:
        tries.write("x")
    if Path(file).read_text() == "x":
        os.kill(os.getpid(), signal.SIGKILL)
    return Path(file).read_text()


def dies():
    os.kill(os.getpid(), signal.SIGKILL)


def by_value(function):
    """As what is defined in a notebook is sent."""
    function.__module__ = "__main__"
    return function


for function in (add, slow, dies_once, dies):
    by_value(function)


def test_results_in_other_processes_that_are_used_again(pool, tmp_path):
    lent = pool.lend(40)
    tasks = {n: Task(add, (lent, n), tmp_path / f"{n}.json") for n in range(6)}
    found = run_all(tasks, pool)
    assert {name: value for name, (value, _, _) in found.items()} == {n: 40 + n for n in range(6)}
    processes = {process for _, process, _ in found.values()}
    assert len(processes) <= 3
    assert os.getpid() not in processes
    assert {threads for _, _, threads in found.values()} == {str(max(1, len(os.sched_getaffinity(0)) // 2))}
    assert f"process {found[3][1]}" in read_json(tmp_path / "3.json")["where"]


def test_what_cannot_be_sent_is_a_failure_like_another(pool):
    states = []
    with pytest.raises(TypeError, match="lock"):
        run_all({"bad": Task(add, (threading.Lock(), 2)), "good": Task(add, (1, 2))}, pool, states.append)
    assert states[-1] == {"bad": "failed", "good": "done"}


def test_what_a_task_prints_and_warns(pool, capfd):
    def talks():
        logging.getLogger("study").info("nothing new")
        logging.getLogger("study").warning("COLLAPSED")
        sys.stdout.buffer.write(b"\xff\x1e{half\n")

    run_all({"a": Task(by_value(talks))}, pool)
    said, deadline = "", time.monotonic() + 10
    while "COLLAPSED" not in said:
        assert time.monotonic() < deadline
        time.sleep(0.1)
        said += "".join(capfd.readouterr())
    assert "nothing new" not in said


def test_the_stop_button_lets_all_save(pool, tmp_path, stop_button):
    files = [tmp_path / "a", tmp_path / "b"]

    def button():
        while not all(file.exists() for file in files):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=button).start()
    with pytest.raises(KeyboardInterrupt):
        run_all({file.name: Task(slow, (str(file),)) for file in files}, pool)
    assert [file.read_text() for file in files] == ["saved", "saved"]


def test_one_that_dies_is_tried_again_but_not_for_ever(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_cluster, "TRIES", 2)
    assert run_all({"a": Task(dies_once, (str(tmp_path / "tries"),))}, pool) == {"a": "xx"}
    with pytest.raises(Died, match="lost"):
        run_all({"a": Task(dies)}, pool)


def test_a_process_whose_task_failed_is_not_used_again(pool, tmp_path, monkeypatch):
    """It might fail all that come after."""

    def poisoned():
        (tmp_path / str(os.getpid())).touch()
        if os.environ.get("POISON"):
            raise RuntimeError("an illegal memory access was encountered")
        os.environ["POISON"] = "yes"
        raise ValueError("the first")

    with pytest.raises(ValueError, match="the first"):
        run_all({number: Task(by_value(poisoned)) for number in range(3)}, pool)  # more than processes
    wait_for(lambda: not any(psutil.pid_exists(int(used.name)) for used in tmp_path.iterdir()))
    monkeypatch.setattr(ray_cluster, "TRIES", 1)
    assert run_all({"next": Task(add, (1, 2))}, pool)["next"][0] == 3


def test_processes_end_with_the_one_that_started_them(tmp_path):
    script = f"""import sys; sys.path[:0] = {[str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]}
from test_ray_cluster import *
run_all({{"a": Task(slow, ({str(tmp_path / "file")!r},))}}, many_runs.chosen("local:1"))"""
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 60
    while not (tmp_path / "file").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while (tmp_path / "file").read_text() != "saved":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_place_for_each_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert ray_cluster._alone(0)["num_cpus"] == 2
    monkeypatch.setenv("STUDY_PER_GPU", "2")
    assert ray_cluster._alone(0) | {"num_cpus": 4, "num_gpus": 2} == ray_cluster._alone(0)
    assert ray_cluster._alone(3)["num_cpus"] == 3
    monkeypatch.setenv("STUDY_PER_GPU", "many")
    with pytest.raises(ValueError, match="STUDY_PER_GPU='many': a whole number"):
        ray_cluster.per_gpu()


# --- a cluster ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lost(session, shapes):
    """The folder of the runs on Ray, and what was lost on the way."""
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # a short name: it becomes that of sockets
        environment = os.environ | {"PYTHONPATH": str(ROOT), "STUDY_DATA": str(session.data)}
        command = [sys.executable, on_ray.__file__, folder]
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
    runs = many_runs.train_all(on_ray.asked_for(data), here, progress=False)
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
