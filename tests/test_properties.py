"""Contracts that hold for whatever is asked, on cases that are drawn: attacks, data, recipes, files, scores.

A few of them in every run; many, some 10,000, with `--hypothesis-profile many`, as `make test-all` has it.
"""

import json
import math
import tempfile
import warnings
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors import SafetensorError
from small import small_network

from attacks import APGD, DIFGSM, FAB, FGSM, MIFGSM, NIFGSM, PGD, SINIFGSM, TIFGSM, VMIFGSM, VNIFGSM, Noise, Square
from defences import Adversarial, Free, Guided, Standard
from defences.single_step import NFGSM
from evaluation.scores import Scores
from evaluation.statistics import wilson
from evaluation.testing import test as score
from loaders import Split
from models import build
from models.fingerprint import fingerprint
from storage.atomic_files import Damaged, read_json, write_json
from training.identity import as_dict
from training.recipe import Recipe
from training.schedule import SCHEDULES
from training.weights import load_weights, save_weights

EPS = st.one_of(st.sampled_from([0.0, 1 / 255, 8 / 255, 1.0]), st.floats(0, 1))
STEP = st.floats(1e-4, 1)
NORM = st.sampled_from(["Linf", "L2"])
SEEDS = st.integers(0, 2**31)
ATTACKS = st.one_of(
    st.builds(FGSM, norm=NORM, eps=EPS),
    st.builds(PGD, norm=NORM, eps=EPS, step_size=STEP, steps=st.integers(1, 4), restarts=st.integers(1, 2)),
    *(
        st.builds(kind, eps=EPS, step_size=STEP, steps=st.integers(1, 3))
        for kind in (MIFGSM, NIFGSM, DIFGSM, TIFGSM, SINIFGSM)
    ),
    *(
        st.builds(kind, eps=EPS, step_size=STEP, steps=st.integers(1, 2), neighbours=st.integers(1, 2))
        for kind in (VMIFGSM, VNIFGSM)
    ),
    st.builds(APGD, norm=NORM, eps=EPS, steps=st.integers(1, 4), loss=st.sampled_from(["ce", "dlr", "targeted"])),
    st.builds(FAB, norm=NORM, eps=EPS, steps=st.integers(1, 2)),
    st.builds(Square, norm=NORM, eps=EPS, queries=st.integers(1, 6)),
    st.builds(Noise, norm=NORM, eps=EPS, draws=st.integers(1, 3)),
)


@st.composite
def splits(draw, most=12):
    """Pictures of any kind: random, black, white, all the same; any labels."""
    count, side = draw(st.integers(1, most)), draw(st.sampled_from([4, 8]))
    generator = torch.Generator().manual_seed(draw(SEEDS))
    low, high = draw(st.sampled_from([(0, 256), (0, 1), (255, 256), (0, 2), (254, 256), (127, 128)]))
    images = torch.randint(low, high, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    labels = torch.tensor(draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)))
    return Split(images, labels, list("abcde"), "drawn")


def network(draw_seed, side, scale=1.0):
    model = small_network(draw_seed, classes=5, size=side)
    with torch.no_grad():
        model[-1].weight *= scale
    return model


@given(
    attack=ATTACKS, split=splits(), seed=SEEDS, scale=st.sampled_from([0.0, 1e-6, 1.0, 1e4]), double=st.booleans()
)
def test_an_attack_keeps_its_contract(attack, split, seed, scale, double):
    """Within ε and [0, 1], of the same kind, repeatable, and the model is as it was."""
    model = network(seed % 5, split.images.shape[2], scale)
    model.train(bool(seed % 2))
    images, labels = split.batch(torch.arange(len(split)))
    if double:
        model, images = model.double(), images.double()
    before, flags = fingerprint(model), [module.training for module in model.modules()]
    original = images.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a network of zeros has no gradient
        adversarial, again = (
            attack(model, images, labels, generator=torch.Generator().manual_seed(seed)) for _ in range(2)
        )
    assert torch.equal(adversarial, again)
    assert torch.equal(images, original)
    assert adversarial.shape == images.shape
    assert adversarial.dtype == images.dtype
    assert float((adversarial - images).abs().max()) <= attack.eps + 1e-6
    assert float(adversarial.min()) >= 0
    assert float(adversarial.max()) <= 1
    assert before == fingerprint(model)
    assert flags == [module.training for module in model.modules()]
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())


@given(attacks=st.lists(ATTACKS, max_size=2), split=splits(), seed=SEEDS)
def test_scores_keep_their_order_and_survive_the_disk(attacks, split, seed):
    """Worst case ≤ each attack ≤ clean, the interval holds the share, and what is loaded is what was saved."""
    assume(len({repr(attack) for attack in attacks}) == len(attacks))
    model = network(seed % 5, split.images.shape[2]).eval()
    before = fingerprint(model)
    scores = score(model, split, attacks, seed=seed % 3, progress=False)
    assert fingerprint(model) == before
    for label in scores.attacks:
        assert scores.share("worst case") <= scores.share(label) <= scores.clean_accuracy
    for label in scores.outcomes:
        low, high = scores.interval(label)
        assert 0 <= low <= scores.share(label) <= high <= 1
    with tempfile.TemporaryDirectory() as folder:
        scores.save(folder)
        loaded = Scores.load(folder)
    assert loaded.table().drop(columns="seconds").equals(scores.table().drop(columns="seconds"))
    assert [str(finding) for finding in loaded.findings] == [str(finding) for finding in scores.findings]
    assert all(torch.equal(loaded.outcomes[label], scores.outcomes[label]) for label in scores.outcomes)


@given(split=splits(40), batch=st.integers(-1, 45), seed=SEEDS)
def test_an_epoch_shows_each_picture_once(split, batch, seed):
    if not 1 <= batch <= len(split):
        with pytest.raises(ValueError, match=f"batch_size={batch}: 1 to {len(split)}"):
            split.shuffled(batch, seed)
        return
    order = split.shuffled(batch, seed)
    assert {len(indices) for indices in order} == {batch}
    everything = torch.cat(order)
    assert len(everything) == len(split) // batch * batch == len(everything.unique())
    assert torch.equal(everything, torch.cat(split.shuffled(batch, seed)))
    whole = torch.cat([images for images, _ in split.batches(batch)])
    assert torch.equal((255 * whole).round().to(torch.uint8), split.images)


@given(split=splits(20), seed=SEEDS, count=st.integers(1, 30))
def test_a_shifted_picture_is_a_piece_of_the_padded_one(split, seed, count):
    """Every pixel of an augmented batch is one of its picture, or black; labels stay with their pictures."""
    indices = torch.randint(len(split), (count,), generator=torch.Generator().manual_seed(seed))
    images, labels = split.batch(indices, torch.Generator().manual_seed(seed), augment=True)
    again, _ = split.batch(indices, torch.Generator().manual_seed(seed), augment=True)
    assert torch.equal(images, again)
    assert torch.equal(labels, split.labels[indices])
    assert images.dtype == torch.float32
    for image, index in zip((255 * images).round().to(torch.uint8), indices, strict=True):
        there = set(map(tuple, split.images[index].flatten(1).T.tolist())) | {(0, 0, 0)}
        assert set(map(tuple, image.flatten(1).T.tolist())) <= there


SETTINGS = {
    "epochs": st.integers(1, 300),
    "batch_size": st.integers(1, 512),
    "learning_rate": st.floats(1e-6, 1e3),
    "schedule": st.sampled_from(SCHEDULES),
    "warm_up": st.floats(0, 0.99),
    "momentum": st.floats(0, 0.999),
    "weight_decay": st.floats(0, 1),
    "ema": st.floats(0, 0.9999),
    "label_smoothing": st.floats(0, 0.99),
    "clip_gradient": st.one_of(st.none(), st.floats(1e-3, 1e3)),
    "augment": st.booleans(),
    "seed": st.integers(0, 2**31),
    "defence": st.one_of(
        st.builds(Standard),
        st.builds(Adversarial, st.builds(PGD, eps=st.floats(1e-3, 1), steps=st.integers(1, 9))),
        st.builds(Free, replays=st.integers(1, 5)),
        st.builds(Guided),
        st.builds(NFGSM),
    ),
}
WRONG = st.sampled_from([-1, 0.5, math.nan, math.inf, -math.inf, "much", None, [], True, 2**70, 1e300, b"1", {}])


OTHERS = st.fixed_dictionaries({}, optional={name: SETTINGS[name] for name in SETTINGS if name != "epochs"})


@given(epochs=SETTINGS["epochs"], others=OTHERS, progress=st.floats(0, 1))
def test_every_recipe_can_be_written_down(epochs, others, progress):
    recipe = Recipe(epochs=epochs, **others)
    rate = recipe.learning_rate_at(progress)
    assert 0 <= rate <= recipe.learning_rate * (1 + 1e-9)
    written = json.loads(json.dumps(as_dict(recipe)))
    assert written.keys() == {"kind", *(field.name for field in fields(recipe))}
    assert written == json.loads(json.dumps(as_dict(replace(recipe))))
    other = replace(recipe, epochs=recipe.epochs + 1)
    assert as_dict(other) != as_dict(recipe)


@given(name=st.sampled_from(sorted(SETTINGS)), value=WRONG)
def test_a_wrong_setting_is_named_with_its_value(name, value):
    """Either it is a setting that can be, or the error names it and what it was."""
    try:
        recipe = Recipe(**({"epochs": 1} | {name: value}))
    except ValueError as error:
        said = str(error)
    else:
        assert 0 <= recipe.learning_rate_at(0.5) < math.inf
        json.dumps(as_dict(recipe))
        return
    assert f"Recipe: {name}={value!r}; " in said
    assert "is needed" in said


PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
    max_leaves=12,
)


@given(value=st.dictionaries(st.text(), PLAIN, max_size=5), place=st.floats(0, 1), byte=st.integers(0, 255))
def test_a_json_is_what_was_written_or_damaged(value, place, byte):
    value.pop("sha256", None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.json"
        write_json(path, value)
        assert read_json(path) == value
        content = bytearray(path.read_bytes())
        content[int(place * (len(content) - 1))] = byte
        path.write_bytes(content)
        try:
            there = read_json(path)
        except Damaged:
            return
        assert {key: there.get(key) for key in value} == value  # at most the checksum's own name has changed


@given(seed=SEEDS, place=st.floats(0, 1), bit=st.integers(0, 7))
def test_weights_are_what_was_written_or_refused(seed, place, bit):
    """One bit of the file flips: it cannot be loaded, or the fingerprint tells, or the weights are the same."""
    model = build("shallow_cnn", 10, seed=0)
    before = fingerprint(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        save_weights(model, path)
        content = bytearray(path.read_bytes())
        position = int(place * (len(content) - 1)) if seed % 2 else seed % 3000
        content[position] ^= 1 << bit
        path.write_bytes(content)
        try:
            load_weights(model, path)
        except (SafetensorError, RuntimeError):  # RunFolder makes one error of both
            return
        header = int.from_bytes(content[:8], "little")
        assert fingerprint(model) != before or position < 8 + header


@given(n=st.integers(1, 10**6), share=st.floats(0, 1))
def test_the_interval_of_a_share_holds_it_and_shrinks(n, share):
    correct = round(share * n)
    low, high = wilson(correct, n)
    assert 0 <= low <= correct / n <= high <= 1
    wider = wilson(correct, n, confidence=0.997)
    assert wider[0] <= low
    assert high <= wider[1]
    mirrored = wilson(n - correct, n)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-9)
