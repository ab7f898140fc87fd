"""What a run computes in: by rule; and that float16 learns what float32 learns, though it can hold so little."""

import signal
from dataclasses import replace

import pytest
import torch
from small import Blobs, small_network
from torch import nn

import trainer
from attacks import PGD, VMIFGSM, input_gradient
from defences import AWP, MART, TRADES, Adversarial, Free, Guided, Standard
from models.fingerprint import fingerprint
from processes import machine
from trainer import Recipe, train
from training import precision, rehearsal
from training import step as steps
from training.run_folder import RunFolder

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "fast", "auto"),
    [(CPU, True, "bfloat16"), (CPU, False, "float32"), (CUDA, True, "bfloat16"), (CUDA, False, "float16")],
)
def test_the_recipe_goes_first_then_the_device(device, fast, auto, monkeypatch):
    monkeypatch.setattr(machine, "fast_bfloat16", lambda asked: fast and asked == device)
    assert precision.chosen(Recipe(epochs=1), device) == auto
    for name in ("bfloat16", "float16", "float32"):
        assert precision.chosen(Recipe(epochs=1, precision=name), device) == name


def stepped(asked, defence, count=20):
    network = small_network()
    network[3] = nn.Identity()  # dropout
    recipe = Recipe(epochs=1, batch_size=64, defence=defence, precision=asked, learning_rate=0.02)
    state, split = steps.State(network.train(), recipe, count, CPU), Blobs().split(256, 0, "train")
    for step in range(count):
        state.generator.manual_seed(step)
        steps.train_step(state, *split.batch(torch.arange(64) + 64 * (step % 4)))
        state.step += 1
    return nn.utils.parameters_to_vector(state.model.parameters()).detach(), state


@pytest.mark.parametrize(
    "defence",
    [
        Standard(),
        Adversarial(PGD(steps=2)),
        Adversarial(VMIFGSM(steps=2)),
        TRADES(PGD(steps=2)),
        AWP(MART(PGD(steps=2))),
        Free(replays=2),
        Guided(),
    ],
    ids=lambda defence: type(defence).__name__,
)
def test_float16_goes_where_float32_goes(defence):
    start = nn.utils.parameters_to_vector(small_network().parameters()).detach()
    exact, _ = stepped("float32", defence)
    found, state = stepped("float16", defence)
    assert state.scaler.get_scale() == precision.SCALE  # no step was left out
    assert (found - exact).norm() < 0.05 * (exact - start).norm()


def test_a_network_learns_in_float16(blobs, tmp_path):
    recipe = Recipe(epochs=6, batch_size=32, learning_rate=0.2, augment=False, validation_images=100)
    recipe = replace(recipe, defence=Adversarial(PGD(steps=2), ramp=0.5))
    for name in ("float32", "float16"):
        run = train(small_network(), blobs, replace(recipe, precision=name), tmp_path / name, progress=False)
        assert run.history["accuracy/clean"].iloc[-1] > 0.9


def test_a_step_that_overflows_is_left_out_and_the_scale_falls():
    _, state = stepped("float16", Standard(), count=40)
    state.step = 20
    state.scaler.load_state_dict(state.scaler.state_dict() | {"scale": 2.0**30})
    before = fingerprint(state.model)
    weights = [weight.detach().clone() for weight in state.model.parameters()]
    batch = Blobs().split(64, 0, "train").batch(torch.arange(64))
    steps.train_step(state, *batch)
    assert state.scaler.get_scale() == 2.0**29
    assert all(torch.equal(*pair) for pair in zip(weights, state.model.parameters(), strict=True))
    assert fingerprint(state.model) != before  # BatchNorm has seen the pictures
    for _ in range(30):
        steps.train_step(state, *batch)
    assert state.scaler.get_scale() < 2.0**24
    assert not all(torch.equal(*pair) for pair in zip(weights, state.model.parameters(), strict=True))
    assert all(torch.isfinite(weight).all() for weight in state.model.parameters())


def test_a_first_step_that_overflows_leaves_no_trace_in_the_momentum():
    recipe = Recipe(epochs=1, batch_size=64, precision="float16")
    state = steps.State(small_network().train(), recipe, 10, CPU)
    state.scaler.load_state_dict(state.scaler.state_dict() | {"scale": 2.0**30})
    steps.train_step(state, *Blobs().split(64, 0, "train").batch(torch.arange(64)))
    assert all((kept["momentum_buffer"] == 0).all() for kept in state.optimizer.state.values())


def test_a_stopped_run_keeps_its_scale(blobs, tmp_path, monkeypatch):
    recipe = Recipe(epochs=2, batch_size=64, precision="float16", validation_images=16)
    monkeypatch.setattr(precision, "SCALE", 2.0**26)  # falls at first
    whole, real = train(small_network(), blobs, recipe, tmp_path / "whole", progress=False), steps.train_step

    def stop_at(state, *rest):
        if state.step == 5:
            signal.raise_signal(signal.SIGINT)
        return real(state, *rest)

    monkeypatch.setattr(steps, "train_step", stop_at)
    with pytest.raises(KeyboardInterrupt):
        train(small_network(), blobs, recipe, tmp_path / "run", progress=False)
    monkeypatch.setattr(steps, "train_step", real)
    assert RunFolder(tmp_path / "run").load_checkpoint("cpu")["scaler"]["scale"] < 2.0**26
    resumed = train(small_network(), blobs, recipe, tmp_path / "run", progress=False)
    assert fingerprint(resumed.model) == fingerprint(whole.model)


class Faint(nn.Module):
    """A network whose logits hardly depend on the pictures: its gradients are as small as `factor`."""

    def __init__(self, factor):
        super().__init__()
        self.inner, self.factor = small_network(), factor

    def forward(self, images):
        with torch.autocast("cpu", enabled=False):
            logits = self.inner(images)
        return (
            logits.to(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None) * self.factor
        )


def test_what_is_small_in_float16_is_not_lost(blobs):
    images, labels = blobs.train.batch(torch.arange(64))
    network = Faint(2e-7).eval()
    exact = input_gradient(network, images, labels).sign()
    with precision.computing("float16", CPU):
        found = input_gradient(network, images, labels).sign()
    assert (found == exact).double().mean() > 0.95


def test_what_is_small_is_lifted_also_where_the_last_layer_is_float32(blobs):
    class Wide(Faint):
        def forward(self, images):
            return super().forward(images).float()

    images, labels = blobs.train.batch(torch.arange(64))
    network = Wide(2e-7).eval()
    with precision.computing("float16", CPU):
        assert (input_gradient(network, images, labels) != 0).double().mean() > 0.95


@pytest.mark.parametrize(("factor", "warnings"), [(1.0, 0), (1e-10, 1)])
def test_gradients_that_float16_loses_are_told(blobs, tmp_path, monkeypatch, factor, warnings):
    said = []
    monkeypatch.setattr(trainer, "LONG", 1)
    monkeypatch.setattr(rehearsal.log, "warning", lambda text, *parts: said.append(text % parts))
    recipe = Recipe(epochs=1, batch_size=64, precision="float16", validation_images=16)
    train(Faint(factor), blobs, recipe, tmp_path / "run", progress=False)
    assert len(said) == warnings
    assert all("in float16 the input gradient of 64 of 64 pictures is lost" in line for line in said)
