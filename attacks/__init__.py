"""Attacks: settings that print themselves, called with the model that they attack."""

from attacks.apgd import APGD
from attacks.autoattack import AutoAttack
from attacks.autoattack_search import fast_bfloat16, margin, wide
from attacks.base import Attack, dead_gradients, evaluating, in_255ths, input_gradient
from attacks.blackbox import Noise, Square
from attacks.diverse import DIFGSM, SINIFGSM, TIFGSM
from attacks.fab import FAB
from attacks.momentum import MIFGSM, NIFGSM, VMIFGSM, VNIFGSM
from attacks.pgd import FGSM, PGD
from attacks.torchattacks_bridge import Torchattacks

__all__ = [
    "APGD",
    "DIFGSM",
    "FAB",
    "FGSM",
    "MIFGSM",
    "NIFGSM",
    "PGD",
    "SINIFGSM",
    "TIFGSM",
    "VMIFGSM",
    "VNIFGSM",
    "Attack",
    "AutoAttack",
    "Noise",
    "Square",
    "Torchattacks",
    "by_name",
    "dead_gradients",
    "evaluating",
    "fast_bfloat16",
    "in_255ths",
    "input_gradient",
    "margin",
    "wide",
]

NAMES = {
    "fgsm": FGSM,
    "pgd": PGD,
    "mifgsm": MIFGSM,
    "nifgsm": NIFGSM,
    "vmifgsm": VMIFGSM,
    "vnifgsm": VNIFGSM,
    "difgsm": DIFGSM,
    "tifgsm": TIFGSM,
    "sinifgsm": SINIFGSM,
    "pixle": lambda **settings: Torchattacks("Pixle", **settings),
    "apgd": APGD,
    "apgdt": lambda **settings: APGD(**{"loss": "targeted"} | settings),
    "fab": FAB,
    "noise": Noise,
    "square": Square,
    "autoattack": AutoAttack,
}


def by_name(name, **settings):
    """The attack of that name in its usual configuration, changed by `settings`; ValueError if unknown."""
    key = name.lower().replace("-", "").replace("_", "")
    if key not in NAMES:
        raise ValueError(f"attack {name!r} is not known; the attacks are: {', '.join(NAMES)}")
    return NAMES[key](**settings)
