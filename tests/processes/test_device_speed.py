"""The speed that estimates are made with."""

import pytest
import torch

from processes import device_speed


@pytest.mark.parametrize("low", [False, True])
def test_the_speed_is_that_of_steps_that_were_timed(monkeypatch, low):
    """A clock that ticks once a call makes steps of one second: what is counted is then known."""
    ticks = iter(range(100))
    monkeypatch.setattr(device_speed.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(device_speed, "SECONDS", 2.5)
    monkeypatch.setattr(device_speed, "fast_bfloat16", lambda device: low)
    layer = 3 * 2 * 9 * 64 * 64 * 16 * 16 * 32 / 1e9  # forward and twice that backward
    # Looked at after 1, 2 and 3 seconds: two steps were done in between.
    assert device_speed.gflops(torch.device("cpu")) == pytest.approx(4 * layer * 2 / 3)
