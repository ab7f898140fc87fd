"""Attacks that do not do what they say."""

from dataclasses import replace

import torch

from attacks import PGD, Attack


class Leaving(PGD):
    """Goes further than it says."""

    def craft(self, model, images, labels, generator, targeted=False):
        return PGD.craft(replace(self, eps=2 * self.eps), model, images, labels, generator, targeted)


class Overwriting(Leaving):
    """Goes further than it says, and writes over the picture that it is compared with."""

    def craft(self, model, images, labels, generator, targeted=False):
        return images.copy_(super().craft(model, images, labels, generator, targeted))


class Unclipped(Attack):
    """Forgets that pixels end at 0 and 1."""

    def craft(self, model, images, labels, generator, targeted=False):
        return images + self.eps * torch.empty_like(images).uniform_(-1, 1, generator=generator).sign()


class Broken(Attack):
    """Gives NaN."""

    def craft(self, model, images, labels, generator, targeted=False):
        return images * torch.nan


class Rewriting(PGD):
    """Stores its pictures with 4 bits: they change without any ε."""

    def craft(self, model, images, labels, generator, targeted=False):
        found = super().craft(model, images, labels, generator, targeted)
        return (found * 15).round() / 15


class Descending(PGD):
    """Walks down where it should climb."""

    def craft(self, model, images, labels, generator, targeted=False):
        return super().craft(model, images, labels, generator, not targeted)


class Forgetful(PGD):
    """Begins each step from the picture again, so that only the last one counts."""

    def craft(self, model, images, labels, generator, targeted=False):
        once = replace(self, steps=1, random_start=False)
        return PGD.craft(once, model, images, labels, generator, targeted)


class Mislabelled(PGD):
    """Climbs the loss of the next class in place of the picture's own."""

    def craft(self, model, images, labels, generator, targeted=False):
        with torch.no_grad():
            classes = model(images[:1]).shape[1]
        return super().craft(model, images, (labels + 1) % classes, generator, targeted)


class Shrunk(PGD):
    """Divides ε and the step size by 255 once more."""

    def craft(self, model, images, labels, generator, targeted=False):
        return PGD.craft(replace(self, **vars(self.scaled(1 / 255))), model, images, labels, generator, targeted)


class HalfDone(PGD):
    """Leaves the second half of each batch as it is."""

    def craft(self, model, images, labels, generator, targeted=False):
        half = (len(images) + 1) // 2
        return torch.cat([super().craft(model, images[:half], labels[:half], generator, targeted), images[half:]])
