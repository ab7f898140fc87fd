"""What test_batch_norm_kernels.py runs, in a process that has TRITON_INTERPRET=1 before it imports."""

import pytest
import torch
from torch import nn
from torch.nn.functional import batch_norm

from models.batch_norm_kernels import NormReLU

# Few channels, a number that fills no tile, and several tiles in each direction.
SHAPES = [(4, 16, 5, 5), (3, 20, 4, 3), (2, 130, 6, 6), (40, 8, 12, 12)]


def laid_out(tensor):
    return tensor.contiguous(memory_format=torch.channels_last).requires_grad_()


def ours(x, add, norm):
    return NormReLU.apply(x, add, norm.weight, norm.bias, norm)


def case(shape, dtype, adds):
    """Pictures far from zero, a shortcut or None, the gradient that arrives, and a BatchNorm."""
    generator = torch.Generator().manual_seed(0)
    x = laid_out((torch.randn(shape, generator=generator) * 2 + 5).to(dtype))
    add = laid_out(torch.randn(shape, generator=generator).to(dtype)) if adds else None
    norm = nn.BatchNorm2d(shape[1], momentum=0.3)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        tensor.data.normal_(generator=generator)
    return x, add, torch.randn(shape, generator=generator).to(dtype), norm


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_gradients_and_statistics_are_those_of_torch(shape, dtype, adds):
    x, add, arrives, norm = case(shape, dtype, adds)
    wide = nn.BatchNorm2d(shape[1], momentum=0.3).double()
    wide.load_state_dict(norm.state_dict())
    out = ours(x, add, norm)
    given = [tensor for tensor in (x, add) if tensor is not None]
    copies = [tensor.detach().double().requires_grad_() for tensor in given]
    wanted = wide(copies[0]) + (copies[1] if adds else 0)
    wanted = wanted * (out > 0)  # where rounding decides
    found = torch.autograd.grad(out, [*given, norm.weight, norm.bias], arrives)
    expected = torch.autograd.grad(wanted, [*copies, wide.weight, wide.bias], arrives.double())
    rounding = 5e-3 if dtype == torch.bfloat16 else 1e-6
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert (out.double() - wanted).norm() < rounding * wanted.norm()
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).norm() < rounding * other.norm()
    for name in ("running_mean", "running_var"):
        assert torch.allclose(getattr(norm, name).double(), getattr(wide, name), rtol=1e-5, atol=1e-6)
    assert norm.num_batches_tracked == 1


def test_not_a_number_stays_one():
    x, add, arrives, norm = case((4, 16, 5, 5), torch.float32, True)
    with torch.no_grad():
        x[1, 3, 0, 0] = torch.nan
    out = ours(x, add, norm)
    assert out[:, 3].isnan().all()
    assert out[:, 4].isfinite().all()
    assert torch.autograd.grad(out, x, arrives)[0][:, 3].isnan().all()


def test_one_picture_far_away_does_not_spoil_the_statistics():
    x, _, _, norm = case((40, 8, 12, 12), torch.float32, False)
    with torch.no_grad():
        x[0, 2, 0, 0] = 3000.0  # the first of all, from which others might be measured
    ours(x, None, norm)
    wanted = 0.7 + 0.3 * x.double().var((0, 2, 3))
    assert torch.allclose(norm.running_var.double(), wanted, rtol=1e-4)


@pytest.mark.parametrize("frozen", ["none", "weight", "x"])
def test_a_second_derivative_is_that_of_torch(frozen):
    """A penalty on the gradient, as somebody's own defence may have it."""
    x, add, arrives, norm = case((4, 16, 5, 5), torch.float32, True)
    weights = norm.weight, norm.bias
    for name, tensor in (("weight", norm.weight), ("x", x)):
        tensor.requires_grad_(name != frozen)
    outs = ours(x, add, norm), torch.relu(batch_norm(x, None, None, *weights, True) + add)
    given = [tensor for tensor in (x, add, *weights) if tensor.requires_grad]
    penalties = [torch.autograd.grad(out, given, arrives, create_graph=True) for out in outs]
    others = [tensor for tensor in (x, norm.weight, add) if tensor.requires_grad]
    found, wanted = (
        torch.autograd.grad(sum(each.square().sum() for each in penalty), others, materialize_grads=True)
        for penalty in penalties
    )
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))
