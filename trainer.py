"""train(): a model, data and a recipe become a run folder. test() stands in evaluation.py and is here by name.

    run = train(model, data, Recipe(epochs=10, defence=Adversarial(PGD())), folder)
    scores = test(run.model, data.test, [FGSM(), PGD(steps=20)])

Whatever decides a run is in its recipe, its initial weights and its data. All randomness is derived from
the recipe's seed and the number of the step, so a run that was broken off goes on to the same weights.
"""

import copy
import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from attacks import PGD, Attack, evaluating
from curves import Curves
from defences import Standard
from evaluation import attacked, predict, test, transfer_attack
from models import rate_of
from runs import RunFolder, as_dict, fingerprint, structure
from stopping import Stop
from utils import derive_seed

log = logging.getLogger("study")

__all__ = ["Recipe", "Run", "TrainingDiverged", "test", "train", "transfer_attack"]

SCHEDULES = ("one_cycle", "constant")
PRECISIONS = ("auto", "bfloat16", "float32")


class TrainingDiverged(RuntimeError):
    """The loss is no longer finite; the message names the step, and the last good checkpoint is kept."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run besides the model's initial weights and the data.

    `learning_rate` is the peak: "one_cycle" climbs to it over the first `warm_up` of the training and falls
    linearly to zero. `ema` is the decay of the averaged weights (0: none); with it, the average is
    validated and returned. `precision` "auto" is bfloat16 where the device computes in it. Every epoch
    ends in a validation on the validation split; robust accuracy there is measured with
    `validation_attack` on the first `validation_images`.
    """

    epochs: int
    batch_size: int = 128
    defence: object = Standard()
    learning_rate: float = 0.1
    schedule: str = "one_cycle"
    warm_up: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    ema: float = 0.0
    label_smoothing: float = 0.0
    clip_gradient: float | None = None
    augment: bool = True
    precision: str = "auto"
    validation_attack: Attack = field(default_factory=PGD)
    validation_images: int = 1000
    seed: int = 0

    def __post_init__(self):
        def need(name, good, wanted):
            if not good(getattr(self, name)):
                raise ValueError(f"Recipe: {name}={getattr(self, name)!r}; {wanted} is needed")

        for name in ("epochs", "batch_size", "validation_images"):
            need(name, lambda v: isinstance(v, int) and v >= 1, "a whole number of at least 1")
        need("seed", lambda v: isinstance(v, int) and v >= 0, "a whole number of at least 0")
        need("learning_rate", lambda v: 0 < v < math.inf, "a number above 0")
        need("warm_up", lambda v: 0 <= v < 1, "a share of the training, 0 to below 1,")
        for name in ("momentum", "ema", "label_smoothing"):
            need(name, lambda v: 0 <= v < 1, "a number from 0 to below 1")
        need("weight_decay", lambda v: 0 <= v < math.inf, "a number of at least 0")
        need("clip_gradient", lambda v: v is None or v > 0, "None or a length above 0")
        need("schedule", lambda v: v in SCHEDULES, " or ".join(SCHEDULES))
        need("precision", lambda v: v in PRECISIONS, " or ".join(PRECISIONS))
        need("defence", lambda v: callable(getattr(v, "loss", None)), "a defence such as Standard()")
        need("validation_attack", lambda v: isinstance(v, Attack), "an attack such as PGD()")

    def learning_rate_at(self, progress):
        """The learning rate when `progress`, 0 to 1, of the training is done."""
        if self.schedule == "constant":
            return self.learning_rate
        if progress < self.warm_up:
            return self.learning_rate * progress / self.warm_up
        return self.learning_rate * (1 - progress) / (1 - self.warm_up)


@dataclass
class Run:
    """A finished run: the trained model in eval mode, its folder, its history with a row an epoch."""

    model: torch.nn.Module
    folder: Path
    history: pd.DataFrame

    def __repr__(self):
        if not len(self.history):
            return f"Run({self.folder.name}: its history.csv is missing)"
        last = self.history.iloc[-1]
        return (
            f"Run({self.folder.name}: {len(self.history)} epochs, {self.history['time/epoch_s'].sum():.0f} s, "
            f"validation {100 * last['accuracy/clean']:.1f} % clean, {100 * last['accuracy/robust']:.1f} % robust)"
        )


def train(model, data, recipe, folder, *, progress=True):
    """Train a copy of `model` on data.train as the recipe says; returns a Run. `model` stays as it was.

    Safe to call again: a finished run is loaded, a broken one goes on from its last checkpoint to the
    weights that it would have reached: on the CPU bit for bit, on CUDA up to the order of the device's own
    additions. Raises RunRefused where the folder holds another run or another process trains in it, RunDamaged
    for files that cannot be used, ValueError for a model that does not fit the data, TrainingDiverged when the
    loss is not finite, KeyboardInterrupt after saving when it is stopped.
    """
    device = data.train.labels.device
    identity = {
        "recipe": as_dict(recipe),
        "model": getattr(model, "spec", type(model).__name__),
        "structure": structure(model),
        "initial_weights": fingerprint(model),
        "data": data.provenance,
    }
    model = copy.deepcopy(model).to(device, memory_format=torch.channels_last)
    _check(model, data, recipe)
    run = RunFolder(folder)
    with run.locked():
        run.claim(identity, device)
        if not run.finished:
            return _train(model, data, recipe, run, device, progress)
    run.load_result(model)
    log.info("%s is finished: loaded, not trained again", run.path.name)
    return Run(model.eval(), run.path, run.load_history())


def _check(model, data, recipe):
    """What can be known to be wrong before anything is written."""
    if recipe.batch_size > len(data.train):
        raise ValueError(f"batch_size={recipe.batch_size}: there are only {len(data.train)} training pictures")
    logits = predict(model, data.val.first(2))
    if logits.ndim != 2 or logits.shape[1] < data.num_classes:
        shape = tuple(logits.shape)
        raise ValueError(f"the model gives logits of shape {shape} for 2 pictures of {data.num_classes} classes")


def _train(model, data, recipe, run, device, progress):
    state = _State(model, recipe, len(data.train) // recipe.batch_size, device)
    state.resume(run)
    with Stop() as stop, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        curves = Curves(run.path, recipe, state.epoch)
        bar = tqdm(total=state.total, initial=state.step, desc=run.path.name, disable=not progress, unit="step")
        try:
            while state.step < state.total or len(state.history) < recipe.epochs:
                _one_epoch(state, data, run, stop, bar)
                _close_epoch(state, data, run, curves, bar)
                if stop.requested and state.step < state.total:
                    _save_and_leave(state, run, stop)
        finally:
            curves.close()
            bar.close()
    result = state.result().eval()
    run.finish(result, {"weights": fingerprint(result), "precision": state.precision})
    return Run(result, run.path, run.load_history())


class _State:
    """Everything that a training step changes, which is what a checkpoint holds."""

    def __init__(self, model, recipe, steps, device):
        self.model, self.recipe, self.steps, self.device = model, recipe, steps, device
        self.total = steps * recipe.epochs
        self.average = copy.deepcopy(model).eval() if recipe.ema else None
        self.optimizer = torch.optim.SGD(
            _parameter_groups(model),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.momentum > 0,
            fused=device.type in ("cpu", "cuda"),
        )
        self.precision = _precision(recipe, device)
        self.step = 0
        self.history = []
        self.seconds = 0.0  # spent in the current epoch before this start
        self.losses = torch.zeros(steps, device=device)  # of the current epoch, one a step
        self.hits = torch.zeros(steps, device=device)

    @property
    def epoch(self):
        """Epochs that are closed, with their validation."""
        return len(self.history)

    def result(self):
        return self.model if self.average is None else self.average

    def save(self, run):
        run.save_checkpoint(
            {
                "model": self.model.state_dict(),
                "average": self.average and self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "precision": self.precision,
                "step": self.step,
                "history": self.history,
                "seconds": self.seconds,
                "losses": self.losses,
                "hits": self.hits,
            }
        )

    def resume(self, run):
        saved = run.load_checkpoint(self.device)
        if saved is None:
            return
        self.model.load_state_dict(saved["model"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        for name in ("precision", "step", "history", "seconds", "losses", "hits"):
            setattr(self, name, saved[name])
        log.info("%s goes on from step %d of %d (epoch %d)", run.path.name, self.step, self.total, self.epoch + 1)


def _save_and_leave(state, run, stop):
    state.save(run)
    where = f"epoch {state.epoch + 1} of {state.recipe.epochs}, step {state.step} of {state.total}"
    stop.leave(f"{run.path.name}: stopped in {where}; saved. Run the same cell again to go on")


def _parameter_groups(model):
    """The weights that train, by their multiple of the learning rate. Raises ValueError where none does."""
    groups = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            rate = rate_of(name.removeprefix("network."), getattr(model, "rates", {}))
            groups.setdefault(rate, []).append(weight)
    if not groups:
        raise ValueError("nothing trains: every weight of this model is frozen")
    return [{"params": weights, "rate": rate} for rate, weights in groups.items()]


def _one_epoch(state, data, run, stop, bar):
    """The steps of the epoch that are still to be done."""
    recipe, steps = state.recipe, state.steps
    order = data.train.shuffled(recipe.batch_size, derive_seed(recipe.seed, 0, state.epoch))
    generator = torch.Generator(state.device)
    state.model.train()
    begun = shown = time.perf_counter()
    before = state.seconds
    index = state.step - state.epoch * steps
    checked = 0
    while index < steps:
        seed = derive_seed(recipe.seed, 1, state.step)
        _seed_global(seed, state.device)
        images, labels = data.train.batch(order[index], generator.manual_seed(seed), recipe.augment)
        state.losses[index], state.hits[index] = _train_step(state, images, labels, generator)
        state.step += 1
        index += 1
        state.seconds = before + time.perf_counter() - begun
        # Reading a loss waits for the device, so it is done now and then, not at each step.
        if index == steps or stop.requested or time.perf_counter() - shown > 0.5:
            _check_losses(state, run, checked, index)
            bar.set_postfix(loss=f"{state.losses[index - 1]:.3f}", refresh=False, **_latest(state))
            bar.update(state.step - bar.n)
            checked, shown = index, time.perf_counter()
        if stop.requested and index < steps:
            _save_and_leave(state, run, stop)


def _seed_global(seed, device):
    """Seed what dropout draws from. torch.manual_seed does the same and more, at 0.7 ms a call."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


def _train_step(state, images, labels, generator):
    """One update of the weights; returns the loss and the share of hits, still on the device."""
    recipe, optimizer = state.recipe, state.optimizer
    progress = state.step / state.total
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate_at(progress) * group["rate"]
    with torch.autocast(state.device.type, torch.bfloat16, enabled=state.precision == "bfloat16"):
        loss, logits = recipe.defence.loss(
            state.model, images, labels, progress=progress, generator=generator, smoothing=recipe.label_smoothing
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if recipe.clip_gradient is not None:
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip_gradient)
    optimizer.step()
    if state.average is not None:
        _follow(state.average, state.model, min(recipe.ema, (1 + state.step) / (10 + state.step)))
    return loss.detach(), (logits.detach().argmax(1) == labels).float().mean()


@torch.no_grad()
def _follow(average, model, decay):
    """Move the averaged weights and statistics towards the model's; counters are copied."""
    for slow, fast in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if slow.is_floating_point():
            slow.lerp_(fast, 1 - decay)
        else:
            slow.copy_(fast)


def _close_epoch(state, data, run, curves, bar):
    """Validate, write the curves, then the checkpoint: after a break in between, the epoch is done again."""
    recipe, epoch = state.recipe, state.epoch
    loss, clean, robust = _validate(state, data.val)
    if not math.isfinite(loss):  # the last update can break the weights after the last loss was fine
        _diverged(state, run, f"the validation loss is {loss}", state.step)
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
    state.history.append(row)
    state.seconds = 0.0
    curves.epoch(epoch + 1, row)
    curves.pictures(epoch + 1, *_examples(state, data.val), recipe.validation_attack.eps)
    run.save_history(state.history)
    state.save(run)
    bar.set_postfix(loss=f"{row['loss/train']:.3f}", **_latest(state))


def _validate(state, split):
    """Loss and accuracy on the validation split, robust accuracy on its first pictures; in float32."""
    model, recipe = state.result(), state.recipe
    logits = predict(model, split)
    right = logits.argmax(1) == split.labels
    few = split.first(recipe.validation_images)
    indices = right[: len(few)].nonzero()[:, 0]
    stood, _ = attacked(
        model, model, few, recipe.validation_attack, indices, derive_seed(recipe.seed, 2, state.epoch)
    )
    return float(cross_entropy(logits, split.labels)), float(right.double().mean()), int(stood.sum()) / len(few)


def _examples(state, split):
    """The first eight pictures of the split and their adversarial versions, (8, 3, H, W) each."""
    model, attack = state.result(), state.recipe.validation_attack
    clean, labels = split.batch(torch.arange(min(8, len(split)), device=state.device))
    with evaluating(model):
        return clean, attack.craft(model, clean, labels, torch.Generator(state.device).manual_seed(0))


def _check_losses(state, run, begin, end):
    """Raise where a loss among the given steps of this epoch is not finite."""
    broken = (~torch.isfinite(state.losses[begin:end])).nonzero()
    if len(broken):
        index = begin + int(broken[0])
        _diverged(state, run, f"the loss is {float(state.losses[index])}", state.epoch * state.steps + index)


def _diverged(state, run, what, step):
    rate = state.recipe.learning_rate_at(step / state.total)
    kept = "the last good checkpoint is kept" if (run.path / "last.pt").exists() else "no epoch was completed"
    where = f"step {step} of {state.total} (epoch {state.epoch + 1}, learning rate {rate:.4g})"
    raise TrainingDiverged(
        f"{run.path.name}: {what} at {where}; {kept} in {run.path}. A lower learning_rate or clip_gradient=1 "
        "helps; both make another run, in a folder of its own"
    )


def _latest(state):
    """Validation accuracies of the last epoch, for the progress bar."""
    if not state.history:
        return {}
    last = state.history[-1]
    return {name: f"{100 * last[f'accuracy/{name}']:.1f}%" for name in ("clean", "robust")}


def _precision(recipe, device):
    """What a run computes in, from its first step on; "auto" is bfloat16 where the device has it."""
    native = (
        torch.cuda.get_device_capability(device) >= (8, 0)
        if device.type == "cuda"
        else device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    )
    return recipe.precision if recipe.precision != "auto" else "bfloat16" if native else "float32"
