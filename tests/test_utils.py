"""The session, and the data that load_data() gives."""

import json

import pytest
import torch
from small import small_split

import utils
from loaders import DataError
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
    hour = start("x", preset="hour", seed=5)
    assert (hour.pick(quick=1, full=2), hour.pick(quick=1, full=2, hour=0), hour.seeds) == (2, 0, (5,))
    assert hour.dataset("cifar10") == "cifar10"
    assert start("x", preset="smoke").pick(quick=1, full=2) == 1
    assert start("x", preset="smoke").pick(quick=1, full=2, smoke=3) == 3
    assert start("x", preset="quick").dataset("cifar100") == "shapes100"
    assert start("x", preset="quick", data="cifar").dataset("cifar10") == "cifar10"


def test_a_notebook_says_how_long_it_takes_on_a_device_of_another_speed(monkeypatch, tmp_path, capsys):
    (tmp_path / "notebooks").mkdir()
    known = {"quick-shapes": {"how": "measured on a toaster", "gflops": 100, "seconds": {"01_x": 90}}}
    (tmp_path / "notebooks" / "lengths.json").write_text(json.dumps(known))
    monkeypatch.setattr(utils, "ROOT", tmp_path)
    monkeypatch.setattr(utils, "gflops", lambda device: 50.0)
    start("01_x", preset="quick")
    assert "about 3.0 minutes here" in (said := capsys.readouterr().out)
    assert "measured on a toaster" in said
    start("02_y", preset="quick")
    start("01_x", preset="smoke")
    assert "minutes" not in capsys.readouterr().out


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
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")  # which says that nobody wants one
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


def test_relative_folders_count_from_the_repository(monkeypatch, tmp_path):
    monkeypatch.setenv("STUDY_RUNS", "runs/long")
    monkeypatch.chdir(tmp_path)
    assert start("x", preset="smoke").runs == utils.ROOT / "runs" / "long" / "smoke-shapes" / "x"


def test_no_picture_is_left_to_train_on_is_said(session, monkeypatch):
    """Classes of one picture each: the validation split gets them all."""
    import utils
    from loaders import cache

    split = small_split(10, classes=10)
    arrays = {"train_images": split.images, "train_labels": split.labels}
    arrays |= {"test_images": split.images, "test_labels": split.labels}
    monkeypatch.setattr(cache, "load", lambda *_: (arrays, split.classes, "0"))
    with pytest.raises(DataError, match="shapes10 train: 0 pictures"):
        utils.load_data("shapes10", session)


def test_a_data_set_of_another_family_than_the_session_is_said(tmp_path, monkeypatch, caplog):
    def gone(name, folder):
        raise DataError(f"{name} could not be fetched")

    monkeypatch.setenv("STUDY_RUNS", str(tmp_path))
    shapes, cifar = (start("x", preset="smoke", data=family) for family in ("shapes", "cifar"))
    load_data("shapes10", cifar)
    assert "shapes10 in a session of CIFAR" in caplog.text
    monkeypatch.setattr(utils.loaders, "load", gone)
    with pytest.raises(DataError, match=r"fetched\. In this session, of Shapes: session\.dataset\('cifar10'\)"):
        load_data("cifar10", shapes)
    with pytest.raises(DataError, match=r"fetched$"):
        load_data("cifar10", cifar)
