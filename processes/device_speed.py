"""How fast does this device train? Measured in about a second, for estimates of how long a notebook takes."""

import time

import torch
from torch import nn

from processes.machine import fast_bfloat16

SECONDS, LAYERS = 0.4, 4


def gflops(device):
    """GFLOP/s in training steps of a few convolutions, in 16 bits where training is in them there too."""
    channels, pictures, side = (256, 128, 16) if device.type == "cuda" else (64, 32, 16)
    layers = [nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()) for _ in range(LAYERS)]
    network = nn.Sequential(*layers).to(device, memory_format=torch.channels_last)
    images = torch.rand(pictures, channels, side, side, device=device).contiguous(
        memory_format=torch.channels_last
    )
    fast = fast_bfloat16(device)
    low = {"dtype": torch.bfloat16 if fast else torch.float16, "enabled": fast or device.type == "cuda"}

    def step():
        with torch.autocast(device.type, **low):
            loss = network(images).float().mean()
        loss.backward()
        return loss.item()  # waits for the device

    step()
    steps, begun = 0, time.perf_counter()
    while (spent := time.perf_counter() - begun) < SECONDS:
        step()
        steps += 1
    forward = 2 * 9 * channels**2 * side**2 * LAYERS * pictures  # a multiplication and an addition are two
    return 3 * forward * steps / spent / 1e9
