"""The checks one by one: what they find, from which threshold on, and which rows of a table that concerns."""

import copy
import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import models
from attacks import FGSM, PGD, Attack, evaluating
from evaluation import checks, testing
from evaluation.flaws.models import behind_batchnorm
from evaluation.transfer_attack import transfer_attack


class Around(nn.Module):
    """A sound network with something wrong around it."""

    def __init__(self, inner, forward):
        super().__init__()
        self.inner = inner
        self.around = forward

    def forward(self, images):
        return self.around(self.inner, images)


def constant(inner, images):
    return inner(images) * 0 + torch.tensor([1.0, 0, 0, 0])


def mostly_one(inner, images):
    logits = inner(images)
    return logits + torch.tensor([1.0, 0, 0, 0]) * (images.flatten(1).sum(1, keepdim=True) * 1000 % 10 < 7) * 1000


def batch_dependent(inner, images):
    logits = inner(images)
    return logits - 5 * (logits - logits.mean(0))


PLANTED = {
    "NaN logits": (lambda inner, x: inner(x) * math.nan, "finite logits", "invalid"),
    "says one class": (constant, "no better than chance", "invalid"),
    "says one class for most": (mostly_one, "constant predictor", "invalid"),
    "quantised input": (lambda inner, x: inner((x * 20).round() / 20), "masked gradient", "invalid"),
    "detached": (lambda inner, x: inner(x.detach()), "masked gradient", "invalid"),
    "batch statistics": (batch_dependent, "batch independence", "invalid"),
    "noise": (lambda inner, x: inner(x + 0.05 * torch.randn_like(x)), "randomness", "suspect"),
    "softmax": (lambda inner, x: inner(x).softmax(1), "logits", "suspect"),
}


@pytest.mark.parametrize("flaw", PLANTED)
def test_flawed_models_are_found(flaw, sound, blobs):
    around, check, severity = PLANTED[flaw]
    scores = testing.test(Around(sound["pgd"], around), blobs.test, [FGSM()], progress=False)
    found = {finding.check: finding for finding in scores.findings}
    assert check in found
    assert found[check].severity == severity
    verdicts = scores.table().verdict
    assert verdicts["FGSM"] == severity
    assert verdicts["clean"] == ("no finding" if check == "masked gradient" else severity)


def test_a_carried_attack_is_the_remedy_for_a_masked_gradient(sound, blobs):
    masked = Around(sound["pgd"], PLANTED["quantised input"][0])
    assert transfer_attack(sound["pgd"], masked, blobs.test, PGD(), progress=False).findings == []


def hidden_nan(inner, images):
    """Finite logits, a gradient that is NaN everywhere."""
    return inner(images) + (images * 0).sum((1, 2, 3)).sqrt()[:, None]


def off_the_grid(inner, images):
    """NaN as soon as a picture is none of 8 bits."""
    off = ((images * 255 - (images * 255).round()).abs() > 1e-3).flatten(1).any(1)
    return torch.where(off[:, None], math.nan, inner(images))


def test_nan_gradients_are_no_robustness(sound, blobs):
    scores = testing.test(Around(sound["standard"], hidden_nan), blobs.test, [FGSM(), PGD()], progress=False)
    assert [finding.check for finding in scores.findings if finding.severity == "invalid"] == ["masked gradient"]
    with pytest.warns(RuntimeWarning, match="not finite"):
        FGSM()(Around(sound["standard"], hidden_nan).eval(), *blobs.test.batch(torch.arange(4)))


def test_nan_logits_under_attack_are_no_robustness(sound, blobs):
    attack = PGD(step_size=0.5 / 255, steps=20)
    scores = testing.test(Around(sound["standard"], off_the_grid), blobs.test, [attack], progress=False)
    assert "finite logits" in {finding.check for finding in scores.findings if "PGD-20" in finding.rows}
    assert scores.robust_accuracy() == 0


@pytest.mark.parametrize("name", ["standard", "pgd"])
def test_sound_models_are_not_accused(name, sound, blobs):
    scores = testing.test(sound[name], blobs.test, [FGSM(), PGD()], progress=False)
    assert scores.findings == []
    assert scores.verdict() == ""


def answers(*counts):
    """Predictions and labels from a confusion matrix: a row a class, in it how many are taken for which."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts).sum(1))
    said = torch.cat([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in counts])
    return said, labels, len(counts[0])


@pytest.mark.parametrize(
    "counts",
    [
        ([30, 0, 0], [8, 22, 0], [8, 0, 22]),  # 51 % are taken for one class, 82 % are right
        ([80, 10], [2, 8]),  # always the first would be right for 90 %, and learns nothing of the second
        ([10, 0, 0, 0], [0, 10, 0, 0]),  # a part of the classes
        ([99, 1], [49, 51]),  # of two classes, most of one are taken for the other
    ],
)
def test_what_has_learned_is_not_called_constant(counts):
    assert checks.constant_predictor(*answers(*counts)) is None


@pytest.mark.parametrize(
    ("counts", "check"),
    [
        (([90, 0], [10, 0]), "no better than chance"),
        (([85, 5], [9, 1]), "no better than chance"),  # no oftener right in either class than by guessing
        (([0, 0, 9, 0], [0, 0, 9, 0]), "no better than chance"),  # a class that is not there
        (([10, 0, 0], [8, 2, 0], [8, 0, 2]), "constant predictor"),
    ],
)
def test_what_has_not_is(counts, check):
    found = checks.constant_predictor(*answers(*counts))
    assert (found.check, found.severity) == (check, "invalid")


def test_pictures_of_one_class_cannot_tell():
    found = checks.constant_predictor(*answers([5, 0, 0]))
    assert found.severity == "suspect"
    assert "several classes" in found.message


@dataclass(frozen=True, kw_only=True, repr=False)
class Leaving(Attack):
    """A broken attack: it goes further than it says."""

    def craft(self, model, images, labels, generator, targeted=False):
        return images + 2 * self.eps


def test_an_attack_that_leaves_its_ball_is_found(sound, blobs):
    scores = testing.test(sound["pgd"], blobs.test, [Leaving(), FGSM()], progress=False)
    (finding,) = scores.findings
    assert (finding.check, finding.severity) == ("inside the ball", "invalid")
    assert scores.verdict("Leaving") == "invalid"
    assert scores.verdict("FGSM") == ""
    assert scores.verdict("worst case") == "invalid"


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (PGD(step_size=2 / 225), "no quarter of 1/255 and no simple part of ε; 2/225"),
        (PGD(step_size=2), "over twice ε"),
        (PGD(steps=3, step_size=2 / 255), "3 steps of 2/255 cannot cross ε = 8/255"),
        (PGD(norm="L2", steps=7, step_size=2 / 255), "7 steps of 0.007843 cannot cross ε = 0.5"),
        (PGD(norm="L2", eps=8 / 255, step_size=2), "α = 2 is over twice ε"),
    ],
    ids=str,
)
def test_odd_step_sizes_are_suspect(attack, message):
    finding = checks.step_sizes("PGD", attack)
    assert finding.severity == "suspect"
    assert message in finding.message


def test_usual_step_sizes_are_not():
    usual = (PGD(), PGD(step_size=0.5 / 255, steps=40), PGD(step_size=4 / 255, steps=3), FGSM())
    for attack in (*usual, PGD(step_size=0.8 / 255, steps=20), PGD(step_size=2.5 * 8 / 255 / 20, steps=20)):
        assert checks.step_sizes("x", attack) is None
    for steps in (1, 2, 7, 10, 20, 100):
        assert checks.step_sizes("x", PGD(norm="L2", eps=0.3, steps=steps)) is None or steps == 1


@dataclass(frozen=True, kw_only=True, repr=False)
class Nothing(Attack):
    """A broken attack: it gives NaN."""

    def craft(self, model, images, labels, generator, targeted=False):
        return images * math.nan


def test_an_attack_that_gives_nan_is_found(sound, blobs):
    scores = testing.test(sound["pgd"], blobs.test, [Nothing()], progress=False)
    assert scores.verdict("Nothing") == "invalid"


@pytest.mark.parametrize(("off", "is_found"), [(0, False), (5, True)])
def test_statistics_of_other_weights_are_found(off, is_found, sound, blobs):
    images, labels = blobs.test.batch(slice(None))
    model = behind_batchnorm(sound["pgd"], images, off).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = checks.stale_statistics(model, images, labels)
    assert (found is not None) == is_found
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert checks.stale_statistics(model, images[:31], labels[:31]) is None


@pytest.mark.parametrize(("each", "right", "is_found"), [(20, 0, True), (20, 1, False), (3, 0, False)])
def test_a_class_that_is_never_right_is_found_where_that_is_no_chance(each, right, is_found):
    labels = torch.arange(3).repeat_interleave(each)
    said = torch.where(labels == 2, 1, labels)
    said[-right or len(said) :] = 2
    found = checks.worst_class(said, labels, ["a", "b", "c"])
    assert (found is not None) == is_found
    assert not found or f"of the {each} pictures of 'c' none is right" in found.message


def test_frozen_features_are_those_of_the_source(sound, blobs):
    images = blobs.test.batch(slice(32))[0]
    source = models.model_of(sound["pgd"])
    tuned = copy.deepcopy(source)
    with torch.no_grad(), evaluating(source), evaluating(tuned):
        tuned.network[-1].weight.add_(1)
        assert checks.frozen_features(source, tuned, images) is None
        tuned.network[1].running_mean.add_(0.01)
        assert checks.frozen_features(source, tuned, images).severity == "invalid"


@pytest.mark.parametrize(("count", "back", "is_found"), [(100, 1, False), (100, 2, True), (1000, 10, False)])
def test_what_does_not_survive_eight_bits_is_counted(count, back, is_found):
    stood, again = torch.arange(count) < count // 2, torch.arange(count) < count // 2 + back
    assert (checks.eight_bits("PGD", stood, again) is not None) == is_found
    assert checks.eight_bits("PGD", again, stood) is None  # more are fooled after it: that is the attack's luck
