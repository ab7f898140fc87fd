"""Attacks that do not do what they say."""

from dataclasses import replace

import torch

from attacks import PGD, Attack, input_gradient


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


class OverTheBatch(PGD):
    """Takes the length of a gradient, and of a change, over the whole batch: each picture gets its part of ε."""

    def craft(self, model, images, labels, generator, targeted=False):
        part = self.scaled(len(images) ** -0.5)
        return PGD.craft(replace(self, **vars(part)), model, images, labels, generator, targeted)


class Rounding(PGD):
    """Rounds to 8 bits after each step, so that steps under half of 1/255 never add up."""

    def craft(self, model, images, labels, generator, targeted=False):
        once = replace(self, steps=1, random_start=False)
        for _ in range(self.steps):
            images = PGD.craft(once, model, images, labels, generator, targeted).mul(255).round().div(255)
        return images


class OneForAll(PGD):
    """The gradient is averaged over the batch: one change for all of its pictures."""

    def craft(self, model, images, labels, generator, targeted=False):
        change = torch.zeros_like(images[:1])
        for _ in range(self.steps):
            gradient = input_gradient(model, (images + change).clamp(0, 1), labels, targeted)
            change = (change + self.step_size * gradient.mean(0, keepdim=True).sign()).clamp(-self.eps, self.eps)
        return (images + change).clamp(0, 1)


class StopsEarly(PGD):
    """Stops all of the batch as soon as one of its pictures is fooled."""

    def craft(self, model, images, labels, generator, targeted=False):
        for steps in range(1, self.steps + 1):
            found = PGD.craft(replace(self, steps=steps, random_start=False), model, images, labels, generator)
            with torch.no_grad():
                if bool((model(found).argmax(1) != labels).any()):
                    break
        return found


class OneChannel(PGD):
    """A mask of the wrong shape: only the red of each pixel is changed."""

    def craft(self, model, images, labels, generator, targeted=False):
        found = super().craft(model, images, labels, generator, targeted)
        return torch.cat([found[:, :1], images[:, 1:]], 1)
