"""What pulls a network back to its source."""

import pytest
import torch
from one_step import call, small_model

from attacks import PGD
from defences import (
    L2SP,
    Adversarial,
    FeatureDistillation,
    Standard,
)


@pytest.mark.parametrize("kind", [L2SP, FeatureDistillation])
@pytest.mark.parametrize("inner", [Standard(), Adversarial(PGD(steps=1, step_size=0.02))])
def test_a_pull_to_the_source_is_zero_at_the_source_and_grows(kind, inner, batch):
    source = small_model()
    assert torch.allclose(call(kind(inner, source), source, batch), call(inner, source, batch))
    other = small_model(1)
    pulls = [call(kind(inner, source, s), other, batch) - call(inner, other, batch) for s in (0.5, 1.0)]
    assert pulls[0] > 0
    assert torch.allclose(2 * pulls[0], pulls[1], rtol=1e-3)
    assert all(weight.grad is None for weight in source.parameters())


def test_l2sp_is_the_distance_of_everything_but_the_head(batch):
    source, other = small_model(), small_model(1)
    pull = call(L2SP(Standard(), source, 2.0), other, batch) - call(Standard(), other, batch)
    pairs = zip(source.named_parameters(), other.parameters(), strict=True)
    expected = sum((a - b).square().sum().item() for (name, a), b in pairs if ".head." not in name)
    assert pull.item() == pytest.approx(expected, rel=1e-4)


def test_feature_distillation_is_the_length_of_the_change(batch):
    source, other = small_model(), small_model(1)
    pull = call(FeatureDistillation(Standard(), source, 1.0), other, batch) - call(Standard(), other, batch)
    features = [
        model.network.stages(model.network.stem(model.normalise(batch[0]))).mean((2, 3))
        for model in (source, other)
    ]
    assert pull.item() == pytest.approx((features[0] - features[1]).norm(dim=1).mean().item(), rel=1e-4)


def test_errors_are_clear():
    for wrong in ({"defence": "pgd"}, {"source": None}):
        with pytest.raises(TypeError, match=next(iter(wrong))):
            L2SP(**({"defence": Standard(), "source": small_model()} | wrong))
    with pytest.raises(ValueError, match="strength=-1"):
        FeatureDistillation(Standard(), small_model(), -1)
