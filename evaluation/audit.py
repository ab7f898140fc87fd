"""Is this robustness number to be believed? The checks, with thresholds and sources: checks.py, comparisons.py and
gradients.py.

`examine` ends every test(), `audit` looks for more; published_tables.py looks at numbers alone.
"""

import itertools
import math
import re
from dataclasses import replace

import torch
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from attacks import FGSM, MIFGSM, PGD, Attack, AutoAttack, Noise, Square, Torchattacks, evaluating, margin
from attacks.base import whole_range
from attacks.settings import NORMS
from evaluation import checks, comparisons, gradients
from evaluation.finding import CLEAN, Finding
from evaluation.golden import too_weak
from evaluation.per_example import attacked, in_float32, on_device_of, predict
from evaluation.scores import Scores
from evaluation.statistics import expected_robustness, wilson_of_mean
from models import wrap
from models.fingerprint import fingerprint

MOST = 64  # pictures that the cheap checks look at
AGAIN = 5  # times that a model is asked the same: of few pictures, one time may change none
EXPECTED = "expected robustness"  # the row of it
NEAREST = 12  # pictures that the dear ones look at, or an eighth of all
SCALES = 0.01, 100  # of the logits: a loss that vanishes, or sees one rival alone, shows at one of them
BLIND = (Noise, Square)  # attacks that see no gradient


def examine(model, split, logits, scores, attacks, extents):
    """All cheap checks of one evaluation, invalid findings first.

    `logits` are those of the whole split, `attacks` maps labels to attacks, `extents` maps labels to Extents. A
    masked gradient spoils attacks that follow it, not carried or blind ones: they are its remedy.
    """
    # Some ten passes over so few pictures that they cost less than a tenth of the evaluation itself.
    passes = len(split) * (1 + sum(3 * getattr(attack, "steps", 1) for attack in attacks.values()))
    few = torch.arange(min(max(2, passes // 200), MOST, len(split)), device=split.labels.device)
    images, labels = split.batch(few)
    found = [
        checks.finite_logits(logits),
        checks.constant_predictor(logits.argmax(1), split.labels, split.num_classes, logits.shape[1]),
        checks.probabilities(logits),
    ]
    with evaluating(model):
        # A model that answers at random, or is changed by being asked, also answers differently alone.
        changed = checks.unchanging(model, images[:2])
        found.append(changed or checks.randomness(model, images) or checks.batch_independence(model, images))
    with evaluating(model):
        found.append(checks.gradients_in_forward(model, images[:1]))
        if attacks and scores.carried is None:
            following = tuple(label for label, attack in attacks.items() if not isinstance(attack, BLIND))
            if following:
                found.append(checks.masked_gradient(model, images, labels, following))
            textbook = tuple(name for name in following if getattr(attacks[name], "follows_cross_entropy", False))
            if textbook:
                found.append(checks.saturated_loss(model, images, labels, textbook))
    right = int(scores.outcomes[CLEAN].sum())
    for label, attack in attacks.items():
        found += [checks.inside_ball(label, attack, extents[label]), checks.step_sizes(label, attack)]
        found += [checks.uses_its_eps(label, attack, extents[label], right), size_of_eps(label, attack, images)]
    if scores.carried is None:
        found += _compared(attacks, scores)
    alike = next((finding for finding in found if finding and finding.check == "attacks alike"), None)
    if alike and _linear(model, images, labels, attacks[alike.rows[0]]):
        found.remove(alike)  # where the slope is the same everywhere, a single step does what many do
    return in_order(found)


def size_of_eps(label, attack, images):
    """Suspect: an ε of the other norm's size, or one that rounding to 8 bits undoes.

    In L∞ from 1/2 to below 1: every picture may become the same grey one, so nothing can withstand. In L2 up to
    √(C · H · W / 12) / 255, by which rounding to 8 bits moves a picture (errors even within ±1/510): 0.063 for
    32 x 32 pixels in colour, 0.44 for 224 x 224. RobustBench takes 0.5 and 3.
    """
    says, eps, least = None, attack.eps, whole_range("L2", images) / math.sqrt(12) / 255
    if attack.norm == "Linf" and 0.5 <= eps < 1:
        says = "lets every picture become the same grey. 0.5 is a size of L2; 8/255 is usual in L∞"
    elif attack.norm == "Linf" and 0 < eps < 0.5 / 255 - checks.TOLERANCE:
        says = "is less than rounding to 8 bits changes. Was it divided by 255 twice?"
    elif attack.norm == "L2" and 0 < eps <= least + checks.TOLERANCE:
        says = (
            f"is no more than rounding to 8 bits changes ({least:.2g}). 8/255 is a size of L∞; 0.5 is usual in L2"
        )
    if says:
        limit = least if attack.norm == "L2" else 0.5 if eps >= 0.5 else 0.5 / 255
        says = f"ε = {checks.in_255ths(eps, attack.norm)} in {attack.norm} {says}"
        return Finding("size of ε", "suspect", eps, limit, says, (label,))


def _linear(model, images, labels, attack):
    """Are the logits linear on the way to FGSM's pictures, up to 1e-3 of how they change there?"""
    with evaluating(model), torch.no_grad():
        points = FGSM(eps=attack.eps, norm=attack.norm).craft(model, images, labels, None)
        here, between, there = (model(places).float() for places in (images, (images + points) / 2, points))
    return bool((here + there - 2 * between).abs().max() < 1e-3 * (there - here).abs().max())


def _compared(attacks, scores):
    """Checks of attacks beside one another."""
    yield comparisons.one_ball(attacks)
    white = {label: attack for label, attack in attacks.items() if not isinstance(attack, BLIND)}
    kinds = {(type(attack), getattr(attack, "name", "")): label for label, attack in white.items()}
    if len({(attack.norm, attack.eps) for attack in white.values()}) == 1 and any(
        isinstance(a, FGSM) for a in white.values()
    ):
        shares = {label: scores.share(label) for label in kinds.values()}
        yield comparisons.alike(scores.share(CLEAN), shares, scores.n)
    # Blind attacks may not win against the strongest of the others, and none of these against AutoAttack.
    for label, attack in attacks.items():
        rivals = [other for other, its in white.items() if (its.norm, its.eps) == (attack.norm, attack.eps)]
        strongest = min(rivals, key=scores.share, default=None)
        if strongest is None:
            continue
        if isinstance(attack, BLIND):
            yield comparisons.weaker_wins(scores, strongest, label)
        if isinstance(attack, AutoAttack) and strongest != label:
            yield comparisons.weaker_wins(scores, label, strongest)
    for (label, one), (many, other) in itertools.permutations(attacks.items(), 2):
        if (one.norm, one.eps) != (other.norm, other.eps):
            continue
        if type(one) is FGSM and type(other) is PGD:
            eps = one.eps if one.norm == "Linf" else None
            yield comparisons.attack_order(scores.share(label), scores.share(many), label, many, eps, scores.n)
        plain = type(one) is PGD and one.restarts == 1
        if plain and isinstance(other, AutoAttack):
            why = "PGD's number is far from the worst case"
            yield comparisons.stronger("AutoAttack gap", scores, label, many, 8, why)
        if plain and type(other) is PGD and other.restarts == 1 and one.steps < other.steps:
            yield comparisons.stronger("more steps", scores, label, many, 2.5, f"{label} has not converged")


def in_order(found):
    """What was found, invalid first, each once."""
    there = dict.fromkeys(finding for finding in found if finding)
    return sorted(there, key=lambda finding: finding.severity)


# ---------------------------------------------------------------------------------------------------
# The audit


class Audit(Scores):
    """What an audit measured and found: a row a measurement.

    `save` writes it into a run's folder as audit-<attack>.json and .csv. The scores there that are of the same
    weights have its findings from then on, as far as these concern attacks with the same settings.
    """

    curve = None  # accuracy by ε, the attack's own first; not saved

    @property
    def worst_case(self):
        """What the attack in doubt leaves: other rows are of other ε, or of examples of other networks."""
        (attack,) = self.attacks
        return self.outcomes[attack]

    def save(self, folder):
        ((_, attack),) = self.attacks.items()
        self.write(folder, "audit-" + re.sub(r"[^\w.-]+", "-", attack.replace("/", "_")).strip("-"))

    def table(self):
        """As of any scores, and a row of the expected robustness (statistics.py), from ε = 0, its half and all."""
        table = super().table()
        if self.curve is None:
            return table
        (label,), (limit, *_) = self.attacks, self.curve
        curve = self.curve | {0.0: self.share(CLEAN)}
        sizes = sorted(size for size in curve if size <= limit)
        share = expected_robustness(sizes, [curve[size] for size in sizes])
        low, high = wilson_of_mean(share, self.n)
        row = dict(table.loc[label]) | {"accuracy": 100 * share, "low": 100 * low, "high": 100 * high}
        table.loc[EXPECTED] = row | {"seconds": math.nan}
        return table

    def verdict(self, label=None):
        """As for any scores; but what the attack in doubt is held against has no verdict of its own."""
        return super().verdict(label) if label in (None, CLEAN, *self.attacks) else "–"

    def _heading(self):
        (attack,) = self.attacks.values()
        number = len(self.findings)
        found = f"{number} finding{'s' * (number > 1)}" if number else "nothing to object to"
        return f"audit of {attack}, {self.split}, n = {self.n}: {found}"


def audit(model, split, attack=None, *, surrogates=None, seed=0, progress=True):
    """Look for reasons to doubt what `attack` (PGD with 10 steps) says of this model. Returns an Audit.

    It runs the attack along ε up to where nothing may stand, and beside FGSM and PGD carried over from
    `surrogates`, {name: model}, and from the network itself without its odd parts. Of what stands it gives the
    eighth that is nearest to being wrong to five times the steps, five restarts, the logits times 0.01 and 100,
    noise and Square (1,000 queries). The numbers of these rows are upper bounds: of what was not tried again, all
    counts as standing. And it looks at gradients, batches, repetition, rounding, BatchNorm and convergence, and at
    networks whose truth is known (golden.py). A few hundred pictures do. Saved into the run's folder, its findings
    join the scores there, so that every table strikes out what is invalid. Raises ValueError where the attack has
    no ε to vary, or a norm that is not L∞ or L2. It takes about ten times as long as the attack.
    """
    if not isinstance(surrogates, dict | None):
        raise TypeError(f"surrogates={surrogates!r:.60}: a dictionary {{name: model}} is needed")
    with in_float32(split):
        return _Auditor(model, split, PGD() if attack is None else attack, seed, progress).run(surrogates or {})


class _Auditor:
    """One audit: the model, the pictures that it gets right, and what was measured and found so far."""

    def __init__(self, model, split, attack, seed, progress):
        if not isinstance(attack, Attack):
            raise TypeError(f"{attack!r} is no attack; pass one such as PGD(steps=20)")
        if attack.eps == 0:
            raise ValueError(f"{attack} has no ε to vary")
        if attack.norm not in NORMS:
            raise ValueError(
                f"{attack}: an audit compares with attacks in L∞ and L2; norm={attack.norm!r} has no others here"
            )
        attack.scaled(1.0)  # raises at once where it cannot be
        self.model, self.split, self.attack, self.seed = on_device_of(split, model), split, attack, seed
        self.logits = predict(self.model, split)
        right = (self.logits.argmax(1) == split.labels) & torch.isfinite(self.logits).all(1)
        self.right = right.nonzero()[:, 0]
        described = {attack.label: repr(attack)}
        self.scores = Audit(split.name, {CLEAN: right.cpu()}, described, {CLEAN: 0.0}, pictures=split.checksum)
        self.extents, self.found = {}, []
        self.whole = whole_range(attack.norm, split.images)
        self.bar = tqdm(desc="audit", disable=not progress, unit="image")

    def measure(self, name, attack, source=None, among=None):
        """Put the outcomes of an attack on record, and return the share that withstands.

        Of those `among` (indices) that are attacked again: together with the attack in doubt.
        """
        self.bar.set_description(f"audit: {name}")
        source = self.model if source is None else on_device_of(self.split, source)
        some = self.right if among is None else among
        stood, extent = attacked(source, self.model, self.split, attack, some, self.seed, self.bar)
        outcome = torch.zeros(len(self.split), dtype=torch.bool, device=stood.device)
        if among is not None:
            outcome |= self.scores.outcomes[self.attack.label].to(stood.device)
            self.scores.again[name] = len(among)
        outcome[some] = stood
        self.scores.outcomes[name], self.scores.seconds[name] = outcome.cpu(), extent.seconds
        self.extents[name] = extent
        return self.scores.share(name)

    def _name(self, name, other):
        """Of a row beside the attack in doubt, which may have that name already: torchattacks' FGSM has ours."""
        return repr(other) if name == self.attack.label else name

    def _nearest(self):
        """Of the pictures that withstand the attack, those that were the least surely right before it."""
        stands = self.scores.outcomes[self.attack.label].to(self.logits.device)
        count = min(int(stands.sum()), max(NEAREST, len(self.split) // 8))
        distance = margin(self.logits, self.split.labels).masked_fill(~stands, math.inf)
        return distance.argsort(stable=True)[:count].sort().values

    def run(self, surrogates):
        label, attack = self.attack.label, self.attack
        self.ball = {"eps": attack.eps, "norm": attack.norm}
        ours = FGSM(**self.ball)
        named = {label: attack} if type(attack) is FGSM else {label: attack, self._name("FGSM", ours): ours}
        for name, other in named.items():
            self.measure(name, other)
        self.nearest = self._nearest()
        self._more_effort(label, attack)
        self._less_knowledge(label, surrogates)
        self._along_eps(label, attack)
        with evaluating(self.model):
            self._pictures(attack)
            self.found.append(checks.stale_statistics(self.model, *self.split.batch(slice(250))))
        said, split = self.logits.argmax(1), self.split
        self.found.append(checks.worst_class(said, split.labels, split.classes))
        cheap = examine(self.model, self.split, self.logits, self.scores, named, self.extents)
        there = {finding.check for finding in self.found if finding}
        self.found += [finding for finding in cheap if finding.check not in there]
        self.bar.close()
        self.scores.weights, self.scores.findings = fingerprint(self.model), in_order(self.found)
        return self.scores

    def _more_effort(self, label, attack):
        if type(attack) is FGSM:
            share = self.measure("PGD-10", PGD(**self.ball))
            eps = attack.eps if attack.norm == "Linf" else None
            self.found.append(
                comparisons.attack_order(self.scores.share(label), share, label, "PGD-10", eps, self.scores.n)
            )
            why = "a single step is not an attack to report alone"
            self.found.append(comparisons.stronger("more steps", self.scores, label, "PGD-10", 2.5, why))
        if isinstance(attack, (PGD, MIFGSM, Torchattacks)) and attack.pace[0] is not None:
            self.found.append(too_weak(attack))
        if hasattr(attack, "step_size"):
            name = f"{5 * attack.steps} steps"
            self.measure(name, replace(attack, steps=5 * attack.steps), among=self.nearest)
            self.found.append(
                comparisons.stronger("more steps", self.scores, label, name, 2.5, "it has not converged")
            )
        if type(attack) is PGD and attack.random_start:
            name = f"{5 * attack.restarts} restarts"
            self.measure(name, replace(attack, restarts=5 * attack.restarts), among=self.nearest)
            why = "where it starts decides; use restarts or AutoAttack"
            self.found.append(comparisons.stronger("restarts", self.scores, label, name, 1, why))
        for factor in SCALES if not isinstance(attack, BLIND) else ():
            name, source = f"logits × {factor:g}", wrap(self.model, logits=lambda out, by=factor: by * out)
            self.measure(name, attack, source, self.nearest)
            why = "its loss vanishes, or looks at the wrong classes"
            self.found.append(comparisons.stronger("logit scale", self.scores, label, name, 8, why))

    def _less_knowledge(self, label, surrogates):
        blind = {"noise": Noise(**self.ball), "Square-1000": Square(**self.ball, queries=1000)}
        for name, other in blind.items():
            if other != self.attack:
                row = self._name(name, other)
                self.measure(row, other, among=self.nearest)
                self.found.append(comparisons.weaker_wins(self.scores, label, row, 1))
        with evaluating(self.model):
            smooth = gradients.without_odd_parts(self.model, self.split.batch(slice(MOST))[0])
        itself = {f"itself without {smooth[1]}": smooth[0]} if smooth else {}
        carried = PGD(**self.ball, step_size=self.attack.eps / 4)
        for name, source in (surrogates | itself).items():
            self.measure(f"carried from {name}", carried, source)
            self.found.append(comparisons.weaker_wins(self.scores, label, f"carried from {name}"))

    def _along_eps(self, label, attack):
        grid = {attack.eps: self.scores.share(label)}
        for eps in (attack.eps / 2, 2 * attack.eps, checks.FAR * self.whole, self.whole):
            if eps <= self.whole and all(abs(eps - there) > 1e-9 for there in grid):
                named = f"ε = {checks.in_255ths(eps, attack.norm)}"
                grid[eps] = self.measure(named, attack.scaled(eps / attack.eps))
        self.scores.curve = grid
        chance = float(torch.bincount(self.split.labels).max() / len(self.split))
        self.found.append(comparisons.monotone(grid, len(self.split), (label,), attack.norm))
        if type(attack) is not FGSM:  # a single step has no reason to succeed far out
            self.found.append(comparisons.collapse(grid, chance, (label,), attack.norm, self.whole))

    def _pictures(self, attack):
        """Checks that need the adversarial pictures themselves."""
        few = self.right[: MOST // 2]
        if not len(few):
            return
        images, labels = self.split.batch(few)
        if not isinstance(attack, Torchattacks):  # some of those divide by ε
            still = replace(attack, eps=0.0).craft(self.model, images[:4], labels[:4], self._generator())
            self.found.append(checks.zero_eps(attack, float((still - images[:4]).abs().max()), (attack.label,)))
        pixel = attack.eps / self.whole  # in L2, if all pixels have an equal share
        self.found.append(checks.masked_gradient(self.model, images, labels, eps=pixel))
        points = attack.craft(self.model, images, labels, self._generator())
        mixed = torch.randperm(len(points), generator=torch.Generator().manual_seed(self.seed)).to(points.device)
        with torch.no_grad():
            once = self.model(points)
            again = [torch.cat([self.model(part) for part in points[mixed].split(100)]) for _ in range(AGAIN)]
        changed = torch.stack(again).argmax(2) != once.argmax(1)[mixed]
        disagree = float(changed.any(0).double().mean())
        self.found.append(checks.repeatable(disagree))
        with torch.no_grad():
            stored = self.model((points * 255).round() / 255).argmax(1) == labels
        self.found.append(checks.eight_bits(attack, once.argmax(1) == labels, stored))
        if not isinstance(attack, BLIND):
            self.found.append(gradients.true_gradient(self.model, checks.at_random(images, pixel), labels))
        if getattr(attack, "steps", 0) >= 5 and hasattr(attack, "step_size"):
            self.found.append(gradients.first_order(self.model, attack, images, points, labels))
        if getattr(attack, "steps", 0) >= 20 and hasattr(attack, "step_size"):
            shorter = replace(attack, steps=attack.steps - 10)
            earlier = shorter.craft(self.model, images, labels, self._generator())
            self.found.append(checks.convergence(attack, self._gain(earlier, once, labels)))

    def _gain(self, earlier, logits, labels):
        """How much the loss of what stands has grown, on average, less two standard errors."""
        stands = logits.argmax(1) == labels
        if int(stands.sum()) < 0.05 * len(labels):
            return 0.0  # a handful of examples that hardly count
        with torch.no_grad():
            before = self.model(earlier)
        gain = cross_entropy(logits, labels, reduction="none") - cross_entropy(before, labels, reduction="none")
        spread, mean = torch.std_mean(gain[stands], correction=0)
        return float(mean - 2 * spread / stands.sum() ** 0.5)

    def _generator(self):
        return torch.Generator(self.split.labels.device).manual_seed(self.seed)
