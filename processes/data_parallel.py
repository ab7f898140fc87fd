"""One training on several processes (torchrun): who has which part of a batch, and what they tell one another.

Every process runs the same script and calls the same functions in the same order. A batch of the recipe is cut
into as many parts as there are processes, so the recipe means the same on any number of them: each crafts on its
own part, the gradients are averaged by the number of pictures (DistributedDataParallel), BatchNorm takes its
statistics over all parts, and what is drawn at random is drawn for the whole batch. So all processes hold the same
weights, and the same averages of them, at every step. Alone, nothing here does anything.
"""

import atexit
import inspect
import os
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.nn.functional import batch_norm
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun tells each process
PATIENCE = timedelta(minutes=30)  # with a process that computes something alone

# Nobody's buffers are sent at each step; the setting's name changes with torch 2.15 or so.
_SETTINGS = inspect.signature(DistributedDataParallel.__init__).parameters
OWN_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _SETTINGS else "broadcast_buffers"

_told = None  # a group for what processes tell one another, through the CPU
_shard = None  # the part of a batch that is at work


def world():
    """The number of processes."""
    if dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in VARIABLES) else 1


def rank():
    """This one's number, from 0."""
    if dist.is_initialized():
        return dist.get_rank()
    return int(os.environ["RANK"]) if world() > 1 else 0


def number():
    """What sets this process apart in a seed: nothing when it is alone."""
    return (rank(),) if world() > 1 else ()


def leads():
    """Is this the process that writes and speaks? Alone, it is."""
    return rank() == 0


def own_gpu():
    """The number of this process's GPU. Raises ValueError where a machine has more processes than GPUs."""
    mine, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if mine >= there:
        raise ValueError(
            f"process {mine + 1} of this machine has no GPU: there are {there}. One process per GPU is possible: "
            f"torchrun --nproc-per-node={there}"
        )
    return mine


def join(device):
    """Meet the other processes, if there are any; at the first call."""
    global _told
    if _told is not None or world() == 1:
        return
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        store, mine, parts = next(dist.rendezvous("env://", timeout=PATIENCE))
        dist.init_process_group(backend, store=_fresh(store), rank=mine, world_size=parts, timeout=PATIENCE)
        atexit.register(_part)
    _told = dist.new_group(backend="gloo", timeout=PATIENCE)


def _fresh(store):
    """The store without what processes that died have left there: torchrun keeps it when it starts anew.

    On several machines each counts its own starts, so there torchrun must be told to make another one:
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.
    """
    if os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]:
        return store
    return dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _part():
    if dist.is_initialized():
        dist.destroy_process_group()


# ---------------------------------------------------------------------------------------------------
# What processes tell one another


def same(value):
    """The value that the first process has, for all of them; picklable."""
    if world() == 1:
        return value
    told = [value]
    dist.broadcast_object_list(told, 0, group=_told)
    return told[0]


def from_first(function, *arguments):
    """What the function returns, or raises, in the first process, which alone calls it."""
    if world() == 1:
        return function(*arguments)
    value = error = None
    if leads():
        try:
            value = function(*arguments)
        except Exception as raised:
            error = raised
    value, error = same((value, error))
    if error is not None:
        raise error
    return value


def largest(*numbers):
    """The largest that any process has, number by number; None counts as 0."""
    if world() == 1:
        return numbers
    told = torch.tensor([int(number or 0) for number in numbers])
    dist.all_reduce(told, dist.ReduceOp.MAX, group=_told)
    return told.tolist()


def shared_out(items, function):
    """Yield (item, function(item)) in order; each item is the work of one process, and all get what it found."""
    items, parts = list(items), world()
    for begin in range(0, len(items), parts):
        turn = items[begin : begin + parts]
        if parts == 1:
            yield turn[0], function(turn[0])
            continue
        mine = function(turn[rank()]) if rank() < len(turn) else None
        found = [None] * parts
        dist.all_gather_object(found, mine, group=_told)
        yield from zip(turn, found[: len(turn)], strict=True)


@torch.no_grad()
def spread(model):
    """Give the first process's weights and buffers to all."""
    if world() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)


# ---------------------------------------------------------------------------------------------------
# Parts of a batch


class Shard(NamedTuple):
    """The part of a batch of `whole` pictures that is this process's."""

    begin: int
    end: int
    whole: int


def part_of(whole):
    """This process's part of so many pictures; parts differ by one picture at most."""
    parts, mine = world(), rank()
    least, more = divmod(whole, parts)
    if least == 0:
        raise ValueError(
            f"batch_size={whole} for {parts} processes: each needs a picture at least. Start fewer processes, or "
            "choose a larger batch, which is another run"
        )
    begin = mine * least + min(mine, more)
    return Shard(begin, begin + least + (mine < more), whole)


@contextmanager
def sharing(whole):
    """Inside, this process works on its part of a batch, a slice, which is yielded."""
    global _shard
    if world() == 1:
        yield slice(None)
        return
    before, _shard = _shard, part_of(whole)
    try:
        yield slice(_shard.begin, _shard.end)
    finally:
        _shard = before


@contextmanager
def micro_batch(begin, end, count):
    """Inside, these of the `count` pictures that this process has are at work: what is drawn is the batch's."""
    global _shard
    before = _shard
    first, whole = (0, count) if before is None else (before.begin, before.whole)
    _shard = Shard(first + begin, first + end, whole)
    try:
        yield
    finally:
        _shard = before


def drawn(like, fill):
    """A tensor like this one, filled at random in place by `fill(tensor)`.

    For a part of a batch it is the same part of what would be drawn for the whole batch, so that a picture gets
    what it would get in a single process.
    """
    if _shard is None or len(like) != _shard.end - _shard.begin:
        return fill(torch.empty_like(like))
    strides = torch.empty_like(like, device="meta").stride()
    whole = torch.empty_strided((_shard.whole, *like.shape[1:]), strides, dtype=like.dtype, device=like.device)
    return fill(whole)[_shard.begin : _shard.end]


def weighed(mean):
    """A mean over this process's part, times the weight with which the mean of all processes is the batch's."""
    return mean if _shard is None else mean * ((_shard.end - _shard.begin) * world() / _shard.whole)


def mean(tensors):
    """The means of all processes."""
    if _shard is None or world() == 1:
        return tensors
    flat = torch.cat([tensor.flatten() for tensor in tensors]) / world()
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def whole(memory, size):
    """What a defence keeps for the pictures of a batch of `size`, of all parts; the rest as it is."""
    if world() == 1:
        return memory
    mine, found = part_of(size), [None] * world()
    local = {name: kept.cpu() for name, kept in memory.items() if _rows(kept) == mine.end - mine.begin}
    dist.all_gather_object(found, local, group=_told)
    return memory | {name: torch.cat([other[name] for other in found]) for name in local}


def part(memory, size, device):
    """The reverse of `whole`, on the device."""
    mine = part_of(size)
    cut = {name: kept[mine.begin : mine.end].clone() for name, kept in memory.items() if _rows(kept) == size}
    return {
        name: kept.to(device) if isinstance(kept, torch.Tensor) else kept for name, kept in (memory | cut).items()
    }


def _rows(kept):
    return len(kept) if isinstance(kept, torch.Tensor) and kept.ndim else None


# ---------------------------------------------------------------------------------------------------
# The step


class _Loss(torch.nn.Module):
    def __init__(self, learner):
        super().__init__()
        self.learner = learner

    def forward(self, defence, *arguments, **settings):
        with _SharedNorms():
            return defence.loss(self.learner, *arguments, **settings)


class Learner:
    """A network's loss(defence, ...) on this process's part of a batch.

    From the backward pass of that loss, `weighed`, its weights get the gradients of the whole batch.
    """

    def __init__(self, learner):
        self.learner, self.all = learner, None

    def loss(self, defence, *arguments, **settings):
        if world() == 1:
            return defence.loss(self.learner, *arguments, **settings)
        if self.all is None:
            # The whole loss is one forward pass to it, whatever a defence does in there with the bare network.
            self.all = DistributedDataParallel(_Loss(self.learner), **{OWN_BUFFERS: False})
        return self.all(defence, *arguments, **settings)


class _SharedNorms(TorchFunctionMode):
    """BatchNorm in training mode takes its statistics over all parts of a batch, in whatever network."""

    def __torch_function__(self, function, types, arguments=(), settings=None):
        if function is not batch_norm:
            return function(*arguments, **(settings or {}))
        return _norm(*arguments, **(settings or {}))


def _norm(x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    if not training or running_mean is None:  # without running statistics crafting would have to be shared, too
        return batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    return _SharedNorm.apply(x, running_mean, running_var, weight, bias, momentum, eps)


class _SharedNorm(torch.autograd.Function):
    """BatchNorm over the parts of all processes, on any device: torch's SyncBatchNorm knows CUDA alone."""

    @staticmethod
    def forward(ctx, x, running_mean, running_var, weight, bias, momentum, eps):
        # Of this part; it divides by n. That the running ones are passed keeps the result in their precision.
        mean, var = torch.batch_norm_update_stats(x, running_mean.clone(), running_var.clone(), 0.0)
        table = mean.new_zeros(world(), 2 * len(mean) + 1)
        table[rank()] = torch.cat([mean.new_full((1,), x.numel() // len(mean)), mean, var])
        dist.all_reduce(table)
        counts, means, variances = table[:, :1], table[:, 1 : 1 + len(mean)], table[:, 1 + len(mean) :]
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        var = (counts * (variances + (means - mean).square())).sum(0) / count
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((var * count / (count - 1)).to(running_var.dtype), momentum)
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        return batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        x, weight, mean, var, count = ctx.saved_tensors
        wanted, scale = [True, True, True], torch.rsqrt(var + ctx.eps)
        factor = torch.ones_like(mean) if weight is None else weight
        # As if mean and variance were given. What of the gradient comes through them is a line in x, whose slope
        # and offset hang on the sums over all parts; batch_norm is torch's fast way to draw such a line.
        ours, along, upright = torch.ops.aten.native_batch_norm_backward(
            gradient, x, factor, mean, var, mean, scale, False, ctx.eps, wanted
        )
        sums = torch.stack([along, upright]).to(mean.dtype)
        dist.all_reduce(sums)
        slope = -factor * scale.square() * sums[0] / count
        offset = -factor * scale * sums[1] / count - slope * mean
        zeros, ones = torch.zeros_like(mean), torch.ones_like(mean)
        ours = ours.add_(batch_norm(x, zeros, ones, slope.to(mean.dtype), offset.to(mean.dtype), False, 0.0, 0.0))
        along, upright = (None, None) if weight is None else (along, upright)
        return ours, None, None, along, upright, None, None
