"""What a device that runs out of memory makes of a run: the same weights, or a number that fits."""

import json
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from small import Blobs, small_network
from torch import nn

import trainer
from attacks import PGD, VMIFGSM
from defences import AWP, L2SP, MART, NFGSM, TRADES, Adversarial, Free, Guided, Standard
from loaders import Data
from models.fingerprint import fingerprint
from trainer import Recipe, train
from training import rehearsal
from training import step as steps
from training.run_folder import RunFolder

PGD2 = PGD(steps=2)
RECIPE = Recipe(epochs=3, batch_size=63, precision="float32", validation_images=16, label_smoothing=0.1, ema=0.9)


class Limited(nn.Sequential):
    """A network in float64 on a device made to run out of memory above so many pictures."""

    head, most = "6", 1000

    def forward(self, images):
        if len(images) > self.most:
            raise torch.OutOfMemoryError("made to run out")
        return super().forward(images.double())


def limited(most):
    made = Limited(*small_network()).double()
    made[1] = nn.Identity()  # BatchNorm's statistics are of a part
    made[3] = nn.Identity()  # what dropout draws is drawn part by part
    made.most = most
    return made


@pytest.fixture
def data():
    make = Blobs().split
    return Data(
        "blobs", make(320, 0, "train"), make(64, 1, "val"), make(64, 2, "test"), list("abcd"), {"name": "b"}
    )


@pytest.fixture
def warned(monkeypatch):
    """Also short runs are rehearsed here."""
    said = []
    monkeypatch.setattr(trainer, "LONG", 1)
    monkeypatch.setattr(rehearsal.log, "warning", lambda text, *parts: said.append(text % parts))
    return said


def distance(run, other):
    pairs = zip(run.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return max(float((one - two).abs().max()) for one, two in pairs)


@pytest.mark.parametrize(
    "defence",
    [
        Standard(),
        Adversarial(PGD2, ramp=0.5),
        Adversarial(VMIFGSM(steps=2)),
        Adversarial(PGD(norm="L2", eps=0.5, step_size=0.2, steps=2)),
        TRADES(PGD2),
        L2SP(MART(PGD2), limited(1000)),
        NFGSM(),
        Guided(),
    ],
    ids=lambda defence: type(defence).__name__,
)
def test_parts_of_a_batch_add_up_to_the_same_step(data, tmp_path, warned, defence):
    recipe = replace(RECIPE, defence=defence, clip_gradient=0.5)
    whole = train(limited(1000), data, recipe, tmp_path / "whole", progress=False)
    assert warned == []
    parts = train(limited(20), data, recipe, tmp_path / "parts", progress=False)
    assert "63 pictures at once do not fit into the memory. Each batch goes through the network in 4" in warned[0]
    assert "statistics over 16 pictures each" in warned[0]
    assert json.loads((tmp_path / "parts" / "environment.json").read_text())["parts"] == 4
    assert distance(whole, parts) < 1e-9
    same = ["loss/train", "accuracy/train", "accuracy/clean", "accuracy/robust"]
    assert torch.allclose(*(torch.tensor(run.history[same].to_numpy()) for run in (whole, parts)), atol=1e-6)


@pytest.mark.parametrize(
    "defence", [Free(), AWP(TRADES(PGD2)), L2SP(AWP(Standard()), limited(1000))], ids=lambda d: type(d).__name__
)
def test_a_defence_that_needs_the_whole_batch_is_told_what_fits(data, tmp_path, warned, defence):
    recipe = replace(RECIPE, defence=defence)
    with pytest.raises(torch.OutOfMemoryError, match=r"batch of 63 pictures .* batch_size=15 fits"):
        train(limited(20), data, recipe, tmp_path / "run", progress=False)
    train(limited(20), data, replace(recipe, batch_size=15), tmp_path / "other", progress=False)


@dataclass(frozen=True)
class Textbook:
    """A defence of somebody's own, whose crafting leaves gradients of the weights behind."""

    def loss(self, model, images, labels, *, progress, generator, smoothing=0.0, memory=None):
        points = images.clone().requires_grad_()
        nn.functional.cross_entropy(model(points), labels).backward()
        adversarial = (images + 0.03 * points.grad.sign()).clamp(0, 1)
        logits = model(adversarial)
        return nn.functional.cross_entropy(logits, labels), logits


@dataclass(frozen=True)
class Clean(Textbook):
    def loss(self, model, images, labels, **rest):
        loss, logits = super().loss(model, images, labels, **rest)
        for weight in model.parameters():
            weight.grad = None
        return loss, logits


def test_what_crafting_leaves_in_the_weights_is_not_learned_from(data, tmp_path, warned):
    runs = [
        train(limited(most), data, replace(RECIPE, defence=defence), tmp_path / f"{most}{defence}", progress=False)
        for most in (1000, 20)
        for defence in (Clean(), Textbook())
        if (most, type(defence)) != (20, Clean)
    ]
    assert distance(runs[0], runs[1]) == 0
    assert distance(runs[0], runs[2]) < 1e-9


def test_a_run_that_is_rescued_stays_in_its_parts(data, tmp_path, warned, monkeypatch):
    """The weights to go back to were kept before it was known how many there are."""
    looked = []

    def look(state, split, robust):
        looked.append(state.parts)
        return 0.9, SimpleNamespace(message="made to collapse") if len(looked) == 1 else None

    monkeypatch.setattr(trainer.catastrophic_overfitting, "look", look)
    run = train(limited(20), data, replace(RECIPE, defence=NFGSM()), tmp_path / "run", progress=False)
    assert looked == 4 * [4]
    assert run.history["rescued"].tolist() == 3 * [1]


def test_several_processes_do_not_wait_for_one_that_ran_out(data, tmp_path, warned, monkeypatch):
    monkeypatch.setattr(rehearsal.data_parallel, "world", lambda: 2)
    state = SimpleNamespace(recipe=RECIPE, parts=1, defence=Standard())
    monkeypatch.setattr(rehearsal, "_trial", lambda *asked: limited(1)(torch.zeros(2, 3, 8, 8)))
    with pytest.raises(torch.OutOfMemoryError) as caught:
        rehearsal.rehearse(state, data, RunFolder(tmp_path / "run"))
    assert "more processes, or a smaller batch_size" in caught.value.__notes__[0]


def test_not_even_one_picture(data, tmp_path, warned):
    class Checked(Limited):
        def forward(self, images):
            if self.training:
                raise torch.OutOfMemoryError("made to run out")
            return super().forward(images)

    with pytest.raises(torch.OutOfMemoryError, match="made to run out"):
        train(Checked(*limited(1000)), data, RECIPE, tmp_path / "run", progress=False)


def test_a_stopped_run_goes_on_in_as_many_parts(data, tmp_path, warned, monkeypatch):
    """Their rounding and their BatchNorm are the run's, also on a device that would take more."""
    network = limited(20)
    network[1] = nn.BatchNorm2d(8).double()
    whole = train(network, data, RECIPE, tmp_path / "whole", progress=False)
    real = steps.train_step

    def interrupted(state, *rest):
        if state.step == 7:
            raise KeyboardInterrupt
        return real(state, *rest)

    monkeypatch.setattr(steps, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(network, data, RECIPE, tmp_path / "run", progress=False)
    assert RunFolder(tmp_path / "run").load_checkpoint("cpu")["parts"] == 4
    monkeypatch.setattr(steps, "train_step", real)
    run = train(network, data, RECIPE, tmp_path / "run", progress=False)
    assert fingerprint(run.model) == fingerprint(whole.model)


def test_memory_that_is_gone_in_the_middle_of_a_run_loses_nothing(data, tmp_path, monkeypatch):
    real = steps.train_step

    def taken(state, *rest):
        if state.step == 7:
            raise torch.OutOfMemoryError("something else came")
        return real(state, *rest)

    monkeypatch.setattr(steps, "train_step", taken)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        train(limited(1000), data, RECIPE, tmp_path / "run", progress=False)
    assert "goes on from the last checkpoint" in caught.value.__notes__[0]
    assert RunFolder(tmp_path / "run").load_checkpoint("cpu")["step"] == 5
    monkeypatch.setattr(steps, "train_step", real)
    again = train(limited(1000), data, RECIPE, tmp_path / "run", progress=False)
    assert distance(again, train(limited(1000), data, RECIPE, tmp_path / "other", progress=False)) == 0
