"""train(): repeatable, resumable, and never the wrong run."""

import functools
import json
import logging
import math
import os
import re
import shutil
import signal
import threading
import time
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from broken import BROKEN, broken_weights
from safetensors.torch import load_file, save_file
from small import small_network, small_split
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import finetune_framework
import models
import trainer
import utils
from attacks import FGSM, PGD, AutoAttack
from defences import Adversarial, Free, Standard
from loaders import Data, Split
from models.fingerprint import fingerprint, structure
from models.low_rank import Packed
from processes.seeds import derive_seed
from storage.atomic_files import Held, NotWritten
from trainer import Recipe, TrainingDiverged, train
from training import step as steps
from training.identity import as_dict, differences, identity_of
from training.run_folder import RunFolder, RunRefused
from training.tensorboard_log import SCALARS
from training.weights import RunDamaged

RECIPE = Recipe(
    epochs=3, batch_size=32, learning_rate=0.2, validation_images=32, defence=Adversarial(PGD(steps=2))
)


def go(blobs, folder, recipe=RECIPE, network=None):
    return train(network or small_network(), blobs, recipe, folder, progress=False)


def test_what_is_no_network_is_answered_by_what_to_pass(blobs, tmp_path):
    run = go(blobs, tmp_path / "run")
    for call in (
        lambda model: train(model, blobs, RECIPE, tmp_path / "again", progress=False),
        lambda model: trainer.test(model, blobs.test),
        lambda model: finetune_framework.adapt(model, 4),
    ):
        with pytest.raises(TypeError, match=r"pass its \.model"):
            call(run)
        with pytest.raises(TypeError, match=r"load_source\('ours/x'\) loads one with its weights"):
            call("ours/x")
    with pytest.raises(TypeError, match=r"load_data\(name, session\)"):
        utils.load_data(object(), "cifar10")


def weights(run):
    return fingerprint(run.model)


@pytest.fixture(scope="module")
def uninterrupted(blobs, tmp_path_factory):
    """The run that all broken ones must equal."""
    return go(blobs, tmp_path_factory.mktemp("whole") / "run")


def test_it_learns(blobs, tmp_path):
    recipe = replace(RECIPE, epochs=8, augment=False)  # a flip would change the class of these pictures
    run = go(blobs, tmp_path / "run", replace(recipe, defence=Standard()))
    assert run.history["accuracy/clean"].iloc[-1] > 0.9
    assert not run.model.training


def test_adversarial_training_buys_robustness(blobs, tmp_path):
    recipe = replace(RECIPE, epochs=12, augment=False)
    attack = PGD(steps=20)
    robust = []
    for name, defence in (
        ("standard", Standard()),
        ("pgd", Adversarial(PGD(steps=3, step_size=4 / 255), ramp=0.3)),
    ):
        run = go(blobs, tmp_path / name, replace(recipe, defence=defence))
        robust.append(trainer.test(run.model, blobs.train, [attack], progress=False).robust_accuracy())
    assert robust[1] > robust[0] + 0.05


def test_the_model_passed_stays_as_it_was(blobs, tmp_path):
    network = small_network()
    before = fingerprint(network)
    run = go(blobs, tmp_path / "run", network=network)
    assert fingerprint(network) == before != weights(run)


def test_one_seed_gives_one_result(blobs, tmp_path, uninterrupted):
    torch.manual_seed(99)  # whatever happened before
    assert weights(go(blobs, tmp_path / "again")) == weights(uninterrupted)
    assert weights(go(blobs, tmp_path / "other", replace(RECIPE, seed=1))) != weights(uninterrupted)


def test_training_leaves_the_global_random_numbers_alone(blobs, tmp_path):
    before = torch.get_rng_state()
    go(blobs, tmp_path / "run")
    assert torch.equal(before, torch.get_rng_state())


def test_a_finished_run_is_loaded(blobs, tmp_path, monkeypatch):
    first = go(blobs, tmp_path / "run")
    monkeypatch.setattr(steps, "train_step", lambda *_: pytest.fail("trained again"))
    again = go(blobs, tmp_path / "run")
    assert weights(again) == weights(first)
    pd.testing.assert_frame_equal(again.history, first.history)


def test_a_checkpoint_is_written_beside_the_next_epoch_and_holds_the_one_that_it_is_of(
    blobs, tmp_path, uninterrupted, monkeypatch
):
    real_step, real_save, further = steps.train_step, RunFolder.save_checkpoint, threading.Event()

    def step(state, *rest):
        if state.step > state.steps:  # the second one of the second epoch
            further.set()
        return real_step(state, *rest)

    def late(self, state):
        assert further.wait(60)
        real_save(self, state)
        if not (tmp_path / "copy").exists():
            shutil.copytree(self.path, tmp_path / "copy")

    monkeypatch.setattr(steps, "train_step", step)
    monkeypatch.setattr(RunFolder, "save_checkpoint", late)
    assert weights(go(blobs, tmp_path / "run")) == weights(uninterrupted)
    saved = RunFolder(tmp_path / "copy").load_checkpoint("cpu")
    assert (saved["step"], len(saved["history"])) == (len(blobs.train) // 32, 1)
    assert weights(go(blobs, tmp_path / "copy")) == weights(uninterrupted)


@pytest.mark.parametrize("defence", [RECIPE.defence, Adversarial(FGSM())], ids=["pgd", "guarded"])
@pytest.mark.parametrize("stop", [None, 36], ids=["whole", "stopped"])
def test_training_does_not_wait_for_a_slow_disk(stop, defence, blobs, tmp_path, monkeypatch):
    """While a checkpoint is written, epochs end without one; best weights, a stop and a kill do not suffer."""
    recipe = replace(RECIPE, epochs=5, defence=defence)
    whole = go(blobs, tmp_path / "whole", recipe)
    real_step, real_save, further, written = steps.train_step, RunFolder.save_checkpoint, threading.Event(), []

    def step(state, *rest):
        if state.step == 36:  # of 40, eight an epoch
            further.set()
            if stop:
                os.kill(os.getpid(), signal.SIGINT)
        return real_step(state, *rest)

    def late(self, state):
        assert further.wait(60)
        real_save(self, state)
        written.append((state["step"], len(state["history"])))
        shutil.copytree(self.path, tmp_path / f"killed {len(written)}")

    with monkeypatch.context() as patch:
        patch.setattr(steps, "train_step", step)
        patch.setattr(RunFolder, "save_checkpoint", late)
        if stop:
            with pytest.raises(KeyboardInterrupt, match="step 37 of 40; saved"):
                go(blobs, tmp_path / "run", recipe)
            assert written == [(8, 1), (37, 4)]
        else:
            go(blobs, tmp_path / "run", recipe)
            assert written in ([(8, 1)], [(8, 1), (40, 5)])
    for name in ("run", *(f"killed {number + 1}" for number in range(len(written)))):
        run = go(blobs, tmp_path / name, recipe)
        assert weights(run) == weights(whole)
        assert run.best_epoch == whole.best_epoch
        assert fingerprint(run.best_model()) == fingerprint(whole.best_model())


def test_what_cannot_be_written_beside_the_training_ends_it(blobs, tmp_path, monkeypatch):
    def refused(self, state):
        raise NotWritten(28, "No space left on device", str(self.path))

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", refused)
        with pytest.raises(NotWritten):
            go(blobs, tmp_path / "run")
        assert not RunFolder(tmp_path / "run").finished
        with pytest.raises(NotWritten):  # nor is the last one of a run forgotten
            go(blobs, tmp_path / "short", replace(RECIPE, epochs=1))
        assert not RunFolder(tmp_path / "short").finished


@pytest.mark.parametrize("step", [1, 8, 9, 15, 23])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on_to_the_same_weights(blobs, tmp_path, uninterrupted, monkeypatch, step, how):
    real, handler = steps.train_step, signal.getsignal(signal.SIGINT)

    def stop_at(state, *rest):
        if state.step == step:
            os.kill(os.getpid(), how)
        return real(state, *rest)

    monkeypatch.setattr(steps, "train_step", stop_at)
    with pytest.raises(KeyboardInterrupt if how == signal.SIGINT else SystemExit) as caught:
        go(blobs, tmp_path / "run")
    if how == signal.SIGINT and step < 23:
        assert "saved. The same again goes on from there" in str(caught.value)
    if how == signal.SIGTERM:
        assert caught.value.code == 75
    assert signal.getsignal(signal.SIGINT) is handler
    monkeypatch.setattr(steps, "train_step", real)
    resumed = go(blobs, tmp_path / "run")
    assert weights(resumed) == weights(uninterrupted)
    same = [column for column in SCALARS if column != "time/epoch_s"]
    pd.testing.assert_frame_equal(resumed.history[same], uninterrupted.history[same])


@pytest.mark.parametrize("defence", [RECIPE.defence, Free(replays=3)], ids=["pgd", "free"])
def test_with_dropout_and_averaging_too(defence, blobs, tmp_path, monkeypatch):
    recipe = replace(RECIPE, ema=0.9, label_smoothing=0.1, clip_gradient=1.0, defence=defence)
    whole = go(blobs, tmp_path / "whole", recipe)
    real = steps.train_step
    monkeypatch.setattr(steps, "train_step", lambda s, *r: os.kill(os.getpid(), signal.SIGINT) or real(s, *r))
    for _ in range(24):  # stopped after every single step
        with pytest.raises(KeyboardInterrupt):
            go(blobs, tmp_path / "run", recipe)
    monkeypatch.setattr(steps, "train_step", real)
    assert weights(go(blobs, tmp_path / "run", recipe)) == weights(whole)


def tied_network():
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 192), nn.ReLU(), nn.Linear(192, 192), nn.Linear(192, 4))
    network[3].weight = network[1].weight
    return network


@pytest.mark.parametrize("network", [small_network, tied_network])
def test_swa_is_the_mean_of_the_weights_of_the_last_steps(network, blobs):
    recipe = replace(RECIPE, epochs=2, swa=0.25)
    model = network()
    state = steps.State(model, recipe, 8, torch.device("cpu"))
    seen = []
    for step in range(state.total):
        steps.train_step(state, *blobs.train.batch(torch.arange(32) + 8 * step))
        state.step += 1
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        wanted = seen[-1:] if step < 12 else seen[12:]  # the last quarter
        for name, value in state.result().state_dict().items():
            if value.is_floating_point():
                mean = torch.stack([weights[name] for weights in wanted]).mean(0)
                assert torch.allclose(value, mean, atol=1e-6), (step, name)


@pytest.mark.parametrize("replays", [1, 2, 3])
def test_a_batch_is_replayed_with_the_same_shifts_and_all_are_shown_in_as_many_epochs(
    replays, blobs, tmp_path, monkeypatch
):
    """On numbered pictures: a batch stands still for `replays` steps, a pass through all takes as many epochs."""
    pictures = torch.arange(240, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    numbered = utils.Split(pictures, blobs.train.labels[:240], blobs.classes, "numbered")
    shown, real = [], steps.train_step
    monkeypatch.setattr(steps, "train_step", lambda s, x, *rest: shown.append(x) or real(s, x, *rest))
    recipe = replace(RECIPE, batch_size=24, epochs=2 * replays, defence=Free(replays=replays))
    go(replace(blobs, train=numbered), tmp_path / "run", recipe)
    assert len(shown) == 20 * replays
    batches = shown[::replays]
    assert all(torch.equal(images, batches[step // replays]) for step, images in enumerate(shown))
    for once in (batches[:10], batches[10:]):
        numbers = [(255 * image.max()).round().int() for image in torch.cat(once)]
        assert sorted(map(int, numbers)) == list(range(240))
    assert not any(torch.equal(one, other) for one, other in zip(batches[:10], batches[10:], strict=True))


def test_another_run_is_refused_and_nothing_is_lost(blobs, tmp_path):
    first = go(blobs, tmp_path / "run")
    files = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    other = replace(RECIPE, learning_rate=0.3, defence=Adversarial(PGD(steps=5)))
    with pytest.raises(RunRefused) as caught:
        go(blobs, tmp_path / "run", other)
    message = str(caught.value)
    assert "recipe.learning_rate: 0.2 in the folder, 0.3 asked" in message
    assert "recipe.defence.attack.steps: 2 in the folder, 5 asked" in message
    assert "epochs" not in message
    with pytest.raises(RunRefused, match="initial_weights"):
        go(blobs, tmp_path / "run", network=small_network(1))
    with pytest.raises(RunRefused, match=r"data\.name"):
        go(replace(blobs, provenance={"name": "others"}), tmp_path / "run")
    assert files == {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert weights(go(blobs, tmp_path / "run")) == weights(first)


@pytest.mark.parametrize("change", ["dropout", "frozen", "rates"])
def test_what_the_weights_do_not_show_counts_too(blobs, tmp_path, change):
    go(blobs, tmp_path / "run")
    network = small_network()
    if change == "dropout":
        network[3].p = 0.5
    elif change == "frozen":
        network[0].requires_grad_(False)
    else:
        network.rates = {"0": 0.1}
    with pytest.raises(RunRefused, match="structure"):
        go(blobs, tmp_path / "run", network=network)


class Counting(nn.Module):
    """It counts its calls, in an attribute or a buffer."""

    def __init__(self, name, persistent=None):
        super().__init__()
        self.network, self.name = small_network(), name
        if persistent is None:
            setattr(self, name, 0)
        else:
            self.register_buffer(name, torch.zeros((), dtype=torch.long), persistent)

    def forward(self, images):
        setattr(self, self.name, getattr(self, self.name) + 1)
        return self.network(images)


@pytest.mark.parametrize(
    ("counts", "message", "remedy"),
    [
        (("calls",), r"structure: .* a count, .* name begins with _", ("_calls",)),
        (("calls", True), r"initial_weights: .* a count, .* persistent=False", ("calls", False)),
    ],
    ids=["attribute", "buffer"],
)
def test_a_network_that_counts_its_calls_is_told_where(blobs, tmp_path, counts, message, remedy):
    recipe = replace(RECIPE, epochs=1, defence=Standard())
    for number, network in enumerate((Counting(*counts), Counting(*remedy))):
        go(blobs, tmp_path / f"run {number}", recipe, network)
        network.eval()(torch.zeros(1, 3, 8, 8))
        with pytest.raises(RunRefused, match=message) if number == 0 else nullcontext():
            go(blobs, tmp_path / f"run {number}", recipe, network)


class With(nn.Module):
    """A network with something that no weight tells of."""

    def __init__(self, something):
        super().__init__()
        self.network, self.something = small_network(), something

    def forward(self, images):
        return self.network(images)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(3), torch.ones(3)),
        ([0.0, 1.0], [0.0, 2.0]),
        ({"a": 1}, {"a": 2}),
        (np.float32(1), np.float32(5)),
        (nn.functional.relu, nn.functional.gelu),
        (functools.partial(nn.functional.leaky_relu, negative_slope=0.1), functools.partial(nn.functional.relu)),
        (lambda x: x, lambda x: x + 1),
    ],
    ids=["tensor", "list", "dictionary", "numpy", "function", "partial", "lambda"],
)
def test_what_a_network_of_ones_own_holds_beside_weights_makes_another_run(one, other):
    assert structure(With(one)) == structure(With(one)) != structure(With(other))


def test_a_hook_makes_another_run():
    plain, hooked, other = (models.build("resnet18", 4, width=4) for _ in range(3))
    before = structure(hooked)
    hooked.register_forward_pre_hook(lambda module, inputs: (inputs[0] / 2,))
    other.register_forward_pre_hook(lambda module, inputs: (inputs[0] / 4,))
    assert structure(plain) == before
    assert len({before, structure(hooked), structure(other)}) == 3


def test_an_attribute_of_a_defence_that_is_no_field_makes_another_run():
    class Mine(Standard):
        def __init__(self, factor):
            object.__setattr__(self, "factor", factor)

        @functools.cached_property
        def twice(self):
            return 2 * self.factor

    one = Mine(1)
    before = as_dict(one)
    assert one.twice == 2
    assert as_dict(one) == before == as_dict(Mine(1)) != as_dict(Mine(9))


def test_pictures_that_are_not_mirrored_make_another_run(blobs):
    network, recipe = small_network(), replace(RECIPE, epochs=1)
    data = blobs.to("cpu")
    before = identity_of(network, data, recipe)
    data.train.mirror = False
    assert identity_of(network, data, recipe) != before
    assert "mirror" not in before["data"]  # as it was when nothing else could be


def test_more_outputs_than_classes_are_said_once(blobs, tmp_path, caplog):
    recipe = replace(RECIPE, epochs=1, defence=Standard())
    go(blobs, tmp_path / "more", recipe, small_network(classes=6))
    assert caplog.text.count("more: the network has 6 outputs for 4 classes: adapt()") == 1
    assert caplog.text.count("outputs for") == 1
    go(blobs, tmp_path / "as many", recipe)
    assert caplog.text.count("outputs for") == 1
    with pytest.raises(ValueError, match="another data set"):
        go(blobs, tmp_path / "fewer", recipe, small_network(classes=3))


def test_a_folder_in_which_nothing_was_trained_is_given_to_whoever_asks(blobs, tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "train_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        go(blobs, tmp_path / "run", replace(RECIPE, learning_rate=0.3))
    monkeypatch.undo()
    assert len(go(blobs, tmp_path / "run").history) == 3


def test_weights_without_a_recipe_are_refused(blobs, tmp_path):
    run = go(blobs, tmp_path / "run")
    (run.folder / "recipe.json").unlink()
    with pytest.raises(RunRefused, match="no recipe"):
        go(blobs, tmp_path / "run")


def test_weights_of_another_run_are_refused(blobs, tmp_path):
    run, other = go(blobs, tmp_path / "run"), go(blobs, tmp_path / "other", replace(RECIPE, seed=1))
    shutil.copy(other.folder / "weights.safetensors", run.folder / "weights.safetensors")
    tensors = load_file(run.folder / "weights.safetensors")
    save_file(tensors, run.folder / "weights.safetensors", metadata={"weights": weights(run)})
    with pytest.raises(RunDamaged, match="other weights than this run wrote"):
        go(blobs, tmp_path / "run")


def test_two_processes_do_not_train_in_one_folder(blobs, tmp_path):
    run = RunFolder(tmp_path / "run")
    with run.locked(), pytest.raises(Held, match=f"being trained by process {os.getpid()} on .* since 20"):
        go(blobs, tmp_path / "run")
    go(blobs, tmp_path / "run")


def test_what_a_killed_process_left_is_cleared(blobs, tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("last.partial.pt", "best.partial.safetensors", "recipe.partial.json"):
        (tmp_path / "run" / f".{name}").write_bytes(b"half")
    run = go(blobs, tmp_path / "run")
    assert not [path for path in run.folder.iterdir() if "partial" in path.name]


def test_a_defence_that_cannot_be_written_down_is_refused(blobs, tmp_path):
    class Mine:
        loss = Standard.loss

    with pytest.raises(TypeError, match="make Mine a frozen dataclass"):
        go(blobs, tmp_path / "run", replace(RECIPE, defence=Mine()))


def test_a_model_for_fewer_classes_is_refused_before_anything_is_written(blobs, tmp_path):
    with pytest.raises(ValueError, match=r"logits of shape \(2, 3\) for 2 pictures of 4 classes"):
        go(blobs, tmp_path / "run", network=small_network(classes=3))
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run(blobs, tmp_path):
    class Exploding(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small_network()
            self.calls = 0

        def forward(self, images):
            self.calls += self.training
            return self.inner(images) * (float("nan") if self.calls > 12 else 1)

    recipe = replace(RECIPE, defence=Standard())
    with pytest.raises(TrainingDiverged, match=r"loss is nan at step 12 of 24 \(epoch 2, learning rate 0.1"):
        go(blobs, tmp_path / "run", recipe, Exploding())
    kept = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert kept["step"] == 8
    assert all(torch.isfinite(value).all() for value in kept["model"].values())


def test_weights_broken_by_the_last_update_are_not_saved(blobs, tmp_path, monkeypatch):
    real = steps.train_step

    def break_at_end(state, *rest):
        result = real(state, *rest)
        if state.step == 15:
            with torch.no_grad():
                state.model[6].bias.fill_(float("nan"))
        return result

    monkeypatch.setattr(steps, "train_step", break_at_end)
    with pytest.raises(TrainingDiverged, match="the validation loss is nan at step 16"):
        go(blobs, tmp_path / "run")
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"] == 8


def test_the_folder_holds_what_is_promised(blobs, tmp_path):
    run = go(blobs, tmp_path / "run")
    names = {path.name.split(".")[0] for path in run.folder.iterdir()}
    assert names == {"recipe", "environment", "history", "events", "best", "weights", ""}  # "": the lock
    recipe = json.loads((run.folder / "recipe.json").read_text())
    assert recipe["recipe"]["defence"]["attack"] == {
        "kind": "PGD",
        "eps": 8 / 255,
        "step_size": 2 / 255,
        "steps": 2,
        "restarts": 1,
        "random_start": True,
        "norm": "Linf",
    }
    environment = json.loads((run.folder / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert environment["precision"] in ("float32", "bfloat16")  # what "auto" has chosen
    assert list(run.history["epoch"]) == [1, 2, 3]
    assert run.history["lr"].iloc[-1] < 0.02


@pytest.mark.parametrize("back", [0, 3600, 10**8], ids=["now", "an hour back", "years back"])
def test_tensorboard_shows_one_run_with_straight_curves(blobs, tmp_path, monkeypatch, back, uninterrupted):
    """Broken off twice, also where the clock is set back each time: the same weights, and curves without loops."""
    real, now = steps.train_step, time.time

    def stop_at(state, *rest):
        if state.step in stops:
            stops.remove(state.step)
            os.kill(os.getpid(), signal.SIGINT)
        return real(state, *rest)

    stops = [12, 20]
    monkeypatch.setattr(steps, "train_step", stop_at)
    for times in range(2):
        monkeypatch.setattr(time, "time", lambda times=times: now() - times * back)
        with pytest.raises(KeyboardInterrupt):
            go(blobs, tmp_path / "run")
    monkeypatch.setattr(time, "time", lambda: now() - 2 * back)
    run = go(blobs, tmp_path / "run")
    assert weights(run) == weights(uninterrupted)
    assert not [path for path in run.folder.rglob("*") if path.is_dir()]  # sub-folders would be phantom runs
    events = EventAccumulator(str(run.folder), size_guidance={"scalars": 0, "images": 0}).Reload()
    tags = events.Tags()
    assert set(SCALARS) <= set(tags["scalars"])
    for tag in SCALARS:
        assert [event.step for event in events.Scalars(tag)] == [1, 2, 3]
    assert [e.value for e in events.Scalars("accuracy/clean")] == pytest.approx(
        list(run.history["accuracy/clean"])
    )
    for kind in ("clean", "adversarial", "perturbation"):
        assert any(tag.startswith(f"examples/{kind}") for tag in tags["images"])
    assert "recipe/text_summary" in tags["tensors"]
    assert "_hparams_/experiment" in events.summary_metadata


def test_frozen_weights_stay(blobs, tmp_path):
    network = small_network()
    network[0].requires_grad_(False)
    run = go(blobs, tmp_path / "run", network=network)
    assert torch.equal(run.model[0].weight, network[0].weight)
    assert not torch.equal(run.model[6].weight, network[6].weight)


def test_sgd_is_that_of_the_textbook(blobs, tmp_path):
    """Two epochs against a plain loop: the same batches, the same schedule, float32."""
    recipe = Recipe(
        epochs=2, batch_size=64, learning_rate=0.1, augment=False, precision="float32", validation_images=8
    )
    network = small_network()
    network[3].p = 0.0
    run = go(blobs, tmp_path / "run", recipe, network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    network.train()
    for step in range(8):
        order = blobs.train.shuffled(64, derive_seed(0, 0, step // 4))
        images, labels = blobs.train.batch(order[step % 4])
        progress = step / 8
        optimizer.param_groups[0]["lr"] = 0.1 * (progress / 0.2 if progress < 0.2 else (1 - progress) / 0.8)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    for ours, plain in zip(run.model.parameters(), network.parameters(), strict=True):
        assert torch.allclose(ours, plain, atol=1e-5)


def test_a_batch_larger_than_the_data_is_refused_before_anything_is_written(blobs, tmp_path):
    with pytest.raises(ValueError, match="only 256 training pictures"):
        go(blobs, tmp_path / "run", replace(RECIPE, batch_size=1000))
    assert not (tmp_path / "run").exists()


ANY_SIZE = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def test_pictures_are_small_for_the_first_half(blobs, tmp_path, monkeypatch):
    shown, real = [], steps.train_step
    monkeypatch.setattr(steps, "train_step", lambda s, x, *rest: shown.append(x) or real(s, x, *rest))
    recipe = replace(RECIPE, augment=False)
    small = go(blobs, tmp_path / "small", replace(recipe, low_resolution=4), ANY_SIZE)
    assert [tuple(images.shape[2:]) for images in shown] == [(4, 4)] * 12 + [(8, 8)] * 12
    plain = go(blobs, tmp_path / "plain", recipe, ANY_SIZE)
    assert weights(plain) != weights(small)
    for low, full in zip(shown[:12], shown[24:36], strict=True):  # the same pictures, averaged over 2 x 2 pixels
        assert torch.allclose(low, full.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)), atol=1e-6)


@pytest.mark.parametrize(
    ("side", "message"),
    [(4, r"cannot take pictures of 4 x 4 pixels \(.*mat1 .*resnet18"), (8, "have 8 pixels a side already")],
)
def test_a_low_resolution_that_does_not_fit_is_refused_before_anything_is_written(side, message, blobs, tmp_path):
    with pytest.raises(ValueError, match=f"low_resolution={side}: .*{message}"):
        go(blobs, tmp_path / "run", replace(RECIPE, low_resolution=side))
    assert not (tmp_path / "run").exists()


def test_the_best_epoch_is_kept_beside_the_last(blobs, tmp_path, monkeypatch):
    ranks = iter([(0.1, 0.5), (0.3, 0.6), (0.3, 0.6), (0.3, 0.4)])
    seen = []
    monkeypatch.setattr(
        trainer,
        "validate",
        lambda state, split: seen.append(fingerprint(state.model)) or (1.0, *next(ranks)[::-1], None),
    )
    recipe = replace(RECIPE, epochs=4, defence=Standard())  # whose validation nothing else looks at
    run = go(blobs, tmp_path / "run", recipe)
    assert run.best_epoch == 2  # the earliest of equals
    assert fingerprint(run.best_model()) == seen[1] != seen[3] == weights(run)
    assert weights(run) == fingerprint(go(blobs, tmp_path / "run", recipe).model)
    run.history.loc[3, "accuracy/robust"] = 0.9  # as if the epoch had been done again, with another outcome
    with pytest.raises(RunDamaged, match=r"is of epoch 2, but by history\.csv epoch 4 is the best"):
        run.best_model()
    (run.folder / "best.safetensors").write_bytes(b"half")
    with pytest.raises(RunDamaged, match=r"best\.safetensors is damaged.* Delete the run's folder"):
        run.best_model()


def test_a_run_whose_folder_holds_another_one_by_now_says_so(blobs, tmp_path):
    first = go(blobs, tmp_path / "run", replace(RECIPE, epochs=1))
    assert first.settings["recipe"]["seed"] == 0
    shutil.rmtree(tmp_path / "run")
    second = go(blobs, tmp_path / "run", replace(RECIPE, epochs=1, seed=7))
    assert second.best_model() is not None
    for ask in (first.best_model, lambda: first.settings):
        with pytest.raises(RunDamaged, match="holds another run by now"):
            ask()


class Dark(Split):
    """The user's own."""

    def batch(self, indices, generator=None, augment=False):
        images, labels = super().batch(indices, generator, augment)
        return images / 2, labels


def test_batches_of_ones_own_make_another_run(blobs):
    dark = Dark(blobs.train.images, blobs.train.labels, blobs.classes, blobs.train.name)
    plain, own = (
        identity_of(small_network(), replace(blobs, train=train), RECIPE)["data"] for train in (blobs.train, dark)
    )
    assert "code" not in plain
    assert own == plain | {"code": own["code"]}
    dark.strength = 0.5
    stronger = identity_of(small_network(), replace(blobs, train=dark), RECIPE)["data"]
    assert stronger["code"] != own["code"]


def test_functions_in_and_on_layers_of_libraries_count(monkeypatch):
    def made(activation):
        return nn.TransformerEncoderLayer(16, 2, 32, activation=activation)

    functions = (nn.functional.silu, nn.functional.leaky_relu, functools.partial(nn.functional.leaky_relu, a=0.3))
    found = [structure(made(function)) for function in (*functions, torch.neg, lambda x: x / 2)]
    assert len({*found}) == 5
    assert structure(made(nn.functional.silu)) == found[0]
    network = small_network()
    before = structure(network)
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: x.clamp(0, 0.2))
    assert structure(network) != before


def test_nan_is_no_difference():
    assert not list(differences({"a": math.nan}, {"a": math.nan}))
    assert list(differences({"a": math.nan}, {"a": 1.0}))


def test_what_the_copy_that_is_trained_would_not_have_is_refused(blobs, tmp_path):
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match=r"inside torch\.autocast"):
        go(blobs, tmp_path / "run", RECIPE)
    model = small_network()
    next(model.parameters()).register_hook(lambda gradient: 0 * gradient)
    with pytest.raises(ValueError, match="has a hook on its gradient"):
        train(model, blobs, RECIPE, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study's folder below the folder of all runs."""
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs" / "smoke-blobs"


LENET = replace(RECIPE, epochs=1, defence=Standard())


@pytest.fixture
def few(shapes):
    return replace(shapes, train=shapes.train.first(64), val=shapes.val.first(16))


def lenet(few, folder, recipe=LENET):
    return train(models.build("shallow_cnn", 10), few, recipe, folder, progress=False)


def test_what_one_notebook_trained_another_takes_over(few, study, monkeypatch):
    first = lenet(few, study / "01" / "plain")
    other = lenet(few, study / "01" / "other", replace(LENET, seed=1))
    monkeypatch.setattr(steps, "train_step", lambda *_: pytest.fail("trained again"))
    shared = lenet(few, study / "02" / "by-another-name")
    assert weights(shared) == weights(first) != weights(other)
    pd.testing.assert_frame_equal(shared.history, first.history)
    assert fingerprint(shared.best_model()) == fingerprint(first.best_model())
    assert json.loads((shared.folder / "environment.json").read_text())["same_run_as"] == "01/plain"
    # It is a run of its own from then on: asked again, loaded; the first deleted, still there.
    shutil.rmtree(first.folder)
    assert weights(lenet(few, study / "02" / "by-another-name")) == weights(first)


def test_what_was_begun_gives_way_to_the_same_run_that_is_finished(few, study, monkeypatch):
    longer = replace(LENET, epochs=3)

    def power_cut(state, data, run, *rest, real=trainer._close_epoch):
        real(state, data, run, *rest)
        if state.epoch == 2:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_close_epoch", power_cut)
        with pytest.raises(InterruptedError):
            lenet(few, study / "02" / "begun", longer)
    first = lenet(few, study / "01" / "plain", longer)
    monkeypatch.setattr(steps, "train_step", lambda *_: pytest.fail("trained again"))
    taken = lenet(few, study / "02" / "begun", longer)
    assert weights(taken) == weights(first)
    assert sorted(path.name for path in taken.folder.iterdir() if path.name != ".lock") == sorted(
        path.name for path in first.folder.iterdir() if path.name != ".lock"
    )


def test_the_same_run_at_the_same_time_is_waited_for_or_put_off(few, study):
    """As a notebook, or as one of the tasks of a scheduler."""
    model, folder = models.build("shallow_cnn", 10), study / "02" / "run"
    identity = trainer.identity_of(model, few, LENET)
    there = RunFolder(study / "01" / "run")
    there.claim(identity, torch.device("cpu"))
    with there.alone_in_its_study(model, wait=False):
        with pytest.raises(Held, match=r"this run is being trained in .*01/run by process"):
            trainer.train_here(Packed(model), few, LENET, folder, identity, progress=False)
        notebook = threading.Thread(target=lenet, args=(few, folder))
        notebook.start()
        notebook.join(2)
        assert notebook.is_alive()
    notebook.join()
    assert RunFolder(folder).finished


@pytest.mark.parametrize("what", ["another study", "unfinished", "damaged", "other weights"])
def test_only_sound_finished_runs_of_the_same_study_are_shared(few, study, what):
    there = study.parent / "full-blobs" if what == "another study" else study
    first = lenet(few, there / "01" / "plain")
    file = first.folder / "weights.safetensors"
    if what == "unfinished":
        file.unlink()
    elif what == "damaged":
        file.write_bytes(b"half")
    elif what == "other weights":
        save_file({name: value + 1 for name, value in load_file(file).items()}, file, {"weights": weights(first)})
    assert weights(lenet(few, study / "02" / "run")) == weights(first)
    assert "same_run_as" not in json.loads((study / "02" / "run" / "environment.json").read_text())


def test_networks_built_by_hand_are_not_shared(blobs, study):
    go(blobs, study / "01" / "plain")
    again = go(blobs, study / "02" / "plain")
    assert "same_run_as" not in json.loads((again.folder / "environment.json").read_text())


def test_no_step_waits_for_the_device(blobs, tmp_path, monkeypatch):
    """Losses are read when half a second has gone by, which it never has here, and at the end of an epoch."""
    read, real = [], trainer._check_losses
    monkeypatch.setattr(trainer, "_check_losses", lambda *rest: read.append(rest[2:]) or real(*rest))
    monkeypatch.setattr(time, "perf_counter", lambda: 0.0)
    go(blobs, tmp_path / "run", replace(RECIPE, defence=Free(replays=2)))
    assert read == [(0, 8)] * 3


def test_a_long_run_says_beforehand_what_it_will_cost(blobs, tmp_path, monkeypatch, caplog, uninterrupted):
    monkeypatch.setattr(trainer, "LONG", 10)
    monkeypatch.setattr(logging.getLogger("study"), "propagate", True)
    with caplog.at_level("INFO", "study"):
        run = go(blobs, tmp_path / "run")
    assert re.search(
        r"run: 24 steps of [\d.e-]+ s \(32 pictures each\) .* \d+ s, .* peak memory \d+ MB", caplog.text
    )
    assert weights(run) == weights(uninterrupted)  # the trial leaves no trace


# --- numbers that are none, or too large, or too few ---------------------------------------------------

SHORT = Recipe(epochs=2, batch_size=32, validation_images=16, learning_rate=0.05)
DEFENCES = {"standard": Standard(), "adversarial": Adversarial(PGD(steps=2))}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("defence", DEFENCES)
@pytest.mark.parametrize("broken", BROKEN)
def test_training_ends_before_anything_broken_is_saved(broken, defence, precision, blobs, tmp_path):
    recipe = replace(SHORT, defence=DEFENCES[defence], precision=precision)
    with pytest.raises(TrainingDiverged, match=r"(nan|inf) at step \d+ of 16"):
        train(BROKEN[broken](), blobs, recipe, tmp_path / "run", progress=False)
    assert not list(tmp_path.glob("run/*.safetensors"))
    assert not (tmp_path / "run" / "last.pt").exists()


def test_weights_that_are_broken_from_the_start_are_not_blamed_on_the_learning_rate(blobs, tmp_path):
    with pytest.raises(TrainingDiverged, match="the initial weights or the model's own arithmetic are broken"):
        train(broken_weights(math.nan), blobs, SHORT, tmp_path / "run", progress=False)


@pytest.mark.parametrize("rate", [1e4, 1e7, 1e12, 1e30])
def test_a_loss_that_explodes_is_named_with_its_step(rate, blobs, tmp_path):
    with pytest.raises(TrainingDiverged, match=r"step \d+ of 16 .*learning rate"):
        train(small_network(), blobs, replace(SHORT, learning_rate=rate), tmp_path / "run", progress=False)


def test_one_class_alone_is_learned_and_marked(blobs, tmp_path):
    one = small_split(64, torch.zeros(64, dtype=torch.int64))
    run = train(small_network(), replace(blobs, train=one, val=one), SHORT, tmp_path / "run", progress=False)
    assert run.history["accuracy/clean"].iloc[-1] == 1
    scores = trainer.test(run.model, one, [FGSM(), PGD(steps=4)], progress=False)
    assert scores.verdict() == "suspect"  # these pictures cannot tell whether it has learned anything
    assert "all pictures are of one class" in str(scores)


@pytest.mark.parametrize(("pictures", "batch"), [(1, 1), (3, 1), (3, 2), (5, 5)])
def test_very_small_data_is_trained_on(pictures, batch, tmp_path):
    split = small_split(pictures)
    data = Data("few", split, split, split, split.classes, {"name": "few"})
    recipe = replace(SHORT, batch_size=batch, defence=DEFENCES["adversarial"])
    run = train(small_network(), data, recipe, tmp_path / "run", progress=False)
    assert run.history["loss/train"].notna().all()


def test_more_classes_than_pictures(tmp_path):
    split = small_split(5, classes=10)
    data = Data("few", split, split, split, split.classes, {"name": "few"})
    run = train(small_network(classes=10), data, replace(SHORT, batch_size=2), tmp_path / "run", progress=False)
    scores = trainer.test(run.model, split, [AutoAttack(steps=2, queries=4)], progress=False)
    assert scores.n == 5
