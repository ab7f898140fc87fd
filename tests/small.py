"""What several tests need and no fixture can be: small data, small networks, threads for processes."""

import math
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress

import psutil
import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d

import models
from evaluation.scores import Scores
from loaders import Split
from models.resnet import BasicBlock, ResNet


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


class Quarters(nn.Module):
    """Its logits are how bright the quarters of 8x8 pictures are, so what the strongest attack can do is known.

    `change` makes other logits of them.
    """

    def __init__(self, classes=4, change=lambda logits: 50 * logits):
        super().__init__()
        self.classes, self.change, self.weight = classes, change, nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.change(self.weight * self.bright(images))

    def bright(self, images):
        return avg_pool2d(images, 4).mean(1).flatten(1)[:, : self.classes]

    def withstood(self, split, eps=8 / 255):
        """The share, 0 to 1, of a split that is right and that no attack within ε (L∞) can turn."""
        images, index = split.batch(slice(None))[0], split.labels[:, None]
        own = self.bright((images - eps).clamp(0, 1)).gather(1, index)[:, 0]
        others = self.bright((images + eps).clamp(0, 1)).scatter(1, index, -math.inf).amax(1)
        return float((own > others).double().mean())


def quarters(count=60, classes=4):
    """So many of the Blobs, without those of other classes."""
    split = Blobs().split(count, 0, "pictures")
    kept = split.labels < classes
    return Split(split.images[kept], split.labels[kept], split.classes[:classes], "pictures")


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


def tiny_resnet(seed=0, classes=10):
    """With all that a ResNet has: a stem, BatchNorm, blocks with and without a shortcut of their own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ResNet(BasicBlock, (1, 1), classes, width=4)
    spec = {"name": "tiny", "num_classes": classes}
    return models.Model(network, models.Normalise((0.5,) * 3, (0.2,) * 3), None, spec)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count=6, seed=0, dtype=torch.float32):
    """Random 8x8 pictures, the first of them black and white, and labels of four classes."""
    draw = generator(seed)
    images = torch.rand(count, 3, 8, 8, generator=draw, dtype=dtype)
    images[0, :, :4], images[0, :, 4:] = 0, 1  # the borders of the range
    return images, torch.randint(0, 4, (count,), generator=draw)


def points_with_gradient(attack, model, images, labels):
    """Where an attack asks for gradients, and where for answers only."""
    asked, answered = [], []

    class Noted(nn.Module):
        def forward(self, x):
            (asked if torch.is_grad_enabled() else answered).append(x.detach().clone())
            return model(x)

    attack(Noted(), images, labels, generator=generator())
    return asked, answered


def standing(model, attack, split, seed=0):
    """How many of the pictures withstand."""
    images, labels = split.batch(torch.arange(len(split)))
    found = attack(model, images, labels, generator=generator(seed))
    with torch.no_grad():
        return int((model.eval()(found).argmax(1) == labels).sum())


def small_split(count, labels=None, classes=4, name="few"):
    """Random 8x8 pictures, whose classes take turns."""
    images = torch.randint(256, (count, 3, 8, 8), generator=generator(), dtype=torch.uint8)
    labels = torch.arange(count) % classes if labels is None else labels
    return Split(images, labels, [str(index) for index in range(classes)], name)


def outcomes(both, only_a, only_b, neither):
    """Two Scores of the same examples."""
    a = torch.tensor([True] * (both + only_a) + [False] * (only_b + neither))
    b = torch.tensor([True] * both + [False] * only_a + [True] * only_b + [False] * neither)
    return Scores("x test", {"clean": a}), Scores("x test", {"clean": b})


def late(*values):
    """Parameters of a test that takes long with them."""
    return pytest.param(*values, marks=pytest.mark.long)


class Threads:
    """A pool of threads, as ray_cluster.Pool is one of processes."""

    def __init__(self, count=2):
        self.pool, self.stopped = ThreadPoolExecutor(count), []

    def submit(self, name, task):
        assert task.note is None or not task.note.exists()  # it is of what was there before
        return self.pool.submit(task.function, *task.arguments)

    def done(self, futures, seconds):
        return wait(futures, min(seconds, 0.01)).done

    def result(self, future):
        return future.result()

    def stop(self, futures):
        self.stopped += futures


def command_of(process):
    """The command line of a psutil.Process; empty for one that has just ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""
