"""AutoAttack (Croce & Hein 2020, arXiv:2003.01690): four attacks, each on what the others have left; L∞ and L2.

And a cheaper sequence of the same attacks, which is not AutoAttack.
"""

from dataclasses import dataclass

import torch

from attacks.apgd import APGD
from attacks.autoattack_search import exactly, margin, wide
from attacks.base import Attack
from attacks.blackbox import Square
from attacks.fab import FAB
from attacks.pgd import PGD
from attacks.settings import NORMS, choice, norm_setting, setting
from processes.machine import PRECISIONS


class Sequence(Attack):
    """Attacks one after the other, its `stages`, each on what the ones before have left."""

    def craft(self, model, images, labels, generator, targeted=False):
        if targeted:
            raise ValueError(f"{self} chooses its classes itself; APGD(loss='ce') takes targets")
        found, standing = images.clone(), torch.arange(len(images), device=images.device)
        for stage in self.stages:
            if not len(standing):
                break
            points = stage.craft(model, images[standing], labels[standing], generator)
            found[standing] = points
            standing = standing[exactly(model, points).argmax(1) == labels[standing]]
        return found


@dataclass(frozen=True, kw_only=True, repr=False)
class AutoAttack(Sequence):
    """APGD-CE, targeted APGD-DLR, FAB-T and Square; `version="rand"`, for models that answer at random: APGD-CE
    and APGD-DLR, each with gradients averaged over 20 passes.

    Without its own settings it is the standard that papers report; `steps`, `queries` and `targets` make it
    cheaper, and then it says so. `precision` as for APGD and Square.
    """

    version: str = choice("standard", "rand")
    steps: int = setting(100, 1)
    targets: int = setting(9, 1)
    queries: int = setting(5000, 1)
    precision: str = choice(*PRECISIONS)
    norm: str = norm_setting(*NORMS)

    @property
    def stages(self):
        ball = {"eps": self.eps, "norm": self.norm}
        shared = ball | {"steps": self.steps, "precision": self.precision}
        if self.version == "rand":
            return (APGD(**shared, samples=20), APGD(**shared, samples=20, loss="dlr"))
        square = Square(**ball, queries=self.queries, precision=self.precision)
        targeted = APGD(**shared, loss="targeted", targets=self.targets)
        fab = FAB(**ball, steps=self.steps, targets=self.targets)
        return (APGD(**shared), targeted, fab, square)

    @property
    def label(self):
        weaker = self.steps < 100 or (self.version == "standard" and (self.targets < 9 or self.queries < 5000))
        kind = "" if self.version == "standard" else f", {self.version}"
        return f"AutoAttack{kind}{', cut short' if weaker else ''}"


@dataclass(frozen=True, kw_only=True, repr=False)
class NearFirst(Sequence):
    """AutoAttack's attacks, their time spent on the pictures that are nearest to falling. It is not AutoAttack.

    Short runs of APGD-CE and APGD-T with three targets on all; then, on the nearest third of what is left, APGD-T
    with nine targets and `steps` steps, and Square with `queries` queries. It has no FAB. benchmarks/autoattack.py
    holds it against the standard. Report AutoAttack's number; a network that masks its gradient needs that.
    """

    steps: int = setting(100, 1)
    queries: int = setting(1000, 1)
    precision: str = choice(*PRECISIONS)
    norm: str = norm_setting(*NORMS)

    @property
    def stages(self):
        ball, shared = {"eps": self.eps, "norm": self.norm}, {"precision": self.precision}
        first = APGD(**ball, **shared, steps=max(1, self.steps // 5))
        few = APGD(**ball, **shared, steps=max(1, 3 * self.steps // 10), loss="targeted", targets=3)
        many = APGD(**ball, **shared, steps=self.steps, loss="targeted")
        square = Square(**ball, **shared, queries=self.queries)
        return (first, few, Nearest(**ball, attack=many), Nearest(**ball, attack=square))

    @property
    def label(self):
        return f"NearFirst{', cut short' if self.steps < 100 or self.queries < 1000 else ''}"


@dataclass(frozen=True, kw_only=True, repr=False)
class Nearest(Attack):
    """An attack on the third of the pictures that PGD brings nearest to being wrong; others get PGD's points."""

    attack: Attack
    norm: str = norm_setting(*NORMS)

    @property
    def label(self):
        return f"{self.attack.label} on the nearest"

    def craft(self, model, images, labels, generator, targeted=False):
        pgd = PGD(eps=self.eps, step_size=self.eps / 4 or None, norm=self.norm)
        points = pgd.craft(model, images, labels, generator, targeted)
        logits = wide(exactly(model, points))
        near = margin(logits, labels).argsort(stable=True)
        near = near[logits.argmax(1)[near] == labels[near]][: -(-len(images) // 3)]
        if len(near):
            points[near] = self.attack.craft(model, images[near], labels[near], generator, targeted)
        return points
