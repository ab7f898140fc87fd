"""Networks: shapes, sizes, normalisation inside, and clear errors."""

import pytest
import torch

import models

PARAMETERS = {
    ("shallow_cnn", 10): 62_006,
    ("shallow_cnn_wide", 100): 5_897_508,
    ("resnet18", 10): 11_173_962,
}


@pytest.mark.parametrize(("name", "classes"), PARAMETERS)
def test_pixels_in_logits_out(name, classes):
    model = models.build(name, classes).eval()
    assert sum(weight.numel() for weight in model.parameters()) == PARAMETERS[name, classes]
    logits = model(torch.rand(2, 3, 32, 32))
    assert logits.shape == (2, classes)
    assert torch.isfinite(logits).all()


def test_normalisation_is_inside():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    model = models.build("shallow_cnn", 10, mean=mean, std=std)
    images = torch.rand(2, 3, 32, 32)
    by_hand = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(model.normalise(images), by_hand)
    assert torch.equal(model(images), model.network(model.normalise(images)))


def test_weights_depend_on_the_seed_alone():
    first = models.build("shallow_cnn", 10, seed=1)
    torch.rand(17)
    state = torch.get_rng_state()
    again, other = models.build("shallow_cnn", 10, seed=1), models.build("shallow_cnn", 10, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    for one, same, different in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, different)


def test_width_scales_a_resnet():
    assert models.build("resnet18", 10, width=16).network.head.in_features == 128


def test_resnet_equals_torchvisions_after_the_stem():
    """The same weights in torchvision's ResNet-18 with the stem exchanged give the same logits."""
    from torch import nn
    from torchvision.models import resnet18

    theirs = resnet18(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    ours = models.build("resnet18", 10).network
    values = list(ours.state_dict().values())
    names = theirs.state_dict().keys()
    assert len(values) == len(names)
    theirs.load_state_dict(dict(zip(names, values, strict=True)))
    images = torch.rand(2, 3, 32, 32)
    assert torch.allclose(ours.eval()(images), theirs.eval()(images), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "classes", "options", "message"),
    [
        ("resnet19", 10, {}, "the models are: preact_resnet18, resnet18"),
        ("resnet18", 1, {}, "num_classes=1"),
        ("resnet18", "ten", {}, "num_classes='ten'"),
        ("resnet18", 10, {"width": 0}, "width=0"),
    ],
)
def test_errors_are_clear(name, classes, options, message):
    with pytest.raises(ValueError, match=message):
        models.build(name, classes, **options)
