"""Attacks that see logits only, so that no gradient can mislead them: Square Attack and plain noise. L∞ only."""

import math
from dataclasses import dataclass

import torch

from attacks.autoattack_search import PRECISIONS, Search, margin
from attacks.base import Attack, choice, setting
from attacks.pgd import bounds

# After so many queries the squares' share of the picture halves; as in AutoAttack, whatever the budget.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True, kw_only=True, repr=False)
class Square(Attack):
    """Squares of ±ε at random places, kept where they lower the margin (Andriushchenko et al., arXiv:1912.00049).

    `share` is the part of the picture that the first squares cover. `precision` as for APGD.
    """

    queries: int = setting(5000, 1)
    share: float = setting(0.8, 0, 1, open_low=True)
    precision: str = choice(*PRECISIONS)

    zero_gradient_is_failure = False

    def craft(self, model, images, labels, generator, targeted=False):
        search = Search(model, images, labels, targeted, self.precision)
        with search.at_work():
            if len(search):
                self._search(search, generator)
        return search.found

    def _search(self, search, generator):
        best = search.images + self.eps * _signs(search.images[:, :, :1], generator)  # stripes
        best.clamp_(*bounds(search.images, self.eps))
        logits = search.logits(best)
        state = {"best": best, "margin": self._margin(search, logits)}
        state = search.strike(best, search.won(logits), state)
        for query in range(1, self.queries):
            if not len(search):
                return
            point = self._with_square(search.images, state["best"], query, generator)
            logits = search.logits(point)
            value = self._margin(search, logits)
            better = value < state["margin"]
            state |= {"best": torch.where(better[:, None, None, None], point, state["best"])}
            state |= {"margin": torch.where(better, value, state["margin"])}
            state = search.strike(point, search.won(logits), state)
        search.settle(state["best"])

    def _with_square(self, images, best, query, generator):
        """A copy of `best` with a square of ε or -ε, of one sign a channel, at a random place of each picture."""
        side = self._side(query, images)
        count, _, height, width = images.shape
        line = torch.arange(side, device=images.device)

        def begin(length):
            return torch.randint(length - side + 1, (count, 1), generator=generator, device=images.device)

        rows, columns = (begin(height) + line)[:, :, None], (begin(width) + line)[:, None, :]
        each = torch.arange(count, device=images.device)[:, None, None]
        # Channels come last in what is cut out: (n, side, side, C).
        square = images[each, :, rows, columns] + self.eps * _signs(images[:, None, None, :, 0, 0], generator)
        point = best.clone()
        point[each, :, rows, columns] = square.clamp_(0, 1)
        return point

    def _margin(self, search, logits):
        value = margin(logits, search.labels)
        return -value if search.targeted else value

    def _side(self, query, images):
        halvings = sum(query > mark for mark in HALVINGS)
        area = self.share / 2**halvings * images.shape[2] * images.shape[3]
        return min(max(round(math.sqrt(area)), 1), images.shape[2] - 1, images.shape[3] - 1)


@dataclass(frozen=True, kw_only=True, repr=False)
class Noise(Attack):
    """Each value of the picture moved by ε or -ε at random, `draws` times: what no attack may be weaker than."""

    draws: int = setting(10, 1)

    zero_gradient_is_failure = False
    label = "noise"

    def craft(self, model, images, labels, generator, targeted=False):
        search = Search(model, images, labels, targeted, "float32")
        for _ in range(self.draws if len(search) else 0):
            noisy = search.images + self.eps * _signs(search.images, generator)
            search.settle(noisy.clamp_(0, 1))
        return search.found


def _signs(like, generator):
    """-1 or 1 at random, in the shape of `like`."""
    signs = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    return signs.uniform_(-1, 1, generator=generator).sign_()
