"""Normalisation is a layer of the model."""

import torch

import models


def test_normalisation_is_inside():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    model = models.build("shallow_cnn", 10, mean=mean, std=std)
    images = torch.rand(2, 3, 32, 32)
    by_hand = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(model.normalise(images), by_hand)
    assert torch.equal(model(images), model.network(model.normalise(images)))
