"""What a robust accuracy depends on: ε, steps, restarts; margins, and the loss around a picture."""

from dataclasses import replace

import pandas as pd
import torch
from tqdm.auto import tqdm

from attacks import evaluating, input_gradient, margin
from evaluation.batch_sizes import BATCH, AnySize
from evaluation.per_example import attacked, in_float32, on_device_of, predict
from evaluation.statistics import wilson
from evaluation.testing import seed_for
from models.tf32 import rounding


def accuracy_against_eps(model, split, attack, grid, *, seed=0, progress=True):
    """Robust accuracy along a grid of ε: a table with the columns eps, accuracy, low, high, n.

    Step sizes scale with ε. The first row is ε = 0, clean accuracy. The grid is taken in rising order: a
    picture that falls at one ε falls at every larger one, because the same adversarial picture lies in the
    larger ball, so only those still standing are attacked again.
    """
    tries = {eps: (attack.scaled(eps / attack.eps), seed) for eps in sorted(set(grid) - {0})}
    return _curve("eps", model, split, tries, progress, clean_at=[0.0])


def accuracy_against_steps(model, split, attack, steps, *, seed=0, progress=True):
    """Robust accuracy for several numbers of steps: a table with the columns steps, accuracy, low, high, n.

    Each is an attack of its own, and the step size stays. A curve that still falls at its end belongs to an
    attack that has not converged.
    """
    tries = {count: (replace(attack, steps=count), seed) for count in sorted(set(steps))}
    return _curve("steps", model, split, tries, progress, from_all=True)


def accuracy_against_restarts(model, split, attack, restarts, *, seed=0, progress=True):
    """Robust accuracy after 1, 2, ... restarts, up to `restarts`: columns restarts, accuracy, low, high, n.

    Each restart attacks only what still stands, so the curve never rises.
    """
    tries = {number + 1: (attack, seed + number) for number in range(restarts)}
    return _curve("restarts", model, split, tries, progress)


def _curve(name, model, split, tries, progress, clean_at=(), from_all=False):
    """What `tries`, {value: (attack, seed)}, leave: of all that the model gets right, or of what still stands."""
    model = on_device_of(split, model)
    standing = first_right(model, split)
    counts = dict.fromkeys(clean_at, len(standing))
    for value, (attack, seed) in tqdm(tries.items(), desc=f"accuracy against {name}", disable=not progress):
        stood, _ = attacked(model, model, split, attack, standing, seed_for(attack, seed))
        counts[value] = int(stood.sum())
        if not from_all:
            standing = standing[stood]
    n = len(split)
    rows = [[value, count / n, *wilson(count, n), n] for value, count in counts.items()]
    table = pd.DataFrame(rows, columns=[name, "accuracy", "low", "high", "n"])
    table.attrs |= {"split": split.name, "norm": next((its.norm for its, _ in tries.values()), "Linf")}
    return table


def margins(model, split, attack, *, seed=0):
    """The label's logit minus the largest other one, below 0 where the model is wrong: clean and under the attack.

    A dictionary of two tensors (N,), by "clean" and the attack's label.
    """
    model = AnySize(on_device_of(split, model))
    parts = {"clean": [], attack.label: []}
    generator = torch.Generator(split.labels.device).manual_seed(seed)
    with evaluating(model), in_float32(split):
        for images, labels in split.batches(BATCH[split.labels.device.type]):
            adversarial = model.crafted(attack, images, labels, generator)
            for name, points in zip(parts, (images, adversarial), strict=True):
                with torch.no_grad():
                    parts[name].append(margin(model(points), labels))
    return {name: torch.cat(values).cpu() for name, values in parts.items()}


def loss_surface(model, images, labels, eps=8 / 255, points=21, *, seed=0):
    """Cross-entropy around pictures (n, C, H, W), averaged: (points, points), rows along the gradient's sign.

    Columns go along a random direction of signs; both from -ε to ε, the picture in the middle. A smooth slope is
    what an attack needs; a cliff or a ripple on it misleads one.
    """
    with evaluating(model), torch.autocast(images.device.type, enabled=False), rounding(tf32=False):
        uphill = input_gradient(model, images, labels).sign()
        generator = torch.Generator(images.device).manual_seed(seed)
        across = torch.empty_like(images).uniform_(-1, 1, generator=generator).sign()
        line = torch.linspace(-eps, eps, points, device=images.device)
        rows = []
        for along in line:
            places = [(images + along * uphill + other * across).clamp(0, 1) for other in line]
            with torch.no_grad():
                losses = [torch.nn.functional.cross_entropy(model(place), labels) for place in places]
            rows.append(torch.stack(losses))
    return torch.stack(rows).cpu()


def first_right(model, split, count=None):
    """Indices of the first pictures, at most `count`, that the model gets right."""
    return (predict(on_device_of(split, model), split).argmax(1) == split.labels).nonzero()[:count, 0]


def check_curves(tables):
    """Raise ValueError where tables are along something else, or of another norm, split or number of pictures."""
    told = [{**rows.attrs, "n": rows.get("n", [None])[0], "along": rows.columns[0]} for rows in tables]
    for what in ("along", "norm", "split", "n"):
        if len(values := {one.get(what) for one in told} - {None}) > 1:
            raise ValueError(f"{what}: {values}; curves of these cannot be compared in one figure")
