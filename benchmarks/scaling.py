"""How the cost of our PGD step grows with batch, steps and width, and that of an evaluation with its pictures.

    python -m benchmarks.scaling

The points of a curve are measured in turns. The slope is that of the least-squares line, in seconds per unit; for
the width, where the arithmetic grows with the square, it is the exponent between the two widest networks.
"""

import functools
import math

import numpy as np
import torch

import models
import utils
from attacks import PGD
from benchmarks import suite
from benchmarks.peers import our_step
from benchmarks.timing import compare, spread
from evaluation.per_example import attacked


def step_of(setting, attack, width, batch):
    """A training step of ResNet-18 on pictures that lie on the device."""
    model = models.build("resnet18", 10, width=width).to(setting.device)
    images = torch.rand(batch, 3, 32, 32, device=setting.device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,), device=setting.device)
    return functools.partial(our_step(model, attack), images, labels)


def evaluation_of(setting, pictures):
    """PGD-20 of the shallow CNN on this many pictures, right or wrong."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (pictures, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (pictures,), generator=generator)
    split = utils.Split(images.to(setting.device), labels.to(setting.device), list("0123456789"), "noise")
    model = models.build("shallow_cnn", 10).to(setting.device).eval()
    indices = torch.arange(pictures, device=setting.device)
    return functools.partial(attacked, model, model, split, PGD(steps=20), indices, 0)


def curve(setting, make, values, **what):
    """Seconds at each of the values."""
    rates = compare({value: (make(value), 1) for value in values}, setting)
    seconds = [spread(1 / rate for rate in rates[value]) for value in values]
    medians = [point["median"] for point in seconds]
    result = {"unit": "s", "values": list(values), "seconds": seconds} | what
    if what["along"] == "width":
        return result | {"exponent": math.log(medians[-1] / medians[-2], values[-1] / values[-2])}
    slope, rest = np.polyfit(values, medians, 1)
    return result | {"slope": float(slope), "intercept": float(rest)}


def cases(setting):
    cuda, tiny, width = setting.device.type == "cuda", setting.tiny, setting.width
    network = f"ResNet-18 width {width}"
    batches = (4, 8) if tiny else (16, 32, 64, 128, 256, 512)
    steps = (1, 2) if tiny else (1, 2, 5, 10, 20, 40)
    widths = (4, 8) if tiny else (8, 16, 32, 64)
    batch = setting.batch if cuda or tiny else 32  # at width 64 a batch of 128 takes a CPU long
    pictures = (10, 20) if tiny else (1000, 2000, 4000, 8000) if cuda else (125, 250, 500, 1000, 2000)
    for along, values, where, make in (
        ("batch", batches, f"{network}, PGD-10", lambda n: step_of(setting, PGD(), width, n)),
        (
            "steps",
            steps,
            f"{network}, batch {setting.batch}",
            lambda n: step_of(setting, PGD(steps=n), width, setting.batch),
        ),
        ("width", widths, f"ResNet-18, PGD-10, batch {batch}", lambda n: step_of(setting, PGD(), n, batch)),
        ("pictures", pictures, "shallow CNN, PGD-20, float32", lambda n: evaluation_of(setting, n)),
    ):
        what = "evaluation" if along == "pictures" else "training step"
        measure = functools.partial(curve, setting, make, values, along=along, where=where)
        yield "scaling", f"{what} by {along}", measure


def main(arguments=None):
    suite.run(__doc__, "scaling", cases, arguments)


if __name__ == "__main__":
    main()
