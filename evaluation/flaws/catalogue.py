"""Every flaw, the check that must find it and how severe that is; and how often the checks are right."""

from dataclasses import dataclass, fields, replace

import pandas as pd
import torch
from torch import nn
from torch.nn.functional import dropout

from attacks import FGSM, PGD, Attack, Noise, Square, Torchattacks, evaluating, margin
from attacks.base import whole_range
from evaluation import checks, comparisons, duplicates
from evaluation.audit import audit
from evaluation.finding import CLEAN, WORST
from evaluation.flaws import attacks as broken
from evaluation.flaws import models as flawed
from evaluation.flaws import protocols
from evaluation.flaws.models import Flawed
from evaluation.flaws.protocols import NormalisedOutside
from evaluation.per_example import predict
from evaluation.published_tables import judge, judged
from evaluation.testing import test
from evaluation.transfer_attack import transfer_attack
from loaders import Split
from models import model_of, wrap


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


def _attack_audited(kind=PGD, **changed):
    return lambda lab: audit(lab.robust, lab.split, _like(lab.attack, kind, changed), progress=False).findings


def _like(attack, kind, changed):
    """An attack of that kind with the settings of another one, as far as it has them, but for what is changed."""
    settings = {field.name: getattr(attack, field.name) for field in fields(kind) if hasattr(attack, field.name)}
    return kind(**settings | changed)


def _and_square(attack):
    return [attack, Square(eps=attack.eps, queries=300)]


def _torchattacks(attack):
    return [Torchattacks("PGD", eps=attack.eps, alpha=attack.step_size, steps=attack.steps)]


def _claimed(wrong):
    """A robust accuracy that was got in some other way, against the one that is measured."""

    def look(lab):
        scores = test(lab.robust, lab.split, [lab.attack], progress=False)
        return [comparisons.claimed(lab.attack.label, wrong(lab), scores)]

    return look


def _stale(lab):
    return transfer_attack(lab.standard, lab.robust, lab.split, lab.attack, progress=False).robust_accuracy()


def _tenth(lab):
    return test(lab.robust, lab.split, [lab.attack.scaled(0.1)], progress=False).robust_accuracy()


def _normalised(lab):
    return [NormalisedOutside(lab.robust).zero_eps(lab.split, lab.attack)]


def _leaked(lab):
    return [checks.leak(lab.split, lab.split.first(len(lab.split) // 2))]


def _overfitted(lab):
    history = pd.DataFrame({"accuracy/robust": [0.30, 0.48, 0.51, 0.47, 0.44]})
    return [comparisons.robust_overfitting(history, 1000)]


def _audited_model(make):
    """A flawed model, made of the sound one and the pictures, that nobody knows a twin of."""

    def look(lab):
        model = make(lab.robust, lab.split.batch(slice(None))[0])
        return audit(model, lab.split, lab.attack, progress=False).findings

    return look


def _in_l2(look):
    """The same in L2: ε is the longest change that the lab's ε allows in L∞."""

    def there(lab):
        eps = lab.attack.eps * whole_range("L2", lab.split.images)
        return look(replace(lab, attack=PGD(norm="L2", eps=eps, steps=lab.attack.steps)))

    return there


def _never_said(lab):
    commonest = lab.split.labels.bincount().argmax()
    return _audited(flawed.never_says(commonest))(lab)


def _rounding(lab):
    step = 0.4 / 255
    attack = broken.Rounding(eps=lab.attack.eps, step_size=step, steps=int(lab.attack.eps / step) + 1)
    return test(lab.robust, lab.split, [attack], progress=False).findings


def _stale_norm(model, images):
    return flawed.behind_batchnorm(model, images, 5)


def _sharp(lab):
    """Logits so large that the textbook's gradient is lost beside the 1e-10 that is added to its length."""
    usual = float(margin(predict(lab.standard, lab.split), lab.split.labels).median())
    attack = Torchattacks("PGDL2", eps=lab.attack.eps, alpha=lab.attack.step_size, steps=lab.attack.steps)
    return audit(
        wrap(lab.standard, logits=lambda out: 45 / usual * out), lab.split, attack, progress=False
    ).findings


def _frozen(make, off=None):
    """What should have the features of the sound model; with `off`, of the same behind BatchNorm."""

    def look(lab):
        images = lab.split.batch(slice(0, 32))[0]
        source = model_of(lab.robust if off is None else flawed.behind_batchnorm(lab.robust, images, 0))
        other = model_of(make(source, images) if off is None else flawed.behind_batchnorm(lab.robust, images, off))
        with evaluating(source), evaluating(other):
            return [checks.frozen_features(source, other, images)]

    return look


def _fresh_head(lab):
    model = protocols.with_fresh_head(model_of(lab.robust), lab.split.batch(slice(0, 32))[0])
    known, scores = (test(each, lab.split, progress=False) for each in (lab.robust, model))
    return [comparisons.claimed(CLEAN, known.clean_accuracy, scores)]


def _mean_of_attacks(lab):
    attacks = [Noise(eps=lab.attack.eps), lab.attack.scaled(0.1), lab.attack]
    scores = test(lab.robust, lab.split, attacks, progress=False)
    mean = sum(map(scores.share, scores.attacks)) / len(attacks)
    return [comparisons.claimed(WORST, mean, scores)]


def _targets(lab):
    return protocols.targets_reached(lab.robust, lab.split, lab.attack)


def _two_sizes(lab):
    attacks = [lab.attack, lab.attack.scaled(0.5)]
    return test(lab.robust, lab.split, attacks, progress=False).findings


def _one_class(lab):
    rows = (lab.split.labels == lab.split.labels[0]).nonzero()[:, 0]
    return test(lab.robust, lab.split.some(rows), [lab.attack], progress=False).findings


def _near(larger=1):
    def look(lab):
        return [duplicates.near_leak(lab.split, protocols.changed(lab.split.first(len(lab.split) // 4), larger))]

    return look


def _shared(lab):
    source = [name.upper().replace(" ", "_") for name in lab.split.classes] + ["something else"]
    return [duplicates.shared_classes(source, lab.split.classes)]


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


FLAWED_MODELS = (
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
    Flaw(
        "straight-through gradient of another picture", "gradient", "suspect", _audited(flawed.borrowed_gradient)
    ),
    Flaw(
        "ripple in a layer, no twin known",
        "black box wins",
        "suspect",
        _audited_model(flawed.behind(flawed.Ripple)),
    ),
    Flaw(
        "leaky rounding in a layer, no twin known",
        "black box wins",
        "suspect",
        _audited_model(flawed.behind(flawed.LeakyRounding)),
    ),
    Flaw("sharp logits under torchattacks' PGDL2", "logit scale", "suspect", _in_l2(_sharp)),
    Flaw("answers another class off the 8-bit grid", "8 bits", "suspect", _audited(flawed.sharp_off_the_grid)),
    # broken models
    Flaw("NaN logits", "finite logits", "invalid", _tested(lambda inner, x: inner(x) * torch.nan)),
    Flaw("NaN logits under attack", "finite logits", "invalid", _tested(flawed.broken_off_the_grid)),
    Flaw("one class for everything", "no better than chance", "invalid", _tested(flawed.constant)),
    Flaw("one class for most", "constant predictor", "invalid", _tested(flawed.mostly_one)),
    Flaw("classes in another order", "no better than chance", "invalid", _tested(flawed.guessing)),
    Flaw("BatchNorm in training mode", "training mode", "invalid", _tested(flawed.training_mode)),
    Flaw("a buffer that moves", "training mode", "invalid", _tested(flawed.remembering)),
    Flaw("a weight that moves", "training mode", "invalid", _tested(flawed.moving)),
    Flaw("logits centred over the batch", "batch independence", "invalid", _tested(flawed.batch_centred)),
    Flaw("a class that is never said", "worst class", "suspect", _never_said),
    Flaw(
        "averaged weights with other ones' BatchNorm",
        "BatchNorm statistics",
        "suspect",
        _audited_model(_stale_norm),
    ),
)

FLAWED_ATTACKS = (
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
    Flaw("steps that reach ε, but not across", "known truth", "suspect", _attack_audited(step_size=1 / 255)),
    Flaw("α = 2, the division forgotten", "step size", "suspect", _attacked(step_size=2)),
    Flaw("α = 2/225", "step size", "suspect", _attacked(step_size=2 / 225)),
    Flaw("ε of L2 in L∞", "size of ε", "suspect", _attacked(eps=0.5)),
    Flaw("FGSM alone", "more steps", "suspect", _attack_audited(FGSM)),
    Flaw("steps lost in 8 bits", "ε not used", "suspect", _rounding),
    Flaw("one change for the whole batch", "black box wins", "suspect", _attack_audited(broken.OneForAll)),
    Flaw("attack that stops with the first success", "first order", "suspect", _attack_audited(broken.StopsEarly)),
    Flaw("attack on one channel", "first order", "suspect", _attack_audited(broken.OneChannel)),
    # in L2
    Flaw("attack beyond ε in L2", "inside the ball", "invalid", _in_l2(_attacked(broken.Leaving))),
    Flaw("length over the whole batch", "ε not used", "suspect", _in_l2(_attacked(broken.OverTheBatch))),
    Flaw("α of L∞ in L2", "step size", "suspect", _in_l2(_attacked(step_size=0.1 / 255))),
    Flaw("ε of L∞ in L2", "size of ε", "suspect", _attacked(norm="L2", eps=4 / 255, step_size=None)),
    Flaw("attack that descends in L2", "collapse", "invalid", _in_l2(_attack_audited(broken.Descending))),
    Flaw("attack on half of the batch in L2", "collapse", "invalid", _in_l2(_attack_audited(broken.HalfDone))),
)

FLAWED_PROTOCOLS = (
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
    Flaw("a model at chance", "no better than chance", "invalid", _published(0.11, FGSM=0.1, PGD=0.1)),
    # a source that is none, and other protocols
    Flaw("near twins of test pictures in training", "near leak", "suspect", _near()),
    Flaw("the source's pictures hold test pictures, larger", "near leak", "suspect", _near(2)),
    Flaw("the source's classes are the target's", "shared classes", "suspect", _shared),
    Flaw("source whose weights did not load", "frozen features", "invalid", _frozen(protocols.not_loaded)),
    Flaw("source normalised twice", "frozen features", "invalid", _frozen(protocols.normalised_twice)),
    Flaw("frozen BatchNorm that moved", "frozen features", "invalid", _frozen(None, 0.1)),
    Flaw("a head that nobody trained", "claim", "invalid", _fresh_head),
    Flaw("the mean of attacks, not the worst case", "claim", "invalid", _mean_of_attacks),
    Flaw("only the target class counts as success", "claim", "invalid", _claimed(_targets)),
    Flaw("test pictures of one class", "no better than chance", "suspect", _one_class),
    Flaw("a worst case over several ε", "one ball", "suspect", _two_sizes),
    Flaw(
        "best epoch beside last epoch",
        "one checkpoint",
        "suspect",
        lambda lab: [comparisons.one_checkpoint(["standard", "pgd, best"])],
    ),
)

FLAWS = FLAWED_MODELS + FLAWED_ATTACKS + FLAWED_PROTOCOLS
