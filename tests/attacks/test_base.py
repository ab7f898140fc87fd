"""The contract of every attack: what it leaves alone, what it refuses, what it may change."""

import math
import pickle
import warnings
from dataclasses import FrozenInstanceError, fields, replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import generator, late, pictures, small_network
from torch import nn

import attacks
import models
from attacks import (
    APGD,
    DIFGSM,
    FAB,
    FGSM,
    MIFGSM,
    NIFGSM,
    PGD,
    SINIFGSM,
    TIFGSM,
    VMIFGSM,
    VNIFGSM,
    AutoAttack,
    NearFirst,
    Noise,
    Square,
    Torchattacks,
)
from attacks.base import input_gradient
from defences import TRADES

OWN = {
    "FGSM": FGSM(),
    "FGSM-L2": FGSM(norm="L2", eps=0.5),
    "PGD": PGD(steps=3),
    "PGD-restarts": PGD(steps=2, restarts=3),
    "PGD-L2": PGD(norm="L2", eps=0.5, step_size=0.2, steps=3),
    "APGD-L2": APGD(norm="L2", steps=4),
    "AutoAttack-L2": AutoAttack(norm="L2", steps=3, queries=10),
    "MI": MIFGSM(steps=3),
    "NI": NIFGSM(steps=3),
    "VMI": VMIFGSM(steps=3, neighbours=2),
    "VNI": VNIFGSM(steps=3, neighbours=2),
    "DI": DIFGSM(steps=3, probability=1.0),
    "TI": TIFGSM(steps=3, kernel=3),
    "SI-NI": SINIFGSM(steps=3, copies=2),
    "APGD": APGD(steps=4),
    "APGD-samples": APGD(steps=3, samples=2, loss="dlr"),
    "APGD-T": APGD(steps=3, loss="targeted"),
    "AutoAttack": AutoAttack(steps=3, queries=10),
    "NearFirst": NearFirst(steps=5, queries=10),
    "NearFirst-L2": NearFirst(norm="L2", steps=5, queries=10),
}


BLIND = {  # they see no gradient
    **{"Square": Square(queries=20), "noise": Noise(draws=2)},
    **{"Square-L2": Square(norm="L2", queries=20), "noise-L2": Noise(norm="L2", draws=2)},
}


BRIDGED = {
    "bridge-PGD": Torchattacks("PGD", steps=2),
    "bridge-CW": Torchattacks("CW", steps=3),
    "bridge-Pixle": Torchattacks("Pixle", max_iterations=2, restarts=2),
    "bridge-AutoAttack": Torchattacks("APGDT", steps=2),
}


ALL = OWN | BLIND | BRIDGED


BOUNDED = OWN | BLIND | {"FAB": FAB(steps=3), "FAB-L2": FAB(steps=3, norm="L2")}
LIMITED = {name: attack for name, attack in BOUNDED.items() if "L2" not in name}


def snapshot(model):
    """Everything that an attack must leave alone."""
    return (
        [module.training for module in model.modules()],
        [weight.requires_grad for weight in model.parameters()],
        [None if weight.grad is None else weight.grad.clone() for weight in model.parameters()],
        [value.clone() for value in model.state_dict().values()],
    )


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
def test_leaves_the_model_as_it_was(name, mode, network):
    network.train(mode != "eval")
    if mode == "mixed":
        network[1].eval()
        network[0].weight.requires_grad_(False)
        network[6].bias.grad = torch.ones(4)
    before, random = snapshot(network), torch.get_rng_state()
    ALL[name](network, *pictures(), generator=torch.Generator().manual_seed(0))
    assert same(before, snapshot(network))
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("name", ALL)
def test_leaves_the_model_as_it_was_after_an_error(name, network):
    network.train()
    network.append(nn.Identity())
    before = snapshot(network)
    network[7].register_forward_hook(lambda *_: (_ for _ in ()).throw(ArithmeticError("planted")))
    with pytest.raises(ArithmeticError):
        ALL[name](network, *pictures())
    assert same(before, snapshot(network))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_keeps_range_shape_type_and_layout(name, layout, network):
    images, labels = pictures()
    images = images.contiguous(memory_format=layout)
    original = images.clone()
    adversarial = ALL[name](network, images, labels)
    assert adversarial.shape == images.shape
    assert adversarial.dtype == images.dtype
    assert adversarial.is_contiguous(memory_format=layout)
    assert not adversarial.requires_grad
    assert torch.equal(images, original)
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert not torch.equal(adversarial, images)


@pytest.mark.filterwarnings("ignore:.*were not changed at all")  # an ε below what float32 tells
@pytest.mark.parametrize("name", LIMITED)
@given(eps=st.floats(0, 1), step=st.floats(1e-4, 1), seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_stays_within_eps(name, eps, step, seed):
    attack = LIMITED[name]
    attack = type(attack)(
        **{**vars(attack), "eps": eps} | ({"step_size": step} if hasattr(attack, "step_size") else {})
    )
    images, labels = pictures(seed=seed)
    adversarial = attack(small_network(seed % 7), images, labels)
    assert (adversarial - images).abs().max() <= eps + 1e-6
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    if eps == 0:
        assert torch.equal(adversarial, images)


@pytest.mark.filterwarnings("ignore:.*were not changed at all")  # an ε below what float32 tells
@pytest.mark.parametrize("name", [name for name in BOUNDED if "L2" in name])
@given(eps=st.floats(0, 20), seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_stays_within_eps_in_l2(name, eps, seed):
    attack = type(BOUNDED[name])(**{**vars(BOUNDED[name]), "eps": eps})
    images, labels = pictures(seed=seed)
    adversarial = attack(small_network(seed % 7), images, labels)
    assert (adversarial - images).flatten(1).norm(dim=1).max() <= eps + 1e-5
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


@pytest.mark.parametrize("name", ALL)
def test_no_images_give_no_images(name, network):
    images, labels = pictures(0 + 1)
    assert ALL[name](network, images[:0], labels[:0]).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("name", ALL)
def test_randomness_comes_from_the_generator_or_the_global_seed(name, network):
    def run(seed):
        return ALL[name](network, *pictures(), generator=torch.Generator().manual_seed(seed))

    assert torch.equal(run(1), run(1))
    torch.manual_seed(5)
    first = ALL[name](network, *pictures())
    torch.manual_seed(5)
    assert torch.equal(first, ALL[name](network, *pictures()))


@pytest.mark.parametrize("name", [name for name in OWN if name != "PGD-restarts"])
def test_confidence_does_not_hide_the_gradient(name):
    network = small_network().eval()
    images, _ = pictures(64)
    labels = network(images).argmax(1)
    attack, sure = OWN[name], models.wrap(network, logits=lambda out: 50_000 * out)  # each probability is 0 or 1
    plain, confident = attack(network, images, labels), attack(sure, images, labels)
    left = [(network(found).argmax(1) == labels).sum() for found in (plain, confident)]
    assert left[1] < len(images)
    assert left[1] <= left[0] + 3
    # The textbook gradient is zero for nearly all of these.
    asked = images.clone().requires_grad_()
    loss = nn.functional.cross_entropy(sure(asked), labels)
    zero = (torch.autograd.grad(loss, asked)[0].flatten(1) == 0).all(1)
    assert zero.float().mean() > 0.5


def test_gradient_is_that_of_cross_entropy():
    network, (images, labels) = small_network().double().eval(), pictures(dtype=torch.float64)
    asked = images.clone().requires_grad_()
    loss = nn.functional.cross_entropy(network(asked), labels, reduction="sum")
    expected = torch.autograd.grad(loss, asked)[0]
    assert torch.allclose(input_gradient(network, images, labels, scaled=True), expected, atol=1e-12)
    assert torch.allclose(
        input_gradient(network, images, labels, targeted=True, scaled=True), -expected, atol=1e-12
    )
    direction = input_gradient(network, images, labels)
    cosine = nn.functional.cosine_similarity(direction.flatten(1), expected.flatten(1))
    assert torch.allclose(cosine, torch.ones_like(cosine))


class Quantised(nn.Module):
    """The gradient of what it rounds is zero."""

    def __init__(self):
        super().__init__()
        self.inner = small_network().eval()

    def forward(self, images):
        return self.inner((images * 4).round() / 4)


@pytest.mark.parametrize("name", [*OWN, "bridge-PGD"])
def test_zero_gradient_is_neither_nan_nor_silent(name):
    model, (images, _) = Quantised(), pictures()
    with pytest.warns(RuntimeWarning, match="6 of 6 examples have an input gradient of exactly zero"):
        adversarial = ALL[name](model, images, model(images).argmax(1))
    assert torch.isfinite(adversarial).all()


class Cut(nn.Module):
    """No gradient leads from what it says to the pictures."""

    def __init__(self, how):
        super().__init__()
        self.inner, self.how = small_network().eval(), how

    def forward(self, images):
        if self.how == "no_grad":
            with torch.no_grad():
                return self.inner(images)
        if self.how == "detach":  # yet what it says has a gradient, somewhere else
            return self.inner(images.detach()) + torch.zeros(4, requires_grad=True)
        return torch.from_numpy(self.inner(images.detach()).detach().numpy())


# CW need not follow the gradient that detached logits still have, somewhere else.
CUTS = {(name, how) for name in ALL for how in ("no_grad", "detach", "numpy")} - {("bridge-CW", "detach")}


@pytest.mark.parametrize(("name", "how"), sorted(case for case in CUTS if case[0] != "bridge-Pixle"))
def test_a_missing_gradient_is_not_silent(name, how):
    model, (images, _) = Cut(how), pictures()
    labels = model(images).argmax(1)
    if name in BLIND:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not torch.equal(ALL[name](model, images, labels), images)
    elif name in BRIDGED and name != "bridge-CW":
        with pytest.raises(RuntimeError, match=r"no gradient leads from the model's logits|not have been used"):
            ALL[name](model, images, labels)
    else:
        with pytest.warns(RuntimeWarning, match="no gradient leads from the logits of 6 of 6 examples"):
            ALL[name](model, images, labels)


def test_an_attack_that_has_won_before_it_begins_gives_no_warning(network):
    images, _ = pictures()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Torchattacks("DeepFool")(network.eval(), images, (network(images).argmax(1) + 1) % 4)


def test_what_withstands_unchanged_is_not_silent(network):
    images, _ = pictures()
    labels = network.eval()(images).argmax(1)
    with pytest.warns(RuntimeWarning, match="5 of 6 examples withstand and were not changed at all"):
        MIFGSM(step_size=1e-12)(network, images, labels)  # black pixels of the first move even so
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AutoAttack(steps=2, queries=2)(network, images, (labels + 1) % 4)  # they need no change


@pytest.mark.parametrize("name", ALL)
def test_inference_mode_fools_no_attack(name, network):
    images, labels = pictures()
    labels = network.eval()(images).argmax(1)
    blind = name in BLIND or name == "bridge-Pixle"
    with torch.inference_mode():
        for shown in (images, images.clone()):
            if blind:
                assert not torch.equal(ALL[name](network, shown, labels), images)
            else:
                with pytest.raises(RuntimeError, match="call it outside"):
                    ALL[name](network, shown, labels)
    outside = ALL[name](network, shown, labels, generator=generator())  # pictures that were made inside
    assert torch.equal(outside, ALL[name](network, images, labels, generator=generator()))


@pytest.mark.parametrize("name", ALL)
def test_no_graph_of_the_caller_is_kept(name, network):
    images, labels = pictures()
    images.requires_grad_()
    for shown in (images, images * 1):
        before = shown.detach().clone()
        for attack in (ALL[name], FGSM(eps=0)):
            found = attack(network, shown, labels)
            assert not found.requires_grad
            assert found.grad_fn is None
        assert shown.requires_grad
        assert torch.equal(shown, before)
    assert images.grad is None


@pytest.mark.parametrize("out", [lambda z: (z, z), lambda z: {"logits": z}, lambda z: [z], lambda z: None])
@pytest.mark.parametrize("name", ["PGD", "AutoAttack", "Square", "bridge-PGD"])
def test_what_is_no_tensor_of_logits_is_named(name, out, network):
    network.append(nn.Identity())
    network[7].forward = out
    with pytest.raises(TypeError, match=r"a tensor of logits.*models.wrap\(network, logits="):
        ALL[name](network, *pictures())


BAD_IMAGES = {
    "above 1": (lambda x: x + 1, ValueError, r"\[0, 1\] is needed. Normalise inside the model"),
    "below 0": (lambda x: x - 0.5, ValueError, "images reach from"),
    "NaN": (lambda x: x * math.nan, ValueError, "nan"),
    "infinite": (lambda x: x / 0, ValueError, "images reach"),
    "no batch": (lambda x: x[0], ValueError, "channels, height, width"),
    "bytes": (lambda x: (x * 255).byte(), TypeError, "uint8: float32 or float64"),
    "half": (lambda x: x.half(), TypeError, "float16"),
    "array": (lambda x: x.numpy(), TypeError, "ndarray"),
}


BAD_LABELS = {
    "int32": (lambda y: y.int(), TypeError, "int64"),
    "float": (lambda y: y.float(), TypeError, "int64"),
    "list": (lambda y: y.tolist(), TypeError, "list"),
    "too few": (lambda y: y[:-1], ValueError, r"\(6,\) is needed"),
    "one-hot": (lambda y: nn.functional.one_hot(y), ValueError, "one per image"),
    "negative": (lambda y: y - 10, ValueError, "classes count from 0"),
    "too large": (lambda y: y + 4, ValueError, "the model has 4 classes"),
}


@pytest.mark.parametrize("name", ["FGSM", "PGD", "VMI", "bridge-PGD"])
@pytest.mark.parametrize("case", BAD_IMAGES)
def test_refuses_bad_images(name, case, network):
    change, error, message = BAD_IMAGES[case]
    images, labels = pictures()
    with pytest.raises(error, match=message):
        ALL[name](network, change(images), labels)


@pytest.mark.parametrize("name", ["FGSM", "PGD", "VMI", "bridge-PGD"])
@pytest.mark.parametrize("case", BAD_LABELS)
@pytest.mark.parametrize("where", ["labels", "targets"])
def test_refuses_bad_labels(name, case, where, network):
    change, error, message = BAD_LABELS[case]
    images, labels = pictures()
    bad = change(labels)
    arguments = (bad, None) if where == "labels" else (labels, bad)
    with pytest.raises(error, match=message):
        ALL[name](network, images, arguments[0], targets=arguments[1])


@pytest.mark.parametrize("name", ALL)
def test_refuses_a_model_with_broken_logits(name, network):
    with torch.no_grad():
        network[6].bias[0] = math.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        ALL[name](network, *pictures())


def test_broken_logits_are_noticed_inside_the_callers_float16(network):
    with torch.no_grad():
        network[6].bias[0] = math.nan
    with torch.autocast("cpu", torch.float16), pytest.raises(ValueError, match="NaN or infinite"):
        PGD()(network, *pictures())


def test_refuses_a_model_without_logits():
    with pytest.raises(ValueError, match=r"logits of shape \(N, classes\)"):
        FGSM()(nn.Conv2d(3, 3, 1), *pictures())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGD(eps=8), "forgets the division"),
        (lambda: PGD(eps=math.nan), "eps=nan"),
        (lambda: PGD(eps="8/255"), "eps='8/255'"),
        (lambda: PGD(norm="L1"), "norm='L1'; 'Linf' or 'L2'"),
        (lambda: AutoAttack(norm="L1"), "norm='L1'; 'Linf' or 'L2'"),
        (lambda: TIFGSM(norm="L2"), "TIFGSM: norm='L2'; 'Linf' is needed: it is defined for no other"),
        (lambda: PGD(norm="L2", eps=-1), "eps=-1"),
        (lambda: TIFGSM(kernel=4), "kernel=4; an odd"),
        (lambda: Torchattacks("PDG"), "no attack 'PDG'"),
        (lambda: Torchattacks("PGD", alhpa=1), "do not fit"),
    ],
)
def test_refuses_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_attacks_print_themselves_in_255ths():
    assert repr(PGD()) == "PGD(ε=8/255, α=2/255, 10 steps)"
    assert repr(PGD(step_size=2 / 225)) == "PGD(ε=8/255, α=2.267/255, 10 steps)"
    assert repr(FGSM(eps=4 / 255)) == "FGSM(ε=4/255)"
    assert repr(PGD(norm="L2", eps=0.5, step_size=0.1, restarts=2)) == (
        "PGD(ε=0.5, α=0.1, 10 steps, restarts=2, norm=L2)"
    )
    assert repr(PGD(norm="L2", eps=0.25, steps=20)) == "PGD(ε=0.25, α=0.03125, 20 steps, norm=L2)"
    assert repr(AutoAttack(norm="L2")) == "AutoAttack(ε=0.5, 100 steps, norm=L2)"
    assert repr(Torchattacks("CW", c=1)) == "Torchattacks('CW', c=1)"


@pytest.mark.parametrize("change", [lambda logits: logits[:-1], lambda logits: torch.cat([logits, logits[:1]])])
def test_logits_of_more_or_fewer_pictures_are_refused(change, network):
    images, labels = pictures()
    network.append(nn.Identity())
    network[7].forward = change
    with pytest.raises(ValueError, match=r"shape \([57], 4\) for 6 images"):
        PGD()(network, images, labels)


EPS = 8 / 255
KINDS = {kind.__name__: kind for kind in attacks.OURS} | {"APGD-T": partial(APGD, loss="targeted")}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("classes", [2, 10])
def test_an_unbounded_attack_leaves_nothing(name, classes):
    """Every attack with the whole range to itself; FGSM and noise have a single size of step, so any may do."""
    model = small_network(classes=classes).eval()
    images = torch.rand(32, 3, 8, 8, generator=generator())
    labels = model(images).argmax(1)
    attack = KINDS[name]()
    left = torch.ones(32, dtype=torch.bool)
    for factor in (255 / 8, 16, 8, 4, 2, 1) if name in ("FGSM", "Noise", "FAB", "Square") else (255 / 8,):
        found = attack.scaled(factor)(model, images[left], labels[left], generator=generator())
        left[left.clone()] = model(found).argmax(1) == labels[left]
    assert left.float().mean() <= (0.25 if name == "Noise" else 0)


UNBOUNDED = {
    "VMIFGSM": {"neighbours": 1},
    "VNIFGSM": {"neighbours": 1},
    "APGD": {"steps": 20},
    "APGD-T": {"steps": 20, "targets": 3},
    "FAB": {"steps": 20, "targets": 3},
    "Square": {"queries": 300},
    "AutoAttack": {"steps": 20, "targets": 2, "queries": 50},
}


SLOW = ("shallow_cnn_wide", "resnet34", "resnet50")


@pytest.mark.parametrize("network", [late(name) if name in SLOW else name for name in models.NETWORKS])
def test_every_network_falls_to_every_unbounded_attack_and_to_none_at_zero(network):
    model = models.build(network, 10, **({"width": 4} if "resnet" in network else {})).eval()
    images = torch.rand(3, 3, 32, 32, generator=generator())
    with torch.no_grad():  # untrained, it says the same of everything, unless its logits are centred
        head = model.network.get_submodule(model.head)
        head.bias -= model(images).mean(0)
        labels = model(images).argmax(1)
    for name, kind in KINDS.items():
        if name in ("FGSM", "Noise"):  # a single step and blind ones need not arrive
            continue
        attack = kind(**UNBOUNDED.get(name, {}))
        left = torch.ones(3, dtype=torch.bool)
        for factor in (255 / 8, 4):
            found = attack.scaled(factor)(model, images[left], labels[left], generator=generator())
            left[left.clone()] = model(found).argmax(1) == labels[left]
        assert not left.any(), name
        still = kind(**UNBOUNDED.get(name, {}) | {"eps": 0.0})
        assert torch.equal(still(model, images, labels), images)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "AutoAttack"])
def test_no_eps_changes_nothing_even_in_the_bare_attack(name):
    model = small_network().eval()
    images = torch.rand(6, 3, 8, 8, generator=generator())
    for labels in (model(images).argmax(1), torch.arange(6) % 4):
        attack = KINDS[name](**UNBOUNDED.get(name, {}) | {"eps": 0.0})
        found = attack.craft(model, images, labels, generator())
        assert torch.equal(found, images)


@pytest.mark.parametrize("name", BRIDGED)
def test_craft_leaves_the_model_in_eval_mode(name):
    network, (images, labels) = small_network().eval(), pictures()
    ALL[name].craft(network, images, labels, torch.Generator().manual_seed(0))
    assert not any(module.training for module in network.modules())


@pytest.mark.parametrize("kind", [FGSM, PGD, APGD, FAB, Square, Noise, AutoAttack])
def test_another_norm_takes_its_own_sizes(kind):
    plain, there = pickle.loads(pickle.dumps(kind())), replace(kind(), norm="L2")
    assert there == replace(plain, norm="L2") == kind(norm="L2")
    assert (repr(there), hash(there)) == (repr(kind(norm="L2")), hash(kind(norm="L2")))
    assert replace(there, norm="Linf") == kind()
    assert replace(kind(eps=0.1), norm="L2").eps == 0.1  # what was given stays


def test_a_step_size_follows_the_norm_alone():
    assert replace(PGD(eps=0.25), norm="L2") == PGD(eps=0.25, norm="L2")
    assert replace(PGD(step_size=0.1), norm="L2").step_size == 0.1
    assert replace(PGD(norm="L2"), eps=1.0, steps=50).step_size == PGD(norm="L2").step_size
    trades = TRADES()
    assert replace(trades, attack=replace(trades.attack, norm="L2")) == TRADES(PGD(norm="L2"))


@pytest.mark.parametrize("kind", attacks.OURS)
def test_an_attack_is_a_value_that_names_its_settings(kind):
    attack = kind()
    assert (attack, hash(attack)) == (kind(), hash(kind()))
    assert repr(attack).startswith(f"{kind.__name__}(ε=8/255")
    with pytest.raises(FrozenInstanceError):
        attack.eps = 0.1
    with pytest.raises(TypeError, match="given by name"):
        kind("Linf")


@pytest.mark.parametrize("kind", attacks.OURS)
def test_what_is_counted_begins_at_one(kind):
    for count in [each.name for each in fields(kind) if type(each.default) is int]:
        assert getattr(kind(**{count: 1}), count) == 1
        for wrong in (0, 1.0, True):
            with pytest.raises(
                ValueError, match=f"{kind.__name__}: {count}={wrong}; a whole number of at least 1"
            ):
                kind(**{count: wrong})


@pytest.mark.parametrize(
    ("kind", "name", "allowed", "refused"),
    [
        (FGSM, "eps", (0, 1), (-0.01, 1.01)),
        (PGD, "step_size", (1e-9, 255.0), (0, -1, math.inf, math.nan)),
        (MIFGSM, "step_size", (1e-9, 255.0), (0, -1)),
        (MIFGSM, "decay", (0, 9), (-0.01,)),
        (VMIFGSM, "radius", (1e-9, 9), (0,)),
        (DIFGSM, "probability", (0, 1), (-0.01, 1.01)),
        (DIFGSM, "smallest", (1e-9, 1), (0, 1.01)),
        (TIFGSM, "kernel", (1, 99), (2, 98, 101)),
        (SINIFGSM, "copies", (1, 100), (101,)),
        (Square, "share", (1e-9, 1), (0, 1.01)),
    ],
)
def test_settings_have_their_range_and_its_ends(kind, name, allowed, refused):
    for value in allowed:
        assert getattr(kind(**{name: value}), name) == value
    for value in refused:
        with pytest.raises(ValueError, match=rf"{name}={value}"):
            kind(**{name: value})
