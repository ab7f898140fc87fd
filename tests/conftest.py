"""What tests of several wings share: a session in temporary folders, small data, what is trained once for all."""

import os
import sys

import pytest
from hypothesis import settings
from small import Blobs, small_network
from xdist.scheduler import LoadFileScheduling

import models
import utils
from attacks import FGSM, PGD
from defences import Adversarial, Standard
from evaluation import testing
from evaluation.flaws.catalogue import Lab
from loaders import Data
from trainer import Recipe, train

sys.modules.setdefault("rfc3987_syntax", None)  # nbformat's: a grammar for URLs, which takes seconds to import
settings.register_profile("few", max_examples=30, deadline=None, derandomize=True)
settings.register_profile("many", max_examples=1200, deadline=None)
settings.load_profile("few")

# Tests mean the CPU, on a machine with a GPU too; those of test_gpu.py mean the device that is named here.
if os.environ.setdefault("STUDY_TESTS_ON", "cpu") == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

RAY = ("processes/test_ray_cluster.py", "study/test_many_runs.py")  # starting it takes half a minute


def pytest_xdist_make_scheduler(config, log):
    """A file is one process's, and so is all that starts Ray."""

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "ray" if file.endswith(RAY) else file

    return ByFile(config, log)


@pytest.fixture(scope="session", autouse=True)
def folders(tmp_path_factory):
    """Runs and data of all tests lie in temporary folders; the drawn pictures are cached for all of them."""
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDY_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setenv("STUDY_DATA", str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "data"))
        yield


@pytest.fixture(scope="session")
def session(folders):
    return utils.start("tests", preset="smoke")


@pytest.fixture(scope="session")
def shapes(session):
    return utils.load_data("shapes10", session)


@pytest.fixture(scope="session")
def blobs():
    make = Blobs().split
    parts = make(256, 0, "train"), make(64, 1, "validation"), make(128, 2, "test")
    return Data("blobs", *parts, list("abcd"), {"name": "blobs"})


@pytest.fixture
def network():
    return small_network()


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """One small experiment, as a notebook would leave it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDY_RUNS", str(tmp_path_factory.mktemp("report")))
        session = utils.start("01_small <experiment>", preset="smoke")
    data = utils.load_data("shapes10", session)
    runs, scores = {}, {}
    for name in ("standard", "other"):
        model = models.build("shallow_cnn", 10, seed=len(name))
        recipe = Recipe(epochs=2, validation_images=20)
        runs[name] = train(model, data, recipe, session.folder(name), progress=False)
        scores[name] = testing.test(runs[name].model, data.test, [FGSM(), PGD(steps=2)], progress=False)
        scores[name].save(runs[name].folder)
    return session, data, runs, scores


@pytest.fixture(scope="session")
def sound(blobs, tmp_path_factory):
    """A standard and an adversarially trained network, on blobs."""
    defences = {"standard": Standard(), "pgd": Adversarial(PGD(steps=2, step_size=5 / 255), ramp=0.5)}
    folder, trained = tmp_path_factory.mktemp("sound"), {}
    common = {"epochs": 10, "batch_size": 32, "learning_rate": 0.2, "augment": False, "validation_images": 8}
    common["precision"] = "float32"  # which one is faster at the moment would decide what the network is
    for name, defence in defences.items():
        recipe = Recipe(**common, defence=defence)
        trained[name] = train(small_network(), blobs, recipe, folder / name, progress=False).model
    return trained


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """The small CNN on drawn pictures, standard and adversarially trained, well enough to be told from chance."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDY_RUNS", str(tmp_path_factory.mktemp("lab")))
        session = utils.start("lab", preset="quick", data="shapes")
    data = utils.load_data("shapes10", session, train_pictures=4000)
    common = {"batch_size": 64, "validation_images": 50, "learning_rate": 0.1, "precision": "float32"}
    standard = train(
        models.build("shallow_cnn", 10),
        data,
        Recipe(epochs=12, **common),
        session.folder("standard"),
        progress=False,
    )
    defence = Adversarial(PGD(steps=3, step_size=4 / 255), ramp=0.5)
    recipe = Recipe(epochs=6, defence=defence, **common)
    robust = train(standard.model, data, recipe, session.folder("pgd"), progress=False)
    return Lab(standard.model, robust.model, data.test.first(200), PGD())
