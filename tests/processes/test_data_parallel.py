"""On several processes: the same weights, the same outcomes, whatever dies. torchrun is the real one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import on_several
import psutil
import pytest
import torch

from processes import data_parallel
from training.run_folder import RunFolder

SCRIPT = Path(on_several.__file__)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]


def start(folder, processes, *what, restarts=0):
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *TORCHRUN,
        f"--nproc-per-node={processes}",
        f"--max-restarts={restarts}",
        str(SCRIPT),
        str(folder),
        *what,
    ]
    environment = os.environ | {
        "PYTHONPATH": f"{SCRIPT.parents[2]}:{SCRIPT.parents[1]}",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    errors = (folder / "errors").open("w")
    return subprocess.Popen(command, env=environment | {"OMP_NUM_THREADS": "1"}, stdout=errors, stderr=errors)


def distance(weights, others):
    assert weights.keys() == others.keys()
    return max(float((weights[name].double() - others[name].double()).abs().max()) for name in weights)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same in one process and in two: folders, and what was found."""
    folders = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("two")
    process = start(folders[1], 2, "defences", "steps")
    alone = {what: on_several.WHAT[what](folders[0]) for what in ("defences", "steps")}
    assert process.wait(300) == 0, (folders[1] / "errors").read_text()
    return folders, alone, {what: torch.load(folders[1] / f"{what}.pt", weights_only=True) for what in alone}


@pytest.mark.long
@pytest.mark.parametrize("name", [*on_several.DEFENCES, "resnet18"])
def test_weights_and_history_are_those_of_one_process(both, name):
    (weights, history), (others, their_history) = (found["defences"][name] for found in both[1:])
    assert distance(weights, others) < 1e-12
    assert history.keys() == their_history.keys()
    for column, values in history.items():
        apart = 1e-7 if column == "accuracy/train" else 1e-9  # which is counted in float32
        assert their_history[column] == pytest.approx(values, abs=apart), column


@pytest.mark.long
def test_twenty_steps_in_float32(both):
    alone, two = (found["steps"] for found in both[1:])
    assert distance(alone["weights"], two["weights"]) < 1e-5


@pytest.mark.long
def test_bfloat16(both):
    """Statistics of BatchNorm stay in float32; what is left of the difference is rounding."""
    alone, two = (found["steps"] for found in both[1:])
    assert all(torch.isfinite(value).all() for value in two["bfloat16"].values() if value.is_floating_point())
    assert distance(alone["bfloat16"], two["bfloat16"]) < 0.05


@pytest.mark.long
def test_a_test_is_shared_out_and_its_outcomes_are_the_same_for_each_example(both):
    (here, there), alone, two = both[0], *(found["steps"] for found in both[1:])
    assert alone["outcomes"].keys() == two["outcomes"].keys()
    for label, outcome in alone["outcomes"].items():
        assert torch.equal(outcome, two["outcomes"][label]), label
    assert alone["findings"] == two["findings"]
    files = [
        sorted(path.name.split("-")[0] for path in (folder / "tested").iterdir() if "events" not in path.name)
        for folder in (here, there)
    ]
    assert files[0] == files[1]
    assert len(list((there / "tested").glob("events*"))) == 1


@pytest.fixture(scope="module")
def unstopped(tmp_path_factory):
    return on_several.long(tmp_path_factory.mktemp("long"))["weights"]


@pytest.mark.long
def test_a_killed_process_changes_nothing(tmp_path, unstopped):
    process = start(tmp_path, 2, "long", restarts=3)
    wait_for((tmp_path / "long" / "last.pt").exists)
    time.sleep(random.uniform(0, 1))
    random.choice(psutil.Process(process.pid).children()).kill()
    assert process.wait(120) == 0, (tmp_path / "errors").read_text()
    assert distance(unstopped, torch.load(tmp_path / "long.pt", weights_only=True)["weights"]) < 1e-9
    assert sorted(path.name for path in (tmp_path / "long").iterdir() if path.suffix == ".pt") == []


@pytest.mark.long
def test_stopped_on_three_processes_it_goes_on_on_one(tmp_path, unstopped):
    process = start(tmp_path, 3, "long")
    wait_for((tmp_path / "long" / "last.pt").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) != 0  # where one was too slow to save, torchrun ends the others after 30 s
    saved = RunFolder(tmp_path / "long").load_checkpoint("cpu")
    assert saved["memory"]["perturbation"].shape[0] == 33
    assert distance(unstopped, on_several.long(tmp_path)["weights"]) < 1e-9


def wait_for(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ---------------------------------------------------------------------------------------------------
# The parts of it


@pytest.fixture
def second_of_three(monkeypatch):
    monkeypatch.setattr(data_parallel, "_shard", data_parallel.Shard(3, 5, 8))
    monkeypatch.setattr(data_parallel, "world", lambda: 3)
    monkeypatch.setattr(data_parallel, "rank", lambda: 1)


@pytest.mark.parametrize("shape", [(), (1, 1, 1), (3, 4, 4)])
def test_a_part_is_given_what_the_whole_batch_would_be(second_of_three, shape):
    like = torch.zeros(8, *shape)
    if len(shape) == 3:
        like = like.contiguous(memory_format=torch.channels_last)

    def fill(tensor):
        return tensor.normal_(generator=torch.Generator().manual_seed(3))

    part = data_parallel.drawn(like[3:5], fill)
    assert torch.equal(part, fill(torch.empty_like(like))[3:5])
    assert part.stride() == like[3:5].stride()
    assert (
        data_parallel.drawn(like[:4], fill).shape == like[:4].shape
    )  # no part of a batch: an attack's own choice


def test_parts_cover_the_batch_and_weigh_by_their_pictures(monkeypatch):
    monkeypatch.setattr(data_parallel, "world", lambda: 3)
    parts = []
    for number in range(3):
        monkeypatch.setattr(data_parallel, "rank", lambda number=number: number)
        with data_parallel.sharing(8) as part:
            parts.append((part, data_parallel.weighed(1.0)))
    assert [part for part, _ in parts] == [slice(0, 3), slice(3, 6), slice(6, 8)]
    assert [weight for _, weight in parts] == pytest.approx([9 / 8, 9 / 8, 6 / 8])
    assert data_parallel._shard is None
    with pytest.raises(ValueError, match="batch_size=2 for 3 processes: each needs a picture"):
        data_parallel.part_of(2)


def test_alone_nothing_happens():
    assert data_parallel.world() == 1
    assert data_parallel.leads()
    assert data_parallel.number() == ()
    assert data_parallel.same("value") == "value"
    assert data_parallel.largest(None, 3) == (None, 3)
    assert list(data_parallel.shared_out(range(3), lambda item: item * item)) == [(0, 0), (1, 1), (2, 4)]
    with data_parallel.sharing(8) as part:
        assert part == slice(None)
        assert data_parallel.weighed(2.0) == 2.0


def test_a_gpu_for_each_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert data_parallel.own_gpu() == 1
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="process 3 of this machine has no GPU: there are 2"):
        data_parallel.own_gpu()
