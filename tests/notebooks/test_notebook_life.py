"""What people do to notebooks: cells twice, out of order, stopped in the middle, edited, the kernel restarted."""

import os
import queue
import time
from pathlib import Path

import pytest
from jupyter_client.manager import start_new_kernel

from finetune_framework import load_source
from models.fingerprint import fingerprint
from training.run_folder import RunFolder

PARAMETERS = 'preset, data, epochs, learning_rate = "smoke", "shapes", 20, 0.1'
START = """import models, utils
from attacks import PGD
from trainer import Recipe, test, train
session = utils.start("01_life", preset=preset, data=data)
shapes = utils.load_data(session.dataset("cifar10"), session)"""
RECIPE = 'recipe = Recipe(epochs=epochs, learning_rate=learning_rate, precision="float32", validation_images=16)'
TRAIN = 'run = train(models.build("shallow_cnn", 10), shapes, recipe, session.folder("standard"), progress=False)'
TEST = """scores = test(run.model, shapes.test, [PGD(steps=200)], folder=run.folder, progress=False)
print(int(scores.worst_case.sum()), "withstand")"""


class Notebook:
    """A kernel and its folders; `cell` runs one cell and returns what it printed, `error` what it raised."""

    def __init__(self, session, folder):
        environment = {"STUDY_RUNS": str(folder / "runs"), "STUDY_DATA": str(session.data)}
        environment |= {"PYTHONPATH": str(Path(__file__).parents[2])}
        self.manager, self.client = start_new_kernel(kernel_name="python3", env=os.environ | environment)
        self.run = folder / "runs" / "smoke-shapes" / "01_life" / "standard"

    def cell(self, code, meanwhile=None):
        texts = []

        def note(message):
            content = message["content"]
            if message["msg_type"] == "stream":
                texts.append(content["text"])
            elif message["msg_type"] == "error":
                texts.append(f"{content['ename']}: {content['evalue']}")

        self.client.execute(code)
        if meanwhile:
            meanwhile()
        while True:
            try:
                message = self.client.get_iopub_msg(timeout=60)
            except queue.Empty:
                pytest.fail(f"the cell does not end: {texts}")
            note(message)
            ended = message["content"].get("execution_state") == "idle"
            if ended and message["parent_header"].get("msg_type") == "execute_request":
                return "".join(texts)

    def stop_when(self, path):
        """The stop button, when that file has come to be."""

        def stop():
            deadline = time.monotonic() + 60
            while not path.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            self.manager.interrupt_kernel()

        return stop

    def restart(self):
        self.manager.restart_kernel(now=True)
        self.client.wait_for_ready(timeout=60)


@pytest.fixture
def notebook(session, shapes, tmp_path):
    made = Notebook(session, tmp_path)
    yield made
    made.client.stop_channels()
    made.manager.shutdown_kernel(now=True)


@pytest.mark.long
def test_a_life_of_a_notebook(notebook):
    folder = RunFolder(notebook.run)
    assert "NameError" in notebook.cell(TRAIN)  # out of order, before anything is there
    for code in (PARAMETERS, START, RECIPE):
        assert "Error" not in notebook.cell(code)
    said = notebook.cell(TRAIN, meanwhile=notebook.stop_when(folder.checkpoints[0]))
    assert "KeyboardInterrupt: standard: stopped in epoch" in said
    assert "saved. The same again goes on from there" in said
    assert not folder.finished
    before = folder.load_checkpoint("cpu")["step"]
    assert before > 0

    notebook.restart()  # the session of yesterday, continued today
    for code in (PARAMETERS, START, RECIPE):
        notebook.cell(code)
    assert f"standard goes on from step {before} of" in notebook.cell(TRAIN)
    assert folder.finished
    assert len(folder.load_history()) == 20
    assert "is finished: loaded, not trained again" in notebook.cell(TRAIN)  # the cell run twice

    notebook.cell("learning_rate = 0.05")  # edited, but the cell with the recipe was not run again
    assert "is finished: loaded" in notebook.cell(TRAIN)
    notebook.cell(RECIPE)
    said = notebook.cell(TRAIN)
    assert "RunRefused" in said
    assert "recipe.learning_rate: 0.1 in the folder, 0.05 asked" in said
    notebook.cell("learning_rate = 0.1")
    notebook.cell(RECIPE)
    assert "is finished: loaded" in notebook.cell(TRAIN)

    said = notebook.cell(TEST, meanwhile=lambda: (time.sleep(0.5), notebook.manager.interrupt_kernel()))
    assert "KeyboardInterrupt" in said
    first = notebook.cell(TEST)
    assert "withstand" in first
    assert notebook.cell(TEST).splitlines()[-1] == first.splitlines()[-1]

    straight = TRAIN.replace('"standard"', '"straight"')
    assert "Error" not in notebook.cell(straight)
    weights = [fingerprint(load_source(notebook.run.with_name(name))) for name in ("standard", "straight")]
    assert weights[0] == weights[1]
