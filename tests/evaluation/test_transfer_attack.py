"""Examples carried from one network to another, kept apart from those of the white box."""

import pytest
import torch
from small import small_network

from attacks import FGSM, PGD
from evaluation import testing
from evaluation.scores import Scores
from evaluation.transfer_attack import carried_matrix, carried_outcomes, transfer_attack


@pytest.fixture
def model(sound):
    return sound["standard"]


def score(model, split, attacks, **options):
    return testing.test(model, split, attacks, progress=False, **options)


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


def test_a_transfer_attack_asks_a_source_of_other_classes_as_carried_outcomes_does(blobs):
    victim, public = small_network(0), small_network(1, classes=7)
    attack = PGD(steps=3, random_start=False)
    expected = carried_outcomes({"v": victim}, blobs.test, attack, sources={"p": public}, progress=False)
    (label,) = (scores := transfer_attack(public, victim, blobs.test, attack, progress=False)).attacks
    assert torch.equal(scores.outcomes[label], expected["p", "v"])
