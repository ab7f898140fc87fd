"""Every flaw, the check that must find it and how severe that is; and how often the checks are right."""

from dataclasses import dataclass, fields

import pandas as pd
import torch
from torch import nn
from torch.nn.functional import dropout

from attacks import FGSM, PGD, Attack, Square, Torchattacks
from evaluation import checks, comparisons
from evaluation.audit import audit
from evaluation.flaws import attacks as broken
from evaluation.flaws import models as flawed
from evaluation.flaws.models import Flawed
from evaluation.flaws.protocols import NormalisedOutside
from evaluation.published_tables import judge, judged
from evaluation.testing import test
from evaluation.transfer_attack import transfer_attack
from loaders import Split


@dataclass(frozen=True)
class Lab:
    """What flaws are planted in: a standard and an adversarially trained model of the same data, test pictures."""

    standard: nn.Module
    robust: nn.Module
    split: Split
    attack: Attack


@dataclass(frozen=True)
class Flaw:
    """A flaw, the check that must find it, and how severe that is. `look` gets a Lab and returns findings."""

    name: str
    check: str
    severity: str
    look: object

    def found(self, lab):
        """Is it found, by the right check and with the right severity? And all findings."""
        findings = [finding for finding in self.look(lab) if finding]
        return any((f.check, f.severity) == (self.check, self.severity) for f in findings), findings


def _tested(around, attacks=lambda attack: [FGSM(eps=attack.eps), attack]):
    """A flawed model under attacks that are made of the lab's."""
    return lambda lab: test(Flawed(lab.robust, around), lab.split, attacks(lab.attack), progress=False).findings


def _audited(around):
    def look(lab):
        model, twin = Flawed(lab.robust, around), {"its twin": lab.robust}
        return audit(model, lab.split, lab.attack, surrogates=twin, progress=False).findings

    return look


def _attacked(kind=PGD, **changed):
    """The sound model under a broken attack: the lab's, of another kind or with other settings."""
    return lambda lab: test(lab.robust, lab.split, [_like(lab.attack, kind, changed)], progress=False).findings


def _attack_audited(kind):
    return lambda lab: audit(lab.robust, lab.split, _like(lab.attack, kind, {}), progress=False).findings


def _like(attack, kind, changed):
    """An attack of that kind with the settings of another one, as far as it has them, but for what is changed."""
    settings = {field.name: getattr(attack, field.name) for field in fields(kind) if hasattr(attack, field.name)}
    return kind(**settings | changed)


def _and_square(attack):
    return [attack, Square(eps=attack.eps, queries=300)]


def _torchattacks(attack):
    return [Torchattacks("PGD", eps=attack.eps, alpha=attack.step_size, steps=attack.steps)]


def _claimed(wrong):
    """Scores that were got in some other way, against those that are measured."""

    def look(lab):
        scores = test(lab.robust, lab.split, [lab.attack], progress=False)
        label, claim = lab.attack.label, wrong(lab).robust_accuracy()
        return [comparisons.claimed(label, claim, scores.share(label), scores.interval(label)[1])]

    return look


def _stale(lab):
    return transfer_attack(lab.standard, lab.robust, lab.split, lab.attack, progress=False)


def _tenth(lab):
    return test(lab.robust, lab.split, [lab.attack.scaled(0.1)], progress=False)


def _normalised(lab):
    return [NormalisedOutside(lab.robust).zero_eps(lab.split, lab.attack)]


def _leaked(lab):
    return [checks.leak(lab.split, lab.split.first(len(lab.split) // 2))]


def _overfitted(lab):
    history = pd.DataFrame({"accuracy/robust": [0.30, 0.48, 0.51, 0.47, 0.44]})
    return [comparisons.robust_overfitting(history, 1000)]


def _published(clean, chance=0.1, **robust):
    return lambda lab: judge(clean, robust, chance=chance)


def _tabled(**row):
    """A row of a published table as judge_table reads it, in percent, below two sound ones."""
    sound = {
        "clean": 85.0,
        "classes": 10,
        "eps": 8 / 255,
        "reported": 53.4,
        "AutoAttack": 53.4,
        "external": float("nan"),
    }
    return lambda lab: judged(pd.DataFrame([sound, sound, sound | row]))[2]


FLAWS = (
    # defences that mask the gradient
    Flaw("quantised input", "masked gradient", "invalid", _tested(flawed.quantised)),
    Flaw("quantised coefficients (JPEG)", "masked gradient", "invalid", _tested(flawed.quantised_blocks)),
    Flaw("detached input", "masked gradient", "invalid", _tested(lambda inner, x: inner(x.detach()))),
    Flaw("saturated logits", "masked gradient", "invalid", _tested(lambda inner, x: torch.tanh(1000 * inner(x)))),
    Flaw("half of the pictures without gradient", "masked gradient", "invalid", _tested(flawed.half_blind)),
    Flaw("NaN gradient", "masked gradient", "invalid", _tested(flawed.broken_gradient)),
    Flaw(
        "scaled logits under torchattacks' PGD", "saturated loss", "invalid", _tested(flawed.scaled, _torchattacks)
    ),
    Flaw("reversed gradient", "collapse", "invalid", _audited(flawed.reversed_gradient)),
    Flaw("random gradient", "black box wins", "suspect", _audited(flawed.random_gradient)),
    Flaw("shattered gradient", "black box wins", "suspect", _audited(flawed.shattered)),
    Flaw("softmax in the model", "logits", "suspect", _tested(lambda inner, x: inner(x).softmax(1))),
    Flaw("purified input", "gradients in forward", "suspect", _tested(flawed.purified)),
    Flaw("noise on the input", "randomness", "suspect", _tested(flawed.noisy)),
    Flaw("random shift", "randomness", "suspect", _tested(flawed.shifted_by_chance)),
    Flaw("dropout in eval mode", "randomness", "suspect", _tested(lambda inner, x: inner(dropout(x, 0.05)))),
    Flaw("noise only off the 8-bit grid", "randomness", "suspect", _tested(flawed.noisy_off_the_grid)),
    Flaw(
        "noise under tiny logits", "randomness", "suspect", _tested(lambda inner, x: 1e-6 * flawed.noisy(inner, x))
    ),
    Flaw("leaky rounding, beaten by Square", "black box wins", "suspect", _tested(flawed.leaky, _and_square)),
    Flaw("outcomes drawn by chance", "repeatable", "invalid", _audited(flawed.noisy)),
    # broken models
    Flaw("NaN logits", "finite logits", "invalid", _tested(lambda inner, x: inner(x) * torch.nan)),
    Flaw("NaN logits under attack", "finite logits", "invalid", _tested(flawed.broken_off_the_grid)),
    Flaw("one class for everything", "better than chance", "invalid", _tested(flawed.constant)),
    Flaw("one class for most", "constant predictor", "invalid", _tested(flawed.mostly_one)),
    Flaw("classes in another order", "better than chance", "invalid", _tested(flawed.guessing)),
    Flaw("BatchNorm in training mode", "training mode", "invalid", _tested(flawed.training_mode)),
    Flaw("a buffer that moves", "training mode", "invalid", _tested(flawed.remembering)),
    Flaw("a weight that moves", "training mode", "invalid", _tested(flawed.moving)),
    Flaw("logits centred over the batch", "batch independence", "invalid", _tested(flawed.batch_centred)),
    # broken attacks
    Flaw("attack beyond ε", "inside the ball", "invalid", _attacked(broken.Leaving)),
    Flaw("attack beyond ε that hides it", "inside the ball", "invalid", _attacked(broken.Overwriting)),
    Flaw("attack beyond [0, 1]", "inside the ball", "invalid", _attacked(broken.Unclipped)),
    Flaw("attack that gives NaN", "finite logits", "invalid", _attacked(broken.Broken)),
    Flaw("attack that changes pictures at ε = 0", "zero ε", "invalid", _attack_audited(broken.Rewriting)),
    Flaw("attack that descends", "collapse", "invalid", _attack_audited(broken.Descending)),
    Flaw("attack that forgets its steps", "black box wins", "suspect", _attack_audited(broken.Forgetful)),
    Flaw("attack on half of the batch, unaudited", "ε not used", "suspect", _attacked(broken.HalfDone)),
    Flaw("ε divided by 255 twice", "ε not used", "suspect", _attacked(broken.Shrunk)),
    Flaw("attack on the wrong labels", "collapse", "invalid", _attack_audited(broken.Mislabelled)),
    Flaw("attack on half of the batch", "collapse", "invalid", _attack_audited(broken.HalfDone)),
    Flaw("steps too short", "step size", "suspect", _attacked(step_size=0.5 / 255)),
    Flaw("α = 2, the division forgotten", "step size", "suspect", _attacked(step_size=2)),
    Flaw("α = 2/225", "step size", "suspect", _attacked(step_size=2 / 225)),
    Flaw("ε of L2 in L∞", "size of ε", "suspect", _attacked(eps=0.5)),
    Flaw("FGSM alone", "more steps", "suspect", _attack_audited(FGSM)),
    # wrong protocols
    Flaw("stale examples, from the undefended twin", "claim", "invalid", _claimed(_stale)),
    Flaw("ε a tenth of what it says", "claim", "invalid", _claimed(_tenth)),
    Flaw("pictures normalised outside the model", "zero ε", "invalid", _normalised),
    Flaw("test pictures used to choose", "leak", "invalid", _leaked),
    Flaw("robust overfitting unnoticed", "robust overfitting", "suspect", _overfitted),
    Flaw("robust above clean", "robust above clean", "invalid", _published(0.32, FGSM=0.644, PGD=0.644)),
    Flaw("four attacks alike", "attacks alike", "suspect", _published(0.48, FGSM=0.431, PGD=0.43, NI=0.429)),
    Flaw("FGSM far above PGD", "catastrophic overfitting", "invalid", _published(0.85, FGSM=0.8, PGD=0.05)),
    Flaw("PGD weaker than FGSM", "attack order", "suspect", _published(0.8, FGSM=0.4, PGD=0.45)),
    Flaw("reported far above AutoAttack", "refuted", "invalid", _tabled(reported=71.2)),
    Flaw("AutoAttack above an external attack", "refuted", "invalid", _tabled(external=49.0)),
    Flaw("another ε than its neighbours", "ε", "suspect", _tabled(eps=4 / 255)),
    Flaw("no ε", "ε", "suspect", _tabled(eps=None)),
    Flaw("an accuracy above 100 %", "percent", "invalid", _tabled(clean=850.0)),
    Flaw("a model at chance", "better than chance", "invalid", _published(0.11, FGSM=0.1, PGD=0.1)),
)
