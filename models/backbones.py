"""torchvision's ImageNet classifiers, and the one operation that fits any of them: exchange the head.

The head is the last layer that gives the logits, found by what it does, not by its name, so that resnet18,
alexnet, vgg11_bn, squeezenet1_0, densenet121 and whatever torchvision adds go through the same code. Networks of
timm name it themselves.
"""

import os
from functools import partial
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from unittest.mock import patch

import torch
from torch import nn

from storage.atomic_files import impatient

PREFIX = "imagenet/"
TIMM = "timm/"
PREFIXES = PREFIX, TIMM  # of networks that come with weights
# Heads beside the head, for training alone, in which these give tuples.
WITH_AUXILIARY = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}
HEADS = (nn.Linear, nn.Conv2d)  # what can be a head
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision trained with


class WeightsError(RuntimeError):
    """Weights cannot be had; the message names the file and what to do."""


def backbone(name, num_classes, pretrained=True):
    """torchvision's classifier of that name (without prefix), its head exchanged for `num_classes`.

    Pretrained weights are downloaded at first use, with progress and checksum, and kept by torch.hub.
    Raises WeightsError where they cannot be fetched, ValueError for an unknown name.
    """
    from torchvision import models as published  # imported late: it costs 1.4 s

    known = published.list_models(module=published)
    if name not in known:
        raise ValueError(f"torchvision has no classifier {name!r}; it has {', '.join(known)}")
    auxiliary = WITH_AUXILIARY.get(name, ())
    # These networks get over it themselves that their published weights want another normalisation than ours.
    settings = {"transform_input": True, "init_weights": True} if auxiliary else {}
    network = _fetch(published, name) if pretrained else published.get_model(name, weights=None, **settings)
    for other in auxiliary:
        network.aux_logits = False
        setattr(network, other, None)
    replace_head(network, head_name(network, 1000), num_classes)
    return network


def _fetch(published, name):
    weights = published.get_model_weights(name).DEFAULT
    try:
        with only_tensors(), impatient():
            return published.get_model(name, weights=weights)
    except (OSError, RuntimeError, UnpicklingError, HTTPException) as error:
        place = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        raise WeightsError(
            f"the ImageNet weights of {name} could not be had from {weights.url}: {error}. Check the network, "
            f"or fetch that file elsewhere and put it at {place}; delete what is there if it is damaged"
        ) from error


# torch.hub unpickles whatever it is given unless it is told not to.
only_tensors = partial(patch.dict, os.environ, TORCH_FORCE_WEIGHTS_ONLY_LOAD="1")


def head_name(network, num_classes):
    """The name of the layer that gives the logits: the last linear layer or convolution with so many outputs.

    Of timm's networks, the one in what they call their classifier. Raises ValueError where there is none, or two.
    """
    within, timms = [network], hasattr(network, "get_classifier")
    if timms:
        own = network.get_classifier()
        within = own if isinstance(own, tuple) else [own]
    inside = {module for each in within for module in each.modules()}
    found = [
        name
        for name, module in network.named_modules()
        if getattr(module, "out_features", getattr(module, "out_channels", None)) == num_classes
        and isinstance(module, HEADS)
        and module in inside
    ]
    if not found:
        raise ValueError(
            f"no layer of this network gives {num_classes} logits: is the number of its classes right?"
        )
    if timms and len(found) > 1:
        raise ValueError(f"{type(network).__name__} of timm has several heads, {', '.join(found)}; one is needed")
    return found[-1]


def replace_head(network, name, num_classes):
    """Exchange the head of that name for a fresh one of the same kind, in place."""
    old = network.get_submodule(name)
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
    else:
        groups = old.groups if num_classes % old.groups == 0 else 1
        settings = old.kernel_size, old.stride, old.padding, old.dilation, groups, old.bias is not None
        new = nn.Conv2d(old.in_channels, num_classes, *settings, old.padding_mode)
    parent, _, child = name.rpartition(".")  # drawn on the CPU, so that it is the same wherever the network lies
    setattr(network.get_submodule(parent), child, new.to(old.weight.device, old.weight.dtype))
