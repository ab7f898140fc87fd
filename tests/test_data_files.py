"""Data on disk: made once, judged at every reading; fetched from a local server in place of the authors'."""

import functools
import hashlib
import http.server
import io
import json
import os
import pickle
import tarfile
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision import datasets as published

import data_files
import shapes as drawing
from data_files import CIFAR10_CLASSES, DataError


def left_in(folder):
    """What lies in a folder, but for the locks, which stay."""
    return [path.name for path in folder.iterdir() if path.suffix != ".lock"]


def pickled_batches(classes):
    """Files like those of CIFAR, with six pictures each: {name: content}."""
    rng = np.random.default_rng(0)
    names = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
    files = {
        name: pickle.dumps({"data": rng.integers(0, 256, (6, 3072), dtype=np.uint8), "labels": [0, 1, 2, 3, 4, 5]})
        for name in names
    }
    return files | {"batches.meta": pickle.dumps({"label_names": classes})}


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A small CIFAR-10 on a local server, known to torchvision by its own checksums; yields its folder."""
    root = tmp_path / "server"
    root.mkdir()
    files = pickled_batches(CIFAR10_CLASSES)
    archive = root / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=root)
    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=http_server.serve_forever, daemon=True).start()
    kind = published.CIFAR10
    monkeypatch.setattr(kind, "url", f"http://127.0.0.1:{http_server.server_port}/{archive.name}")
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(kind, "train_list", [[f"data_batch_{k}", md5[f"data_batch_{k}"]] for k in range(1, 6)])
    monkeypatch.setattr(kind, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5["batches.meta"]})
    yield root
    http_server.shutdown()
    http_server.server_close()


def test_cifar_is_fetched_once_and_leaves_one_file(server, tmp_path):
    folder = tmp_path / "my data é"
    arrays, classes, checksum = data_files.load("cifar10", folder)
    assert left_in(folder) == ["cifar10.safetensors"]
    assert classes == CIFAR10_CLASSES
    assert arrays["train_images"].shape == (30, 3, 32, 32)
    first = pickle.loads(pickled_batches(CIFAR10_CLASSES)["data_batch_1"])["data"][0]
    assert torch.equal(arrays["train_images"][0], torch.from_numpy(first).view(3, 32, 32))
    assert arrays["test_labels"].tolist() == [0, 1, 2, 3, 4, 5]
    (server / "cifar-10-python.tar.gz").unlink()
    assert data_files.load("cifar10", folder)[2] == checksum


def test_a_folder_or_archive_that_is_there_is_used(server, tmp_path):
    archive = (server / "cifar-10-python.tar.gz").read_bytes()
    (server / "cifar-10-python.tar.gz").unlink()  # nothing can be fetched
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "cifar-10-python.tar.gz").write_bytes(archive)
    from_archive = data_files.load("cifar10", folder)[2]
    (folder / "cifar10.safetensors").unlink()
    (folder / "cifar-10-python.tar.gz").unlink()
    unpacked = folder / "cifar-10-batches-py"
    unpacked.mkdir()
    for name, content in pickled_batches(CIFAR10_CLASSES).items():
        (unpacked / name).write_bytes(content)
    assert data_files.load("cifar10", folder)[2] == from_archive


def test_a_damaged_or_missing_file_of_the_folder_is_named(server, tmp_path):
    unpacked = tmp_path / "cifar-10-batches-py"
    unpacked.mkdir()
    for name, content in pickled_batches(CIFAR10_CLASSES).items():
        (unpacked / name).write_bytes(content)
    (unpacked / "data_batch_3").write_bytes(b"cut")
    with pytest.raises(DataError, match=r"data_batch_3 is damaged .*Delete"):
        data_files.load("cifar10", tmp_path)
    (unpacked / "data_batch_3").unlink()
    with pytest.raises(DataError, match="data_batch_3 is missing"):
        data_files.load("cifar10", tmp_path)


@pytest.mark.parametrize("fault", ["gone", "cut", "page instead"])
def test_a_failed_download_leaves_nothing_and_says_what_to_do(server, tmp_path, fault):
    archive = server / "cifar-10-python.tar.gz"
    content = archive.read_bytes()
    archive.unlink()
    if fault == "cut":
        archive.write_bytes(content[: len(content) // 2])
    elif fault == "page instead":
        archive.write_bytes(b"<html>log in first</html>")
    folder = tmp_path / "data"
    with pytest.raises(DataError, match=r"could not be fetched(.|\n)*Nothing was left(.|\n)*data=\"shapes\""):
        data_files.load("cifar10", folder)
    assert left_in(folder) == []


def test_a_damaged_archive_is_named_and_kept(server, tmp_path):
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(b"half")
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz is damaged or cut off"):
        data_files.load("cifar10", tmp_path)
    assert archive.read_bytes() == b"half"


# --- the cache file --------------------------------------------------------------------------------


@pytest.fixture
def cache(session, shapes, tmp_path):
    """A copy of the cache of shapes10, small: its path, its tensors, its metadata."""
    whole = load_file(session.data / "shapes10.safetensors")
    tensors = {name: value[:40].clone() for name, value in whole.items()}
    metadata = {"name": "shapes10", "classes": json.dumps(list("abcdefghij")), "version": drawing.VERSION}
    return tmp_path / "shapes10.safetensors", tensors, metadata


def test_a_cache_of_another_version_of_the_drawing_is_drawn_anew(cache):
    path, tensors, metadata = cache
    for version in ({}, {"version": "0"}):
        save_file(tensors, path, metadata={k: v for k, v in metadata.items() if k != "version"} | version)
        assert len(data_files.load("shapes10", path.parent)[0]["train_labels"]) == 10_000


def test_shapes_are_drawn_balanced(session, shapes):
    whole = load_file(session.data / "shapes10.safetensors")
    assert whole["train_labels"].bincount().tolist() == [1000] * 10
    assert whole["test_labels"].bincount().tolist() == [200] * 10


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
        data_files.load("shapes10", path.parent)
    assert str(path) in str(caught.value)
    assert "Delete the file" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"<html>", b"\xff" * 64, b"\x10" + b"\0" * 7 + b"{}"])
def test_a_file_of_another_kind_is_refused(cache, content):
    cache[0].write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        data_files.load("shapes10", cache[0].parent)


def test_a_cut_cache_is_refused(cache):
    path, tensors, metadata = cache
    save_file(tensors, path, metadata=metadata)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be read"):
        data_files.load("shapes10", path.parent)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"No space left on device(.|\n)*shapes10\.safetensors"):
        data_files.load("shapes10", tmp_path)
    assert left_in(tmp_path) == []
