"""Is this robustness number to be believed? The checks that every `test()` ends in.

Each check is a small function: what it looks at, its threshold, and where the threshold comes from. It
returns a Finding or None. `invalid` means that the number must not be used, `suspect` that somebody should look.

Sources: [AA] flags of AutoAttack (Croce & Hein 2020, arXiv:2003.01690). [C] Carlini et al. 2019,
arXiv:1902.06705. [P] Pintor et al. 2022, Indicators of Attack Failure, arXiv:2106.09947. [L] 126 training
runs in the logs of FastAT_Benchmark.
"""

from dataclasses import dataclass

import torch

from attacks import PGD, dead_gradients, evaluating, in_255ths, input_gradient

TOLERANCE = 1e-6


@dataclass(frozen=True)
class Finding:
    """One doubt about a number. `rows` are the rows of the table that it concerns; empty: all of them."""

    check: str
    severity: str  # "invalid" or "suspect"
    measured: float
    threshold: float
    message: str
    rows: tuple = ()

    def concerns(self, label):
        return not self.rows or label in self.rows

    def __str__(self):
        where = f" [{', '.join(self.rows)}]" if self.rows else ""
        return f"{self.severity.upper()}: {self.check}{where}: {self.message}"


# ---------------------------------------------------------------------------------------------------
# Checks of a model.


def finite_logits(logits):
    """Invalid: a logit that is NaN or infinite [P]."""
    broken = int((~torch.isfinite(logits)).any(1).sum())
    if broken:
        return Finding(
            "finite logits", "invalid", broken, 0, f"{broken} examples have logits that are NaN or infinite"
        )


def constant_predictor(predictions, labels, num_classes):
    """Invalid: accuracy within 2 points of chance, or one class for over half of balanced data.

    A model that ignores its input cannot be attacked: its "robustness" is chance.
    """
    accuracy = float((predictions == labels).double().mean())
    chance = float(torch.bincount(labels, minlength=num_classes).max() / len(labels))
    if accuracy <= chance + 0.02:
        says = f"{100 * accuracy:.1f} % is within 2 points of the {100 * chance:.1f} % of always saying one class"
        return Finding("better than chance", "invalid", accuracy, chance + 0.02, f"{says}; nothing was learned")
    share = float(torch.bincount(predictions, minlength=num_classes).max() / len(predictions))
    balanced = chance < 1.5 / num_classes
    if num_classes > 2 and balanced and share > 0.5:
        says = f"one class is predicted for {100 * share:.1f} % of balanced pictures, over 50 %"
        return Finding(
            "constant predictor", "invalid", share, 0.5, f"{says}; training has collapsed or hardly begun"
        )


def masked_gradient(model, images, labels, rows):
    """Invalid: an example whose input gradient at a random start is exactly zero, or not finite [AA, P].

    It concerns the attacks, not clean accuracy.
    """
    generator = torch.Generator(images.device).manual_seed(0)
    noise = torch.empty_like(images).uniform_(-8 / 255, 8 / 255, generator=generator)
    gradient = input_gradient(model, (images + noise).clamp_(0, 1), labels)
    dead = float(dead_gradients(gradient).double().mean())
    if dead > 0:
        says = f"{100 * dead:.1f} % of the examples have an input gradient of exactly zero, or not finite"
        return Finding(
            "masked gradient", "invalid", dead, 0, f"{says}; attacks that follow it cannot succeed", rows
        )


def batch_independence(model, images):
    """Invalid: logits of a picture alone differ from those in a batch by over 1e-3 of their size (float32)."""
    few = images[: min(4, len(images))]
    with torch.no_grad():
        together = model(images)[: len(few)]
        alone = torch.cat([model(image[None]) for image in few])
    gap = float(((together - alone).abs().max() / together.abs().max().clamp_min(1)).nan_to_num(0))
    if gap > 1e-3:
        says = "a picture's logits depend on the rest of its batch"
        return Finding("batch independence", "invalid", gap, 1e-3, f"{says}; BatchNorm is not in eval mode?")


def randomness(model, images):
    """Suspect: five passes over the same pictures differ by over 1e-4 [AA]."""
    with torch.no_grad():
        passes = torch.stack([model(images) for _ in range(5)])
    spread = float((passes - passes[0]).abs().max().nan_to_num(0))
    if spread > 1e-4:
        says = "the model answers at random; single-gradient attacks underestimate what an attacker can do"
        return Finding("randomness", "suspect", spread, 1e-4, f"{says}. Average gradients (EOT)")


def probabilities(logits):
    """Suspect: the outputs are probabilities, not logits, so the loss saturates [AA]."""
    rows = logits.sum(1)
    if logits.shape[1] > 1 and float(logits.min()) >= 0 and float((rows - 1).abs().max()) < 1e-4:
        says = "the outputs are probabilities; attacks expect logits and lose their gradient. Remove the softmax"
        return Finding("logits", "suspect", 1, 0, says)


# ---------------------------------------------------------------------------------------------------
# Checks of attacks and their outcomes.


def inside_ball(label, attack, largest, low, high, broken):
    """Invalid: an adversarial picture outside ε (by over 1e-6) or [0, 1], or whose logits are not finite."""
    if broken:
        says = f"{int(broken)} examples made by {attack} get logits that are NaN or infinite"
        return Finding("finite logits", "invalid", broken, 0, says, (label, "worst case"))
    reach = max(largest - attack.eps, -low, high - 1)
    if not reach <= TOLERANCE * (1 if getattr(attack, "norm", "Linf") == "Linf" else 100):
        says = f"{attack} reached |δ| = {in_255ths(largest)}, pixels from {low:.4g} to {high:.4g}"
        return Finding("inside the ball", "invalid", reach, TOLERANCE, says, (label, "worst case"))


def step_sizes(label, attack):
    """Suspect: steps too short to reach ε, or a step size that is no multiple of 1/255 (a typo like 2/225)."""
    step = getattr(attack, "step_size", None)
    if step is None or getattr(attack, "norm", "Linf") != "Linf":
        return None
    if step * attack.steps < attack.eps - TOLERANCE:
        says = f"{attack.steps} steps of {in_255ths(step)} cannot cross ε = {in_255ths(attack.eps)}"
        return Finding("step size", "suspect", step * attack.steps, attack.eps, says, (label,))
    quarters = step * 255 * 4
    if abs(quarters - round(quarters)) > 1e-3:
        says = f"α = {in_255ths(step)} is no quarter of 1/255; 2/225 in place of 2/255?"
        return Finding("step size", "suspect", step * 255, 0.25, says, (label,))


def attack_order(outcomes, attacks):
    """Order of FGSM and PGD at equal ε, in points of accuracy.

    Invalid: FGSM - PGD above 30 points at ε up to 8/255, catastrophic overfitting (healthy runs have at most
    18.7, collapsed ones 62.5 or more [L]; at larger ε healthy ones differ as much). It concerns FGSM's row
    alone: PGD tells the truth. Suspect: PGD above FGSM by over 1 point, so the iteration does not work [C].
    """
    single = {label: attack for label, attack in attacks.items() if type(attack).__name__ == "FGSM"}
    iterated = {label: attack for label, attack in attacks.items() if type(attack) is PGD}
    for one, fgsm in single.items():
        for many, pgd in iterated.items():
            if fgsm.eps != pgd.eps or fgsm.norm != pgd.norm:
                continue
            gap = 100 * float(outcomes[one].double().mean() - outcomes[many].double().mean())
            if gap > 30 and fgsm.eps <= 8 / 255 + TOLERANCE:
                says = (
                    f"FGSM leaves {gap:.1f} points more than {many}: the model has learned to fool a single step"
                )
                yield Finding("catastrophic overfitting", "invalid", gap, 30, says, (one,))
            elif gap < -1:
                says = f"{many} is weaker than FGSM by {-gap:.1f} points: its steps do not climb"
                yield Finding("attack order", "suspect", -gap, 1, says, (one, many))


def examine(model, split, logits, scores, attacks, extents):
    """All checks of one evaluation, invalid findings first.

    `logits` are those of the whole split, `attacks` maps labels to attacks, `extents` maps labels to the
    largest change, the lowest and the highest pixel of what each attack made, and the number of examples with
    broken logits. A masked gradient spoils white-box attacks, not carried ones: they are its remedy.
    """
    images, labels = split.batch(torch.arange(min(64, len(split)), device=split.labels.device))
    found = [
        finite_logits(logits),
        constant_predictor(logits.argmax(1), split.labels, logits.shape[1]),
        probabilities(logits),
    ]
    with evaluating(model):
        # A model that answers at random also answers differently alone and in a batch, for another reason.
        found.append(randomness(model, images) or batch_independence(model, images))
        if attacks and scores.carried is None:
            found.append(masked_gradient(model, images, labels, (*attacks, "worst case")))
    for label, attack in attacks.items():
        found += [inside_ball(label, attack, *extents[label]), step_sizes(label, attack)]
    found += attack_order(scores.outcomes, attacks)
    return sorted((finding for finding in found if finding), key=lambda finding: finding.severity)
