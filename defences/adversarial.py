"""Training on the pictures as they are, or on what an attack makes of them."""

from dataclasses import dataclass

from torch.nn.functional import cross_entropy

from attacks import Attack, evaluating


@dataclass(frozen=True)
class Standard:
    """Cross-entropy on the pictures as they are."""

    def loss(self, model, images, labels, *, progress, generator, smoothing=0.0, memory=None):
        logits = model(images)
        return cross_entropy(logits.float(), labels, label_smoothing=smoothing), logits


@dataclass(frozen=True)
class Adversarial:
    """Cross-entropy on adversarial examples, crafted anew on the model at each step (Madry et al. 2017).

    ε rises linearly from 0 over the first `ramp` of the training (step sizes with it): small networks
    that stay at chance when ε starts at its full size learn that way, or from the weights of a standard
    network (pass its model to `train`). While crafting, BatchNorm is in eval mode.
    """

    attack: Attack
    ramp: float = 0.0

    def __post_init__(self):
        if not isinstance(self.attack, Attack):
            raise TypeError(f"attack={self.attack!r}: an attack is needed, for instance PGD()")
        if not 0 <= self.ramp <= 1:
            raise ValueError(f"ramp={self.ramp}: a share of the training, 0 to 1, is needed")

    def loss(self, model, images, labels, *, progress, generator, smoothing=0.0, memory=None):
        attack = self._attack_at(progress)
        if attack is not None:
            with evaluating(model):
                images = attack.craft(model, images, labels, generator)
        logits = model(images)
        return cross_entropy(logits.float(), labels, label_smoothing=smoothing), logits

    def _attack_at(self, progress):
        if progress >= self.ramp:
            return self.attack
        if progress == 0:
            return None
        return self.attack.scaled(progress / self.ramp)
