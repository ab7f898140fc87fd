"""The two shallow CNNs of the study: LeNet as in the PyTorch CIFAR tutorial, and one for 100 classes.

Pooling comes before the ReLU: the function and its gradient are the same, on a quarter of the values.
"""

import torch
from torch import nn, relu_
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, linear, pad

from models.fused import Folding, is_plain


class MaxPool(nn.MaxPool2d):
    """2x2 pooling that gives torch's result, faster on a CPU, whose own loop is scalar for few channels.

    Without a gradient it is two maxima over slices, six times as fast; with one, bfloat16 goes through float32.
    """

    def __init__(self):
        super().__init__(2)

    def is_usual(self):
        """Has nobody given it other sizes?"""
        sizes = self.kernel_size, self.stride, self.padding, self.dilation
        return sizes == (2, 2, 0, 1) and not self.ceil_mode and not self.return_indices

    def forward(self, x):
        if x.device.type != "cpu":
            return super().forward(x)
        if not self.is_usual():
            return super().forward(x)
        if not torch.is_grad_enabled() and x.shape[2] % 2 == x.shape[3] % 2 == 0:
            count, channels, height, width = x.shape
            # Two rows, and in each two neighbouring columns with their channels side by side.
            pairs = x.permute(0, 2, 3, 1).reshape(count, height // 2, 2, width // 2, 2 * channels)
            rows = torch.maximum(pairs[:, :, 0], pairs[:, :, 1])
            return torch.maximum(rows[..., :channels], rows[..., channels:]).permute(0, 3, 1, 2)
        if x.dtype == torch.bfloat16 and x.shape[1] < 16:
            return super().forward(x.float()).to(x.dtype)
        return super().forward(x)


class _PoolPairs(torch.autograd.Function):
    """2x2 pooling and ReLU, a window's two columns being neighbouring channels: (N, 2C, H, W) to (N, C, H/2, W).

    bfloat16 numbers that are not negative are ordered like the whole numbers that their bits mean, and whole
    numbers need no way through float32: two of them, side by side, are the halves of one 32-bit word. Of equal
    values the upper one has the gradient, then the left one (torch: the left, then the upper).
    """

    @staticmethod
    def forward(ctx, x):
        count, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(count, height // 2, 2, width, channels).clamp(min=0)
        rows = rows.view(torch.int16).bitwise_and_(0x7FFF)  # so that NaN, of either sign, is the largest
        up, down = rows[:, :, 0], rows[:, :, 1]
        words = torch.maximum(up, down).view(torch.int32)
        left, right = words & 0xFFFF, words >> 16
        largest = torch.maximum(left, right)
        if ctx.needs_input_grad[0]:  # 1 where the lower row has the larger value, and the right column
            ctx.save_for_backward((down - up).clamp_(0, 1), right.sub_(left).clamp_(0, 1), largest)
        return largest.to(torch.int16).view(torch.bfloat16).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        is_down, is_right, largest = ctx.saved_tensors
        gradient = gradient.permute(0, 2, 3, 1).contiguous().view(torch.int16).to(torch.int32)
        gradient.mul_(largest.clamp(0, 1))  # ReLU
        right = gradient * is_right
        words = gradient.sub_(right).bitwise_and_(0xFFFF).bitwise_or_(right.bitwise_left_shift_(16))
        words = words.view(torch.int16)
        count, height, width, channels = words.shape
        rows = words.new_empty(count, height, 2, width, channels)
        torch.mul(words, is_down, out=rows[:, :, 1])
        torch.sub(words, rows[:, :, 1], out=rows[:, :, 0])
        return rows.view(torch.bfloat16).view(count, 2 * height, width, channels).permute(0, 3, 1, 2)


class _Convolution(torch.autograd.Function):
    """A convolution whose gradient for `x` is one, too: of the padded gradient, with the mirrored weight.

    oneDNN takes three times as long for its own, in bfloat16 on channels as few as these.
    """

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return conv2d(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        wanted, back = ctx.needs_input_grad, None
        if wanted[0]:
            rows, columns = (side - 1 for side in weight.shape[2:])
            mirrored = weight.transpose(0, 1).flip(2, 3).contiguous(memory_format=torch.channels_last)
            back = conv2d(pad(gradient, (columns, columns, rows, rows)), mirrored)
        if not any(wanted[1:]):
            return back, None, None
        settings = [len(weight)], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, *wanted[1:]]
        return back, *torch.ops.aten.convolution_backward(gradient, x, weight, *settings)[1:]


def _in_pairs(x):
    """(N, C, H, W) in bfloat16 as (N, 2C, H, W/2): two columns as one. In memory they lie side by side."""
    count, channels, height, width = x.shape
    x = x.to(torch.bfloat16).permute(0, 2, 3, 1)
    return x.reshape(count, height, width // 2, 2 * channels).permute(0, 3, 1, 2)


def _for_pairs(convolution):
    """The weight and bias of a convolution that takes pixels in pairs and gives them in pairs, in bfloat16.

    Three channels, or six, leave most of the processor's lanes empty, and so do six outputs; twice as many cost
    less, though a sixth of the products are with zeros.
    """
    weight = convolution.weight
    outputs, channels, side, _ = weight.shape
    both = torch.stack([pad(weight, (0, 1)), pad(weight, (1, 0))], 1)  # for the left and the right column
    both = both.reshape(2 * outputs, channels, side, (side + 1) // 2, 2).permute(0, 2, 3, 4, 1)
    both = both.reshape(2 * outputs, side, (side + 1) // 2, 2 * channels).permute(0, 3, 1, 2)
    return both.to(torch.bfloat16), convolution.bias.repeat_interleave(2).to(torch.bfloat16)


def _classifier(inputs, wide, narrow, num_classes):
    """Three linear layers, with ReLU between them."""
    one, two, head = nn.Linear(inputs, wide), nn.Linear(wide, narrow), nn.Linear(narrow, num_classes)
    return [nn.Flatten(), one, nn.ReLU(), two, nn.ReLU(), head]


_LAYERS = [nn.Conv2d, MaxPool, nn.ReLU] * 2 + [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]


class ShallowCNN(nn.Sequential, Folding):
    """Two 5x5 convolutions and three linear layers: 62,006 parameters for 10 classes."""

    def __init__(self, num_classes):
        super().__init__(
            nn.Conv2d(3, 6, 5),
            MaxPool(),
            nn.ReLU(),
            nn.Conv2d(6, 16, 5),
            MaxPool(),
            nn.ReLU(),
            *_classifier(16 * 5 * 5, 120, 84, num_classes),
        )

    def forward(self, x):
        layers = list(self)
        if not self._in_bfloat16_on_cpu(x, layers):
            return super().forward(x)
        *convolutions, one, two, head = self._weights(layers)
        for weight, bias in convolutions:
            x = _PoolPairs.apply(_Convolution.apply(_in_pairs(x), weight, bias))
        return linear(relu_(linear(relu_(linear(x.flatten(1), *one)), *two)), *head)

    def _weights(self, layers):
        """Those of the two convolutions, for pairs, and of the linear layers, in bfloat16."""
        still = self._folds is not None and not any(weight.requires_grad for weight in self.parameters())
        if still and self._folds:
            return self._folds[torch.bfloat16]
        with torch.inference_mode(False):  # what is kept may have to lead a gradient back later
            found = [_for_pairs(layers[place]) for place in (0, 3)]
            found += [(layers[place].weight.bfloat16(), layers[place].bias.bfloat16()) for place in (7, 9, 11)]
        if still:
            self._folds[torch.bfloat16] = found
        return found

    @staticmethod
    def _in_bfloat16_on_cpu(x, layers):
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return False
        if torch.get_autocast_dtype("cpu") != torch.bfloat16 or len(layers) != len(_LAYERS):
            return False
        if not all(is_plain(layer, kind) for layer, kind in zip(layers, _LAYERS, strict=True)):
            return False
        even = x.shape[2] % 4 == x.shape[3] % 4 == 0  # so that the second pair of columns comes out even, too
        convolutions = [layers[place] for place in (0, 3)]
        usual = all(
            (one.kernel_size, one.stride, one.padding, one.dilation, one.groups)
            == ((5, 5), (1, 1), (0, 0), (1, 1), 1)
            for one in convolutions
        )
        usual = usual and all(layers[place].is_usual() for place in (1, 4))
        biased = all(layers[place].bias is not None for place in (0, 3, 7, 9, 11))
        return even and usual and biased


class WideShallowCNN(nn.Sequential):
    """Six 3x3 convolutions in three pooled pairs and three linear layers."""

    def __init__(self, num_classes):
        layers = []
        for inputs, middle, outputs in ((3, 32, 64), (64, 128, 128), (128, 256, 256)):
            layers += [
                nn.Conv2d(inputs, middle, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(middle, outputs, 3, padding=1),
                MaxPool(),
                nn.ReLU(),
            ]
        super().__init__(*layers, *_classifier(256 * 4 * 4, 1024, 512, num_classes))
