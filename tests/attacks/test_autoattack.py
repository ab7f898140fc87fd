"""AutoAttack: against torchattacks, for any number of classes, and nothing counted unverified."""

import pytest
import torch
import torchattacks
from small import generator, late, small_network, standing

from attacks import APGD, FAB, PGD, AutoAttack, NearFirst, Noise, Square, Torchattacks, autoattack_search, margin
from attacks.autoattack import Nearest

EPS = 8 / 255
SHORT = {"steps": 20, "queries": 200}


def reference(model, split, ball, steps, queries):
    """torchattacks' own attacks in the standard order."""
    images, labels = split.batch(torch.arange(len(split)))
    images, common = images.contiguous(), ball | {"seed": 0, "steps": steps}
    attack = torchattacks.MultiAttack(
        [
            torchattacks.APGD(model.eval(), **common),
            torchattacks.APGDT(model, **common, n_classes=split.num_classes),
            torchattacks.FAB(model, **common, multi_targeted=True, n_classes=split.num_classes),
            torchattacks.Square(model, **ball, seed=0, n_queries=queries),
        ]
    )
    return int((model(attack(images, labels)).argmax(1) == labels).sum())


@pytest.mark.parametrize("name", ["standard", "pgd"])
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 2 / 255), ("Linf", 6 / 255), late("L2", 0.1), ("L2", 0.3)])
def test_as_many_withstand_as_with_torchattacks(name, norm, eps, sound, blobs):
    model, few = sound[name].to(memory_format=torch.contiguous_format), blobs.test.first(64)
    ball = {"norm": norm, "eps": eps}
    theirs = reference(model, few, ball, **SHORT)
    ours = standing(model, AutoAttack(**ball, **SHORT), few)
    assert abs(ours - theirs) <= 1
    assert 0 < theirs < len(few)  # else it would prove nothing


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 6 / 255), ("L2", 0.3)])
def test_near_first_leaves_no_more_than_autoattack(norm, eps, sound, blobs):
    model, few, ball = sound["pgd"], blobs.test.first(64), {"norm": norm, "eps": eps}
    left = standing(model, NearFirst(**ball, steps=50, queries=100), few)
    assert 0 < left <= standing(model, AutoAttack(**ball, **SHORT), few)
    assert left <= standing(model, PGD(**ball, steps=2), few)


def test_near_first_begins_short_and_ends_long():
    first, few, many, blind = NearFirst(eps=EPS).stages
    assert (first, few) == (APGD(steps=20), APGD(steps=30, loss="targeted", targets=3))
    assert (many.attack, blind.attack) == (APGD(loss="targeted"), Square(queries=1000))


def test_the_nearest_third_is_attacked_and_the_others_get_pgds_points(sound, blobs):
    model, (images, labels) = sound["pgd"].eval(), blobs.test.batch(torch.arange(64))
    attack = Nearest(eps=2 / 255, attack=Noise(eps=2 / 255))
    assert attack.label == "noise on the nearest"
    found = attack.craft(model, images, labels, generator())
    points = PGD(eps=2 / 255, step_size=0.5 / 255).craft(model, images, labels, generator())
    with torch.no_grad():
        lead = margin(model(points), labels)
    other = (found != points).flatten(1).any(1)
    assert int(other.sum()) == 22
    assert lead[other].min() >= 0  # what has fallen already is kept
    assert lead[other].max() <= lead[~other & (lead >= 0)].min()


@pytest.mark.long
def test_on_pictures_of_the_small_cnn(lab):
    few = lab.split.first(60)
    theirs = reference(lab.robust.to(memory_format=torch.contiguous_format), few, {"eps": EPS}, **SHORT)
    lab.robust.to(memory_format=torch.channels_last)
    assert abs(standing(lab.robust, AutoAttack(**SHORT), few) - theirs) <= 1


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_any_number_of_classes(classes):
    model = small_network(classes=classes).eval()
    images = torch.rand(12, 3, 8, 8, generator=generator())
    labels = model(images).argmax(1)
    attack = AutoAttack(eps=4 * EPS, steps=5, queries=20)
    found = attack(model, images, labels, generator=generator())
    assert (found - images).abs().max() <= 4 * EPS + 1e-6
    assert (model(found).argmax(1) != labels).float().mean() > 0.5
    for stage in attack.stages:
        assert torch.isfinite(stage(model, images, labels, generator=generator())).all()


def test_16_bits_find_what_float32_finds(attacked, monkeypatch):
    model, few = attacked
    counts = [standing(model, AutoAttack(**SHORT, precision=p), few) for p in ("float32", "bfloat16", "float16")]
    monkeypatch.setattr(autoattack_search, "fast_precision", lambda device: "float16")
    counts.append(standing(model, AutoAttack(**SHORT), few))
    assert max(counts) - min(counts) <= 1
    assert 0 < counts[0] < len(few)


def test_targets_of_apgd_and_square():
    model = small_network().eval()
    images = torch.rand(24, 3, 8, 8, generator=generator())
    labels = model(images).argmax(1)
    targets = (labels + 1) % 4
    for attack in (APGD(eps=64 / 255), Square(eps=64 / 255, queries=400)):
        found = attack(model, images, labels, targets=targets, generator=generator())
        assert (model(found).argmax(1) == targets).float().mean() > 0.9
    for attack in (FAB(), APGD(loss="targeted"), AutoAttack()):
        with pytest.raises(ValueError, match="chooses its classes itself"):
            attack(model, images, labels, targets=targets)


def test_the_label_says_when_it_is_not_the_standard():
    assert AutoAttack().label == "AutoAttack"
    assert AutoAttack(version="rand").label == "AutoAttack, rand"
    for weaker in ({"steps": 99}, {"queries": 4999}, {"targets": 8}):
        assert AutoAttack(**weaker).label == "AutoAttack, cut short"
    assert AutoAttack(version="rand", queries=1, targets=1).label == "AutoAttack, rand"
    assert AutoAttack(version="rand", steps=99).label == "AutoAttack, rand, cut short"
    assert AutoAttack(steps=101, queries=5001, targets=10).label == "AutoAttack"
    assert repr(AutoAttack()) == "AutoAttack(ε=8/255, 100 steps)"
    assert NearFirst().label == "NearFirst"
    assert NearFirst(steps=99).label == NearFirst(queries=999).label == "NearFirst, cut short"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: APGD(loss="hinge"), "loss='hinge'; one of ce, dlr, targeted"),
        (lambda: AutoAttack(version="plus"), "version='plus'; one of standard, rand"),
        (lambda: AutoAttack(precision="int8"), "precision='int8'"),
    ],
)
def test_refuses_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_bridge_still_reaches_theirs(sound, blobs):
    attack = Torchattacks("AutoAttack", eps=8 * EPS)
    assert attack.label == "AutoAttack"
    assert standing(sound["pgd"], attack, blobs.test.first(8)) == 0
