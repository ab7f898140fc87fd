"""Networks: pixels in [0, 1] go in, logits come out; normalising is a layer of the model.

Because the model normalises, an attack's ε always means pixels of the data set.
"""

import torch
from torch import nn

from models.resnet import resnet18
from models.shallow import ShallowCNN, WideShallowCNN

# Mean and standard deviation of the CIFAR-10 training pictures, per channel, in [0, 1].
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)

NETWORKS = {
    "shallow_cnn": ShallowCNN,
    "shallow_cnn_wide": WideShallowCNN,
    "resnet18": resnet18,
}


class Normalise(nn.Module):
    """(images - mean) / std per channel, as one multiplication and addition."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images):
        return torch.addcmul(-self.mean / self.std, images, 1 / self.std)


class Model(nn.Module):
    """A network with its normalisation in front; `spec` holds the arguments that built it."""

    def __init__(self, network, normalise, spec):
        super().__init__()
        self.normalise = normalise
        self.network = network
        self.spec = spec

    def forward(self, images):
        return self.network(self.normalise(images))


def build(name, num_classes, *, seed=0, mean=CIFAR10_MEAN, std=CIFAR10_STD, **options):
    """Build a model by name: images (N, 3, 32, 32) in [0, 1] to logits (N, num_classes).

    The initial weights depend on `seed` alone, not on what was built before. `options` go to the
    network: `width` for the ResNets. Raises ValueError for an unknown name or a useless number.
    """
    if name not in NETWORKS:
        raise ValueError(f"model {name!r} is not known; the models are: {', '.join(sorted(NETWORKS))}")
    if not isinstance(num_classes, int) or num_classes < 2:
        raise ValueError(f"num_classes={num_classes!r}: a whole number of at least 2 is needed")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NETWORKS[name](num_classes, **options)
    spec = {"name": name, "num_classes": num_classes, "seed": seed, "mean": list(mean), "std": list(std)}
    model = Model(network, Normalise(mean, std), spec | options)
    return model.to(memory_format=torch.channels_last)
