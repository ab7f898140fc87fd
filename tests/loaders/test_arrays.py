"""One's own arrays become data, or are refused with what to do."""

import json

import numpy as np
import pytest
import torch
from small import generator

import loaders
from loaders import DataError
from loaders.arrays import as_pictures

GREY = torch.randint(256, (60, 12, 10), generator=generator(), dtype=torch.uint8)
RGB = torch.randint(256, (60, 3, 12, 10), generator=generator(), dtype=torch.uint8)
LABELS = np.arange(60) % 3


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (RGB, RGB),
        (RGB.numpy(), RGB),
        (RGB.permute(0, 2, 3, 1).numpy(), RGB),
        (RGB / 255, RGB),
        ((RGB.double() / 255).numpy(), RGB),
        (RGB.half() / 255, RGB),
        (GREY, GREY[:, None]),
        (GREY[..., None], GREY[:, None]),
        (list(GREY.numpy()), GREY[:, None]),
        ((RGB / 255).requires_grad_(), RGB),
        (RGB.flip(3).numpy()[..., ::-1], RGB),
        (np.asfortranarray(RGB.numpy()), RGB),
        ((RGB.double() / 255).numpy().astype(">f4"), RGB),
        (np.frombuffer(RGB.numpy().tobytes(), np.uint8).reshape(RGB.shape), RGB),
    ],
    ids=[
        *("uint8", "numpy", "NHWC", "floats", "float64", "float16", "NHW", "NHW1", "a list", "with gradient"),
        *("negative strides", "by columns", "big-endian", "read only"),
    ],
)
def test_every_usual_form_of_pictures_gives_the_same(given, meant):
    assert torch.equal(as_pictures(given, "x"), meant)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ((RGB / 255 - 0.5) / 0.25, "from -2 to 2.*normalised"),
        (RGB.float(), "divide them by 255"),
        (torch.full((4, 3, 8, 8), float("nan")), "NaN"),
        (RGB / 255 / 255, "divided by 255 twice"),
        ((RGB / 255).to(torch.uint8), "cut from floats"),
        (RGB.long(), "uint8"),
        (RGB[:, :2], "1 or 3 channels"),
        (RGB[..., :3], "two axes may be the channels"),
        (GREY.reshape(60, -1), "flat rows"),
        ([np.zeros((3, 8, 8)), np.zeros((3, 9, 8))], "one size"),
    ],
    ids=["normalised", "0 to 255", "NaN", "twice", "cut", "int64", "2 channels", "ambiguous", "flat", "sizes"],
)
def test_pictures_that_are_not_what_they_seem_are_refused(images, message):
    with pytest.raises(DataError, match=f"mine train.*{message}"):
        loaders.from_arrays(images, LABELS[: len(images)], name="mine", device="cpu")


def test_splits_are_disjoint_whole_and_hold_every_class():
    data = loaders.from_arrays(RGB, LABELS, validation=0.25, test=0.2, device="cpu")
    parts = data.train, data.val, data.test
    assert [len(part) for part in parts] == [36, 12, 12]
    seen = {
        image.numpy().tobytes(): int(label)
        for part in parts
        for image, label in zip(part.images, part.labels, strict=True)
    }
    assert seen == {image.numpy().tobytes(): label for image, label in zip(RGB, LABELS.tolist(), strict=True)}
    assert all(part.labels.bincount().tolist() == [len(part) // 3] * 3 for part in parts)
    again, other = (loaders.from_arrays(RGB, LABELS, seed=seed, device="cpu") for seed in (0, 1))
    assert torch.equal(data.test.first(6).labels, data.test.labels[:6])
    assert again.provenance["sha256"] == other.provenance["sha256"] == data.provenance["sha256"]
    assert not torch.equal(again.test.images, other.test.images)


def test_parts_of_ones_own_are_kept_apart():
    data = loaders.from_arrays(
        RGB[:30], LABELS[:30], validation=(RGB[30:40], LABELS[30:40]), test=(RGB[40:], LABELS[40:]), device="cpu"
    )
    assert [len(part) for part in (data.train, data.val, data.test)] == [30, 10, 20]
    assert {image.numpy().tobytes() for image in data.test.images} == {x.numpy().tobytes() for x in RGB[40:]}


def test_parts_of_different_sizes_are_refused():
    with pytest.raises(DataError, match=r"'train': \(3, 12, 10\), 'test': \(1, 12, 10\)"):
        loaders.from_arrays(RGB, LABELS, test=(GREY, LABELS), device="cpu")


@pytest.mark.parametrize(
    ("labels", "classes", "names", "numbers"),
    [
        (LABELS, None, ["0", "1", "2"], LABELS),
        (LABELS + 1, ["a", "b", "c"], ["a", "b", "c"], LABELS),
        (torch.from_numpy(10 * LABELS - 7), None, ["-7", "3", "13"], LABELS),
        (LABELS[:, None].astype(np.uint8), ["a", "b", "c"], ["a", "b", "c"], LABELS),
        (np.array(["ant", "bee", "cat"])[LABELS], None, ["ant", "bee", "cat"], LABELS),
        (np.array(["ant", "bee", "cat"])[LABELS], ["cat", "bee", "ant"], ["cat", "bee", "ant"], 2 - LABELS),
        (LABELS > 0, ["no", "yes"], ["no", "yes"], np.minimum(LABELS, 1)),
    ],
    ids=["numbers", "from one", "any numbers", "a column", "words", "words in order", "booleans"],
)
def test_labels_of_any_kind_mean_their_class(labels, classes, names, numbers):
    data = loaders.from_arrays(RGB, labels, classes, device="cpu")
    assert data.classes == names
    known = {image.numpy().tobytes(): number for image, number in zip(RGB, numbers.tolist(), strict=True)}
    for part in (data.train, data.val, data.test):
        assert [known[image.numpy().tobytes()] for image in part.images] == part.labels.tolist()


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (np.eye(3)[LABELS], None, r"argmax\(1\)"),
        (LABELS.astype(float), None, r"astype\(int\)"),
        (LABELS[:50], None, "60 pictures and 50 labels"),
        (LABELS, ["a", "b"], "do not fit together"),
        (LABELS * 0, None, "only class is '0'"),
        (np.arange(60) // 2, None, "no training picture of '0', '1', '2', '3', '4' and 25 more"),
        (LABELS, ["a", "b", "c", "d"], "no training picture of 'd'"),
        (np.array(["ant", "bee", "cat"])[LABELS], ["ant", "bee"], "do not fit together"),
    ],
    ids=["one-hot", "floats", "too few", "too few names", "one class", "two of each", "an empty class", "unknown"],
)
def test_labels_that_cannot_be_are_refused(labels, classes, message):
    with pytest.raises(DataError, match=message):
        loaders.from_arrays(RGB, labels, classes, device="cpu")


@pytest.mark.parametrize("share", [0, 1, 1.5, "all"])
def test_shares_that_cannot_be_are_named(share):
    with pytest.raises(ValueError, match=f"test={share!r}: a share"):
        loaders.from_arrays(RGB, LABELS, test=share, device="cpu")


@pytest.mark.parametrize("kind", ["u1", "i1", ">i2", ">u4", ">i8", "u8"])
def test_labels_of_any_whole_numbers(kind):
    """Also where the splits have labels of unlike kinds, of which numpy would make floats."""
    plain = loaders.from_arrays(RGB, LABELS, list("abc"), test=(RGB[:3], LABELS[:3]), device="cpu")
    other = loaders.from_arrays(RGB, LABELS.astype(kind), list("abc"), test=(RGB[:3], LABELS[:3]), device="cpu")
    assert (other.classes, other.provenance) == (plain.classes, plain.provenance)
    assert loaders.from_arrays(RGB, LABELS.astype(kind), device="cpu").classes == ["0", "1", "2"]


def test_words_of_bytes_are_words():
    words = np.array([b"ant", b"bee", b"cat"])[LABELS]
    assert loaders.from_arrays(RGB, words, device="cpu").classes == ["ant", "bee", "cat"]


def test_a_class_is_named_once():
    with pytest.raises(DataError, match="classes= has 'a' more than once"):
        loaders.from_arrays(RGB, LABELS, ["a", "b", "a"], device="cpu")


def test_numbers_of_numpy_are_numbers():
    some = {"validation": np.float32(0.25), "test": np.float64(0.2), "seed": np.int64(3), "device": "cpu"}
    found = loaders.from_arrays(RGB, LABELS, **some)
    assert found.provenance == loaders.from_arrays(RGB, LABELS, validation=0.25, test=0.2, seed=3).provenance
    json.dumps(found.provenance)


def test_test_pictures_among_the_others_are_said_once(caplog):
    twice = loaders.from_arrays(torch.cat([RGB, RGB[:30]]), np.concatenate([LABELS, LABELS[:30]]), device="cpu")
    seen = torch.cat([twice.train.images, twice.val.images])
    again = sum(any(torch.equal(one, other) for other in seen) for one in twice.test.images)
    assert again
    (said,) = [record.getMessage() for record in caplog.records]
    assert f"({again} of {len(twice.test)})" in said
    twice.to("cpu").warn_of_leak()
    assert len(caplog.records) == 1
    loaders.from_arrays(RGB, LABELS, device="cpu")
    assert len(caplog.records) == 1
