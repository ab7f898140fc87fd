"""What several tests need and no fixture can be: small data, a small network, the command line of a process."""

from contextlib import suppress

import psutil
import torch
from torch import nn

from loaders import Split


class Blobs:
    """Four classes of 8x8 pictures that a small network learns in seconds: one bright quarter each, and noise."""

    def split(self, count, seed, name):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(count) % 4
        images = torch.randint(0, 225, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
        for index, label in enumerate(labels.tolist()):
            top, left = 4 * (label // 2), 4 * (label % 2)
            images[index, :, top : top + 4, left : left + 4] += 30
        return Split(images, labels, list("abcd"), f"blobs {name}")


def small_network(seed=0, classes=4, size=8):
    """A network with everything that has state: BatchNorm, Dropout, submodules in either mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * (size // 2) ** 2, classes),
        )


def command_of(process):
    """The command line of a psutil.Process; empty for one that has just ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""
