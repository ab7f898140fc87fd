"""AutoAttack (Croce & Hein 2020, arXiv:2003.01690): four attacks, each on what the others have left; L∞ and L2."""

from dataclasses import dataclass

import torch

from attacks.apgd import APGD
from attacks.autoattack_search import PRECISIONS
from attacks.base import NORMS, Attack, choice, norm_setting, setting
from attacks.blackbox import Square
from attacks.fab import FAB


@dataclass(frozen=True, kw_only=True, repr=False)
class AutoAttack(Attack):
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

    def craft(self, model, images, labels, generator, targeted=False):
        if targeted:
            raise ValueError(f"{self} chooses its classes itself; APGD(loss='ce') takes targets")
        found, standing = images.clone(), torch.arange(len(images), device=images.device)
        for stage in self.stages:
            if not len(standing):
                break
            points = stage.craft(model, images[standing], labels[standing], generator)
            found[standing] = points
            with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
                right = model(points).argmax(1) == labels[standing]
            standing = standing[right]
        return found
