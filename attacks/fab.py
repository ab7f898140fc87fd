"""FAB (Croce & Hein 2019, arXiv:1907.02044), one class after the other: the nearest boundary; L∞ and L2."""

from dataclasses import dataclass
from functools import partial

import torch

from attacks.autoattack_search import TF32, Search
from attacks.base import Attack
from attacks.settings import NORMS, norm_setting, setting

BIAS = 0.1  # the largest share of the way back towards the picture
OVERSHOOT = 1.05
BACKWARD = 0.9  # of the change is kept after a success beyond ε
FAR = 1e12  # farther than any pixel's room
NEWTON = 8  # iterations of the projection: all but pixels at the border of the range are settled by the first


@dataclass(frozen=True, kw_only=True, repr=False)
class FAB(Attack):
    """Linearises the boundary to one rival class, steps just across it, and comes back towards the picture.

    It has no step size, and ε only says which of its findings count. `targets` classes are tried, the likeliest
    first. It computes in float32, on GPUs in TF32: where it ends, 16 bits cannot tell the boundary's sides apart
    (in float16 410 pictures of 1,000 withstood, in float32 394).
    """

    steps: int = setting(100, 1)
    targets: int = setting(9, 1)
    norm: str = norm_setting(*NORMS)

    label = "FAB-T"
    changes_all = False  # what it finds too far away is given back as it was

    def craft(self, model, images, labels, generator, targeted=False):
        if targeted:
            raise ValueError(f"{self} chooses its classes itself; APGD(loss='ce') takes targets")
        search = Search(model, images, labels, targeted, TF32)
        with search.at_work():
            for rank in range(min(self.targets, search.rivals.shape[1])):
                if len(search):
                    self._cross(search, rank)
        return search.found

    def _cross(self, search, rank):
        state = {"here": search.images}
        for _ in range(self.steps):
            here, images = state["here"], search.images
            value, gradient, _ = search.ascend(here, partial(search.lead, rank=rank))
            # The boundary, as seen from here: gradient · (x - here) + value = 0.
            shift = (gradient * (images - here)).sum((1, 2, 3))
            both, values = torch.cat([here, images]), torch.cat([value, value + shift])
            from_here, from_picture = _project(both, torch.cat([gradient] * 2), values, self.norm).chunk(2)
            near, far = _size(from_here, self.norm), _size(from_picture, self.norm)
            share = (near / (near + far).clamp_min(1e-12)).clamp(0, BIAS)[:, None, None, None]
            here = (here + OVERSHOOT * from_here) * (1 - share) + (images + OVERSHOOT * from_picture) * share
            here = here.clamp_(0, 1)
            logits = search.logits(here)
            won = search.won(logits)
            back = torch.where(won[:, None, None, None], images + BACKWARD * (here - images), here)
            state = search.strike(
                here, logits, state | {"here": back}, _size(here - images, self.norm) <= self.eps
            )
            if not len(search):
                return
        search.settle(state, search.images)


def _size(change, norm):
    return change.flatten(1).abs().amax(1) if norm == "Linf" else change.flatten(1).norm(dim=1)


def _project(points, normal, value, norm="Linf"):
    """The smallest change within [0, 1] that brings `value` (n,), linear with this normal, to zero.

    Each pixel moves in the helpful direction by λ, in L2 by λ times its share of the slope, as far as its room
    allows; what λ gives is concave and piecewise linear, so Newton's method climbs from zero to the solution and
    never past it. Where even the whole room is not enough, all of it is used.
    """
    direction = normal.sign() * -value.sign()[:, None, None, None]
    slope = normal.flatten(1).abs()
    steepest = slope.amax(1, keepdim=True).clamp_min(torch.finfo(slope.dtype).tiny)
    rate = torch.ones_like(slope) if norm == "Linf" else slope / steepest
    room = torch.where(direction > 0, 1 - points, points).flatten(1) * (slope > 0)
    wanted, everything = value.abs(), torch.linalg.vecdot(slope, room)
    reach = torch.zeros_like(wanted)
    for _ in range(NEWTON):
        free = slope * (room > reach[:, None] * rate)
        climb = (free * rate).sum(1)
        missing = wanted - everything + torch.linalg.vecdot(free, room)
        before, reach = reach, torch.where(climb > 0, missing / climb, FAR).clamp(0, FAR)
        if reach.device.type == "cpu" and torch.equal(before, reach):  # a GPU would wait to be asked
            break
    return direction * torch.minimum(room, reach[:, None] * rate).view_as(points)
