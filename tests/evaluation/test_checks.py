"""The checks one by one: what they find, from which threshold on, and which rows of a table that concerns."""

import copy
import math

import pytest
import torch
from torch import nn

import models
from attacks import FGSM, PGD, Square, evaluating
from evaluation import checks, testing
from evaluation.flaws import attacks as broken
from evaluation.flaws import models as flawed
from evaluation.per_example import Extent
from evaluation.transfer_attack import transfer_attack

PLANTED = {
    "NaN logits": (lambda inner, x: inner(x) * math.nan, "finite logits", "invalid"),
    "says one class": (flawed.constant, "no better than chance", "invalid"),
    "says one class for most": (flawed.mostly_one, "constant predictor", "invalid"),
    "quantised input": (flawed.quantised, "masked gradient", "invalid"),
    "detached": (lambda inner, x: inner(x.detach()), "masked gradient", "invalid"),
    "batch statistics": (flawed.batch_centred, "batch independence", "invalid"),
    "noise": (flawed.noisy, "randomness", "suspect"),
    "softmax": (lambda inner, x: inner(x).softmax(1), "logits", "suspect"),
}


@pytest.mark.parametrize("flaw", PLANTED)
def test_flawed_models_are_found(flaw, sound, blobs):
    around, check, severity = PLANTED[flaw]
    scores = testing.test(flawed.Flawed(sound["pgd"], around), blobs.test, [FGSM()], progress=False)
    found = {finding.check: finding for finding in scores.findings}
    assert check in found
    assert found[check].severity == severity
    verdicts = scores.table().verdict
    assert verdicts["FGSM"] == severity
    assert verdicts["clean"] == ("no finding" if check == "masked gradient" else severity)


def test_a_carried_attack_is_the_remedy_for_a_masked_gradient(sound, blobs):
    masked = flawed.Flawed(sound["pgd"], PLANTED["quantised input"][0])
    assert transfer_attack(sound["pgd"], masked, blobs.test, PGD(), progress=False).findings == []


def test_nan_gradients_are_no_robustness(sound, blobs):
    scores = testing.test(
        flawed.Flawed(sound["standard"], flawed.broken_gradient), blobs.test, [FGSM(), PGD()], progress=False
    )
    assert [finding.check for finding in scores.findings if finding.severity == "invalid"] == ["masked gradient"]
    with pytest.warns(RuntimeWarning, match="not finite"):
        FGSM()(flawed.Flawed(sound["standard"], flawed.broken_gradient).eval(), *blobs.test.batch(torch.arange(4)))


def test_nan_logits_under_attack_are_no_robustness(sound, blobs):
    attack = PGD(step_size=0.5 / 255, steps=20)
    scores = testing.test(
        flawed.Flawed(sound["standard"], flawed.broken_off_the_grid), blobs.test, [attack], progress=False
    )
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


def test_an_attack_that_leaves_its_ball_is_found(sound, blobs):
    scores = testing.test(sound["pgd"], blobs.test, [broken.Leaving(), FGSM()], progress=False)
    (finding,) = scores.findings
    assert (finding.check, finding.severity) == ("inside the ball", "invalid")
    assert scores.verdict("PGD-10") == "invalid"
    assert scores.verdict("FGSM") == ""
    assert scores.verdict("worst case") == "invalid"


@pytest.mark.parametrize(
    ("attack", "message"),
    [
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


def test_an_attack_that_gives_nan_is_found(sound, blobs):
    scores = testing.test(sound["pgd"], blobs.test, [broken.Broken()], progress=False)
    assert scores.verdict("Broken") == "invalid"


@pytest.mark.parametrize(("off", "is_found"), [(0, False), (5, True)])
def test_statistics_of_other_weights_are_found(off, is_found, sound, blobs):
    images, labels = blobs.test.batch(slice(None))
    model = flawed.behind_batchnorm(sound["pgd"], images, off).eval()
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


# --- from which size on ----------------------------------------------------------------------------


class Asked(nn.Module):
    """What `forward(images, number of the call)` gives; it stays in eval mode and has no weights."""

    def __init__(self, forward):
        super().__init__()
        self.answer, self.calls = forward, 0
        self.eval()

    def forward(self, images):
        self.calls += 1
        return self.answer(images, self.calls)


PIXELS = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
LOGITS = 1000 + torch.tensor([[3.0, 1, -4]]).repeat(6, 1)  # whose size is 4, wherever they lie


def shifted(by, place=(1, 0), when=lambda count, call: True):
    """Logits that the batch's size, or the number of the call, changes in one place."""

    def answer(images, call):
        logits = LOGITS[: len(images)].clone()
        if len(images) > place[0] and when(len(images), call):
            logits[place] += by
        return logits

    return Asked(answer)


def confused(sizes, taken):
    """Labels of classes of these sizes, and predictions that take so many of the others for the first class."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    said = labels.clone()
    said[sizes[0] : sizes[0] + taken] = 0
    return said, labels, len(sizes)


def extent(**values):
    usual = {"largest": 8 / 255, "low": 0.0, "high": 1.0, "broken": 0, "still": 0, "seconds": 1.0}
    return Extent(**usual | values)


def moving_buffer(shape):
    def answer(images, call):
        model.register_buffer("kept", torch.zeros(shape))
        return LOGITS[: len(images)]

    model = Asked(answer)
    model.register_buffer("kept", torch.zeros(2))
    return model


def asking(times):
    def answer(images, call):
        for _ in range(times):
            with torch.enable_grad():
                point = images.detach().requires_grad_()
                torch.autograd.grad(point.sum(), point)
        return LOGITS[: len(images)]

    return Asked(answer)


def dead_in(*places):
    """A linear network whose gradient is zero in these pictures."""
    mask = torch.ones(6, 1, 1, 1)
    mask[list(places)] = 0
    return Asked(lambda images, call: (images * mask).flatten(1) @ torch.linspace(-1, 1, 144).view(48, 3))


def sure_in(*places):
    """A linear network that is so sure of these pictures that the textbook's loss is flat there."""
    size = torch.ones(6, 1)
    size[list(places)] = 1e6
    return Asked(lambda images, call: size * (images.flatten(1).sum(1, keepdim=True) @ torch.tensor([[1.0, -1]])))


ZEROS, PGD_8 = torch.zeros(6).long(), PGD(eps=8 / 255)
EDGES = {  # what is asked; the finding's severity, measured value, threshold and a part of what it says, or None
    "no NaN": (lambda: checks.finite_logits(LOGITS), None),
    "a NaN": (
        lambda: checks.finite_logits(torch.cat([LOGITS, LOGITS[:1] * math.inf])),
        ("invalid", 1, 0, "1 examples have"),
    ),
    "above chance": (lambda: checks.better_than_chance(0.3201, 0.3), None),
    "at chance": (
        lambda: checks.better_than_chance(0.3199, 0.3),
        ("invalid", 0.3199, 0.32, "32.0 %, where always saying one class gives 30.0 %"),
    ),
    "half is taken": (lambda: checks.constant_predictor(*confused([100] * 4, 150)), None),
    "over half is taken": (
        lambda: checks.constant_predictor(*confused([100] * 4, 151)),
        ("invalid", 151 / 300, 0.5, "50.3 % of the pictures of all other classes"),
    ),
    "classes as large as chance has it": (
        lambda: checks.constant_predictor(*confused([130, 90, 90, 90], 140)),
        ("invalid", 140 / 270, 0.5, "51.9 %"),
    ),
    "larger than that": (lambda: checks.constant_predictor(*confused([131, 90, 90, 89], 140)), None),
    "of two classes": (lambda: checks.constant_predictor(*confused([100, 100], 60)), None),
    "every gradient": (lambda: checks.masked_gradient(dead_in(), PIXELS, ZEROS), None),
    "a dead gradient": (
        lambda: checks.masked_gradient(dead_in(2), PIXELS, ZEROS),
        ("invalid", 1 / 6, 0, "16.7 % of the examples"),
    ),
    "no loss is flat": (lambda: checks.saturated_loss(sure_in(), PIXELS, ZEROS, ("x",)), None),
    "a flat loss": (
        lambda: checks.saturated_loss(sure_in(1, 4, 5), PIXELS, ZEROS, ("x",)),
        ("invalid", 0.5, 0, "saturates on 50.0 %"),
    ),
    "a batch that hardly matters": (
        lambda: checks.batch_independence(shifted(0.0035, when=lambda count, _: count > 1), PIXELS),
        None,
    ),
    "a batch that matters": (
        lambda: checks.batch_independence(shifted(0.0045, when=lambda count, _: count > 1), PIXELS),
        ("invalid", pytest.approx(0.0045 / 4, rel=0.05), 1e-3, "the rest of its batch"),
    ),
    "the fifth picture of a batch": (
        lambda: checks.batch_independence(shifted(1, (4, 0), lambda count, _: count > 1), PIXELS),
        None,
    ),
    "hardly random": (lambda: checks.randomness(shifted(0.0003, when=lambda _, call: call == 5), PIXELS), None),
    "random the fifth time": (
        lambda: checks.randomness(shifted(0.0006, when=lambda _, call: call == 5), PIXELS),
        ("suspect", pytest.approx(0.00015, rel=0.3), 1e-4, "answers at random"),
    ),
    "asked no sixth time": (lambda: checks.randomness(shifted(1, when=lambda _, call: call == 6), PIXELS), None),
    "a buffer that stays": (lambda: checks.unchanging(moving_buffer(2), PIXELS), None),
    "a buffer that grows": (
        lambda: checks.unchanging(moving_buffer(3), PIXELS),
        ("invalid", 1, 0, "(kept, 1 in all)"),
    ),
    "nearly probabilities": (lambda: checks.probabilities(torch.full((4, 2), 0.50006)), None),
    "probabilities": (
        lambda: checks.probabilities(torch.tensor([[0.50004, 0.5], [0, 1]])),
        ("suspect", 1, 0, "are probabilities"),
    ),
    "sums of one with a negative": (lambda: checks.probabilities(torch.tensor([[1.5, -0.5]])), None),
    "a single one": (lambda: checks.probabilities(torch.ones(4, 1)), None),
    "no gradient within": (lambda: checks.gradients_in_forward(asking(0), PIXELS), None),
    "gradients within": (
        lambda: checks.gradients_in_forward(asking(2), PIXELS),
        ("suspect", 2, 0, "computes gradients while"),
    ),
    "inside the ball": (lambda: checks.inside_ball("x", PGD_8, extent(largest=8 / 255 + 0.9e-6)), None),
    "outside": (
        lambda: checks.inside_ball("x", PGD_8, extent(largest=8 / 255 + 1.1e-6)),
        ("invalid", pytest.approx(1.1e-6), 1e-6, "|δ| = 8/255"),
    ),
    "below 0": (
        lambda: checks.inside_ball("x", PGD_8, extent(low=-0.01)),
        ("invalid", pytest.approx(0.01), 1e-6, "pixels from -0.01 to 1"),
    ),
    "above 1": (
        lambda: checks.inside_ball("x", PGD_8, extent(high=1.01)),
        ("invalid", pytest.approx(0.01), 1e-6, "to 1.01"),
    ),
    "inside in L2": (
        lambda: checks.inside_ball("x", PGD(norm="L2", eps=0.5), extent(largest=0.5 + 0.9e-4)),
        None,
    ),
    "outside in L2": (
        lambda: checks.inside_ball("x", PGD(norm="L2", eps=0.5), extent(largest=0.5 + 1.1e-4)),
        ("invalid", pytest.approx(1.1e-4), 1e-6, "|δ| = 0.5001"),
    ),
    "NaN in all": (
        lambda: checks.inside_ball("x", PGD_8, extent(broken=3)),
        ("invalid", 3, 0, "3 examples made by"),
    ),
    "half of ε": (lambda: checks.uses_its_eps("x", PGD_8, extent(largest=4.01 / 255), 100), None),
    "less than half of ε": (
        lambda: checks.uses_its_eps("x", PGD_8, extent(largest=3.99 / 255), 100),
        ("suspect", 3.99 / 255, 4 / 255, "no pixel by more than 3.99/255"),
    ),
    "nothing was attacked": (lambda: checks.uses_its_eps("x", PGD_8, extent(largest=0.0), 0), None),
    "a hundredth unchanged": (lambda: checks.uses_its_eps("x", PGD_8, extent(still=2), 200), None),
    "more unchanged": (
        lambda: checks.uses_its_eps("x", PGD_8, extent(still=2), 190),
        ("suspect", 2 / 190, 0.01, "2 of 190 examples were not changed"),
    ),
    "one of few unchanged": (lambda: checks.uses_its_eps("x", PGD_8, extent(still=1), 10), None),
    "nothing changed, by no steps": (
        lambda: checks.uses_its_eps("x", Square(eps=8 / 255), extent(largest=0.0, still=90), 90),
        ("suspect", 1.0, 0.01, "changed none of 90 examples"),
    ),
    "one alone, by no steps": (lambda: checks.uses_its_eps("x", Square(), extent(largest=0.0, still=1), 1), None),
    "no ε, no change": (lambda: checks.zero_eps(PGD_8, 0.9e-6), None),
    "no ε, and a change": (lambda: checks.zero_eps(PGD_8, 1 / 255), ("invalid", 1 / 255, 1e-6, "by up to 1/255")),
    "no ε, and NaN": (lambda: checks.zero_eps(PGD_8, math.inf), ("invalid", math.inf, 1e-6, "by up to inf")),
    "steps that just reach": (lambda: checks.step_sizes("x", PGD(step_size=2 / 255, steps=4)), None),
    "steps that do not": (
        lambda: checks.step_sizes("x", PGD(step_size=2 / 255, steps=3)),
        ("suspect", 6 / 255, 8 / 255, "3 steps of 2/255 cannot cross ε = 8/255"),
    ),
    "twice ε": (lambda: checks.step_sizes("x", PGD(step_size=16 / 255)), None),
    "over twice ε": (
        lambda: checks.step_sizes("x", PGD(step_size=17 / 255)),
        ("suspect", 17 / 255, 16 / 255, "α = 17/255 is over twice ε"),
    ),
    "a quarter": (lambda: checks.step_sizes("x", PGD(step_size=2.25 / 255)), None),
    "a part of ε": (lambda: checks.step_sizes("x", PGD(step_size=8 / 255 / 3)), None),
    "no quarter": (
        lambda: checks.step_sizes("x", PGD(step_size=2 / 225)),
        ("suspect", pytest.approx(2 / 225 * 255), 0.25, "2.267/255 is no quarter"),
    ),
    "no quarter in L2": (lambda: checks.step_sizes("x", PGD(norm="L2", eps=0.3, step_size=0.0777)), None),
    "converged": (lambda: checks.convergence(PGD_8, 0.05), None),
    "not converged": (lambda: checks.convergence(PGD_8, 0.06), ("suspect", 0.06, 0.05, "by 0.06; it needs more")),
    "repeatable": (lambda: checks.repeatable(0.001), None),
    "not repeatable": (lambda: checks.repeatable(0.005), ("invalid", 0.005, 0.001, "on 0.5 % of")),
}


@pytest.mark.parametrize("case", EDGES)
def test_from_its_threshold_on_and_not_before(case):
    ask, expected = EDGES[case]
    finding = ask()
    if expected is None:
        assert finding is None
        return
    severity, measured, threshold, says = expected
    assert (finding.severity, finding.measured) == (severity, pytest.approx(measured))
    assert finding.threshold == pytest.approx(threshold)
    assert says in finding.message


@pytest.mark.parametrize(("count", "is_found"), [(31, False), (32, True)])
def test_statistics_are_judged_from_32_pictures_on(count, is_found, sound, blobs):
    model = copy.deepcopy(sound["standard"]).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean += 5
    assert (checks.stale_statistics(model, *blobs.test.batch(slice(count))) is not None) == is_found
