"""What does a source give to a network that is made of it: clean accuracy, or robustness itself?

Robust accuracy is R = C · S: clean accuracy, times the share of right answers that withstand. So the difference of
two networks splits, exactly, into what better accuracy brings and what better withstanding brings. That robustness
follows clean accuracy alone is the claim of Vaishnavi et al. 2024 (TMLR, "A Study of the Effects of Transfer
Learning on Adversarial Robustness"); that it is carried over itself, of Nern et al. 2023 (NeurIPS,
arXiv:2302.12095), whose bound `feature_bound` measures.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn

from attacks import PGD, evaluating
from evaluation.batch_sizes import BATCH
from evaluation.finding import CLEAN
from evaluation.per_example import in_float32, on_device_of
from evaluation.statistics import Difference, check_attacks, check_examples, difference_of
from evaluation.testing import seed_for
from models import model_of

RESAMPLES = 2000  # of the pictures, for an interval of 95 %


@dataclass(frozen=True)
class Gain:
    """How much more A withstands than B, and where it comes from."""

    total: Difference  # by_accuracy + by_withstanding
    by_accuracy: Difference
    by_withstanding: Difference
    equal: Difference | None  # where both have the clean accuracy `at`; None where they never have the same
    at: float
    invalid: str = ""  # why a number that it is made of must not be used

    def __str__(self):
        if self.invalid:
            return f"cannot be told, because a number is invalid: {self.invalid}"
        split = (
            f"{self.total}; more pictures are right to begin with: {self.by_accuracy}; "
            f"more of the right ones withstand: {self.by_withstanding}"
        )
        if self.equal is None:
            return f"{split}. They never have the same clean accuracy, so what it explains cannot be told"
        if self.equal.sign > 0:
            answer = "robustness itself is carried over"
        elif self.equal.sign < 0:
            answer = "at equal accuracy it costs robustness"
        else:
            most = 100 * max(0, self.equal.widest[1])
            answer = f"beyond clean accuracy, no more than {most:.1f} points are carried over"
        return f"{split}. At a clean accuracy of {100 * self.at:.1f} %: {self.equal}; {answer}"


def source_gain(a, b, label):
    """How much more A withstands than B of the attack `label`, split by where it comes from: a Gain.

    `a` and `b` are the stages of a training, from short to long: each a list of Scores, one a seed, all on the
    same examples. The last stages are split: with C the clean accuracy and S the share of it that withstands,
    R_a - R_b = (C_a - C_b)(S_a + S_b)/2 + (S_a - S_b)(C_a + C_b)/2. For equal clean accuracy, R is read off the
    straight lines between the stages, at the highest C that both reach. Intervals: 95 % bootstrap over the
    pictures, paired, with one picture more that speaks for A and one for B, so that none has no width; with
    several seeds, in the same order and as many everywhere, also over these, as statistics.difference has it.
    Raises ValueError where the examples, or the attacks, are not the same.
    """
    scores = [score for stage in (*a, *b) for score in stage]
    check_examples(scores)
    check_attacks(scores, label)
    invalid = [
        finding.message
        for score in scores
        for finding in score.findings
        if finding.severity == "invalid" and (finding.concerns(label) or finding.concerns(CLEAN))
    ]
    a, b = ([_outcomes(stage, label) for stage in stages] for stages in (a, b))
    seeds, *others = {len(stage) for stage in (*a, *b)}
    alone = [()] * 4  # each part by seed, where each stage has as many
    if seeds > 1 and not others:
        alone, _ = _parts(*(torch.stack([stage.mean(2) for stage in stages], 1).numpy() for stages in (a, b)))
    a, b = (torch.stack([stage.mean(0) for stage in stages]) for stages in (a, b))
    value, at = _parts(*(part.mean(2)[None].numpy() for part in (a, b)))
    one_each = [
        torch.cat([part, torch.tensor(more).double().expand(*part.shape[:2], 2)], 2)
        for part, more in ((a, (1, 0)), (b, (0, 1)))
    ]
    n = one_each[0].shape[2]
    drawn = torch.randint(n, (RESAMPLES, n), generator=torch.Generator().manual_seed(0))
    counts = torch.stack([torch.bincount(row, minlength=n) for row in drawn]).double()
    spread, _ = _parts(*((torch.einsum("rn,skn->rsk", counts, part) / n).numpy() for part in one_each))
    return Gain(*map(_difference, value, spread, alone), float(at[0]), next(iter(invalid), ""))


def _difference(value, spread, alone):
    """A value (1,) with the interval that its resamples (R,) span, and that over its seeds (k,).

    None where it, the value of a seed or more than 5 % of the resamples are NaN.
    """
    there = spread[np.isfinite(spread)]
    if not np.isfinite([*value, *alone]).all() or len(there) < 0.95 * len(spread):
        return None

    def over_examples(confidence=0.95):
        return np.quantile(there, ((1 - confidence) / 2, (1 + confidence) / 2)).tolist()

    if not len(alone):
        return Difference(float(value[0]), *over_examples())
    return difference_of(float(value[0]), over_examples, alone.tolist(), [0.0] * len(alone))


def _outcomes(stage, label):
    """Is each picture right, and does it withstand? (seeds, 2, N)."""
    return torch.stack([torch.stack([score.outcome(row).double() for row in (CLEAN, label)]) for score in stage])


def _parts(a, b):
    """The four differences of a Gain, and its `at`, each (R,), of mean outcomes (R, stages, 2)."""
    (clean_a, robust_a), (clean_b, robust_b) = a[:, -1].T, b[:, -1].T
    share_a, share_b = (
        robust / np.maximum(clean, 1e-12) for clean, robust in ((clean_a, robust_a), (clean_b, robust_b))
    )
    by_accuracy = (clean_a - clean_b) * (share_a + share_b) / 2
    by_withstanding = (share_a - share_b) * (clean_a + clean_b) / 2
    at = np.minimum(a[:, :, 0].max(1), b[:, :, 0].max(1))
    meet = at >= np.maximum(a[:, :, 0].min(1), b[:, :, 0].min(1))
    equal = np.where(meet, _robust_at(a, at) - _robust_at(b, at), np.nan)
    return (robust_a - robust_b, by_accuracy, by_withstanding, equal), at


def _robust_at(stages, at):
    """Robust accuracy at this clean accuracy, on the straight lines between the stages: (R,)."""
    ordered = [some[some[:, 0].argsort(kind="stable")] for some in stages]
    return np.array([np.interp(x, *some.T) for x, some in zip(at, ordered, strict=True)])


def feature_bound(model, split, attack, *, seed=0):
    """Does what is known of the features alone say that a picture withstands? A table, a row a picture.

    moved       how far the features that the head reads move: the longest |f(x + δ) - f(x)|, in L2, that a PGD
                without restarts finds when it climbs this length
    room        how far they can move before a linear head changes its mind: the smallest (z_y - z_j) / |w_y - w_j|
                over the classes j, z the logits, w the head's weights; below zero where the picture is wrong
    withstands  moved < room

    The bound of Nern et al. 2023 (arXiv:2302.12095), for single pictures: if no change within ε moved the features
    further, the head could not be fooled. `moved` is what an attack has found, so this is measured, not certified.
    Raises ValueError where the head is no linear layer.
    """
    if (
        type(attack) is not PGD or attack.restarts > 1 or not attack.random_start
    ):  # each picture's features are compared in their order
        raise ValueError(f"attack={attack}: a PGD without restarts, from a random start, is needed")
    model, found = model_of(on_device_of(split, model)), []
    generator = torch.Generator(split.labels.device).manual_seed(seed_for(attack, seed))
    with evaluating(model), in_float32(split):
        for images, labels in split.batches(BATCH[split.labels.device.type]):
            with torch.no_grad():
                logits, features = model.with_features(images)
            head = model.network.get_submodule(model.find_head(images))
            if not isinstance(head, nn.Linear):
                raise ValueError(f"the head is a {type(head).__name__}; the bound is that of a linear layer")
            climber = _Moved(model, features)
            pushed = attack.craft(climber, images, torch.zeros_like(labels), generator)
            with torch.no_grad():
                moved = climber.lengths(pushed)
            margins = logits.gather(1, labels[:, None]) - logits
            apart = (head.weight[labels][:, None] - head.weight).norm(dim=2)
            rooms = (margins / apart.clamp_min(1e-12)).scatter(1, labels[:, None], torch.inf)
            found.append(torch.stack([moved, rooms.amin(1)]).double().cpu())
    moved, room = torch.cat(found, 1).numpy()
    table = pd.DataFrame({"moved": moved, "room": room, "withstands": moved < room})
    table.attrs |= {"split": split.name, "n": len(split), "attack": repr(attack)}
    return table


class _Moved(nn.Module):
    """Two logits whose cross-entropy for class 0 rises with the distance of the features from where they were."""

    def __init__(self, model, before):
        super().__init__()
        self.model, self.before = model, before

    def lengths(self, images):
        return (self.model.with_features(images)[1] - self.before).flatten(1).norm(dim=1)

    def forward(self, images):
        length = self.lengths(images)
        return torch.stack([-length, torch.zeros_like(length)], 1)
