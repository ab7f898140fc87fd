"""Numbers that are none, or too large, or too few: a clear error or the right result, never a wrong number."""

import math
from dataclasses import replace

import pytest
import torch
from small import small_network
from torch import nn

from attacks import FGSM, PGD, AutoAttack
from defences import Adversarial, Standard
from evaluation.testing import test as score
from loaders import Data, DataError, Split
from trainer import Recipe, TrainingDiverged, train

RECIPE = Recipe(epochs=2, batch_size=32, validation_images=16, learning_rate=0.05)
DEFENCES = {"standard": Standard(), "adversarial": Adversarial(PGD(steps=2))}
ATTACKS = [FGSM(), PGD(steps=4)]


class Changed(nn.Module):
    """A sound network, and what a function makes of its logits."""

    def __init__(self, change):
        super().__init__()
        self.inner, self.change = small_network(), change

    def forward(self, images):
        return self.change(self.inner(images))


def with_broken_gradient(logits):
    if logits.requires_grad:
        logits.register_hook(lambda gradient: gradient * math.nan)
    return logits


def one_infinite(logits):
    return torch.cat([torch.full_like(logits[:1], math.inf), logits[1:]])


def broken_weights(value):
    network = small_network()
    with torch.no_grad():
        network[0].weight[0, 0, 0, 0] = value
    return network


BROKEN = {
    "a weight that is NaN": lambda: broken_weights(math.nan),
    "a weight that is infinite": lambda: broken_weights(math.inf),
    "gradients that are NaN": lambda: Changed(with_broken_gradient),
    "a logit that is infinite": lambda: Changed(one_infinite),
    "logits that are NaN": lambda: Changed(lambda logits: logits * math.nan),
    "logits that overflow": lambda: Changed(lambda logits: logits * 1e38 * 1e38),
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("defence", DEFENCES)
@pytest.mark.parametrize("broken", BROKEN)
def test_training_ends_before_anything_broken_is_saved(broken, defence, precision, blobs, tmp_path):
    recipe = replace(RECIPE, defence=DEFENCES[defence], precision=precision)
    with pytest.raises(TrainingDiverged, match=r"(nan|inf) at step \d+ of 16"):
        train(BROKEN[broken](), blobs, recipe, tmp_path / "run", progress=False)
    assert not list(tmp_path.glob("run/*.safetensors"))
    assert not (tmp_path / "run" / "last.pt").exists()


def test_weights_that_are_broken_from_the_start_are_not_blamed_on_the_learning_rate(blobs, tmp_path):
    with pytest.raises(TrainingDiverged, match="the initial weights or the model's own arithmetic are broken"):
        train(broken_weights(math.nan), blobs, RECIPE, tmp_path / "run", progress=False)


@pytest.mark.parametrize("rate", [1e4, 1e7, 1e12, 1e30])
def test_a_loss_that_explodes_is_named_with_its_step(rate, blobs, tmp_path):
    with pytest.raises(TrainingDiverged, match=r"step \d+ of 16 .*learning rate"):
        train(small_network(), blobs, replace(RECIPE, learning_rate=rate), tmp_path / "run", progress=False)


@pytest.mark.parametrize("broken", BROKEN)
def test_no_robustness_is_believed_of_a_broken_model(broken, blobs):
    scores = score(BROKEN[broken]().eval(), blobs.test, ATTACKS, progress=False)
    for label in ("FGSM", "PGD-4", "worst case"):
        assert scores.verdict(label) == "invalid"
    assert "training mode" not in {finding.check for finding in scores.findings}  # NaN does not move


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e3, 1e30])
def test_the_size_of_logits_changes_no_outcome(scale, blobs):
    """No saturated softmax hides a gradient, and none underflows."""
    plain = score(small_network().eval(), blobs.test, ATTACKS, progress=False)
    scaled = score(Changed(lambda logits: logits * scale).eval(), blobs.test, ATTACKS, progress=False)
    assert plain.clean_accuracy == scaled.clean_accuracy
    for label in plain.attacks:
        assert scaled.robust_accuracy(label) <= plain.robust_accuracy(label) + 0.05


def test_equal_logits_are_no_accuracy(blobs):
    model = Changed(lambda logits: logits * 0)
    scores = score(model.eval(), blobs.test, [*ATTACKS, AutoAttack(steps=2, queries=4)], progress=False)
    assert scores.clean_accuracy == 0.25
    assert scores.verdict("clean") == scores.verdict("worst case") == "invalid"


def small_split(count, labels=None, classes=4, name="few"):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % classes if labels is None else labels
    return Split(images, labels, [str(index) for index in range(classes)], name)


def test_one_class_alone_is_learned_and_marked(blobs, tmp_path):
    one = small_split(64, torch.zeros(64, dtype=torch.int64))
    run = train(small_network(), replace(blobs, train=one, val=one), RECIPE, tmp_path / "run", progress=False)
    assert run.history["accuracy/clean"].iloc[-1] == 1
    scores = score(run.model, one, ATTACKS, progress=False)
    assert scores.verdict() == "invalid"
    assert "always saying one class" in str(scores)


@pytest.mark.parametrize("count", [1, 2, 249, 250, 251, 501])
def test_the_last_batch_may_be_of_one_picture(count):
    """Each picture gets the outcome that it has alone, however the batches fall."""
    model, split = small_network().eval(), small_split(count)
    scores = score(model, split, [FGSM()], progress=False)
    assert scores.n == count
    images, labels = split.batch(torch.arange(count))
    with torch.no_grad():
        right = torch.cat([model(image[None]) for image in images]).argmax(1) == labels
    assert torch.equal(scores.outcomes["clean"], right)


@pytest.mark.parametrize(("pictures", "batch"), [(1, 1), (3, 1), (3, 2), (5, 5)])
def test_very_small_data_is_trained_on(pictures, batch, tmp_path):
    split = small_split(pictures)
    data = Data("few", split, split, split, split.classes, {"name": "few"})
    recipe = replace(RECIPE, batch_size=batch, defence=DEFENCES["adversarial"])
    run = train(small_network(), data, recipe, tmp_path / "run", progress=False)
    assert run.history["loss/train"].notna().all()


def test_a_batch_larger_than_the_split_is_refused(blobs, tmp_path):
    with pytest.raises(ValueError, match="batch_size=257: there are only 256 training pictures"):
        train(small_network(), blobs, replace(RECIPE, batch_size=257), tmp_path / "run", progress=False)


def test_more_classes_than_pictures(tmp_path):
    split = small_split(5, classes=10)
    data = Data("few", split, split, split, split.classes, {"name": "few"})
    run = train(small_network(classes=10), data, replace(RECIPE, batch_size=2), tmp_path / "run", progress=False)
    scores = score(run.model, split, [AutoAttack(steps=2, queries=4)], progress=False)
    assert scores.n == 5


IMAGES, LABELS = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES[:0], LABELS[:0], "0 pictures and 0 labels"),
        (IMAGES, LABELS[:3], "4 pictures and 3 labels"),
        (IMAGES, LABELS.int(), "int64 labels"),
        (IMAGES, LABELS.float(), "int64 labels"),
        (IMAGES, LABELS + 1, "labels from 1 to 4; 0 to 3 is needed"),
        (IMAGES, LABELS - 1, "labels from -1 to 2"),
        (IMAGES[:, :1], LABELS, "uint8 images"),
        (IMAGES[0], LABELS[:3], "uint8 images"),
        (IMAGES / 255, LABELS, "torch.float32"),
        (IMAGES, LABELS[:, None], r"\(4, 1\)"),
    ],
)
def test_a_split_that_cannot_be_is_refused(images, labels, message):
    with pytest.raises(DataError, match=f"few: .*{message}"):
        Split(images, labels, list("abcd"), "few")


def test_no_picture_is_left_to_train_on_is_said(session, monkeypatch):
    """Classes of one picture each: the validation split gets them all."""
    import utils
    from loaders import cache

    split = small_split(10, classes=10)
    arrays = {"train_images": split.images, "train_labels": split.labels}
    arrays |= {"test_images": split.images, "test_labels": split.labels}
    monkeypatch.setattr(cache, "load", lambda *_: (arrays, split.classes, "0"))
    with pytest.raises(DataError, match="shapes10 train: 0 pictures"):
        utils.load_data("shapes10", session)
