"""Settings are given by name, and a wrong one is answered by what there is."""

import copy
import pickle
from dataclasses import InitVar, dataclass, replace

import numpy as np
import pytest

from attacks import FGSM, PGD, AutoAttack
from defences import Adversarial
from training.recipe import Recipe


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: PGD(alpha=2 / 255),
            "PGD has no setting 'alpha': is step_size meant",
        ),
        (lambda: PGD(stepz=3), "PGD has no setting 'stepz': is steps meant"),
        (lambda: FGSM(epsilon=0.1), "is eps meant"),
        (lambda: FGSM(colour="red"), "FGSM has no setting 'colour': It has eps"),
        (lambda: AutoAttack(8), r"AutoAttack: settings are given by name, as in AutoAttack\(eps=8\)"),
        (lambda: Recipe(epochs=1, lr=0.1), "Recipe has no setting 'lr': is learning_rate meant"),
        (lambda: Recipe(3), r"as in Recipe\(epochs=3\)"),
    ],
)
def test_a_wrong_name_is_answered_by_those_that_there_are(make, says):
    with pytest.raises(TypeError, match=says):
        make()


def test_classes_of_somebodys_own_take_what_they_like():
    class Weak(PGD):
        def __init__(self, strength):
            super().__init__(steps=strength)

    @dataclass(frozen=True, repr=False)
    class Scaled(PGD):
        factor: float = 2.0

    @dataclass(frozen=True, kw_only=True, repr=False)
    class Budgeted(PGD):
        budget: InitVar[int] = 1
        cls: int = 0

        def __post_init__(self, budget):
            super().__post_init__()
            vars(self)["spent"] = budget

    class Both(PGD):
        def loss(self, *_, **__):
            return None

    assert (Budgeted(budget=4, cls=3).spent, replace(Budgeted(), budget=2).spent) == (4, 2)
    assert Recipe(epochs=1, defence=Both()).defence == Both()
    assert Weak(3).steps == 3
    assert Scaled(4.0).factor == 4.0
    assert replace(Scaled(4.0), steps=7) == Scaled(4.0, steps=7)
    assert copy.copy(PGD(steps=2)) == pickle.loads(pickle.dumps(PGD(steps=2))) == PGD(steps=2)


def test_an_attack_in_place_of_a_defence_is_told_what_trains_on_it():
    with pytest.raises(ValueError, match=r"is an attack; Adversarial\(...\) around it"):
        Recipe(epochs=1, defence=PGD())


def test_numbers_of_numpy_are_pythons_own():
    """As in loops over np.arange and np.linspace: the same attack, the same run."""
    attack = PGD(eps=np.float64(0.25), steps=np.int64(3), step_size=np.float32(0.5))
    assert repr(attack) == repr(PGD(eps=0.25, steps=3, step_size=0.5))
    recipe = Recipe(
        epochs=np.int32(3), learning_rate=np.float64(0.1), seed=np.int64(1), defence=Adversarial(attack)
    )
    assert repr(recipe) == repr(Recipe(epochs=3, learning_rate=0.1, seed=1, defence=recipe.defence))
    assert {type(value) for value in (attack.eps, attack.steps, recipe.epochs, recipe.seed)} == {float, int}
    for wrong in (np.float64(3), np.bool_(True), np.int64(0), np.array([3, 4])):
        with pytest.raises(ValueError, match="a whole number of at least 1 is needed"):
            Recipe(epochs=wrong)
    with pytest.raises(ValueError, match="a number of at least 0"):
        PGD(eps=np.float64("nan"))
