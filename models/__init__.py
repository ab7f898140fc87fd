"""Networks: pixels in [0, 1] go in, logits come out; normalising and resizing are layers of the model.

Because the model normalises and resizes, an attack's ε always means pixels of the data set.
"""

from functools import partial

import numpy as np
import torch

from models import backbones, timm_backbones
from models.backbones import WeightsError
from models.low_rank import LowRank
from models.model import Model, copied, fitted, habits, model_of, taken, wrap
from models.normalise import CIFAR10_MEAN, CIFAR10_STD, Normalise
from models.resnet import BasicBlock, Bottleneck, PreActBlock, ResNet
from models.shallow import ShallowCNN, WideShallowCNN

MOST_CLASSES = 100_000

NETWORKS = {
    "shallow_cnn": ShallowCNN,
    "shallow_cnn_wide": WideShallowCNN,
    # In millions, the parameters at width 64 and 10 classes.
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),  # 11.17
    "resnet34": partial(ResNet, BasicBlock, (3, 4, 6, 3)),  # 21.28
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),  # 23.52
    "preact_resnet18": partial(ResNet, PreActBlock, (2, 2, 2, 2)),  # 11.17
}


def build(name, num_classes, *, seed=0, mean=None, std=None, resize=None, **options):
    """Build a model by name: images (N, 3, H, W), or grey (N, 1, H, W), in [0, 1] to logits (N, num_classes).

    name: one of NETWORKS, "imagenet/resnet18" and so on for torchvision's classifiers, or "timm/convnext_atto" and
    so on for timm's; these come with their weights unless `pretrained=False`. The initial weights depend on `seed`
    alone, not on what was built before. `resize` is the side, in pixels, of the square that the network sees:
    pictures that are not square are stretched to it. `mean` and `std` default to those of the data that the
    network was made for. `options` go to the network: `width` for ResNets, whatever timm takes. Usual sizes of
    attacks: ε = 8/255 in L∞ and 0.5 in L2 on CIFAR, 4/255 and 3 on ImageNet (RobustBench).
    Raises ValueError for an unknown name or a useless number, WeightsError where weights cannot be had.
    """
    check_num_classes(num_classes)
    if resize is not None and (not isinstance(resize, int) or resize < 8):
        raise ValueError(f"resize={resize!r}: None or a side of at least 8 pixels is needed")
    make, usual = NETWORKS.get(name), (CIFAR10_MEAN, CIFAR10_STD)
    if name.startswith(backbones.PREFIX):
        make = partial(backbones.backbone, name.removeprefix(backbones.PREFIX))
        usual = backbones.MEAN, backbones.STD
    elif name.startswith(backbones.TIMM):
        make = partial(timm_backbones.backbone, name.removeprefix(backbones.TIMM))
    elif make is None:
        known = ", ".join([*sorted(NETWORKS), *(f"{prefix}<name>" for prefix in backbones.PREFIXES)])
        raise ValueError(f"model {name!r} is not known; the models are: {known}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = make(num_classes, **options)
    said = getattr(network, "pretrained_cfg", {})  # by timm, of its weights
    mean = said.get("mean", usual[0]) if mean is None else mean
    std = said.get("std", usual[1]) if std is None else std
    mean, std = (np.ravel(values).tolist() for values in (mean, std))  # they may be arrays
    spec = {"name": name, "num_classes": num_classes, "seed": seed, "mean": mean, "std": std}
    spec |= {"resize": resize} | options
    return Model(network, Normalise(mean, std), resize, spec).to(memory_format=torch.channels_last)


def check_num_classes(num_classes):
    """Raise ValueError unless it is a whole number from 2 to MOST_CLASSES."""
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or not 2 <= num_classes <= MOST_CLASSES:
        raise ValueError(f"num_classes={num_classes!r}: a whole number from 2 to {MOST_CLASSES} is needed")


def rate_of(name, rates):
    """The multiple of the learning rate for a layer or weight: of the longest name in `rates` above it, or 1."""
    above = [key for key in rates if name == key or name.startswith(f"{key}.")]
    return rates[max(above, key=len)] if above else 1.0
