"""Attacks carried from one network to another: how well examples that fool a source fool a victim.

That is no robustness, because an attacker who knows the victim does better; the scores say so.
"""

import pandas as pd
import torch
from tqdm.auto import tqdm

from attacks import evaluating
from evaluation.batch_sizes import BATCH, AnySize
from evaluation.per_example import in_float32, labels_for, on_device_of, predict
from evaluation.testing import evaluate, named, seed_for


def transfer_attack(source, victim, split, attack, *, source_name="another model", seed=0, progress=True):
    """Score `victim` on examples crafted on `source`. Returns Scores, which are labelled so.

    A source with another number of classes than the split has is led away from its own guess, as in
    carried_outcomes. An attack in stages, such as AutoAttack, is told after each what the victim still gets right;
    carried_outcomes asks the source alone.
    """
    named([attack])
    labelled = {f"{attack.label}, carried from {source_name}": attack}
    return evaluate(source, victim, split, labelled, seed, progress, source_name)


def carried_outcomes(victims, split, attack, *, sources=None, seed=0, progress=True):
    """Which examples each victim gets right before and after an attack on each source: bool (N,) by both names.

    The keys are (source, victim). `victims` and `sources` map names to models; without `sources` the victims are
    attacked with one another's examples and their own. Where both are one model it is the white box; elsewhere
    nothing is robustness, because an attacker who knows the victim does better. A source with another number of
    classes than the split has, such as a public one before its head was exchanged, knows none of the labels: it is
    led away from its own guess.
    """
    named([attack])
    for name in victims.keys() & (victims if sources is None else sources).keys():
        if sources is not None and sources[name] is not victims[name]:
            raise ValueError(
                f"{name!r} names a source and a victim that are two models: it would look like a white box"
            )
    victims = {name: AnySize(on_device_of(split, model)) for name, model in victims.items()}
    if sources is None:
        sources = victims
    else:
        sources = {name: AnySize(on_device_of(split, model)) for name, model in sources.items()}
    right = {name: predict(model, split).argmax(1) == split.labels for name, model in victims.items()}
    stood = {(source, victim): [] for source in sources for victim in victims}
    for name, source in tqdm(sources.items(), desc=f"{attack.label}, carried", disable=not progress):
        generator = torch.Generator(split.labels.device).manual_seed(seed_for(attack, seed))
        for images, labels in split.batches(BATCH[split.labels.device.type]):
            known = labels_for(source, images, labels, split)
            with evaluating(source), in_float32(split, tf32=True):
                adversarial = source.crafted(attack, images, known, generator)
            for victim, model in victims.items():
                with evaluating(model), torch.no_grad(), in_float32(split):
                    logits = model(adversarial)
                stood[name, victim].append((logits.argmax(1) == labels) & torch.isfinite(logits).all(1))
    return {(name, victim): (torch.cat(parts) & right[victim]).cpu() for (name, victim), parts in stood.items()}


def carried_matrix(models, split, attack, *, seed=0, progress=True):
    """Accuracy, 0 to 1, of each victim (column) on examples crafted on each source (row): a table.

    `models` maps names to models. The diagonal is the white box. See carried_outcomes.
    """
    stood = carried_outcomes(models, split, attack, seed=seed, progress=progress)
    shares = {name: {v: float(stood[name, v].double().mean()) for v in models} for name in models}
    table = pd.DataFrame.from_dict(shares, orient="index")
    table.attrs |= {"split": split.name, "n": len(split), "attack": repr(attack)}
    return table
