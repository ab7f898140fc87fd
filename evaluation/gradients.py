"""Checks of the gradient that an attack follows: is it the network's, and did the attack get where it leads?

Sources beyond those of checks.py: [W] Wang et al. 2019, On the Convergence and Robustness of Adversarial Training,
arXiv:2112.08304. [A] Athalye et al. 2018, Obfuscated Gradients, arXiv:1802.00420. "Sound networks" are the eight
of models/weights and those of the quick study.
"""

from contextlib import ExitStack

import torch
from torch import nn

from attacks import input_gradient
from attacks.base import logit_gradient
from attacks.pgd import bounds, lengths
from evaluation.finding import ATTACKED, Finding
from models import copied

STEP = 0.1 / 255  # in float32 the noise of shorter steps shows, and the bend of a network on longer ones


def true_gradient(model, images, labels):
    """Suspect: for over 10 % of the examples the gradient is not the slope of what the network answers [C].

    The slope is taken along the gradient's sign g: (f(x + h·g) - f(x - h·g)) / 2h with h = 0.1/255, where f is the
    logits weighted as cross-entropy weighs them at x. Its ratio to the gradient's own promise is 0.96 to 1.02 for
    90 % of the pictures of sound networks; below 0.5 or above 2 the backward pass is another function's. Examples
    whose promise drowns in rounding are left out. `images` must be off the kinks of 8 bits: moved a little.
    """
    gradient = input_gradient(model, images, labels, scaled=False)
    ahead = gradient.sign()
    with torch.no_grad():
        logits, up, down = model(images), model(images + STEP * ahead), model(images - STEP * ahead)
    weights = logit_gradient(logits, labels)[0].double()
    rise = ((up.double() - down.double()) * weights).sum(1)
    promise = 2 * STEP * (gradient.double() * ahead).flatten(1).sum(1)
    told = promise > 100 * torch.finfo(logits.dtype).eps * logits.abs().amax(1)
    ratio = (rise / promise)[told]
    wrong = float(((ratio < 0.5) | (ratio > 2)).double().mean()) if len(ratio) else 0.0
    if wrong > 0.1:
        says = f"for {100 * wrong:.0f} % of the examples the gradient is not the slope of the network's answers"
        says = f"{says} (median ratio {float(ratio.median()):.2f}, not 1): a backward pass of its own?"
        return Finding("gradient", "suspect", wrong, 0.1, f"{says} Attack in another way too", ATTACKED)


def first_order(model, attack, images, points, labels):
    """Suspect: where the attack ended, half of what stands could gain over half of what the ball offers [W].

    FOSC, the most that the linearised loss can still gain inside the ball, as a share of what it can gain from the
    picture: L∞ max <z - x', g> over the ball and [0, 1]; L2 ε‖g‖ - <x' - x, g>, without the box. 0 where the
    attack has arrived, 1 where it did nothing, above 1 where it walked away. Sound networks under PGD-10 and
    PGD-20: the median of what stands is at most 0.1, in nine of ten examples below 0.15.
    """
    gradient = input_gradient(model, points, labels)
    with torch.no_grad():
        stands = model(points).argmax(1) == labels
    if attack.norm == "L2":
        offered = attack.eps * lengths(gradient).flatten()
        left = offered - ((points - images) * gradient).flatten(1).sum(1)
    else:
        low, high = bounds(images, attack.eps)
        best = torch.where(gradient > 0, high, low)
        offered, left = (((best - start) * gradient).flatten(1).sum(1) for start in (images, points))
    share = (left / offered)[stands & (offered > 0)]
    if len(share) < max(2, 0.05 * len(labels)):
        return None
    middle = float(share.median())
    if middle > 0.5:
        says = f"where {attack} ended, {100 * middle:.0f} % of what the gradient promises in the ball is left"
        return Finding("first order", "suspect", middle, 0.5, f"{says}: it has not arrived", (attack.label,))


def without_odd_parts(model, images):
    """A copy of the network without the parts that a gradient may not get through, and their kinds; or None.

    A part is taken for such a one when it is no layer of torch, has no weights, and gives back much of what it
    got, but not all: a quantiser, a sparsifier, noise, a filter (cosine over 0.5 between input and output of one
    shape). What is crafted on the copy can be carried to the network, as BPDA does with the identity [A]. None
    where there is no such part, or where the copy says something else of half of the pictures.
    """
    found, at_work = {}, []

    def note(name, inputs, output):
        given = inputs[0] if inputs else None
        alike = isinstance(output, torch.Tensor) and isinstance(given, torch.Tensor)
        alike = alike and given.shape == output.shape
        at_work.append(alike and not torch.equal(given, output))
        alike = alike and float(torch.cosine_similarity(given.flatten(), output.flatten(), 0)) > 0.5
        found[name] = alike and found.get(name, True)

    with ExitStack() as hooks, torch.no_grad():
        for name, part in model.named_modules():
            if name and _is_odd(part):
                hooks.enter_context(part.register_forward_hook(lambda _, i, o, name=name: note(name, i, o)))
        said = model(images).argmax(1)
    odd = [name for name, alike in found.items() if alike]
    if not odd or not any(at_work):
        return None
    smooth = copied(model)
    for name in odd:
        parent, _, last = name.rpartition(".")
        setattr(smooth.get_submodule(parent), last, nn.Identity())
    with torch.no_grad():
        same = float((smooth(images).argmax(1) == said).double().mean())
    kinds = sorted({type(model.get_submodule(name)).__name__ for name in odd})
    return (smooth, ", ".join(kinds)) if same > 0.5 else None


def _is_odd(part):
    ours = type(part).__module__.startswith(("torch.nn.modules", "models."))
    return not ours and next(part.parameters(), None) is None
