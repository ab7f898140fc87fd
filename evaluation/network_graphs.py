"""A network's forward and backward pass as CUDA graphs, for attacks that ask it hundreds of times.

Launched kernel by kernel, a step of an attack on a few hundred pictures waits for Python longer than it computes.
"""

import logging
from collections import Counter

import torch

from models import Model, taken
from models.fused import is_untouched
from models.tf32 import rounding, tf32_allowed

log = logging.getLogger("study")

OFTEN = 20  # calls that are alike before a graph pays
MOST = 6  # graphs at a time: each keeps the memory of a pass
LARGEST = 2**23  # numbers in a batch; larger ones keep the device busy as they are
# Modules of these make the same of pictures each time, and nothing beside it; what others do, nobody knows.
KNOWN = ("torch.nn.modules", "torch.nn.utils.parametrize", "torchvision.models", "torchvision.ops")
KNOWN += ("models.resnet", "models.shallow", "models.normalise", "models.low_rank")


class NetworkGraphs:
    """What `model(images)` gives: as it is written at first, then by a graph for each frequent kind of batch.

    Only for networks whose parts are known, whose weights ask for no gradient and stay as they are. What is given
    back is nobody else's memory, and a gradient is that of the pass that it is asked of, whichever came between.
    """

    def __init__(self, model):
        self.model, self.graphs, self.calls = model, {}, Counter()
        self.parts = list(model.modules())
        self.possible = all(map(is_known, self.parts))  # once: of a ResNet-18 it takes 0.2 ms

    def forget(self):
        """Give the memory back."""
        self.graphs.clear()

    def __call__(self, images):
        if not self.possible or not _capturable(images) or not all(map(is_untouched, self.parts)):
            return taken(self.model(images))
        follows, kind = torch.is_grad_enabled() and images.requires_grad, images.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key = (images.shape, images.stride(), images.dtype, follows, autocast, tf32_allowed())
        self.calls[key] += 1
        if key not in self.graphs:
            if self.calls[key] <= OFTEN or any(weight.requires_grad for weight in self.model.parameters()):
                return taken(self.model(images))
            self._capture(key, images, follows)
        if key not in self.graphs:
            return taken(self.model(images))
        self.graphs[key] = graph = self.graphs.pop(key)  # the one that was not used for longest is the first to go
        return _Pass.apply(images, graph)

    def _capture(self, key, images, follows):
        while len(self.graphs) >= MOST:
            self.graphs.pop(next(iter(self.graphs)))
        try:
            self.graphs[key] = _Graph(self.model, images, follows)
        except Exception as error:  # whatever CUDA does not capture, or has no memory for
            self.possible = False
            self.forget()
            log.info("no CUDA graph of this network: %s", f"{type(error).__name__}: {error}".splitlines()[0])


def is_known(module):
    """Is its code this repository's, torch's or torchvision's, with nothing of anybody else's on it?"""
    known = type(module) is Model or type(module).__module__.startswith(KNOWN)
    return known and is_untouched(module)


def _capturable(images):
    return images.device.type == "cuda" and images.numel() <= LARGEST


class _Graph:
    """The passes on pictures of one kind; each lies in memory of its own, which every call writes anew."""

    def __init__(self, model, images, follows):
        self.images = images.detach().clone(memory_format=torch.preserve_format).requires_grad_(follows)
        # What a network keeps of its weights for a while must stay while the graph does.
        self.folds = [getattr(module, "_folds", None) for module in model.modules()]
        self.passes, self.ascent, stream = 0, None, torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), rounding(tf32=tf32_allowed(), tries=True):
            for _ in range(3):  # libraries choose their kernels
                logits = taken(model(self.images))
                if logits.requires_grad:
                    torch.autograd.grad(logits, self.images, torch.zeros_like(logits), allow_unused=True)
            del logits
        torch.cuda.current_stream().wait_stream(stream)
        self.ahead, self.back = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        settings = {"stream": stream, "capture_error_mode": "thread_local"}
        with rounding(tf32=tf32_allowed(), tries=True):
            with torch.cuda.graph(self.ahead, **settings):
                self.logits = taken(model(self.images))
            if self.logits.requires_grad:
                self.ascent = torch.zeros_like(self.logits)
                with torch.cuda.graph(self.back, pool=self.ahead.pool(), **settings):
                    (self.gradient,) = torch.autograd.grad(
                        self.logits, self.images, self.ascent, allow_unused=True, materialize_grads=True
                    )

    def forward(self, images):
        self.passes += 1
        with torch.no_grad():
            self.images.copy_(images)
        self.ahead.replay()
        return self.logits.detach().clone()

    def backward(self, ascent):
        self.ascent.copy_(ascent)
        self.back.replay()
        self.passes += 1  # it has written into what the forward pass had left: a second one needs that anew
        return self.gradient.clone()


class _Pass(torch.autograd.Function):
    """A graph as a step of autograd."""

    @staticmethod
    def forward(ctx, images, graph):
        ctx.save_for_backward(images)
        ctx.graph, logits = graph, graph.forward(images)
        ctx.number = graph.passes
        if graph.ascent is None:  # nothing leads from the pictures to the logits
            ctx.mark_non_differentiable(logits)
        return logits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, ascent):
        (images,), graph = ctx.saved_tensors, ctx.graph
        if graph.passes != ctx.number:  # another batch has been through since
            graph.forward(images)
            ctx.number = graph.passes
        return graph.backward(ascent), None
