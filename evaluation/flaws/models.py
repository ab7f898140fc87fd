"""Models with something wrong: functions that get a sound model and the pictures, and answer with logits."""

import copy

import torch
from torch import nn


class Flawed(nn.Module):
    """A copy of a sound model with something wrong around it: `around(inner, images)` gives the logits."""

    def __init__(self, inner, around):
        super().__init__()
        self.inner, self.around = copy.deepcopy(inner), around

    def forward(self, images):
        return self.around(self.inner, images)


def quantised(inner, images):
    """Pixels of 20 steps: the derivative of rounding is zero."""
    return inner((images * 20).round() / 20)


def quantised_blocks(inner, images):
    """The coefficients of 8x8 blocks, rounded, as JPEG does."""
    line = torch.arange(8, device=images.device)
    basis = torch.cos((2 * line[None, :] + 1) * line[:, None] * torch.pi / 16) / 2
    basis[0] /= 2**0.5
    blocks = images.unfold(2, 8, 8).unfold(3, 8, 8)
    kept = ((basis @ blocks @ basis.T) * 16).round() / 16
    rows, columns = blocks.shape[2:4]
    back = (basis.T @ kept @ basis).permute(0, 1, 2, 4, 3, 5)
    return inner(back.reshape(*images.shape[:2], 8 * rows, 8 * columns).clamp(0, 1))


def scaled(inner, images):
    """Logits so large that every probability is 0 or 1; only the textbook's loss suffers."""
    return 20_000 * inner(images)


def half_blind(inner, images):
    """Every other picture is answered without a gradient."""
    hidden = torch.arange(len(images), device=images.device) % 2 == 0
    return inner(torch.where(hidden[:, None, None, None], images.detach(), images))


def broken_gradient(inner, images):
    """The derivative of a square root at zero is infinite, and times zero NaN."""
    return inner(images) + (images * 0).sum((1, 2, 3)).sqrt()[:, None]


def _with_gradient(images, change):
    """The same pictures, with another gradient."""
    images = images.clone()
    if images.requires_grad:
        images.register_hook(change)
    return images


def reversed_gradient(inner, images):
    """The gradient points the wrong way."""
    return inner(_with_gradient(images, torch.neg))


def random_gradient(inner, images):
    """The gradient is noise, the same for the same picture."""

    def noise(gradient):
        generator = torch.Generator(gradient.device).manual_seed(0)
        return torch.empty_like(gradient).normal_(generator=generator)

    return inner(_with_gradient(images, noise))


def shattered(inner, images):
    """A ripple too small to be seen, and too steep for a gradient to be of use."""
    return inner(Ripple()(images))


def shifted_by_chance(inner, images):
    """Each pass shifts the pictures by up to two pixels."""
    down, right = torch.randint(-2, 3, (2,)).tolist()
    return inner(torch.roll(images, (down, right), (2, 3)))


def noisy(inner, images):
    return inner(images + 0.05 * torch.randn_like(images))


def _off_the_grid(images):
    return ((images * 255 - (images * 255).round()).abs() > 1e-3).flatten(1).any(1)[:, None]


def noisy_off_the_grid(inner, images):
    """Random only for pictures that are none of 8 bits, as adversarial ones are."""
    noise = 0.05 * torch.randn_like(images) * _off_the_grid(images)[:, :, None, None]
    return inner(images + noise)


def leaky(inner, images):
    """Rounded, with a trace of a gradient that leads nowhere."""
    classes = torch.arange(inner(images[:1]).shape[1], device=images.device)
    return quantised(inner, images) + 1e-6 * images.mean((1, 2, 3))[:, None] * classes


def moving(inner, images):
    """A weight moves a little whenever it is asked."""
    with torch.no_grad():
        next(inner.parameters()).mul_(1.0001)
    return inner(images)


def purified(inner, images):
    """One step towards what the model believes, before it answers."""
    with torch.enable_grad():
        asked = images.detach().requires_grad_()
        doubt = -inner(asked).log_softmax(1).amax(1).sum()
        (away,) = torch.autograd.grad(doubt, asked)
    return inner((images - 4 / 255 * away.sign()).clamp(0, 1))


def training_mode(inner, images):
    """BatchNorm with the statistics of the test batch."""
    inner.train()
    return inner(images)


def batch_centred(inner, images):
    logits = inner(images)
    return logits - 5 * (logits - logits.mean(0))


def remembering(inner, images):
    """Keeps count of what it is asked."""
    inner.register_buffer("seen", getattr(inner, "seen", torch.zeros(())) + 1)
    return inner(images)


def broken_off_the_grid(inner, images):
    """NaN for pictures that are none of 8 bits, as adversarial ones are."""
    return torch.where(_off_the_grid(images), torch.nan, inner(images))


def constant(inner, images):
    logits = inner(images) * 0
    logits[:, 0] += 1
    return logits


def mostly_one(inner, images):
    """One class for 70 % of the pictures, whatever they show."""
    logits = inner(images)
    first = torch.zeros_like(logits)
    first[:, 0] = 1000 * (images.flatten(1).sum(1) * 1000 % 10 < 7)
    return logits + first


def guessing(inner, images):
    """Its classes are in another order than the data's."""
    return inner(images).roll(1, dims=1)


def borrowed_gradient(inner, images):
    """A straight-through estimate that lies: the answers are the network's, the gradient is that of its mirror."""
    mirrored = inner(images.flip(3))
    return mirrored + (inner(images) - mirrored).detach()


def never_says(index):
    """A class that is never said, as if its output had been left out."""
    return lambda inner, images: inner(images).index_fill(1, index, -1000)


def sharp_off_the_grid(inner, images):
    """Wrong for whatever is none of 8 bits: only an attack on floats finds that."""
    logits = inner(images)
    return torch.where(_off_the_grid(images), logits.roll(1, 1), logits)


class Ripple(nn.Module):
    """A layer that adds a ripple too small to be seen."""

    def forward(self, images):
        return images + 0.004 * torch.sin(2000 * torch.pi * images)


class LeakyRounding(nn.Module):
    """A layer that rounds to 20 steps, and lets a gradient through that leads nowhere."""

    def forward(self, images):
        ripple = 1e-5 * torch.sin(5000 * images)
        return (images * 20).round() / 20 + ripple - ripple.detach()


def behind(layer):
    """A function of a model and pictures: the same model behind such a layer."""
    return lambda model, images: nn.Sequential(layer(), copy.deepcopy(model))


def behind_batchnorm(model, images, off):
    """The same model behind BatchNorm that changes nothing, if its statistics were not so many deviations off."""
    norm = nn.BatchNorm2d(images.shape[1]).to(images.device)
    std, mean = torch.std_mean(images, (0, 2, 3))
    state = {"weight": std, "bias": mean, "running_mean": mean + off * std, "running_var": (1 + off) ** 2 * std**2}
    norm.load_state_dict(norm.state_dict() | state)
    return nn.Sequential(norm, copy.deepcopy(model))
