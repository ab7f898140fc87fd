"""What is written beside a run, for those who judge or repeat it."""

import os
import re

import pytest
import torch

from processes import machine


def test_what_made_a_number():
    there = machine.environment(torch.device("cpu"))
    assert there["torch"] == torch.__version__
    assert there["threads"] == torch.get_num_threads()
    assert (there["cores"], there["processes"], there["cuda"]) == (os.cpu_count(), 1, None)
    assert there["device"]
    assert there["commit"] is None or re.fullmatch(r"[0-9a-f]{10,}\+?", there["commit"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", there["started"])


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
    assert machine.tf32_allowed()
    with machine.rounding(tf32=False):
        assert not machine.tf32_allowed()
        assert not matmul.allow_tf32
        with machine.rounding(tf32=True, tries=True):
            assert machine.tf32_allowed()
            assert matmul.allow_tf32
            assert cudnn.benchmark
        assert not machine.tf32_allowed()
        assert not matmul.allow_tf32
        assert not cudnn.benchmark
    assert machine.tf32_allowed()
    assert matmul.fp32_precision == "tf32"
