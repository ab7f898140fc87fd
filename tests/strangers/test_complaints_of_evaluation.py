"""What people complained of in public about evaluations elsewhere, done here as they did it.

The first line of a docstring says who and where, and what; the assertions say what is right.
"""

import copy
from dataclasses import replace

import pytest
import torch
from small import Quarters, quarters, small_network
from torch import nn
from torch.nn.functional import dropout

from attacks import FGSM, MIFGSM, PGD, AutoAttack, Square, Torchattacks
from evaluation import audit, certified
from evaluation.diagnostics import loss_surface, margins
from evaluation.finding import CLEAN
from evaluation.published_tables import judge
from evaluation.scores import Scores
from trainer import test as score
from trainer import transfer_attack

SPLIT = quarters()
TRUTH = Quarters().withstood(SPLIT)


def evaluate(model, attacks=(), split=SPLIT):
    return score(model, split, attacks, progress=False)


def found(scores, check):
    """The severities of what a check has found."""
    return [finding.severity for finding in scores.findings if finding.check == check]


def test_confidence_stops_nobody():
    """cleverhans-lab/cleverhans #350: with a confident network FGSM leaves 45 % of the pictures unchanged.

    Right: our attacks get the exact number; one that follows the textbook's loss is struck out.
    """
    model = Quarters(change=lambda logits: 1e5 * logits)
    scores = evaluate(model, [FGSM(), PGD(), Torchattacks("BIM")])
    assert scores.share("FGSM") == scores.share("PGD-10") == pytest.approx(TRUTH)
    assert scores.share("BIM") > TRUTH + 0.1
    assert [scores.verdict(label) for label in ("FGSM", "PGD-10", "BIM")] == ["", "", "invalid"]


class Hidden(torch.autograd.Function):
    """Pictures as they are, whose gradient is zero."""

    @staticmethod
    def forward(ctx, images):
        return images.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.zeros_like(gradient)


class Before(Quarters):
    """Something happens to the pictures before they are looked at."""

    def __init__(self, prepare):
        super().__init__()
        self.prepare = prepare

    def forward(self, images):
        return super().forward(self.prepare(images))


def test_rounded_pixels_are_no_defence():
    """fra31/auto-attack #44: a model that rounds its pixels to 8 bits withstands almost every attack.

    Right: such numbers are struck out, and an attack that needs no gradient shows the truth.
    """
    scores = evaluate(Before(lambda images: (images * 255).round() / 255), [PGD(), Square(queries=200)])
    assert scores.share("PGD-10") > TRUTH + 0.1
    assert scores.verdict("PGD-10") == "invalid"
    assert found(scores, "masked gradient") == ["invalid"]
    assert scores.share("Square") == pytest.approx(TRUTH, abs=0.05)
    assert scores.verdict("Square") == ""


def test_a_killed_gradient_is_no_defence():
    """fra31/auto-attack #43: a layer that gives back a gradient of zero looks like a defence."""
    scores = evaluate(Before(Hidden.apply), [FGSM(), PGD(), MIFGSM()])
    assert all(scores.verdict(label) == "invalid" for label in scores.attacks)
    assert found(scores, "masked gradient") == ["invalid"]


def test_a_quantised_model_has_no_gradient_to_follow():
    """Harry24k/adversarial-attacks-pytorch #150: a quantised model gives no gradient, and the attack crashes.

    Right: what a gradient attack finds there is struck out, in words.
    """
    scores = evaluate(Before(torch.Tensor.detach), PGD())
    assert scores.verdict("PGD-10") == "invalid"
    assert "gradient" in str(scores.findings[0])


def test_probabilities_are_noticed():
    """bethgelab/foolbox #618: the model ends in a softmax, and attacks get weak without a word.

    The same: fra31/auto-attack #102.
    """
    assert found(evaluate(Quarters(change=lambda logits: (50 * logits).softmax(1)), PGD()), "logits") == [
        "suspect"
    ]
    log_softmax = evaluate(Quarters(change=lambda logits: (50 * logits).log_softmax(1)), PGD())
    assert log_softmax.share("PGD-10") == pytest.approx(TRUTH)
    assert not log_softmax.findings


def test_dropout_that_eval_does_not_reach():
    """pytorch/pytorch #26338: F.dropout in forward() still drops in eval mode.

    Right: the evaluation says that the model answers at random.
    """
    assert found(evaluate(Quarters(change=lambda logits: dropout(50 * logits, 0.2)), PGD()), "randomness")


def test_a_random_defence_has_its_own_attack():
    """fra31/auto-attack #15: how is a defence evaluated that answers at random?

    Right: it is noticed, and AutoAttack's version for it averages gradients over 20 passes.
    """
    model = Before(lambda images: images + 0.05 * torch.randn_like(images))
    attack = AutoAttack(version="rand", steps=5)
    scores = evaluate(model, attack, SPLIT.first(20))
    assert found(scores, "randomness") == ["suspect"]
    assert all(stage.samples == 20 for stage in attack.stages)
    assert "rand" in attack.label


def test_a_model_left_in_training_mode():
    """bethgelab/foolbox #74: attacks fail on a model that was left in training mode.

    The same: bethgelab/foolbox #648, fra31/auto-attack #74, RobustBench/robustbench #7, where two ways to count
    differ. Right: the number is that of eval mode, counted by hand or by us, and the model stays as it was.
    """
    model = small_network().train()
    scores = evaluate(model, PGD())
    assert model.training
    images, labels = SPLIT.batch(torch.arange(60))
    by_hand = float((copy.deepcopy(model).eval()(images).argmax(1) == labels).double().mean())
    assert scores.clean_accuracy == pytest.approx(by_hand)
    assert not found(scores, "training mode")


def test_statistics_of_the_batch_are_noticed():
    """yaodongyu/TRADES #3: accuracy depends on the size of the batch.

    The same after the advice of Trusted-AI/adversarial-robustness-toolbox #484, track_running_stats=False.
    Right: the evaluation is invalid and says why.
    """
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), Quarters())
    assert found(evaluate(model, PGD()), "batch independence") == ["invalid"]


def test_the_worst_case_is_taken_picture_by_picture():
    """ryderling/DEEPSEC #2: robustness is reported as the mean over the attacks.

    The same: fra31/auto-attack #45, Trusted-AI/adversarial-robustness-toolbox #714. Right: a picture counts where
    it withstands all of them.
    """
    outcomes = {CLEAN: [1, 1, 1, 0], "A": [1, 1, 0, 0], "B": [0, 0, 1, 0]}
    outcomes = {label: torch.tensor(marks).bool() for label, marks in outcomes.items()}
    assert Scores("four", outcomes, {"A": "A()", "B": "B()"}).robust_accuracy() == 0


def test_carried_examples_are_no_white_box():
    """ryderling/DEEPSEC #1: examples made on the undefended model are called an attack on the defended one.

    Right: they are labelled as carried, and the attack on the defended model itself finds more.
    """
    undefended = Before(lambda images: images[:, :1].expand(-1, 3, -1, -1))
    carried = transfer_attack(undefended, Quarters(), SPLIT, PGD(), source_name="another", progress=False)
    (label,) = carried.attacks
    assert "carried from another" in label
    assert carried.share(label) > TRUTH + 0.1
    assert evaluate(Quarters(), PGD()).share("PGD-10") == pytest.approx(TRUTH)


def test_what_is_wrong_without_an_attack_counts_as_lost():
    """bethgelab/foolbox #713: what becomes of the pictures that were wrong from the start?

    Right: they count as lost, and n is the number of all pictures.
    """
    scores = evaluate(Quarters(change=lambda logits: -logits), PGD(eps=1 / 255))
    assert scores.n == 60
    assert scores.share("PGD-10") <= scores.clean_accuracy < 0.2


def test_success_is_what_the_model_says_of_the_picture():
    """bethgelab/foolbox #711: more successes are reported than the model's own predictions show.

    The same: bethgelab/foolbox #674. Right: outcome and prediction agree for every picture.
    """
    made = []

    class Kept(PGD):
        def craft(self, model, images, labels, generator, targeted=False):
            made.append(super().craft(model, images, labels, generator, targeted))
            return made[-1]

    scores = evaluate(Quarters(), Kept())
    right = scores.outcome(CLEAN)
    stood = Quarters()(torch.cat(made)).argmax(1) == SPLIT.labels[right]
    assert torch.equal(scores.outcome("PGD-10")[right], stood)


def test_the_same_seed_gives_the_same_outcomes():
    """bethgelab/foolbox #243: an attack cannot be repeated, because nothing seeds it.

    The same: fra31/auto-attack #54. Right: outcomes depend on no other random numbers and on no other attack.
    """
    torch.manual_seed(1)
    one = evaluate(small_network(), [PGD(steps=2), Square(queries=20)])
    torch.manual_seed(2)
    other = evaluate(small_network(), [Square(queries=20), FGSM(), PGD(steps=2)])
    for label in one.outcomes:
        assert torch.equal(one.outcome(label), other.outcome(label))


def test_an_evaluation_leaves_the_random_numbers_alone():
    """Lightning-AI/pytorch-lightning #6988: whether something was validated before changes how training goes.

    Right: the global generator stands where it stood.
    """
    attacks = [PGD(steps=2), Square(queries=5), Torchattacks("PGD", steps=2)]
    before = torch.random.get_rng_state()
    evaluate(small_network(), attacks)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_hardly_a_picture_is_left_for_the_next_attack():
    """fra31/auto-attack #76: AutoAttack works for one ε and crashes for another.

    Right: the exact number, however few pictures an attack leaves to the next.
    """
    attack = AutoAttack(steps=5, queries=20)
    for eps in (18, 20, 24, 255):
        left = evaluate(Quarters(), replace(attack, eps=eps / 255)).share(attack.label)
        assert left == pytest.approx(Quarters().withstood(SPLIT, eps / 255))
    assert left == 0


def test_autocast_around_an_evaluation_changes_nothing():
    """fra31/auto-attack #51: may an evaluation run in mixed precision?

    Right: an evaluation is in float32, whatever stands around it.
    """
    images, labels = SPLIT.batch(slice(8))
    few, attack = SPLIT.first(40), PGD(steps=2)

    def numbers():
        model = small_network().eval()
        scores = [
            evaluate(model, attack),
            audit(model, few, attack, progress=False),
            certified(model, few, attack),
        ]
        seen = [*margins(model, few, attack).values(), loss_surface(model, images, labels, points=3)]
        return scores, seen

    outside = numbers()
    with torch.autocast("cpu", torch.bfloat16):
        inside = numbers()
    for one, other in zip(inside[0], outside[0], strict=True):
        assert one.findings == other.findings
        assert all(torch.equal(one.outcomes[row], outcome) for row, outcome in other.outcomes.items())
    assert all(map(torch.equal, inside[1], outside[1]))


def test_a_step_without_its_255():
    """gralliry/Adversarial-Attack-Generation-Techniques #2: with α = 1 the decay of MI-FGSM decides nothing.

    Right: a step of over twice ε is a finding.
    """
    assert found(evaluate(Quarters(), MIFGSM(eps=0.1, step_size=1.0)), "step size") == ["suspect"]


def test_a_cheaper_autoattack_says_so():
    """Harry24k/adversarial-attacks-pytorch #188: an AutoAttack with other settings gives another number.

    Right: what is not the standard has another name in every table.
    """
    assert AutoAttack().label == "AutoAttack"
    assert "cut short" in AutoAttack(steps=10).label


def test_a_model_that_only_fgsm_does_not_fool():
    """locuslab/fast_adversarial #4: trained with FGSM and a larger ε, the model overfits catastrophically.

    Right: a table that shows it is struck out.
    """
    (finding,) = judge(0.85, {"FGSM": 0.8, "PGD-20": 0.0})
    assert finding.check == "catastrophic overfitting"
    assert finding.severity == "invalid"


def test_two_models_that_are_both_at_chance():
    """tensorflow/neural-structured-learning #122: both models are 50 % robust, on two classes.

    Right: that is chance, and no number of it may be used.
    """
    assert judge(0.5, {"FGSM": 0.5, "PGD-20": 0.5}, chance=0.5)[0].severity == "invalid"
