"""Speed against the usual way: a DataLoader with PIL transforms, torchattacks in the loop, float32.

    make bench

Both run in this process, on the same pictures, in turns; what counts is the median of the ratios. The usual
way has two workers and rests between its turns until they have filled their queue, so neither slows the
other. Our C-library setting (utils._keep_freed_memory) is on for both, which is generous to the usual way.
"""

import argparse
import itertools
import statistics
import time

import torch
import torchattacks
from PIL import Image
from torch import nn
from torchvision import transforms

import models
import utils
from attacks import PGD
from defences import Adversarial, Standard
from runs import environment, write_json
from steps import State, train_step
from trainer import Recipe

BATCH = 128
RESULTS = utils.ROOT / "benchmarks" / "results"


class Pictures(torch.utils.data.Dataset):
    """CIFAR as torchvision hands it out: one PIL image at a time, augmented one at a time."""

    def __init__(self, split):
        self.images = split.images.cpu().permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = split.labels.tolist()
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose(steps)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def usual_model(name, **options):
    """The network as it is usually written: ReLU before pooling, not in place; ResNets are ours, laid out NCHW."""
    if name != "shallow_cnn":
        return models.build(name, 10, **options).to(memory_format=torch.contiguous_format)
    network = [nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
    network += [nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    return nn.Sequential(transforms.Normalize(models.CIFAR10_MEAN, models.CIFAR10_STD), *network)


def usual_loader(split):
    """Batches without end."""
    loader = torch.utils.data.DataLoader(Pictures(split), BATCH, shuffle=True, drop_last=True, num_workers=2)
    while True:
        yield from loader


def our_loader(split):
    generator = torch.Generator(split.labels.device).manual_seed(0)
    for epoch in itertools.count():
        for indices in split.shuffled(BATCH, epoch):
            yield split.batch(indices, generator, augment=True)


def usual_step(model, device, attack):
    """One step as in a tutorial."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    loss = nn.CrossEntropyLoss()
    attack = attack and torchattacks.PGD(model, eps=8 / 255, alpha=2 / 255, steps=10)

    def step(images, labels):
        images, labels = images.to(device), labels.to(device)
        if attack:
            images = attack(images, labels)
        model.train()
        optimizer.zero_grad()
        loss(model(images), labels).backward()
        optimizer.step()

    return step


def our_step(model, device, attack):
    recipe = Recipe(epochs=1, learning_rate=0.01, defence=Adversarial(PGD()) if attack else Standard())
    state = State(model, recipe, steps=10**6, device=device)
    generator = torch.Generator(device).manual_seed(0)
    model.train()

    def step(images, labels):
        train_step(state, images, labels, generator)
        state.step += 1

    return step


def compare(ours, usual, count, turns, device):
    """Images a second of both, in turns of `count` batches each."""
    rates = {"ours": [], "usual": []}
    for turn in range(turns + 1):
        for name, run in (("usual", usual), ("ours", ours)):
            time.sleep(0.3)  # the workers fill their queue and fall silent
            begun = time.perf_counter()
            for _ in range(count):
                run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first turn warms up
                rates[name].append(count * BATCH / (time.perf_counter() - begun))
    ratios = sorted(a / b for a, b in zip(rates["ours"], rates["usual"], strict=True))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return medians | {"ratio": statistics.median(ratios), "lowest": ratios[0], "highest": ratios[-1]}


def cases(device):
    """What is compared: a name, the model's arguments (None: loading alone), whether attacked, batches a turn."""
    width = 64 if device.type == "cuda" else 16
    yield "augmented batches", None, False, 150
    yield "shallow CNN, standard step", {"name": "shallow_cnn"}, False, 60
    yield "shallow CNN, PGD-10 step", {"name": "shallow_cnn"}, True, 12
    yield f"ResNet-18 width {width}, PGD-10 step", {"name": "resnet18", "width": width}, True, 2


def measure(split, device, turns):
    for name, arguments, attack, count in cases(device):
        usual_batches, our_batches = usual_loader(split), our_loader(split)
        if arguments is None:
            usual, ours = usual_batches.__next__, our_batches.__next__
        else:
            plain = usual_model(**arguments).to(device)
            fast = models.build(num_classes=10, **arguments).to(device)
            one, other = usual_step(plain, device, attack), our_step(fast, device, attack)
            usual = lambda one=one, batches=usual_batches: one(*next(batches))  # noqa: E731
            ours = lambda other=other, batches=our_batches: other(*next(batches))  # noqa: E731
        result = {"case": name} | compare(ours, usual, count, turns, device)
        usual_batches.close()
        print(
            f"{name:<34} {result['usual']:>10,.0f} {result['ours']:>10,.0f}   {result['ratio']:5.1f}x"
            f"  ({result['lowest']:.1f} to {result['highest']:.1f})",
            flush=True,
        )
        yield result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7, help="turns of each (default: 7)")
    options = parser.parse_args()
    session = utils.start("benchmark", preset="quick")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50_000, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 10, (50_000,), generator=generator)
    split = utils.Split(images.to(session.device), labels.to(session.device), list("0123456789"), "noise")
    print(f"\n{'images a second':<34} {'usual way':>10} {'ours':>10}    ratio  (of {options.turns} turns)")
    results = list(measure(split, session.device, options.turns))
    target = RESULTS / f"speed-{session.device.type}.json"
    write_json(target, {"environment": environment(session.device), "batch_size": BATCH, "results": results})
    print(f"\nwritten to {target.relative_to(utils.ROOT)}")


if __name__ == "__main__":
    main()
