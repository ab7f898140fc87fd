"""What people complained of in public about adversarial training elsewhere, done here as they did it.

The first line of a docstring says who and where, and what; the assertions say what is right.
"""

import copy
from dataclasses import replace

import pytest
import torch
from small import Blobs, Quarters, pictures, small_network

from attacks import PGD
from defences import MART, TRADES, Adversarial
from trainer import Recipe
from training import step

FEW = PGD(steps=2)


def loss_of(defence, model, images, labels):
    generator = torch.Generator().manual_seed(0)
    return defence.loss(model, images, labels, progress=0.5, generator=generator, memory={})[0]


def test_crafting_in_training_is_in_eval_mode():
    """locuslab/fast_adversarial #14: adversarial training crafts with dropout, and moves BatchNorm's statistics.

    The same: MadryLab/cifar10_challenge #22, QData/TextAttack #457. Right: it crafts in eval mode and learns in
    training mode.
    """
    model, modes = small_network().train(), []
    model.register_forward_hook(lambda module, *_: modes.append(module.training))
    loss_of(Adversarial(FEW), model, *pictures())
    assert modes == [False, False, True]


@pytest.mark.parametrize("defence", [Adversarial(FEW), TRADES(FEW), MART(FEW)], ids=lambda one: type(one).__name__)
def test_a_defence_leaves_the_model_in_training_mode(defence):
    """yaodongyu/TRADES #32: the loss of TRADES leaves the model in eval mode, so BatchNorm no longer learns."""
    model = small_network().train()
    loss_of(defence, model, *pictures())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("defence", [TRADES(FEW), MART(FEW)], ids=lambda one: type(one).__name__)
def test_certainty_makes_no_nan(defence):
    """yaodongyu/TRADES #30: the loss of TRADES is NaN, for a probability is 0.

    Right: loss and gradients are finite, however sure the network is.
    """
    model = Quarters(change=lambda logits: 1e5 * logits).train()
    loss = loss_of(defence, model, *Blobs().split(16, 0, "few").batch(torch.arange(16)))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(model.weight.grad)


def test_clipping_is_of_the_gradient_itself():
    """Lightning-AI/pytorch-lightning #9599: in float16 the scaled gradient is clipped, and nothing is learned.

    The same: milesial/Pytorch-UNet #468, pytorch/examples #1196. Right: a step is as long as in float32.
    """
    recipe = Recipe(epochs=1, batch_size=16, clip_gradient=1e-3, schedule="constant", weight_decay=0.0)
    batch, lengths = Blobs().split(16, 0, "few").batch(torch.arange(16)), {}
    for precision in ("float32", "float16"):
        model = small_network()
        before = copy.deepcopy(model)
        state = step.State(model, replace(recipe, precision=precision), 4, torch.device("cpu"))
        step.train_step(state, *batch)
        way = [(new - old).detach() for new, old in zip(model.parameters(), before.parameters(), strict=True)]
        lengths[precision] = float(torch.cat([part.flatten() for part in way]).norm())
    assert lengths["float16"] == pytest.approx(lengths["float32"], rel=0.02)
    assert lengths["float32"] > 0
