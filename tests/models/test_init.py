"""Networks by name: shapes, sizes, seeds and clear errors."""

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


def test_weights_depend_on_the_seed_alone():
    first = models.build("shallow_cnn", 10, seed=1)
    torch.rand(17)
    state = torch.get_rng_state()
    again, other = models.build("shallow_cnn", 10, seed=1), models.build("shallow_cnn", 10, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    for one, same, different in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, different)


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
