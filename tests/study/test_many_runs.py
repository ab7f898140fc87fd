"""train_all() and test_all(): the same runs and scores, one after the other and at once.

What needs Ray waits for make test-all; make test starts it once, for a whole study (test_main.py).
"""

import pytest
import torch

import models
import utils
from attacks import FGSM, PGD
from defences import Adversarial
from finetune_framework import adapt
from models.fingerprint import fingerprint
from storage.atomic_files import read_json
from study import many_runs
from trainer import Recipe


def asked_for(data):
    """A start, two that need it, one of them through a function, and one that is the same as the start."""
    common = {"precision": "float32", "validation_images": 16, "batch_size": 64}
    start = models.build("shallow_cnn", 10)
    return {
        ("standard", 0): (start, data, Recipe(epochs=2, **common)),
        ("pgd", 0): (("standard", 0), data, Recipe(epochs=1, defence=Adversarial(PGD(steps=1)), **common)),
        ("adapted", 0): (
            (("standard", 0), lambda model: adapt(model, 10, train="head", rank=2)),
            data,
            Recipe(epochs=1, **common),
        ),
        ("twin", 0): (start, data, Recipe(epochs=2, **common)),
    }


@pytest.fixture(scope="module")
def both(tmp_path_factory, folders):
    """Runs and scores of the same, one after the other and at once."""
    results = {}
    for on in (None, "local:2"):
        with pytest.MonkeyPatch.context() as patch:
            if on is None:  # the others go where all tests' runs do: Ray has processes that know the place
                patch.setenv("STUDY_RUNS", str(tmp_path_factory.mktemp("runs")))
            patch.setenv("OMP_NUM_THREADS", "1")
            session = utils.start("grid", preset="smoke")
            data = utils.load_data("shapes10", session)
            before = torch.get_num_threads()
            torch.set_num_threads(1)
            runs = many_runs.train_all(asked_for(data), session, on=on, progress=False)
            labelled = {name: run for (name, _), run in runs.items()}
            scores = many_runs.test_all(
                labelled, data.test, [FGSM(), PGD(steps=2)], session, on=on, progress=False
            )
            torch.set_num_threads(before)
            results[on] = session, runs, scores
    return results[None], results["local:2"]


@pytest.mark.long
def test_the_same_weights_in_the_same_order(both):
    (_, runs, _), (_, others, _) = both
    assert list(runs) == list(others) == list(asked_for(None))
    for key in runs:
        assert fingerprint(runs[key].model) == fingerprint(others[key].model), key


@pytest.mark.long
def test_the_same_scores_for_each_example_and_saved(both):
    (_, runs, scores), (_, others, their_scores) = both
    assert list(scores) == list(their_scores)
    for (label, score), run in zip(scores.items(), others.values(), strict=True):
        for attack, outcome in score.outcomes.items():
            assert torch.equal(outcome, their_scores[label].outcomes[attack]), (label, attack)
        assert score.findings == their_scores[label].findings
        saved = read_json(run.folder / "scores.json")
        assert saved["weights"] == fingerprint(runs[label, 0].model)


@pytest.mark.long
def test_what_is_the_same_is_trained_once(both):
    for session, _, _ in both:
        origins = [
            read_json(session.folder(n, 0) / "environment.json").get("same_run_as") for n in ("standard", "twin")
        ]
        assert sum(origin is None for origin in origins) == 1


@pytest.mark.long
def test_again_all_is_loaded(both, monkeypatch):
    session, runs, _ = both[1]
    monkeypatch.setattr(many_runs, "run_all", None)
    data = utils.load_data("shapes10", session)
    again = many_runs.train_all(asked_for(data), session, on="local:2", progress=False)
    assert fingerprint(again["pgd", 0].model) == fingerprint(runs["pgd", 0].model)


@pytest.mark.long
def test_where_it_is_is_written(both):
    session = both[1][0]
    notes = session.runs.parent / ".jobs"
    assert set(read_json(notes / "grid.json")["states"].values()) == {"done"}
    assert "process" in read_json(notes / "grid" / "pgd-seed0.json")["where"]


@pytest.mark.long
def test_a_start_must_stand_further_up(both):
    session, data = both[0][0], None
    asked = asked_for(data)
    asked = {("early", 0): (("late", 0), data, None)} | asked
    with pytest.raises(ValueError, match=r"\('early', 0\) is to start from \('late', 0\), neither a network nor"):
        many_runs.train_all(asked, session)


@pytest.mark.long
@pytest.mark.parametrize("on", [None, "local:2"])
def test_a_run_that_is_there_is_what_others_start_from(both, on):
    """One of the repository's: the next one knows of which weights it was made, and nothing is trained for it."""
    session = utils.start(f"ready-{on}", preset="smoke")
    data = utils.load_data("shapes10", session, train_pictures=64)
    there = many_runs.ready_run(session, "cifar10", "standard", "standard")
    recipe = Recipe(epochs=1, precision="float32", validation_images=4, batch_size=64)
    asked = {("standard", 0): there, ("next", 0): (("standard", 0), data, recipe)}
    runs = many_runs.train_all(asked, session, on=on, progress=False)
    assert runs["standard", 0] is there
    assert not there.folder.exists()
    known = read_json(runs["next", 0].folder / "recipe.json")
    assert known["initial_weights"] == fingerprint(there.model)


@pytest.mark.long
def test_a_folder_that_is_not_shared_is_named(both, monkeypatch, tmp_path):
    monkeypatch.setattr(many_runs, "run_all", lambda *_: {})  # elsewhere, all went well
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path))
    session = utils.start("elsewhere", preset="smoke")
    data = utils.load_data("shapes10", session)
    with pytest.raises(
        many_runs.Damaged, match="all nodes need the same runs/; STUDY_RUNS can name a shared folder"
    ):
        many_runs.train_all(asked_for(data), session, on="local:2", progress=False)


@pytest.mark.parametrize("on", ["local:0", "local:x", "slurm", "rays", "local:-1"])
def test_an_unknown_pool(on):
    with pytest.raises(ValueError, match="local, local:3, ray, ray:HOST:PORT or ray://HOST:PORT is needed"):
        many_runs.chosen(on)


def test_without_being_asked_there_is_none(monkeypatch):
    monkeypatch.delenv("STUDY_ON", raising=False)
    assert many_runs.chosen() is None


@pytest.mark.long
def test_a_pool_says_what_it_has():
    assert repr(many_runs.chosen("local:2")).startswith("this machine, 2 CPUs")
