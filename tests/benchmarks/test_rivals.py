"""What others' detectors raise of planted flaws, and that the flaws are handed to them as our checks get them."""

import pytest
import torch

from attacks import PGD
from benchmarks import rivals
from evaluation.flaws import catalogue
from evaluation.testing import test as score

FLAWS = {flaw.name: flaw for flaw in catalogue.FLAWS}
FLAGS, INDICATORS, SIGNALS = rivals.DETECTORS


@pytest.fixture
def small_lab(sound, blobs):
    return catalogue.Lab(sound["standard"], sound["pgd"], blobs.test.first(64), PGD())


def test_they_are_asked_what_our_checks_are_asked(small_lab):
    model, split, attack = rivals.asked(FLAWS["leaky rounding, beaten by Square"], small_lab)
    assert model.inner is not small_lab.robust
    assert (split, attack) == (small_lab.split, small_lab.attack)
    model, _, attack = rivals.asked(FLAWS["attack that descends"], small_lab)
    assert model is small_lab.robust
    assert type(attack).__name__ == "Descending"
    assert catalogue.test is score
    for flaw in catalogue.FLAWED_MODELS + catalogue.FLAWED_ATTACKS:
        assert rivals.asked(flaw, small_lab), flaw.name


@pytest.mark.parametrize(
    ("flaw", "expected"),
    [
        ("quantised input", {FLAGS: "zero gradient", INDICATORS: "unavailable gradients"}),
        ("detached input", {FLAGS: "zero gradient", INDICATORS: "unavailable gradients"}),
        ("random gradient", {FLAGS: "Square wins", SIGNALS: "black box wins"}),
        ("shattered gradient", {SIGNALS: "noise turns gradients"}),
        ("softmax in the model", {FLAGS: "probabilities"}),
        ("noise on the input", {FLAGS: "random answers"}),
        ("purified input", {FLAGS: "gradients in forward"}),
        ("attack that descends", {INDICATORS: "unconstrained attack failure"}),
        ("FGSM alone", {}),
    ],
)
def test_what_they_raise(flaw, expected, small_lab):
    said = rivals.raised(*rivals.asked(FLAWS[flaw], small_lab))
    assert list(said) == [FLAGS, INDICATORS, SIGNALS]
    for name, what in expected.items():
        assert what in said[name], said
    if not expected:
        assert said[FLAGS] == said[SIGNALS] == []


def test_an_error_is_something_raised(small_lab):
    said = rivals.raised(torch.nn.Linear(1, 1), small_lab.split, PGD())  # pictures do not fit into it
    assert all(text.startswith("error: ") for texts in said.values() for text in texts)


def test_silent_success_and_incomplete_optimisation(small_lab):
    """An attack whose path passes through success, and one whose loss still climbs where it ends."""

    class Returning(PGD):
        def craft(self, model, images, labels, generator, targeted=False):
            super().craft(model, images, labels, generator, targeted)
            return images

    returning = Returning(eps=0.3, step_size=0.1)
    assert "silent success" in rivals.indicators(small_lab.robust, small_lab.split, returning)
    slow = PGD(eps=16 / 255, step_size=0.5 / 255, steps=30, random_start=False)
    assert "incomplete optimisation" in rivals.indicators(small_lab.robust, small_lab.split, slow)
    assert rivals.indicators(small_lab.robust, small_lab.split, PGD(steps=50)) == set()
