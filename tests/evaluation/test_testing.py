"""test(): per-example outcomes on the model that is scored, and carried attacks kept apart."""

import pytest
import torch
from small import small_network

from attacks import FGSM, PGD, Torchattacks
from defences import Standard
from evaluation import testing
from evaluation.finding import CLEAN
from evaluation.scores import Scores
from evaluation.transfer_attack import carried_matrix, carried_outcomes, transfer_attack
from trainer import Recipe, train


@pytest.fixture(scope="module")
def model(blobs, tmp_path_factory):
    recipe = Recipe(
        epochs=6, batch_size=32, learning_rate=0.2, augment=False, validation_images=8, defence=Standard()
    )
    return train(small_network(), blobs, recipe, tmp_path_factory.mktemp("run") / "run", progress=False).model


def score(model, split, attacks, **options):
    return testing.test(model, split, attacks, progress=False, **options)


def test_outcomes_are_those_of_a_plain_loop(model, blobs):
    scores = score(model, blobs.test, [FGSM()])
    images, labels = blobs.test.batch(torch.arange(len(blobs.test)))
    right = model(images).argmax(1) == labels
    stood = right & (model(FGSM()(model, images, labels)).argmax(1) == labels)
    assert torch.equal(scores.outcomes[CLEAN], right)
    assert torch.equal(scores.outcomes["FGSM"], stood)
    assert scores.clean_accuracy == pytest.approx(float(right.double().mean()))
    assert scores.robust_accuracy("FGSM") == pytest.approx(float(stood.double().mean()))


def test_worst_case_is_over_examples_not_over_averages(model, blobs):
    scores = score(model, blobs.test, [FGSM(), PGD(steps=3, step_size=4 / 255)])
    both = scores.outcomes["FGSM"] & scores.outcomes["PGD-3"]
    assert scores.robust_accuracy() == pytest.approx(float(both.double().mean()))
    assert scores.robust_accuracy() <= min(scores.robust_accuracy("FGSM"), scores.robust_accuracy("PGD-3"))
    assert scores.robust_accuracy() <= scores.clean_accuracy


def test_the_examples_are_crafted_on_the_model_that_is_scored(model, blobs):
    """An attack object that was used on one network before does not remember it."""
    attack, other = PGD(steps=5), small_network(5).eval()
    score(other, blobs.test, [attack])
    assert torch.equal(
        score(model, blobs.test, [attack]).outcomes["PGD-5"],
        score(model, blobs.test, [PGD(steps=5)]).outcomes["PGD-5"],
    )


def test_same_seed_same_outcomes_and_model_untouched(model, blobs):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    runs = [score(model, blobs.test, [PGD(steps=2)], seed=seed).outcomes["PGD-2"] for seed in (0, 0)]
    assert torch.equal(*runs)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.eval()


def test_carried_attacks_are_labelled_and_weaker(model, blobs):
    source = small_network(3)
    carried = transfer_attack(source, model, blobs.test, PGD(), source_name="an untrained network", progress=False)
    assert carried.carried == "an untrained network"
    assert "carried from an untrained network" in str(carried)
    assert carried.robust_accuracy() > score(model, blobs.test, [PGD()]).robust_accuracy()
    label = "PGD-10, carried from an untrained network"
    assert list(carried.attacks) == [label]
    assert carried.table().carried_from[label] == "an untrained network"
    itself = transfer_attack(model, model, blobs.test, PGD(), progress=False)
    assert torch.equal(itself.worst_case, score(model, blobs.test, [PGD()]).worst_case)


def test_carried_scores_do_not_replace_those_of_the_white_box(model, blobs, tmp_path):
    white = score(model, blobs.test, [PGD()])
    white.save(tmp_path)
    transfer_attack(small_network(3), model, blobs.test, PGD(), source_name="net 3", progress=False).save(tmp_path)
    assert Scores.load(tmp_path).attacks == white.attacks
    assert {path.name for path in tmp_path.glob("*.json")} == {"scores.json", "carried-from-net-3.json"}


def test_an_attack_counts_the_same_wherever_it_stands(model, blobs):
    alone = score(model, blobs.test, [PGD(steps=2)])
    second = score(model, blobs.test, [FGSM(), PGD(steps=2)])
    assert torch.equal(alone.outcomes["PGD-2"], second.outcomes["PGD-2"])


def test_without_an_attack_there_is_no_robust_accuracy(model, blobs):
    with pytest.raises(ValueError, match="no attack was run"):
        score(model, blobs.test, []).robust_accuracy()


def test_a_model_for_fewer_classes_is_refused(blobs):
    with pytest.raises(ValueError, match="built for another data set"):
        score(small_network(classes=3), blobs.test, [FGSM()])


def test_bridged_attacks_go_through_the_same_door(model, blobs):
    scores = score(model, blobs.test.first(32), [Torchattacks("FGSM"), FGSM()])
    theirs, ours = (scores.outcomes[label] for label in scores.attacks)
    assert (theirs != ours).sum() <= 1  # a gradient that is zero but for rounding may change its sign


def test_a_model_that_is_always_wrong_can_be_tested(blobs):
    class Wrong(torch.nn.Module):
        def forward(self, images):
            return images.new_zeros(len(images), 4) + images.mean() * 0

    scores = score(Wrong(), blobs.test.first(1), [PGD(steps=1, step_size=8 / 255)])
    wrong = score(Wrong(), blobs.test, [PGD(steps=1, step_size=8 / 255)])
    assert scores.n == 1
    assert wrong.verdict() == "invalid"


def test_bad_lists_of_attacks(model, blobs):
    with pytest.raises(TypeError, match="'pgd' is no attack"):
        score(model, blobs.test, ["pgd"])
    with pytest.raises(TypeError, match="'pgd' is no attack"):
        score(model, blobs.test, "pgd")
    with pytest.raises(ValueError, match="listed twice"):
        score(model, blobs.test, [PGD(), PGD()])
    scores = score(model, blobs.test, [PGD(), PGD(eps=4 / 255)])
    assert set(scores.attacks) == {repr(PGD()), repr(PGD(eps=4 / 255))}


def test_carried_matrix_has_the_white_box_on_its_diagonal(blobs, tmp_path):
    networks = {"one": small_network(0), "two": small_network(1)}
    table = carried_matrix(networks, blobs.test, PGD(steps=3, random_start=False), progress=False)
    for name, network in networks.items():
        alone = testing.test(network, blobs.test, [PGD(steps=3, random_start=False)], progress=False)
        assert table.loc[name, name] == pytest.approx(alone.robust_accuracy())
    carried = transfer_attack(
        networks["one"], networks["two"], blobs.test, PGD(steps=3, random_start=False), progress=False
    )
    assert table.loc["one", "two"] == pytest.approx(carried.robust_accuracy())


def test_a_source_with_other_classes_is_led_away_from_its_own_guess(blobs):
    victim, public = small_network(0), small_network(1, classes=7)
    attack = PGD(steps=3, random_start=False)
    found = carried_outcomes({"v": victim}, blobs.test, attack, sources={"p": public}, progress=False)
    assert list(found) == [("p", "v")]
    images, labels = blobs.test.batch(torch.arange(len(blobs.test)))
    with torch.no_grad():
        guesses = public.eval()(images).argmax(1)
        adversarial = attack(public, images, guesses)
        expected = (victim.eval()(images).argmax(1) == labels) & (victim(adversarial).argmax(1) == labels)
    assert torch.equal(found["p", "v"], expected)
    assert guesses.max() > 3


def test_what_cannot_be_carried_is_refused(blobs):
    one, other = small_network(0), small_network(1)
    with pytest.raises(TypeError, match="'PGD' is no attack"):
        carried_outcomes({"v": one}, blobs.test, "PGD")
    with pytest.raises(ValueError, match="'v' names a source and a victim that are two models"):
        carried_outcomes({"v": one}, blobs.test, FGSM(), sources={"v": other})
    found = carried_outcomes({"v": one}, blobs.test, FGSM(), sources={"v": one}, progress=False)
    assert list(found) == [("v", "v")]


def test_logits_that_are_no_numbers_withstand_nothing(blobs):
    broken = small_network()
    with torch.no_grad():
        broken[-1].bias.fill_(float("nan"))
    table = carried_matrix({"broken": broken}, blobs.test, FGSM(), progress=False)
    assert table.loc["broken", "broken"] == 0
