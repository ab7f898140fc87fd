"""Public complaints whose number, or verdict, was right for another question. Each says what is right."""

from dataclasses import replace

import pytest
import torch
from small import quarters, small_network
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import models
from attacks import FGSM, PGD, Torchattacks
from evaluation import testing
from finetune_framework import SourceError, adapt, load_source
from loaders import Split
from trainer import Recipe, train

SPLIT = quarters()
PARTS = "images", "labels"
RECIPE = Recipe(epochs=1, batch_size=16, validation_images=4)


def found(model, *attacks, split=SPLIT):
    scores = testing.test(model, split, attacks, progress=False)
    return {finding.check: finding for finding in scores.findings}


def test_a_network_for_other_classes():
    """keras-team/keras #10068: a pretrained network is at 0 %.

    Right: the verdict says that it has 1,000 outputs for 4 classes.
    """
    assert "50 outputs for 4 classes" in found(small_network(classes=50))["no better than chance"].message


def test_attacks_without_bounds_beside_others():
    """bethgelab/foolbox #669: an attack without bounds stands beside attacks within ε.

    Right: the worst case over both is suspect.
    """
    assert "one ball" in found(small_network(), PGD(), Torchattacks("DeepFool", steps=2))
    assert "one ball" not in found(small_network(), PGD(), FGSM())


def test_the_unit_of_a_step():
    """Trusted-AI/adversarial-robustness-toolbox #2319: a step of 2, where pixels end at 1.

    Right: a finding, for attacks of torchattacks too.
    """
    assert "over twice ε" in found(small_network(), Torchattacks("PGD", alpha=2))["step size"].message
    assert "step size" not in found(small_network(), Torchattacks("PGD", steps=10))


def test_an_attack_draws_nothing_before_it_is_called():
    """Lightning-AI/pytorch-lightning #6988: making one thing changes the random numbers of another."""
    torch.manual_seed(0)
    first = torch.rand(1)
    torch.manual_seed(0)
    Torchattacks("PGD")
    assert torch.equal(torch.rand(1), first)


def test_training_pictures_among_the_test_pictures(blobs, tmp_path, caplog):
    """zalandoresearch/fashion-mnist #44: pictures are in the training and in the test part.

    Right: training says how many, where they are over 1 %.
    """
    images, labels = (
        torch.cat([getattr(blobs.train, kind)[:8], getattr(blobs.test, kind)[:64]]) for kind in PARTS
    )
    test = Split(images, labels, blobs.classes, "test")
    train(small_network(), replace(blobs, test=test), RECIPE, tmp_path / "run", progress=False)
    assert "11.1 % of the test pictures are in what training or choosing has seen" in caplog.text


def test_a_loader_where_a_split_is_needed(blobs, tmp_path):
    """Harry24k/adversarial-attacks-pytorch #95: an evaluation is given a DataLoader.

    Right: the error names what makes data of it.
    """
    loader = DataLoader(TensorDataset(torch.rand(4, 3, 8, 8), torch.arange(4)))
    with pytest.raises(TypeError, match=r"loaders\.from_dataset .* loader\.dataset"):
        testing.test(small_network(), loader, progress=False)
    with pytest.raises(TypeError, match=r"loaders\.from_dataset"):
        train(small_network(), blobs.train, RECIPE, tmp_path / "run", progress=False)


class Keeping(nn.Module):
    """Two layers that give as many numbers, of which one gives the logits; and what it has seen, it keeps."""

    def __init__(self):
        super().__init__()
        self.body, self.fc, self.aux = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, images):
        self.seen = self.body(images).relu().mean((2, 3))
        logits = self.fc(self.seen)
        self.beside = self.aux(self.seen)
        return logits


def weight_normed():
    network = small_network()
    with pytest.warns(FutureWarning):
        network[6] = nn.utils.weight_norm(network[6])
    return network


@pytest.mark.parametrize("make", [weight_normed, Keeping])
def test_tensors_that_a_forward_pass_left(make, blobs, tmp_path):
    """pytorch/pytorch #28594: deepcopy of a network with weight_norm, or with a kept activation, fails.

    Right: it trains.
    """
    network = make()
    network(torch.rand(2, 3, 8, 8))
    run = train(network, blobs, replace(RECIPE, ema=0.9), tmp_path / "run", progress=False)
    assert len(run.history) == 1


def test_another_layer_that_gives_as_many_numbers():
    """MadryLab/robustness #96: the head of one's own network is exchanged.

    Right: the layer that gives the logits, not the last one of their size.
    """
    network = Keeping().eval()
    pictures = torch.rand(3, 3, 8, 8)
    adapted = adapt(network, 4).eval()
    assert adapted.head == "fc"
    assert not torch.allclose(adapted(pictures), network(pictures))


def test_a_web_page_in_place_of_weights(tmp_path):
    """RobustBench/robustbench #87: a failed download leaves a web page, and torch advises to run the code in it.

    Right: that it is a web page, and no such advice.
    """
    page = tmp_path / "weights.pt"
    page.write_text("<!DOCTYPE html><html></html>")
    with pytest.raises(SourceError, match="it is a web page") as caught:
        load_source(page, "resnet18", 10)
    torch.save(models.build("shallow_cnn", 4), page)
    with pytest.raises(SourceError) as other:
        load_source(page, "resnet18", 10)
    for error in (caught, other):
        assert "Re-running" not in str(error.value)
        assert "weights_only" not in str(error.value)
