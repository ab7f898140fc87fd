"""The guard: a planted collapse is seen, undone and not repeated; healthy training is left alone."""

import copy
import logging
import os
import signal
from dataclasses import dataclass, replace

import pytest
import torch
from small import small_network
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn.functional import cross_entropy

import trainer
from attacks import FGSM, PGD, VMIFGSM
from defences import AWP, L2SP, NFGSM, TRADES, Adversarial, Free, Guided, Standard
from loaders import Split
from models.fingerprint import fingerprint
from trainer import Recipe, TrainingDiverged, train
from training import catastrophic_overfitting
from training import step as steps

EPS = 8 / 255
SAFER = Adversarial(PGD(eps=EPS, step_size=5 / 255, steps=2))


class Trapped(nn.Module):
    """Once the trap is shut, the gradient at a picture of 8 bits points the wrong way: FGSM is fooled, PGD is not.

    It shuts when its weight is trained above zero, or after so many batches.
    """

    def __init__(self):
        super().__init__()
        self.inner = small_network()
        self.trap = nn.Parameter(torch.zeros(()))
        self.register_buffer("left", torch.tensor(10**6))

    def forward(self, images):
        self.left -= int(self.training)
        clean = (images == (255 * images).round() / 255).flatten(1).all(1)[:, None, None, None]
        wrong = clean & ((self.trap > 0) | (self.left < 0))
        return self.inner(torch.where(wrong, 2 * images.detach() - images, images))


@dataclass(frozen=True)
class Trapping:
    """Standard training that shuts the trap when a share of the training is done."""

    after: float

    def single_step_eps(self, progress):
        return EPS

    def loss(self, model, images, labels, *, progress, generator, smoothing, memory):
        logits = model(images)
        return cross_entropy(logits.float(), labels) - (progress >= self.after) * model.trap, logits


RECIPE = Recipe(
    epochs=5,
    batch_size=32,
    learning_rate=0.2,
    augment=False,
    validation_images=64,
    defence=Trapping(after=0.65),  # in the fourth epoch
)


def go(blobs, folder, recipe=RECIPE, network=None):
    return train(network or Trapped(), blobs, recipe, folder, progress=False)


@pytest.fixture(scope="module")
def faint(blobs):
    """Pictures of so little contrast that a standard network falls to every attack."""

    def fade(split):
        return Split(split.images // 4, split.labels, split.classes, split.name)

    return replace(blobs, train=fade(blobs.train), val=fade(blobs.val))


@pytest.fixture(scope="module")
def learned(faint, tmp_path_factory):
    """A network that tells them apart, so that it has something to lose in its first epoch."""
    recipe = replace(RECIPE, defence=Standard())
    return go(faint, tmp_path_factory.mktemp("learned") / "run", recipe).model


@pytest.fixture
def heard(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("study"), "propagate", True)
    caplog.set_level("INFO", "study")
    return caplog


def spy(monkeypatch, see):
    real = steps.train_step
    monkeypatch.setattr(steps, "train_step", lambda state, *rest: see(state) or real(state, *rest))


def everything(state):
    """What a step changes, by value."""
    momentum = [slot["momentum_buffer"].sum().item() for slot in state.optimizer.state.values()]
    return fingerprint(state.model), state.average and fingerprint(state.average), momentum


WEAK = PGD(eps=1 / 255, step_size=1 / 255)


@pytest.mark.parametrize("change", [{}, {"ema": 0.9}, {"validation_attack": WEAK}], ids=str)
def test_a_collapse_is_undone_and_training_goes_on_with_two_steps(change, faint, tmp_path, monkeypatch, heard):
    seen = []
    spy(monkeypatch, lambda state: seen.append((state.step, state.defence, everything(state))))
    recipe = replace(RECIPE, **change)
    run = go(faint, tmp_path / "run", recipe)
    assert [step for step, *_ in seen] == [*range(32), *range(24, 40)]  # the fourth epoch is done again
    assert seen[24][2] == seen[32][2]  # from where it began: weights, averages, momentum
    assert {repr(defence) for _, defence, _ in seen[32:]} == {repr(SAFER)}
    assert seen[31][2] != seen[24][2]
    history = run.history
    assert list(history["epoch"]) == [1, 2, 3, 4, 5]
    assert list(history["rescued"].isna()) == [True] * 3 + [False] * 2
    assert set(history["rescued"].dropna()) == {4}
    assert "rescued from a collapse in epoch 4)" in repr(run)
    assert "collapsed in epoch 4: FGSM leaves" in heard.text
    assert f"On from the weights after epoch 3, with {SAFER}" in heard.text
    assert run.model.trap == 0
    assert repr(go(faint, tmp_path / "run", recipe)) == repr(run)


def test_a_collapse_in_the_first_epoch_goes_back_to_the_initial_weights(
    faint, learned, tmp_path, monkeypatch, heard
):
    seen = []
    spy(monkeypatch, lambda state: seen.append(everything(state)))
    run = go(faint, tmp_path / "run", replace(RECIPE, epochs=2, defence=Trapping(after=0)), learned)
    assert len(seen) == 24
    assert seen[8] == seen[0]
    assert not any(seen[0][2])  # no momentum yet
    assert "On from the initial weights" in heard.text
    assert set(run.history["rescued"]) == {1}


def test_a_rescued_run_that_is_broken_off_goes_on_to_the_same_weights(faint, tmp_path, monkeypatch):
    recipe = replace(RECIPE, ema=0.9)
    whole = go(faint, tmp_path / "whole", recipe)
    with monkeypatch.context() as patch:
        spy(patch, lambda state: os.kill(os.getpid(), signal.SIGINT))
        for _ in range(48):  # stopped after every single step
            with pytest.raises(KeyboardInterrupt):
                go(faint, tmp_path / "run", recipe)
        spy(patch, lambda state: pytest.fail("it took more steps than the whole one"))
        resumed = go(faint, tmp_path / "run", recipe)
    assert fingerprint(resumed.model) == fingerprint(whole.model)
    assert fingerprint(resumed.best_model()) == fingerprint(whole.best_model())
    same = [column for column in whole.history if column != "time/epoch_s"]
    assert resumed.history[same].equals(whole.history[same])


def shutting(learned, batches):
    """A network whose trap shuts after so many batches, whatever it is trained with, and a recipe to see it."""
    network = copy.deepcopy(learned)
    network.left.fill_(batches)
    return replace(RECIPE, learning_rate=0.02, defence=Trapping(after=2)), network


@pytest.mark.parametrize("batches", [12, 30])
def test_a_second_collapse_ends_the_run_with_the_last_good_weights(
    batches, faint, learned, tmp_path, monkeypatch, heard
):
    recipe, network = shutting(learned, batches)
    seen = []
    spy(monkeypatch, lambda state: seen.append(everything(state)))
    run = go(faint, tmp_path / "run", recipe, network)
    closed = batches // 8
    assert len(seen) == 8 * (closed + 2)  # the next epoch twice
    assert fingerprint(run.model) == seen[8 * closed][0]
    assert list(run.history["epoch"]) == list(range(1, closed + 1))
    assert run.history["ended"].iloc[-1] == run.history["rescued"].iloc[-1] == closed + 1
    assert f"COLLAPSED AGAIN in epoch {closed + 1}" in heard.text
    assert f"in epoch {closed + 1}, ENDED by another in epoch {closed + 1})" in repr(run)
    again = go(faint, tmp_path / "run", recipe, network)
    assert (fingerprint(again.model), repr(again)) == (fingerprint(run.model), repr(run))


def test_where_nothing_good_was_reached_there_is_an_error(faint, learned, tmp_path):
    with pytest.raises(TrainingDiverged, match=r"collapsed again, with Adversarial\(.*: FGSM leaves"):
        go(faint, tmp_path / "run", *shutting(learned, batches=4))


@pytest.mark.parametrize("defence", [NFGSM(), Free(replays=2)], ids=["nfgsm", "free"])
def test_healthy_training_is_watched_and_not_disturbed(defence, blobs, tmp_path, monkeypatch):
    recipe = replace(RECIPE, epochs=3, augment=True, defence=defence, ema=0.9)
    watched = go(blobs, tmp_path / "watched", recipe, small_network())
    monkeypatch.setattr(catastrophic_overfitting, "eps_of", lambda defence, progress=1.0: None)
    alone = go(blobs, tmp_path / "alone", recipe, small_network())
    assert fingerprint(watched.model) == fingerprint(alone.model)
    assert list(watched.history) == [*alone.history, "accuracy/fgsm"]
    same = [column for column in alone.history if column != "time/epoch_s"]
    assert watched.history[same].equals(alone.history[same])
    events = EventAccumulator(str(watched.folder)).Reload()
    shown = [event.value for event in events.Scalars("accuracy/fgsm")]
    assert shown == pytest.approx(list(watched.history["accuracy/fgsm"]))


def test_the_column_is_the_accuracy_of_the_live_weights_under_fgsm(blobs, tmp_path, monkeypatch):
    live, real = [], catastrophic_overfitting.look
    monkeypatch.setattr(
        catastrophic_overfitting, "look", lambda state, *rest: live.append(state.model) or real(state, *rest)
    )
    recipe = replace(RECIPE, defence=NFGSM(eps=0.02), epochs=2, ema=0.999)
    run = go(blobs, tmp_path / "run", recipe, small_network())
    under = [
        trainer.test(model, blobs.val, [FGSM(eps=0.02)], progress=False).robust_accuracy()
        for model in (live[-1], run.model)
    ]
    assert run.history["accuracy/fgsm"].iloc[-1] == under[0] != under[1]


@pytest.mark.parametrize(
    ("defence", "eps"),
    [
        (Standard(), None),
        (Adversarial(PGD()), None),
        (Adversarial(PGD(steps=2), grow=0.5), None),
        (Adversarial(PGD(eps=0.1, steps=1)), 0.1),
        (Adversarial(FGSM(eps=0.1)), 0.1),
        (Adversarial(FGSM(eps=0.5, norm="L2")), None),
        (Adversarial(VMIFGSM(steps=1)), EPS),
        (NFGSM(eps=0.1), 0.1),
        (Guided(eps=0.1), 0.1),
        (Free(eps=0.1), 0.1),
        (L2SP(Guided(eps=0.1), nn.Identity()), 0.1),
        (L2SP(Standard(), nn.Identity()), None),
        (L2SP(AWP(NFGSM(eps=0.1)), nn.Identity()), 0.1),
        (TRADES(), None),
    ],
    ids=str,
)
def test_what_is_watched(defence, eps):
    assert catastrophic_overfitting.eps_of(defence) == eps
    assert catastrophic_overfitting.eps_of(defence, 0.1) == eps


def test_a_ramp_is_watched_where_it_has_arrived():
    defence = L2SP(Adversarial(FGSM(eps=0.1), ramp=0.5), nn.Identity())
    assert [catastrophic_overfitting.eps_of(defence, progress) for progress in (0.25, 0.5, 1)] == [0.05, 0.1, 0.1]


def test_the_rescue_keeps_penalty_and_ramp():
    source = nn.Identity()
    rescued = catastrophic_overfitting.safer(L2SP(Adversarial(FGSM(), ramp=0.5), source, 2.0))
    assert rescued == L2SP(replace(SAFER, ramp=0.5), source, 2.0)
    trades = AWP(TRADES(PGD(steps=1), beta=3.0, ramp=(0.1, 0.5), grow=0.5))
    assert catastrophic_overfitting.safer(trades) == AWP(TRADES(SAFER.attack, beta=3.0, ramp=(0.1, 0.5)))
