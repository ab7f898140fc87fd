"""AutoAttack and its parts: against torchattacks, for any number of classes, and nothing counted unverified."""

import numpy as np
import pytest
import torch
import torchattacks
from scipy.optimize import linprog
from small import small_network
from torch import nn

import attacks
import models
from attacks import APGD, FAB, FGSM, PGD, AutoAttack, Noise, Square, Torchattacks
from attacks.autoattack_search import Search
from attacks.fab import _project

EPS = 8 / 255
SHORT = {"steps": 20, "queries": 200}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def standing(model, attack, split, seed=0):
    """How many of the pictures withstand."""
    images, labels = split.batch(torch.arange(len(split)))
    found = attack(model, images, labels, generator=generator(seed))
    with torch.no_grad():
        return int((model.eval()(found).argmax(1) == labels).sum())


def reference(model, split, eps, steps, queries):
    """torchattacks' own attacks in the standard order."""
    images, labels = split.batch(torch.arange(len(split)))
    images, common = images.contiguous(), {"eps": eps, "seed": 0, "steps": steps}
    attack = torchattacks.MultiAttack(
        [
            torchattacks.APGD(model.eval(), **common),
            torchattacks.APGDT(model, **common, n_classes=split.num_classes),
            torchattacks.FAB(model, **common, multi_targeted=True, n_classes=split.num_classes),
            torchattacks.Square(model, eps=eps, seed=0, n_queries=queries),
        ]
    )
    return int((model(attack(images, labels)).argmax(1) == labels).sum())


@pytest.mark.parametrize("name", ["standard", "pgd"])
@pytest.mark.parametrize("eps", [2 / 255, 6 / 255])
def test_as_many_withstand_as_with_torchattacks(name, eps, sound, blobs):
    model = sound[name].to(memory_format=torch.contiguous_format)
    theirs = reference(model, blobs.test, eps, **SHORT)
    ours = standing(model, AutoAttack(eps=eps, **SHORT), blobs.test)
    assert abs(ours - theirs) <= 1
    assert 0 < theirs < len(blobs.test)  # else it would prove nothing


def test_on_pictures_of_the_small_cnn(lab):
    few = lab.split.first(60)
    theirs = reference(lab.robust.to(memory_format=torch.contiguous_format), few, EPS, **SHORT)
    lab.robust.to(memory_format=torch.channels_last)
    assert abs(standing(lab.robust, AutoAttack(**SHORT), few) - theirs) <= 1


@pytest.mark.parametrize("loss", ["ce", "dlr", "targeted"])
def test_apgd_is_as_strong_as_torchattacks(loss, lab):
    few = lab.split.first(100)
    images, labels = few.batch(torch.arange(100))
    make = {"ce": torchattacks.APGD, "dlr": torchattacks.APGD, "targeted": torchattacks.APGDT}[loss]
    options = {"loss": loss} if loss != "targeted" else {"n_classes": 10}
    attack = make(lab.robust.to(memory_format=torch.contiguous_format).eval(), eps=EPS, steps=40, **options)
    theirs = int((lab.robust(attack(images.contiguous(), labels)).argmax(1) == labels).sum())
    lab.robust.to(memory_format=torch.channels_last)
    ours = standing(lab.robust, APGD(steps=40, loss=loss), few)
    assert ours <= theirs + 2
    if loss != "dlr":  # which of the two losses is the stronger depends on the network
        assert ours <= standing(lab.robust, PGD(steps=40), few) + 2


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


@pytest.mark.parametrize("name", [name for name in attacks.NAMES if name != "pixle"])
@pytest.mark.parametrize("classes", [2, 10])
def test_an_unbounded_attack_leaves_nothing(name, classes, sound):
    """Every attack with the whole range to itself; FGSM and noise have a single size of step, so any may do."""
    model = small_network(classes=classes).eval()
    images = torch.rand(32, 3, 8, 8, generator=generator())
    labels = model(images).argmax(1)
    attack = attacks.by_name(name)
    left = torch.ones(32, dtype=torch.bool)
    for factor in (1, 2, 4, 8, 16, 255 / 8) if name in ("fgsm", "noise", "fab", "square") else (255 / 8,):
        larger = attack.scaled(factor)
        found = larger(model, images, labels, generator=generator())
        left &= model(found).argmax(1) == labels
    assert left.float().mean() <= (0.25 if name == "noise" else 0)


UNBOUNDED = {
    "vmifgsm": {"neighbours": 1},
    "vnifgsm": {"neighbours": 1},
    "apgd": {"steps": 20},
    "apgdt": {"steps": 20, "targets": 3},
    "fab": {"steps": 20, "targets": 3},
    "square": {"queries": 300},
    "autoattack": {"steps": 20, "targets": 2, "queries": 50},
}


@pytest.mark.parametrize("network", models.NETWORKS)
def test_every_network_falls_to_every_unbounded_attack_and_to_none_at_zero(network):
    model = models.build(network, 10, **({"width": 4} if "resnet" in network else {})).eval()
    images = torch.rand(3, 3, 32, 32, generator=generator())
    with torch.no_grad():  # untrained, it says the same of everything, unless its logits are centred
        head = model.network.get_submodule(model.head)
        head.bias -= model(images).mean(0)
        labels = model(images).argmax(1)
    for name in attacks.NAMES:
        if name in ("fgsm", "noise", "pixle"):  # a single step and blind ones need not arrive
            continue
        attack = attacks.by_name(name, **UNBOUNDED.get(name, {}))
        left = torch.ones(3, dtype=torch.bool)
        for factor in (255 / 8, 4):
            found = attack.scaled(factor)(model, images, labels, generator=generator())
            left &= model(found).argmax(1) == labels
        assert not left.any(), name
        still = attacks.by_name(name, **UNBOUNDED.get(name, {}) | {"eps": 0.0})
        assert torch.equal(still(model, images, labels), images)


@pytest.mark.parametrize("name", [name for name in attacks.NAMES if name not in ("pixle", "autoattack")])
def test_no_eps_changes_nothing_even_in_the_bare_attack(name):
    model = small_network().eval()
    images = torch.rand(6, 3, 8, 8, generator=generator())
    for labels in (model(images).argmax(1), torch.arange(6) % 4):
        found = attacks.by_name(name, eps=0.0).craft(model, images, labels, generator())
        assert torch.equal(found, images)


def test_what_stands_is_attacked_on_and_nothing_else():
    """An example that the model gets wrong is left alone; one that has fallen costs no further step."""
    passed = []
    model = small_network().eval()
    images = torch.rand(40, 3, 8, 8, generator=generator())
    right = model(images).argmax(1)
    labels = torch.where(torch.arange(40) < 10, (right + 1) % 4, right)
    model.register_forward_hook(lambda _, inputs, out: passed.append(len(inputs[0])))
    found = APGD(steps=30, eps=4 / 255, precision="float32").craft(model, images, labels, generator())
    assert torch.equal(found[:10], images[:10])
    assert passed[:3] == [40, 10, 30]  # all, those that look wrong once more, and what stands
    assert passed[-1] < 30


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


def test_bfloat16_finds_what_float32_finds(lab):
    few = lab.split.first(80)
    counts = [standing(lab.robust, AutoAttack(**SHORT, precision=p), few) for p in ("bfloat16", "float32")]
    assert abs(counts[0] - counts[1]) <= 1


def test_the_projection_is_the_smallest_change():
    """Against a linear program: least λ with |d| <= λ, normal · d = -value, and pixels within [0, 1]."""
    random = generator(3)
    points = torch.rand(20, 1, 3, 3, generator=random, dtype=torch.float64)
    points[:5] = points[:5].round()  # at the borders of the range there is room in one direction only
    normal = torch.randn(20, 1, 3, 3, generator=random, dtype=torch.float64)
    value = torch.randn(20, generator=random, dtype=torch.float64)
    change = _project(points, normal, value)
    assert (points + change).min() >= 0
    assert (points + change).max() <= 1
    solved = 0
    for x, w, v, d in zip(points, normal, value, change, strict=True):
        x, w, d = (part.flatten().numpy() for part in (x, w, d))
        ones = np.ones((9, 1))
        best = linprog(
            [*np.zeros(9), 1],
            A_ub=np.block([[np.eye(9), -ones], [-np.eye(9), -ones]]),
            b_ub=np.zeros(18),
            A_eq=[[*w, 0]],
            b_eq=[-float(v)],
            bounds=[*zip(-x, 1 - x, strict=True), (0, None)],
        )
        if best.status == 0:
            solved += 1
            assert float(w @ d) == pytest.approx(-float(v), abs=1e-9)
            assert np.abs(d).max() == pytest.approx(best.fun, abs=1e-9)
        else:  # no point of the plane is a picture: everything that helps is used
            assert np.isin(np.round(x + d, 9), (0, 1)).all()
    assert solved >= 12


def test_square_and_noise_stay_at_the_ends():
    model = small_network().eval()
    images = torch.rand(4, 3, 8, 8, generator=generator()) * 0.8 + 0.1
    labels = model(images).argmax(1)
    for attack in (Square(queries=30, eps=0.02), Noise(eps=0.02)):
        change = (attack.craft(model, images, labels, generator()) - images).abs()
        assert torch.allclose(change, torch.full_like(change, 0.02), atol=1e-6)


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


def test_many_samples_steady_a_random_model(sound, blobs):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = sound["standard"]

        def forward(self, images):
            return self.inner(images + 0.1 * torch.randn_like(images))

    images, labels = blobs.test.batch(torch.arange(128))
    model, sizes = Noisy().eval(), []
    assert [stage.samples for stage in AutoAttack(version="rand").stages] == [20, 20]

    def accuracy(attack):
        """The mean over 50 answers."""
        torch.manual_seed(0)
        found = attack.craft(model, images, labels, generator())
        with torch.no_grad():
            return sum(float((model(found).argmax(1) == labels).double().mean()) for _ in range(50)) / 50

    assert accuracy(FGSM(eps=0.0)) > accuracy(FGSM(eps=4 / 255)) + 0.05
    assert accuracy(APGD(eps=4 / 255, steps=20, samples=20)) < accuracy(FGSM(eps=4 / 255)) + 0.01
    # No example leaves because it was unlucky once: after the first look all steps see the same ones.
    model.inner.register_forward_hook(lambda _, inputs, out: sizes.append(len(inputs[0])))
    APGD(eps=4 / 255, steps=5, samples=2).craft(model, images, labels, generator())
    model.inner._forward_hooks.clear()
    assert len(set(sizes[3:-2])) == 1


def test_an_offset_of_all_logits_does_not_blind_the_search(sound, blobs):
    """bfloat16 resolves 4 at 1000: the margins would drown, so the search goes on in float32."""

    class Lifted(nn.Module):
        def forward(self, images):
            return sound["pgd"](images) + 1000

    images, labels = blobs.test.batch(torch.arange(64))
    sound["pgd"].eval()
    assert Search(sound["pgd"], images, labels, False, "bfloat16").low
    assert not Search(Lifted(), images, labels, False, "bfloat16").low


def test_the_label_says_when_it_is_not_the_standard():
    assert AutoAttack().label == "AutoAttack"
    assert AutoAttack(version="rand").label == "AutoAttack, rand"
    assert AutoAttack(steps=10).label == AutoAttack(queries=100).label == "AutoAttack, cut short"
    assert repr(AutoAttack()) == "AutoAttack(ε=8/255, 100 steps)"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: APGD(loss="hinge"), "loss='hinge'; one of ce, dlr, targeted"),
        (lambda: APGD(samples=0), "samples=0"),
        (lambda: FAB(steps=0), "steps=0"),
        (lambda: Square(queries=0), "queries=0"),
        (lambda: Square(share=1.5), "share=1.5"),
        (lambda: Noise(draws=0), "draws=0"),
        (lambda: AutoAttack(version="plus"), "version='plus'; one of standard, rand"),
        (lambda: AutoAttack(precision="float16"), "precision='float16'"),
    ],
)
def test_refuses_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_settings_of_torch_are_given_back(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    model, seen = small_network().eval(), []
    images = torch.rand(2, 3, 8, 8, generator=generator())
    labels = model(images).argmax(1)
    model.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.benchmark))
    APGD(steps=2, eps=1e-4).craft(model, images, labels, generator())
    assert torch.backends.cudnn.benchmark
    assert not seen[-2]
    assert not torch.is_autocast_enabled("cpu")


def test_rivals_are_ordered_and_leave_out_the_label():
    model = small_network(classes=5).eval()
    images = torch.rand(3, 3, 8, 8, generator=generator())
    labels = model(images).argmax(1)
    search = Search(model, images, labels, False, "float32")
    logits = model(images)
    for row, label, rivals in zip(logits, labels, search.rivals, strict=True):
        expected = [k for k in row.argsort(descending=True).tolist() if k != int(label)]
        assert rivals.tolist() == expected


def test_the_bridge_still_reaches_theirs(sound, blobs):
    attack = Torchattacks("AutoAttack", eps=EPS)
    assert attack.label == "AutoAttack"
    assert standing(sound["pgd"], attack, blobs.test.first(8)) <= 8
