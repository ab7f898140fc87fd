"""Pixels in [0, 1] to what a network was made for; inside the model, so that an attack's ε means pixels."""

import numpy as np
import torch
from torch import nn

# Mean and standard deviation of the CIFAR-10 training pictures, per channel, in [0, 1].
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


def other_channels(wanted, given):
    """What to do where a network is for grey pictures and gets others, or the other way round."""
    layer, gives = ("RGB", "three equal channels") if given == 1 else ("Grayscale", "one channel")
    return (
        f"the network takes pictures of {wanted} channels, and these have {given}. "
        f"torch.nn.Sequential(torchvision.transforms.v2.{layer}(), model) makes {gives} of them"
    )


def of_bytes(mean, std):
    """Are these of pixels from 0 to 255? In [0, 1] a mean is at most 1, and nobody divides by far more than 1."""
    return max(mean) > 1 or max(std) > 2


class Normalise(nn.Module):
    """(images - mean) / std per channel, as one multiplication and addition.

    Raises ValueError for what no pixels in [0, 1] have, and for pictures of fewer channels.
    """

    def __init__(self, mean, std):
        super().__init__()
        given = f"mean={mean}, std={std}"
        mean, std = (np.ravel(values).tolist() for values in (mean, std))  # they may be arrays
        if len(mean) != len(std) or not np.isfinite(mean + std).all() or min(std) <= 0:
            raise ValueError(f"{given}: as many finite numbers are needed, those of std above 0")
        if of_bytes(mean, std):
            raise ValueError(f"{given} are of pixels from 0 to 255. Here they are in [0, 1]: divide both by 255")
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images):
        if images.shape[1] < self.mean.shape[1]:
            raise ValueError(other_channels(self.mean.shape[1], images.shape[1]))
        # Spread to the size of a picture first: a broadcast over three channels that lie innermost is slow.
        scale = (1 / self.std).expand(images[:1].shape).contiguous(memory_format=torch.channels_last)
        shift = (-self.mean / self.std).expand(images[:1].shape).contiguous(memory_format=torch.channels_last)
        return torch.addcmul(shift, images, scale)
