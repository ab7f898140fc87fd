"""Splits: pictures and labels that belong together, in batches, shuffled and in order."""

import functools
import pickle

import pytest
import torch

from loaders import Data, DataError, Split
from loaders.mapped import Mapped, Rows

IMAGES, LABELS = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES[:0], LABELS[:0], "0 pictures and 0 labels"),
        (IMAGES, LABELS[:3], "4 pictures and 3 labels"),
        (IMAGES, LABELS.int(), "int64 labels"),
        (IMAGES, LABELS.float(), "int64 labels"),
        (IMAGES, LABELS + 1, "labels from 1 to 4; 0 to 3 is needed"),
        (IMAGES, LABELS - 1, "labels from -1 to 2"),
        (IMAGES[:, :2], LABELS, "uint8 images"),
        (IMAGES[0], LABELS[:3], "uint8 images"),
        (IMAGES / 255, LABELS, "torch.float32"),
        (IMAGES, LABELS[:, None], r"\(4, 1\)"),
    ],
)
def test_a_split_that_cannot_be_is_refused(images, labels, message):
    with pytest.raises(DataError, match=f"few: .*{message}"):
        Split(images, labels, list("abcd"), "few")


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 64), (1, 20, 40)], ids=str)
def test_pictures_of_any_size_and_grey_ones(shape):
    pictures = torch.randint(256, (4, *shape), dtype=torch.uint8)
    split = Split(pictures, LABELS, list("abcd"), "own")
    assert torch.equal(split.batch(torch.tensor([3, 1]))[0], pictures[[3, 1]] / 255)
    assert torch.equal(torch.cat([images for images, _ in split.batches(3)]), pictures / 255)
    shifted, _ = split.batch(LABELS, torch.Generator().manual_seed(0), augment=True)
    assert shifted.shape == pictures.shape


def test_batches_are_pictures_in_0_1(shapes):
    images, labels = shapes.train.batch(torch.tensor([5, 3]))
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal((images * 255).round().byte(), shapes.train.images[[5, 3]])
    assert torch.equal(labels, shapes.train.labels[[5, 3]])


def test_order_of_an_epoch(shapes):
    batches = shapes.train.shuffled(100, seed=1)
    assert [len(batch) for batch in batches] == [100] * (len(shapes.train) // 100)
    assert len(torch.cat(batches).unique()) == 100 * len(batches)
    assert torch.equal(torch.cat(batches), torch.cat(shapes.train.shuffled(100, seed=1)))
    assert not torch.equal(torch.cat(batches), torch.cat(shapes.train.shuffled(100, seed=2)))
    with pytest.raises(ValueError, match="batch_size=100000"):
        shapes.train.shuffled(100_000, seed=0)


def test_all_pictures_in_order(shapes):
    labels = torch.cat([labels for _, labels in shapes.test.batches(64)])
    assert torch.equal(labels, shapes.test.labels)
    assert len(shapes.test.first(10)) == 10


@pytest.mark.parametrize("kind", [Split, lambda images, *others: Mapped(Rows(images), *others)])
def test_what_is_changed_in_place_counts(kind):
    """Checksum and crops are of the pictures and labels as they are now."""
    generator = torch.Generator()
    images = torch.randint(1, 256, (6, 3, 8, 8), generator=generator.manual_seed(0), dtype=torch.uint8)
    split = kind(images.contiguous(memory_format=torch.channels_last), torch.arange(6) % 4, list("abcd"), "few")

    def seen():
        return split.checksum, split.batch(torch.arange(6), generator.manual_seed(1), augment=True)[0]

    first, moved = seen()
    assert seen()[0] == first
    split.labels[0] = 3
    assert (second := seen()[0]) != first
    split.stored.zero_()
    assert seen()[0] not in (first, second)
    assert not seen()[1].any()
    assert moved.any()


def test_what_numpy_changes_counts_too():
    """torch does not know of it; nor where a new tensor lies where an older one was."""
    split = Split(torch.full((6, 3, 8, 8), 9, dtype=torch.uint8), torch.arange(6) % 4, list("abcd"), "few")
    crops = functools.partial(split.batch, torch.arange(6), augment=True)
    first = split.checksum
    assert crops(torch.Generator().manual_seed(0))[0].max() > 0
    split.labels.numpy()[0] = 3
    assert (second := split.checksum) != first
    split.images.numpy()[:] = 0
    assert split.checksum not in (first, second)
    assert crops(torch.Generator().manual_seed(0))[0].max() == 0
    found = set()
    for shift in range(30):  # each tensor is freed before the next one is made
        split.labels = split.labels * 0
        split.labels = (torch.arange(6) + shift) % 4
        found.add(split.checksum)
    assert len(found) == 4


class Dark(Split):
    def batch(self, *arguments, **settings):
        images, labels = super().batch(*arguments, **settings)
        return images / 2, labels


def test_a_part_of_somebodys_own_split_and_a_copy_elsewhere_are_of_its_kind():
    dark = Dark(torch.full((6, 3, 8, 8), 200, dtype=torch.uint8), torch.arange(6) % 4, list("abcd"), "few")
    assert dark.checksum != dark.first(2).checksum
    for split in (dark.to("cpu"), dark.first(2), dark.last(3)):
        assert type(split) is Dark
        assert split.batch(slice(None))[0].max() < 0.4
        assert split.images.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(DataError, match="0 labels"):
        dark.first(0)


class Weighted(Split):
    """Has something of its own for each picture."""

    def batch(self, indices, *rest, **settings):
        images, labels = super().batch(indices, *rest, **settings)
        return images * self.weight[indices].view(-1, 1, 1, 1), labels


class WeightedOnDisk(Mapped):
    def __init__(self, images, *rest):
        super().__init__(Rows(images), *rest)

    def batch(self, indices, *rest, **settings):
        images, labels = super().batch(indices, *rest, **settings)
        return images * self.weight[indices].view(-1, 1, 1, 1), labels


@pytest.mark.parametrize("kind", [Weighted, WeightedOnDisk])
def test_what_a_split_of_ones_own_has_for_each_picture_comes_along(kind):
    split = kind(torch.full((6, 3, 8, 8), 200, dtype=torch.uint8), torch.arange(6) % 4, list("abcd"), "few")
    split.weight = torch.linspace(0, 1, 6)
    for part, places in (
        (split.last(2), slice(4, 6)),
        (split.to("cpu"), slice(None)),
        (split.first(3), slice(0, 3)),
    ):
        assert type(part) is type(split)
        assert torch.equal(part.weight, split.weight[places])
        found = part.batch(torch.arange(len(part)))[0]
        assert torch.equal(found, split.batch(torch.arange(6)[places])[0])
    again = pickle.loads(pickle.dumps(split))
    assert (type(again), again.code) == (type(split), split.code)
    split.weight = split.weight / 2
    assert again.code != split.code
    assert Split(split.images, split.labels, split.classes, "few").code is None


def test_a_leak_that_comes_later_is_warned_of(caplog):
    parts = [
        Split(torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8), torch.arange(40) % 4, list("abcd"), "few")
        for _ in range(3)
    ]
    data = Data("few", *parts, list("abcd"), {})
    for leaks in (0, 1, 1):
        if leaks and not caplog.records:
            data.train.images = torch.cat([data.train.images, data.test.images])
            data.train.labels = torch.cat([data.train.labels, data.test.labels])
        data.warn_of_leak()
        assert len(caplog.records) == leaks
    assert "100.0 % of the test pictures" in caplog.text


def test_a_mirror_that_is_taken_away_later_is_gone():
    images = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    images[..., 16:] = 255  # the right half
    split = Split(images, torch.zeros(1).long(), ["a", "b"], "one")
    crops = [[], []]
    for mirror, found in zip((True, False), crops, strict=True):
        split.mirror = mirror
        for seed in range(30):
            crop = split.batch(torch.arange(1), torch.Generator().manual_seed(seed), augment=True)[0][0, 0]
            found.append(bool(crop[:, 0].any() and not crop[:, -1].any()))
    assert any(crops[0])
    assert not any(crops[1])
