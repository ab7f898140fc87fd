"""ResNets for 32x32 pictures (He et al. 2015, arXiv:1512.03385): a 3x3 stem, stride 1, no pooling after it."""

import torch
from torch import nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        out = torch.relu_(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return torch.relu_(out.add_(self.shortcut(x)))


class ResNet(nn.Module):
    """A stem, four stages of basic blocks with `width`, 2, 4 and 8 times `width` channels, a linear head."""

    def __init__(self, blocks, num_classes, width=64):
        super().__init__()
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"width={width!r}: a whole number of at least 1 is needed (64 is the standard)")
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stages = nn.Sequential()
        inputs = width
        for index, count in enumerate(blocks):
            outputs = width * 2**index
            strides = [1 if index == 0 else 2] + [1] * (count - 1)
            stage = nn.Sequential()
            for stride in strides:
                stage.append(BasicBlock(inputs, outputs, stride))
                inputs = outputs
            self.stages.append(stage)
        self.head = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


def resnet18(num_classes, width=64):
    """ResNet-18 with a 3x3 stem: 11.17 million parameters at width 64 and 10 classes."""
    return ResNet((2, 2, 2, 2), num_classes, width)
