"""ResNets for 32x32 beside torchvision's."""

import torch
from torch import nn

import models


def test_width_scales_a_resnet():
    assert models.build("resnet18", 10, width=16).network.head.in_features == 128


def test_resnet_equals_torchvisions_after_the_stem():
    """The same weights in torchvision's ResNet-18 with the stem exchanged give the same logits."""
    from torchvision.models import resnet18

    theirs = resnet18(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    ours = models.build("resnet18", 10).network
    values = list(ours.state_dict().values())
    names = theirs.state_dict().keys()
    assert len(values) == len(names)
    theirs.load_state_dict(dict(zip(names, values, strict=True)))
    images = torch.rand(2, 3, 32, 32)
    assert torch.allclose(ours.eval()(images), theirs.eval()(images), atol=1e-4)
