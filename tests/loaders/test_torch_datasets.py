"""Datasets of others: torch's protocol, and torchvision's sets by name."""

import struct

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision import datasets, transforms

import loaders
from loaders import DataError

IMAGES = torch.randint(256, (40, 3, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LABELS = torch.arange(40) % 2


class Items(Dataset):
    """A dataset of given items."""

    def __init__(self, items):
        self.items = list(items)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        item = self.items[index]
        return item() if callable(item) else item


def of(images, labels=LABELS):
    return Items(zip(images, labels.tolist(), strict=True))


PIL = transforms.ToPILImage()


@pytest.mark.parametrize(
    "dataset",
    [
        TensorDataset(IMAGES, LABELS),
        of(IMAGES / 255),
        of(map(PIL, IMAGES)),
        of(IMAGES.permute(0, 2, 3, 1).numpy()),
        Subset(TensorDataset(torch.cat([IMAGES, IMAGES]), torch.cat([LABELS, LABELS])), range(40)),
    ],
    ids=["tensors", "ToTensor", "PIL", "arrays", "a subset"],
)
def test_any_dataset_of_pictures_and_labels(dataset):
    data = loaders.from_dataset(dataset, device="cpu")
    known = {image.numpy().tobytes(): int(label) for image, label in zip(IMAGES, LABELS, strict=True)}
    for split in (data.train, data.val, data.test):
        assert [known.pop(image.numpy().tobytes()) for image in split.images] == split.labels.tolist()
    assert not known


def test_several_datasets_are_the_splits():
    data = loaders.from_dataset((of(IMAGES), of(IMAGES[:10], LABELS[:10])), classes=["a", "b"], device="cpu")
    assert [len(split) for split in (data.train, data.val, data.test)] == [36, 4, 10]
    assert data.classes == ["a", "b"]


def test_classes_are_matched_by_name_where_a_part_numbers_them_otherwise():
    """As ImageFolder does with a folder that lacks a class."""
    training, tested = of(IMAGES, torch.arange(40) % 3), of(IMAGES[:4], torch.arange(4) % 2)
    training.classes, tested.classes = ["a", "b", "c"], ["a", "c"]
    data = loaders.from_dataset((training, tested), device="cpu")
    known = {image.numpy().tobytes(): name for image, name in zip(IMAGES, "acac", strict=False)}
    pairs = zip(data.test.images, data.test.labels, strict=True)
    assert all(known[image.numpy().tobytes()] == data.classes[label] for image, label in pairs)
    for number in (np.int64, np.array, torch.tensor, lambda label: np.array([label])):
        numbered = Items((image, number(label)) for image, label in tested.items)
        numbered.classes = tested.classes
        again = loaders.from_dataset((training, numbered), device="cpu")
        assert torch.equal(again.test.labels, data.test.labels)
    tested.classes = ["a", "d"]
    with pytest.raises(DataError, match="test: its classes d are none of the training part's"):
        loaders.from_dataset((training, tested), device="cpu")


def test_grey_ones_of_another_size_are_no_coloured_ones():
    some = [PIL(image[:1, :6]) for image in IMAGES[:20]]
    with pytest.raises(DataError, match="one size is needed, by a transform such as Resize"):
        loaders.from_dataset(of([*some, *map(PIL, IMAGES[20:])]), device="cpu")


def test_grey_among_coloured_ones_becomes_coloured():
    grey = [PIL(image[:1]) for image in IMAGES[:20]]
    data = loaders.from_dataset(of([*grey, *map(PIL, IMAGES[20:])]), device="cpu")
    assert data.train.images.shape[1] == 3


def test_names_of_classes_without_pictures_go():
    dataset = of(IMAGES, LABELS + 1)
    dataset.classes = ["N/A", "a", "b", "c"]  # as EMNIST's letters
    data = loaders.from_dataset(dataset, device="cpu")
    assert data.classes == ["a", "b"]
    assert data.train.labels.unique().tolist() == [0, 1]


def random_picture():
    return torch.rand(3, 8, 8), 0


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Items([random_picture] * 20), "change each time.*leave out random transforms"),
        (Items([{"image": 1}] * 3), r"items are dict; \(picture, label\)"),
        (Items([(IMAGES[0], 0), (IMAGES[0, :, :8], 1)]), r"\(3, 8, 12\), \(3, 12, 12\).*Resize"),
        (of((IMAGES / 255 - 0.5) / 0.5), "normalised"),
        (of(IMAGES[:, 0].flatten(1)), "flat rows"),
    ],
    ids=["random", "dicts", "sizes", "normalised", "flat"],
)
def test_a_dataset_that_cannot_be_used_is_told_why(dataset, message):
    with pytest.raises(DataError, match=message):
        loaders.from_dataset(dataset, device="cpu")


@pytest.fixture
def fashion(tmp_path, monkeypatch):
    """A small FashionMNIST as torchvision leaves it; its pictures (N, 28, 28) and labels, train and test."""
    monkeypatch.setenv("STUDY_DATA", str(tmp_path))
    raw, rng, parts = tmp_path / "FashionMNIST" / "raw", np.random.default_rng(0), {}
    raw.mkdir(parents=True)
    for part, count in {"train": 60, "t10k": 30}.items():
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        head = struct.pack(">IIII", 2051, count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
        parts[part] = {image.tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    return parts


def test_a_set_of_torchvision_by_name(fashion, monkeypatch):
    data = loaders.from_torchvision("FashionMNIST", device="cpu")
    assert data.classes == datasets.FashionMNIST.classes
    assert data.train.images.shape[1:] == (1, 28, 28)
    assert [len(split) for split in (data.train, data.val, data.test)] == [50, 10, 30]
    assert [fashion["t10k"][image.numpy().tobytes()] for image in data.test.images] == data.test.labels.tolist()
    monkeypatch.setattr(datasets, "FashionMNIST", type("FashionMNIST", (Dataset,), {}))  # it is not asked again
    assert loaders.from_torchvision("FashionMNIST", device="cpu").provenance == data.provenance
    with pytest.raises(ValueError, match="no 'Fashion'"):
        loaders.from_torchvision("Fashion")


class Splitted(Dataset):
    """As SVHN and its like: a split is asked for by name, and others are refused."""

    def __init__(self, root, split="train", transform=None, download=False):
        if split not in ("train", "test", "extra"):
            raise ValueError(f"Unknown value '{split}' for argument split.")
        assert download
        self.begin, self.count = {"train": (0, 20), "test": (20, 12), "extra": (0, 40)}[split]

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return PIL(IMAGES[self.begin + index]), index % 2


def test_sets_with_named_splits_and_of_another_size(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, "SVHN", Splitted)
    data = loaders.from_torchvision("SVHN", size=(8, 10), device="cpu")
    assert [len(split) for split in (data.train, data.val, data.test)] == [18, 2, 12]
    assert data.test.images.shape[1:] == (3, 8, 10)


@pytest.mark.parametrize("split", ["extra", "train"])
def test_of_a_split_of_ones_own_the_others_are_shares(split, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("STUDY_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, "SVHN", Splitted)
    data = loaders.from_torchvision("SVHN", split=split, device="cpu")
    total = {"extra": 40, "train": 20}[split]
    assert len(data.train) + len(data.val) + len(data.test) == total
    every = {image.numpy().tobytes() for part in (data.train, data.val, data.test) for image in part.images}
    assert len(every) == total


class Chosen(Dataset):
    """As QMNIST: `what` passes over `train`."""

    def __init__(self, root, what=None, train=True, transform=None, download=False):
        self.begin, self.count = (0, 40) if what else (0, 20) if train else (20, 12)

    __len__, __getitem__ = Splitted.__len__, Splitted.__getitem__


@pytest.mark.parametrize(("options", "sizes"), [({}, (18, 2, 12)), ({"what": "all"}, (32, 4, 4))])
def test_an_option_that_gives_all_parts_the_same_pictures_leaves_one(options, sizes, tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, "QMNIST", Chosen)
    data = loaders.from_torchvision("QMNIST", device="cpu", **options)
    assert tuple(len(split) for split in (data.train, data.val, data.test)) == sizes


def test_a_set_that_cannot_be_fetched_is_named(tmp_path, monkeypatch):
    def gone(*_, **__):
        raise RuntimeError("Error downloading")

    monkeypatch.setenv("STUDY_DATA", str(tmp_path))
    monkeypatch.setattr(datasets.KMNIST, "download", gone)
    with pytest.raises(DataError, match=r"KMNIST could not be fetched: Error downloading.*Check the network"):
        loaders.from_torchvision("KMNIST", device="cpu")
    assert not list(tmp_path.glob("*.safetensors"))
