"""Shapes: the same pictures everywhere, balanced, and with the contrast that makes them learnable."""

import hashlib
import time

import numpy as np
import pytest
from safetensors.torch import load_file

from loaders import drawn_shapes

# Of draw(200, K, seed=0): the sum of all bytes, a weighted sum of the labels, every 25,117th byte. Platforms may
# round a sine differently, so bytes may be one off.
PINNED = {
    10: (
        77919227,
        88335,
        "151 94 169 43 61 77 189 146 60 101 212 217 191 210 225 22 99 53 134 176 159 140 47 105 103",
    ),
    100: (77564687, 981763, "227 105 48 42 215 8 32 62 96 11 177 102 55 154 58 89 33 213 188 188 94 35 203 87 52"),
}


@pytest.mark.parametrize("classes", [10, 100])
def test_same_seed_gives_the_same_bytes(classes):
    first, again, other = (drawn_shapes.draw(200, classes, seed) for seed in (0, 0, 1))
    digest = [hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() for images, labels in (first, again)]
    assert digest[0] == digest[1]
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("classes", [10, 100])
def test_pictures_are_those_of_this_version(classes):
    images, labels = drawn_shapes.draw(200, classes, seed=0)
    total, label_sum, sample = PINNED[classes]
    assert abs(int(images.sum(dtype=np.int64)) - total) <= 2000
    assert int((labels * (np.arange(200) + 1)).sum()) == label_sum
    assert np.abs(images.reshape(-1)[::25117].astype(int) - np.array(sample.split(), dtype=int)).max() <= 1


@pytest.mark.parametrize("classes", [10, 100])
def test_form_and_balance(classes):
    images, labels = drawn_shapes.draw(1000, classes, seed=3)
    assert images.shape == (1000, 3, 32, 32)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert (np.bincount(labels, minlength=classes) == 1000 // classes).all()
    assert len(drawn_shapes.class_names(classes)) == classes
    assert len(set(drawn_shapes.class_names(classes))) == classes


def test_the_shape_stands_out_from_its_background():
    # The centre of a plain disc against the corners: at least 0.4 in some channel (0.5 less noise).
    images, labels = drawn_shapes.draw(2000, 100, seed=0)
    discs = images[labels == drawn_shapes.class_names(100).index("plain disc")].astype(float) / 255
    assert len(discs) == 20
    centre = discs[:, :, 14:18, 14:18].mean((2, 3))
    corners = discs[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (np.abs(centre[:, :, None] - corners).min(2).max(1) > 0.4).all()


def test_refuses_other_numbers_of_classes():
    with pytest.raises(ValueError, match="num_classes=7"):
        drawn_shapes.draw(10, 7)


def test_drawing_is_quick():
    # The promise is 3 s for 12,000 pictures; ten times that would be a mistake in the code, not a busy machine.
    from loaders import drawn_shapes

    begun = time.perf_counter()
    drawn_shapes.draw(1200, 10, seed=9)
    assert time.perf_counter() - begun < 3


def test_shapes_are_drawn_balanced(session, shapes):
    whole = load_file(session.data / "shapes10.safetensors")
    assert whole["train_labels"].bincount().tolist() == [1000] * 10
    assert whole["test_labels"].bincount().tolist() == [200] * 10
