"""torchattacks' attacks through the bridge, and ours beside them where the settings are equal."""

import pytest
import torch
import torchattacks
from small import generator, late, pictures, small_network

from attacks import (
    APGD,
    DIFGSM,
    FGSM,
    MIFGSM,
    NIFGSM,
    PGD,
    SINIFGSM,
    TIFGSM,
    VMIFGSM,
    VNIFGSM,
    AutoAttack,
    Torchattacks,
)


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


def test_bridge_gives_what_torchattacks_gives(network):
    images, labels = pictures()
    ours = Torchattacks("MIFGSM", steps=4)(network, images, labels)
    assert torch.equal(ours, reference("MIFGSM", network, images, labels, steps=4))


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
    settings = {"max_iterations": 10} if name == "EADL1" else {}
    network = small_network(classes=10).to(memory_format=torch.channels_last)
    images, labels = pictures(4)
    adversarial = Torchattacks(name, **settings)(
        network, images.contiguous(memory_format=torch.channels_last), labels
    )
    assert adversarial.shape == images.shape


PARTS = {"APGD": {"steps": 3}, "APGDT": {"steps": 2}, "FAB": {"steps": 2}, "Square": {"n_queries": 20}}


@pytest.mark.parametrize("name", [*PARTS, late("AutoAttack")])
def test_bridge_is_repeatable_and_works_inside_autocast(name):
    network, (images, _) = small_network(classes=5), pictures()
    labels = network.eval()(images).argmax(1)

    def run():
        with torch.autocast("cpu", torch.bfloat16):
            attack = Torchattacks(name, eps=1 / 255, **PARTS.get(name, {}))
            return attack(network, images[:2], labels[:2], generator=generator())

    assert torch.equal(run(), run())


def test_autoattack_knows_the_number_of_classes():
    # With its default of ten classes torchattacks would ask this network for logits that it does not have.
    network, (images, _) = small_network(classes=5), pictures()
    labels = network.eval()(images).argmax(1)
    assert Torchattacks("APGDT", steps=1)(network, images, labels).shape == images.shape


@pytest.mark.parametrize("classes", [2, 3])
def test_losses_that_want_four_classes_say_so(classes):
    network, (images, _) = small_network(classes=classes).eval(), pictures()
    labels = network(images).argmax(1)
    with pytest.raises(ValueError, match=rf"more classes than the {classes} of this model.*Ours"):
        Torchattacks("APGDT", steps=2)(network, images, labels)
    for ours in (AutoAttack(steps=2, queries=5), APGD(steps=2, loss="targeted"), APGD(steps=2, loss="dlr")):
        ours(network, images, labels)
