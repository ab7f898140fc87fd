"""The file that a data set becomes: made once, judged at every reading."""

import json
import os

import pytest
from safetensors.torch import load_file, save_file

import loaders
from loaders import DataError
from loaders import drawn_shapes as drawing


def left_in(folder):
    """What lies in a folder, but for the locks, which stay."""
    return [path.name for path in folder.iterdir() if path.suffix != ".lock"]


@pytest.fixture
def cache(session, shapes, tmp_path):
    """A copy of the cache of shapes10, small: its path, its tensors, its metadata."""
    whole = load_file(session.data / "shapes10.safetensors")
    tensors = {name: value[:40].clone() for name, value in whole.items()}
    metadata = {"name": "shapes10", "classes": json.dumps(drawing.class_names(10)), "version": drawing.VERSION}
    return tmp_path / "shapes10.safetensors", tensors, metadata


def test_a_cache_of_another_version_of_the_drawing_is_drawn_anew(cache):
    path, tensors, metadata = cache
    for version in ({}, {"version": "0"}):
        save_file(tensors, path, metadata={k: v for k, v in metadata.items() if k != "version"} | version)
        assert len(loaders.load("shapes10", path.parent)[0]["train_labels"]) == 10_000


FAULTS = {
    "another's name": (lambda t, m: m.update(name="shapes100"), "holds shapes100 with 10 classes, not shapes10"),
    "other classes": (lambda t, m: m.update(classes='["a"]'), "with 1 classes"),
    "no classes": (lambda t, m: m.pop("classes"), "does not name its classes"),
    "no test pictures": (lambda t, m: t.pop("test_images"), "no test pictures"),
    "float pictures": (lambda t, m: t.update(train_images=t["train_images"].float()), "not uint8"),
    "other size": (
        lambda t, m: t.update(train_images=t["train_images"][:, :, :8].clone()),
        "not uint8 \\(N, 3, 32",
    ),
    "too few labels": (lambda t, m: t.update(test_labels=t["test_labels"][:7].clone()), "for 40 images"),
    "label too large": (lambda t, m: t.update(test_labels=t["test_labels"] + 5), "test labels from"),
    "negative label": (lambda t, m: t.update(test_labels=t["test_labels"] - 5), "test labels from -"),
    "empty": (lambda t, m: t.update({k: v[:0].clone() for k, v in t.items()}), "labels"),
    "changed bytes": (lambda t, m: m.update(sha256="0" * 64), "checksum differs"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_cache_is_refused(cache, fault):
    path, tensors, metadata = cache
    change, message = FAULTS[fault]
    change(tensors, metadata)
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(DataError, match=message) as caught:
        loaders.load("shapes10", path.parent)
    assert str(path) in str(caught.value)
    assert "Delete the file" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"<html>", b"\xff" * 64, b"\x10" + b"\0" * 7 + b"{}"])
def test_a_file_of_another_kind_is_refused(cache, content):
    cache[0].write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        loaders.load("shapes10", cache[0].parent)


def test_a_cut_cache_is_refused(cache):
    path, tensors, metadata = cache
    save_file(tensors, path, metadata=metadata)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be read"):
        loaders.load("shapes10", path.parent)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"No space left on device(.|\n)*shapes10\.safetensors"):
        loaders.load("shapes10", tmp_path)
    assert left_in(tmp_path) == []
