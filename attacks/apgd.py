"""APGD (Croce & Hein 2020, arXiv:2003.01690): PGD with momentum that chooses its own step sizes; L∞ and L2."""

import math
from dataclasses import dataclass

import torch

from attacks.autoattack_search import Search
from attacks.base import Attack
from attacks.pgd import direction, lengths, projection
from attacks.settings import NORMS, choice, norm_setting, setting
from processes.data_parallel import drawn
from processes.machine import PRECISIONS

MOMENTUM = 0.75  # share of the new step, the rest is the last movement
RISES = 0.75  # of the steps between two checkpoints, as many must climb, or the step is halved


@dataclass(frozen=True, kw_only=True, repr=False)
class APGD(Attack):
    """Steps from 2ε on, halved where the loss climbs too seldom, each time from the best point so far.

    `loss` "ce" is cross-entropy, "dlr" the difference of logits ratio, which no scaling of the logits changes,
    "targeted" the same towards one wrong class after the other, the `targets` likeliest. `samples` gradients are
    averaged at each step, for models that answer at random; then no example leaves at its first lucky draw.
    `precision` "auto" searches in bfloat16 where the device has it, on other GPUs in float16, if the model's
    margins survive it, in float16 its gradients, too; every success is verified in full precision.
    """

    steps: int = setting(100, 1)
    loss: str = choice("ce", "dlr", "targeted")
    targets: int = setting(9, 1)
    restarts: int = setting(1, 1)
    samples: int = setting(1, 1)
    precision: str = choice(*PRECISIONS)
    norm: str = norm_setting(*NORMS)

    @property
    def label(self):
        return {"ce": "APGD-CE", "dlr": "APGD-DLR", "targeted": "APGD-T"}[self.loss]

    def craft(self, model, images, labels, generator, targeted=False):
        if targeted and self.loss != "ce":
            raise ValueError(f"{self} chooses its classes itself; APGD(loss='ce') takes targets")
        search = Search(model, images, labels, targeted, self.precision, random=self.samples > 1)
        search.check_gradient()
        ranks = range(min(self.targets, search.rivals.shape[1])) if self.loss == "targeted" else [None]
        with search.at_work():
            for rank in [*ranks] * self.restarts:
                if len(search):
                    self._climb(search, rank, generator)
        return search.found

    def _climb(self, search, rank, generator):
        """One run of APGD on what stands; `rank` says which rival it moves towards, None: away from the label."""
        here = self._start(search.images, generator)
        loss, gradient, logits = self._ascend(search, here, rank)
        state = {"here": here, "before": here, "best": here, "gradient": gradient, "uphill": gradient}
        state |= {"loss": loss, "top": loss, "checked": loss, "rises": torch.zeros_like(loss)}
        state |= {"size": torch.full_like(loss, 2 * self.eps), "halved": torch.ones_like(loss, dtype=torch.bool)}
        if self.samples == 1:
            state = search.strike(here, logits, state)
        window, since = max(round(0.22 * self.steps), 1), 0
        for step in range(self.steps):
            if not len(search):
                return
            project = projection(search.images, self.eps, self.norm)
            state = _move(state, MOMENTUM if step else 1.0, project, self.norm)
            loss, gradient, logits = self._ascend(search, state["here"], rank, last=step == self.steps - 1)
            state = _note(state, loss, gradient)
            if self.samples == 1:
                state = search.strike(state["here"], logits, state)
            since += 1
            if since == window:
                state = _checkpoint(state, window)
                window, since = max(window - max(round(0.03 * self.steps), 1), round(0.06 * self.steps), 1), 0
        search.settle(state, state["best"])

    def _start(self, images, generator):
        """Somewhere on the border of the ball, in any direction, as far as [0, 1] allows."""
        if self.norm == "Linf":
            noise = drawn(images, lambda noise: noise.uniform_(-1, 1, generator=generator))
            noise /= noise.abs().amax((1, 2, 3), keepdim=True)
        else:
            noise = drawn(images, lambda noise: noise.normal_(generator=generator))
            noise /= lengths(noise)
        points = torch.addcmul(images, noise, torch.full_like(noise[:1], self.eps))
        return projection(images, self.eps, self.norm)(points)

    def _ascend(self, search, points, rank, last=False):
        objective = self._objective(search, rank)
        if last and self.samples == 1:  # nobody will follow this gradient
            logits = search.logits(points)
            return objective(logits), torch.zeros_like(points), logits
        loss, gradient, logits = search.ascend(points, objective)
        for _ in range(self.samples - 1):
            another = search.ascend(points, objective)
            loss, gradient, logits = loss + another[0], gradient + another[1], another[2]
        return loss, gradient, logits  # sums: only their order counts, and the gradient's direction

    def _objective(self, search, rank):
        def cross_entropy(logits):  # which is softplus of this: they climb together, but this never saturates
            index = search.labels[:, None]
            lead = logits.scatter(1, index, -math.inf).logsumexp(1) - logits.gather(1, index)[:, 0]
            return -lead if search.targeted else lead

        def ratio(logits):
            lead = search.lead(logits, rank)
            if logits.shape[1] == 2:  # the paper has three classes in mind, or four
                return lead
            ordered = logits.sort(1, descending=True).values
            low = ordered[:, 2] if rank is None else ordered[:, 2:4].mean(1)
            return lead / (ordered[:, 0] - low).clamp_min(1e-12)

        return cross_entropy if self.loss == "ce" else ratio


def _move(state, share, project, norm):
    here = state["here"]
    uphill = state["gradient"].sign() if norm == "Linf" else direction(state["gradient"])
    ahead = project(here + state["size"][:, None, None, None] * uphill).sub_(here).mul_(share)
    if share < 1:
        ahead.add_(here - state["before"], alpha=1 - share)
    return state | {"here": project(ahead.add_(here)), "before": here}


def _note(state, loss, gradient):
    """The state with what was seen at the new point."""
    better = loss > state["top"]
    wide = better[:, None, None, None]
    return state | {
        "best": torch.where(wide, state["here"], state["best"]),
        "uphill": torch.where(wide, gradient, state["uphill"]),
        "top": torch.where(better, loss, state["top"]),
        "rises": state["rises"] + (loss > state["loss"]),
        "loss": loss,
        "gradient": gradient,
    }


def _checkpoint(state, window):
    """Halve the step and go back to the best point where the loss climbed too seldom, or reached nothing new."""
    idle = ~state["halved"] & (state["checked"] >= state["top"])
    halve = (state["rises"] <= RISES * window) | idle
    wide = halve[:, None, None, None]
    return state | {
        "size": torch.where(halve, state["size"] / 2, state["size"]),
        "here": torch.where(wide, state["best"], state["here"]),
        "gradient": torch.where(wide, state["uphill"], state["gradient"]),
        "halved": halve,
        "checked": state["top"],
        "rises": torch.zeros_like(state["rises"]),
    }
