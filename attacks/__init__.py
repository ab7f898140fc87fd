"""Attacks: settings that print themselves, called with the model that they attack."""

from attacks.apgd import APGD
from attacks.autoattack import AutoAttack, NearFirst
from attacks.autoattack_search import margin, wide
from attacks.base import Attack, dead_gradients, evaluating, in_255ths, input_gradient
from attacks.blackbox import Noise, Square
from attacks.diverse import DIFGSM, SINIFGSM, TIFGSM
from attacks.fab import FAB
from attacks.momentum import MIFGSM, NIFGSM, VMIFGSM, VNIFGSM
from attacks.pgd import FGSM, PGD
from attacks.torchattacks_bridge import Torchattacks

OURS = (
    *(FGSM, PGD, MIFGSM, NIFGSM, VMIFGSM, VNIFGSM, DIFGSM, TIFGSM, SINIFGSM),
    *(APGD, FAB, Noise, Square, AutoAttack, NearFirst),
)
