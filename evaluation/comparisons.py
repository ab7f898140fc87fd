"""Checks of accuracies beside one another, as checks.py has them of a model and an attack.

`shares` map labels to accuracies, which are shares, 0 to 1; points are hundredths. The sources, such as [C], are
those of checks.py.
"""

from attacks import in_255ths
from evaluation.checks import FAR, TOLERANCE, no_eps
from evaluation.finding import ATTACKED, WORST, Finding


def robust_above_clean(clean, label, robust):
    """Invalid: robust accuracy above clean accuracy by over 0.5 points [C]."""
    if robust > clean + 0.005:
        says = f"{label} leaves {100 * robust:.1f} %, more than the {100 * clean:.1f} % without an attack"
        why = "the examples are not this model's (crafted on another one?), or the two were measured differently"
        return Finding("robust above clean", "invalid", robust - clean, 0.005, f"{says}: {why}", (label, WORST))


def attack_order(fgsm, pgd, label="FGSM", against="PGD", eps=8 / 255, n=1000):
    """Accuracy under FGSM against that under PGD at equal ε. `eps` is of L∞, None in another norm.

    Invalid: FGSM above PGD by over 30 points at ε up to 8/255, catastrophic overfitting (healthy runs have at
    most 18.7, collapsed ones 62.5 or more [L]; at larger ε healthy ones differ as much, and L2 is not in [L]). It
    concerns FGSM's row alone: PGD tells the truth. Suspect: PGD above FGSM by over 1 point, and over two of the n
    examples, so its steps do not climb [C].
    """
    gap = 100 * (fgsm - pgd)
    if gap > 30 and eps is not None and eps <= 8 / 255 + TOLERANCE:
        says = f"{label} leaves {gap:.1f} points more than {against}: the model has learned to fool a single step"
        return Finding("catastrophic overfitting", "invalid", gap, 30, says, (label,))
    if gap < -max(1, 200 / n + 1e-9):
        says = f"{against} is weaker than {label} by {-gap:.1f} points: its steps do not climb"
        return Finding("attack order", "suspect", -gap, 1, says, (label, against))


def alike(clean, shares, n=1000):
    """Suspect: three or more different attacks, one of a single step, within 1 point of one another [C].

    Attacks differ; where they agree this well, the examples may not be the model's own. At the ends of the
    scale (below 2 %, or all within 3 points of clean accuracy) they must agree, and of fewer than 100 pictures (n)
    they often do. On a linear network they must, too: test() leaves the finding out there.
    """
    if n >= 100 and len(shares) >= 3 and min(shares.values()) > 0.02 and clean - min(shares.values()) > 0.03:
        spread = 100 * (max(shares.values()) - min(shares.values()))
        if spread < 1:
            says = f"{', '.join(shares)} agree within {spread:.1f} points: are the examples crafted on this model?"
            return Finding("attacks alike", "suspect", spread, 1, says, (*shares, WORST))


def one_ball(attacks):
    """Suspect: attacks of several sizes or norms, so what withstands all of them tells nothing of one ε.

    `attacks` maps labels to attacks.
    """
    balls = {(attack.norm, round(attack.eps, 9)): attack for attack in attacks.values()}
    if len(balls) > 1:
        says = ", ".join(
            "none" if no_eps(attack) else f"ε = {in_255ths(attack.eps, attack.norm)} in {attack.norm}"
            for attack in balls.values()
        )
        return Finding(
            "one ball", "suspect", len(balls), 1, f"the worst case is over unlike sizes: {says}", (WORST,)
        )


def stronger(check, scores, label, name, limit, message):
    """Suspect: what ought to add little to an attack takes more than `limit` points, and three examples, from it.

    `scores` hold the attack, by its label, and by its name what is added. The limits: 1 for restarts, 2.5 for five
    times the steps, 8 for AutoAttack, or another loss, after PGD (healthy 4 to 6.4) [L].
    """
    gap = 100 * (scores.share(label) - scores.share(name))
    if gap > limit and gap > 300 / scores.n + 1e-9:
        says = f"{name} leaves {gap:.1f} points less than {label}, over {limit:g}: {message}"
        return Finding(check, "suspect", gap, limit, says, (label,))


def weaker_wins(scores, label, name, limit=0.2):
    """Suspect: an attack that knows less (noise, Square, one carried over) beats the white box [AA, C].

    By over `limit` points, or it alone fools over 1 % of the examples; at least two examples in either case.
    """
    outcome, other = scores.outcomes[label], scores.outcomes[name]
    gap = 100 * float(outcome.double().mean() - other.double().mean())
    alone = 100 * float((outcome & ~other).double().mean())
    two = 200 / len(outcome)
    if (gap > limit and gap >= two) or (alone > 1 and alone >= two):
        says = f"{name} leaves {gap:.1f} points less than {label}, and alone fools {alone:.1f} %"
        return Finding(
            "black box wins", "suspect", max(gap, alone), 1, f"{says}; the white box is misled", (label,)
        )


def collapse(accuracies, chance, rows, norm="Linf", whole=1.0):
    """Invalid: accuracy over 1 point at ε = 1, or above chance at 64/255: the attack cannot attack [C].

    `accuracies` maps ε to accuracy. In L2 both ε are shares of `whole`, the length of the longest change, so that
    the balls hold those of L∞.
    """
    for eps, share in accuracies.items():
        far, known = eps >= whole - TOLERANCE, abs(eps - FAR * whole) < TOLERANCE
        limit = 0.01 if far else chance if known else None
        if limit is not None and share > limit:
            over = f"{100 * limit:.1f} %{'' if far else ', chance'}"
            says = f"at ε = {in_255ths(eps, norm)} the attack still leaves {100 * share:.1f} %, over {over}"
            return Finding("collapse", "invalid", share, limit, f"{says}: it does not work here", rows)


def monotone(accuracies, n, rows, norm="Linf"):
    """Suspect: accuracy rises along a growing ε by over 0.5 points, and over two of the n examples [C].

    `accuracies` maps ε to accuracy.
    """
    lowest = 1.0
    for eps, share in sorted(accuracies.items()):
        if share > lowest + max(0.005, 2 / n):
            says = f"accuracy rises by {100 * (share - lowest):.1f} points up to ε = {in_255ths(eps, norm)}"
            return Finding("monotone in ε", "suspect", share - lowest, 0.005, f"{says}; steps do not climb", rows)
        lowest = min(lowest, share)


def claimed(label, share, scores):
    """Invalid: an accuracy that was claimed lies over 1 point above the interval of the one measured here.

    Nothing else looks like examples that were crafted on another model, or by a weaker attack than its name says.
    """
    measured, high = scores.share(label), scores.interval(label)[1]
    if share > high + 0.01:
        says = f"{label}: {100 * share:.1f} % were claimed, this model leaves {100 * measured:.1f} %"
        limit = high + 0.01 - measured
        return Finding("claim", "invalid", share - measured, limit, f"{says}. Another model's examples?", (label,))


def one_checkpoint(names):
    """Suspect: a table with the last epoch of one run beside the best epoch, chosen by validation, of another.

    `names` are those of study.tables.load_scores: "<run>, best" is a run's best epoch. A run with both is no
    mixture: robust overfitting makes them differ by points (Rice et al.), so they must be compared like with like
    [R].
    """
    best = {name.removesuffix(", best") for name in names if name.endswith(", best")}
    last = {name for name in names if not name.endswith(", best")}
    if best - last and last - best:
        says = f"the best epoch of {min(best - last)} stands beside the last of {min(last - best)}"
        return Finding("one checkpoint", "suspect", 2, 1, f"{says}; take one rule for all")


def robust_overfitting(history, validation_images):
    """Suspect: robust validation accuracy of the best epoch is over 3 points above the last one's [R].

    It is meant for adversarially trained networks; others lose what little they had. Where few pictures validate,
    the best of many epochs is luck: two standard errors are asked for as well.
    """
    robust = history["accuracy/robust"].dropna()
    if not len(robust):
        return None
    best, last = float(robust.max()), float(robust.iloc[-1])
    noise = 2 * (2 * best * (1 - best) / validation_images) ** 0.5
    if best - last > max(0.03, noise):
        says = f"robust validation accuracy fell from {100 * best:.1f} to {100 * last:.1f} % by the last epoch"
        says = f"{says}; test the best epoch as well"
        return Finding("robust overfitting", "suspect", best - last, 0.03, says, ATTACKED)
