"""Attacks that see logits only, so that no gradient can mislead them: Square Attack and plain noise; L∞ and L2."""

import functools
import math
from dataclasses import dataclass

import torch

from attacks.autoattack_search import Search, fine_precision, margin
from attacks.base import Attack, whole_range
from attacks.pgd import bounds, lengths
from attacks.settings import NORMS, choice, norm_setting, setting
from processes.machine import PRECISIONS

# After so many queries the squares' share of the picture halves; as in AutoAttack, whatever the budget.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True, kw_only=True, repr=False)
class Square(Attack):
    """Squares of ±ε at random places, kept where they lower the margin (Andriushchenko et al., arXiv:1912.00049).

    In L2 a square is a bump up beside a bump down, and another square, emptied, pays for their length. `share` is
    the part of the picture that the first squares cover. `precision` "auto" is float32, on GPUs TF32, or float16
    where they know neither that nor bfloat16. The steps of bfloat16's logits hide small gains: 131 to 134 of 150
    pictures withstood, in float32 124 to 126. On an H100 570, 356, 301 and 114 pictures of four networks withstood
    in float32, in float16 568, 364, 303 and 117.
    """

    queries: int = setting(5000, 1)
    share: float = setting(0.8, 0, 1, open_low=True)
    precision: str = choice(*PRECISIONS)
    norm: str = norm_setting(*NORMS)

    zero_gradient_is_failure = False

    def craft(self, model, images, labels, generator, targeted=False):
        precision = fine_precision(images.device) if self.precision == "auto" else self.precision
        search = Search(model, images, labels, targeted, precision)
        with search.at_work():
            if len(search):
                self._search(search, generator)
        return search.found

    def _search(self, search, generator):
        best = self._begin(search.images, generator)
        logits = search.logits(best)
        state = {"best": best, "margin": self._margin(search, logits)}
        state = search.strike(best, logits, state)
        with_square = self._with_square if self.norm == "Linf" else self._with_bumps
        for query in range(1, self.queries):
            if not len(search):
                return
            point = with_square(search.images, state["best"], query, generator)
            logits = search.logits(point)
            value = self._margin(search, logits)
            better = value < state["margin"]
            state |= {"best": torch.where(better[:, None, None, None], point, state["best"])}
            state |= {"margin": torch.where(better, value, state["margin"])}
            state = search.strike(point, logits, state)
        search.settle(state, state["best"])

    def _with_square(self, images, best, query, generator):
        """A copy of `best` with a square of ε or -ε, of one sign a channel, at a random place of each picture."""
        place = _anywhere(images, self._side(query, images), generator)
        square = images[place] + self.eps * _signs(images[:, None, None, :, 0, 0], generator)
        point = best.clone()
        point[place] = square.clamp_(0, 1)
        return point

    def _begin(self, images, generator):
        """Stripes of ε; in L2 a grid of bumps, five a side."""
        if self.norm == "Linf":
            points = images + self.eps * _signs(images[:, :, :1], generator)
            return points.clamp_(*bounds(images, self.eps))
        height, width = images.shape[2:]
        side = max(height // 5, 1)
        grid = images[:, :, : height // side * side : side, : width // side * side : side]
        signs = _signs(grid, generator).repeat_interleave(side, 2).repeat_interleave(side, 3)
        change = torch.zeros_like(images)
        top, left = (height - signs.shape[2]) // 2, (width - signs.shape[3]) // 2
        bumps = _bumps(side, images, generator).repeat(1, 1, *grid.shape[2:])
        change[:, :, top : top + signs.shape[2], left : left + signs.shape[3]] = signs * bumps
        return self._within(images, change)

    def _with_bumps(self, images, best, query, generator):
        """The change of `best` with a pair of bumps added at one place, and what is at another one taken away."""
        side = min(max(self._side(query, images), 3) | 1, *images.shape[2:])
        place, emptied = (_anywhere(images, side, generator) for _ in range(2))
        change = best - images
        spare = (self.eps**2 - _squares(change)).clamp_min(0)
        within = torch.zeros_like(change)
        within[place] = within[emptied] = 1
        taken = _squares(change * within)
        old = change[place]
        bumps = _bumps(side, images, generator)[:, 0, :, :, None] * _signs(old[:, :1, :1], generator)
        new = bumps + old / old.norm(dim=(1, 2), keepdim=True).clamp_min(1e-12)
        new /= new.norm(dim=(1, 2), keepdim=True).clamp_min(1e-12)
        change[emptied] = 0
        change[place] = new * (spare / images.shape[1] + taken).sqrt()
        return self._within(images, change)

    def _within(self, images, change):
        return (images + self.eps * (change / lengths(change))).clamp_(0, 1)

    def _margin(self, search, logits):
        value = margin(logits, search.labels)
        return -value if search.targeted else value

    def _side(self, query, images):
        halvings = sum(query > mark for mark in HALVINGS)
        area = self.share / 2**halvings * images.shape[2] * images.shape[3]
        return max(1, min(round(math.sqrt(area)), images.shape[2] - 1, images.shape[3] - 1))


@dataclass(frozen=True, kw_only=True, repr=False)
class Noise(Attack):
    """Each value of the picture moved up or down at random, `draws` times: what no attack may be weaker than.

    By ε, or in L2 by so much that the whole change has the length ε.
    """

    draws: int = setting(10, 1)
    norm: str = norm_setting(*NORMS)

    zero_gradient_is_failure = False
    label = "noise"

    def craft(self, model, images, labels, generator, targeted=False):
        search = Search(model, images, labels, targeted, "float32")
        for _ in range(self.draws if len(search) else 0):
            each = self.eps / whole_range(self.norm, search.images)
            noisy = search.images + each * _signs(search.images, generator)
            search.settle({}, noisy.clamp_(0, 1))
        return search.found


def _signs(like, generator):
    """-1 or 1 at random, in the shape of `like`."""
    signs = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    return signs.uniform_(-1, 1, generator=generator).sign_()


def _anywhere(images, side, generator):
    """Where a square at a random place of each picture lies: what it indexes is (n, side, side, C)."""
    count, _, height, width = images.shape
    line = torch.arange(side, device=images.device)

    def begin(length):
        return torch.randint(length - side + 1, (count, 1), generator=generator, device=images.device)

    rows, columns = (begin(height) + line)[:, :, None], (begin(width) + line)[:, None, :]
    return torch.arange(count, device=images.device)[:, None, None], slice(None), rows, columns


def _squares(change):
    """The squared L2 length of each example, (n, 1, 1, 1)."""
    return change.square().sum((1, 2, 3), keepdim=True)


def _bumps(side, images, generator):
    """For each picture a bump up beside a bump down, upright or lying: (n, 1, side, side), of the length 1."""
    pair = _pair(side, images.dtype, images.device)
    upright = _signs(images[:, :1, :1, :1], generator) > 0
    return torch.where(upright, pair, pair.T)


@functools.lru_cache(maxsize=32)
def _pair(side, dtype, device):
    pair = torch.cat([_bump(side // 2, side), -_bump(side - side // 2, side)])
    return (pair / pair.norm()).to(device, dtype)


def _bump(height, width):
    """Rectangles that grow from the middle, of heights 1, 1/4, 1/9, ..., added up; of the length 1."""
    rows, columns = ((torch.arange(length) - length // 2).abs() for length in (height, width))
    heights = torch.arange(1, max(height, width) // 2 + 2).double().pow(-2)
    bump = heights.flip(0).cumsum(0).flip(0)[torch.maximum(rows[:, None], columns)]
    return bump / bump.norm()
