"""AWP."""

import pytest
import torch
from one_step import call, small_model
from small import generator, small_network

from attacks import PGD
from defences import AWP, L2SP, Adversarial, Free, Guided, Standard


def test_awp_leaves_weights_and_statistics_as_they_were_and_frozen_layers_alone(batch):
    network, plain = small_network().train(), small_network().train()
    for one in (network, plain):
        one[3].p = 0.0
        one[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    loss, _ = AWP(Standard(), 0.1).loss(network, *batch, progress=0, generator=generator())
    loss.backward()
    calm, _ = Standard().loss(plain, *batch, progress=0, generator=generator())
    calm.backward()
    assert loss > calm
    assert network[0].weight.grad is None
    assert not torch.allclose(network[6].weight.grad, plain[6].weight.grad)
    for name, value in network.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name  # BatchNorm has moved once, as for the other
        assert torch.equal(value, before[name]) == ("running" not in name and "num_batches" not in name), name
    assert torch.equal(call(AWP(Standard(), 0), network.eval(), batch), call(Standard(), network, batch))


def test_errors_are_clear():
    with pytest.raises(ValueError, match="AWP: gamma=1"):
        AWP(Standard(), 1)

    class Own(Adversarial):
        def loss(self, model, images, labels, **rest):
            return super().loss(model, images, labels, **rest)

    for inner in (Free(), Guided(), L2SP(Standard(), small_model()), Own(PGD())):
        with pytest.raises(TypeError, match="has a loss that is not made of the halves"):
            AWP(inner)
