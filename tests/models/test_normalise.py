"""Normalisation is a layer of the model."""

import math

import numpy as np
import pytest
import torch
from small import quarters
from torch import nn
from torchvision.transforms import v2

import models
from attacks import PGD
from evaluation import testing
from loaders import Split


def test_normalisation_is_inside():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    model = models.build("shallow_cnn", 10, mean=mean, std=std)
    images = torch.rand(2, 3, 32, 32)
    by_hand = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(model.normalise(images), by_hand)
    assert torch.equal(model(images), model.network(model.normalise(images)))


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5,) * 3, (0.2, 0.0, 0.2), "above 0"),
        ((0.5,) * 3, (0.2, -0.2, 0.2), "above 0"),
        ((0.5, math.nan, 0.5), (0.2,) * 3, "finite"),
        ((0.5,) * 3, (math.inf,) * 3, "finite"),
        ((0.5,) * 2, (0.2,) * 3, "as many"),
        ((123.7, 116.3, 103.5), (58.4, 57.1, 57.4), "divide both by 255"),
        ((0, 0, 0), (255, 255, 255), "divide both by 255"),
    ],
)
def test_what_no_pixels_have_is_refused(mean, std, message):
    for make in (
        lambda: models.wrap(nn.Flatten(), mean=mean, std=std),
        lambda: models.build("resnet18", 2, mean=mean, std=std),
    ):
        with pytest.raises(ValueError, match=rf"mean=.*std=.*{message}"):
            make()


@pytest.mark.parametrize("make", [np.array, torch.tensor, list], ids=["numpy", "torch", "list"])
def test_they_may_be_arrays(make):
    values = {"mean": make([0.1, 0.2, 0.3]), "std": make([0.5, 0.25, 0.125])}
    normalise = models.wrap(nn.Flatten(), **values).normalise
    assert torch.equal(normalise.mean, models.Normalise((0.1, 0.2, 0.3), (1, 1, 1)).mean)
    assert models.build("shallow_cnn", 2, **values).spec["std"] == [0.5, 0.25, 0.125]


def small(channels):
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))


@pytest.mark.parametrize(("channels", "given", "layer"), [(3, 1, v2.RGB), (1, 3, v2.Grayscale)])
@pytest.mark.parametrize("normalised", [False, True])
def test_pictures_of_other_channels_are_told_the_remedy(channels, given, layer, normalised):
    """A network of one's own says what to do at every door; what is said works, and ε is that of the pictures."""
    values = {"mean": (0.5,) * channels, "std": (0.2,) * channels} if normalised else {}
    wrapped, colour = models.wrap(small(channels), **values), quarters(40)
    split = Split(colour.images[:, :given], colour.labels, colour.classes, "some")
    images, labels = split.batch(slice(0, 4))
    doors = [lambda model: model(images), lambda model: PGD(steps=1)(model, images, labels)]
    doors.append(lambda model: testing.test(model, split, progress=False))
    for door in doors:
        with pytest.raises(
            ValueError, match=rf"{channels} channels, and these have {given}\. .*v2.{layer.__name__}"
        ):
            door(wrapped)
    if not normalised:
        with pytest.raises(ValueError, match=f"v2.{layer.__name__}"):
            doors[-1](small(channels))
    remedy = nn.Sequential(layer(), wrapped)
    for door in doors:
        door(remedy)
    assert doors[1](remedy).shape == images.shape
