"""Who is measured: our training step, the usual way's, and foolbox's, and the attacks of all three.

The usual way is the code of tutorials and of the study that we carry on: a DataLoader with PIL transforms and two
workers, torchattacks in the loop, float32, networks laid out NCHW. foolbox, which is no dependency, takes part
where it is installed: `pip install foolbox`. Peers run with torch's defaults where ours differ (TF32 on CUDA).
"""

import copy
import importlib.util
import itertools
from contextlib import contextmanager

import torch
from PIL import Image
from torch import nn

from attacks import FGSM, NIFGSM, PGD, VMIFGSM
from defences import Adversarial, Standard
from training.recipe import Recipe
from training.step import State, train_step

# ---------------------------------------------------------------------------------------------------
# Batches


class Pictures(torch.utils.data.Dataset):
    """CIFAR as torchvision hands it out: one PIL image at a time, augmented one at a time."""

    def __init__(self, split):
        from torchvision import transforms

        self.images = split.images.cpu().permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = split.labels.tolist()
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose(steps)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def usual_batches(split, size):
    """Batches without end, on the CPU."""
    loader = torch.utils.data.DataLoader(Pictures(split), size, shuffle=True, drop_last=True, num_workers=2)
    while True:
        yield from loader


def our_batches(split, size):
    """Batches without end, on the split's device."""
    generator = torch.Generator(split.labels.device).manual_seed(0)
    for epoch in itertools.count():
        for indices in split.shuffled(size, epoch):
            yield split.batch(indices, generator, augment=True)


# ---------------------------------------------------------------------------------------------------
# Networks


class PlainNormalise(nn.Module):
    """As it is usually written."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", mean.clone().contiguous())
        self.register_buffer("std", std.clone().contiguous())

    def forward(self, images):
        return (images - self.mean) / self.std


def usual_network(model):
    """The network of one of our models, with its weights, as it is usually written.

    That is NCHW, and the shallow CNN with its ReLU before the pooling. ResNets keep what our blocks do in place,
    not their fused form: that is for weights which ask for no gradient, and peers' do.
    """
    network = copy.deepcopy(model.network)
    if model.spec["name"] == "shallow_cnn":
        layers = [nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
        network = nn.Sequential(*layers)
        with torch.no_grad():
            for mine, original in zip(network.parameters(), model.network.parameters(), strict=True):
                mine.copy_(original)
    normalise = PlainNormalise(model.normalise.mean, model.normalise.std)
    weight = next(model.parameters())
    return nn.Sequential(normalise, network).to(weight.device, memory_format=torch.contiguous_format)


# ---------------------------------------------------------------------------------------------------
# Attacks


@contextmanager
def torch_defaults():
    """Convolutions as torch computes them when nobody says otherwise; utils.start() turns TF32 off."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, True
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def with_torchattacks(attack, model):
    """torchattacks' attack with the settings of ours, as a function of images and labels."""
    import torchattacks

    if type(attack) is FGSM:
        return torchattacks.FGSM(model, eps=attack.eps)
    kind = {PGD: torchattacks.PGD, NIFGSM: torchattacks.NIFGSM, VMIFGSM: torchattacks.VMIFGSM}[type(attack)]
    settings = {"eps": attack.eps, "alpha": attack.step_size, "steps": attack.steps}
    if type(attack) is VMIFGSM:
        settings |= {"N": attack.neighbours, "beta": attack.radius}
    return kind(model, **settings)


def why_not_foolbox(attack):
    """Why foolbox has no part in it, or None."""
    if importlib.util.find_spec("foolbox") is None:
        return "foolbox is not installed"
    return None if type(attack) in (FGSM, PGD) else f"foolbox has no {attack.label}"


def with_foolbox(attack, model):
    """foolbox's attack with the settings of ours, as a function of images and labels.

    `run` spares it the verdict on what it has found, which a training step does not need. It computes the
    gradients of the weights too: that is how it asks for the gradient of the images.
    """
    import foolbox

    if type(attack) is FGSM:
        theirs = foolbox.attacks.LinfFastGradientAttack()
    else:
        theirs = foolbox.attacks.LinfPGD(abs_stepsize=attack.step_size, steps=attack.steps)
    device = next(model.parameters()).device

    def craft(images, labels):
        wrapped = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device=device)
        return theirs.run(wrapped, images, foolbox.criteria.Misclassification(labels), epsilon=attack.eps)

    return craft


# ---------------------------------------------------------------------------------------------------
# Training steps: functions of images and labels


def usual_step(model, craft=None):
    """A step as in a tutorial; `craft` makes the adversarial examples."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    loss = nn.CrossEntropyLoss()
    device = next(model.parameters()).device

    def step(images, labels):
        with torch_defaults():
            images, labels = images.to(device), labels.to(device)
            if craft:
                images = craft(images, labels)
            model.train()
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()

    return step


def our_step(model, attack=None, precision="auto", learning_rate=0.01):
    """A step of trainer.train()."""
    defence = Standard() if attack is None else Adversarial(attack)
    recipe = Recipe(
        epochs=1, learning_rate=learning_rate, schedule="constant", defence=defence, precision=precision
    )
    state = State(model.train(), recipe, steps=10**6, device=next(model.parameters()).device)

    def step(images, labels):
        train_step(state, images, labels)
        state.step += 1

    step.state = state
    return step


def trained(model, split, steps, batch):
    """The model after some steps of standard training: an attack should have something to take away."""
    step, batches = our_step(model, learning_rate=0.05), our_batches(split, batch)
    for _ in range(steps):
        step(*next(batches))
    return model.eval()
