"""N-FGSM and guided training: examples of a single step."""

import pytest
import torch
from one_step import call
from small import small_network

from attacks import FGSM
from defences import (
    NFGSM,
    Adversarial,
    Free,
    Guided,
)


def test_nfgsm_without_noise_is_training_with_fgsm(batch):
    network = small_network().eval()
    plain = call(Adversarial(FGSM(eps=0.02)), network, batch)
    assert torch.allclose(call(NFGSM(eps=0.02, noise=0), network, batch), plain)
    assert call(NFGSM(eps=0.02, noise=0, step=2), network, batch) > plain


def test_errors_are_clear():
    for wrong in ({"eps": 8}, {"eps": 0}, {"noise": -1}, {"step": 0}):
        name, value = next(iter(wrong.items()))
        with pytest.raises(ValueError, match=f"NFGSM: {name}={value}; a number .* usual"):
            NFGSM(**wrong)
    with pytest.raises(ValueError, match="Guided: weight=-1; a number"):
        Guided(weight=-1)
    for kind in (NFGSM, Guided, Free):
        assert kind(norm="Linf") == kind()
        with pytest.raises(
            ValueError, match=f"{kind.__name__}: norm='L2'; 'Linf' is needed: it is defined for no other"
        ):
            kind(norm="L2")
