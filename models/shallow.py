"""The two shallow CNNs of the study: LeNet as in the PyTorch CIFAR tutorial, and one for 100 classes.

Pooling comes before the ReLU: the function and its gradient are the same, on a quarter of the values.
"""

import torch
from torch import nn


class MaxPool(nn.MaxPool2d):
    """2x2 pooling that gives torch's result, faster on a CPU, whose own loop is scalar for few channels.

    Without a gradient it is two maxima over slices, six times as fast; with one, bfloat16 goes through float32.
    """

    def __init__(self):
        super().__init__(2)

    def forward(self, x):
        if x.device.type != "cpu":
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


class ShallowCNN(nn.Sequential):
    """Two 5x5 convolutions and three linear layers: 62,006 parameters for 10 classes."""

    def __init__(self, num_classes):
        super().__init__(
            nn.Conv2d(3, 6, 5),
            MaxPool(),
            nn.ReLU(),
            nn.Conv2d(6, 16, 5),
            MaxPool(),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * 5 * 5, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, num_classes),
        )


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
        super().__init__(
            *layers,
            nn.Flatten(),
            nn.Linear(256 * 4 * 4, 1024),
            nn.ReLU(),
            nn.Linear(1024, 512),
            nn.ReLU(),
            nn.Linear(512, num_classes),
        )
