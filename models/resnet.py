"""ResNets for 32x32 pictures: a 3x3 stem with stride 1, no pooling after it, four stages, a linear head.

He et al. 2015, arXiv:1512.03385; the pre-activation form: He et al. 2016, arXiv:1603.05027.
"""

from torch import nn

from models.fused import Folding, activated, chain, is_plain


def _conv3(inputs, outputs, stride=1):
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


class Stem(nn.Sequential, Folding):
    """A 3x3 convolution, and BatchNorm and ReLU unless the blocks begin with them."""

    def forward(self, x):
        whole = len(self) == 3 and is_plain(self[2], nn.ReLU)
        if not whole:
            return super().forward(x)
        out = chain(x, self, [tuple(self[:2])])
        return activated(self[0](x), self[1]) if out is None else out


class _Residual(Folding):
    """Pairs of a convolution and BatchNorm, with ReLU after each, around a shortcut: the last is of the sum."""

    def forward(self, x):
        pairs = self.pairs()
        if (out := chain(x, self, pairs, self.shortcut)) is not None:
            return out
        out = x
        for convolution, norm in pairs[:-1]:
            out = activated(convolution(out), norm)
        convolution, norm = pairs[-1]
        return activated(convolution(out), norm, self.shortcut(x))


class BasicBlock(_Residual):
    """Two 3x3 convolutions around a shortcut."""

    expansion = 1

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1, self.bn1 = _conv3(inputs, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv3(width, width), nn.BatchNorm2d(width)
        self.shortcut = _shortcut(inputs, width, stride)

    def pairs(self):
        return [(self.conv1, self.bn1), (self.conv2, self.bn2)]


class Bottleneck(_Residual):
    """A 3x3 convolution between two 1x1, around a shortcut."""

    expansion = 4

    def __init__(self, inputs, width, stride):
        super().__init__()
        outputs = width * self.expansion
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv3(width, width, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def pairs(self):
        return [(self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)]


class PreActBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3x3 convolutions; the shortcut stays untouched."""

    expansion = 1

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), _conv3(inputs, width, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), _conv3(width, width)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != width:
            self.shortcut = nn.Conv2d(inputs, width, 1, stride, bias=False)

    def forward(self, x):
        active = activated(x, self.bn1)
        # An identity shortcut carries the input itself, a projection what has been activated.
        kept = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(active)
        return self.conv2(activated(self.conv1(active), self.bn2)).add_(kept)


def _shortcut(inputs, outputs, stride):
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """Stages of `blocks` blocks with `width`, 2, 4 and 8 times `width` channels."""

    def __init__(self, block, blocks, num_classes, width=64):
        super().__init__()
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"width={width!r}: a whole number of at least 1 is needed (64 is the standard)")
        preactivated = block is PreActBlock
        self.stem = Stem(_conv3(3, width))
        if not preactivated:
            self.stem.extend([nn.BatchNorm2d(width), nn.ReLU()])
        self.stages = nn.Sequential()
        inputs = width
        for index, count in enumerate(blocks):
            stage = nn.Sequential()
            for position in range(count):
                stride = 2 if index > 0 and position == 0 else 1
                stage.append(block(inputs, width * 2**index, stride))
                inputs = width * 2**index * block.expansion
            self.stages.append(stage)
        self.last = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU()) if preactivated else nn.Identity()
        self.head = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        return self.head(self.last(self.stages(self.stem(x))).mean((2, 3)))
