"""What others would say of an evaluation that our checks are asked about: three detectors, after published code.

Each takes a model, pictures and the attack that is in doubt, and returns the names of what it raises. They look at
the first few pictures, and get nothing that is not in the evaluation: no twin of a network, no protocol.
"""

from functools import cache
from itertools import combinations

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from attacks import FGSM, AutoAttack, Square, evaluating
from attacks.base import whole_range
from evaluation import checks
from evaluation.flaws import catalogue
from evaluation.per_example import attacked, predict

INCOMPLETE = "incomplete optimisation"  # an indicator that attacks with ten steps seldom pass
FEW = 24
QUERIES = 200
SHORT = {"steps": 20, "targets": 3, "queries": QUERIES}  # of AutoAttack: cut short


def autoattack_flags(model, split, attack):
    """AutoAttack's (flags_doc.md and checks.py of its repository, fra31/auto-attack, at commit 0868d8e).

    Random answers: five passes differ in accuracy, or by 1e-4 in logits of length 1. Probabilities for logits.
    Gradients in the forward pass. A gradient of targeted DLR that is zero, for any picture, at a random start.
    Square lowers what the white-box attacks leave by 0.2 points. They look at the model, whatever the attack.
    """
    images, labels = _few(split)
    with evaluating(model), torch.no_grad():
        passes = [model(images) for _ in range(5)]
        units = [logits / (logits.norm(dim=1, keepdim=True) + 1e-10) for logits in passes]
        differs = any(float((one - other).norm(dim=1).max()) > 1e-4 for one, other in combinations(units, 2))
        differs |= len({int((logits.argmax(1) == labels).sum()) for logits in passes}) > 1
        asks = checks.gradients_in_forward(model, images[:1])
    raised = {"random answers"} if differs else set()
    raised |= {"probabilities"} if checks.probabilities(passes[0]) else set()
    raised |= {"gradients in forward"} if asks else set()
    with evaluating(model):
        right = passes[0].argmax(1) == labels
        gradient = _gradient(model, checks.at_random(images, attack.eps)[right], labels[right], _dlr)
    raised |= {"zero gradient"} if bool((gradient.flatten(1) == 0).all(1).any()) else set()
    *white, _, square = AutoAttack(eps=attack.eps, norm=attack.norm, **SHORT).stages  # without FAB
    stands = torch.stack([_stands(model, split, stage) for stage in white]).all(0)
    lost = stands & ~_stands(model, split, square)
    return raised | ({"Square wins"} if float(lost.double().mean()) > 0.002 else set())


def indicators(model, split, attack):
    """The indicators of attack failure (Pintor et al. 2022, arXiv:2106.09947; indicators.py of its repository).

    Unavailable gradients, for any picture. Unstable predictions: 20 random directions in place of 100, and the
    margin as loss, which is kinder to sure networks than cross-entropy. Silent success. Incomplete optimisation.
    Unconstrained attack failure, with half of the whole range for ε. Transfer failure is left out: nothing is
    carried over. That code has values and no limits; here over a half counts. And of an attack with less than
    twenty steps the last half of them counts, not the last ten, or each with ten would be incomplete.
    """
    images, labels = _few(split)
    with evaluating(model):
        gradient = _gradient(model, images, labels, _cross_entropy)
        with torch.no_grad():
            loss, changes = _margin(model(images), labels), []
            for _ in range(20):
                moved = images + 8 / 255 * (torch.rand_like(images) - 0.5)
                changes.append((_margin(model(moved), labels) - loss).abs() / loss.abs().clamp_min(1e-12))
        won, losses = _path(model, images, labels, attack)
        far = _path(model, images, labels, attack.scaled(whole_range(attack.norm, images) / 2 / attack.eps))[0]
    # Their loss falls, is brought to [0, 1], and is kept from rising again.
    span = (losses.amax(0) - losses.amin(0)).clamp_min(1e-12)
    reached = ((losses - losses.amin(0)) / span).cummax(0).values[-min(10, len(losses) // 2) :]
    values = {
        "unavailable gradients": float((gradient.flatten(1) == 0).all(1).any()),
        "unstable predictions": min(1, float(torch.stack(changes).mean().nan_to_num(1))),
        "silent success": float((won.any(0) & ~won[-1]).double().mean()),
        INCOMPLETE: float((reached.amax(0) - reached.amin(0) > 0.05).double().mean()),
        "unconstrained attack failure": float((~far[-1]).double().mean()),
    }
    return {name for name, value in values.items() if value > 0.5}


def three_signals(model, split, attack):
    """Auto-ART's (arXiv:2604.20704; auto_art/core/gradient_masking.py of abhitall/auto-art at commit d9f59e3).

    Two of three: a black-box attack, here Square, succeeds more often than the attack by 15 points; gradients of
    the mean cross-entropy are longer than 0.1 on average; under noise of 0.01 they turn, by 1 - cosine over 0.1.
    """
    images, labels = _few(split)
    white = _stands.__wrapped__(model, split, attack)  # settings may be a dictionary, which no cache takes
    black = _stands(model, split, Square(eps=attack.eps, norm=attack.norm, queries=QUERIES))
    signals = {"black box wins"} if float(white.double().mean() - black.double().mean()) > 0.15 else set()
    with evaluating(model):
        clean = _gradient(model, images, labels, _cross_entropy) / len(images)
        turned = []
        for _ in range(10):
            noisy = (images[:20] + 0.01 * torch.randn_like(images[:20])).clamp(0, 1)
            there = _gradient(model, noisy, labels[:20], _cross_entropy)
            turned.append(1 - torch.cosine_similarity(there.flatten(), clean[:20].flatten(), 0, 1e-30))
    signals |= {"long gradients"} if float(clean.flatten(1).norm(dim=1).mean()) > 0.1 else set()
    signals |= {"noise turns gradients"} if float(torch.stack(turned).mean()) > 0.1 else set()
    return signals if len(signals) >= 2 else set()


DETECTORS = {
    "AutoAttack's flags": autoattack_flags,
    "indicators of attack failure": indicators,
    "three signals": three_signals,
}


class _Asked(Exception):
    """Stops a look at a flaw as soon as it is known what is asked about."""


def asked(flaw, lab):
    """The model, the pictures and the attack that a flaw is about, as the catalogue asks our checks."""

    def stop(model, split, attacks=(), **_):
        attacks = attacks if isinstance(attacks, list) else [attacks]
        raise _Asked(model, split, next((a for a in attacks if not isinstance(a, (FGSM, Square))), attacks[0]))

    before = catalogue.test, catalogue.audit
    catalogue.test = catalogue.audit = stop
    try:
        flaw.look(lab)
    except _Asked as found:
        return found.args
    finally:
        catalogue.test, catalogue.audit = before


def raised(model, split, attack):
    """What each detector raises; one that ends in an error has raised that, as its user would see it."""
    said = {}
    for name, detector in DETECTORS.items():
        try:
            said[name] = sorted(detector(model, split, attack))
        except (RuntimeError, ValueError) as error:
            said[name] = [f"error: {error}"[:100]]
    return said


def counted(known):
    """The columns and rows of a table of what verdicts.py measured: how many raise anything, ours and others."""
    rows, strict = [], "indicators of attack failure"
    for lab, flaws in known["planted"].items():
        for kind in dict.fromkeys(flaw["of"] for flaw in flaws):
            some = [flaw for flaw in flaws if flaw["of"] == kind]
            own = [sum(flaw["found"] for flaw in some), sum(flaw["all findings"] != "" for flaw in some)]
            rows.append([f"{lab}: flawed {kind}s", len(some), *own, *_raising(some, DETECTORS, strict)])
    sound = list(known["sound"].values())
    rows.append(["sound networks", len(sound), None, *_raising(sound, ["ours", *DETECTORS], strict)])
    head = ["", "evaluations", "ours, the right check", "ours, any", *DETECTORS, f"{strict}, without {INCOMPLETE}"]
    return head, [["–" if cell is None else str(cell) for cell in row] for row in rows]


def _raising(rows, names, strict):
    """In how many rows each raises anything, and the strict one without what it nearly always raises."""
    asked = [name for name in names if rows[0][name] is not None]
    counts = [sum(bool(row[name]) for row in rows) if name in asked else None for name in names]
    return [*counts, sum(bool({*row[strict]} - {INCOMPLETE}) for row in rows) if strict in asked else None]


def _few(split):
    return split.batch(slice(FEW))


@cache
def _stands(model, split, attack):
    """Which of the few pictures, bool, are right and withstand an attack."""
    few = split.first(min(FEW, len(split)))
    stands = predict(model, few).argmax(1) == few.labels
    right = stands.nonzero()[:, 0]
    if len(right):
        stands[right] = attacked(model, model, few, attack, right, 0)[0]
    return stands


def _gradient(model, images, labels, loss):
    """Of the loss of each picture; zero where none gets through."""
    asked = images.detach().requires_grad_()
    with torch.enable_grad():
        value = loss(model(asked), labels).sum()
    if not value.requires_grad:
        return torch.zeros_like(images)
    return torch.autograd.grad(value, asked, allow_unused=True, materialize_grads=True)[0]


def _cross_entropy(logits, labels):
    return cross_entropy(logits, labels, reduction="none")


def _margin(logits, labels):
    """How far the likeliest wrong class is ahead."""
    own = logits.gather(1, labels[:, None])
    return (logits.scatter(1, labels[:, None], -torch.inf).amax(1, keepdim=True) - own)[:, 0]


def _dlr(logits, labels):
    """Towards the likeliest wrong class."""
    ordered = logits.sort(1, descending=True).values
    return _margin(logits, labels) / (ordered[:, 0] - ordered[:, 2:4].mean(1)).clamp_min(1e-12)


class _Traced(nn.Module):
    """Keeps the points that gradients are asked for."""

    def __init__(self, model, count):
        super().__init__()
        self.model, self.count, self.points = model, count, []

    def forward(self, images):
        if images.requires_grad and len(images) == self.count:
            self.points.append(images.detach().clone())
        return self.model(images)


def _path(model, images, labels, attack):
    """Has the attack won, bool (steps + 1, N), and its cross-entropy: at each of its points and where it ended."""
    traced = _Traced(model, len(images))
    generator = torch.Generator(images.device).manual_seed(0)
    end = attack.craft(traced, images.clone(), labels, generator)
    with torch.no_grad():
        found = [model(points) for points in [*traced.points, end]]
    return (
        torch.stack([logits.argmax(1) != labels for logits in found]),
        torch.stack([_cross_entropy(logits, labels).nan_to_num() for logits in found]),
    )
