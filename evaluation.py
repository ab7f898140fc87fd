"""test() and its kin: how accurate is a model, clean and under attack? Always in float32 and eval mode.

Examples are crafted on the model that is scored; no function here takes ready-made pictures. Carrying
examples from one model to another is `transfer_attack`, and its result says so.
"""

import copy
import time
import zlib

import pandas as pd
import torch
from tqdm.auto import tqdm

import audit
from attacks import Attack, evaluating
from runs import fingerprint
from scores import CLEAN, Scores, wilson
from utils import derive_seed

BATCH = {"cpu": 250, "cuda": 1000}  # pictures at once


def test(model, split, attacks=(), *, seed=0, progress=True):
    """Score a model on a split: clean, and under each attack, crafted on this very model. Returns Scores.

    `attacks` is a list of attacks. Only examples that are classified correctly are attacked; the others count
    as lost. The scores end in findings (audit.py). Leaves the model as it was.
    """
    attacks = _named(attacks)
    return _evaluate(model, model, split, attacks, seed, progress, None)


def transfer_attack(source, victim, split, attack, *, source_name="another model", seed=0, progress=True):
    """Score `victim` on examples crafted on `source`: how well an attack carries over. Returns Scores.

    This is no robust accuracy: an attacker who knows the victim does better. The scores are labelled so.
    """
    _named([attack])
    labelled = {f"{attack.label}, carried from {source_name}": attack}
    return _evaluate(source, victim, split, labelled, seed, progress, source_name)


def carried_matrix(models, split, attack, *, seed=0, progress=True):
    """Accuracy, 0 to 1, of each victim (column) on examples crafted on each source (row): a table.

    `models` maps names to models. The diagonal is the white box; off it nothing is robustness, because an
    attacker who knows the victim does better. An example counts where it is right before and after.
    """
    models = {name: _on(split, model) for name, model in models.items()}
    right = {name: predict(model, split).argmax(1) == split.labels for name, model in models.items()}
    stood = {name: {victim: [] for victim in models} for name in models}
    for name, source in tqdm(models.items(), desc=f"{attack.label}, carried", disable=not progress):
        generator = torch.Generator(split.labels.device).manual_seed(_seed_for(attack, seed))
        for images, labels in split.batches(BATCH[split.labels.device.type]):
            with evaluating(source):
                adversarial = attack.craft(source, images, labels, generator)
            for victim, model in models.items():
                with evaluating(model), torch.no_grad():
                    logits = model(adversarial)
                stood[name][victim].append((logits.argmax(1) == labels) & torch.isfinite(logits).all(1))
    shares = {
        name: {victim: float((torch.cat(parts) & right[victim]).double().mean()) for victim, parts in row.items()}
        for name, row in stood.items()
    }
    table = pd.DataFrame.from_dict(shares, orient="index")
    table.attrs |= {"split": split.name, "n": len(split), "attack": repr(attack)}
    return table


def predict(model, split):
    """Logits (N, K) of the pictures of a split, in float32 and eval mode."""
    with evaluating(model), torch.no_grad():
        return torch.cat([model(images) for images, _ in split.batches(BATCH[split.labels.device.type])])


def _on(split, model):
    """The model on the split's device: itself, or a copy."""
    weight = next(model.parameters(), None)
    if weight is None or weight.device == split.labels.device:
        return model
    return copy.deepcopy(model).to(split.labels.device)


def _seed_for(attack, seed):
    """The same for the same attack, wherever it stands in a list."""
    return derive_seed(seed, zlib.crc32(repr(attack).encode()))


def _named(attacks):
    """Attacks by label, with the full settings where two labels are equal."""
    attacks = [attacks] if isinstance(attacks, Attack) else list(attacks)
    for attack in attacks:
        if not isinstance(attack, Attack):
            raise TypeError(f"{attack!r} is no attack; pass attacks such as PGD(steps=20)")
    labels = [attack.label for attack in attacks]
    named = {a.label if labels.count(a.label) == 1 else repr(a): a for a in attacks}
    if len(named) < len(attacks):
        raise ValueError(f"the same attack is listed twice in {attacks}")
    return named


def _evaluate(source, victim, split, attacks, seed, progress, carried):
    begun = time.perf_counter()
    source, victim = _on(split, source), _on(split, victim)
    logits = predict(victim, split)
    if logits.ndim != 2 or logits.shape[1] < split.num_classes:
        raise ValueError(
            f"the model gives logits of shape {tuple(logits.shape)} for {len(split)} pictures of "
            f"{split.num_classes} classes; was it built for another data set?"
        )
    right = (logits.argmax(1) == split.labels) & torch.isfinite(logits).all(1)
    outcomes, seconds, extents = {CLEAN: right.cpu()}, {CLEAN: time.perf_counter() - begun}, {}
    bar = tqdm(total=len(attacks) * int(right.sum()), desc="test", disable=not progress, unit="image")
    for label, attack in attacks.items():
        bar.set_description(f"test {label}")
        begun = time.perf_counter()
        indices = right.nonzero()[:, 0]
        stood, extents[label] = attacked(source, victim, split, attack, indices, _seed_for(attack, seed), bar)
        outcome = torch.zeros_like(right)
        outcome[indices] = stood
        outcomes[label], seconds[label] = outcome.cpu(), time.perf_counter() - begun
    bar.close()
    described = {label: repr(attack) for label, attack in attacks.items()}
    scores = Scores(split.name, outcomes, described, seconds, carried=carried, weights=fingerprint(victim))
    scores.findings = audit.examine(victim, split, logits, scores, attacks, extents)
    return scores


def attacked(source, victim, split, attack, indices, seed, bar=None):
    """Which of the examples withstand the attack, bool (len(indices),), and how far it went.

    The extent is the largest change of a pixel (L2: the largest length), the lowest and the highest pixel, and
    the number of examples whose logits are not finite.
    """
    device = split.labels.device
    generator = torch.Generator(device).manual_seed(seed)
    stood, extents = [], [torch.zeros(4, device=device)]
    with evaluating(source):
        for some in indices.split(BATCH[device.type]) if len(indices) else ():
            images, labels = split.batch(some)
            adversarial = attack.craft(source, images, labels, generator)
            with evaluating(victim), torch.no_grad():  # whatever mode the attack has left it in
                logits = victim(adversarial)
            broken = ~torch.isfinite(logits).all(1)
            stood.append((logits.argmax(1) == labels) & ~broken)
            change = (adversarial - images).flatten(1)
            size = change.norm(dim=1) if getattr(attack, "norm", "Linf") == "L2" else change.abs().amax(1)
            extents.append(torch.stack([size.max(), adversarial.min(), adversarial.max(), broken.sum()]))
            if bar is not None:
                bar.update(len(some))
    table = torch.stack(extents)
    size, low, high, broken = table[:, 0].max(), table[:, 1].min(), table[:, 2].max(), table[:, 3].sum()
    extent = (float(size), float(low), float(high), int(broken))
    return torch.cat(stood) if stood else indices.bool(), extent


def accuracy_against_eps(model, split, attack, grid, *, seed=0, progress=True):
    """Robust accuracy along a grid of ε: a table with the columns eps, accuracy, low, high, n.

    Step sizes scale with ε. The first row is ε = 0, clean accuracy. The grid is taken in rising order: a
    picture that falls at one ε falls at every larger one, because the same adversarial picture lies in the
    larger ball, so only those still standing are attacked again.
    """
    model = _on(split, model)
    standing = (predict(model, split).argmax(1) == split.labels).nonzero()[:, 0]
    counts = {0.0: len(standing)}
    wanted = sorted(set(grid) - {0})
    for eps in tqdm(wanted, desc=f"{attack.label} along ε", disable=not progress):
        scaled = attack.scaled(eps / attack.eps)
        stood, _ = attacked(model, model, split, scaled, standing, _seed_for(scaled, seed))
        standing = standing[stood]
        counts[eps] = len(standing)
    rows = [[eps, count / len(split), *wilson(count, len(split)), len(split)] for eps, count in counts.items()]
    table = pd.DataFrame(rows, columns=["eps", "accuracy", "low", "high", "n"])
    table.attrs["split"] = split.name
    return table
