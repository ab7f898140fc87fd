"""What no attack can take: lower bounds of robust accuracy, proved layer by layer, for chains of simple layers.

Intervals    Gowal et al. 2018, arXiv:1810.12715: each value's lowest and highest, from layer to layer
Relaxation   Zhang et al. 2018 (CROWN), arXiv:1811.00866: each ReLU between two lines, followed back to the picture

An attack finds an upper bound; what lies between the two, neither settles. Bounds are computed in float32 without
directed rounding, so a picture counts only where its bound is above a small share of its margin.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from attacks.base import Attack, evaluating
from attacks.pgd import bounds
from attacks.settings import NORMS
from evaluation.finding import CLEAN, Finding
from evaluation.per_example import attacked, in_float32, on_device_of, predict
from evaluation.scores import Scores
from models import Model, Normalise, ShallowCNN, copied
from models.model import Wrapped

MOST = 1000  # values of a layer that are followed back to the picture; more of them keep their intervals
AT_ONCE = 2**20  # numbers of all forms that are followed back at once
ROUNDING = 1e-4  # of the margin, and a tenth of it of the largest logit: what rounding cannot reach
NOT_NEGATIVE = nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Dropout, nn.Dropout2d, nn.Identity, Normalise
WEIGHTED = nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.BatchNorm1d
METHODS = "certified, intervals", "certified, relaxation"


class Certified(Scores):
    """An attack's number between two bounds: it from above, what is certified from below."""

    def verdict(self, label=None):
        """As for any scores; a proof has no verdict."""
        return "–" if label in METHODS else super().verdict(label)

    @property
    def worst_case(self):
        """What the attack leaves: a picture for which there is no proof has not fallen."""
        (attack,) = self.attacks
        return self.outcomes[attack]

    @property
    def unsettled(self):
        """The share of pictures, 0 to 1, that the attack leaves and no bound covers."""
        return self.robust_accuracy() - self.share(METHODS[1])

    def _heading(self):
        ((label, attack),) = self.attacks.items()
        low, high = (f"{100 * self.share(row):.1f}" for row in (METHODS[1], label))
        return (
            f"{self.split}, n = {self.n}: robust accuracy is between {low} and {high} % under {attack}; "
            f"{100 * self.unsettled:.1f} % of the pictures are settled by neither bound"
        )


def certified(model, split, attack):
    """Robust accuracy of a model between a proof and an attack: Scores with a row for each.

    The bounds hold for the attack's ε and norm and for [0, 1]. They know chains of convolutions, linear layers,
    BatchNorm, ReLU, 2x2 max pooling and averages, as our shallow CNNs are. Raises ValueError that names the layer
    for others, TypeError for what is no attack. Networks not trained for it get little certified at 8/255; at
    1/255 the bounds say more.
    """
    if not isinstance(attack, Attack):
        raise TypeError(f"{attack!r} is no attack; pass one such as PGD(steps=20)")
    if attack.norm not in NORMS:
        raise ValueError(f"{attack}: there are bounds in L∞ and L2 alone, not in {attack.norm}")
    model = on_device_of(split, model)
    logits = predict(model, split)
    right = logits.argmax(1) == split.labels
    outcomes, indices = {CLEAN: right.cpu()}, right.nonzero()[:, 0]
    described = {attack.label: repr(attack)}
    scores = Certified(split.name, outcomes, described, pictures=split.checksum)
    stood = attacked(model, model, split, attack, indices, 0)[0]
    outcomes[attack.label] = torch.zeros_like(right).index_copy_(0, indices, stood).cpu()
    for name, relaxed in zip(METHODS, (False, True), strict=True):
        outcomes[name] = withstands(model, split, attack.eps, attack.norm, relaxed).cpu() & right.cpu()
        if fell := int((outcomes[name] & ~scores.worst_case).sum()):
            says = f"{fell} pictures fell that nothing within ε can turn: the attack goes further than it says"
            scores.findings.append(Finding("certified", "invalid", fell, 0, says, (attack.label,)))
    return scores


def withstands(model, split, eps, norm="Linf", relaxed=True):
    """Which pictures of a split, bool (N,), no change within ε can turn, by the relaxation or intervals alone."""
    found, chain = [], None
    with in_float32(split):  # a proof holds as far as rounding does not reach
        for images, labels in split.batches(1 if relaxed else 250):
            if chain is None:
                chain = steps_of(model, images)
            ball = (images, eps) if norm == "L2" else None
            least = margins(chain, *bounds(images, eps), labels, relaxed, ball)
            clean = margins(chain, images, images, labels, False)
            with evaluating(model), torch.no_grad():
                largest = model(images).abs().amax(1)
            found.append(least > ROUNDING * torch.maximum(clean.abs(), largest / 10))
    return torch.cat(found)


# --- a network as steps ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Affine:
    """A layer x -> Wx + b, and r -> |W| r."""

    forward: object
    absolute: object

    def __call__(self, x):
        return self.forward(x)

    def interval(self, low, high, known=None):
        middle, reach = self.forward((low + high) / 2), self.absolute((high - low) / 2)
        return middle - reach, middle + reach

    def pull(self, form, shape, known=None):
        """Linear forms (n, S, ...) of what this gives as forms of what it is given, and their constants (n, S)."""
        many = form.flatten(0, 1)
        zero = torch.zeros(len(many), *shape, dtype=form.dtype, device=form.device, requires_grad=True)
        with torch.enable_grad():
            out = self.forward(zero)
        (pulled,) = torch.autograd.grad(out, zero, many)
        return pulled.view(*form.shape[:2], *shape), (form * out[0].detach()).flatten(2).sum(2)


@dataclass(frozen=True)
class Larger:
    """max(a, b) as b + relu(a - b), of affine `difference` a - b and `base` b; ReLU where b is None, for zero."""

    difference: Affine
    base: Affine | None = None

    def __call__(self, x):
        positive = self.difference(x).relu()
        return positive if self.base is None else positive + self.base(x)

    def interval(self, low, high, known):
        """Of what this gives; `known` are the bounds of the difference."""
        least, most = known
        below, above = (0, 0) if self.base is None else (self.base(low), self.base(high))
        return torch.maximum(self(low), below + least.relu()), torch.minimum(self(high), above + most.relu())

    def pull(self, form, shape, known):
        """The forms where their lowest lies, with the difference between its bounds: `known` low and high."""
        low, high = known
        unsure = (low < 0) & (high > 0)
        # The line above a ReLU that may be either; below it, zero or the identity, whichever leaves less between.
        above = torch.where(unsure, high / (high - low).clamp_min(1e-12), (low >= 0).to(low.dtype))
        below = torch.where(unsure, (high > -low).to(low.dtype), above)
        offset = torch.where(unsure, -above * low, 0.0)
        negative = form.clamp(max=0)
        through = form.clamp(min=0) * below[:, None] + negative * above[:, None]
        pulled, constant = self.difference.pull(through, shape)
        constant = constant + (negative * offset[:, None]).flatten(2).sum(2)
        if self.base is not None:
            more, extra = self.base.pull(form, shape)
            pulled, constant = pulled + more, constant + extra
        return pulled, constant


def _monotone(layer):
    """An affine layer without negative weights."""
    return Affine(layer, lambda reach: layer(reach) - layer(torch.zeros_like(reach)))


def _weighted(layer):
    absolute = copy.deepcopy(layer)
    for name in ("weight", "bias", "running_mean"):
        values = getattr(absolute, name, None)
        if values is not None:
            values.data.abs_() if name == "weight" else values.data.zero_()
    return Affine(layer, absolute)


def _pairs(dim):
    """The larger of two neighbours along a side of the pictures."""

    def halves(x):
        return x.narrow(dim, 0, x.shape[dim] // 2 * 2).unflatten(dim, (-1, 2)).unbind(dim + 1)

    difference = Affine(lambda x: torch.sub(*halves(x)), lambda reach: torch.add(*halves(reach)))
    return Larger(difference, _monotone(lambda x: halves(x)[1]))


SAME = Affine(lambda x: x, lambda reach: reach)
RELU = Larger(SAME)


def steps_of(model, images):
    """A network as Affine and Larger steps, tried on these pictures. Raises ValueError where it is no chain."""
    copy_of = copied(model).eval().float().requires_grad_(False)
    chain = list(_steps(copy_of))
    with torch.no_grad():
        wanted, given = copy_of(images), images
        for step in chain:
            given = step(given)
    if given.shape != wanted.shape or not torch.allclose(
        given, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max())
    ):
        raise ValueError(
            "the layers of this network, one after another, do not give what it gives: no bound holds"
        )
    return chain


def _steps(layer):
    kind = type(layer)
    if isinstance(layer, Model):
        grey = (lambda x: x) if kind is Wrapped else (lambda x: x.expand(-1, 3, -1, -1))
        yield _monotone(lambda x: layer.prepared(grey(x)))
        yield from _steps(layer.network)
    elif kind.forward is nn.Sequential.forward or kind is ShallowCNN:
        for part in layer:
            yield from _steps(part)
    elif kind in WEIGHTED and getattr(
        layer, "track_running_stats", True
    ):  # else a batch decides, and not linearly
        yield _weighted(layer)
    elif kind in NOT_NEGATIVE:
        yield _monotone(layer)
    elif kind is nn.ReLU:
        yield RELU
    elif isinstance(layer, nn.MaxPool2d) and _halves(layer):
        yield from (_pairs(3), _pairs(2))
    else:
        raise ValueError(
            f"no bounds are known for {layer!r:.80}: a chain of convolutions, linear layers, BatchNorm, ReLU, 2x2 "
            "max pooling and averages is needed"
        )


def _halves(pool):
    def both(value):
        return value if isinstance(value, tuple) else (value, value)

    settings = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    return [both(value) for value in settings] == [(2, 2), (2, 2), (0, 0), (1, 1)] and not pool.ceil_mode


# --- bounds ----------------------------------------------------------------------------------------


@torch.no_grad()
def margins(chain, low, high, labels, relaxed=True, ball=None):
    """Lower bounds (N,) of the label's logit minus the largest other, over the pictures between `low` and `high`.

    `ball` (images, eps) says that these are also within ε of the images in L2.
    """
    bounded = _Bounds(chain, low, high, relaxed, ball)
    each = torch.eye(bounded.boxes[-1][0].shape[1], device=low.device)
    return bounded.least(each[labels][:, None] - each).scatter(1, labels[:, None], torch.inf).amin(1)


class _Bounds:
    """What a chain's values can be over a box of pictures."""

    def __init__(self, chain, low, high, relaxed, ball):
        self.chain, self.relaxed, self.ball = chain, relaxed, ball
        self.boxes = [(low, high)]  # of what each step is given, and of what the last one gives
        self.known = []  # of each Larger's difference
        for step in chain:
            affine = isinstance(step, Affine)
            self.known.append(None if affine else self._difference(step.difference))
            self.boxes.append(step.interval(*self.boxes[-1], self.known[-1]))

    def _difference(self, difference):
        low, high = difference.interval(*self.boxes[-1])
        shape, low, high = low.shape, low.flatten(1), high.flatten(1)
        places = ((low < 0) & (high > 0)).any(0).nonzero()[:, 0]  # elsewhere it is known which is larger
        if not self.relaxed or len(places) > MOST:
            places = places[:0]
        widest = max(box[0][0].numel() for box in self.boxes)
        for some in places.split(max(1, AT_ONCE // (len(low) * widest))) if len(places) else ():
            each = torch.zeros(len(some), low.shape[1], device=low.device)
            each = each.scatter_(1, some[:, None], 1).view(1, -1, *shape[1:])
            forms, offset = difference.pull(each, self.boxes[-1][0].shape[1:])
            low[:, some] = torch.maximum(low[:, some], self.least(forms) + offset)
            high[:, some] = torch.minimum(high[:, some], offset - self.least(-forms))
        return low.view(shape), high.view(shape)

    def least(self, form):
        """The lowest that linear forms (n or 1, S, ...) of the last values so far can be: (N, S)."""
        # By intervals alone only what is affine is followed: to where its input's bounds are known.
        rectified = [place for place, known in enumerate(self.known) if known is not None]
        begin = rectified[-1] + 1 if rectified and not self.relaxed else 0
        offset = 0
        for place in reversed(range(begin, len(self.known))):
            form, more = self.chain[place].pull(form, self.boxes[place][0].shape[1:], self.known[place])
            offset = offset + more
        low, high = self.boxes[begin]
        least = _dot(form, (low + high) / 2) - _dot(form.abs(), (high - low) / 2)
        if self.ball is not None and begin == 0:
            images, eps = self.ball
            least = torch.maximum(least, _dot(form, images) - eps * form.flatten(2).norm(dim=2))
        return least + offset


def _dot(form, points):
    """Forms (n or 1, S, ...) of points (N, ...): (N, S)."""
    form, points = form.flatten(2), points.flatten(1)
    return points @ form[0].T if len(form) == 1 else torch.einsum("nsd,nd->ns", form, points)
