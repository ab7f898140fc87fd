"""A convolution, its frozen BatchNorm, the addition of a shortcut and ReLU in one go, for crafting and judging.

While an attack crafts, and in a test, BatchNorm is in eval mode and no weight wants a gradient. Then BatchNorm is
a factor and an offset, which belong into the convolution, and a whole block is one node of the autograd graph:
fewer passes over memory, where half of the time goes. The function is the same, up to the order of rounding.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable

_CPU_DTYPES = (torch.float32, torch.bfloat16)
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


class Layer(NamedTuple):
    """A convolution that BatchNorm has been folded into."""

    weight: torch.Tensor
    bias: torch.Tensor
    stride: list
    padding: list

    def __call__(self, x, relu, add=None):
        if x.device.type == "cpu":
            after = "relu" if relu else "none"
            settings = (self.weight, self.bias, self.padding, self.stride, [1, 1], 1)
            if add is None:
                return torch.ops.mkldnn._convolution_pointwise(x, *settings, after, [], "")
            after = after if relu else None
            return torch.ops.mkldnn._convolution_pointwise.binary(x, add, *settings, "add", None, after, [], "")
        out = nn.functional.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        if add is not None:
            out += add
        return out.relu_() if relu else out

    def backward(self, gradient, x, add=None):
        """The gradient for `x`, plus `add`."""
        square = self.weight.shape[2] == 2 * self.padding[0] + 1  # gives pictures of the size that it takes
        if x.device.type == "cpu" and add is not None and square and self.stride == [1, 1]:
            mirrored = self.weight.transpose(0, 1).flip(2, 3)
            return Layer(mirrored, None, self.stride, self.padding)(gradient, False, add)
        settings = (None, self.stride, self.padding, [1, 1], False, [0, 0], 1, [True, False, False])
        out = torch.ops.aten.convolution_backward(gradient, x, self.weight, *settings)[0]
        return out if add is None else out.add_(add)


class _Chain(torch.autograd.Function):
    """Layers with ReLU after each; before the last one the shortcut is added: a layer, or empty for the input.

    It knows no second derivative, and says so when it is asked.
    """

    @staticmethod
    def forward(ctx, x, layers, shortcut):
        kept = [x]
        for layer in layers[:-1]:
            kept.append(layer(kept[-1], True))
        add = None if shortcut is None else shortcut(x, False) if shortcut else x
        kept.append(layers[-1](kept[-1], True, add))
        ctx.save_for_backward(*kept)
        ctx.layers, ctx.shortcut = layers, shortcut
        return kept[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        *inputs, out = ctx.saved_tensors
        shortcut = ctx.shortcut
        after = gradient = _through_relu(gradient, out)
        for position in range(len(ctx.layers) - 1, 0, -1):
            gradient = _through_relu(ctx.layers[position].backward(gradient, inputs[position]), inputs[position])
        add = None if shortcut is None else shortcut.backward(after, inputs[0]) if shortcut else after
        return ctx.layers[0].backward(gradient, inputs[0], add), None, None


def _through_relu(gradient, out):
    """The gradient where ReLU gave more than zero, else zero."""
    if gradient.device.type == "cpu" and gradient.dtype == out.dtype == torch.bfloat16:
        # As whole numbers, where no positive one is below 1: half the time, since nothing goes through float32.
        return (out.view(torch.int16).clamp(0, 1).mul_(gradient.view(torch.int16))).view(torch.bfloat16)
    return torch.ops.aten.threshold_backward(gradient, out, 0)


class _Folds(dict):
    """Folded layers by dtype. A copy of a network does not take them along: its weights may go their own way."""

    def __deepcopy__(self, memo):
        return None


class Folding(nn.Module):
    """A part of a network that may keep its folded layers while its weights stay as they are, if told so."""

    _folds = None

    def keep_folds(self):
        """Fold once from here on; returns what `_folds` is to be set to again at the end."""
        before, self._folds = self._folds, _Folds()
        return before


def chain(x, block, pairs, shortcut=None):
    """Convolutions with their BatchNorms, `pairs`, and ReLU after each; None where that cannot be done in one go.

    They are those of `block`, a Folding. `shortcut`, added before the last ReLU, is None, a pair, or empty for the
    input itself.
    """
    every = [*pairs, shortcut] if shortcut else pairs
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    if not _possible(x, dtype, every):
        return None
    folded = block._folds.get(dtype) if block._folds is not None else None
    if folded is None:
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            folded = [_fold(convolution, norm, dtype) for convolution, norm in every]
        if block._folds is not None:
            block._folds[dtype] = folded
    layers = tuple(folded[: len(pairs)])
    return _Chain.apply(x.to(dtype), layers, folded[-1] if shortcut else shortcut)


def _possible(x, dtype, pairs):
    if x.device.type == "cpu" and not (_HAS_ONEDNN and dtype in _CPU_DTYPES):
        return False
    for pair in pairs:
        if pair[1].training or any(module._forward_hooks or module._forward_pre_hooks for module in pair):
            return False
        if torch.is_grad_enabled() and any(weight.requires_grad for part in pair for weight in part.parameters()):
            return False
    return True


def _fold(convolution, norm, dtype):
    factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    weight = (convolution.weight * factor[:, None, None, None]).to(dtype, memory_format=torch.channels_last)
    offset = (norm.bias - norm.running_mean * factor).to(dtype)
    return Layer(weight, offset, list(convolution.stride), list(convolution.padding))
