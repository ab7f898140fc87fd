"""What tests of defences share: the loss of one batch, and what a network is given for it."""

from small import generator

import models


def given(network):
    """Collects what a network is given in training mode, and what in eval mode."""
    seen = {True: [], False: []}
    network.register_forward_pre_hook(
        lambda module, inputs: seen[module.training].append(inputs[0].detach().clone())
    )
    return seen


def small_model(seed=0):
    return models.build("resnet18", 4, width=2, seed=seed).eval()


def call(defence, model, batch):
    return defence.loss(model, *batch, progress=0.5, generator=generator())[0]
