"""Settings are given by name, and a wrong one is answered by what there is."""

import copy
import pickle
from dataclasses import InitVar, dataclass, replace

import pytest

from attacks import FGSM, PGD, AutoAttack
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
