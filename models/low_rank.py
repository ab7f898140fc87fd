"""Low-rank adapters: a frozen layer learns a change of its weight that few numbers describe.

Hu et al. 2021, arXiv:2106.09685. A convolution counts as the matrix of its outputs by all that one of them sees.
"""

import math

import torch
from torch import nn
from torch.nn.utils import parametrize

from models.model import copied


class LowRank(nn.Module):
    """weight + up · down, where `up` (outputs, rank) begins at zero and `down` (rank, inputs) at random."""

    def __init__(self, weight, rank):
        super().__init__()
        outputs, inputs = weight.shape[0], weight[0].numel()
        rank = min(rank, outputs, inputs)
        self.shape = tuple(weight.shape)
        # On the CPU: the same everywhere.
        down = nn.init.kaiming_uniform_(torch.empty(rank, inputs), a=math.sqrt(5))
        self.up = nn.Parameter(torch.zeros(outputs, rank, device=weight.device, dtype=weight.dtype))
        self.down = nn.Parameter(down.to(weight.device, weight.dtype))

    def change(self):
        return (self.up @ self.down).view(self.shape)

    def forward(self, weight):
        return weight + self.change()


def add(module, rank):
    """Give a layer an adapter, in place. What it computes stays the same until the adapter has learned."""
    parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank))


def merge(module):
    """Make a layer's adapter part of its weight, in place."""
    if is_adapted(module):
        _take_away(module, nn.Parameter(module.weight.detach().clone()))


def _take_away(module, weight):
    """The adapter, and give the layer this weight."""
    # Not by torch's remove_parametrizations: it takes `weight` from the class, which copies of the layer share.
    module.__class__ = type(module).__bases__[0]
    del module.parametrizations
    module._parameters = {"weight": weight} | module._parameters


class Packed:
    """A network on its way to another process: torch pickles no layer whose weight is made of others."""

    def __init__(self, network):
        self.network, self.adapters = copied(network).cpu(), {}
        for name, module in list(self.network.named_modules()):
            if is_adapted(module):
                self.adapters[name] = module.parametrizations.weight[0]
                _take_away(module, module.parametrizations.weight.original)

    def unpacked(self, device):
        for name, adapter in self.adapters.items():
            parametrize.register_parametrization(self.network.get_submodule(name), "weight", adapter)
        return self.network.to(device)


def is_adapted(module):
    """Is the weight of this layer changed by an adapter, and by nothing else?"""
    if not parametrize.is_parametrized(module):
        return False
    there = [one for every in module.parametrizations.values() for one in every]
    return len(there) == 1 and isinstance(there[0], LowRank)
