"""The contract of every attack, and equality with torchattacks where the settings are equal."""

import math
import warnings

import pytest
import torch
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st
from small import small_network
from torch import nn

import attacks
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
    Noise,
    Square,
    Torchattacks,
    by_name,
    diverse,
)
from attacks.base import input_gradient

OWN = {
    "FGSM": FGSM(),
    "FGSM-L2": FGSM(norm="L2", eps=0.5),
    "PGD": PGD(steps=3),
    "PGD-restarts": PGD(steps=2, restarts=3),
    "PGD-L2": PGD(norm="L2", eps=0.5, step_size=0.2, steps=3),
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
}
BLIND = {"Square": Square(queries=20), "noise": Noise(draws=2)}  # they see no gradient
BRIDGED = {
    "bridge-PGD": Torchattacks("PGD", steps=2),
    "bridge-CW": Torchattacks("CW", steps=3),
    "bridge-Pixle": Torchattacks("Pixle", max_iterations=2, restarts=2),
    "bridge-AutoAttack": Torchattacks("APGDT", steps=2),
}
ALL = OWN | BLIND | BRIDGED
LIMITED = {name: attack for name, attack in (OWN | BLIND | {"FAB": FAB(steps=3)}).items() if "L2" not in name}


def pictures(count=6, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, 8, 8, generator=generator, dtype=dtype)
    images[0, :, :4], images[0, :, 4:] = 0, 1  # the borders of the range
    return images, torch.randint(0, 4, (count,), generator=generator)


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


@pytest.mark.parametrize("name", ["FGSM-L2", "PGD-L2"])
@given(eps=st.floats(0, 20), seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_stays_within_eps_in_l2(name, eps, seed):
    attack = type(OWN[name])(**{**vars(OWN[name]), "eps": eps})
    images, labels = pictures(seed=seed)
    adversarial = attack(small_network(seed % 7), images, labels)
    assert (adversarial - images).flatten(1).norm(dim=1).max() <= eps + 1e-5
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


@pytest.mark.parametrize("name", ALL)
def test_zero_eps_changes_nothing(name, network):
    images, labels = pictures()
    attack = ALL[name]
    attack = Torchattacks("FGSM", eps=0) if name in BRIDGED else type(attack)(**{**vars(attack), "eps": 0})
    assert torch.equal(attack(network, images, labels), images)


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


def test_noise_differs_between_seeds_and_calls(network):
    images, labels = pictures()
    attack = PGD(steps=1, step_size=1 / 255)
    assert not torch.equal(attack(network, images, labels), attack(network, images, labels))


# --- equality with torchattacks --------------------------------------------------------------------


def reference(name, network, images, labels, targeted=False, **settings):
    attack = getattr(torchattacks, name)(network.eval(), **settings)
    if targeted:
        attack.set_mode_targeted_by_label(quiet=True)
    return attack(images, labels)


PAIRS = [
    (FGSM(), "FGSM", {}),
    (PGD(random_start=False), "PGD", {"random_start": False}),
    (PGD(norm="L2", eps=1.0, step_size=0.2, random_start=False), "PGDL2", {"random_start": False}),
    (MIFGSM(), "MIFGSM", {}),
    (NIFGSM(), "NIFGSM", {}),
    (SINIFGSM(), "SINIFGSM", {}),
    (SINIFGSM(copies=3, decay=0.5), "SINIFGSM", {"m": 3, "decay": 0.5}),
    (TIFGSM(kernel=15), "TIFGSM", {"decay": 1.0, "diversity_prob": 0.0}),
    (TIFGSM(kernel=3, decay=0.5), "TIFGSM", {"decay": 0.5, "diversity_prob": 0.0, "len_kernel": 3}),
    (DIFGSM(probability=0.0), "DIFGSM", {"decay": 1.0, "diversity_prob": 0.0}),
    (MIFGSM(decay=0.7, steps=5, step_size=3 / 255), "MIFGSM", {"decay": 0.7, "steps": 5, "alpha": 3 / 255}),
]


@pytest.mark.parametrize(("ours", "name", "extra"), PAIRS, ids=str)
@pytest.mark.parametrize("targeted", [False, True])
def test_equals_torchattacks(ours, name, extra, targeted):
    for seed in range(5):
        network, (images, labels) = small_network(seed), pictures(16, seed)
        expected = reference(name, network, images, labels, targeted, **extra)
        adversarial = ours(network, images, labels, targets=labels if targeted else None)
        # A sign may differ where a gradient is zero but for rounding; nothing else may.
        differs = (adversarial - expected).abs() > 1e-6
        assert differs.float().mean() <= (0 if name == "PGDL2" else 2e-4)


@pytest.mark.parametrize(("ours", "name"), [(VMIFGSM(), "VMIFGSM"), (VNIFGSM(), "VNIFGSM")], ids=str)
def test_equals_torchattacks_with_the_same_noise(ours, name, monkeypatch):
    # torchattacks draws a normal sample and overwrites it; without that draw both use the same noise.
    monkeypatch.setattr(torch, "randn_like", torch.empty_like)
    for seed in range(3):
        network, (images, labels) = small_network(seed), pictures(16, seed)
        torch.manual_seed(seed)
        expected = reference(name, network, images, labels)
        torch.manual_seed(seed)
        adversarial = ours(network, images, labels, generator=torch.default_generator)
        assert ((adversarial - expected).abs() > 1e-6).float().mean() <= 1e-3


def test_di_shrinks_and_shifts_the_whole_batch_and_always_shows_all_of_it():
    images = torch.ones(2, 3, 20, 30)
    seen = set()
    for seed in range(300):
        side, top, left = torch.rand(3, generator=torch.Generator().manual_seed(seed)).tolist()
        shown = diverse._shrunk(images, 0.9, side, top, left)
        assert shown.shape == images.shape
        assert torch.equal(shown[0], shown[1])
        lit = shown[0, 0] > 0
        rows, columns = lit.any(1).nonzero()[:, 0], lit.any(0).nonzero()[:, 0]
        assert lit.sum() == len(rows) * len(columns)  # one rectangle
        seen.add((len(rows), len(columns), int(rows[0]), int(columns[0])))
    assert {size for size, *_ in seen} == {18, 19, 20}
    assert {size for _, size, *_ in seen} == {27, 28, 29, 30}
    assert {top for rows, _, top, _ in seen if rows == 18} == {0, 1, 2}
    assert {left for _, columns, _, left in seen if columns == 27} == {0, 1, 2, 3}
    photo = torch.rand(1, 3, 20, 30)
    small = nn.functional.interpolate(photo, size=(18, 27), mode="bilinear", align_corners=False)
    assert torch.equal(diverse._shrunk(photo, 0.9, 0, 0.99, 0.5)[..., 2:, 2:29], small)


def test_di_follows_the_gradient_through_what_the_network_sees(network):
    images, labels = pictures()
    network.eval()
    fixed = torch.Generator().manual_seed(5)
    _, side, top, left = torch.rand(4, generator=fixed).tolist()
    points = images.clone().requires_grad_()
    shown = diverse._shrunk(points, 0.5, side, top, left)
    gradient = torch.autograd.grad(nn.functional.cross_entropy(network(shown), labels), points)[0]
    expected = (images + 8 / 255 * gradient.sign()).clamp(0, 1)
    attack = DIFGSM(steps=1, step_size=8 / 255, probability=1.0, smallest=0.5)
    assert torch.allclose(attack(network, images, labels, generator=torch.Generator().manual_seed(5)), expected)
    plain = MIFGSM(steps=4)(network, images, labels)
    shares = [(DIFGSM(steps=4, probability=p)(network, images, labels) == plain).all() for p in (0.0, 1.0)]
    assert shares == [True, False]


@pytest.mark.parametrize("name", BRIDGED)
def test_craft_leaves_the_model_in_eval_mode(name):
    network, (images, labels) = small_network().eval(), pictures()
    ALL[name].craft(network, images, labels, torch.Generator().manual_seed(0))
    assert not any(module.training for module in network.modules())


def test_bridge_gives_what_torchattacks_gives(network):
    images, labels = pictures()
    ours = Torchattacks("MIFGSM", steps=4)(network, images, labels)
    assert torch.equal(ours, reference("MIFGSM", network, images, labels, steps=4))


# --- strength --------------------------------------------------------------------------------------


class Confident(nn.Module):
    """Logits so large that every probability is 0 or 1 in float32."""

    def __init__(self, inner, factor=50_000):
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, images):
        return self.inner(images) * self.factor


@pytest.mark.parametrize("name", [name for name in OWN if name != "PGD-restarts"])
def test_confidence_does_not_hide_the_gradient(name):
    network = small_network().eval()
    images, _ = pictures(64)
    labels = network(images).argmax(1)
    attack = OWN[name]
    plain, confident = attack(network, images, labels), attack(Confident(network), images, labels)
    left = [(network(found).argmax(1) == labels).sum() for found in (plain, confident)]
    assert left[1] < len(images)
    assert left[1] <= left[0] + 3
    # The textbook gradient is zero for nearly all of these.
    asked = images.clone().requires_grad_()
    loss = nn.functional.cross_entropy(Confident(network)(asked), labels)
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


@pytest.mark.parametrize("name", list(OWN))
def test_zero_gradient_is_neither_nan_nor_silent(name):
    class Quantised(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small_network().eval()

        def forward(self, images):
            return self.inner((images * 4).round() / 4)

    model, (images, _) = Quantised(), pictures()
    with pytest.warns(RuntimeWarning, match="6 of 6 examples have an input gradient of exactly zero"):
        adversarial = OWN[name](model, images, model(images).argmax(1))
    assert torch.isfinite(adversarial).all()


def test_a_healthy_gradient_gives_no_warning(network):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PGD()(network, *pictures())


def test_restarts_only_help(network):
    images, _ = pictures(64)
    labels = network.eval()(images).argmax(1)
    fooled = []
    for restarts in (1, 5):
        attack = PGD(eps=3 / 255, step_size=3 / 255, steps=1, restarts=restarts)
        found = attack(network, images, labels, generator=torch.Generator().manual_seed(0))
        fooled.append(network(found).argmax(1) != labels)
    assert (fooled[1] | ~fooled[0]).all()
    assert fooled[1].sum() >= fooled[0].sum()


def test_targets_are_approached(network):
    images, labels = pictures(32)
    targets = (labels + 1) % 4
    network.eval()
    adversarial = PGD(eps=64 / 255, step_size=8 / 255)(network, images, labels, targets=targets)
    assert (network(adversarial).argmax(1) == targets).float().mean() > 0.9


# --- bad input -------------------------------------------------------------------------------------

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


def test_refuses_a_model_without_logits():
    with pytest.raises(ValueError, match=r"logits of shape \(N, classes\)"):
        FGSM()(nn.Conv2d(3, 3, 1), *pictures())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGD(eps=-0.1), "eps=-0.1"),
        (lambda: PGD(eps=8), "forgets the division"),
        (lambda: PGD(eps=math.nan), "eps=nan"),
        (lambda: PGD(eps="8/255"), "eps='8/255'"),
        (lambda: PGD(step_size=0), "step_size=0"),
        (lambda: PGD(step_size=-1), "step_size=-1"),
        (lambda: PGD(steps=0), "steps=0"),
        (lambda: PGD(steps=2.5), "whole number"),
        (lambda: PGD(restarts=0), "restarts=0"),
        (lambda: PGD(restarts=2, random_start=False), "same point"),
        (lambda: PGD(norm="L1"), "'Linf' or 'L2'"),
        (lambda: NIFGSM(decay=-1), "decay=-1"),
        (lambda: DIFGSM(probability=1.5), "probability=1.5"),
        (lambda: DIFGSM(smallest=0), "smallest=0"),
        (lambda: TIFGSM(kernel=4), "kernel=4; an odd"),
        (lambda: SINIFGSM(copies=0), "copies=0"),
        (lambda: VMIFGSM(neighbours=0), "neighbours=0"),
        (lambda: VMIFGSM(radius=0), "radius=0"),
        (lambda: by_name("pdg"), "the attacks are: fgsm, pgd"),
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
    assert repr(Torchattacks("CW", c=1)) == "Torchattacks('CW', c=1)"


@pytest.mark.parametrize("name", ["fgsm", "pgd", "mifgsm", "nifgsm", "vmifgsm", "vnifgsm", "pixle", "autoattack"])
def test_by_name_makes_each(name):
    assert isinstance(by_name(name), attacks.Attack)
    assert isinstance(by_name(name.upper()), attacks.Attack)


def test_bridge_knows_eps_and_norm():
    assert Torchattacks("PGDL2", eps=0.7).norm == "L2"
    assert Torchattacks("PGDL2", eps=0.7).eps == 0.7
    assert Torchattacks("AutoAttack", norm="L2", eps=0.5).norm == "L2"
    assert (Torchattacks("PIFGSM").eps, Torchattacks("PIFGSM").norm) == (16 / 255, "Linf")
    assert (Torchattacks("CW").eps, Torchattacks("CW").norm) == (1, "Linf")
    halved = Torchattacks("PGD", steps=3).scaled(0.5)
    assert halved.settings == {"steps": 3, "eps": 4 / 255, "alpha": 1 / 255}
    with pytest.raises(ValueError, match="no ε to scale"):
        Torchattacks("CW").scaled(0.5)


@pytest.mark.parametrize("name", ["PGDL2", "PGDRSL2", "DIFGSM", "TIFGSM", "SINIFGSM", "CW", "DeepFool", "EADL1"])
def test_bridge_reaches_attacks_on_channels_last_models(name):
    network = small_network(classes=10).to(memory_format=torch.channels_last)
    images, labels = pictures(4)
    adversarial = Torchattacks(name)(network, images.contiguous(memory_format=torch.channels_last), labels)
    assert adversarial.shape == images.shape


def test_bridge_is_repeatable_and_works_inside_autocast():
    network, (images, _) = small_network(classes=5), pictures()
    labels = network.eval()(images).argmax(1)

    def run():
        with torch.autocast("cpu", torch.bfloat16):
            attack = Torchattacks("AutoAttack", eps=1 / 255)
            return attack(network, images[:2], labels[:2], generator=torch.Generator().manual_seed(0))

    assert torch.equal(run(), run())


def test_autoattack_knows_the_number_of_classes():
    # With its default of ten classes torchattacks would ask this network for logits that it does not have.
    network, (images, _) = small_network(classes=5), pictures()
    labels = network.eval()(images).argmax(1)
    assert Torchattacks("APGDT", steps=1)(network, images, labels).shape == images.shape


@pytest.mark.parametrize(("restarts", "norm"), [(1, "Linf"), (2, "Linf"), (4, "Linf"), (3, "L2")])
def test_it_runs_as_often_as_it_is_told_and_only_on_what_stands(restarts, norm, network):
    """A network that no attack moves is attacked `restarts` times `steps`; one that has lost is left alone."""
    images, _ = pictures()
    sizes = []

    class Counted(nn.Module):
        def __init__(self, right):
            super().__init__()
            self.right = right

        def forward(self, x):
            if torch.is_grad_enabled():
                sizes.append(len(x))
            logits = torch.zeros(len(x), 4).scatter(1, self.right[: len(x), None], 1.0)
            return logits + 1e-9 * x.flatten(1)[:, :4]

    labels = torch.zeros(len(images), dtype=torch.int64)
    attack = PGD(steps=3, restarts=restarts, norm=norm)
    attack(Counted(labels), images, labels)
    assert sizes == [6] * 3 * restarts
    sizes.clear()
    attack(Counted(labels + 1), images, labels)  # wrong from the first
    assert sizes == [6] * 3
    assert attack.label == ("PGD-3" if restarts == 1 else f"PGD-3×{restarts}")


@pytest.mark.parametrize("change", [lambda logits: logits[:-1], lambda logits: torch.cat([logits, logits[:1]])])
def test_logits_of_more_or_fewer_pictures_are_refused(change, network):
    images, labels = pictures()
    network.append(nn.Identity())
    network[7].forward = change
    with pytest.raises(ValueError, match=r"shape \([57], 4\) for 6 images"):
        PGD()(network, images, labels)
