"""TRADES and MART."""

import pytest
import torch
from one_step import call, given
from small import generator, small_network
from torch import nn

from attacks import FGSM, PGD
from defences import (
    AWP,
    MART,
    TRADES,
)


@pytest.mark.parametrize("kind", [TRADES, MART])
def test_the_pull_grows_with_its_weight_and_the_pictures_stay_within_eps(kind, batch):
    network, (name, usual) = small_network(), {TRADES: ("beta", 6.0), MART: ("weight", 5.0)}[kind]
    defences = [kind(PGD(eps=0.02), **{name: w}) for w in (0, usual, 2 * usual)]
    losses = [call(defence, network.eval(), batch).item() for defence in defences]
    assert losses[1] - losses[0] == pytest.approx(losses[2] - losses[1], rel=0.01)
    assert losses[1] > losses[0]
    assert losses[1] == call(kind(PGD(eps=0.02)), network, batch).item()
    seen = given(network.train())
    kind(PGD(eps=0.02)).loss(network, *batch, progress=0, generator=generator())
    clean, adversarial = seen[True]
    assert torch.equal(clean, batch[0])
    assert 0.019 < (adversarial - clean).abs().max() <= 0.02 + 1e-6
    assert 0 <= adversarial.min() <= adversarial.max() <= 1


def test_trades_begins_in_the_precision_of_the_pictures(batch):
    """Noise of 0.001, and what it does to the logits, would be lost in bfloat16."""
    network, kinds = small_network().eval(), []
    network[6].register_forward_hook(lambda module, inputs, out: kinds.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        TRADES(PGD(steps=3)).loss(network, *batch, progress=1, generator=generator())
    assert kinds == [torch.float32] * 2 + [torch.bfloat16] * 4  # clean, first step; two steps, both passes


def test_mart_on_logits_that_leave_no_probability_is_finite(batch):
    class Sure(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1e4))

        def forward(self, images):
            return self.scale * images.flatten(1)[:, :4]

    network = Sure()
    for defence in (MART(PGD(steps=1)), TRADES(PGD(steps=1)), AWP(MART(PGD(steps=1)))):
        loss, _ = defence.loss(network, *batch, progress=0, generator=generator())
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(network.scale.grad)


def test_errors_are_clear():
    for attack in (FGSM(), PGD(restarts=2), PGD(random_start=False)):
        with pytest.raises(ValueError, match="a PGD from a random start, without restarts"):
            TRADES(attack)
    with pytest.raises(ValueError, match="TRADES: beta=-1"):
        TRADES(beta=-1)
    with pytest.raises(ValueError, match="MART: weight="):
        MART(weight=float("nan"))
