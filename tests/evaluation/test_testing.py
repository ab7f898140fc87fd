"""test(): per-example outcomes on the model that is scored."""

import pytest
import torch
from broken import BROKEN, Changed
from small import small_network, small_split

from attacks import FGSM, PGD, AutoAttack, Torchattacks
from evaluation import testing
from evaluation.finding import CLEAN


@pytest.fixture
def model(sound):
    return sound["standard"]


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


ATTACKS = [FGSM(), PGD(steps=4)]


@pytest.mark.parametrize("broken", BROKEN)
def test_no_robustness_is_believed_of_a_broken_model(broken, blobs):
    scores = score(BROKEN[broken]().eval(), blobs.test, ATTACKS)
    for label in ("FGSM", "PGD-4", "worst case"):
        assert scores.verdict(label) == "invalid"
    assert "training mode" not in {finding.check for finding in scores.findings}  # NaN does not move


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e3, 1e30])
def test_the_size_of_logits_changes_no_outcome(scale, blobs):
    """No saturated softmax hides a gradient, and none underflows."""
    plain = score(small_network().eval(), blobs.test, ATTACKS)
    scaled = score(Changed(lambda logits: logits * scale).eval(), blobs.test, ATTACKS)
    assert plain.clean_accuracy == scaled.clean_accuracy
    for label in plain.attacks:
        assert scaled.robust_accuracy(label) <= plain.robust_accuracy(label) + 0.05


def test_equal_logits_are_no_accuracy(blobs):
    model = Changed(lambda logits: logits * 0)
    scores = score(model.eval(), blobs.test, [*ATTACKS, AutoAttack(steps=2, queries=4)])
    assert scores.clean_accuracy == 0.25
    assert scores.verdict("clean") == scores.verdict("worst case") == "invalid"


@pytest.mark.parametrize("count", [1, 2, 249, 250, 251, 501])
def test_the_last_batch_may_be_of_one_picture(count):
    """Each picture gets the outcome that it has alone, however the batches fall."""
    model, split = small_network().eval(), small_split(count)
    scores = score(model, split, [FGSM()])
    assert scores.n == count
    images, labels = split.batch(torch.arange(count))
    with torch.no_grad():
        right = torch.cat([model(image[None]) for image in images]).argmax(1) == labels
    assert torch.equal(scores.outcomes["clean"], right)
