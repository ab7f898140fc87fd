"""test() and its kin: how accurate is a model, clean and under attack? Always in float32 and eval mode.

Examples are crafted on the model that is scored; no function here takes ready-made pictures. Carrying
examples from one model to another is `transfer_attack`, and its result says so.
"""

import time
import zlib

import pandas as pd
import torch
from tqdm.auto import tqdm

import audit
from attacks import Attack, evaluating
from outcomes import BATCH, Kept, attacked, on_device_of, predict
from runs import fingerprint
from scores import CLEAN, Scores
from utils import derive_seed


def test(model, split, attacks=(), *, seed=0, progress=True, folder=None):
    """Score a model on a split: clean, and under each attack, crafted on this very model. Returns Scores.

    `attacks` is a list of attacks. Only examples that are classified correctly are attacked; the others count
    as lost. The scores end in findings (audit.py). Leaves the model as it was. With a `folder` (a run's) the
    batches that are done are kept there until the test is, so that one that was stopped goes on.
    """
    attacks = _named(attacks)
    return _evaluate(model, model, split, attacks, seed, progress, None, folder)


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
    models = {name: on_device_of(split, model) for name, model in models.items()}
    right = {name: predict(model, split).argmax(1) == split.labels for name, model in models.items()}
    stood = {name: {victim: [] for victim in models} for name in models}
    for name, source in tqdm(models.items(), desc=f"{attack.label}, carried", disable=not progress):
        generator = torch.Generator(split.labels.device).manual_seed(seed_for(attack, seed))
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


def seed_for(attack, seed):
    """A seed for this attack: the same for the same attack, wherever it stands in a list."""
    return derive_seed(seed, zlib.crc32(repr(attack).encode()))


def _named(attacks):
    """Attacks by label, with the full settings where two labels are equal."""
    attacks = [attacks] if isinstance(attacks, (Attack, str)) else list(attacks)
    for attack in attacks:
        if not isinstance(attack, Attack):
            raise TypeError(f"{attack!r} is no attack; pass attacks such as PGD(steps=20)")
    labels = [attack.label for attack in attacks]
    named = {a.label if labels.count(a.label) == 1 else repr(a): a for a in attacks}
    if len(named) < len(attacks):
        raise ValueError(f"the same attack is listed twice in {attacks}")
    return named


def _evaluate(source, victim, split, attacks, seed, progress, carried, folder=None):
    begun = time.perf_counter()
    source, victim = on_device_of(split, source), on_device_of(split, victim)
    logits = predict(victim, split)
    right = (logits.argmax(1) == split.labels) & torch.isfinite(logits).all(1)
    outcomes, seconds, extents = {CLEAN: right.cpu()}, {CLEAN: time.perf_counter() - begun}, {}
    kept = Kept(folder, source, victim, split)
    bar = tqdm(total=len(attacks) * int(right.sum()), desc="test", disable=not progress, unit="image")
    indices = right.nonzero()[:, 0]
    with kept, bar:
        for label, attack in attacks.items():
            bar.set_description(f"test {label}")
            its_seed = seed_for(attack, seed)
            stood, extents[label] = attacked(source, victim, split, attack, indices, its_seed, bar, kept)
            outcome = torch.zeros_like(right)
            outcome[indices] = stood
            outcomes[label], seconds[label] = outcome.cpu(), extents[label].seconds
    described = {label: repr(attack) for label, attack in attacks.items()}
    scores = Scores(split.name, outcomes, described, seconds, carried=carried, weights=fingerprint(victim))
    scores.pictures = split.checksum
    scores.findings = audit.examine(victim, split, logits, scores, attacks, extents)
    return scores
