"""A convolution, its BatchNorm, the addition of a shortcut and ReLU with few passes over memory.

While an attack crafts, and in a test, BatchNorm is in eval mode and no weight wants a gradient. Then BatchNorm is
a factor and an offset, which belong into the convolution, and a whole block is one node of the autograd graph:
fewer passes over memory, where half of the time goes. In training BatchNorm, shortcut and ReLU are kernels of our
own, on GPUs in bfloat16. The function is the same, up to the order of rounding.
"""

import functools
import logging
from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._python_dispatch import _get_current_dispatch_mode

from models.low_rank import is_adapted
from models.tf32 import tf32_allowed

log = logging.getLogger("study")

_FOR_ONEDNN = ()  # what its convolutions compute in, here
if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
    _HAS_BFLOAT16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # not on CPUs without AVX-512
    _FOR_ONEDNN = (torch.float32, torch.bfloat16) if _HAS_BFLOAT16 else (torch.float32,)

EIGHT = 8  # channels that a GPU multiplies at once in 16 bits

# What these layers do, before anybody puts something else there.
_FORWARD = {
    kind: kind.forward for kind in (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Linear, nn.Sequential, nn.Identity)
}

_NEARLY_ZERO = 1e-20  # what a negative number is multiplied by; lost in rounding, and negative still


@dataclass(frozen=True)
class Layer:
    """A convolution that BatchNorm has been folded into; `spare` of its weight's input channels are zeros."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    stride: list
    padding: list
    spare: int = 0

    @functools.cached_property
    def mirrored(self):
        """The convolution that leads a gradient back, where this one keeps the size of pictures; else None."""
        if self.stride != [1, 1] or self.weight.shape[2] != 2 * self.padding[0] + 1:
            return None
        weight = self.weight.transpose(0, 1).flip(2, 3).contiguous(memory_format=torch.channels_last)
        return Layer(weight, None, self.stride, self.padding)

    def __call__(self, x, add=None, relu=False):
        """Plus `add`, or with ReLU; oneDNN's makes negatives nearly zero, because its own would make 0 of NaN."""
        if self.spare:
            x = nn.functional.pad(x, (0, 0, 0, 0, 0, self.spare))
        if relu and _by_cudnn(x):
            settings = (self.bias, self.stride, self.padding, [1, 1], 1)
            if add is None:
                return torch.cudnn_convolution_relu(x, self.weight, *settings)
            return torch.cudnn_convolution_add_relu(x, self.weight, add, 1.0, *settings)
        if not _by_onednn(x):
            out = nn.functional.conv2d(x, self.weight, self.bias, self.stride, self.padding)
            out = out if add is None else out.add_(add)
            return out.relu_() if relu else out
        settings = (self.weight, self.bias, self.padding, self.stride, [1, 1], 1)
        if add is not None:
            return torch.ops.mkldnn._convolution_pointwise.binary(x, add, *settings, "add", None, None, [], "")
        then = ("leaky_relu", [_NEARLY_ZERO]) if relu else ("none", [])
        return torch.ops.mkldnn._convolution_pointwise(x, *settings, *then, "")

    def backward(self, gradient, x, add=None):
        """The gradient for `x`, plus `add`."""
        if _by_onednn(x) and add is not None and self.mirrored is not None:
            return self.mirrored(gradient, add)
        settings = (None, self.stride, self.padding, [1, 1], False, [0, 0], 1, [True, False, False])
        count, channels, *sides = x.shape
        if self.spare:  # only the size of it is asked for
            x = x.new_empty((count, channels + self.spare, *sides)).to(memory_format=torch.channels_last)
        out = torch.ops.aten.convolution_backward(gradient, x, self.weight, *settings)[0][:, :channels]
        return out if add is None else out.add_(add)


def _by_onednn(x):
    """Its convolutions take addition and ReLU along."""
    return x.device.type == "cpu" and x.dtype in _FOR_ONEDNN


def _by_cudnn(x):
    """The same of its convolutions, and more so: addition and ReLU at once, where less than float32 is computed.

    Its ReLU may make 0 of NaN. What judges a network is float32, where NaN stays.
    """
    low = x.dtype in (torch.bfloat16, torch.float16)
    return x.device.type == "cuda" and (low or (x.dtype == torch.float32 and tf32_allowed()))


class _Chain(torch.autograd.Function):
    """Layers with ReLU after each; before the last one the shortcut is added: a layer, or empty for the input.

    It knows no second derivative, and says so when it is asked.
    """

    @staticmethod
    def forward(ctx, x, layers, shortcut):
        kept = [x]
        for layer in layers[:-1]:
            kept.append(layer(kept[-1], relu=True))
        add = None if shortcut is None else shortcut(x) if shortcut else x
        out = layers[-1](kept[-1], add, relu=True) if _by_cudnn(x) else layers[-1](kept[-1], add).relu_()
        ctx.save_for_backward(x, out)
        ctx.between = kept[1:]  # nobody else has them
        ctx.layers, ctx.shortcut = layers, shortcut
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, out = ctx.saved_tensors
        shortcut = ctx.shortcut
        after = gradient = _through_relu(gradient, out)
        for layer, active in zip(ctx.layers[:0:-1], reversed(ctx.between), strict=True):
            gradient = _through_relu_in_place(layer.backward(gradient, active), active)
        add = None if shortcut is None else shortcut.backward(after, x) if shortcut else after
        return ctx.layers[0].backward(gradient, x, add), None, None


def _through_relu(gradient, out):
    """The gradient where ReLU gave more than zero, else zero."""
    if _as_whole_numbers(gradient, out):
        return (out.view(torch.int16).clamp(0, 1).mul_(gradient.view(torch.int16))).view(torch.bfloat16)
    return torch.ops.aten.threshold_backward(gradient, out, 0)


def _through_relu_in_place(gradient, active):
    """The same in the memory of the gradient; `active` becomes ones and zeros, which do as well a second time."""
    if _as_whole_numbers(gradient, active):
        gradient.view(torch.int16).mul_(active.view(torch.int16).clamp_(0, 1))
        return gradient
    return torch.ops.aten.threshold_backward.grad_input(gradient, active, 0, grad_input=gradient)


def _as_whole_numbers(gradient, active):
    """As int16 bfloat16 takes a CPU half the time: no way through float32. No positive number is below 1 then."""
    return gradient.device.type == "cpu" and gradient.dtype == active.dtype == torch.bfloat16


class _Folds(dict):
    """What was made of weights. A copy of a network, pickled or not, has none: its weights may change."""

    def __reduce__(self):
        return type(None), ()


class Folding(nn.Module):
    """A part of a network that may keep what it makes of its weights, while it knows that they stay."""

    _folds = None

    def keep_folds(self):
        """Fold once from here on; returns what `_folds` is to be set to again at the end."""
        before, self._folds = self._folds, _Folds()
        return before


def chain(x, block, pairs, shortcut=None):
    """Convolutions with their BatchNorms, `pairs`, and ReLU after each; None where that cannot be done in one go.

    They are those of `block`, a Folding. What is added before the last ReLU is None, or what `shortcut` gives: an
    Identity, or a Sequential of a pair.
    """
    if shortcut is not None:
        if not is_plain(shortcut, nn.Identity) and not (is_plain(shortcut, nn.Sequential) and len(shortcut) == 2):
            return None
        shortcut = tuple(shortcut.children())
    every = [*pairs, shortcut] if shortcut else pairs
    if x.is_meta or not _possible(every) or x.shape[1] != pairs[0][0].in_channels:
        return None
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    known = {} if block._folds is None else block._folds
    if (dtype, x.device) not in known:
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            known[dtype, x.device] = [_fold(convolution, norm, dtype) for convolution, norm in every]
    folded = known[dtype, x.device]
    layers = tuple(folded[: len(pairs)])
    return _Chain.apply(x.to(dtype), layers, folded[-1] if shortcut else shortcut)


def activated(x, norm, add=None):
    """ReLU(norm(x) + add), of tensors (N, C, H, W)."""
    kernels = _kernels(x.device) if x.device.type == "cuda" and _for_kernels(x, norm, add) else None
    if kernels is not None:
        add = add if add is None else add.contiguous(memory_format=torch.channels_last)
        with torch.cuda.device_of(x):
            return kernels.NormReLU.apply(x, add, norm.weight, norm.bias, norm)
    out = norm(x)
    if not is_plain(norm, nn.BatchNorm2d):  # it may be x itself, or somebody may keep it
        return torch.relu(out if add is None else out + add)
    return torch.relu_(out if add is None else out.add_(add))


def _for_kernels(x, norm, add):
    """Is this BatchNorm in training, as everybody has it, in bfloat16? Elsewhere torch's do as well."""
    if _watched() or torch.compiler.is_compiling() or torch._C._len_torch_function_stack():  # as for several GPUs
        return False
    usual = is_plain(norm, nn.BatchNorm2d) and norm.training and norm.weight is not None and norm.bias is not None
    if not usual or not norm.track_running_stats or norm.momentum is None or norm.num_batches_tracked is None:
        return False
    channels, laid_out = x.shape[1], x.is_contiguous(memory_format=torch.channels_last)
    fits = channels == norm.num_features < x.numel() < 2**31 and laid_out  # more than one number a channel
    kinds = x.dtype, norm.weight.dtype, norm.running_mean.dtype
    like_x = add is None or (add.dtype, add.shape) == (x.dtype, x.shape)
    return fits and kinds == (torch.bfloat16, torch.float32, torch.float32) and like_x


@functools.cache
def _kernels(device):
    """The module that has them, where they can be compiled; else None, and the log says why."""
    try:
        from models import batch_norm_kernels

        with torch.inference_mode(False), torch.enable_grad(), torch.cuda.device(device):
            # Of a size that asks for the code which networks will need.
            x, norm = torch.ones(64, 64, 16, 16, device=device), nn.BatchNorm2d(64, device=device)
            x = x.to(torch.bfloat16, memory_format=torch.channels_last).requires_grad_()
            batch_norm_kernels.NormReLU.apply(x, x, norm.weight, norm.bias, norm).sum().backward()
            torch.cuda.synchronize(device)
        return batch_norm_kernels
    except torch.OutOfMemoryError:  # that passes
        raise
    except Exception as error:  # no Triton, no compiler of C that it needs, a card that it does not know
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        log.info("BatchNorm in training is torch's own, which is slower in bfloat16: %s", why)
        return None


def _watched():
    """Does somebody transform, trace or count what is computed? They would not understand a block in one go."""
    transformed = torch._C._are_functorch_transforms_active() or torch.jit.is_tracing()
    return transformed or _get_current_dispatch_mode() is not None


def _possible(pairs):
    """Are these plain layers that nobody watches, is BatchNorm frozen, and does no weight want a gradient?"""
    if _watched():
        return False
    for convolution, norm in pairs:
        plain = is_plain(convolution, nn.Conv2d) and is_plain(norm, nn.BatchNorm2d)
        if not plain or norm.training or any(part is None for part in (norm.running_mean, norm.weight, norm.bias)):
            return False
        settings = (convolution.bias, convolution.groups, convolution.dilation, convolution.padding_mode)
        sizes = convolution.stride, convolution.padding
        if settings != (None, 1, (1, 1), "zeros") or not all(isinstance(size, tuple) for size in sizes):
            return False
        weights = (*convolution.parameters(), norm.weight, norm.bias)
        if torch.is_grad_enabled() and any(weight.requires_grad for weight in weights):
            return False
    return True


def is_plain(module, kind):
    """Does a module do what modules of this kind do, with weights that stay the same and no hook to see it?"""
    still = not is_parametrized(module) or is_adapted(module)  # somebody's own might give another weight each time
    as_ever = _FORWARD.get(kind, kind.forward) is kind.forward
    return _usual(type(module)) is kind and as_ever and still and is_untouched(module)


@functools.cache
def _usual(kind):
    """The class that a layer's had before it was adapted or frozen."""
    adapted = nn.utils.parametrize.__name__
    return next(each for each in kind.__mro__ if each.__module__ != adapted and "thawed" not in vars(each))


@functools.cache
def _names(kind):
    return frozenset(dir(kind))


def is_untouched(module):
    """Has it, and have all modules together, no hook, and it no method in place of its kind's?"""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    there, names = vars(module), _names(type(module))
    replaced = not names.isdisjoint(there) and any(callable(there[name]) for name in names.intersection(there))
    return not any(hooks) and not nn.modules.module._has_any_global_hook() and not replaced


def _fold(convolution, norm, dtype):
    factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    spare = max(0, EIGHT - convolution.in_channels) if _by_eights(convolution.weight, dtype) else 0
    weight = nn.functional.pad(convolution.weight * factor[:, None, None, None], (0, 0, 0, 0, 0, spare))
    weight = weight.to(dtype, memory_format=torch.channels_last)
    offset = (norm.bias - norm.running_mean * factor).to(dtype)
    return Layer(weight, offset, list(convolution.stride), list(convolution.padding), spare)


def _by_eights(weight, dtype):
    """Does the device multiply so many channels at once that fewer, as pictures have, take it longer?"""
    return weight.device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
