"""Memory does not grow over a long run: a study of days ends where it was after an hour."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LONG = """
import os, sys
sys.path[:0] = {path!r}
import psutil, torch
from processes.machine import prepare
from small import Blobs, small_network
from attacks import FGSM, PGD
from defences import Adversarial
from trainer import Recipe, test, train
from utils import Data

torch.set_num_threads(1)
prepare(torch.device("cpu"))
make = Blobs().split
parts = make(256, 0, "train"), make(32, 1, "validation"), make(32, 2, "test")
blobs = Data("blobs", *parts, list("abcd"), {{"name": "blobs"}})
recipe = Recipe(epochs=250, batch_size=32, validation_images=8, defence=Adversarial(PGD(steps=1)), ema=0.9)
marks, process = [], psutil.Process()

def mark(state, *rest):
    if state.step % 200 == 0 and state.step < state.total:  # not those of the forecast
        marks.append(process.memory_info().rss)
    return real(state, *rest)

from training import step
real, step.train_step = step.train_step, mark
run = train(small_network(), blobs, recipe, {folder!r}, progress=False)
print("marks", *marks)
marks.clear()
for number in range(200):
    if number % 20 == 0:
        marks.append(process.memory_info().rss)
    test(run.model, blobs.test, [FGSM(), PGD(steps=2)], progress=False, folder={folder!r}).save({folder!r})
print("marks", *marks)
"""


@pytest.mark.long
def test_two_thousand_steps_and_two_hundred_tests_take_no_more_memory_than_the_first(tmp_path):
    """In a process of its own; within 2 % of what it has after a fifth of the way."""
    script = LONG.format(path=[str(ROOT / "tests"), str(ROOT)], folder=str(tmp_path / "run"))
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = [line.split() for line in ended.stdout.splitlines() if line.startswith("marks ")]
    for name, (_, *words) in zip(("steps", "tests"), lines, strict=True):
        marks = [int(word) for word in words]
        assert len(marks) == 10, name
        assert marks[-1] <= 1.02 * marks[2], f"{name}: {[round(mark / 2**20, 1) for mark in marks]} MiB"
