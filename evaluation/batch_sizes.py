"""A network that takes batches of any size, in the sizes that suit the device and its memory.

On CUDA every new size makes cuDNN plan anew, so batches that shrink from step to step are filled up to a few fixed
sizes. Where the memory runs out, a batch goes through the network in parts, its gradient too. Neither changes a
result by more than the order of additions does.
"""

import logging
import math
from weakref import WeakKeyDictionary

import torch
from torch import nn

from evaluation.network_graphs import NetworkGraphs
from processes.machine import ran_out_of_memory

BATCH = {"cpu": 250, "cuda": 1000}  # pictures at once
MEASURED = 8  # pictures that say what one takes
SPARE = 0.7  # the share of the free memory that the network may take: attacks keep pictures, too

log = logging.getLogger("study")
# How many pictures at once: by model, then by their shape, device and whether their gradient follows.
_most = WeakKeyDictionary()


def filled_up(count, device):
    """The size that a batch of `count` is filled up to: on CUDA one of four an octave, from 8 on."""
    if device.type != "cuda":
        return count
    step = max(8, 2 ** (count.bit_length() - 3))
    return -(-count // step) * step


class AnySize(nn.Module):
    """The model, for pictures (n, C, H, W) of any n; what it says of one must not hang on those beside it.

    Models that answer at random answer anew for each part, and for what a batch is filled up with.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model = model.model if isinstance(model, AnySize) else model
        self.most = _most.setdefault(model, {})
        self.graphs = NetworkGraphs(model)
        self.last = None  # what was asked for last, and for how many pictures

    def __getattr__(self, name):
        """Attacks of somebody's own may look into the model."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(self, images):
        follows = torch.is_grad_enabled() and images.requires_grad
        kind = tuple(images.shape[1:]), images.device, follows
        missing = filled_up(len(images), images.device) - len(images)
        full = torch.cat([images, images[:1].expand(missing, -1, -1, -1)]) if missing > 0 else images
        if kind not in self.most and len(images) > MEASURED:
            self.most[kind] = _measured(self.model, images, follows)
        self.last = kind, len(full)
        logits = None
        if len(full) <= self.most.get(kind, math.inf):
            try:
                logits = self.graphs(full)
            except RuntimeError as error:
                self.halve(error)
        if logits is None:
            logits = _InParts.apply(full, self, kind) if follows else self.in_parts(self.model, kind, full)
        return logits[: len(images)] if missing > 0 else logits

    def in_parts(self, function, kind, *tensors):
        """What function(*tensors) is, row by row, from parts that fit."""
        found, begin, count = [], 0, len(tensors[0])
        while begin < count:
            size = min(count - begin, self.most[kind])
            self.last = kind, size
            try:
                found.append(function(*(tensor[begin : begin + size] for tensor in tensors)))
                begin += size
            except RuntimeError as error:
                self.halve(error)
        return torch.cat(found)

    def halve(self, error):
        """From here on half as many pictures at once as last time; raises an error that is not of the memory."""
        if not ran_out_of_memory(error) or self.last is None or self.last[1] <= 1:
            raise error
        kind, size = self.last
        self.graphs.forget()
        self.most[kind] = size // 2
        log.warning("%d pictures at once do not fit into the memory: %d from here on", size, size // 2)

    def crafted(self, attack, images, labels, generator):
        """What attack.craft gives on this network; where its gradients do not fit it begins again, in parts."""
        before = generator.get_state()
        while True:
            generator.set_state(before)
            try:
                return attack.craft(self, images.clone(), labels, generator)
            except RuntimeError as error:
                self.halve(error)


def _measured(model, images, follows):
    """How many pictures at once the free memory takes, by what a few of them take the second time."""
    device = images.device
    if device.type != "cuda":
        return math.inf
    few = images[:MEASURED].detach().requires_grad_(follows)
    with torch.random.fork_rng(devices=[device]):
        for _ in range(2):
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            out = model(few)
            if out.requires_grad:
                torch.autograd.grad(out.sum(), few, allow_unused=True)
            del out
    each = max(torch.cuda.max_memory_allocated(device) - before, 1) / len(few)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(1, int(SPARE * (torch.cuda.mem_get_info(device)[0] + kept) / each))


class _InParts(torch.autograd.Function):
    """Logits of pictures whose gradient follows, where it does not fit at once: each part is computed twice."""

    @staticmethod
    def forward(ctx, images, network, kind):
        device = images.device.type
        ctx.network, ctx.kind = network, kind
        ctx.autocast = {"dtype": torch.get_autocast_dtype(device), "enabled": torch.is_autocast_enabled(device)}
        ctx.save_for_backward(images)
        return network.in_parts(network.model, kind, images)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, ascent):
        def gradient(points, ascent):
            points = points.detach().requires_grad_()
            with torch.enable_grad(), torch.autocast(points.device.type, **ctx.autocast):
                logits = ctx.network.model(points)
            if not logits.requires_grad:
                return torch.zeros_like(points)
            return torch.autograd.grad(logits, points, ascent, allow_unused=True, materialize_grads=True)[0]

        return ctx.network.in_parts(gradient, ctx.kind, *ctx.saved_tensors, ascent), None, None
