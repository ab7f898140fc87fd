"""Recipe: bad values are named, schedules are those of the papers."""

from dataclasses import replace

import pytest

from attacks import APGD, NIFGSM, PGD
from defences import AWP, NFGSM, TRADES, Adversarial, Standard
from training.identity import as_dict
from training.recipe import Recipe


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"epochs": 1.5},
        {"batch_size": 0},
        {"learning_rate": 0},
        {"learning_rate": float("nan")},
        {"schedule": "cosine"},
        {"ema": 1},
        {"ema": 0.9, "swa": 0.5},
        {"swa": 1.5},
        {"momentum": -0.1},
        {"weight_decay": -1},
        {"clip_gradient": 0},
        {"low_resolution": 0},
        {"low_resolution": 12.5},
        {"precision": "float8"},
        {"defence": "pgd"},
        {"defence": Standard},
        {"validation_attack": "PGD"},
        {"seed": -1},
    ],
    ids=str,
)
def test_a_bad_recipe_names_the_value(wrong):
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=f"Recipe: {name}="):
        Recipe(**({"epochs": 1} | wrong))


def test_schedules():
    recipe = Recipe(epochs=1, learning_rate=0.4, warm_up=0.2)
    assert [recipe.learning_rate_at(p) for p in (0, 0.1, 0.2, 0.6, 1)] == pytest.approx([0, 0.2, 0.4, 0.2, 0])
    assert replace(recipe, schedule="constant").learning_rate_at(0.9) == 0.4
    piecewise = replace(recipe, schedule="piecewise")
    assert [piecewise.learning_rate_at(p) for p in (0, 0.4, 0.5, 0.8)] == pytest.approx([0.4, 0.4, 0.04, 0.004])


def test_a_norm_that_older_runs_could_not_name_is_written_where_it_is_l2():
    for written in (as_dict(Adversarial(APGD()))["attack"], as_dict(NFGSM()), as_dict(NIFGSM())):
        assert "norm" not in written
    assert as_dict(APGD(norm="L2"))["norm"] == "L2"
    assert as_dict(PGD())["norm"] == "Linf"
    known = as_dict(PGD(norm="L2", steps=20))
    assert (known["eps"], known["step_size"]) == (0.5, 0.0625)


def test_validation_is_in_the_norm_of_the_training():
    assert Recipe(epochs=1).validation_attack == Recipe(epochs=1, defence=NFGSM()).validation_attack == PGD()
    for defence in (Adversarial(PGD(norm="L2", eps=0.25)), AWP(TRADES(PGD(norm="L2", eps=0.25), ramp=0.5))):
        assert Recipe(epochs=1, defence=defence).validation_attack == PGD(norm="L2", eps=0.25)


def test_what_was_derived_from_a_defence_is_derived_anew_from_another():
    """Or best_model() would be chosen under another norm or ε than the run was trained for."""
    plain = Recipe(epochs=1)
    for eps in (0.5, 1.0):
        made = Recipe(epochs=1, defence=Adversarial(PGD(norm="L2", eps=eps)))
        plain = replace(plain, defence=made.defence)
        assert plain == made
        assert plain.validation_attack == PGD(norm="L2", eps=eps)
        assert as_dict(plain) == as_dict(made)
    own = Recipe(epochs=1, validation_attack=PGD(steps=3))
    assert replace(own, defence=made.defence).validation_attack == PGD(steps=3)
