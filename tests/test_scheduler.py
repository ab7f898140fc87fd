"""Many pieces of work at once on this machine: all are done once, whatever fails or dies in between."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from conftest import command_of

import scheduler
from files import Held, read_json
from launch import Died
from scheduler import Local, Task, run_all

ROOT = Path(__file__).parents[1]


@pytest.fixture
def local(tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler.tempfile, "gettempdir", lambda: str(tmp_path))
    return Local(2)


def test_where_an_earlier_one_worked_is_forgotten(local, tmp_path):
    """Its note is that of the task itself, also while that waits in a cluster's queue."""
    note = tmp_path / "note.json"
    note.write_text("of the training; now it is tested")

    class Queue(Local):
        def submit(self, name, task, idle=None):
            assert not note.exists()
            return super().submit(name, task, idle)

    assert run_all({"a": Task(add, (1, 2), note)}, Queue(1))["a"][0] == 3
    assert "process" in note.read_text()


def add(a, b, *, progress):
    return a + b, os.getpid(), os.environ["OMP_NUM_THREADS"]


def broken(*, progress):
    raise ValueError("as asked")


def slow(file, *, progress):
    """Saves when it is stopped."""
    Path(file).write_text("began")
    try:
        time.sleep(60)
    finally:
        Path(file).write_text("saved")


def dies_once(file, *, progress):
    with open(file, "a") as tries:
        tries.write("x")
    if Path(file).read_text() == "x":
        os.kill(os.getpid(), signal.SIGKILL)
    return Path(file).read_text()


def dies(*, progress):
    os.kill(os.getpid(), signal.SIGKILL)


def held_once(file, *, progress):
    if not Path(file).exists():
        Path(file).write_text("now it is free")
        raise Held("in another's hands")
    return "done"


def by_value(function):
    """As what is defined in a notebook is sent."""
    function.__module__ = "__main__"
    return function


for function in (add, broken, slow, dies_once, dies, held_once):
    by_value(function)


def test_results_by_name_in_few_processes(local, tmp_path):
    lent = local.lend(40)
    tasks = {n: Task(add, (lent, n), tmp_path / f"{n}.json") for n in range(5)}
    states = []
    found = run_all(tasks, local, states.append)
    assert {name: value for name, (value, _, _) in found.items()} == {n: 40 + n for n in range(5)}
    processes = {process for _, process, _ in found.values()}
    assert len(processes) == 2  # they are used again
    assert os.getpid() not in processes
    assert {threads for _, _, threads in found.values()} == {str(max(1, len(os.sched_getaffinity(0)) // 2))}
    assert set(states[-1].values()) == {"done"}
    assert all(list(state.values()).count("runs") <= 2 for state in states)
    assert f"process {found[3][1]}" in read_json(tmp_path / "3.json")["where"]


def test_one_after_another_where_it_needs_it(local):
    seen = {}

    def arguments():
        seen["when"] = list(seen)
        return 1, 2

    def first(*, progress):
        time.sleep(0.5)
        return "first"

    tasks = {"second": Task(add, arguments, after="first"), "first": Task(by_value(first))}
    states = []
    assert run_all(tasks, local, states.append)["second"][0] == 3
    assert not any(state == {"second": "runs", "first": "runs"} for state in states)


def test_a_failure_is_raised_when_all_others_are_done(local, caplog):
    tasks = {"bad": Task(broken), "needs it": Task(add, (1, 2), after="bad"), "good": Task(add, (1, 2))}
    states = []
    with pytest.raises(ValueError, match="as asked"):
        run_all(tasks, local, states.append)
    assert states[-1] == {"bad": "failed", "needs it": "failed", "good": "done"}


def test_what_cannot_be_made_or_sent_is_a_failure_like_another(local):
    lock = threading.Lock()
    tasks = {"bad": Task(add, lambda: 1 / 0), "unsendable": Task(add, (lock, 2)), "good": Task(add, (1, 2))}
    states = []
    with pytest.raises(ZeroDivisionError):
        run_all(tasks, local, states.append)
    assert states[-1] == {"bad": "failed", "unsendable": "failed", "good": "done"}
    assert not [child for child in psutil.Process().children() if "launch.py" in command_of(child)]


def test_a_process_whose_task_failed_is_not_used_again(local):
    """It might fail all that come after."""

    def poisoned(*, progress):
        if os.environ.get("POISON"):
            raise RuntimeError("an illegal memory access was encountered")
        os.environ["POISON"] = "yes"
        raise ValueError("the first")

    tasks = {number: Task(by_value(poisoned)) for number in range(4)}
    with pytest.raises(ValueError, match="the first"):
        run_all(tasks, Local(1), None)


def test_what_a_task_prints_and_warns(local, caplog, monkeypatch):
    monkeypatch.setattr(scheduler.log, "propagate", True)

    def talks(*, progress):
        import logging

        logging.getLogger("study").info("nothing new")
        logging.getLogger("study").warning("COLLAPSED")
        sys.stdout.buffer.write(b"\xff\x1e{half\n")
        sys.stdout.write("without an end of line")
        return "done"

    assert run_all({"a": Task(by_value(talks))}, local) == {"a": "done"}
    assert "COLLAPSED" in caplog.text
    assert "nothing new" not in caplog.text


def test_one_that_dies_is_tried_again_but_not_for_ever(local, tmp_path):
    assert run_all({"a": Task(dies_once, (str(tmp_path / "tries"),))}, local) == {"a": "xx"}
    with pytest.raises(Died, match="ended with code -9 and without a result"):
        run_all({"a": Task(dies)}, local)


def test_what_is_in_anothers_hands_is_put_off(local, tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "AGAIN_AFTER", 0.2)
    assert run_all({"a": Task(held_once, (str(tmp_path / "free"),))}, local) == {"a": "done"}


def test_the_stop_button_lets_all_save(local, tmp_path, stop_button):
    files = [tmp_path / "a", tmp_path / "b"]

    def button():
        while not all(file.exists() for file in files):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=button).start()
    with pytest.raises(KeyboardInterrupt):
        run_all({file.name: Task(slow, (str(file),)) for file in files}, local)
    assert [file.read_text() for file in files] == ["saved", "saved"]
    assert not [child for child in psutil.Process().children() if "launch.py" in command_of(child)]


def test_other_studies_take_from_the_same_places(local):
    """A process that holds a place holds it until it is dead."""
    first = local.submit("a", Task(by_value(lambda *, progress: time.sleep(60))))
    second = Local(2).submit("b", Task(by_value(lambda *, progress: time.sleep(60))))
    assert local.submit("c", Task(add, (1, 2))) is None
    first.close()
    third = local.submit("c", Task(add, (1, 2)))
    assert third.result()[0] == 3
    second.close()
    third.close()


def test_processes_end_with_the_one_that_started_them(tmp_path):
    script = f"""import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from test_scheduler import *
run_all({{"a": Task(slow, ({str(tmp_path / "file")!r},))}}, Local())"""
    process = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"TMPDIR": str(tmp_path)})
    while not (tmp_path / "file").exists():
        time.sleep(0.05)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while (tmp_path / "file").read_text() != "saved":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_gpu_for_each(tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setenv("STUDY_PER_GPU", "2")
    machine = Local()
    assert machine.count == 4
    assert [machine._slot(number) for number in range(4)] == ["4-0", "6-0", "4-1", "6-1"]
    assert [machine._variables(number)["CUDA_VISIBLE_DEVICES"] for number in range(4)] == ["4", "6", "4", "6"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6")  # as a notebook sees it
    monkeypatch.setenv("STUDY_GPUS", machine._variables(0)["STUDY_GPUS"])
    assert Local().count == 4
    monkeypatch.delenv("STUDY_GPUS")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # none
    assert Local().gpus == []
    monkeypatch.setenv("STUDY_PER_GPU", "many")
    with pytest.raises(ValueError, match="STUDY_PER_GPU='many': a whole number"):
        Local()
