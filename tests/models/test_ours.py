"""The networks that lie in models/weights/: whole, small, described, and what load_source makes of their names."""

import pytest
import torch

import models
import utils
from attacks import FGSM
from evaluation import testing
from finetune_framework import SourceError, adapt, load_source
from models import ours
from storage.atomic_files import Damaged


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder of its own with one network, and that network."""
    monkeypatch.setattr(ours, "FOLDER", tmp_path)
    model = models.build("resnet18", 10, width=4, seed=3).eval()
    ours.store(model, "shapes10-standard-w4", {"scores": []})
    return tmp_path, model


def test_what_is_loaded_is_what_was_stored_up_to_sixteen_bits(shelf):
    _, model = shelf
    loaded, images = ours.load("shapes10-standard-w4"), torch.rand(8, 3, 32, 32)
    assert not loaded.training
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32, torch.int64}
    torch.testing.assert_close(loaded(images), model(images), rtol=0.01, atol=0.01)
    for (name, theirs), ours_ in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        if theirs.ndim == 1 or name.startswith("normalise."):
            assert torch.equal(theirs, ours_), name


def test_weights_that_are_not_those_of_the_card_are_refused(shelf):
    folder, _ = shelf
    ours.store(models.build("resnet18", 10, width=4, seed=4), "other", {"scores": []})
    (folder / "other.safetensors").replace(folder / "shapes10-standard-w4.safetensors")
    with pytest.raises(Damaged, match="not the one that its card describes"):
        ours.load("shapes10-standard-w4")
    (folder / "shapes10-standard-w4.safetensors").unlink()
    with pytest.raises(Damaged, match="missing"):
        load_source("ours/shapes10-standard-w4")


def test_a_card_that_was_edited_is_refused(shelf):
    card = shelf[0] / "shapes10-standard-w4.json"
    card.write_text(card.read_text().replace('"width": 4', '"width": 8'))
    with pytest.raises(Damaged, match="was changed"):
        ours.load("shapes10-standard-w4")


def test_load_source_takes_the_name_and_lists_what_there_is(shelf):
    model = adapt(load_source("ours/shapes10-standard-w4"), 5, train="head")
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    for wrong in ("ours/shapes10-robust-w4", "shapes10-standard-w4"):
        with pytest.raises(SourceError, match="ours/shapes10-standard-w4"):
            load_source(wrong)
    with pytest.raises(SourceError, match="takes no architecture"):
        load_source("ours/shapes10-standard-w4", num_classes=100)


@pytest.mark.parametrize("name", ours.names())
def test_what_lies_here_is_small_and_is_described(name):
    card, model = ours.card(name), ours.load(name)
    assert (ours.FOLDER / f"{name}.safetensors").stat().st_size <= 1_600_000
    assert card["name"] == name
    assert not card["environment"]["commit"].endswith("+")
    assert f"study.make_weights {name}" in card["command"]
    assert len(card["classes"]) == card["model"]["num_classes"]
    assert {"clean", "PGD-20"} <= {row["evaluation"] for row in card["scores"]}
    for row in card["scores"]:
        assert row["low"] <= row["accuracy"] <= row["high"]
        assert row["n"] >= 100
        assert row["verdict"] != "invalid"
    assert torch.isfinite(model(torch.rand(2, 3, 32, 32))).all()


@pytest.mark.long
@pytest.mark.parametrize("kind", ["standard", "robust"])
def test_a_card_says_what_the_stored_weights_reach(kind):
    name = f"shapes100-{kind}-w16"
    data = utils.load_data("shapes100", utils.start("ours", preset="quick"))
    rows = {row["evaluation"]: row for row in ours.card(name)["scores"]}
    scores = testing.test(ours.load(name), data.test.first(rows["clean"]["n"]), [FGSM()], progress=False)
    for label in ("clean", "FGSM"):
        assert 100 * scores.share(label) == pytest.approx(rows[label]["accuracy"], abs=0.3)
