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
import parallel
from attacks import Attack, evaluating
from outcomes import BATCH, Kept, attacked, in_float32, on_device_of, predict
from runs import fingerprint
from scores import CLEAN, Scores
from utils import derive_seed, own_device, prepare


def test(model, split, attacks=(), *, seed=0, progress=True, folder=None):
    """Score a model on a split: clean, and under each attack, crafted on this very model. Returns Scores.

    `attacks` is a list of attacks. Only examples that are classified correctly are attacked; the others count
    as lost. The scores end in findings (audit.py). Leaves the model as it was. With a `folder` (a run's) the
    batches that are done are kept there until the test is, so that one that was stopped goes on.
    """
    attacks = _named(attacks)
    return _evaluate(model, model, split, attacks, seed, progress, None, folder)


def test_here(model, split, attacks, folder, kind="auto", *, progress=True):
    """For processes that another one has started: `test` what came from there, on their device; see Packed."""
    device = own_device(kind)
    prepare(device)
    return test(model.unpacked(device), split.to(device), attacks, folder=folder, progress=False)


def transfer_attack(source, victim, split, attack, *, source_name="another model", seed=0, progress=True):
    """Score `victim` on examples crafted on `source`: how well an attack carries over. Returns Scores.

    This is no robust accuracy: an attacker who knows the victim does better. The scores are labelled so.
    """
    _named([attack])
    labelled = {f"{attack.label}, carried from {source_name}": attack}
    return _evaluate(source, victim, split, labelled, seed, progress, source_name)


def carried_outcomes(victims, split, attack, *, sources=None, seed=0, progress=True):
    """Which examples each victim gets right before and after an attack on each source: bool (N,) by both names.

    The keys are (source, victim). `victims` and `sources` map names to models; without `sources` the victims are
    attacked with one another's examples and their own. Where both are one model it is the white box; elsewhere
    nothing is robustness, because an attacker who knows the victim does better. A source with another number of
    classes than the split has, such as a public one before its head was exchanged, knows none of the labels: it is
    led away from its own guess.
    """
    _named([attack])
    for name in victims.keys() & (victims if sources is None else sources).keys():
        if sources is not None and sources[name] is not victims[name]:
            raise ValueError(
                f"{name!r} names a source and a victim that are two models: it would look like a white box"
            )
    victims = {name: on_device_of(split, model) for name, model in victims.items()}
    sources = victims if sources is None else {name: on_device_of(split, m) for name, m in sources.items()}
    right = {name: predict(model, split).argmax(1) == split.labels for name, model in victims.items()}
    stood = {(source, victim): [] for source in sources for victim in victims}
    for name, source in tqdm(sources.items(), desc=f"{attack.label}, carried", disable=not progress):
        generator = torch.Generator(split.labels.device).manual_seed(seed_for(attack, seed))
        for images, labels in split.batches(BATCH[split.labels.device.type]):
            with evaluating(source), in_float32(split):
                adversarial = attack.craft(source, images, _as_labelled(source, images, labels, split), generator)
            for victim, model in victims.items():
                with evaluating(model), torch.no_grad(), in_float32(split):
                    logits = model(adversarial)
                stood[name, victim].append((logits.argmax(1) == labels) & torch.isfinite(logits).all(1))
    return {(name, victim): (torch.cat(parts) & right[victim]).cpu() for (name, victim), parts in stood.items()}


def _as_labelled(source, images, labels, split):
    """The labels, or the source's own guesses where its classes are others."""
    with torch.no_grad():
        logits = source(images)
    return labels if logits.shape[1] == split.num_classes else logits.argmax(1)


def carried_matrix(models, split, attack, *, seed=0, progress=True):
    """Accuracy, 0 to 1, of each victim (column) on examples crafted on each source (row): a table.

    `models` maps names to models. The diagonal is the white box. See carried_outcomes.
    """
    stood = carried_outcomes(models, split, attack, seed=seed, progress=progress)
    shares = {name: {v: float(stood[name, v].double().mean()) for v in models} for name in models}
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
    parallel.join(split.labels.device)
    source, victim = on_device_of(split, source), on_device_of(split, victim)
    logits = predict(victim, split)
    right = (logits.argmax(1) == split.labels) & torch.isfinite(logits).all(1)
    outcomes, seconds, extents = {CLEAN: right.cpu()}, {CLEAN: time.perf_counter() - begun}, {}
    kept = Kept(folder, source, victim, split)
    bar = tqdm(
        total=len(attacks) * int(right.sum()),
        desc="test",
        disable=not (progress and parallel.leads()),
        unit="image",
    )
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
