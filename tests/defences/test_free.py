"""Free adversarial training."""

import pytest
from small import generator
from torch import nn

from defences import (
    Free,
    Penalty,
)


def test_free_changes_what_it_keeps_in_place_and_begins_anew_for_pictures_of_another_size(batch):
    memory, network = {}, nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 4))
    kept = []
    for images in (batch[0], batch[0], batch[0][..., ::2, ::2]):
        common = {"progress": 0, "generator": generator(), "memory": memory}
        Penalised(Free(), network, 1.0).loss(network, images, batch[1], **common)[0].backward()
        kept.append(memory["perturbation"])
    assert kept[0] is kept[1]
    assert kept[2].shape == (32, 3, 4, 4)
    assert all(each.abs().max() == pytest.approx(8 / 255) for each in kept)


class Penalised(Penalty):
    """A pull that pulls nowhere: what the other defence does passes through it."""

    def distance(self, model, images, source):
        return 0.0


def test_errors_are_clear():
    with pytest.raises(ValueError, match=r"Free: replays=0.5; a whole number"):
        Free(replays=0.5)
