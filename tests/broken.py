"""Networks whose numbers are none, or too large: what several tests show to training and evaluation."""

import math

import torch
from small import small_network
from torch import nn


class Changed(nn.Module):
    """A sound network, and what a function makes of its logits."""

    def __init__(self, change):
        super().__init__()
        self.inner, self.change = small_network(), change

    def forward(self, images):
        return self.change(self.inner(images))


def with_broken_gradient(logits):
    if logits.requires_grad:
        logits.register_hook(lambda gradient: gradient * math.nan)
    return logits


def one_infinite(logits):
    return torch.cat([torch.full_like(logits[:1], math.inf), logits[1:]])


def broken_weights(value):
    network = small_network()
    with torch.no_grad():
        network[0].weight[0, 0, 0, 0] = value
    return network


BROKEN = {
    "a weight that is NaN": lambda: broken_weights(math.nan),
    "a weight that is infinite": lambda: broken_weights(math.inf),
    "gradients that are NaN": lambda: Changed(with_broken_gradient),
    "a logit that is infinite": lambda: Changed(one_infinite),
    "logits that are NaN": lambda: Changed(lambda logits: logits * math.nan),
    "logits that overflow": lambda: Changed(lambda logits: logits * 1e38 * 1e38),
}
