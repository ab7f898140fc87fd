"""Momentum attacks on many views of a picture, so that they fit no single network too closely. L∞ only.

DI-FGSM      Xie et al. 2018, arXiv:1803.06978: shrunk and shifted at random
TI-FGSM      Dong et al. 2019, arXiv:1904.02884: the gradient is blurred, as if over shifted copies
SI-NI-FGSM   Lin et al. 2019, arXiv:1908.06281: over darker copies, with Nesterov's look ahead
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import conv2d

from attacks.base import input_gradient
from attacks.momentum import MIFGSM
from attacks.settings import setting


@dataclass(frozen=True, kw_only=True, repr=False)
class DIFGSM(MIFGSM):
    """MI-FGSM whose gradient is, with `probability`, that of pictures shrunk and put on black at random.

    The side shrinks to between `smallest` times itself and itself; at each step there is one draw for the batch.
    """

    probability: float = setting(0.5, 0, 1)
    smallest: float = setting(0.9, 0, 1, open_low=True)

    def _gradient(self, model, images, labels, generator, targeted):
        # Tensors, not numbers: the device decides, and nobody waits for it. Of full size nothing changes.
        change, side, top, left = torch.rand(4, generator=generator, device=images.device)
        side = torch.where(change < self.probability, side, 1)
        return input_gradient(
            lambda points: model(_shrunk(points, self.smallest, side, top, left)), images, labels, targeted
        )


def _shrunk(images, smallest, side, top, left):
    """Smaller pictures on black, as large as before; the scalar tensors, 0 to 1, are from least to most."""
    down, across = (
        _shrinking(length, smallest, side, shift).to(images.dtype)
        for length, shift in zip(images.shape[2:], (top, left), strict=True)
    )
    with torch.autocast(images.device.type, enabled=False):
        return down @ images @ across.T


def _shrinking(length, smallest, side, shift):
    """The matrix (length, length), float64, that shrinks lines bilinearly and puts them on black."""
    least = max(1, int(smallest * length))
    size = (least + (side * (length - least + 1)).floor()).clamp_max(length).double()
    before = (shift * (length - size + 1)).floor()
    places = torch.arange(length, device=side.device, dtype=torch.float64)
    kept = places - before  # where each pixel is in the small line
    source = ((kept + 0.5) * length / size - 0.5).clamp(0, length - 1)
    weights = 1 - (source[:, None] - places).abs()
    shown = (weights > 1e-9) & ((kept >= 0) & (kept < size))[:, None]  # what rounding leaves has no say in a sign
    return torch.where(shown, weights, 0)


@dataclass(frozen=True, kw_only=True, repr=False)
class TIFGSM(MIFGSM):
    """MI-FGSM whose gradients are blurred by a Gaussian, `kernel` pixels a side, three deviations to its edge.

    The paper takes 15 of 299 pixels; these are for pictures of 32.
    """

    kernel: int = setting(5, 1, 99, hint="An odd number of pixels")

    def __post_init__(self):
        super().__post_init__()
        if self.kernel % 2 == 0:
            raise ValueError(f"TIFGSM: kernel={self.kernel}; an odd number of pixels is needed")

    def _gradient(self, model, images, labels, generator, targeted):
        gradient, channels = super()._gradient(model, images, labels, generator, targeted), images.shape[1]
        deviations = torch.linspace(-3, 3, self.kernel, dtype=images.dtype, device=images.device)
        line = deviations.square().mul(-0.5).exp()
        blur = torch.outer(line, line) / line.sum() ** 2
        return conv2d(gradient, blur.expand(channels, 1, -1, -1), padding=self.kernel // 2, groups=channels)


@dataclass(frozen=True, kw_only=True, repr=False)
class SINIFGSM(MIFGSM):
    """NI-FGSM with the mean gradient of `copies` of the pictures, each half as bright as the one before."""

    copies: int = setting(5, 1, 100)

    look_ahead = True

    def _gradient(self, model, images, labels, generator, targeted):
        total = torch.zeros_like(images)
        for copy in range(self.copies):
            total += input_gradient(lambda points, c=copy: model(points / 2**c), images, labels, targeted, True)
        return total.div_(self.copies)
