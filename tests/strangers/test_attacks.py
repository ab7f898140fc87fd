"""What people complained of in public about attacks elsewhere: norms, steps and gradients.

The first line of a docstring says who and where, and what; the assertions say what is right.
"""

import pytest
import torch
from small import pictures
from torch import nn

from attacks import APGD, FGSM, OURS, PGD, AutoAttack, Noise, Square, Torchattacks
from evaluation.audit import audit
from evaluation.testing import test as score

SHORT = {"steps": 3, "queries": 10}


def short(kind):
    """An attack of that kind, as weak as it can be made without saying what it does not know."""
    known = vars(kind())
    return kind(**{name: value for name, value in SHORT.items() if name in known})


def steps_found(model, split, attack):
    scores = score(model, split, [attack], progress=False)
    return scores.share(attack.label), [f.message for f in scores.findings if f.check == "step size"]


def test_pgd_in_l2_goes_as_far_as_it_may(sound, blobs):
    """Harry24k/adversarial-attacks-pytorch #142: L2 PGD that hardly moves, so that a network looks robust.

    Right: without a step size it is as strong as with a good one; with one too short, that is a finding, as in L∞.
    """
    model, few, eps = sound["pgd"], blobs.test.first(64), 0.5
    good, found = steps_found(model, few, PGD(norm="L2", eps=eps, step_size=2.5 * eps / 20, steps=20))
    assert not found
    for steps in (7, 20):
        share, found = steps_found(model, few, PGD(norm="L2", eps=eps, steps=steps))
        assert share == pytest.approx(good, abs=0.05)
        assert not found
    weak, (found,) = steps_found(model, few, PGD(norm="L2", eps=eps, step_size=2 / 255, steps=20))
    assert weak > good + 0.1
    assert "20 steps of 0.007843 cannot cross ε = 0.5" in found
    audited = audit(model, few, PGD(norm="L2", eps=eps, step_size=2 / 255, steps=20), progress=False)
    assert {"step size", "more steps"} <= {f.check for f in audited.findings}


def test_a_step_size_need_not_be_guessed(sound, blobs):
    """bethgelab/foolbox #685: by which strategy is the step size of PGD chosen?

    Right: 2/255, in L2 2.5 ε / steps; it grows with ε where the attack is scaled, and the verdict knows it.
    """
    assert PGD().step_size == 2 / 255
    assert PGD(norm="L2", eps=2.0, steps=40).step_size == 2.5 * 2.0 / 40
    assert PGD(norm="L2").scaled(3).step_size == pytest.approx(2.5 * 1.5 / 10)
    _, (found,) = steps_found(sound["pgd"], blobs.test.first(16), PGD(eps=4 / 255, step_size=0.1 / 255))
    assert "10 steps of 0.1/255 cannot cross ε = 4/255" in found


def test_steps_that_are_too_long_are_named(sound, blobs):
    """MadryLab/robustness #11: with steps of 0.1 and ε = 0.03 a standard network keeps 40 %, not next to nothing.

    Right: the number comes with a finding, in both norms.
    """
    for attack in (PGD(eps=0.03, step_size=0.1, steps=20), PGD(norm="L2", eps=0.3, step_size=1.0, steps=20)):
        _, (found,) = steps_found(sound["standard"], blobs.test.first(16), attack)
        assert "is over twice ε" in found


@pytest.mark.parametrize(
    "attack", [*map(short, OURS), PGD(norm="L2"), AutoAttack(norm="L2", **SHORT), Torchattacks("PGD")]
)
def test_no_attack_runs_without_gradients_and_keeps_silent(attack, network):
    """BorealisAI/advertorch #79: an attack is called from an evaluation loop in which gradients are off.

    Right: inside torch.no_grad() it gives the usual result; inside torch.inference_mode() an error says why not,
    unless it needs no gradient.
    """
    network.eval()
    images, _ = pictures()
    labels = network(images).argmax(1)

    def found():
        return attack(network, images, labels, generator=torch.Generator().manual_seed(0))

    expected = found()
    assert not torch.equal(expected, images)
    with torch.no_grad():
        assert torch.equal(found(), expected)
    with torch.inference_mode():
        if isinstance(attack, (Noise, Square)):
            assert torch.equal(found(), expected)
        else:
            with pytest.raises(RuntimeError, match=r"torch\.inference_mode.*call it outside"):
                found()


def test_an_evaluation_without_gradients_is_no_robustness(sound, blobs):
    """Trusted-AI/adversarial-robustness-toolbox #498: inside torch.no_grad() white-box attacks stop with an error.

    Right: the same scores as outside; in inference mode a plain error.
    """
    few = blobs.test.first(32)
    expected = score(sound["pgd"], few, [PGD()], progress=False)
    with torch.no_grad():
        assert score(sound["pgd"], few, [PGD()], progress=False).share("PGD-10") == expected.share("PGD-10")
    with torch.inference_mode(), pytest.raises(RuntimeError, match="call it outside"):
        score(sound["pgd"], few, [PGD()], progress=False)


class WithoutGradient(nn.Module):
    """A network whose author turned gradients off in its forward."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    @torch.no_grad()
    def forward(self, images):
        return self.network(images)


@pytest.mark.parametrize("attack", [FGSM(), PGD(), PGD(norm="L2"), APGD(steps=3), AutoAttack(**SHORT)], ids=str)
def test_a_model_that_turns_gradients_off_is_not_robust_for_that(attack, network):
    """locuslab/convex_adversarial #34: gradients are off in the code of the model, and the attack cannot work.

    Right: a warning from the attack itself, that no gradient leads to the images.
    """
    images, _ = pictures()
    model = WithoutGradient(network.eval())
    with pytest.warns(RuntimeWarning, match="no gradient leads from the logits of 6 of 6 examples"):
        attack(model, images, model(images).argmax(1))


@pytest.mark.parametrize("attack", [*map(short, OURS), Torchattacks("FGSM")])
def test_results_keep_no_graph(attack, network):
    """BorealisAI/advertorch #68: FGSM gives pictures that keep the graph, and memory grows with each batch.

    Right: no graph, whatever the caller's pictures ask for, and these are left as they are.
    """
    images, labels = pictures()
    images = (images / 2).requires_grad_()
    before = images.detach().clone()
    for shown in (images, images * 1):
        found = attack(network, shown, labels)
        assert not found.requires_grad
        assert found.grad_fn is None
    assert images.grad is None
    assert images.requires_grad
    assert torch.equal(images, before)
