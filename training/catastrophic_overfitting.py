"""The guard against catastrophic overfitting: has training with a single step learned to fool a single step?

Within an epoch such training can lose all its robustness, while accuracy under its own step rises (Wong et al.
2020, arXiv:2001.03994; Andriushchenko & Flammarion 2020, arXiv:2007.02617). So every epoch of a defence that has
a `single_step_eps` also ends in FGSM at that ε on the validation pictures. Where FGSM leaves over 30 points more
than PGD (comparisons.attack_order says why 30, and why only up to ε = 8/255), the weights are given up for those
of the epoch before, and training goes on from there with two steps of PGD.
"""

from dataclasses import replace

from attacks import FGSM, PGD
from defences import Adversarial, Wrapped, innermost
from evaluation.comparisons import attack_order
from evaluation.per_example import predict
from training.validation import withstanding


def eps_of(defence, progress=1.0):
    """The ε at which a defence is to be watched; None where it takes more than one step."""
    known = getattr(innermost(defence), "single_step_eps", None)
    return known and known(progress)


def look(state, split, robust):
    """Accuracy of the live weights under FGSM, and a Finding where they have collapsed; None for what is not so.

    `robust` is what validation has found. The averaged weights, which it may have looked at, lag behind.
    """
    eps = eps_of(state.recipe.defence, state.step / state.total)  # also of a rescued run
    if eps is None:
        return None, None
    few = split.first(state.recipe.validation_images)
    right = predict(state.model, few).argmax(1) == few.labels
    fgsm = withstanding(state, state.model, few, right, FGSM(eps=eps))
    measured = state.average is None and state.recipe.validation_attack == PGD(eps=eps)
    pgd = robust if measured else withstanding(state, state.model, few, right, PGD(eps=eps))
    finding = attack_order(fgsm, pgd, eps=eps)
    return fgsm, finding if finding and finding.severity == "invalid" else None


def safer(defence):
    """What a collapsed run goes on with: two steps of 5/8 ε; its wrappers, its ramp and its objective stay."""
    if isinstance(defence, Wrapped):
        return replace(defence, defence=safer(defence.defence))
    eps = eps_of(defence)
    attack = PGD(eps=eps, step_size=5 / 8 * eps, steps=2)
    return replace(defence, attack=attack, grow=0.0) if isinstance(defence, Adversarial) else Adversarial(attack)
