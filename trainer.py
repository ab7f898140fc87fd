"""train(): a model, data and a recipe become a run folder. test() stands in evaluation/ and is here by name.

    run = train(model, data, Recipe(epochs=10, defence=Adversarial(PGD())), folder)
    scores = test(run.model, data.test, [FGSM(), PGD(steps=20)])

Whatever decides a run is in its recipe, its initial weights and its data. All randomness is derived from
the recipe's seed and the number of the step, so a run that was broken off goes on to the same weights.
"""

import copy
import functools
import logging
import math
import time
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from evaluation.testing import test
from evaluation.transfer_attack import transfer_attack
from loaders import Data
from models import copied
from models.low_rank import Packed
from models.model import check_is_module
from processes import child_processes, data_parallel
from processes.machine import own_device, prepare, ran_out_of_memory
from processes.seeds import derive_seed, seed_global
from processes.stopping import Stop
from storage.atomic_files import read_json
from training import catastrophic_overfitting, refusals, step
from training.identity import identity_of
from training.recipe import Recipe
from training.rehearsal import rehearse
from training.run_folder import Onlooker, RunDamaged, RunFolder, SameRunHeld
from training.tensorboard_log import Curves
from training.validation import examples, validate

log = logging.getLogger("study")

__all__ = ["Recipe", "Run", "TrainingDiverged", "test", "train", "transfer_attack"]

LONG = 200  # steps from which a run is worth a rehearsal, which tells what it will cost, on the CPU too


class TrainingDiverged(RuntimeError):
    """The loss is no longer finite; the message names the step, and the last good checkpoint is kept."""


@dataclass
class Run:
    """A finished run: the trained model in eval mode, its folder, its history with a row an epoch."""

    model: torch.nn.Module
    folder: Path
    history: pd.DataFrame

    def __post_init__(self):
        self._identity = RunFolder(self.folder).identity

    @property
    def settings(self):
        """What recipe.json says. Raises RunDamaged where the folder holds another run by now."""
        return read_json(self._own_folder().path / "recipe.json")

    def _own_folder(self):
        folder = RunFolder(self.folder)
        if folder.identity != self._identity:
            raise RunDamaged(
                f"{self.folder} holds another run by now, trained after this one: take the Run of that"
            )
        return folder

    @property
    def best_epoch(self):
        """The epoch, from 1, with the highest robust accuracy on the validation split (then the highest clean)."""
        return _best_epoch(self.history.to_dict("records"))

    def best_model(self):
        """A copy of the model with the weights after the best epoch. Raises RunDamaged where they are gone."""
        model = copied(self.model)
        self._own_folder().load_best(model, self.best_epoch)
        return model.eval()

    def __repr__(self):
        if not len(self.history):
            return f"Run({self.folder.name}: no history, so it was not trained here)"
        last = self.history.iloc[-1]
        mishaps = f", rescued from a collapse in epoch {last['rescued']:.0f}" if "rescued" in last else ""
        mishaps += f", ENDED by another in epoch {last['ended']:.0f}" if "ended" in last else ""
        return (
            f"Run({self.folder.name}: {len(self.history)} epochs, {self.history['time/epoch_s'].sum():.0f} s, "
            f"validation {100 * last['accuracy/clean']:.1f} % clean, {100 * last['accuracy/robust']:.1f} % robust"
            f"{mishaps})"
        )


@torch.inference_mode(False)
@torch.enable_grad()  # whatever the caller is in
def train(model, data, recipe, folder, *, processes=None, progress=True):
    """Train a copy of `model` on data.train as the recipe says; returns a Run. `model` stays as it was.

    Safe to call again: a finished run is loaded, a broken one goes on from its last checkpoint to the
    weights that it would have reached: on the CPU, with as many threads, bit for bit, elsewhere up to the order of
    additions. Training with a single step is rescued where it collapses. Raises RunRefused where the folder holds
    another run, Held where another process trains in it, RunDamaged for files that cannot be used, NotWritten
    where the disk does not take them, ValueError for a model that does not fit the data, TrainingDiverged when the
    loss is not finite. Stopped, it saves and raises KeyboardInterrupt, or SystemExit with code 75 after SIGTERM.

    `processes="all"` trains on all GPUs of this machine, a number on so many of them (without any: in so many
    processes), to the same weights up to the order of additions. The batch size of the recipe is that of all
    together. A script that torchrun has started, on one machine or several, needs nothing more than this call in
    each process.
    """
    if not isinstance(data, Data):
        raise TypeError(
            f"the data are a {type(data).__name__}: Data is needed, with its three splits; loaders.from_dataset "
            "makes it of a Dataset"
        )
    check_is_module(model)
    device = data.train.labels.device
    data_parallel.join(device)
    refusals.check_for_hooks(model)
    identity = identity_of(model, data, recipe)
    model = copied(model).to(device)
    data_parallel.spread(model)
    refusals.check(model, data, recipe, Path(folder).name)
    several = 1 if processes is None or data_parallel.world() > 1 else child_processes.count(processes, device)
    if several > 1 and not RunFolder(folder).finished:
        job = Packed(model), data.to("cpu"), recipe, RunFolder(folder).path.resolve(), identity
        try:
            child_processes.run(functools.partial(train_here, *job, device.type, wait=True), several, progress)
        except KeyboardInterrupt:  # they have saved
            raise KeyboardInterrupt(f"{Path(folder).name}: stopped; the same again goes on from there") from None
    return _load_or_train(model, data, recipe, folder, identity, progress)


def train_here(model, data, recipe, folder, identity, kind="auto", wait=False, *, progress=False):
    """For processes that another one has started: train what came from there (Packed) on their own device.

    Where the same run is being trained in another folder of the study: wait, or raise SameRunHeld.
    """
    device = own_device(kind)
    prepare(device)
    model = model.unpacked(device)
    _load_or_train(model, data.to(device), recipe, folder, identity, progress, wait)


def _load_or_train(model, data, recipe, folder, identity, progress, wait=True):
    device = data.train.labels.device
    run = RunFolder(folder) if data_parallel.leads() else Onlooker(folder)
    alone, finished = data_parallel.world() == 1, False
    while not finished:
        with ExitStack() as held:
            try:
                finished, elsewhere = data_parallel.from_first(
                    _claim, run, identity, model, device, held, wait and alone
                )
            except SameRunHeld:
                if alone or not wait:
                    raise
                time.sleep(2)  # several processes wait together
                continue
            if not finished:
                return _train(model, data, recipe, run, device, progress)
    data_parallel.from_first(run.load_result, model)
    data_parallel.spread(model)
    source = f" (the same run as {elsewhere})" if elsewhere else ""
    log.info("%s is finished: loaded, not trained again%s", run.path.name, source)
    return Run(model.eval(), run.path, data_parallel.from_first(run.load_history))


def _claim(run, identity, model, device, held, wait):
    """Make the folder this run's, held while it trains. Is it finished, and from where was it taken over?"""
    if run.finished:  # it is read only, so it needs no lock
        run.claim(identity, device)
        return True, None
    held.enter_context(run.locked())
    run.claim(identity, device)
    held.enter_context(run.alone_in_its_study(model, wait))
    elsewhere = run.copy_finished_twin(model)
    return run.finished, elsewhere


def _train(model, data, recipe, run, device, progress):
    if data_parallel.leads():
        data.warn_of_leak()
    steps = len(data.train) // recipe.batch_size
    state = step.State(model, recipe, steps, device, run.path.name)
    state.resume(run)
    if state.saved is None:
        if state.guarded:
            state.checkpoint(good=True)
        run.note(precision=state.precision)
    step.use_features(state, data, run)
    with Stop() as stop, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if state.features is None and (device.type == "cuda" or (state.step == 0 and state.total >= LONG)):
            rehearse(state, data, run)
        leads = data_parallel.leads()
        curves = Curves(run.path, recipe, state.epoch) if leads else None
        kind, hidden = progress if callable(progress) else tqdm, not (progress and leads)
        bar = kind(total=state.total, initial=state.step, desc=run.path.name, disable=hidden, unit="step")
        with bar, closing(curves) if leads else nullcontext(), run.beside:
            while not state.ended and (state.step < state.total or len(state.history) < recipe.epochs):
                _one_epoch(state, data, run, stop, bar)
                _close_epoch(state, data, run, curves, bar)
                _agreed(stop)
                if stop.requested and state.step < state.total and not state.ended:
                    _save_and_leave(state, run, stop)
        result = state.result().eval()
        if state.best is not None:
            run.save_best(*state.best)
        run.save_history(state.history)  # what was found, whatever happened to the file meanwhile
        run.finish(result, {"precision": state.precision, "parts": state.parts})
    return Run(result, run.path, data_parallel.from_first(run.load_history))


def _agreed(stop, due=False):
    """Is something due on any process? What one of them was asked to, all are."""
    asked, due = data_parallel.largest(stop.requested, due)
    stop.requested = stop.requested or asked or None  # it may have been asked in between
    return due


def _save_and_leave(state, run, stop):
    run.beside.wait()
    if state.saved != state.step:
        _save(state, run)
    where = f"epoch {state.epoch + 1} of {state.recipe.epochs}, step {state.step} of {state.total}"
    stop.leave(f"{run.path.name}: stopped in {where}; saved. The same again goes on from there")


def _save(state, run):
    run.save_epoch(state.checkpoint(), state.best)
    state.best, state.saved = None, state.step


def _one_epoch(state, data, run, stop, bar):
    """The steps of the epoch that are still to be done."""
    recipe = state.recipe
    replays = getattr(state.defence, "replays", 1)  # steps in a row that show the same batch
    passes = state.epoch // replays  # through all pictures, done before
    order = data.train.shuffled(recipe.batch_size, derive_seed(recipe.seed, 0, passes))
    state.model.train()
    begun = shown = time.perf_counter()
    before, checked = state.seconds, 0
    for index in range(state.step - state.epoch * state.steps, state.steps):
        number = state.step // replays  # of the batch
        state.generator.manual_seed(derive_seed(recipe.seed, 1, number))
        with data_parallel.sharing(recipe.batch_size) as mine:
            images, labels = step.batch(state, data, order[number - passes * state.steps][mine])
            seed_global(derive_seed(recipe.seed, 1, state.step, *data_parallel.number()), state.device)
            state.losses[index], state.hits[index] = _step(state, run, images, labels)
        state.step += 1
        state.seconds = before + time.perf_counter() - begun
        # Reading a loss waits for the device, so it is done now and then, not at each step.
        last = index + 1 == state.steps
        due = _agreed(stop, last or time.perf_counter() - shown > 0.5)
        if due or stop.requested:
            _check_losses(state, run, checked, index + 1)
            bar.set_postfix(loss=f"{state.losses[index]:.3f}", refresh=False, **_latest(state))
            bar.update(state.step - bar.n)
            checked, shown = index + 1, time.perf_counter()
        if stop.requested and not last:
            _save_and_leave(state, run, stop)


def _step(state, run, images, labels):
    try:
        return step.train_step(state, images, labels)
    except RuntimeError as error:
        if ran_out_of_memory(error):
            error.add_note(
                f"{run.path.name}: the memory was enough before; does something else use the device now? "
                "The same again goes on from the last checkpoint"
            )
        raise


def _close_epoch(state, data, run, curves, bar):
    """Validate and write the curves; the files of the run are written beside the next epochs.

    Where these are over sooner, theirs are left out: training does not wait for the disk.
    """
    recipe, epoch = state.recipe, state.epoch
    loss, clean, robust, stuck = validate(state, data.val)
    if not math.isfinite(loss):  # the last update can break the weights after the last loss was fine
        _diverged(state, run, f"the validation loss is {loss}", state.step)
    if stuck:
        log.warning("%s: %s", run.path.name, stuck)
    fgsm, collapse = catastrophic_overfitting.look(state, data.val, robust)
    if collapse is not None:
        run.beside.wait()
        _rescue(state, run, collapse.message)
        return
    row = {
        "epoch": epoch + 1,
        "loss/train": float(state.losses.mean()),
        "loss/val": loss,
        "accuracy/train": float(state.hits.mean()),
        "accuracy/clean": clean,
        "accuracy/robust": robust,
        "lr": recipe.learning_rate_at((state.step - 1) / state.total),
        "time/epoch_s": state.seconds,
    }
    guarded = {"accuracy/fgsm": fgsm, "rescued": state.rescued}
    row |= {name: value for name, value in guarded.items() if value is not None}
    state.history.append(row)
    state.seconds = 0.0
    if curves is not None:
        curves.epoch(epoch + 1, row)
        curves.pictures(epoch + 1, *examples(state, data.val), recipe.validation_attack.eps)
    if _best_epoch(state.history) == state.epoch:
        state.best = copied(state.result()).cpu(), state.epoch
    (busy,) = data_parallel.largest(run.beside.busy)
    if state.guarded or not busy:
        checkpoint = state.checkpoint(good=state.guarded)
    if not busy:
        run.beside(run.save_epoch, checkpoint, state.best)
        state.best, state.saved = None, state.step
    bar.set_postfix(loss=f"{row['loss/train']:.3f}", **_latest(state))


def _rescue(state, run, what):
    """After a collapse: back to the last good weights, and on with a safer defence; the second time, the end."""
    epoch, seconds, first, name = state.epoch + 1, state.seconds, state.rescued, run.path.name
    if first is not None and not state.history:
        _diverged(state, run, f"collapsed again, with {state.defence}: {what}", state.step)
    state.restore(copy.deepcopy(state.good))
    state.seconds = seconds  # the lost epoch was paid for
    state.rescued = first or epoch
    back = f"the weights after epoch {epoch - 1}" if epoch > 1 else "the initial weights"
    if first is None:
        log.warning("%s: collapsed in epoch %d: %s. On from %s, with %s", name, epoch, what, back, state.defence)
        _save(state, run)
        return
    log.error("%s: COLLAPSED AGAIN in epoch %d: %s. The run ENDS HERE, with %s", name, epoch, what, back)
    state.ended = True
    state.history[-1] |= {"rescued": first, "ended": epoch}
    state.history[-1]["time/epoch_s"] += seconds
    run.save_history(state.history)


def _best_epoch(history):
    """The epoch, from 1, of the highest validation accuracy under attack, then clean; the earliest of equals."""
    rank = [(row["accuracy/robust"], row["accuracy/clean"]) for row in history]
    return 1 + rank.index(max(rank))


def _check_losses(state, run, begin, end):
    """Raise where a loss among the given steps of this epoch is not finite."""
    broken = (~torch.isfinite(state.losses[begin:end])).nonzero()
    if len(broken):
        index = begin + int(broken[0])
        _diverged(state, run, f"the loss is {float(state.losses[index])}", state.epoch * state.steps + index)


def _diverged(state, run, what, step):
    run.beside.wait()
    rate = state.recipe.learning_rate_at(step / state.total)
    kept = "the last good checkpoint is kept" if (run.path / "last.pt").exists() else "no epoch was completed"
    where = f"step {step} of {state.total} (epoch {state.epoch + 1}, learning rate {rate:.4g})"
    remedy = "A lower learning_rate or clip_gradient=1 helps; both make another run, in a folder of its own"
    if step == 0:
        remedy = "Nothing was learned yet, so the initial weights or the model's own arithmetic are broken"
    raise TrainingDiverged(f"{run.path.name}: {what} at {where}; {kept} in {run.path}. {remedy}")


def _latest(state):
    """Validation accuracies of the last epoch, for the progress bar."""
    last = state.history[-1] if state.history else {}
    return {name: f"{100 * last[f'accuracy/{name}']:.1f}%" for name in ("clean", "robust") if last}
