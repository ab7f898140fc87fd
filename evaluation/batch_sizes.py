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
    """The model, for pictures (n, C, H, W) of any n; what it says of one must not hang on those beside it."""

    def __init__(self, model):
        super().__init__()
        self.model = model = model.model if isinstance(model, AnySize) else model
        self.most = _most.setdefault(model, {})

    def forward(self, images):
        follows = torch.is_grad_enabled() and images.requires_grad
        kind = tuple(images.shape[1:]), images.device, follows
        if kind not in self.most:
            self.most[kind] = _measured(self.model, images, follows)
        missing = filled_up(len(images), images.device) - len(images)
        full = torch.cat([images, images[:1].expand(missing, -1, -1, -1)]) if missing > 0 else images
        logits = _Followed.apply(full, self, kind) if follows else self.in_parts(self.model, kind, full)
        return logits[: len(images)] if missing > 0 else logits

    def in_parts(self, function, kind, *tensors):
        """What function(*tensors) is, row by row, from parts that fit."""
        found, begin, count = [], 0, len(tensors[0])
        while begin < count or not found:
            size = min(count - begin, self.most[kind])
            try:
                found.append(function(*(tensor[begin : begin + size] for tensor in tensors)))
                begin += size
            except torch.OutOfMemoryError as error:
                self.halve(kind, size, error)
        return torch.cat(found) if len(found) > 1 else found[0]

    def halve(self, kind, size, error):
        if size <= 1:
            raise error
        self.most[kind] = size // 2
        log.warning("%d pictures at once do not fit into the memory: %d from here on", size, size // 2)


def _measured(model, images, follows):
    """How many pictures at once the free memory takes, by what a few of them take."""
    device = images.device
    if device.type != "cuda":
        return math.inf
    few = images[:MEASURED].detach().requires_grad_(follows)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    out = model(few)
    if out.requires_grad:
        torch.autograd.grad(out.sum(), few)
    each = max(torch.cuda.max_memory_allocated(device) - before, 1) / max(len(few), 1)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(1, int(SPARE * (torch.cuda.mem_get_info(device)[0] + kept) / each))


class _Followed(torch.autograd.Function):
    """Logits of pictures whose gradient follows; what does not fit at once is computed twice for that."""

    @staticmethod
    def forward(ctx, images, network, kind):
        ctx.network, ctx.kind, ctx.whole, device = network, kind, None, images.device.type
        ctx.autocast = {"dtype": torch.get_autocast_dtype(device), "enabled": torch.is_autocast_enabled(device)}
        if len(images) <= network.most[kind]:
            points = images.detach().requires_grad_()
            try:
                with torch.enable_grad():
                    logits = network.model(points)
                ctx.whole = points, logits
            except torch.OutOfMemoryError as error:
                network.halve(kind, len(images), error)
        if ctx.whole is None:
            ctx.save_for_backward(images)
            return network.in_parts(network.model, kind, images)
        out = logits.detach()
        if not logits.requires_grad:
            ctx.mark_non_differentiable(out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, ascent):
        network, kind = ctx.network, ctx.kind

        def gradient(points, ascent, logits=None):
            if logits is None:
                points = points.detach().requires_grad_()
                with torch.enable_grad(), torch.autocast(points.device.type, **ctx.autocast):
                    logits = network.model(points)
            if not logits.requires_grad:
                return torch.zeros_like(points)
            return torch.autograd.grad(logits, points, ascent, allow_unused=True, materialize_grads=True)[0]

        if ctx.whole is None:
            (images,) = ctx.saved_tensors
        else:
            (images, logits), ctx.whole = ctx.whole, None
            try:
                return gradient(images, ascent, logits), None, None
            except torch.OutOfMemoryError as error:
                network.halve(kind, len(images), error)
            del logits
        return network.in_parts(gradient, kind, images, ascent), None, None
