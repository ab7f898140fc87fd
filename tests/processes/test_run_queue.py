"""Many pieces of work at once: each when what it needs is done, all once, whatever fails in between."""

import signal
import subprocess
import sys
import time

import pytest
from small import Threads

from processes import run_queue
from processes.run_queue import Task, run_all
from storage.atomic_files import Held


def add(a, b):
    return a + b


def broken():
    raise ValueError("as asked")


def test_results_by_name_and_where_each_is(tmp_path):
    note, states = tmp_path / "note.json", []
    note.write_text("of the training; now it is tested")
    tasks = {n: Task(add, (40, n), note if n == 3 else None) for n in range(5)}
    assert run_all(tasks, Threads(), states.append) == {n: 40 + n for n in range(5)}
    assert set(states[-1].values()) == {"done"}
    assert run_all({}, Threads()) == {}


def test_one_after_another_where_it_needs_it():
    made, states = [], []

    def arguments():
        made.append("arguments")
        return 1, 2

    def first():
        time.sleep(0.1)
        made.append("first")

    tasks = {"second": Task(add, arguments, after="first"), "first": Task(first)}
    assert run_all(tasks, Threads(), states.append)["second"] == 3
    assert made == ["first", "arguments"]
    assert {"second": "waits", "first": "runs"} in states
    assert {"second": "runs", "first": "runs"} not in states


def test_a_failure_is_raised_when_all_others_are_done():
    tasks = {"bad": Task(broken), "needs it": Task(add, (1, 2), after="bad"), "good": Task(add, (1, 2))}
    states = []
    with pytest.raises(ValueError, match="as asked"):
        run_all(tasks, Threads(), states.append)
    assert states[-1] == {"bad": "failed", "needs it": "failed", "good": "done"}


def test_arguments_that_cannot_be_made_are_a_failure_like_another():
    tasks, states = {"bad": Task(add, lambda: 1 / 0), "good": Task(add, (1, 2))}, []
    with pytest.raises(ZeroDivisionError):
        run_all(tasks, Threads(), states.append)
    assert states[-1] == {"bad": "failed", "good": "done"}


def test_what_is_in_anothers_hands_is_put_off(monkeypatch):
    monkeypatch.setattr(run_queue, "AGAIN_AFTER", 0.2)
    tried = []

    def held_once():
        tried.append(time.monotonic())
        if len(tried) == 1:
            raise Held("in another's hands")
        return "done"

    assert run_all({"a": Task(held_once)}, Threads()) == {"a": "done"}
    assert tried[1] - tried[0] >= 0.2


def test_the_stop_button_stops_what_is_at_work():
    pool = Threads()

    def button(states):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all({"slow": Task(time.sleep, (0.3,)), "waits": Task(add, (1, 2), after="slow")}, pool, button)
    assert len(pool.stopped) == 1


def test_a_command_prints_into_a_file_and_ends_with_its_starter(tmp_path):
    words = "import sys; print('said'); print('wrong', file=sys.stderr); sys.exit(3)"
    assert run_queue.run_command([sys.executable, "-c", words], tmp_path / "said") == 3
    assert sorted((tmp_path / "said").read_text().split()) == ["said", "wrong"]
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    )
    sleep = time.sleep

    def interrupted(seconds):
        while not (tmp_path / "said").read_text():
            sleep(0.01)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_queue, "GRACE", 0.1)
        patch.setattr(run_queue.time, "sleep", interrupted)
        real, processes = subprocess.Popen, []
        patch.setattr(
            run_queue.subprocess, "Popen", lambda *a, **k: processes.append(real(*a, **k)) or processes[-1]
        )
        with pytest.raises(KeyboardInterrupt):
            run_queue.run_command([sys.executable, "-c", deaf], tmp_path / "said")
    assert processes[0].poll() == -signal.SIGKILL
