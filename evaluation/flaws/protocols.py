"""Protocols that measure something else than they say, and what is set beside them."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn.functional import interpolate

from attacks import evaluating
from evaluation import checks, comparisons
from evaluation.batch_sizes import BATCH
from loaders import Split
from models import Normalise, copied, model_of


def stale_split(source, split, attack, seed=0):
    """The pictures of a split, attacked once on `source` and stored with 8 bits: what becomes of them is stale."""
    generator = torch.Generator(split.labels.device).manual_seed(seed)
    parts = []
    with evaluating(source):
        for images, labels in split.batches(BATCH[split.labels.device.type]):
            parts.append(attack.craft(source, images, labels, generator).mul(255).round().to(torch.uint8))
    name = f"{split.name}, attacked once on another model"
    return Split(torch.cat(parts), split.labels, split.classes, name, split.mirror)


class NormalisedOutside(nn.Module):
    """A model that is given normalised pictures, as a loader would make them, with the attack in between.

    `outside(images)` is what the loader gives; an attack on that clips to [0, 1], and its ε has another unit.
    """

    def __init__(self, inner, mean=0.47, std=0.25):
        super().__init__()
        self.inner, self.mean, self.std = inner, mean, std

    def outside(self, images):
        return (images - self.mean) / self.std

    def forward(self, normalised):
        return self.inner(normalised * self.std + self.mean)

    def accuracy(self, split, attack=None, clip=True, seed=0):
        """Accuracy as that protocol counts it; with an attack that clips to [0, 1], or does not clip at all."""
        generator = torch.Generator(split.labels.device).manual_seed(seed)
        # Unclipped, pictures are shrunk into [0, 1] and back, so that the attack's own clipping does nothing.
        low, size = (0, 1) if clip else (-8, 16)
        hits = 0
        with evaluating(self):
            for images, labels in split.batches(BATCH[split.labels.device.type]):
                given = self.outside(images)
                if attack is not None:
                    shrunk, small = (given - low) / size, attack.scaled(1 / size)
                    found = small.craft(lambda x: self(x * size + low), shrunk, labels, generator)
                    given = found * size + low
                with torch.no_grad():
                    hits += int((self(given).argmax(1) == labels).sum())
        return hits / len(split)

    def zero_eps(self, split, attack):
        """What the check of ε = 0 says of an attack on pictures that are not in [0, 1]."""
        images, labels = split.batch(torch.arange(4, device=split.labels.device))
        given, still = self.outside(images), replace(attack, eps=0.0)
        with evaluating(self):
            found = still.craft(self, given, labels, torch.Generator(images.device).manual_seed(0))
        return checks.zero_eps(attack, float((found - given).abs().max()))


def beside(claimed, scores, label, findings=None):
    """A row of the table that sets a wrong protocol beside the right one, shares from 0 to 1.

    Without findings of its own, a protocol is judged by its claim alone.
    """
    low, high = scores.interval(label)
    if findings is None:
        findings = [comparisons.claimed(label, claimed, scores)]
    caught = "; ".join(dict.fromkeys(f"{f.check} ({f.severity})" for f in findings if f)) or "nothing"
    row = {"claimed": claimed, "true": scores.share(label), "low": low, "high": high, "n": scores.n}
    return row | {"found by": caught}


def not_loaded(source, images):
    """The source's structure with fresh weights: a file whose names did not fit, and nobody asked."""
    fresh = copied(source)
    for layer in fresh.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    return fresh


def with_fresh_head(source, images):
    """The source with a new head that nobody has trained."""
    model = copied(source)
    model.network.get_submodule(model.find_head(images)).reset_parameters()
    return model


def normalised_twice(source, images):
    """The source, its pictures normalised in the loader, and in the model once more."""
    again = Normalise((0.47,) * images.shape[1], (0.25,) * images.shape[1]).to(images.device)
    return model_of(nn.Sequential(again, copied(source)))


def changed(split, larger=1):
    """The same pictures a little brighter, noisier and so many times larger: no checksum finds them."""
    images = interpolate(split.images.float(), scale_factor=larger)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images.device)
    images = (1.05 * images + 5 + 2 * noise).clamp(0, 255).to(torch.uint8)
    return Split(images, split.labels, split.classes, f"{split.name}, changed")


def targets_reached(model, split, attack, seed=0):
    """The share that is right and is not led to the one class that the attack aims at, as if all else held."""
    generator, held = torch.Generator(split.labels.device).manual_seed(seed), 0
    with evaluating(model):
        for images, labels in split.batches(BATCH[split.labels.device.type]):
            targets = (labels + 1) % split.num_classes
            found = attack.craft(model, images, targets, generator, targeted=True)
            with torch.no_grad():
                held += int(((model(images).argmax(1) == labels) & (model(found).argmax(1) != targets)).sum())
    return held / len(split)
