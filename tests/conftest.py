"""What several test modules need: a session in temporary folders, small data, a small network."""

import signal
from contextlib import suppress

import psutil
import pytest
import torch
from hypothesis import settings
from torch import nn

import evaluation
import models
import utils
from attacks import FGSM, PGD
from defences import Adversarial, Standard
from flaws.catalogue import Lab
from trainer import Recipe, train
from utils import Data, Split

settings.register_profile("few", max_examples=30, deadline=None, derandomize=True)
settings.register_profile("many", max_examples=1200, deadline=None)
settings.load_profile("few")


@pytest.fixture(scope="session", autouse=True)
def folders(tmp_path_factory):
    """Runs and data of all tests lie in temporary folders; the drawn pictures are cached for all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDY_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setenv("STUDY_DATA", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture
def stop_button():
    """SIGINT raises KeyboardInterrupt, also where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def command_of(process):
    """The command line of a psutil.Process; empty for one that has just ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


@pytest.fixture(scope="session")
def session(folders):
    return utils.start("tests", preset="smoke")


@pytest.fixture(scope="session")
def shapes(session):
    return utils.load_data("shapes10", session)


class Blobs:
    """Four classes of 8x8 pictures that a small network learns in seconds: one bright quarter each, and noise."""

    def split(self, count, seed, name):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(count) % 4
        images = torch.randint(0, 225, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
        for index, label in enumerate(labels.tolist()):
            top, left = 4 * (label // 2), 4 * (label % 2)
            images[index, :, top : top + 4, left : left + 4] += 30
        return Split(images, labels, list("abcd"), f"blobs {name}")


@pytest.fixture(scope="session")
def blobs():
    make = Blobs().split
    parts = make(256, 0, "train"), make(64, 1, "validation"), make(128, 2, "test")
    return Data("blobs", *parts, list("abcd"), {"name": "blobs"})


def small_network(seed=0, classes=4, size=8):
    """A network with everything that has state: BatchNorm, Dropout, submodules in either mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * (size // 2) ** 2, classes),
        )


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
        scores[name] = evaluation.test(runs[name].model, data.test, [FGSM(), PGD(steps=2)], progress=False)
        scores[name].save(runs[name].folder)
    return session, data, runs, scores


@pytest.fixture(scope="session")
def sound(blobs, tmp_path_factory):
    """A standard and an adversarially trained network, on blobs."""
    defences = {"standard": Standard(), "pgd": Adversarial(PGD(steps=2, step_size=5 / 255), ramp=0.5)}
    folder, trained = tmp_path_factory.mktemp("sound"), {}
    common = {"epochs": 10, "batch_size": 32, "learning_rate": 0.2, "augment": False, "validation_images": 8}
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
