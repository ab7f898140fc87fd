"""The command that makes the networks of models/weights/ anew, on few pictures."""

import functools

import pytest

import utils
from attacks import PGD
from defences import Adversarial
from models import ours
from study import make_weights
from trainer import Recipe


def test_a_network_is_trained_stored_measured_and_listed(monkeypatch, tmp_path, folders):
    watched = {"validation_attack": PGD(steps=1), "validation_images": 8, "precision": "float32"}
    watched |= {"epochs": 1, "batch_size": 32}
    both = Recipe(**watched), Recipe(defence=Adversarial(PGD(steps=1)), **watched)
    monkeypatch.setattr(make_weights, "recipes", lambda family: both)
    monkeypatch.setattr(make_weights, "WIDTH", 4)
    monkeypatch.setattr(make_weights, "PICTURES", 10)
    monkeypatch.setattr(utils, "load_data", functools.partial(utils.load_data, train_pictures=64))
    monkeypatch.setattr(ours, "FOLDER", tmp_path)
    make_weights.main(["shapes10-robust-w16", "--note", "of few pictures"])
    assert ours.names() == ["shapes10-robust-w16"]
    card = ours.card("shapes10-robust-w16")
    assert card["starts_from"] == "shapes10-standard-w4"
    assert card["recipe"]["defence"]["kind"] == "Adversarial"
    assert [row["n"] for row in card["scores"] if row["evaluation"] == "PGD-20"] == [10]
    assert ours.load("shapes10-robust-w16").spec["width"] == 4
    listed = (tmp_path / "README.md").read_text()
    assert "| of few pictures |" in listed
    with pytest.raises(SystemExit):
        make_weights.main(["shapes20-robust-w16"])


def test_the_table_is_that_of_the_cards():
    again = "python -m study.make_weights --table"
    assert (ours.FOLDER / "README.md").read_text(encoding="utf-8") == make_weights.table(), again
