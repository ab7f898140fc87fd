"""One training step: what it changes, what it is given, what it does."""

import copy
import functools
import logging

import torch
from torch.nn.functional import interpolate

from defences import Standard, innermost, moment, with_sizes
from models import copied, fitted, model_of, rate_of
from processes import data_parallel
from training import catastrophic_overfitting, precision
from training.cuda_graphs import Graphed
from training.sgd import SGD

log = logging.getLogger("study")

# Of a State: what has a state_dict, and what is saved as it is.
STATEFUL = ("model", "average", "optimizer")
PLAIN = ("precision", "parts", "step", "history", "seconds", "losses", "hits", "memory", "rescued")
CACHE_BYTES = 2e9  # the most that the features of a frozen backbone may take


class State:
    """Everything that a training step changes, which is what a checkpoint holds.

    `name` is the run's, for what is said about its steps.
    """

    def __init__(self, model, recipe, steps, device, name="this run"):
        self.model, self.recipe, self.steps, self.device = model, recipe, steps, device
        self.total = steps * recipe.epochs
        self.average = copied(model).eval() if recipe.ema or recipe.swa else None
        self.optimizer = SGD(_parameter_groups(model), momentum=recipe.momentum, weight_decay=recipe.weight_decay)
        data_parallel.part_of(recipe.batch_size)  # raises where there are too many processes
        self.precision = data_parallel.from_first(precision.chosen, recipe, device)
        self.scaler = precision.scaler(self.precision, device)
        self.generator = torch.Generator(device)
        self.graphed = Graphed(self.generator, name)
        self.parts = 1  # in which a batch goes through the network, where the memory takes no more
        self.step = 0
        self.history = []
        self.seconds = 0.0  # spent in the current epoch before this start
        self.memory = {}  # what the defence keeps from step to step
        self.follow = {}  # how far the averaged weights follow in a step
        self.sizes = {name: torch.zeros((), device=device) for name in ("eps", "step_size")}  # of a graph's attack
        self.rescued = None  # the epoch, from 1, in which single-step training collapsed
        self.ended = False  # it has collapsed again
        self.good = None  # where to return to from a collapse
        self.best = None  # the result after the best epoch so far and its number, until a file has it
        self.saved = None  # the step of the last checkpoint
        self.losses = torch.zeros(steps, device=device)  # of the current epoch, one a step
        self.hits = torch.zeros(steps, device=device)
        self.learner = data_parallel.Learner(model)  # what a step trains: the model, or its head alone
        self.features = None  # of all training pictures, where the head alone trains

    @property
    def epoch(self):
        """Epochs that are closed, with their validation."""
        return len(self.history)

    def result(self):
        return self.model if self.average is None else self.average

    @property
    def defence(self):
        return self.recipe.defence if self.rescued is None else catastrophic_overfitting.safer(self.recipe.defence)

    def snapshot(self):
        """What `restore` takes, on any number of processes; the tensors are the live ones."""
        parts = {name: getattr(self, name) for name in STATEFUL}
        tensors = {name: None if part is None else part.state_dict() for name, part in parts.items()}
        plain = {name: getattr(self, name) for name in PLAIN}
        plain["scaler"] = self.scaler.state_dict()
        return tensors | plain | {"memory": data_parallel.whole(self.memory, self.recipe.batch_size)}

    def restore(self, saved):
        for name in STATEFUL:
            if saved[name] is not None:
                getattr(self, name).load_state_dict(saved[name])
        parts = max(self.parts, saved.get("parts", 1))  # what has been found on this device, or on another
        for name in PLAIN:
            setattr(self, name, parts if name == "parts" else saved[name])
        self.scaler = precision.scaler(self.precision, self.device)
        self.scaler.load_state_dict(saved.get("scaler", {}))
        self.losses, self.hits = self.losses.to(self.device), self.hits.to(self.device)
        self.memory = data_parallel.part(self.memory, self.recipe.batch_size, self.device)
        self.graphed.forget()  # the memory's tensors are others now

    @property
    def guarded(self):
        """May the guard want to return to weights that were good?"""
        return catastrophic_overfitting.eps_of(self.recipe.defence) is not None

    def checkpoint(self, good=False):
        """What `resume` goes on from, as it is now, whatever is trained meanwhile; its tensors lie on the CPU.

        `good`: from here on it is what a collapse returns to. A checkpoint holds both, equal tensors once.
        """
        saved = _copied(self.snapshot())
        self.good = saved if good else self.good
        return saved | {"good": self.good}

    def resume(self, run):
        saved = data_parallel.from_first(run.load_checkpoint, "cpu")
        if saved is None:
            return
        self.good = saved.pop("good")
        self.restore(_copied(saved))  # the good ones may be the same tensors
        self.saved = self.step
        log.info("%s goes on from step %d of %d (epoch %d)", run.path.name, self.step, self.total, self.epoch + 1)


def _copied(saved):
    """Of dictionaries, lists and tensors, on the CPU: memory of the device is not for what is only kept."""
    if isinstance(saved, torch.Tensor):
        return saved.detach().to("cpu", copy=True)
    if isinstance(saved, dict):
        other = copy.copy(saved)  # with what else it says of itself
        other.update({name: _copied(value) for name, value in saved.items()})
        return other
    return [_copied(value) for value in saved] if isinstance(saved, list) else saved


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


def batch(state, data, indices):
    """What the learner is given, and the labels, for this process's part of a batch."""
    if state.features is not None:
        return state.features[indices], data.train.labels[indices]
    images, labels = data.train.batch(indices, state.generator, state.recipe.augment)
    low = state.recipe.low_resolution is not None and 2 * state.step < state.total
    return shrunk(images, state.recipe.low_resolution) if low else images, labels


def shrunk(images, side):
    """Pictures (N, 3, side, side) whose pixels are averages over areas of the given ones, so within [0, 1]."""
    return interpolate(images, size=(side, side), mode="area")


def use_features(state, data, run):
    """Where a linear head alone trains, on unchanging pictures, compute what goes into it once, not at each step.

    That is so for Standard() without augmentation, on a backbone that is frozen and deaf to `.train()`. The
    steps are the same, so the result is (up to the rounding of other batch sizes).
    """
    model, recipe = model_of(state.model.train()), state.recipe
    if type(recipe.defence) is not Standard or recipe.low_resolution is not None:
        return
    if data.train.code is not None:  # somebody's own may give other pictures each time
        return
    images, _ = data.train.batch(torch.arange(min(32, len(data.train)), device=state.device))
    try:
        name = model.find_head(images)
    except ValueError:  # nothing here looks like one
        return
    head = model.network.get_submodule(name)
    norms = torch.nn.modules.batchnorm._BatchNorm  # timm's hold their activation
    alive = [each for each in model.modules() if isinstance(each, norms) or next(each.children(), None) is None]
    alive = [each for each in alive if each.training]
    training = [each for each, weight in model.named_parameters() if weight.requires_grad]
    alone = all(each.startswith(f"network.{name}.") for each in training)
    still = all(module is head or module is model.normalise for module in alive)
    if not alone or not still or not isinstance(head, torch.nn.Linear):
        return
    if recipe.augment:
        log.info("%s trains a head alone: with augment=False it would need the backbone only once", run.path.name)
        return
    devices = [state.device] if state.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices), precision.computing(state.precision, state.device):
        (logits, first), (_, again) = (model.with_features(images) for _ in range(2))
        size = first[0].numel() * first.element_size() * len(data.train)
        if not torch.equal(head(first), logits) or not torch.equal(first, again) or size > CACHE_BYTES:
            return  # what is drawn anew for each step cannot be kept
        parts = [model.with_features(images)[1] for images, _ in data.train.batches(recipe.batch_size)]
    state.learner, state.features = data_parallel.Learner(head), torch.cat(parts)
    what = f"{tuple(first.shape[1:])} features of each of the {len(data.train)} pictures, {size / 1e6:.1f} MB"
    log.info("%s trains a head alone: the %s were computed once", run.path.name, what)


def train_step(state, images, labels):
    """One update of the weights; returns the loss and the share of hits, still on the device.

    They are to be read, or copied, before the next step: on CUDA, where steps are alike, it writes into the same
    memory.
    """
    progress = state.step / state.total
    defence = moment(state.defence, progress)
    if defence is None:  # somebody's own: fine, but for a graph
        defence = state.defence
        if state.graphed.possible:
            state.graphed.give_up(f"{defence} has no at(progress), which would say when its steps are alike")
    _set_rates(state, progress)
    if state.parts > 1:  # so much work does not wait for Python
        return _update(state, defence, progress, images, labels)
    alike = defence
    if state.graphed.possible:
        alike, defence = _sizes_in_tensors(state, defence)
    return state.graphed(alike, functools.partial(_update, state, defence, progress), images, labels)


def _sizes_in_tensors(state, defence):
    """What is alike in steps of any ε and step size; the defence that finds them where one graph can for all."""
    attack = getattr(innermost(defence), "attack", None)
    if not getattr(attack, "takes_tensors", False):
        return defence, defence
    for name, tensor in state.sizes.items():
        tensor.fill_(getattr(attack, name, 0))
    return with_sizes(defence, dict.fromkeys(state.sizes, 1.0)), with_sizes(defence, state.sizes)


def _set_rates(state, progress):
    """The learning rate, and how far the averaged weights follow, into tensors where a graph must find them."""
    recipe = state.recipe
    for group in state.optimizer.param_groups:
        _put(group, "lr", recipe.learning_rate_at(progress) * group["rate"], state.device)
    _put(state.follow, "by", _following(recipe, state.step, state.total), state.device)


def _following(recipe, step, total):
    """The share of its distance to the weights that their average goes after this step, counted from 0."""
    if recipe.swa:  # 1, 1, ..., then 1/2, 1/3: the mean of all weights since the first of them
        return 1 / max(1, step - (total - round(recipe.swa * total)) + 1)
    return 1 - min(recipe.ema, (1 + step) / (10 + step))


def _put(place, name, value, device):
    if device.type != "cuda":
        place[name] = value
        return
    known = place.get(name)
    if not isinstance(known, torch.Tensor):  # always the same one: a graph reads it
        place[name] = torch.zeros((), device=device)
    place[name].fill_(value)


def _update(state, defence, progress, images, labels):
    """The step itself: nothing in it waits for the device, or changes from one step to the next but in tensors."""
    recipe, optimizer = state.recipe, state.optimizer
    optimizer.zero_grad()
    found = _in_parts(state, defence, progress, images, labels)
    if recipe.clip_gradient is not None:
        state.scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip_gradient)
    state.scaler.step(optimizer)
    state.scaler.update()
    if state.average is not None:
        _follow(state.average, state.model, state.follow["by"])
    return data_parallel.mean(found)


def _in_parts(state, defence, progress, images, labels):
    """`_gradients` of as many parts of the batch as the memory asks for, which add up."""
    if state.parts == 1:
        return _gradients(state, defence, progress, images, labels)
    found, draws = [], state.generator.get_state()
    for part in torch.arange(len(images)).tensor_split(state.parts):
        begin, end = int(part[0]), int(part[-1]) + 1
        state.generator.set_state(draws)  # each picture gets what is drawn for it in the whole batch
        with data_parallel.micro_batch(begin, end, len(images)):
            found.append(_gradients(state, defence, progress, images[begin:end], labels[begin:end]))
    return [sum(values) for values in zip(*found, strict=True)]


def _gradients(state, defence, progress, images, labels):
    """Add the gradients of these pictures to those of the weights; returns their part of the loss and the hits."""
    weights = [weight for group in state.optimizer.param_groups for weight in group["params"]]
    before = [weight.grad for weight in weights]
    state.optimizer.zero_grad()
    with precision.computing(state.precision, state.device), fitted(state.learner.learner):
        loss, logits = state.learner.loss(
            defence,
            images,
            labels,
            progress=progress,
            generator=state.generator,
            smoothing=state.recipe.label_smoothing,
            memory=state.memory,
        )
    for weight, gradient in zip(weights, before, strict=True):  # whatever a defence's crafting has left there
        weight.grad = gradient
    state.scaler.scale(data_parallel.weighed(loss)).backward()
    hits = (logits.detach().argmax(1) == labels).float().mean()
    return [data_parallel.weighed(value) for value in (loss.detach(), hits)]


@torch.no_grad()
def _follow(average, model, share):
    """Move the averaged weights and statistics by this share towards the model's; counters are copied."""
    states = (network.state_dict(keep_vars=True).values() for network in (average, model))
    pairs = dict(zip(*states, strict=True)).items()  # once, where two layers share a weight
    slow, fast = ([pair[side] for pair in pairs if pair[0].is_floating_point()] for side in (0, 1))
    if slow and isinstance(share, torch.Tensor):  # three kernels, where lerp would be one for each tensor
        torch._foreach_mul_(slow, 1 - share)
        torch._foreach_add_(slow, torch._foreach_mul(fast, share))
    elif slow:
        torch._foreach_lerp_(slow, fast, share)
    for counter, other in pairs:
        if not counter.is_floating_point():
            counter.copy_(other)
