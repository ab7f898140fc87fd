"""Pictures that stay on the disk give what those in memory give, and are there before they are asked for."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from small import small_network

import loaders
from loaders import DataError, mapped
from loaders.mapped import Mapped, Rows
from trainer import Recipe, train

IMAGES = torch.randint(256, (50, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LABELS = torch.arange(50) % 4


def make(lazy, monkeypatch):
    """Data in memory or, as if it did not fit there, of Rows."""
    monkeypatch.setattr(mapped, "SHARE", 0 if lazy else 1)
    return loaders.from_arrays(IMAGES, LABELS, device="cpu")


@pytest.fixture
def both(monkeypatch):
    plain, lazy = (make(kind, monkeypatch).train for kind in (False, True))
    assert (type(plain), type(lazy)) == (loaders.Split, Mapped)
    return plain, lazy


def equal(one, two):
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("mirror", [True, False])
def test_all_that_a_split_gives_is_the_same(both, mirror):
    plain, lazy = both
    plain.mirror = lazy.mirror = mirror
    assert lazy.checksum == plain.checksum
    some = torch.tensor([5, 3, 30])
    for augment in (False, True):
        generators = [torch.Generator().manual_seed(1) for _ in both]
        found = [split.batch(some, g, augment) for split, g in zip(both, generators, strict=True)]
        assert equal(*found)
        assert found[1][0].is_contiguous(memory_format=torch.channels_last)
    for kind in (lambda s: s.first(7), lambda s: s.last(7), lambda s: s.to("cpu"), pickle.loads):
        one, two = (kind(pickle.dumps(s) if kind is pickle.loads else s) for s in both)
        assert torch.equal(one.images, two.images)
        assert one.mirror == two.mirror == mirror
        assert all(equal(a, b) for a, b in zip(one.batches(3), two.batches(3), strict=True))


def test_the_next_batch_of_an_epoch_is_fetched_ahead(both, monkeypatch):
    plain, lazy = both
    orders = [split.shuffled(6, seed=2) for split in both]
    fetched = []
    real = lazy._fetch
    monkeypatch.setattr(lazy, "_fetch", lambda indices: fetched.append(len(indices)) or real(indices))
    for number, (one, two) in enumerate(zip(*orders, strict=True), 1):
        for part in (slice(None), slice(None)):  # as a defence that shows a batch twice
            assert equal(plain.batch(one[part]), lazy.batch(two[part]))
        assert sum(fetched) <= 6 * (number + 1)
    part = slice(2, 4)  # as one of several processes
    order = lazy.shuffled(6, seed=3)
    assert torch.equal(lazy.batch(order[1][part])[0], lazy.batch(order[1][part].clone())[0])


def test_a_training_ends_in_the_same_weights(tmp_path, monkeypatch):
    ends = []
    for lazy in (False, True):
        recipe = Recipe(epochs=2, batch_size=8, validation_images=4, precision="float32")
        run = train(small_network(), make(lazy, monkeypatch), recipe, tmp_path / str(lazy), progress=False)
        ends.append(run.model.state_dict())
    assert equal(*(weights.values() for weights in ends))


def test_what_makes_no_split_is_refused():
    with pytest.raises(DataError, match="49 pictures and 50 labels"):
        Mapped(Rows(IMAGES)[1:], LABELS, list("abcd"), "few")


def test_pictures_of_a_folder_stay_in_its_file(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(mapped, "SHARE", 0)
    for number in range(12):
        file = tmp_path / "set" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 9), number, np.uint8)).save(file)
    data = loaders.from_folder(tmp_path / "set", size=8, device="cpu")
    assert len({split.rows.tensor.data_ptr() for split in (data.train, data.val, data.test)}) == 1
    shown = [int(image[0, 0, 0]) for split in (data.train, data.val, data.test) for image in split.images]
    assert sorted(shown) == list(range(12))
