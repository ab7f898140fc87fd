"""test() and its kin: how accurate is a model, clean and under attack? Always in float32 and eval mode."""

import time
import zlib

import torch
from tqdm.auto import tqdm

from attacks import Attack
from evaluation.audit import examine
from evaluation.finding import CLEAN
from evaluation.per_example import Kept, attacked, in_float32, on_device_of, predict
from evaluation.scores import Scores
from loaders import Split
from models.fingerprint import fingerprint
from processes import data_parallel
from processes.machine import own_device, prepare
from processes.seeds import derive_seed


def test(model, split, attacks=(), *, seed=0, progress=True, folder=None):
    """Score a model on a split: clean, and under each attack, crafted on this very model. Returns Scores.

    `attacks` is a list of attacks. Only examples that are classified correctly are attacked; the others count
    as lost. The scores end in findings (audit.py). Leaves the model as it was. With a `folder` (a run's) the
    batches that are done are kept there: a test that was stopped goes on, and one that was done is not done again.
    """
    return evaluate(model, model, split, named(attacks), seed, progress, None, folder)


def test_here(model, split, attacks, folder, kind="auto"):
    """For processes that another one has started: `test` what came from there, on their device; see Packed."""
    device = own_device(kind)
    prepare(device)
    return test(model.unpacked(device), split.to(device), attacks, folder=folder, progress=False)


def seed_for(attack, seed):
    """A seed for this attack: the same for the same attack, wherever it stands in a list."""
    return derive_seed(seed, zlib.crc32(repr(attack).encode()))


def named(attacks):
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


def evaluate(source, victim, split, attacks, seed, progress, carried, folder=None):
    if not isinstance(split, Split):
        raise TypeError(
            f"a {type(split).__name__} is no Split, such as data.test; loaders.from_dataset makes Data "
            "of a Dataset, which a DataLoader has as loader.dataset"
        )
    begun = time.perf_counter()
    data_parallel.join(split.labels.device)
    here = on_device_of(split, victim)
    source, victim = here if source is victim else on_device_of(split, source), here
    logits = predict(victim, split)
    right = (logits.argmax(1) == split.labels) & torch.isfinite(logits).all(1)
    described = {label: repr(attack) for label, attack in attacks.items()}
    seconds = {CLEAN: time.perf_counter() - begun}
    scores = Scores(split.name, {CLEAN: right.cpu()}, described, seconds, carried=carried, pictures=split.checksum)
    extents, indices = {}, right.nonzero()[:, 0]
    bar = tqdm(total=len(attacks) * len(indices), unit="image", disable=not (progress and data_parallel.leads()))
    with Kept(folder, victim, split) as kept, bar:
        for label, attack in attacks.items():
            bar.set_description(f"test {label}")
            its_seed = seed_for(attack, seed)
            stood, extents[label] = attacked(source, victim, split, attack, indices, its_seed, bar, kept)
            outcome = torch.zeros_like(right)
            outcome[indices] = stood
            scores.outcomes[label], seconds[label] = outcome.cpu(), extents[label].seconds
    scores.weights = fingerprint(victim)
    with in_float32(split):
        scores.findings = examine(victim, split, logits, scores, attacks, extents)
    return scores
