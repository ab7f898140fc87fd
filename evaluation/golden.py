"""Networks whose robust accuracy is known, to hold attacks against: the truth there is no other attack's.

Linear ones have it in closed form, the [0, 1] box included; a small ReLU network by branch and bound over the
relaxation of certified.py. Their pictures lie around one point where all classes are equal, at up to a few ε from
it, whatever ε is: half of them or so can be turned, and an attack that gets 90 % of the way leaves some points too
many. All comes from a seed; nothing is trained.
"""

import functools
import math
from dataclasses import dataclass

import pandas as pd
import torch
from torch import nn

from attacks import Attack, margin
from attacks.base import whole_range
from attacks.pgd import bounds
from attacks.settings import NORMS
from evaluation.certified import margins, steps_of
from evaluation.finding import Finding
from evaluation.per_example import attacked
from loaders import Split

LIMIT = 12  # points; with ten steps of ε/4, PGD and the momentum family stay at 10 or below, at any ε
COUNT, SHAPE = 250, (3, 8, 8)  # pictures of a network
SPREAD = 3  # of their distances, in ε
HIDDEN, SCALE = 24, 6  # neurons, and the deviation of the logits, of the ReLU network
LEVELS = 15  # of the network that rounds its pixels, so that no gradient leads through it
TOLERANCE = 1e-4  # of the largest margin: what float32 cannot tell
ROUNDS, MOST_BOXES = 40, 20_000  # of branching


@dataclass(frozen=True)
class Golden:
    """A network, its pictures, and which of these, bool (N,), surely withstand within ε and which may.

    A `plain` one has nothing that leads gradients astray; the others do so in ways that are known.
    """

    name: str
    model: nn.Module
    split: Split
    surely: torch.Tensor
    maybe: torch.Tensor
    plain: bool


def overestimates(attack):
    """What the attack, as it is configured, leaves of networks whose truth is known: a table in percent.

    A row a network: the truth, from `low` to `high` where it is not exact; what the attack `leaves`; how many
    points that is `too many`; whether the network is a `plain` one. ValueError where ε is 0 or the norm has none.
    """
    return pd.DataFrame.from_dict({known.name: measured(known, attack) for known in _for(attack)}, orient="index")


def too_weak(attack):
    """A Finding where an attack leaves over LIMIT points too many of a plain network, else None."""
    rows = {known.name: measured(known, attack) for known in _for(attack) if known.plain}
    name = max(rows, key=lambda name: rows[name]["too many"])
    if rows[name]["too many"] <= LIMIT:
        return None
    says = f"{sentence(attack, name, rows[name])}; are its steps too few, too small or on another loss?"
    return Finding("known truth", "suspect", rows[name]["too many"], LIMIT, says, (attack.label,))


def sentence(attack, name, row):
    """A row of the table in words."""
    exact = row["high"] - row["low"] < 0.05
    truth = f"{row['low']:.1f} %" if exact else f"from {row['low']:.1f} to {row['high']:.1f} %"
    return f"{attack} leaves {row['leaves']:.1f} % of the network “{name}” where the truth is {truth}"


def _for(attack):
    if not isinstance(attack, Attack):
        raise TypeError(f"{attack!r} is no attack; pass one such as PGD(steps=20)")
    return networks(attack.eps, attack.norm)


def measured(known, attack):
    """A row of the table: one golden network."""
    stood = attacked(known.model, known.model, known.split, attack, torch.arange(COUNT), 0)[0]
    low, high, leaves = (100 * float(share.double().mean()) for share in (known.surely, known.maybe, stood))
    return {"low": low, "high": high, "leaves": leaves, "too many": leaves - high, "plain": known.plain}


@functools.lru_cache(maxsize=8)
def networks(eps, norm="Linf"):
    """The golden networks with pictures for this ε, three of them plain. In L2 there are the linear ones alone.

    The scale of logits follows ε: where every pixel moves by ε, those of the plain linear ones move by about 7.
    Those of "unsure" move by a tenth of that, so that cross-entropy pulls towards all classes at once and reaches
    none; those of "saturated" by a thousand times that, so that a softmax in float32 is exactly 0 and 1.
    """
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r}: networks whose truth is known are there in {' and '.join(NORMS)}")
    if not eps > 0:
        raise ValueError(
            f"eps={eps!r}: within nothing an attack cannot leave too many; a number above 0 is needed"
        )
    pixels = math.prod(SHAPE)
    usual = 8 / 255 / (eps if norm == "Linf" else eps / math.sqrt(pixels))
    found = [
        _affine("linear, 2 classes", _layer(2, pixels, usual), eps, norm),
        _affine("linear, 10 classes", _layer(10, pixels, usual), eps, norm),
        _affine("linear, unsure", _layer(10, pixels, usual / 10), eps, norm, plain=False),
        _affine("linear, saturated", _layer(10, pixels, 1000 * usual), eps, norm, plain=False),
    ]
    if norm == "Linf":
        rounded = _affine("rounded pixels", _layer(10, pixels, usual), eps, norm, Rounded(), plain=False)
        found += [_relu(eps), rounded]
    return found


class Rounded(nn.Module):
    """Pixels with LEVELS + 1 values: the gradient is zero everywhere."""

    def forward(self, images):
        return (images * LEVELS).round() / LEVELS


def _draw(kind, *shape, seed):
    return getattr(torch, kind)(*shape, generator=torch.Generator().manual_seed(seed))


def _layer(many, few, scale=1.0):
    """A random linear layer, which gives little where all it is given is 0.5."""
    layer = nn.Linear(few, many).requires_grad_(False)
    layer.weight.copy_(scale * _draw("randn", many, few, seed=many))
    layer.bias.copy_(scale * _draw("randn", many, seed=few) - layer.weight.sum(1) / 2)
    return layer


def _random(seed):
    """Pictures with bright and dark blocks and noise on them."""
    blocks = _draw("rand", 20 * COUNT, SHAPE[0], SHAPE[1] // 4, SHAPE[2] // 4, seed=seed)
    noise = _draw("rand", 20 * COUNT, *SHAPE, seed=seed + 1)
    return (3 * blocks.repeat_interleave(4, 2).repeat_interleave(4, 3) + noise) / 4


def _pictures(model, guide, eps, norm):
    """Random pictures between two classes, each moved by up to SPREAD ε to the side of its label.

    `guide` has the gradient that the network lacks, or is the network itself.
    """
    with torch.no_grad():
        near, far = _random(1), _random(3)
        labels = guide(near).argmax(1)
        differ = (labels != guide(far).argmax(1)).nonzero()[:COUNT, 0]
        near, far, labels = near[differ], far[differ], labels[differ]
        for _ in range(20):
            middle = (near + far) / 2
            same = (guide(middle).argmax(1) == labels)[:, None, None, None]
            near, far = torch.where(same, middle, near), torch.where(same, far, middle)
    near.requires_grad_()
    (slope,) = torch.autograd.grad(margin(guide(near), labels).sum(), near)
    way = slope.sign() * eps / whole_range(norm, near) * torch.linspace(0, SPREAD, len(near))[:, None, None, None]
    dither = _draw("rand", *near.shape, seed=5)
    images = (255 * (near.detach() + way) + dither).floor().clamp(0, 255).to(torch.uint8)
    with torch.no_grad():
        logits = model(images / 255)
    return Split(images, logits.argmax(1), [str(label) for label in range(logits.shape[1])], "golden")


def _affine(name, linear, eps, norm, before=None, plain=True):
    """A linear network, maybe with something `before` it in which no pixel sinks as it rises."""
    guide = nn.Sequential(nn.Flatten(), linear).eval()
    model = guide if before is None else nn.Sequential(before, guide).eval()
    split = _pictures(model, guide, eps, norm)
    images, labels = split.batch(slice(None))
    ends = [border if before is None else before(border) for border in bounds(images, eps)]
    least = _least(linear, images, *ends, labels, eps, norm)
    unsure = TOLERANCE * float(least.abs().median())
    return Golden(name, model, split, least > unsure, least > -unsure, plain)


def _least(linear, images, low, high, labels, eps, norm):
    """The least margins (N,) of a linear layer between `low` and `high`, in L2 also within ε of the images."""
    weight, bias = linear.weight.double(), linear.bias.double()
    slope, offset = weight[labels][:, None] - weight, bias[labels][:, None] - bias  # (N, K, D), (N, K)
    low, high, start = (part.flatten(1).double()[:, None] for part in (low, high, images))
    if norm == "L2":
        # Down along the slope, each pixel until its range ends: as far as the length allows.
        way = slope / slope.abs().amax(2, keepdim=True).clamp_min(1e-300)
        least, most = torch.zeros_like(offset), torch.full_like(offset, 1e4)
        for _ in range(50):
            middle = (least + most) / 2
            inside = ((start - middle[..., None] * way).clamp(0, 1) - start).norm(dim=2) <= eps
            least, most = torch.where(inside, middle, least), torch.where(inside, most, middle)
        lowest = (start - least[..., None] * way).clamp(0, 1)
    else:
        lowest = torch.where(slope > 0, low, high)
    margins = (slope * lowest).sum(2) + offset
    return margins.scatter(1, labels[:, None], math.inf).amin(1)


# --- a ReLU network --------------------------------------------------------------------------------


def _relu(eps):
    """A hidden layer on the means of 4x4 pixels, which can be anything between those of the ends."""
    means = math.prod(SHAPE) // 16
    hidden, head = _layer(HIDDEN, means), _layer(4, HIDDEN)
    network, see = nn.Sequential(hidden, nn.ReLU(), head), nn.Sequential(nn.AvgPool2d(4), nn.Flatten())
    model = nn.Sequential(see, network).eval()
    deviation, mean = torch.std_mean(model(_random(1)), dim=0)  # or it would say one class of nearly all
    head.weight *= SCALE / deviation[:, None]
    head.bias.copy_((head.bias - mean) * SCALE / deviation)
    split = _pictures(model, model, eps, "Linf")
    images, labels = split.batch(slice(None))
    return Golden("ReLU", model, split, *_branched(network, *map(see, bounds(images, eps)), labels), True)


def _branched(network, low, high, labels):
    """Which examples (N,) surely keep their label between `low` and `high` (N, D), and which may.

    Branch and bound: a box is done with where the relaxation proves it, and an example where a point turns it;
    other boxes are halved.
    """
    chain, owner = steps_of(network, low), torch.arange(len(labels))
    with torch.no_grad():
        unsure = TOLERANCE * float(margin(network((low + high) / 2), labels).abs().median())
    falls = torch.zeros(len(labels), dtype=torch.bool)
    for _ in range(ROUNDS):
        middle = ((low + high) / 2).requires_grad_()
        value = margin(network(middle), labels[owner])
        (slope,) = torch.autograd.grad(value.sum(), middle)
        with torch.no_grad():
            corner = margin(network(torch.where(slope > 0, low, high)), labels[owner])
        falls[owner[torch.minimum(value, corner) < -unsure]] = True
        left = ~falls[owner] & (margins(chain, low, high, labels[owner]) <= unsure)
        low, high, owner, slope = low[left], high[left], owner[left], slope[left]
        if not 0 < len(owner) < MOST_BOXES:
            break
        influence = (slope.abs() + 1e-3 * slope.abs().amax(1, keepdim=True) + 1e-12) * (high - low)
        dim = influence.argmax(1, keepdim=True)
        half = (low + high).gather(1, dim) / 2
        low, high = torch.cat([low, low.scatter(1, dim, half)]), torch.cat([high.scatter(1, dim, half), high])
        owner = owner.repeat(2)
    surely = ~falls
    surely[owner] = False
    return surely, ~falls
