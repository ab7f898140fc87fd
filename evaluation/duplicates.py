"""Checks of pictures and classes that stand on both sides: test and training, target and source."""

import torch
from torch.nn.functional import adaptive_avg_pool2d, normalize

from evaluation.finding import Finding

SIDE, ALIKE = 8, 0.98


def near_leak(tested, *seen):
    """Suspect: over 2 % of the test pictures have a near twin in a split that training, or the source's, has seen.

    Twins are pictures whose thumbnails (8 x 8, in colour, each with its mean taken off), one of them mirrored or
    not, have a cosine over 0.98: what was resized, compressed, blurred, made brighter or noisy; shifts by pixels
    and crops are not found. Sizes may differ. CIFAR-10 has 0.7 % of these, CIFAR-100 1.1 %, of 3.3 and 10 % that
    people found (ciFAIR: Barz & Denzler 2020, arXiv:1902.00423); drawn shapes have none. Very plain pictures, such
    as digits, may be alike without being copies: look at them. `leak` of checks.py finds exact copies. 10,000
    against 50,000 pictures take half a minute.
    """
    known = torch.cat([_thumbnails(split) for split in seen])
    twins = sum(
        int(nearest.sum()) for nearest in (_have_twin(part, known) for part in _thumbnails(tested).split(500))
    )
    share = twins / len(tested)
    if share > 0.02:
        says = f"{twins} of {len(tested)} test pictures have a near twin in what training has seen"
        return Finding("near leak", "suspect", share, 0.02, f"{says}; leave these out and test again")


def _have_twin(thumbnails, known):
    flipped = thumbnails.view(len(thumbnails), -1, SIDE, SIDE).flip(3).flatten(1)
    return torch.maximum((thumbnails @ known.T).amax(1), (flipped @ known.T).amax(1)) > ALIKE


def _thumbnails(split):
    """Of all pictures, grey ones in three channels: (N, 3 · 8 · 8), of length 1."""
    parts = (split.pictures(slice(begin, begin + 4096)).float() for begin in range(0, len(split), 4096))
    small = torch.cat([adaptive_avg_pool2d(part, SIDE) for part in parts]).expand(-1, 3, -1, -1).flatten(1)
    return normalize(small - small.mean(1, keepdim=True))


def shared_classes(source, target):
    """Suspect: over a tenth of the target's classes, by their names, are classes of the source.

    Then what is carried over may be these classes, not what the source learned of pictures at large. Upper case,
    spaces and signs do not count.
    """
    plain = {"".join(filter(str.isalnum, name.lower())) for name in source}
    shared = [name for name in target if "".join(filter(str.isalnum, name.lower())) in plain]
    if len(shared) > 0.1 * len(target):
        says = f"{len(shared)} of the {len(target)} classes are the source's too ({', '.join(shared[:3])})"
        share = len(shared) / len(target)
        return Finding("shared classes", "suspect", share, 0.1, f"{says}: is it transfer, or the same task?")
