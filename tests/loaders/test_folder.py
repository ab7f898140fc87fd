"""A folder of pictures becomes data: read once, read again when it changes, refused by the names of its files."""

import numpy as np
import pytest
import torch
from PIL import Image

import loaders
from loaders import DataError, cache, folder


def fill(root, count=6, classes=("ant", "bee"), mode="RGB", size=(20, 16), ending="png"):
    """Pictures, random but for the seed, in a folder for each class."""
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(root / name / f"{number}.{ending}")
    return root


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_DATA", str(tmp_path / "data"))


@pytest.fixture
def pictures(tmp_path):
    return fill(tmp_path / "my pictures é")


def test_pictures_are_what_their_files_show(pictures):
    data = loaders.from_folder(pictures, size=(16, 20), device="cpu")
    assert (data.name, data.classes) == ("my pictures é", ["ant", "bee"])
    assert [len(split) for split in (data.train, data.val, data.test)] == [8, 2, 2]
    known = {
        np.asarray(Image.open(file)).transpose(2, 0, 1).tobytes(): data.classes.index(file.parent.name)
        for file in pictures.glob("*/*.png")
    }
    for split in (data.train, data.val, data.test):
        assert [known.pop(image.numpy().tobytes()) for image in split.images] == split.labels.tolist()
    assert not known


def test_splits_of_ones_own_are_used(tmp_path):
    for part, count in {"train": 5, "valid": 2, "test": 3}.items():
        fill(tmp_path / "set" / part, count)
    data = loaders.from_folder(tmp_path / "set", device="cpu")
    assert [len(split) for split in (data.train, data.val, data.test)] == [10, 4, 6]
    assert set(data.test.first(4).labels.tolist()) == {0, 1}  # they are shuffled


def test_it_is_read_once_and_again_when_a_file_changes(pictures, monkeypatch):
    read, asked = folder._read, []
    monkeypatch.setattr(folder, "_read", lambda file, *at, **how: asked.append(file) or read(file, *at, **how))
    first = loaders.from_folder(pictures, device="cpu").provenance["sha256"]
    assert loaders.from_folder(pictures, device="cpu").provenance["sha256"] == first
    assert len(asked) == 12
    (pictures / "ant" / "0.png").write_bytes((pictures / "bee" / "0.png").read_bytes())
    assert loaders.from_folder(pictures, device="cpu").provenance["sha256"] != first
    assert len(asked) == 24
    loaders.from_folder(pictures, fit="resize", device="cpu")
    assert len(asked) == 36
    assert len(list((pictures.parent / "data").glob("*.safetensors"))) == 2


def test_a_damaged_cache_is_refused(pictures):
    loaders.from_folder(pictures, device="cpu")
    (path,) = (pictures.parent / "data").glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="checksum differs"):
        loaders.from_folder(pictures, device="cpu")


def test_crop_keeps_the_middle_and_resize_all(tmp_path):
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 255  # the middle third
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(wide).save(tmp_path / "set" / name / f"{number}.png")
    cropped = loaders.from_folder(tmp_path / "set", size=8, device="cpu").train.images
    assert cropped.float().mean() > 240
    stretched = loaders.from_folder(tmp_path / "set", size=8, fit="resize", device="cpu").train.images
    assert stretched.shape[1:] == (3, 8, 8)
    assert 70 < stretched.float().mean() < 100
    assert stretched[..., 0].max() == 0


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("RGB", 3), ("RGBA", 3), ("P", 3), ("LA", 1)])
def test_grey_pictures_have_one_channel(tmp_path, mode, channels):
    assert loaders.from_folder(fill(tmp_path / "x", mode=mode), device="cpu").train.images.shape[1] == channels


def test_one_coloured_picture_among_grey_ones_makes_all_rgb(tmp_path):
    root = fill(tmp_path / "x", mode="L")
    fill(root, count=1)
    assert loaders.from_folder(root, device="cpu").train.images.shape[1] == 3


def test_what_is_no_picture_is_passed_over(pictures):
    fill(pictures / ".ipynb_checkpoints", classes=("x",))
    fill(pictures / "ant", classes=(".thumbnails",))
    (pictures / "ant" / "._0.png").write_bytes(b"junk")
    (pictures / "ant" / "Thumbs.db").write_bytes(b"junk")
    (pictures / "notes.txt").write_text("mine")
    data = loaders.from_folder(pictures, device="cpu")
    assert len(data.train) + len(data.val) + len(data.test) == 12


def test_files_that_cannot_be_read_are_named(pictures):
    whole = (pictures / "bee" / "1.png").read_bytes()
    (pictures / "bee" / "1.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "ant" / "2.jpg").write_bytes(b"<html>")
    with pytest.raises(DataError, match="2 of 13 pictures cannot be read") as caught:
        loaders.from_folder(pictures, device="cpu")
    assert str(pictures / "bee" / "1.png") in str(caught.value)
    assert str(pictures / "ant" / "2.jpg") in str(caught.value)


def _two_parts(root, extra):
    fill(root / "train")
    fill(root / "test", classes=extra)


FAULTS = {
    "no folder": (lambda root: root.rmdir(), "is no folder"),
    "no classes": (lambda root: (root / "1.png").touch(), "holds 0 folders"),
    "one class": (lambda root: fill(root, classes=("ant",)), "holds 1 folders.*two at least"),
    "one folder too high": (lambda root: fill(root / "all"), "holds 1 folders.*is .*all meant"),
    "an empty class": (lambda root: fill(root) and (root / "cat").mkdir(), "cat holds no picture"),
    "too few": (lambda root: fill(root, count=2), "no training picture of 'ant', 'bee'"),
    "another class in test": (lambda root: _two_parts(root, ("ant", "cat")), "has the class 'cat', which"),
    "no classes in test": (lambda root: fill(root / "train") and (root / "test").mkdir(), "test holds no folders"),
    "splits and classes": (lambda root: _two_parts(root, ("ant",)) or fill(root), "not both"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_cannot_be_used_is_told_why(tmp_path, fault):
    make, message = FAULTS[fault]
    (tmp_path / "set").mkdir()
    make(tmp_path / "set")
    with pytest.raises(DataError, match=message) as caught:
        loaders.from_folder(tmp_path / "set", device="cpu")
    assert "set" in str(caught.value)


def test_sixteen_bits_that_hold_eight_are_not_taken_for_black(tmp_path):
    for number in range(6):
        file = tmp_path / "set" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16), 200, np.uint16)).save(file)
    with pytest.raises(DataError, match="all others are black"):
        loaders.from_folder(tmp_path / "set", device="cpu")


@pytest.mark.parametrize("how", [{"size": 7}, {"size": (32,)}, {"size": 32.0}, {"fit": "pad"}], ids=str)
def test_sizes_and_fits_that_cannot_be_are_named(pictures, how):
    with pytest.raises(ValueError, match=next(iter(how))):
        loaders.from_folder(pictures, **how)


def test_a_class_may_be_called_train(tmp_path):
    data = loaders.from_folder(fill(tmp_path / "x", classes=("car", "train", "tram")), device="cpu")
    assert data.classes == ["car", "train", "tram"]


def test_the_test_split_of_a_session_is_the_same_whatever_its_seed(pictures):
    arrays = [loaders.load(f"{loaders.FOLDER}{pictures}", pictures.parent / "data")[0] for _ in range(2)]
    assert torch.equal(arrays[0]["test_images"], arrays[1]["test_images"])
    assert len(arrays[0]["test_labels"]) == 2
    assert cache.checksum(arrays[0]) == cache.checksum(arrays[1])


def test_sizes_of_numpy_are_sizes(pictures):
    plain = loaders.from_folder(pictures, size=16, device="cpu")
    assert loaders.from_folder(pictures, size=np.int64(16), device="cpu").provenance == plain.provenance
    assert loaders.from_folder(pictures, size=[np.int32(16), 8], device="cpu").train.images.shape[2:] == (16, 8)


def test_the_same_file_in_two_splits_is_said(tmp_path, caplog):
    for part in ("train", "test"):
        fill(tmp_path / part)
    loaders.from_folder(tmp_path, device="cpu")
    assert "of the test pictures are in what training or choosing has seen" in caplog.text


@pytest.mark.parametrize(("value", "is_taken"), [(-771, False), (100, False), (70_000, False), (25_700, True)])
def test_whole_numbers_of_32_bits_are_taken_where_they_have_the_range_of_16(value, is_taken):
    picture = Image.fromarray(np.full((4, 4), value, np.int32))
    assert picture.mode == "I"
    if is_taken:
        assert (folder.pixels(picture, True) == 100).all()
    else:
        with pytest.raises(ValueError, match="32 bits"):
            folder.pixels(picture, True)
