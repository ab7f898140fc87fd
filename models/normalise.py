"""Pixels in [0, 1] to what a network was made for; inside the model, so that an attack's ε means pixels."""

import torch
from torch import nn

# Mean and standard deviation of the CIFAR-10 training pictures, per channel, in [0, 1].
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


class Normalise(nn.Module):
    """(images - mean) / std per channel, as one multiplication and addition."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images):
        # Spread to the size of a picture first: a broadcast over three channels that lie innermost is slow.
        scale = (1 / self.std).expand(images[:1].shape).contiguous(memory_format=torch.channels_last)
        shift = (-self.mean / self.std).expand(images[:1].shape).contiguous(memory_format=torch.channels_last)
        return torch.addcmul(shift, images, scale)
