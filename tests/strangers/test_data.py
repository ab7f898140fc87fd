"""Public complaints about one's own pictures: sizes, channels, ranges, labels, files. Each says what is right."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small import late, tiny_resnet

import loaders
import models
import utils
from attacks import FGSM, PGD, AutoAttack
from defences import Adversarial
from evaluation import audit, testing
from finetune_framework import adapt
from loaders import drawn_shapes
from study import answers, figures, report, tables
from trainer import Recipe, train


def drawn(count, size, grey=False):
    """Shapes, each class a brightness or colour too, as (count, size, size) or (count, size, size, 3) uint8."""
    images, labels = drawn_shapes.draw(count, 10)
    images = images.transpose(0, 2, 3, 1)
    images = [Image.fromarray(image).convert("L" if grey else "RGB").resize((size, size)) for image in images]
    return np.stack([np.asarray(image) for image in images]), labels % 3


def folder_of(root, images, labels):
    """A folder of PNGs with a folder for each class."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        (root / f"kind {label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / f"kind {label}" / f"{number}.png")
    return root


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path / "runs"))


@pytest.mark.parametrize("network", ["shallow_cnn", "shallow_cnn_wide"])
def test_a_network_for_another_size_says_which(network):
    """csdongxian/AWP #4: pictures of more than 55 x 55 pixels end in an error from inside the network."""
    images = torch.randint(256, (40, 3, 64, 64), dtype=torch.uint8)
    data = loaders.from_arrays(images, torch.arange(40) % 2, device="cpu")
    with pytest.raises(ValueError, match=rf"{network} does not take pictures of 64 x 64 pixels.*resize=32"):
        train(models.build(network, 2), data, Recipe(epochs=1, batch_size=8), "x", progress=False)
    assert models.build(network, 2, resize=32)(images / 255).shape == (40, 2)


def test_pictures_too_small_for_a_backbone_are_told_so():
    """taoyang1122/GradAug #1: with small pictures the output size is too small, somewhere in the network."""
    model = models.build("imagenet/squeezenet1_1", 2, pretrained=False).eval()
    with pytest.raises(ValueError, match=r"squeezenet1_1 does not take pictures of 8 x 8 pixels.*resize=224"):
        model(torch.rand(1, 3, 8, 8))


def test_resize_makes_a_square():
    """pytorch/vision #114: resizing to one number leaves pictures that are not square as they are in one side."""
    seen = []
    model = models.build("resnet18", 3, width=4, resize=32).eval()
    model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    for height, width in ((32, 64), (64, 32), (20, 32), (32, 32)):
        model(torch.rand(2, 3, height, width))
    assert seen == [(2, 3, 32, 32)] * 4


def test_grey_pictures_go_into_any_network(tmp_path):
    """ain-soph/trojanzoo #66: a ResNet expects three channels but got one, from MNIST."""
    images, labels = torch.rand(6, 1, 32, 32), torch.arange(6) % 3
    for name in models.NETWORKS:
        model = models.build(name, 3, **({} if "shallow" in name else {"width": 4})).eval()
        assert torch.allclose(model(images), model(images.expand(-1, 3, -1, -1)), atol=1e-5)
    attacked = PGD(eps=8 / 255)(model, images, labels)
    assert attacked.shape == images.shape
    assert float((attacked - images).abs().max()) == pytest.approx(8 / 255, abs=1e-6)  # of the grey value


def test_normalised_pictures_are_refused():
    """bethgelab/foolbox #602: pictures that were normalised lie outside the bounds, and attacks silently fail."""
    images = (torch.rand(30, 3, 16, 16) - 0.47) / 0.2
    with pytest.raises(loaders.DataError, match=r"\[0, 1\] is needed: are they normalised\?"):
        loaders.from_arrays(images, torch.arange(30) % 2, device="cpu")


def test_labels_need_not_begin_at_zero():
    """smartyfh/DST-STAR #7: labels such as 2 and 4 end in a device-side assert, until they are counted from 0."""
    data = loaders.from_arrays(
        torch.randint(256, (30, 8, 8), dtype=torch.uint8), torch.arange(30) % 2 * 2 + 2, device="cpu"
    )
    assert data.classes == ["2", "4"]
    assert data.train.labels.unique().tolist() == [0, 1]


def test_hidden_folders_are_no_class(tmp_path):
    """pytorch/vision #2831: a folder .ipynb_checkpoints becomes a class, and the indices are off by one."""
    root = folder_of(tmp_path / "set", *drawn(30, 16))
    (root / ".ipynb_checkpoints").mkdir()
    Image.new("RGB", (16, 16)).save(root / ".ipynb_checkpoints" / "1.png")
    assert loaders.from_folder(root, device="cpu").classes == ["kind 0", "kind 1", "kind 2"]


def test_a_damaged_picture_is_named(tmp_path):
    """pytorch/vision #485: a damaged picture stops the training, and nobody says which one it is."""
    root = folder_of(tmp_path / "set", *drawn(30, 16))
    file = root / "kind 1" / "broken.png"
    file.write_bytes(next(root.glob("*/*.png")).read_bytes()[:99])
    with pytest.raises(loaders.DataError, match="1 of 31 pictures cannot be read") as caught:
        loaders.from_folder(root, device="cpu")
    assert str(file) in str(caught.value)


def test_sixteen_bits_are_scaled_not_cut(tmp_path):
    """python-pillow/Pillow #3011: a grey picture of 16 bits becomes white when it is converted to 8."""
    ramp = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    root = folder_of(tmp_path / "set", [ramp] * 6, [0, 1] * 3)
    found = loaders.from_folder(root, device="cpu").train.images
    assert found.shape[1:] == (1, 32, 32)
    assert np.abs(found[0, 0].numpy() - ramp / 257).max() <= 0.5


def test_pictures_stand_upright(tmp_path):
    """huggingface/datasets #6252: photographs that EXIF says are turned are read lying on their side."""
    upper = np.zeros((32, 32, 3), np.uint8)
    upper[:16] = 255
    root, exif = folder_of(tmp_path / "set", [upper] * 6, [0, 1] * 3), Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    for file in root.glob("*/*.png"):
        Image.fromarray(upper).rotate(90).save(file, exif=exif)
    found = loaders.from_folder(root, device="cpu").train.images
    assert torch.equal(found, torch.from_numpy(upper.transpose(2, 0, 1)).expand_as(found))


@pytest.mark.parametrize(("size", "grey"), [(28, True), late(64, False)], ids=["1x28x28", "3x64x64"])
def test_a_folder_goes_all_the_way(tmp_path, size, grey):
    """MadryLab/robust_representations #11: one's own folder of pictures is not understood, without a reason."""
    root = folder_of(tmp_path / "mine", *drawn(120, size, grey))
    data = loaders.from_folder(root, size=size, device="cpu")
    channels = 1 if grey else 3
    assert data.train.images.shape[1:] == (channels, size, size)
    session = utils.start("01_own", preset="smoke", data=f"folder:{root}")
    recipe = Recipe(epochs=1, batch_size=32, validation_images=8, defence=Adversarial(PGD(steps=1)))
    run = train(tiny_resnet(classes=3), data, recipe, session.folder("pgd"), progress=False)
    scores = testing.test(run.model, data.test, [FGSM(), PGD(steps=2)], progress=False)
    assert scores.n == len(data.test)
    scores.save(run.folder)
    probe = adapt(run.model, data.num_classes, train="head")
    tuned = train(
        probe,
        data,
        Recipe(epochs=1, batch_size=32, augment=False, validation_images=8),
        session.folder("head"),
        progress=False,
    )
    found = audit(tuned.model, data.test.first(3), PGD(steps=2), progress=False)
    found.save(tuned.folder)
    short = testing.test(
        run.model, data.test.first(4), [AutoAttack(steps=1, targets=1, queries=2)], progress=False
    )
    assert short.n == 4
    figures.save(figures.plot_examples({"pgd": run.model}, data.test, PGD(steps=1), count=2), session, "1")
    figures.save(figures.plot_training({"pgd": run, "head": tuned}), session, "2")
    assert "mine test" in str(tables.accuracies({"pgd": scores}).caption)
    study = answers.load_study(session.runs.parent)
    assert set(study) == {"01_own"}
    page = report.write_page(session.runs.parent).read_text()
    assert "mine test" in page
    assert "drawn pictures" not in page


def test_a_session_takes_a_folder_in_place_of_cifar10(tmp_path):
    """bethgelab/foolbox #735: how do I evaluate on my own data what the examples do on theirs?"""
    root = folder_of(tmp_path / "shapes", *drawn(300, 40))
    session = utils.start("01_x", preset="smoke", data=f"folder:{root}")
    assert session.runs.parent.name == "smoke-shapes-folder"
    assert session.dataset("cifar100") == "shapes100"
    data = utils.load_data(session.dataset("cifar10"), session, train_pictures=1000)  # all that there are
    assert (data.name, data.num_classes, data.train.images.shape[1:]) == ("shapes", 3, (3, 32, 32))
    assert len(data.train) + len(data.val) + len(data.test) == 300
    other = utils.load_data(session.dataset("cifar10"), replace(session, seed=1))
    assert torch.equal(other.test.images, data.test.images)
    assert not torch.equal(other.val.images, data.val.images)
    with pytest.raises(ValueError, match="there is no such folder"):
        utils.start("01_x", preset="smoke", data="folder:nowhere")
