import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from training.sgd import SGD


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5)).to(dtype)


def stepped(model, optimizer, steps, unused=None):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        images = torch.randn(6, 3, 8, 8, generator=generator, dtype=model[0].weight.dtype)
        optimizer.zero_grad()
        model(images).square().mean().backward()
        if unused is not None:
            unused.grad = None
        optimizer.step()


def groups(model, **rates):
    return [{"params": [*model[:2].parameters()], **rates}, {"params": [*model[3].parameters()], **rates}]


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_weights_are_those_of_torch_bit_by_bit(momentum, dtype):
    ours, theirs = network(dtype), network(dtype)
    settings = {"momentum": momentum, "weight_decay": 5e-4}
    mine = SGD(groups(ours, lr=0.1), **settings)
    reference = torch.optim.SGD(groups(theirs), lr=0.1, nesterov=momentum > 0, fused=True, **settings)
    stepped(ours, mine, 4, unused=ours[3].bias)
    stepped(theirs, reference, 4, unused=theirs[3].bias)
    for group in mine.param_groups + reference.param_groups:
        group["lr"] = 0.03
    stepped(ours, mine, 3, unused=ours[3].bias)
    stepped(theirs, reference, 3, unused=theirs[3].bias)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_was_kept_goes_on_also_that_of_torch():
    whole, parts = network(), network()
    once, first = (SGD(groups(model, lr=0.1), momentum=0.9, weight_decay=5e-4) for model in (whole, parts))
    stepped(whole, once, 2)
    stepped(parts, first, 2)
    theirs = copy.deepcopy(parts)
    reference = torch.optim.SGD(groups(theirs), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True)
    again = SGD(groups(parts, lr=0.1), momentum=0.9, weight_decay=5e-4)
    again.load_state_dict(copy.deepcopy(first.state_dict()))
    reference.load_state_dict({**reference.state_dict(), "state": copy.deepcopy(first.state_dict()["state"])})
    back = SGD(groups(theirs, lr=0.1), momentum=0.9, weight_decay=5e-4)
    back.load_state_dict(reference.state_dict())
    for model, optimizer in ((whole, once), (parts, again), (theirs, back)):
        stepped(model, optimizer, 2)
    for one, two, three in zip(whole.parameters(), parts.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


def test_momentum_of_a_checkpoint_from_before_the_first_step_is_none():
    model = network()
    optimizer = SGD(groups(model, lr=0.1), momentum=0.9, weight_decay=0.0)
    stepped(model, optimizer, 1)
    reference = torch.optim.SGD(groups(model), lr=0.1, momentum=0.9)
    optimizer.load_state_dict(reference.state_dict())
    assert not any(kept["momentum_buffer"].any() for kept in optimizer.state.values())


def test_the_scaler_of_float16_steps_over_what_overflows():
    model = network()
    optimizer = SGD(groups(model, lr=0.1), momentum=0.9, weight_decay=0.0)
    scaler, before = torch.amp.GradScaler("cpu", init_scale=4.0), copy.deepcopy(model.state_dict())
    scaler.scale(torch.ones(()))  # makes its tensors
    for value in (float("inf"), 1.0):
        optimizer.zero_grad()
        for weight in model.parameters():
            weight.grad = 4 * torch.full_like(weight, value)
        scaler.step(optimizer)
        scaler.update()
        change = model[3].bias - before["3.bias"]
        if value == 1.0:  # the scale was halved: gradients of 4 at a scale of 2, with Nesterov's momentum
            assert torch.allclose(change, torch.full_like(change, -0.1 * 2 * 1.9))
        else:
            assert not change.any()


def test_training_imports_no_compiler():
    """It takes 1.5 s in every process."""
    code = (
        "import sys, torch, models; from trainer import Recipe; from training.step import State, train_step\n"
        "model = models.build('shallow_cnn', 10)\n"
        "state = State(model, Recipe(epochs=1, precision='float32'), 2, torch.device('cpu'))\n"
        "train_step(state, torch.rand(4, 3, 32, 32), torch.arange(4))\n"
        "print('torch._dynamo' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "False"
