"""What test_data_parallel.py has several processes do: torchrun ... on_several.py <folder> <what> ..."""

import sys
from pathlib import Path

import torch
from small import Blobs, small_network
from torch import nn

import models
import utils
from attacks import FGSM, PGD, VMIFGSM
from defences import AWP, L2SP, MART, NFGSM, TRADES, Adversarial, Free, Guided, Standard
from evaluation.testing import test
from loaders import Data
from processes import data_parallel
from trainer import Recipe, train

PGD2 = PGD(steps=2)
DEFENCES = {
    "standard": (Standard(), {}),
    "pgd": (Adversarial(PGD2, ramp=0.5), {"ema": 0.9}),
    "l2": (Adversarial(PGD(norm="L2", eps=0.5, step_size=0.2, steps=2)), {"clip_gradient": 0.5}),
    "vmi": (Adversarial(VMIFGSM(steps=2)), {"swa": 0.5}),
    "trades": (TRADES(PGD2), {}),
    "mart": (L2SP(MART(PGD2), small_network().double()), {}),
    "awp": (AWP(TRADES(PGD2)), {}),
    "free": (Free(replays=3), {}),
    "n-fgsm": (NFGSM(), {"label_smoothing": 0.1}),
    "guided": (Guided(), {}),
}


def blobs(train=320, test=700):
    make = Blobs().split
    parts = make(train, 0, "train"), make(64, 1, "validation"), make(test, 2, "test")
    return Data("blobs", *parts, list("abcd"), {"name": "blobs"})


class Double(nn.Sequential):
    head = "6"

    def forward(self, images):
        return super().forward(images.double())


def defences(folder):
    """Each defence in float64, where additions in another order do not count; two parts of 63 are not equal."""
    network = Double(*small_network()).double()
    network[3] = nn.Identity()  # what dropout draws, each process draws for itself
    found = {}
    for name, (defence, options) in DEFENCES.items():
        asked = Recipe(
            epochs=2, batch_size=63, defence=defence, precision="float32", validation_images=16, **options
        )
        run = train(network, blobs(), asked, folder / name, progress=False)
        found[name] = run.model.state_dict(), run.history.drop(columns="time/epoch_s").to_dict("list")
    resnet = Double(models.build("resnet18", 4, width=4)).double()
    recipe = Recipe(epochs=1, batch_size=63, precision="float32", validation_images=16)
    run = train(resnet, blobs(), recipe, folder / "resnet18", progress=False)
    found["resnet18"] = run.model.state_dict(), {}
    return found


def steps(folder):
    """20 steps in float32, and a test."""
    session = utils.start("several", preset="smoke")
    data, model = utils.load_data("shapes10", session), models.build("shallow_cnn", 10)
    recipe = Recipe(epochs=5, batch_size=140, learning_rate=0.02, precision="float32", validation_images=16)
    weights = train(model, data, recipe, folder / "shallow", progress=False).model.state_dict()
    half = Recipe(epochs=1, batch_size=140, learning_rate=0.02, precision="bfloat16", validation_images=16)
    half = train(
        models.build("resnet18", 10, width=4), data, half, folder / "half", progress=False
    ).model.state_dict()
    data, network = blobs(), small_network()
    network[3] = nn.Identity()
    run = train(
        network, data, Recipe(epochs=2, batch_size=64, precision="float32"), folder / "tested", progress=False
    )
    scores = test(run.model, data.test, [FGSM(), PGD2], progress=False, folder=run.folder)
    scores.save(run.folder)
    return {
        "weights": weights,
        "bfloat16": half,
        "outcomes": scores.outcomes,
        "findings": [str(finding) for finding in scores.findings],
    }


def long(folder):
    """A run that lasts for some seconds, to be stopped or killed."""
    network = Double(*small_network()).double()
    network[3] = nn.Identity()
    recipe = Recipe(epochs=40, batch_size=33, defence=Free(replays=3), precision="float32", validation_images=16)
    return {"weights": train(network, blobs(), recipe, folder / "long", progress=False).model.state_dict()}


WHAT = {function.__name__: function for function in (defences, steps, long)}

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for what in sys.argv[2:]:
        found = WHAT[what](folder)
        if data_parallel.leads():
            torch.save(found, folder / f"{what}.pt")
