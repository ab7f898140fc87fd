"""Every flaw, the check that must find it and how severe that is; and how often the checks are right."""

from dataclasses import dataclass, replace

import pandas as pd
from torch import nn

from attacks import FGSM, Attack, Square, Torchattacks
from evaluation import checks
from evaluation.audit import audit, judge
from evaluation.flaws import attacks as broken
from evaluation.flaws import models as flawed
from evaluation.flaws.models import Flawed
from evaluation.flaws.protocols import NormalisedOutside
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
        findings = self.look(lab)
        return any((f.check, f.severity) == (self.check, self.severity) for f in findings), findings


def _tested(around):
    def look(lab):
        attacks = [FGSM(eps=lab.attack.eps), lab.attack]
        return test(Flawed(lab.robust, around), lab.split, attacks, progress=False).findings

    return look


def _audited(around):
    def look(lab):
        model = Flawed(lab.robust, around) if around else lab.robust
        return audit(model, lab.split, lab.attack, surrogates={"its twin": lab.robust}, progress=False).findings

    return look


def _attacked(make, thoroughly=True):
    """The sound model under a broken attack."""

    def look(lab):
        attack = make(lab.attack)
        if thoroughly:
            return audit(lab.robust, lab.split, attack, progress=False).findings
        return test(lab.robust, lab.split, [attack], progress=False).findings

    return look


def _as(kind):
    """The lab's attack, of another kind."""
    return lambda attack: kind(eps=attack.eps, step_size=attack.step_size, steps=attack.steps)


def _blindly(lab):
    attacks = [lab.attack, Square(eps=lab.attack.eps, queries=300)]
    return test(Flawed(lab.robust, flawed.leaky), lab.split, attacks, progress=False).findings


def _bridged(lab):
    attack = Torchattacks("PGD", eps=lab.attack.eps, alpha=lab.attack.step_size, steps=lab.attack.steps)
    return test(Flawed(lab.robust, flawed.scaled), lab.split, [attack], progress=False).findings


def _claimed(share_of):
    """A number that was got in some other way, against the one that is measured."""

    def look(lab):
        scores = test(lab.robust, lab.split, [lab.attack], progress=False)
        label = lab.attack.label
        found = checks.claimed(label, share_of(lab), scores.share(label), scores.interval(label)[1])
        return [found] if found else []

    return look


def _stale(lab):
    return transfer_attack(lab.standard, lab.robust, lab.split, lab.attack, progress=False).robust_accuracy()


def _tenth(lab):
    attack = lab.attack.scaled(0.1)
    return test(lab.robust, lab.split, [attack], progress=False).robust_accuracy()


def _normalised(lab):
    found = NormalisedOutside(lab.robust).zero_eps(lab.split, lab.attack)
    return [found] if found else []


def _leaked(lab):
    half = lab.split.first(len(lab.split) // 2)
    found = checks.leak(lab.split, half)
    return [found] if found else []


def _overfitted(lab):
    history = pd.DataFrame({"accuracy/robust": [0.30, 0.48, 0.51, 0.47, 0.44]})
    return [checks.robust_overfitting(history, 1000)]


def _published(clean, chance=0.1, **robust):
    return lambda lab: judge(clean, robust, chance=chance)


FLAWS = (
    # defences that mask the gradient
    Flaw("quantised input", "masked gradient", "invalid", _tested(flawed.quantised)),
    Flaw("quantised coefficients (JPEG)", "masked gradient", "invalid", _tested(flawed.quantised_blocks)),
    Flaw("detached input", "masked gradient", "invalid", _tested(flawed.detached)),
    Flaw("saturated logits", "masked gradient", "invalid", _tested(flawed.saturated)),
    Flaw("half of the pictures without gradient", "masked gradient", "invalid", _tested(flawed.half_blind)),
    Flaw("NaN gradient", "masked gradient", "invalid", _tested(flawed.broken_gradient)),
    Flaw("scaled logits under torchattacks' PGD", "saturated loss", "invalid", _bridged),
    Flaw("reversed gradient", "collapse", "invalid", _audited(flawed.reversed_gradient)),
    Flaw("random gradient", "black box wins", "suspect", _audited(flawed.random_gradient)),
    Flaw("shattered gradient", "black box wins", "suspect", _audited(flawed.shattered)),
    Flaw("softmax in the model", "logits", "suspect", _tested(flawed.probabilities)),
    Flaw("purified input", "gradients in forward", "suspect", _tested(flawed.purified)),
    Flaw("noise on the input", "randomness", "suspect", _tested(flawed.noisy)),
    Flaw("random shift", "randomness", "suspect", _tested(flawed.shifted_by_chance)),
    Flaw("dropout in eval mode", "randomness", "suspect", _tested(flawed.dropping)),
    Flaw("noise only off the 8-bit grid", "randomness", "suspect", _tested(flawed.noisy_off_the_grid)),
    Flaw("noise under tiny logits", "randomness", "suspect", _tested(flawed.noisy_and_small)),
    Flaw("leaky rounding, beaten by Square", "black box wins", "suspect", _blindly),
    Flaw("outcomes drawn by chance", "repeatable", "invalid", _audited(flawed.noisy)),
    # broken models
    Flaw("NaN logits", "finite logits", "invalid", _tested(flawed.broken)),
    Flaw("NaN logits under attack", "finite logits", "invalid", _tested(flawed.broken_off_the_grid)),
    Flaw("one class for everything", "better than chance", "invalid", _tested(flawed.constant)),
    Flaw("one class for most", "constant predictor", "invalid", _tested(flawed.mostly_one)),
    Flaw("classes in another order", "better than chance", "invalid", _tested(flawed.guessing)),
    Flaw("BatchNorm in training mode", "training mode", "invalid", _tested(flawed.training_mode)),
    Flaw("a buffer that moves", "training mode", "invalid", _tested(flawed.remembering)),
    Flaw("a weight that moves", "training mode", "invalid", _tested(flawed.moving)),
    Flaw("logits centred over the batch", "batch independence", "invalid", _tested(flawed.batch_centred)),
    # broken attacks
    Flaw("attack beyond ε", "inside the ball", "invalid", _attacked(_as(broken.Leaving), False)),
    Flaw("attack beyond ε that hides it", "inside the ball", "invalid", _attacked(_as(broken.Overwriting), False)),
    Flaw(
        "attack beyond [0, 1]",
        "inside the ball",
        "invalid",
        _attacked(lambda a: broken.Unclipped(eps=a.eps), False),
    ),
    Flaw(
        "attack that gives NaN", "finite logits", "invalid", _attacked(lambda a: broken.Broken(eps=a.eps), False)
    ),
    Flaw("attack that changes pictures at ε = 0", "zero ε", "invalid", _attacked(_as(broken.Rewriting))),
    Flaw("attack that descends", "collapse", "invalid", _attacked(_as(broken.Descending))),
    Flaw("attack that forgets its steps", "black box wins", "suspect", _attacked(_as(broken.Forgetful))),
    Flaw(
        "attack on half of the batch, unaudited", "ε not used", "suspect", _attacked(_as(broken.HalfDone), False)
    ),
    Flaw("ε divided by 255 twice", "ε not used", "suspect", _attacked(_as(broken.Shrunk), False)),
    Flaw("attack on the wrong labels", "collapse", "invalid", _attacked(_as(broken.Mislabelled))),
    Flaw("attack on half of the batch", "collapse", "invalid", _attacked(_as(broken.HalfDone))),
    Flaw("steps too short", "step size", "suspect", _attacked(lambda a: replace(a, step_size=0.5 / 255), False)),
    Flaw(
        "α = 2, the division forgotten",
        "step size",
        "suspect",
        _attacked(lambda a: replace(a, step_size=2), False),
    ),
    Flaw("α = 2/225", "step size", "suspect", _attacked(lambda a: replace(a, step_size=2 / 225), False)),
    Flaw("FGSM alone", "more steps", "suspect", _attacked(lambda a: FGSM(eps=a.eps))),
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
    Flaw("a model at chance", "better than chance", "invalid", _published(0.11, FGSM=0.1, PGD=0.1)),
)


def plant(lab, progress=None):
    """Plant every flaw: a table with a row a flaw, and whether it was found by the right check."""
    rows = []
    for flaw in FLAWS:
        hit, findings = flaw.found(lab)
        everything = "; ".join(sorted({finding.check for finding in findings}))
        rows.append([flaw.name, flaw.severity, flaw.check, hit, everything])
        if progress:
            progress(rows[-1])
    return pd.DataFrame(rows, columns=["flaw", "severity", "check", "found", "all findings"])


def confusion(planted, sound):
    """How often the checks were right: a row a kind of evaluation.

    `planted` maps names of labs to tables of `plant`, `sound` maps names of evaluations that nothing is wrong with
    to their findings.
    """
    rows = {}
    for name, table in planted.items():
        for severity, part in table.groupby("severity"):
            rows[f"{name}: planted, {severity}"] = {"evaluations": len(part), "as expected": int(part.found.sum())}
    for severity in ("invalid", "suspect"):
        clear = sum(all(finding.severity != severity for finding in found) for found in sound.values())
        rows[f"sound: nothing {severity}"] = {"evaluations": len(sound), "as expected": clear}
    return pd.DataFrame.from_dict(rows, orient="index")
