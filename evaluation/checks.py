"""The checks of a robustness number: small functions that return a Finding or None.

Each says what it looks at, its threshold, and where the threshold comes from. `invalid` means that the number must
not be used, `suspect` that somebody should look. Accuracies are shares, 0 to 1; points are hundredths.

Sources: [AA] flags of AutoAttack (Croce & Hein 2020, arXiv:2003.01690). [C] Carlini et al. 2019,
arXiv:1902.06705. [P] Pintor et al. 2022, Indicators of Attack Failure, arXiv:2106.09947. [L] 126 training
runs in the logs of FastAT_Benchmark. [R] Rice et al. 2020, arXiv:2002.11569.
"""

from math import isnan
from unittest.mock import patch

import torch

from attacks import FGSM, dead_gradients, in_255ths, input_gradient
from evaluation.finding import ATTACKED, WORST, Finding
from loaders.split import LEAK, repeated, said_of_leak
from models import copied

TOLERANCE = 1e-6
FAR = 64 / 255  # of the whole range: more than any network withstands

# ---------------------------------------------------------------------------------------------------
# Checks of a model.


def finite_logits(logits):
    """Invalid: a logit that is NaN or infinite [P]."""
    broken = int((~torch.isfinite(logits)).any(1).sum())
    if broken:
        says = f"{broken} examples have logits that are NaN or infinite"
        return Finding("finite logits", "invalid", broken, 0, says)


LEARNED_NOTHING = "nothing was learned, or pictures come otherwise than in training (normalised twice, say)"


def constant_predictor(predictions, labels, num_classes, outputs=None):
    """Invalid: no better than chance, or over half of the other classes' pictures taken for one class.

    A model that ignores its input cannot be attacked: its "robustness" is chance. Where classes differ in size,
    what it has learned also shows in the accuracy of each class (recall): always saying one class gives a mean of
    one over their number; 2 points more, and three standard errors of guessing, count for nothing.
    """
    most, why = max(num_classes, outputs or 0), LEARNED_NOTHING
    if most > num_classes:
        why = f"the network has {most} outputs for {num_classes} classes: adapt() gives it a head for these"
    sizes, said = (torch.bincount(some, minlength=most).double() for some in (labels, predictions))
    hits = torch.bincount(labels[predictions == labels], minlength=len(sizes))
    there = sizes > 0
    chance, even = float(sizes.max()) / len(labels), 1 / int(there.sum())
    if even == 1:
        says = "all pictures are of one class, so a network that always says it would be right too"
        return Finding("no better than chance", "suspect", 1, 1, f"{says}. Test on pictures of several classes")
    recall, noise = (hits / sizes)[there], even * float((even * (1 - even) / sizes[there]).sum()) ** 0.5
    learned = float(recall.mean()) > even + 0.02 + 3 * noise
    if not learned and (found := better_than_chance(float(hits.sum()) / len(labels), chance, why)):
        return found
    taken = float(((said - hits) / (len(labels) - sizes)).max())
    balanced = chance <= even + 3 * (even / len(labels)) ** 0.5  # as far as chance allows in so many pictures
    if even < 0.5 and balanced and taken > 0.5:
        says = f"{100 * taken:.1f} % of the pictures of all other classes are taken for one class, over 50 %"
        return Finding(
            "constant predictor", "invalid", taken, 0.5, f"{says}; training has collapsed or hardly begun"
        )


def better_than_chance(accuracy, chance, why=LEARNED_NOTHING):
    """Invalid: clean accuracy at most 2 points above always saying one class."""
    if accuracy <= chance + 0.02:
        says = f"{100 * accuracy:.1f} %, where always saying one class gives {100 * chance:.1f} %"
        return Finding("no better than chance", "invalid", accuracy, chance + 0.02, f"{says}; {why}")


def masked_gradient(model, images, labels, rows=ATTACKED, eps=8 / 255):
    """Invalid: an example whose input gradient at a random start is exactly zero, or not finite [AA, P].

    It concerns the attacks, not clean accuracy.
    """
    dead = dead_share(input_gradient(model, at_random(images, eps), labels))
    if dead > 0:
        says = f"{100 * dead:.1f} % of the examples have an input gradient of exactly zero, or not finite"
        return Finding(
            "masked gradient", "invalid", dead, 0, f"{says}; attacks that follow it cannot succeed", rows
        )


def saturated_loss(model, images, labels, rows, eps=8 / 255):
    """Invalid: an example where cross-entropy, as written in textbooks, has a gradient of exactly zero [AA, C].

    Our own attacks do not follow that gradient, others' do: over-confident logits stop them without a word.
    """
    asked = at_random(images, eps).requires_grad_()
    with torch.enable_grad():
        loss = torch.nn.functional.cross_entropy(model(asked), labels, reduction="sum")
    if not loss.requires_grad:
        return None  # masked_gradient says so
    dead = dead_share(torch.autograd.grad(loss, asked)[0])
    if dead > 0:
        says = (
            f"the textbook loss saturates on {100 * dead:.1f} % of the examples: logits so large that its gradient"
        )
        return Finding(
            "saturated loss", "invalid", dead, 0, f"{says} is zero. Use an attack of this project", rows
        )


def dead_share(gradient):
    return float(dead_gradients(gradient).double().mean())


def at_random(images, eps):
    """The same random start each time."""
    generator = torch.Generator(images.device).manual_seed(0)
    return (images + torch.empty_like(images).uniform_(-eps, eps, generator=generator)).clamp_(0, 1)


def batch_independence(model, images):
    """Invalid: logits of a picture alone differ from those in a batch by over 1e-3 of their size (float32)."""
    with torch.no_grad():
        together = model(images)[:4]
        alone = torch.cat([model(image[None]) for image in images[:4]])
    gap = _relative((together - alone).abs().max(), together)
    if gap > 1e-3:
        says = "a picture's logits depend on the rest of its batch"
        return Finding("batch independence", "invalid", gap, 1e-3, f"{says}; BatchNorm is not in eval mode?")


def randomness(model, images, eps=8 / 255):
    """Suspect: five passes over the same pictures differ by over 1e-4 of the logits' size [AA].

    The pictures are moved a little, because a model may be random only where pictures are not of 8 bits.
    """
    moved = at_random(images, eps)
    with torch.no_grad():
        passes = torch.stack([model(moved) for _ in range(5)])
    spread = _relative((passes - passes[0]).abs().max(), passes)
    if spread > 1e-4:
        says = "the model answers at random; single-gradient attacks underestimate what an attacker can do"
        return Finding("randomness", "suspect", spread, 1e-4, f"{says}. Average gradients (EOT)")


def _relative(gap, logits):
    """A gap as a share of how much the logits differ among themselves; 0 where they are broken or all the same."""
    size = logits - logits.mean(-1, keepdim=True)
    return float((gap / size.abs().max()).nan_to_num(0, 0, 0))


def unchanging(model, images):
    """Invalid: a pass in eval mode moves a weight or a buffer (BatchNorm's), or turns on training mode."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model(images)
    moved = [name for name, value in model.state_dict().items() if not _same(before.get(name), value)]
    moved += [name or "the model" for name, module in model.named_modules() if module.training]
    if moved:
        says = (
            f"being asked changes the model ({moved[0]}, {len(moved)} in all), so its answers depend on what came"
        )
        return Finding("training mode", "invalid", len(moved), 0, f"{says} before; is BatchNorm in training mode?")


def _same(before, after):
    if before is None or before.shape != after.shape:
        return False
    return bool(((before == after) | (before.isnan() & after.isnan())).all())


def probabilities(logits):
    """Suspect: the outputs are probabilities, not logits, so the loss saturates [AA]."""
    rows = logits.sum(1)
    if logits.shape[1] > 1 and float(logits.min()) >= 0 and float((rows - 1).abs().max()) < 1e-4:
        says = "the outputs are probabilities; attacks expect logits and lose their gradient. Remove the softmax"
        return Finding("logits", "suspect", 1, 0, says)


def gradients_in_forward(model, images):
    """Suspect: the model computes gradients while it answers; attacks do not see through that [AA]."""
    engine = torch.autograd
    with (
        patch.object(engine, "grad", wraps=engine.grad) as grad,
        patch.object(engine, "backward", wraps=engine.backward) as backward,
        torch.no_grad(),
    ):
        model(images)
    calls = grad.call_count + backward.call_count
    if calls:
        says = "the model computes gradients while it answers, and an attack's own gradient does not see that"
        return Finding("gradients in forward", "suspect", calls, 0, f"{says}. Adapt the attack to the defence")


def stale_statistics(model, images, labels):
    """Suspect: with BatchNorm's statistics taken anew from these very pictures, over 5 points more are right.

    And over two standard errors of the pairs. Averaged weights (EMA, SWA) need statistics of their own (Izmailov
    et al. 2018, arXiv:1803.05407). Of sound networks, fine-tuned ones with frozen statistics too, none gains a
    point.
    """
    fresh = copied(model).eval()
    norms = [part for part in fresh.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    if not norms or len(images) < 32:
        return None
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, norm.training = None, True
    with torch.no_grad():
        fresh(images)
        before, after = (of(images).argmax(1) == labels for of in (model, fresh.eval()))
    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    gain = (won - lost) / len(labels)
    if gain > max(0.05, 2 * (won + lost) ** 0.5 / len(labels)):
        says = f"with BatchNorm's statistics taken anew {100 * gain:.1f} points more are right"
        return Finding("BatchNorm statistics", "suspect", gain, 0.05, f"{says}: they are not of these weights")


def worst_class(predictions, labels, classes):
    """Suspect: no picture of a class is right, though by the others' accuracy some would be (odds below 1 in 100).

    A mean hides this: a class that no output stands for, or labels in another order. Under attack classes differ
    far more, in sound networks too (Xu et al. 2021, arXiv:2010.06121), so this looks at clean accuracy alone.
    """
    right, sizes = predictions == labels, torch.bincount(labels, minlength=len(classes))
    mean, hits = float(right.double().mean()), torch.bincount(labels[right], minlength=len(classes))
    for index in ((hits == 0) & (sizes > 0)).nonzero()[:, 0].tolist():
        odds = len(classes) * (1 - mean) ** int(sizes[index])
        if odds < 0.01:
            says = f"of the {int(sizes[index])} pictures of {classes[index]!r} none is right, of all"
            says = f"{says} {100 * mean:.1f} %"
            return Finding("worst class", "suspect", odds, 0.01, f"{says}: has it an output of its own?")


def frozen_features(source, model, images):
    """Invalid: a network of which the head alone was trained has other features than its source.

    By over 1e-3 of their size (float32). Both are Models. Either its BatchNorm moved though it was frozen, or
    these are not the source's weights, or it normalises in another way.
    """
    with torch.no_grad():
        own, known = (of.with_features(images)[1] for of in (model, source))
    gap = _relative((own - known).abs().max(), known) if own.shape == known.shape else 1.0
    if gap > 1e-3:
        says = "the features that should be frozen are not the source's"
        return Finding(
            "frozen features", "invalid", gap, 1e-3, f"{says}; did its weights load, did BatchNorm move?"
        )


# ---------------------------------------------------------------------------------------------------
# Checks of an attack.


def inside_ball(label, attack, extent):
    """Invalid: an adversarial picture outside ε (by over 1e-6) or [0, 1], or whose logits are not finite."""
    if extent.broken:
        says = f"{extent.broken} examples made by {attack} get logits that are NaN or infinite"
        return Finding("finite logits", "invalid", extent.broken, 0, says, (label, WORST))
    reach = max(extent.largest - attack.eps, -extent.low, extent.high - 1)
    if not reach <= TOLERANCE * (1 if attack.norm == "Linf" else 100) or isnan(sum(extent)):
        pixels = f"pixels from {extent.low:.4g} to {extent.high:.4g}"
        says = f"{attack} reached |δ| = {in_255ths(extent.largest, attack.norm)}, {pixels}"
        return Finding("inside the ball", "invalid", reach, TOLERANCE, says, (label, WORST))


def no_eps(attack):
    """Is it bounded by the pixels alone, as torchattacks' CW?"""
    return attack.norm == "Linf" and attack.eps >= 1


def uses_its_eps(label, attack, extent, attacked):
    """Suspect: an attack changes nothing; one in steps never gets to half of its ε, or leaves over 1 % alone."""
    if extent.still == attacked > 1:
        says = f"{attack} changed none of {attacked} examples, and all count as withstanding it"
        why = "has it too few steps?" if no_eps(attack) else "is ε divided by 255 twice?"
        return Finding("ε not used", "suspect", 1.0, 0.01, f"{says}; {why}", (label,))
    if not attacked or not (hasattr(attack, "step_size") or isinstance(attack, FGSM)):
        return None
    if extent.largest < attack.eps / 2:
        what = "pixel" if attack.norm == "Linf" else "picture"
        says = f"{attack} changes no {what} by more than {in_255ths(extent.largest, attack.norm)}"
        return Finding(
            "ε not used", "suspect", extent.largest, attack.eps / 2, f"{says}; divided twice?", (label,)
        )
    share = extent.still / attacked
    if share > 0.01 and extent.still > 1:
        says = f"{extent.still} of {attacked} examples were not changed at all by {attack}"
        return Finding("ε not used", "suspect", share, 0.01, f"{says}, and count as withstanding it", (label,))


def zero_eps(attack, change, rows=ATTACKED):
    """Invalid: with ε = 0 the attack changes a pixel by over 1e-6."""
    if not change <= TOLERANCE:
        says = f"{attack} with ε = 0 changes pixels by up to {in_255ths(change)}: pictures are changed outside it"
        return Finding("zero ε", "invalid", change, TOLERANCE, f"{says}; normalised or cut elsewhere?", rows)


def step_sizes(label, attack):
    """Suspect: steps too short to reach ε or over twice ε; or, in L∞, no simple part of 1/255 or ε (a typo like
    2/225).
    """
    step, steps = attack.pace
    if step is None or steps is None:
        return None
    alpha, eps = (in_255ths(size, attack.norm) for size in (step, attack.eps))
    if step * steps < attack.eps - TOLERANCE:
        says = f"{steps} steps of {alpha} cannot cross ε = {eps}"
        return Finding("step size", "suspect", step * steps, attack.eps, says, (label,))
    if step > 2 * attack.eps + TOLERANCE and attack.eps:
        says = f"α = {alpha} is over twice ε: each step ends in a corner. Was /255 forgotten?"
        return Finding("step size", "suspect", step, 2 * attack.eps, says, (label,))
    quarters, part = step * 255 * 4, 2 * attack.eps / step
    odd = abs(quarters - round(quarters)) > 1e-3 and abs(part - round(part)) > 1e-3
    if odd and attack.norm == "Linf":
        says = f"α = {alpha} is no quarter of 1/255 and no simple part of ε; 2/225 in place of 2/255?"
        return Finding("step size", "suspect", step * 255, 0.25, says, (label,))


def eight_bits(attack, stood, stand_again):
    """Suspect: over 1 % of the pictures, and two, that the attack fools are right again once stored with 8 bits.

    `stood` and `stand_again` are bool (N,), before and after rounding to 255ths. Where an attack lives from what
    lies between, files of its pictures show another accuracy. Of sound networks at 8/255 none comes back.
    """
    back = float((stand_again & ~stood).double().mean())
    if back > max(0.01, 1 / len(stood)):
        says = f"{100 * back:.1f} % of the pictures are right again when {attack}'s are stored with 8 bits"
        return Finding("8 bits", "suspect", back, 0.01, f"{says}; does the network answer off the grid?", ATTACKED)


def convergence(attack, gain):
    """Suspect: the last ten steps surely still raise the loss of what stands by over 0.05 [P]."""
    if gain > 0.05:
        says = f"the last ten steps of {attack} still raise the loss of what stands by {gain:.2f}"
        return Finding("convergence", "suspect", gain, 0.05, f"{says}; it needs more of them", (attack.label,))


def repeatable(disagree):
    """Invalid: asked again, in another order, the model says something else of over 0.1 % of the examples."""
    if disagree > 0.001:
        says = f"asked again, the model changes its mind on {100 * disagree:.1f} % of the adversarial pictures"
        return Finding(
            "repeatable", "invalid", disagree, 0.001, f"{says}; outcomes are drawn, not measured", ATTACKED
        )


# ---------------------------------------------------------------------------------------------------
# Checks of pictures.


def leak(tested, *seen):
    """Invalid: over 1 % of the test pictures are also in a split that training or choosing has seen.

    `tested` and `seen` are Splits. (CIFAR itself repeats a few pictures.)
    """
    count = repeated(tested, *seen)
    if count > LEAK * len(tested):
        return Finding("leak", "invalid", count / len(tested), LEAK, said_of_leak(count, len(tested)))
