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


def test_errors_are_clear():
    for wrong in ({"defence": "pgd"}, {"source": None}):
        with pytest.raises(TypeError, match=next(iter(wrong))):
            L2SP(**({"defence": Standard(), "source": small_model()} | wrong))
    with pytest.raises(ValueError, match="strength=-1"):
        FeatureDistillation(Standard(), small_model(), -1)
