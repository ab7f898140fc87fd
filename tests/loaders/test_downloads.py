"""CIFAR, STL-10 and SVHN: made once, fetched from a local server in place of the authors'."""

import contextlib
import functools
import hashlib
import http.server
import io
import os
import pickle
import tarfile
import threading
import time

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torchvision import datasets as published
from torchvision.transforms import Resize

import loaders
import utils
from loaders import DataError
from loaders.downloads import CIFAR10_CLASSES, STL10_CLASSES
from storage import atomic_files


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


def md5(content):
    return hashlib.md5(content).hexdigest()


@contextlib.contextmanager
def served(root):
    """A local server of this folder; yields its address."""
    root.mkdir(exist_ok=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=root)
    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=http_server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{http_server.server_port}"
    http_server.shutdown()
    http_server.server_close()


def packed(path, folder, files):
    """An archive of these files, {name: content}, in a folder; gives its checksum."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return md5(path.read_bytes())


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A small CIFAR-10 on a local server, known to torchvision by its own checksums; yields its folder."""
    files, kind, root = pickled_batches(CIFAR10_CLASSES), published.CIFAR10, tmp_path / "server"
    with served(root) as url:
        monkeypatch.setattr(kind, "url", f"{url}/{kind.filename}")
        monkeypatch.setattr(kind, "tgz_md5", packed(root / kind.filename, kind.base_folder, files))
        batches = [[name, md5(files[name])] for name in files]
        monkeypatch.setattr(kind, "train_list", batches[:5])
        monkeypatch.setattr(kind, "test_list", batches[5:6])
        monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5(files["batches.meta"])})
        yield root


@pytest.fixture
def stl10(tmp_path, monkeypatch):
    """A small STL-10 on a local server; yields its folder and {part: (pictures (N, 96, 96, 3), labels from 1)}."""
    kind, root, parts, lists, files = published.STL10, tmp_path / "server", {}, {}, {}
    rng = np.random.default_rng(0)
    for part, count in {"train": 20, "test": 10}.items():
        images = rng.integers(0, 256, (count, 96, 96, 3), dtype=np.uint8)
        labels = (1 + np.arange(count) % 10).astype(np.uint8)
        parts[part] = images, labels
        made = {f"{part}_X.bin": images.transpose(0, 3, 2, 1).tobytes(), f"{part}_y.bin": labels.tobytes()}
        lists[part] = [[name, md5(content)] for name, content in made.items()]
        files |= made
    files |= {"unlabeled_X.bin": b"many", "class_names.txt": "\n".join(STL10_CLASSES).encode()}
    with served(root) as url:
        monkeypatch.setattr(kind, "url", f"{url}/{kind.filename}")
        monkeypatch.setattr(kind, "tgz_md5", packed(root / kind.filename, kind.base_folder, files))
        monkeypatch.setattr(kind, "train_list", [*lists["train"], ["unlabeled_X.bin", md5(b"many")]])
        monkeypatch.setattr(kind, "test_list", lists["test"])
        yield root, parts


@pytest.fixture
def svhn(tmp_path, monkeypatch):
    """A small SVHN on a local server, without its `extra`; yields its folder and {part: (pictures, labels)}."""
    root, parts, split_list = tmp_path / "server", {}, dict(published.SVHN.split_list)
    rng = np.random.default_rng(0)
    with served(root) as url:
        for part, count in {"train": 20, "test": 10}.items():
            images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
            labels = (1 + np.arange(count) % 10).astype(np.uint8)  # where 10 stands for the digit 0
            parts[part], file = (images, labels % 10), root / split_list[part][1]
            scipy.io.savemat(file, {"X": images.transpose(1, 2, 3, 0), "y": labels[:, None]})
            split_list[part] = [f"{url}/{file.name}", file.name, md5(file.read_bytes())]
        monkeypatch.setattr(published.SVHN, "split_list", split_list)
        yield root, parts


def test_cifar_is_fetched_once_and_leaves_one_file(server, tmp_path):
    folder = tmp_path / "my data é"
    arrays, classes, checksum = loaders.load("cifar10", folder)
    assert left_in(folder) == ["cifar10.safetensors"]
    assert classes == CIFAR10_CLASSES
    assert arrays["train_images"].shape == (30, 3, 32, 32)
    first = pickle.loads(pickled_batches(CIFAR10_CLASSES)["data_batch_1"])["data"][0]
    assert torch.equal(arrays["train_images"][0], torch.from_numpy(first).view(3, 32, 32))
    assert arrays["test_labels"].tolist() == [0, 1, 2, 3, 4, 5]
    (server / "cifar-10-python.tar.gz").unlink()
    assert loaders.load("cifar10", folder)[2] == checksum


def test_a_folder_or_archive_that_is_there_is_used(server, tmp_path):
    archive = (server / "cifar-10-python.tar.gz").read_bytes()
    (server / "cifar-10-python.tar.gz").unlink()  # nothing can be fetched
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "cifar-10-python.tar.gz").write_bytes(archive)
    from_archive = loaders.load("cifar10", folder)[2]
    (folder / "cifar10.safetensors").unlink()
    (folder / "cifar-10-python.tar.gz").unlink()
    unpacked = folder / "cifar-10-batches-py"
    unpacked.mkdir()
    for name, content in pickled_batches(CIFAR10_CLASSES).items():
        (unpacked / name).write_bytes(content)
    assert loaders.load("cifar10", folder)[2] == from_archive


def test_a_damaged_or_missing_file_of_the_folder_is_named(server, tmp_path):
    unpacked = tmp_path / "cifar-10-batches-py"
    unpacked.mkdir()
    for name, content in pickled_batches(CIFAR10_CLASSES).items():
        (unpacked / name).write_bytes(content)
    (unpacked / "data_batch_3").write_bytes(b"cut")
    with pytest.raises(DataError, match=r"data_batch_3 is damaged .*Delete"):
        loaders.load("cifar10", tmp_path)
    (unpacked / "data_batch_3").unlink()
    with pytest.raises(DataError, match="data_batch_3 is missing"):
        loaders.load("cifar10", tmp_path)


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
        loaders.load("cifar10", folder)
    assert left_in(folder) == []


def test_a_damaged_archive_is_named_and_kept(server, tmp_path):
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(b"half")
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz is damaged or cut off"):
        loaders.load("cifar10", tmp_path)
    assert archive.read_bytes() == b"half"


def by_picture(images, labels):
    """{bytes of a picture (3, H, W): its label}"""
    return {np.asarray(image).tobytes(): int(label) for image, label in zip(images, labels, strict=True)}


def test_stl10_is_resized_as_torchvision_does_and_keeps_its_own_classes(stl10, tmp_path):
    root, parts = stl10
    arrays, classes, checksum = loaders.load("stl10", tmp_path / "data")
    assert left_in(tmp_path / "data") == ["stl10.safetensors"]
    assert classes == STL10_CLASSES != CIFAR10_CLASSES
    for part, (images, labels) in parts.items():
        small = [np.asarray(Resize(32)(Image.fromarray(image))).transpose(2, 0, 1) for image in images]
        assert by_picture(arrays[f"{part}_images"], arrays[f"{part}_labels"]) == by_picture(small, labels - 1)
    (root / published.STL10.filename).unlink()
    assert loaders.load("stl10", tmp_path / "data")[2] == checksum


def test_svhn_is_two_files_and_its_ten_is_a_zero(svhn, tmp_path):
    arrays, classes, _ = loaders.load("svhn", tmp_path / "data")
    assert left_in(tmp_path / "data") == ["svhn.safetensors"]
    assert classes == list("0123456789")
    for part, (images, labels) in svhn[1].items():
        found = by_picture(arrays[f"{part}_images"], arrays[f"{part}_labels"])
        assert found == by_picture(images.transpose(0, 3, 1, 2), labels)
        assert arrays[f"{part}_labels"].tolist() != labels.tolist()  # neighbours are of one house


@pytest.mark.parametrize("name", ["stl10", "svhn"])
def test_a_target_stands_for_cifar10_and_its_sources_are_of_cifar100(name, request, tmp_path, monkeypatch):
    request.getfixturevalue(name)
    monkeypatch.setenv("STUDY_DATA", str(tmp_path / "data"))
    session = utils.start("x", preset="quick", data=name, device="cpu")
    assert session.runs.parent.name == f"quick-{name}"
    assert [session.dataset(asked) for asked in ("cifar10", "cifar100")] == [name, "cifar100"]
    data = utils.load_data(session.dataset("cifar10"), session, train_pictures=1000)
    assert [len(split) for split in (data.train, data.val, data.test)] == [10, 10, 10]
    assert data.provenance["name"] == name
    assert {"stl10": "resized", "svhn": "never mirrored"}[name] in data.provenance["note"]
    assert data.to("cpu").train.first(5).mirror == (name == "stl10")


@pytest.mark.parametrize("name", ["stl10", "svhn"])
def test_a_targets_own_files_are_used_and_damaged_ones_named(name, request, tmp_path):
    root, _ = request.getfixturevalue(name)
    (tmp_path / "data").mkdir()
    for file in root.iterdir():
        (tmp_path / "data" / file.name).write_bytes(file.read_bytes())
        file.unlink()  # nothing can be fetched
    assert len(loaders.load(name, tmp_path / "data")[0]["train_labels"]) == 20
    (tmp_path / "data" / f"{name}.safetensors").unlink()
    file = next(path for path in (tmp_path / "data").iterdir() if path.suffix in (".gz", ".mat"))
    file.write_bytes(b"half")
    with pytest.raises(DataError, match=rf"{file.name} is damaged or cut off .*{name} will be fetched again"):
        loaders.load(name, tmp_path / "data")
    file.unlink()
    with pytest.raises(DataError, match=rf"{name} could not be fetched from http(.|\n)*or put .*{file.name}"):
        loaders.load(name, tmp_path / "data")


class Misbehaving(http.server.BaseHTTPRequestHandler):
    """Serves the real archive in a way of its own."""

    how, content, asked = "", b"", 0

    def do_GET(self):
        type(self).asked += 1
        getattr(self, self.how)()

    def begin(self, code=200, **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def whole(self):
        self.begin(Content_Length=len(self.content))
        self.wfile.write(self.content)

    def is_silent(self):
        time.sleep(5)

    def stalls(self):
        self.begin(Content_Length=len(self.content))
        self.wfile.write(self.content[:1000])
        self.wfile.flush()
        time.sleep(5)

    def cuts(self):
        self.begin(Content_Length=len(self.content))
        self.wfile.write(self.content[:1000])

    def cuts_chunks(self):
        self.protocol_version = "HTTP/1.1"
        self.begin(Transfer_Encoding="chunked")
        self.wfile.write(b"ff\r\nhalf")

    def hangs_up(self):
        self.connection.close()

    def answers_nonsense(self):
        self.wfile.write(b"\0\1\2 what?\r\n\r\n")

    def serves_a_page(self):
        self.begin(Content_Type="text/html")
        self.wfile.write(b"<html>log in first</html>")

    def redirects_to_a_page(self):
        if self.path == "/login":
            self.serves_a_page()
        else:
            self.begin(302, Location="/login")

    def redirects_for_ever(self):
        self.begin(302, Location=self.path + "x")

    def redirects_into_the_disk(self):
        self.begin(302, Location="file:///etc/passwd")

    def is_forbidden(self):
        self.begin(403)

    def is_out_of_order(self):
        self.begin(503)

    def is_too_much(self):
        self.begin(429, Retry_After=99999)

    def sends_another_archive(self):
        self.begin()
        self.wfile.write(self.content[::-1])

    def log_message(self, *_):
        pass


WAYS = [name for name in vars(Misbehaving) if not name.startswith("_") and callable(vars(Misbehaving)[name])]


WAYS = [name for name in WAYS if name not in ("do_GET", "begin", "whole", "log_message")]


@pytest.fixture
def misbehaving(server, monkeypatch):
    """The server in a way that is still to be chosen; what it has asked for is counted."""

    class Handler(Misbehaving):
        content = (server / "cifar-10-python.tar.gz").read_bytes()

    monkeypatch.setattr(atomic_files, "SILENCE", 1)
    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http_server.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://127.0.0.1:{http_server.server_port}/cifar-10-python.tar.gz"
    monkeypatch.setattr(published.CIFAR10, "url", url)
    yield Handler
    http_server.shutdown()
    http_server.server_close()


@pytest.mark.parametrize("how", WAYS)
def test_a_server_that_misbehaves_is_named_and_the_next_try_works(misbehaving, tmp_path, how):
    misbehaving.how = how
    begun = time.monotonic()
    with pytest.raises(DataError, match=r"could not be fetched from http://127(.|\n)*Nothing was left behind"):
        loaders.load("cifar10", tmp_path / "data")
    assert time.monotonic() - begun < 5
    assert left_in(tmp_path / "data") == []
    misbehaving.how = "whole"
    assert len(loaders.load("cifar10", tmp_path / "data")[0]["train_labels"]) == 30


def test_four_at_once_fetch_once(misbehaving, tmp_path):
    misbehaving.how = "whole"
    alone = loaders.load("cifar10", tmp_path / "alone")[2]
    once, results = misbehaving.asked, []

    def fetch():
        results.append(loaders.load("cifar10", tmp_path / "data")[2])

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [alone] * 4
    assert misbehaving.asked == 2 * once


def test_what_a_killed_download_left_is_cleared(misbehaving, tmp_path):
    misbehaving.how = "whole"
    (tmp_path / "data" / ".cifar10-download").mkdir(parents=True)
    (tmp_path / "data" / ".cifar10-download" / "cifar-10-python.tar.gz").write_bytes(b"half")
    (tmp_path / "data" / ".cifar10.partial.safetensors").write_bytes(b"half")
    loaders.load("cifar10", tmp_path / "data")
    assert left_in(tmp_path / "data") == ["cifar10.safetensors"]


def test_an_archive_cannot_write_elsewhere(misbehaving, tmp_path, monkeypatch):
    """Names that climb out of the folder: even with the right checksum nothing comes to lie outside."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name in ("../../../escaped", "/tmp/study-escaped", "cifar-10-batches-py/../../escaped"):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"here"))
    misbehaving.content, misbehaving.how = content.getvalue(), "whole"
    monkeypatch.setattr(published.CIFAR10, "tgz_md5", hashlib.md5(misbehaving.content).hexdigest())
    data = tmp_path / "a" / "b" / "data"
    with pytest.raises(DataError, match="could not be fetched"):
        loaders.load("cifar10", data)
    assert not list(tmp_path.rglob("escaped"))
    assert not os.path.exists("/tmp/study-escaped")
