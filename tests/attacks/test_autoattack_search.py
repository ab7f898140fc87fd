"""The search beneath AutoAttack: what counts as a success, and in which precision."""

import pytest
import torch
from small import generator, small_network
from torch import nn

from attacks import APGD, FAB, Square, autoattack_search
from attacks.autoattack_search import LOW, Search
from models import wrap


class Rounded(nn.Module):
    """A model that is wrong in 16 bits only, once it has been found to have its margins and gradients there."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.asked = inner, 0

    def forward(self, images):
        logits = self.inner(images)
        self.asked += torch.is_autocast_enabled("cpu")
        return logits.flip(1) if self.asked > 2 and torch.is_autocast_enabled("cpu") else logits


PARTS = [APGD(steps=3), APGD(steps=3, loss="targeted"), Square(queries=9)]


@pytest.fixture(params=[1, 10, 1000])
def every(request, monkeypatch):
    """Steps after which fallen examples are taken out: at once, as on a GPU, and at the end of each search."""
    monkeypatch.setitem(autoattack_search.EVERY, "cpu", request.param)
    return request.param


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("attack", PARTS, ids=str)
def test_a_success_in_16_bits_alone_does_not_count(attack, precision, every, sound, blobs):
    model = Rounded(sound["pgd"]).eval()
    images, labels = blobs.test.batch(torch.arange(32))
    right = model(images).argmax(1) == labels
    tiny = type(attack)(**{**vars(attack), "eps": 1e-4, "precision": precision})
    found = tiny.craft(model, images, labels, generator())
    assert model.asked > 3
    assert torch.equal(model(found).argmax(1) == labels, right)


STRONG = [
    APGD(steps=25),
    APGD(steps=15, loss="targeted"),
    FAB(steps=15),
    Square(queries=120),
    FAB(steps=15, norm="L2"),
]


@pytest.mark.parametrize("attack", STRONG, ids=str)
def test_as_many_fall_whenever_they_are_taken_out(attack, every, attacked, monkeypatch):
    model, few = attacked
    images, labels = few.batch(torch.arange(len(few)))

    def left():
        found = attack(model, images, labels, generator=generator())
        size = (found - images).flatten(1)
        size = size.norm(dim=1) if attack.norm == "L2" else size.abs().amax(1)
        assert float(size.max()) <= attack.eps + 1e-5
        return int((model(found).argmax(1) == labels).sum())

    found = left()
    monkeypatch.setitem(autoattack_search.EVERY, "cpu", 1)
    assert 0 < found < int((model(images).argmax(1) == labels).sum())
    if isinstance(attack, Square):  # it draws for as many as there are, so it draws others
        assert abs(found - left()) <= 5
    else:
        assert found == left()


def test_what_has_fallen_once_is_kept_whatever_comes_after(every):
    """Of three pictures each is wrong at one step only, where its pixel is above 1/2."""

    class Threshold(nn.Module):
        def forward(self, images):
            over = images[:, 0, 0, 0] - 0.5
            return torch.stack([-over, over], 1)

    model, images = Threshold(), torch.zeros(3, 1, 1, 1)
    search, state = Search(model, images, torch.zeros(3).long(), False, "float32"), {}
    for step in range(3):
        here = torch.where(search.places == step, 0.6 + step / 10, 0.1).view(-1, 1, 1, 1)
        state = search.strike(here, search.logits(here), state)
        assert len(search) == (2 - step if every == 1 else 3)
    search.settle(state, search.images + 0.2)
    assert not len(search)
    assert search.found.flatten().tolist() == pytest.approx([0.6, 0.7, 0.8])


def test_an_offset_of_all_logits_does_not_blind_the_search(sound, blobs):
    """bfloat16 resolves 4 at 1000: the margins would drown, so the search goes on in float32."""

    class Lifted(nn.Module):
        def forward(self, images):
            return sound["pgd"](images) + 1000

    images, labels = blobs.test.batch(torch.arange(64))
    sound["pgd"].eval()
    assert Search(sound["pgd"], images, labels, False, "bfloat16").low
    assert not Search(Lifted(), images, labels, False, "bfloat16").low


@pytest.mark.parametrize(
    ("fast", "expected"),
    [
        ("bfloat16", {"APGD-CE": torch.bfloat16, "FAB-T": None, "Square": None}),
        ("float16", {"APGD-CE": torch.float16, "FAB-T": None, "Square": torch.float16}),
        ("float32", {"APGD-CE": None, "FAB-T": None, "Square": None}),
    ],
)
def test_what_each_attack_searches_in_follows_from_the_device(fast, expected, sound, blobs, monkeypatch):
    monkeypatch.setattr(autoattack_search, "fast_precision", lambda device: fast)
    found, judged = {}, Search.settle
    monkeypatch.setattr(
        Search, "settle", lambda search, *rest: found.update(low=search.low) or judged(search, *rest)
    )
    for attack in (APGD(steps=1), FAB(steps=1, targets=1), Square(queries=2)):
        attack.craft(sound["pgd"].eval(), *blobs.test.batch(torch.arange(64)), generator())
        assert found.pop("low") == expected[attack.label]


@pytest.mark.parametrize("factor", [1e-6, 1e-4, 1, 1e3, 1e5, 1e8])
@pytest.mark.parametrize("loss", ["ce", "targeted"])
def test_what_float16_does_not_hold_does_not_look_robust(loss, factor, sound, blobs):
    """Its gradients vanish below 6e-8, and above 65,504 they, or logits, are infinite: then float32 searches."""
    model = wrap(sound["pgd"], logits=lambda out: factor * out).eval()
    images, labels = blobs.test.batch(torch.arange(100))
    attack = {"eps": 16 / 255, "steps": 10, "loss": loss}
    left = [
        int(
            (
                model(APGD(**attack, precision=p)(model, images, labels, generator=generator())).argmax(1)
                == labels
            ).sum()
        )
        for p in ("float32", "float16")
    ]
    assert 5 < left[0] < 80
    assert abs(left[0] - left[1]) <= 1


def test_rivals_are_ordered_and_leave_out_the_label():
    model = small_network(classes=5).eval()
    images = torch.rand(3, 3, 8, 8, generator=generator())
    labels = model(images).argmax(1)
    search = Search(model, images, labels, False, "float32")
    logits = model(images)
    for row, label, rivals in zip(logits, labels, search.rivals, strict=True):
        expected = [k for k in row.argsort(descending=True).tolist() if k != int(label)]
        assert rivals.tolist() == expected
