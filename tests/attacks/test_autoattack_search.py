"""The search beneath AutoAttack: what counts as a success, and in which precision."""

import pytest
import torch
from small import generator, small_network
from torch import nn

from attacks import APGD, Square
from attacks.autoattack_search import Search


class Rounded(nn.Module):
    """A model that is wrong in bfloat16 only, whatever it is shown."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        logits = self.inner(images)
        return logits.flip(1) if torch.is_autocast_enabled("cpu") else logits


PARTS = [APGD(steps=3), APGD(steps=3, loss="targeted"), Square(queries=9)]


@pytest.mark.parametrize("attack", PARTS, ids=str)
def test_a_success_in_bfloat16_alone_does_not_count(attack, sound, blobs):
    model = Rounded(sound["pgd"]).eval()
    images, labels = blobs.test.batch(torch.arange(32))
    right = model(images).argmax(1) == labels
    tiny = type(attack)(**{**vars(attack), "eps": 1e-4, "precision": "bfloat16"})
    found = tiny.craft(model, images, labels, generator())
    assert torch.equal(model(found).argmax(1) == labels, right)


def test_an_offset_of_all_logits_does_not_blind_the_search(sound, blobs):
    """bfloat16 resolves 4 at 1000: the margins would drown, so the search goes on in float32."""

    class Lifted(nn.Module):
        def forward(self, images):
            return sound["pgd"](images) + 1000

    images, labels = blobs.test.batch(torch.arange(64))
    sound["pgd"].eval()
    assert Search(sound["pgd"], images, labels, False, "bfloat16").low
    assert not Search(Lifted(), images, labels, False, "bfloat16").low


def test_rivals_are_ordered_and_leave_out_the_label():
    model = small_network(classes=5).eval()
    images = torch.rand(3, 3, 8, 8, generator=generator())
    labels = model(images).argmax(1)
    search = Search(model, images, labels, False, "float32")
    logits = model(images)
    for row, label, rivals in zip(logits, labels, search.rivals, strict=True):
        expected = [k for k in row.argsort(descending=True).tolist() if k != int(label)]
        assert rivals.tolist() == expected
