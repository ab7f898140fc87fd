"""What the attacks of AutoAttack share: only what still stands is attacked, and no success counts unverified."""

import math
from contextlib import contextmanager

import torch

from attacks.base import led_back, refuse_inference_mode
from models.tf32 import rounding
from processes.machine import LOW, fast_precision

EVERY = {"cpu": 1, "cuda": 10}  # steps after which the fallen leave: a GPU would wait to be asked for them
HEADROOM = 16  # as much larger than the first gradients float16 must be able to hold them
TF32 = "tf32"  # for FAB and Square: float32, on GPUs as they round it


class Search:
    """The examples that have not fallen yet, and what was found for the others.

    An example leaves as soon as a point is found that the model gets wrong in full precision; what the attack
    keeps for each example is cut down with it. `rivals` (n, K - 1) are the wrong classes, the likeliest first.
    A model that answers at `random` may be wrong once by chance, so its first answer takes no example out.
    """

    def __init__(self, model, images, labels, targeted, precision, random=False):
        self.model, self.targeted, self.tf32 = model, targeted, precision != "float32"
        self.found = images.clone()
        self.images, self.labels = images, labels
        self.steps = 0
        self.places = torch.arange(len(images), device=images.device)
        precision = fast_precision(images.device) if precision == "auto" else precision
        logits = exactly(model, images)
        # Inside somebody's autocast the search is still full precision, unless it asks for less.
        self.low = LOW.get(precision) if images.dtype == logits.dtype == torch.float32 else None
        if self.low and not self._low_is_enough(wide(logits)):
            self.low = None
        others = logits.scatter(1, labels[:, None], -math.inf)
        self.rivals = others.argsort(1, descending=True)[:, :-1]
        if not random:
            self._take_out(images, self.won(logits), {})

    def __len__(self):
        return len(self.places)

    def _low_is_enough(self, logits):
        """Do 16 bits tell the margins, to a few percent? Not where all logits share a large offset."""
        try:
            with self.at_work():
                rough = margin(self.logits(self.images), self.labels)
        except TypeError:  # a model that goes through numpy, which knows no bfloat16
            return False
        exact = margin(logits, self.labels)
        alike = (rough - exact).abs().median() <= 0.03 * exact.abs().median()
        return bool(alike & torch.isfinite(rough).all())

    def check_gradient(self):
        """Back to float32 where float16 (6e-8 to 65,504) does not hold each gradient, and larger ones.

        What it loses is zero, and a picture whose gradient is zero looks robust.
        """
        if self.low is not torch.float16 or not len(self):
            return
        found = []
        for low, lift in ((None, 1), (self.low, HEADROOM)):
            self.low = low
            with self.at_work():
                gradient = self.ascend(self.images, self.lead, lift)[1].flatten(1)
            found.append(gradient / _largest(gradient))
        if not (torch.cosine_similarity(*found) > 0.5).all():
            self.low = None

    @contextmanager
    def at_work(self):
        """To be entered once around the search: its precision (so that weights are converted only once)."""
        kind = self.images.device.type
        low = {"dtype": self.low} if self.low else {"enabled": False}
        with rounding(tf32=self.tf32), torch.autocast(kind, **low):
            yield

    def logits(self, points):
        """Logits in the precision of the search, as float32 or wider."""
        with torch.no_grad():
            return wide(self.model(points))

    def ascend(self, points, objective, lift=1):
        """The value (n,) of `objective`, a function of logits (n, K), its gradient at the points, the logits.

        In float16 what flows back from the logits of an example begins at the size of `lift`.
        """
        refuse_inference_mode()
        points = points.detach().requires_grad_()
        with torch.enable_grad():
            out = self.model(points)
            logits = wide(out.detach()).requires_grad_()
            value = objective(logits)
            total = value.sum()  # here, or the caller's torch.no_grad() would hold
        if not out.requires_grad:
            return value.detach(), torch.zeros_like(points), logits.detach()
        (ascent,) = torch.autograd.grad(total, logits)
        if self.low is torch.float16:
            size = _largest(ascent) / lift
            gradient = led_back(out, points, (ascent / size).to(out.dtype)) * size[..., None, None]
        else:
            gradient = led_back(out, points, ascent.to(out.dtype))
        return value.detach(), gradient, logits.detach()

    def won(self, logits, places=slice(None)):
        """Where, among those at `places`, the attacker has what they want: a wrong class, or the one aimed at."""
        said, labels = logits.argmax(1), self.labels[places]
        return said == labels if self.targeted else said != labels

    def lead(self, logits, rank=None):
        """By how much (n,) a rival is ahead of the label: the one of this rank, or whoever is the first now."""
        if rank is None:
            return -margin(logits, self.labels)
        return (logits.gather(1, self.rivals[:, rank : rank + 1]) - logits.gather(1, self.labels[:, None]))[:, 0]

    def strike(self, points, logits, state, counts=True):
        """Note the examples that fall at these points (n, C, H, W), and return `state`, some time without them.

        `logits` (n, K) are those of the search, `counts` (n,) says which points are worth verifying; `state` maps
        names to tensors with a row an example, and goes through here after each step. What falls is attacked on
        until it is taken out; then the point counts at which it was most surely lost.
        """
        lead = -self.lead(logits) if self.targeted else self.lead(logits)
        lead = torch.where(self.won(logits) & counts, lead.nan_to_num(math.inf), -math.inf)
        if "lead" in state:
            points = torch.where((lead > state["lead"])[:, None, None, None], points, state["at"])
            lead = torch.maximum(lead, state["lead"])
        self.steps += 1
        if self.steps % EVERY.get(points.device.type, 1):
            return state | {"lead": lead, "at": points}
        state = self._take_out(points, lead > -math.inf, state)
        return {name: value for name, value in state.items() if name not in ("lead", "at")}

    def _take_out(self, points, won, state):
        places = won.nonzero()[:, 0]
        if not len(places):
            return state
        places = places[self.won(exactly(self.model, points[places]), places)]
        self.found[self.places[places]] = points[places]
        left = torch.ones_like(won).index_fill_(0, places, False).nonzero()[:, 0]
        self.images, self.labels, self.places = self.images[left], self.labels[left], self.places[left]
        self.rivals = self.rivals[left]
        return {name: value[left] for name, value in state.items()}

    def settle(self, state, points):
        """At the end of a search: what is noted, and else these points, are kept, verified like any other."""
        if "lead" in state:
            points = torch.where((state["lead"] > -math.inf)[:, None, None, None], state["at"], points)
        self.found[self.places] = points
        self._take_out(points, torch.ones_like(self.labels, dtype=torch.bool), {})


def exactly(model, points):
    """Logits in full precision, whatever the caller is in."""
    with rounding(tf32=False), torch.no_grad(), torch.autocast(points.device.type, enabled=False):
        return model(points)


def fine_precision(device):
    """For searches that bfloat16 is too coarse for: TF32, but float16 on GPUs that have neither."""
    return "float16" if fast_precision(device) == "float16" else TF32


def _largest(rows):
    """The largest magnitude of each row, (n, 1), above zero."""
    return rows.abs().amax(1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)


def wide(logits):
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def margin(logits, labels):
    """The label's logit minus the largest other: negative where the model is wrong. (n,)"""
    index = labels[:, None]
    return logits.gather(1, index)[:, 0] - logits.scatter(1, index, -math.inf).amax(1)
