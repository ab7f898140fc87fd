"""Near twins and shared classes: what counts as one, and what does not."""

import pytest
import torch
from small import Blobs

from evaluation import duplicates
from evaluation.flaws.protocols import changed
from loaders import Split


@pytest.mark.parametrize("larger", [1, 2])
def test_near_twins_are_found(larger):
    tested, other = Blobs().split(100, 0, "test"), Blobs().split(300, 1, "train")
    assert duplicates.near_leak(tested, other) is None
    assert duplicates.near_leak(tested, other, changed(tested.first(2), larger)) is None  # 2 % are not over 2 %
    found = duplicates.near_leak(tested, other, changed(tested.first(3), larger))
    assert (found.check, found.severity, found.measured) == ("near leak", "suspect", 0.03)


def test_a_mirrored_twin_is_one_and_a_grey_picture_may_be_asked():
    tested = Blobs().split(50, 0, "test")
    mirrored = Split(tested.images.flip(3), tested.labels, tested.classes, "mirrored")
    assert duplicates.near_leak(tested, mirrored).measured == 1
    grey = Split(tested.images[:, :1], tested.labels, tested.classes, "grey")
    assert duplicates.near_leak(grey, grey).measured == 1


def test_drawn_pictures_have_no_near_twins(shapes):
    assert duplicates.near_leak(shapes.test, shapes.train) is None


def test_one_colour_is_no_twin_of_another():
    plain = (
        torch.full((4, 3, 8, 8), 7, dtype=torch.uint8) * torch.arange(4, dtype=torch.uint8)[:, None, None, None]
    )
    split = Split(plain, torch.zeros(4, dtype=torch.int64), ["a"], "plain")
    assert duplicates.near_leak(split, split) is None  # nothing in them can be compared


def test_classes_are_compared_by_name():
    target = [f"class {number}" for number in range(10)]
    assert duplicates.shared_classes(["a", "b", "CLASS_1"], target) is None  # a tenth is not over a tenth
    found = duplicates.shared_classes(["class-2", "b", "CLASS_1"], target)
    assert (found.severity, found.measured) == ("suspect", 0.2)
    assert "class 1, class 2" in found.message
