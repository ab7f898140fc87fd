"""Attacks: settings that print themselves, called with the model that they attack."""

from attacks.base import Attack, dead_gradients, evaluating, in_255ths, input_gradient
from attacks.bridge import Torchattacks
from attacks.momentum import MIFGSM, NIFGSM, VMIFGSM, VNIFGSM
from attacks.pgd import FGSM, PGD

__all__ = [
    "FGSM",
    "MIFGSM",
    "NIFGSM",
    "PGD",
    "VMIFGSM",
    "VNIFGSM",
    "Attack",
    "Torchattacks",
    "by_name",
    "dead_gradients",
    "evaluating",
    "in_255ths",
    "input_gradient",
]

NAMES = {
    "fgsm": FGSM,
    "pgd": PGD,
    "mifgsm": MIFGSM,
    "nifgsm": NIFGSM,
    "vmifgsm": VMIFGSM,
    "vnifgsm": VNIFGSM,
    "pixle": lambda **settings: Torchattacks("Pixle", **settings),
    "autoattack": lambda **settings: Torchattacks("AutoAttack", **settings),
}


def by_name(name, **settings):
    """The attack of that name in its usual configuration, changed by `settings`; ValueError if unknown."""
    key = name.lower().replace("-", "").replace("_", "")
    if key not in NAMES:
        raise ValueError(f"attack {name!r} is not known; the attacks are: {', '.join(NAMES)}")
    return NAMES[key](**settings)
