"""Which examples withstand an attack: what every robust accuracy of this project counts.

Always in float32 and eval mode, always crafted on a model and judged right after: ready-made pictures are
never taken. On a GPU crafting may round to TF32; judging never does.
"""

import time
from contextlib import contextmanager
from typing import NamedTuple

import torch

from attacks import evaluating
from evaluation.batch_sizes import BATCH, AnySize
from evaluation.tested_before import Kept
from models.model import check_is_module, copied
from models.tf32 import rounding
from processes import data_parallel
from processes.seeds import derive_seed


class Extent(NamedTuple):
    """How far an attack went."""

    largest: float  # change of a pixel; L2: length
    low: float  # the lowest and the highest pixel
    high: float
    broken: int  # examples whose logits are not finite
    still: int  # examples that withstand and were not changed at all
    seconds: float  # all in all, also those before an interruption


def on_device_of(split, model):
    """The model on the split's device: itself, or a copy. Raises TypeError for what is no module."""
    check_is_module(model)
    weight = next(model.parameters(), None)
    if weight is None or weight.device == split.labels.device:
        return model
    return copied(model).to(split.labels.device)


def predict(model, split):
    """Logits (N, K) of the pictures of a split, in float32 and eval mode. ValueError for too few classes."""
    model = AnySize(model)
    with evaluating(model), torch.no_grad(), in_float32(split):
        size = BATCH[split.labels.device.type]

        def logits_from(begin):
            logits = model(split.batch(slice(begin, begin + size))[0]).float()
            # On the CPU another process can take them.
            return logits if data_parallel.world() == 1 else logits.cpu()

        found = data_parallel.shared_out(range(0, len(split), size), logits_from)
        logits = torch.cat([part for _, part in found]).to(split.labels.device)
    if logits.ndim != 2 or logits.shape[1] < split.num_classes:
        raise ValueError(
            f"the model gives logits of shape {tuple(logits.shape)} for {len(split)} pictures of "
            f"{split.num_classes} classes; was it built for another data set?"
        )
    return logits


@contextmanager
def in_float32(split, *, tf32=False):
    """Whatever autocast the caller is in; with `tf32` as GPUs round it: for crafting, never for judging."""
    with torch.autocast(split.labels.device.type, enabled=False), rounding(tf32=tf32):
        yield


def attacked(source, victim, split, attack, indices, seed, bar=None, kept=None):
    """Which of the examples withstand the attack, bool (len(indices),), and how far it went.

    Examples are crafted on `source` and judged by `victim`. An attack of several stages gives each stage what the
    ones before have left, in full batches. `kept` holds the batches that an earlier, interrupted call has done.
    """
    device, kept = split.labels.device, Kept() if kept is None else kept
    source, victim = AnySize(source), AnySize(victim)
    extents, standing = [[0.0, 0.0, 0.0, 0, 0, 0.0]], torch.ones_like(indices, dtype=torch.bool)
    left, stages = len(indices), attack.stages
    for number, stage in enumerate(stages):
        left_over = standing.nonzero()[:, 0]
        batches = left_over.split(BATCH[device.type]) if len(left_over) else ()
        places = [kept.place(attack, seed, number, batch, indices[some]) for batch, some in enumerate(batches)]

        def judge(batch, number=number, stage=stage, batches=batches, places=places):
            known = kept.get(places[batch])
            generator = torch.Generator(device).manual_seed(derive_seed(seed, number, batch))
            return known or _judge(source, victim, stage, split, indices[batches[batch]], generator)

        for batch, (stood, extent) in data_parallel.shared_out(range(len(batches)), judge):
            kept.keep(places[batch], (stood, extent))
            some = batches[batch]
            standing[some] = torch.tensor([mark == "1" for mark in stood], device=device)
            extents.append(extent)
            left -= stood.count("0")
            if bar is not None:
                bar.update(len(stood) if number == len(stages) - 1 else stood.count("0"))
                bar.set_postfix_str(f"{stage.label}: at most {left} of {len(indices)} withstand")
    # NaN stays NaN in torch's extremes; in Python's it gets lost.
    size, low, high, broken, still, seconds = torch.tensor(extents, dtype=torch.float64).T
    reach = float(size.max()), float(low.min()), float(high.max())
    return standing, Extent(*reach, int(broken.sum()), int(still.sum()), float(seconds.sum()))


def labels_for(source, images, labels, split):
    """The labels, or where a source has other classes than the split, and knows none of them, its own guesses."""
    with evaluating(source), torch.no_grad(), in_float32(split):
        guesses = source(images)
    return labels if guesses.shape[1] == split.num_classes else guesses.argmax(1)


def _judge(source, victim, attack, split, indices, generator):
    """One batch: a "1" for each example that withstands, and how far the attack went.

    The attack gets a copy of the pictures, so that one that writes into them cannot hide how far it went.
    """
    begun = time.perf_counter()
    images, labels = split.batch(indices)
    known = labels if source.model is victim.model else labels_for(source, images, labels, split)
    with evaluating(source), in_float32(split, tf32=True):
        adversarial = source.crafted(attack, images, known, generator)
    with evaluating(victim), torch.no_grad(), in_float32(split):
        logits = victim(adversarial)
    broken = ~torch.isfinite(logits).all(1)
    stood = (logits.argmax(1) == labels) & ~broken
    change = (adversarial - images).flatten(1)
    size = change.norm(dim=1) if attack.norm == "L2" else change.abs().amax(1)
    still = (stood & (size == 0)).sum()
    extent = torch.stack([size.max(), adversarial.min(), adversarial.max(), broken.sum(), still]).tolist()
    return "".join("01"[mark] for mark in stood.tolist()), [*extent, time.perf_counter() - begun]
