"""The session and the splits."""

import time

import pytest
import torch

import utils
from loaders import Split
from processes.seeds import derive_seed
from utils import load_data, start


def test_session_says_what_it_chose_in_one_line(capsys):
    session = start("some_experiment", preset="quick", seed=3)
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    for part in (
        "some_experiment",
        "quick",
        "shapes",
        "seed 3",
        "CPU" if session.device.type == "cpu" else "cuda",
    ):
        assert part in line
    assert session.runs.parts[-2:] == ("quick-shapes", "some_experiment")


def test_presets(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    session = start("x")
    assert session.preset == "quick"
    assert session.pick(quick=1, full=2) == 1
    assert session.seeds == (0,)
    full = start("x", preset="full", seed=5)
    assert full.pick(quick=1, full=2) == 2
    assert full.seeds == (5, 6, 7)
    assert full.dataset("cifar100") == "cifar100"
    assert start("x", preset="smoke").pick(quick=1, full=2) == 1
    assert start("x", preset="smoke").pick(quick=1, full=2, smoke=3) == 3
    assert start("x", preset="quick").dataset("cifar100") == "shapes100"
    assert start("x", preset="quick", data="cifar").dataset("cifar10") == "cifar10"


@pytest.mark.parametrize(
    "arguments",
    [{"preset": "fast"}, {"data": "mnist"}, {"seed": -1}, {"seed": 1.5}, {"seed": True}, {"device": "gpu"}],
    ids=str,
)
def test_bad_arguments_are_named(arguments):
    name, value = next(iter(arguments.items()))
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        start("x", **arguments)


def test_a_gpu_that_torch_cannot_use_gives_a_warning(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    real = utils.Path.exists
    monkeypatch.setattr(utils.Path, "exists", lambda p: "nvidia" in str(p) or real(p))
    with pytest.warns(RuntimeWarning, match="driver is older"):
        start("x", preset="smoke")


def test_splits_are_stratified_disjoint_and_repeatable(session):
    data = load_data("shapes100", start("x", preset="quick"))
    assert (len(data.train), len(data.val), len(data.test)) == (9000, 1000, 2000)
    assert data.val.labels.bincount().tolist() == [10] * 100
    assert data.train.labels.bincount().tolist() == [90] * 100
    seen = {image.numpy().tobytes() for image in data.train.images}
    assert not any(image.numpy().tobytes() in seen for image in data.val.images)
    again, other = (load_data("shapes100", start("x", preset="quick", seed=seed)) for seed in (0, 1))
    assert torch.equal(data.val.images, again.val.images)
    assert not torch.equal(data.val.images, other.val.images)


def test_amount_of_training_data(session):
    assert len(load_data("shapes10", session, train_pictures=100).train) == 100
    for wrong in (0, 10**6):
        with pytest.raises(ValueError, match=f"train_pictures={wrong}: 1 to"):
            load_data("shapes10", session, train_pictures=wrong)
    with pytest.raises(ValueError, match="the data sets are: cifar10"):
        load_data("mnist", session)
    with pytest.raises(ValueError, match=r"validation=1\.5"):
        load_data("shapes10", session, validation=1.5)


def test_batches_are_pictures_in_0_1(shapes):
    images, labels = shapes.train.batch(torch.tensor([5, 3]))
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal((images * 255).round().byte(), shapes.train.images[[5, 3]])
    assert torch.equal(labels, shapes.train.labels[[5, 3]])


def test_augmentation_is_a_crop_of_the_padded_picture_or_its_mirror():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (5, 3, 8, 8), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.arange(5), list("abcde"), "test")
    padded = torch.nn.functional.pad(images, [4] * 4).float() / 255
    seen = set()
    for _ in range(400):
        index = torch.randint(5, (7,), generator=generator)
        batch, labels = split.batch(index, generator, augment=True)
        assert torch.equal(labels, index)
        for image, label in zip(batch, labels.tolist(), strict=True):
            crops = {
                (flip, top, left): (padded[label].flip(2) if flip else padded[label])[
                    :, top : top + 8, left : left + 8
                ]
                for flip in (0, 1)
                for top in range(9)
                for left in range(9)
            }
            found = [key for key, crop in crops.items() if torch.equal(crop, image)]
            assert found
            seen.add(found[0])
    assert len(seen) > 150  # of the 162 ways to cut


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


def test_a_split_takes_bytes_only():
    with pytest.raises(utils.DataError, match="uint8 images"):
        Split(torch.rand(4, 3, 8, 8), torch.arange(4), list("abcd"), "floats")


def test_relative_folders_count_from_the_repository(monkeypatch, tmp_path):
    monkeypatch.setenv("STUDY_RUNS", "runs/long")
    monkeypatch.chdir(tmp_path)
    assert start("x", preset="smoke").runs == utils.ROOT / "runs" / "long" / "smoke-shapes" / "x"


def test_derived_seeds_are_apart():
    seeds = {derive_seed(a, b) for a in range(30) for b in range(30)}
    assert len(seeds) == 900


def test_drawing_is_quick():
    # The promise is 3 s for 12,000 pictures; ten times that would be a mistake in the code, not a busy machine.
    from loaders import drawn_shapes

    begun = time.perf_counter()
    drawn_shapes.draw(1200, 10, seed=9)
    assert time.perf_counter() - begun < 3
