"""What tests of networks share: pictures, and how far gradients are apart."""

import torch


def pictures(count=8, side=32):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, side, side, generator=generator).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(10, (count,), generator=generator)


def distance(gradient, reference):
    """Relative L2 distance, the median of the examples: rounding may flip a ReLU in one of them."""
    gap = (gradient.double() - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)
    return float(gap.median())
