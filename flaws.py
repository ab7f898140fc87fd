"""Flaws, planted on purpose: models that mask, broken attacks, wrong protocols, and what must be found of each.

Each has been published, or has cost somebody a number. Notebook 05 shows some of them beside the right way; the
tests and benchmarks/verdicts.py plant all of them and count what the checks find. Nothing else may use this file.
"""

import copy
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import nn

import checks
from attacks import FGSM, PGD, Attack, Square, Torchattacks, evaluating
from audit import audit, judge
from evaluation import test, transfer_attack
from outcomes import BATCH
from utils import Split

# ---------------------------------------------------------------------------------------------------
# Models. A function gets the sound model and the pictures, and answers with logits.


class Flawed(nn.Module):
    """A copy of a sound model with something wrong around it: `around(inner, images)` gives the logits."""

    def __init__(self, inner, around):
        super().__init__()
        self.inner, self.around = copy.deepcopy(inner), around
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, images):
        if self.around is remembering:
            self.seen += 1
        return self.around(self.inner, images)


def quantised(inner, images):
    """Pixels of 20 steps: the derivative of rounding is zero."""
    return inner((images * 20).round() / 20)


def quantised_blocks(inner, images):
    """The coefficients of 8x8 blocks, rounded, as JPEG does."""
    line = torch.arange(8, device=images.device)
    basis = torch.cos((2 * line[None, :] + 1) * line[:, None] * torch.pi / 16) / 2
    basis[0] /= 2**0.5
    blocks = images.unfold(2, 8, 8).unfold(3, 8, 8)
    kept = ((basis @ blocks @ basis.T) * 16).round() / 16
    rows, columns = blocks.shape[2:4]
    back = (basis.T @ kept @ basis).permute(0, 1, 2, 4, 3, 5)
    return inner(back.reshape(*images.shape[:2], 8 * rows, 8 * columns).clamp(0, 1))


def detached(inner, images):
    """No gradient at all reaches the pictures."""
    return inner(images.detach())


def saturated(inner, images):
    """Logits pressed to -1 and 1."""
    return torch.tanh(1000 * inner(images))


def scaled(inner, images):
    """Logits so large that every probability is 0 or 1; only the textbook's loss suffers."""
    return 20_000 * inner(images)


def probabilities(inner, images):
    return inner(images).softmax(1)


def half_blind(inner, images):
    """Every other picture is answered without a gradient."""
    hidden = torch.arange(len(images), device=images.device) % 2 == 0
    return inner(torch.where(hidden[:, None, None, None], images.detach(), images))


def broken_gradient(inner, images):
    """The derivative of a square root at zero is infinite, and times zero NaN."""
    return inner(images) + (images * 0).sum((1, 2, 3)).sqrt()[:, None]


class _Gradient(torch.autograd.Function):
    """The same picture, another gradient."""

    @staticmethod
    def forward(ctx, images, change):
        ctx.change = change
        return images.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.change(gradient), None


def reversed_gradient(inner, images):
    """The gradient points the wrong way."""
    return inner(_Gradient.apply(images, torch.neg))


def random_gradient(inner, images):
    """The gradient is noise, the same for the same picture."""

    def noise(gradient):
        generator = torch.Generator(gradient.device).manual_seed(0)
        return torch.empty_like(gradient).normal_(generator=generator)

    return inner(_Gradient.apply(images, noise))


def shattered(inner, images):
    """A ripple too small to be seen, and too steep for a gradient to be of use."""
    return inner(images + 0.004 * torch.sin(2000 * torch.pi * images))


def shifted_by_chance(inner, images):
    """Each pass shifts the pictures by up to two pixels."""
    down, right = torch.randint(-2, 3, (2,)).tolist()
    return inner(torch.roll(images, (down, right), (2, 3)))


def noisy(inner, images):
    return inner(images + 0.05 * torch.randn_like(images))


def _off_the_grid(images):
    return ((images * 255 - (images * 255).round()).abs() > 1e-3).flatten(1).any(1)[:, None]


def noisy_off_the_grid(inner, images):
    """Random only for pictures that are none of 8 bits, as adversarial ones are."""
    noise = 0.05 * torch.randn_like(images) * _off_the_grid(images)[:, :, None, None]
    return inner(images + noise)


def noisy_and_small(inner, images):
    return 1e-6 * noisy(inner, images)


def leaky(inner, images):
    """Rounded, with a trace of a gradient that leads nowhere."""
    classes = torch.arange(inner(images[:1]).shape[1], device=images.device)
    return quantised(inner, images) + 1e-6 * images.mean((1, 2, 3))[:, None] * classes


def moving(inner, images):
    """A weight moves a little whenever it is asked."""
    with torch.no_grad():
        next(inner.parameters()).mul_(1.0001)
    return inner(images)


def dropping(inner, images):
    """Dropout that is on when it should be off."""
    return inner(torch.nn.functional.dropout(images, 0.05, training=True))


def purified(inner, images):
    """One step towards what the model believes, before it answers."""
    with torch.enable_grad():
        asked = images.detach().requires_grad_()
        doubt = -inner(asked).log_softmax(1).amax(1).sum()
        (away,) = torch.autograd.grad(doubt, asked)
    return inner((images - 4 / 255 * away.sign()).clamp(0, 1))


def training_mode(inner, images):
    """BatchNorm with the statistics of the test batch."""
    inner.train()
    return inner(images)


def batch_centred(inner, images):
    logits = inner(images)
    return logits - 5 * (logits - logits.mean(0))


def remembering(inner, images):
    """Keeps count of what it is asked."""
    return inner(images)


def broken(inner, images):
    return inner(images) * torch.nan


def broken_off_the_grid(inner, images):
    """NaN for pictures that are none of 8 bits, as adversarial ones are."""
    return torch.where(_off_the_grid(images), torch.nan, inner(images))


def constant(inner, images):
    logits = inner(images) * 0
    logits[:, 0] += 1
    return logits


def mostly_one(inner, images):
    """One class for 70 % of the pictures, whatever they show."""
    logits = inner(images)
    first = torch.zeros_like(logits)
    first[:, 0] = 1000 * (images.flatten(1).sum(1) * 1000 % 10 < 7)
    return logits + first


def guessing(inner, images):
    """Its classes are in another order than the data's."""
    return inner(images).roll(1, dims=1)


# ---------------------------------------------------------------------------------------------------
# Attacks.


@dataclass(frozen=True, kw_only=True, repr=False)
class Leaving(PGD):
    """Goes further than it says."""

    def craft(self, model, images, labels, generator, targeted=False):
        found = replace(self, eps=2 * self.eps)
        return PGD.craft(found, model, images, labels, generator, targeted)


@dataclass(frozen=True, kw_only=True, repr=False)
class Overwriting(Leaving):
    """Goes further than it says, and writes over the picture that it is compared with."""

    def craft(self, model, images, labels, generator, targeted=False):
        return images.copy_(super().craft(model, images, labels, generator, targeted))


@dataclass(frozen=True, kw_only=True, repr=False)
class Unclipped(Attack):
    """Forgets that pixels end at 0 and 1."""

    def craft(self, model, images, labels, generator, targeted=False):
        return images + self.eps * torch.empty_like(images).uniform_(-1, 1, generator=generator).sign()


@dataclass(frozen=True, kw_only=True, repr=False)
class Broken(Attack):
    """Gives NaN."""

    def craft(self, model, images, labels, generator, targeted=False):
        return images * torch.nan


@dataclass(frozen=True, kw_only=True, repr=False)
class Rewriting(PGD):
    """Stores its pictures with 4 bits: they change without any ε."""

    def craft(self, model, images, labels, generator, targeted=False):
        found = super().craft(model, images, labels, generator, targeted)
        return (found * 15).round() / 15


@dataclass(frozen=True, kw_only=True, repr=False)
class Descending(PGD):
    """Walks down where it should climb."""

    def craft(self, model, images, labels, generator, targeted=False):
        return super().craft(model, images, labels, generator, not targeted)


@dataclass(frozen=True, kw_only=True, repr=False)
class Forgetful(PGD):
    """Begins each step from the picture again, so that only the last one counts."""

    def craft(self, model, images, labels, generator, targeted=False):
        once = replace(self, steps=1, random_start=False)
        return PGD.craft(once, model, images, labels, generator, targeted)


@dataclass(frozen=True, kw_only=True, repr=False)
class Mislabelled(PGD):
    """Climbs the loss of the next class in place of the picture's own."""

    def craft(self, model, images, labels, generator, targeted=False):
        with torch.no_grad():
            classes = model(images[:1]).shape[1]
        return super().craft(model, images, (labels + 1) % classes, generator, targeted)


@dataclass(frozen=True, kw_only=True, repr=False)
class Shrunk(PGD):
    """Divides ε and the step size by 255 once more."""

    def craft(self, model, images, labels, generator, targeted=False):
        return PGD.craft(replace(self, **vars(self.scaled(1 / 255))), model, images, labels, generator, targeted)


@dataclass(frozen=True, kw_only=True, repr=False)
class HalfDone(PGD):
    """Leaves the second half of each batch as it is."""

    def craft(self, model, images, labels, generator, targeted=False):
        half = (len(images) + 1) // 2
        return torch.cat([super().craft(model, images[:half], labels[:half], generator, targeted), images[half:]])


# ---------------------------------------------------------------------------------------------------
# Protocols.


def stale_split(source, split, attack, seed=0):
    """The pictures of a split, attacked once on `source` and stored with 8 bits: what becomes of them is stale."""
    generator = torch.Generator(split.labels.device).manual_seed(seed)
    parts = []
    with evaluating(source):
        for images, labels in split.batches(BATCH[split.labels.device.type]):
            parts.append(attack.craft(source, images, labels, generator).mul(255).round().to(torch.uint8))
    return Split(torch.cat(parts), split.labels, split.classes, f"{split.name}, attacked once on another model")


class NormalisedOutside(nn.Module):
    """A model that is given normalised pictures, as a loader would make them, with the attack in between.

    `outside(images)` is what the loader gives; an attack on that clips to [0, 1], and its ε has another unit.
    """

    def __init__(self, inner, mean=0.47, std=0.25):
        super().__init__()
        self.inner, self.mean, self.std = inner, mean, std

    def outside(self, images):
        return (images - self.mean) / self.std

    def forward(self, normalised):
        return self.inner(normalised * self.std + self.mean)

    def accuracy(self, split, attack=None, clip=True, seed=0):
        """Accuracy as that protocol counts it; with an attack that clips to [0, 1], or does not clip at all."""
        generator = torch.Generator(split.labels.device).manual_seed(seed)
        hits = 0
        with evaluating(self):
            for images, labels in split.batches(BATCH[split.labels.device.type]):
                given = self.outside(images)
                if attack is not None:
                    # Shrunk into [0, 1] and back, so that the attack's own clipping does nothing.
                    low, high = (0, 1) if clip else (-8, 8)
                    shrunk = (given - low) / (high - low)
                    small = attack if clip else attack.scaled(1 / (high - low))
                    found = small.craft(lambda x, a=low, b=high: self(x * (b - a) + a), shrunk, labels, generator)
                    given = found * (high - low) + low
                with torch.no_grad():
                    hits += int((self(given).argmax(1) == labels).sum())
        return hits / len(split)

    def zero_eps(self, split, attack):
        """What the check of ε = 0 says of an attack on pictures that are not in [0, 1]."""
        images, labels = split.batch(torch.arange(4, device=split.labels.device))
        given, still = self.outside(images), replace(attack, eps=0.0)
        with evaluating(self):
            found = still.craft(self, given, labels, torch.Generator(images.device).manual_seed(0))
        return checks.zero_eps(attack, float((found - given).abs().max()))


def beside(claimed, scores, label, findings=None):
    """A row of the table that sets a wrong protocol beside the right one, shares from 0 to 1.

    Without findings of its own, a protocol is judged by its claim alone.
    """
    low, high = scores.interval(label)
    if findings is None:
        findings = [checks.claimed(label, claimed, scores.share(label), high)]
    caught = "; ".join(dict.fromkeys(f"{f.check} ({f.severity})" for f in findings if f)) or "nothing"
    row = {"claimed": claimed, "true": scores.share(label), "low": low, "high": high, "n": scores.n}
    return row | {"found by": caught}


# ---------------------------------------------------------------------------------------------------
# The list.


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
    return test(Flawed(lab.robust, leaky), lab.split, attacks, progress=False).findings


def _bridged(lab):
    attack = Torchattacks("PGD", eps=lab.attack.eps, alpha=lab.attack.step_size, steps=lab.attack.steps)
    return test(Flawed(lab.robust, scaled), lab.split, [attack], progress=False).findings


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
    Flaw("quantised input", "masked gradient", "invalid", _tested(quantised)),
    Flaw("quantised coefficients (JPEG)", "masked gradient", "invalid", _tested(quantised_blocks)),
    Flaw("detached input", "masked gradient", "invalid", _tested(detached)),
    Flaw("saturated logits", "masked gradient", "invalid", _tested(saturated)),
    Flaw("half of the pictures without gradient", "masked gradient", "invalid", _tested(half_blind)),
    Flaw("NaN gradient", "masked gradient", "invalid", _tested(broken_gradient)),
    Flaw("scaled logits under torchattacks' PGD", "saturated loss", "invalid", _bridged),
    Flaw("reversed gradient", "collapse", "invalid", _audited(reversed_gradient)),
    Flaw("random gradient", "black box wins", "suspect", _audited(random_gradient)),
    Flaw("shattered gradient", "black box wins", "suspect", _audited(shattered)),
    Flaw("softmax in the model", "logits", "suspect", _tested(probabilities)),
    Flaw("purified input", "gradients in forward", "suspect", _tested(purified)),
    Flaw("noise on the input", "randomness", "suspect", _tested(noisy)),
    Flaw("random shift", "randomness", "suspect", _tested(shifted_by_chance)),
    Flaw("dropout in eval mode", "randomness", "suspect", _tested(dropping)),
    Flaw("noise only off the 8-bit grid", "randomness", "suspect", _tested(noisy_off_the_grid)),
    Flaw("noise under tiny logits", "randomness", "suspect", _tested(noisy_and_small)),
    Flaw("leaky rounding, beaten by Square", "black box wins", "suspect", _blindly),
    Flaw("outcomes drawn by chance", "repeatable", "invalid", _audited(noisy)),
    # broken models
    Flaw("NaN logits", "finite logits", "invalid", _tested(broken)),
    Flaw("NaN logits under attack", "finite logits", "invalid", _tested(broken_off_the_grid)),
    Flaw("one class for everything", "better than chance", "invalid", _tested(constant)),
    Flaw("one class for most", "constant predictor", "invalid", _tested(mostly_one)),
    Flaw("classes in another order", "better than chance", "invalid", _tested(guessing)),
    Flaw("BatchNorm in training mode", "training mode", "invalid", _tested(training_mode)),
    Flaw("a buffer that moves", "training mode", "invalid", _tested(remembering)),
    Flaw("a weight that moves", "training mode", "invalid", _tested(moving)),
    Flaw("logits centred over the batch", "batch independence", "invalid", _tested(batch_centred)),
    # broken attacks
    Flaw("attack beyond ε", "inside the ball", "invalid", _attacked(_as(Leaving), False)),
    Flaw("attack beyond ε that hides it", "inside the ball", "invalid", _attacked(_as(Overwriting), False)),
    Flaw("attack beyond [0, 1]", "inside the ball", "invalid", _attacked(lambda a: Unclipped(eps=a.eps), False)),
    Flaw("attack that gives NaN", "finite logits", "invalid", _attacked(lambda a: Broken(eps=a.eps), False)),
    Flaw("attack that changes pictures at ε = 0", "zero ε", "invalid", _attacked(_as(Rewriting))),
    Flaw("attack that descends", "collapse", "invalid", _attacked(_as(Descending))),
    Flaw("attack that forgets its steps", "black box wins", "suspect", _attacked(_as(Forgetful))),
    Flaw("attack on half of the batch, unaudited", "ε not used", "suspect", _attacked(_as(HalfDone), False)),
    Flaw("ε divided by 255 twice", "ε not used", "suspect", _attacked(_as(Shrunk), False)),
    Flaw("attack on the wrong labels", "collapse", "invalid", _attacked(_as(Mislabelled))),
    Flaw("attack on half of the batch", "collapse", "invalid", _attacked(_as(HalfDone))),
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
