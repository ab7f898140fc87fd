"""What people complained of in public about attacks elsewhere, done here as they did it.

The first line of a docstring says who and where, and what; the assertions say what is right. From these lines
benchmarks/strangers.py makes its table.
"""

import gc
import warnings

import pytest
import torch
from small import Quarters, pictures, quarters, small_network
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

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
    AutoAttack,
    Square,
    Torchattacks,
    margin,
)
from trainer import test as score

EPS = 8 / 255
MANY = [FGSM(), PGD(), MIFGSM(), NIFGSM(), VMIFGSM(steps=3), DIFGSM(steps=3), TIFGSM(steps=3), SINIFGSM(steps=3)]
MANY += [APGD(steps=5), FAB(steps=3), Square(queries=20), AutoAttack(steps=3, queries=10)]
MANY += [Torchattacks("PGD", steps=3), Torchattacks("BIM", steps=3)]
SPLIT = quarters()
TRUTH = Quarters().withstood(SPLIT)


def left(model, attack, split=SPLIT):
    """The share that withstands the attack."""
    return score(model, split, attack, progress=False).share(attack.label)


def test_momentum_does_not_depend_on_the_batch():
    """Harry24k/adversarial-attacks-pytorch #12: MI-FGSM normalises by the whole batch, so its size decides.

    Right: each picture is attacked as if it were alone.
    """
    images, labels = pictures(dtype=torch.float64)
    model = small_network().double()
    for attack in (MIFGSM(), NIFGSM()):
        alone = [attack(model, images[[i]], labels[[i]]) for i in range(len(images))]
        torch.testing.assert_close(attack(model, images, labels), torch.cat(alone), rtol=0, atol=1e-9)


def test_an_attack_leaves_each_layer_in_its_mode():
    """Harry24k/adversarial-attacks-pytorch #21: after an attack the whole model is in training mode.

    Right: each layer is in the mode that it was in.
    """
    model = small_network().train()
    model[1].eval()
    before = [module.training for module in model.modules()]
    for attack in MANY:
        attack(model, *pictures())
        assert [module.training for module in model.modules()] == before


def test_weights_keep_the_gradients_that_they_had():
    """P2333/Bag-of-Tricks-for-AT #8: crafting leaves gradients in the weights, which the next step takes along.

    The same: BorealisAI/advertorch #113; Jeffkang-94/pytorch-adversarial-attack #4, which learned nothing for it.
    Right: the weights' gradients are what they were.
    """
    model = small_network()
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    for attack in MANY:
        attack(model, *pictures())
    assert all(bool((weight.grad == 1).all()) for weight in model.parameters())


def test_pictures_are_not_written_over():
    """Trusted-AI/adversarial-robustness-toolbox #805: PGD writes into the pictures that it is given.

    The same: rwightman/pytorch-nips2017-attack-example #5. Right: they stay, and the result hangs on no graph.
    """
    images, labels = pictures()
    kept = images.clone()
    for attack in MANY:
        adversarial = attack(small_network(), images, labels)
        assert torch.equal(images, kept), attack
        assert not adversarial.requires_grad, attack


def test_an_attack_keeps_nothing():
    """BorealisAI/advertorch #73: memory grows with each call, until there is none left.

    Right: after more calls there are as many tensors as before them.
    """

    def tensors():
        gc.collect()
        return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())

    model, batch, counts = small_network(), pictures(), []
    for _ in range(3):
        for attack in MANY:
            attack(model, *batch)
        counts.append(tensors())
    assert counts[1] == counts[2]


def test_eight_bits_keep_what_was_found():
    """bethgelab/foolbox #162: saved as a picture file, adversarial pictures fool nobody.

    The same: bethgelab/foolbox #423, huanzhang12/ZOO-Attack #2. Right: with ε and steps in 255ths pixels end on
    whole 255ths, or so near that they stay within ε and fool as many.
    """
    images, labels = SPLIT.batch(torch.arange(60))
    for attack in (FGSM(), PGD(), MIFGSM()):
        points = attack(Quarters(), images, labels)
        saved = (points * 255).round() / 255
        assert float((saved - images).abs().max()) <= EPS + 1e-6, attack
        assert torch.equal(Quarters()(saved).argmax(1), Quarters()(points).argmax(1)), attack


def test_no_pixel_changes_by_more_than_eps():
    """Harry24k/adversarial-attacks-pytorch #37: the measured change of a pixel is larger than ε.

    The same: Trusted-AI/adversarial-robustness-toolbox #2404. Right: at most ε, within [0, 1].
    """
    images, labels = pictures()
    for attack in MANY:
        adversarial = attack(small_network(), images, labels)
        assert float((adversarial - images).abs().max()) <= attack.eps + 1e-6, attack
        assert adversarial.min() >= 0, attack
        assert adversarial.max() <= 1, attack


def test_a_step_in_l2_stays_in_the_ball():
    """bethgelab/foolbox #388: L2 steps give a change much longer than ε."""
    images, labels = pictures()
    for steps in (1, 20):
        attack = PGD(norm="L2", eps=0.3, step_size=0.2, steps=steps)
        change = attack(small_network(), images, labels) - images
        assert float(change.flatten(1).norm(dim=1).max()) <= 0.3 + 1e-5


def test_no_gradient_makes_no_nan_and_is_said():
    """cleverhans-lab/cleverhans #493: FGSM in L2 divides by a gradient of length 0, and the pictures are NaN.

    Right: pictures stay pictures, and a warning says that there was no gradient.
    """
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    nn.init.zeros_(model[1].weight)
    for attack in (FGSM(norm="L2", eps=0.5), PGD(norm="L2", eps=0.5, step_size=0.1), MIFGSM()):
        with pytest.warns(RuntimeWarning, match="gradient of exactly zero"):
            adversarial = attack(model, *pictures())
        assert torch.isfinite(adversarial).all()


def test_fgsm_is_the_sign_of_the_gradient():
    """ryderling/DEEPSEC #3: an FGSM that is weaker than the one of the paper.

    Right: each pixel goes by ε along the sign of the gradient of cross-entropy, and is clipped.
    """
    images, labels = pictures(dtype=torch.float64)
    model = small_network().double().eval()
    asked = images.clone().requires_grad_()
    gradient = torch.autograd.grad(cross_entropy(model(asked), labels), asked)[0]
    expected = (images + EPS * gradient.sign()).clamp(0, 1)
    torch.testing.assert_close(FGSM()(model, images, labels), expected)


def test_gradients_of_earlier_steps_are_forgotten():
    """locuslab/fast_adversarial #26: PGD adds up the gradients of all its steps.

    Right: each step follows the gradient at the point where it is.
    """
    images, labels = pictures(dtype=torch.float64)
    model = small_network().double().eval()
    point = images
    for _ in range(5):
        asked = point.clone().requires_grad_()
        gradient = torch.autograd.grad(cross_entropy(model(asked), labels), asked)[0]
        point = (point + 3 / 255 * gradient.sign()).clamp(images - EPS, images + EPS).clamp(0, 1)
    attack = PGD(steps=5, step_size=3 / 255, random_start=False)
    torch.testing.assert_close(attack(model, images, labels), point)


def test_targets_are_reached_when_eps_allows_it():
    """Trusted-AI/adversarial-robustness-toolbox #840: targeted PGD is weak, and no ε makes it stronger.

    Right: nothing reaches the target within 1/255, all within 64/255.
    """
    images, labels = SPLIT.batch(torch.arange(60))
    targets = (labels + 1) % 4
    for make in (PGD, MIFGSM):
        shares = []
        for eps in (1 / 255, 16 / 255, 64 / 255):
            points = make(eps=eps, step_size=eps / 4)(Quarters(), images, labels, targets=targets)
            shares.append(float((Quarters()(points).argmax(1) == targets).double().mean()))
        assert shares[0] < 0.1 < shares[1] < shares[2] == 1


def test_fab_finds_what_there_is():
    """Harry24k/adversarial-attacks-pytorch #179: FAB never runs its core, so it finds nothing.

    Right: it turns every picture that can be turned.
    """
    assert left(Quarters(), FAB(steps=10)) == pytest.approx(TRUTH)


@pytest.mark.parametrize("attack", [APGD(steps=10, loss="dlr"), AutoAttack(steps=10, queries=50)], ids=str)
def test_two_classes(attack):
    """Trusted-AI/adversarial-robustness-toolbox #2399: Auto-PGD with DLR crashes on two classes.

    The same: fra31/auto-attack #70, Harry24k/adversarial-attacks-pytorch #152. Right: the exact number.
    """
    split, model = quarters(classes=2), Quarters(2)
    assert left(model, attack, split) == pytest.approx(model.withstood(split))


@pytest.mark.parametrize("classes", [3, 4])
def test_fewer_classes_than_targets(classes):
    """fra31/auto-attack #110: nine targets are asked of a model with fewer classes.

    The same: fra31/auto-attack #76, a crash; #79. Right: as many as there are, and the exact number.
    """
    split, model = quarters(classes=classes), Quarters(classes)
    assert left(model, AutoAttack(steps=10, queries=50), split) == pytest.approx(model.withstood(split))


@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_an_offset_of_the_logits_changes_nothing(offset):
    """BorealisAI/advertorch #63: a constant added to all logits makes the network look robust.

    Right: the same number as without it.
    """
    model = Quarters(change=lambda logits: 50 * logits + offset)
    for attack in (PGD(), APGD(steps=10), FAB(steps=10), Square(queries=200)):
        assert left(model, attack) == pytest.approx(TRUTH, abs=1.5 / len(SPLIT)), attack


def test_the_margin_where_all_logits_are_negative():
    """MadryLab/cifar10_challenge #1: the best other class is taken for 0 where all logits are negative."""
    logits = torch.tensor([[-5.0, -3.0, -9.0]])
    assert float(margin(logits, torch.tensor([0]))) == -2
    assert float(margin(logits, torch.tensor([1]))) == 2


@pytest.mark.parametrize("eps", [8, -0.5], ids=["MadryLab/mnist_challenge #13", "bethgelab/foolbox #247"])
def test_an_eps_that_is_none(eps):
    """MadryLab/mnist_challenge #13: ε = 8 where pixels end at 1.

    The same: bethgelab/foolbox #247, a negative one. Right: refused, with what is usual.
    """
    with pytest.raises(ValueError, match="8/255 is usual"):
        PGD(eps=eps)


def test_eps_means_pixels_whatever_the_deviation():
    """locuslab/fast_adversarial #22: ε has to be divided by the deviation that the pictures were divided by.

    The same: yjhuangcd/CNNF #1. Right: normalising is inside, so a pixel changes by ε.
    """
    images, labels = torch.rand(4, 3, 32, 32), torch.arange(4)
    for std in ((0.05,) * 3, (2.0,) * 3):
        change = PGD()(models.build("shallow_cnn", 10, std=std), images, labels) - images
        assert float(change.abs().max()) == pytest.approx(EPS, abs=1e-6)


def test_normalised_pictures_are_refused():
    """Harry24k/adversarial-attacks-pytorch #78: attacked pictures have odd colours.

    The same: #11, #75, RobustBench/robustbench #115; the loader had normalised them. Right: refused, and the error
    says where normalising belongs.
    """
    images, labels = pictures()
    with pytest.raises(ValueError, match="Normalise inside the model"):
        PGD()(small_network(), (images - 0.5) / 0.25, labels)


@pytest.mark.parametrize("kind", [torch.int64, torch.float32])
def test_one_hot_labels_are_refused(kind):
    """Trusted-AI/adversarial-robustness-toolbox #2230: one-hot labels here, numbers there; an error of numpy's.

    Right: the error says what labels are.
    """
    images, labels = pictures()
    with pytest.raises((TypeError, ValueError), match=r"one per image|class indices"):
        PGD()(small_network(), images, one_hot(labels, 4).to(kind))


def test_a_single_picture_needs_its_batch():
    """bethgelab/foolbox #293: is it a picture or a batch of one? The error is torch's, about a convolution."""
    images, labels = pictures()
    with pytest.raises(ValueError, match=r"\(N, channels, height, width\) is needed"):
        FGSM()(small_network(), images[0], labels[:1])


def test_no_attack_warns_without_cause():
    """bethgelab/foolbox #437: an attack says that the gradient vanished; has it worked?

    Right: no warning where there is a gradient.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for attack in MANY:
            attack(Quarters(), *SPLIT.batch(torch.arange(8)))
