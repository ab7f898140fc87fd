"""What is asked for is what CUDA computes, and the caller's settings come back."""

import pytest
import torch

from models import tf32


@pytest.fixture
def torch_settings(monkeypatch):
    """As if CUDA were at work: its settings are there without it."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    yield torch.backends
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False


@pytest.mark.parametrize("by_newer_names", [False, True])
def test_float32_is_what_is_asked_for_however_the_caller_has_set_it(by_newer_names, torch_settings):
    cudnn, matmul = torch_settings.cudnn, torch_settings.cuda.matmul
    if by_newer_names:  # from here on torch refuses to read allow_tf32
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = "tf32", "ieee"
        matmul.fp32_precision = "tf32"
        with pytest.raises(RuntimeError):
            cudnn.allow_tf32  # noqa: B018
    assert tf32.tf32_allowed()
    with tf32.rounding(tf32=False):
        assert not tf32.tf32_allowed()
        assert not matmul.allow_tf32
        with tf32.rounding(tf32=True, tries=True):
            assert tf32.tf32_allowed()
            assert matmul.allow_tf32
            assert cudnn.benchmark
        assert not tf32.tf32_allowed()
        assert not matmul.allow_tf32
        assert not cudnn.benchmark
    assert tf32.tf32_allowed()
    assert matmul.fp32_precision == "tf32"
