"""Speed and memory against the usual way and against foolbox, and the share of what the device can do.

    make bench                                  # this, scaling and show
    python -m benchmarks.speed --only VMI memory

Training steps, data loading, attacks at evaluation: all contenders in this process and in turns, on the same
pictures. The usual way's workers rest before each turn until they have filled their queue, so neither slows the
other; foolbox gets batches that lie on the device already, so that its attack is compared and nothing else. Our
C-library setting (processes/machine.py) and the tuning of convolutions on CUDA are on for all, which is
generous to the peers.
"""

import functools
import itertools

import torch

import models
import utils
from attacks import FGSM, NIFGSM, PGD, VMIFGSM, evaluating
from benchmarks import memory, suite
from benchmarks.peers import (
    our_batches,
    our_step,
    torch_defaults,
    trained,
    usual_batches,
    usual_network,
    usual_step,
    why_not_foolbox,
    with_foolbox,
    with_torchattacks,
)
from benchmarks.timing import compare, flops_of_step, matmul, summary
from evaluation.per_example import BATCH, attacked, predict
from processes.machine import fast_bfloat16

TRAINING = {
    "standard": None,
    "single-step": PGD(steps=1, step_size=10 / 255),
    "PGD-10": PGD(),
    "VMI-FGSM": VMIFGSM(),
}
EVALUATION = {"FGSM": FGSM(), "PGD-20": PGD(steps=20), "NI-FGSM": NIFGSM(), "VMI-FGSM": VMIFGSM()}
REST = 0.3  # seconds


class Loaders:
    """Batches without end of one split of noise, ours and the usual way's."""

    def __init__(self, setting):
        count = 64 if setting.tiny else 50_000
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        labels = torch.randint(0, 10, (count,), generator=generator)
        device = setting.device
        split = utils.Split(images.to(device), labels.to(device), list("0123456789"), "noise")
        self.ours, self.usual = our_batches(split, setting.batch), usual_batches(split, setting.batch)

    def on_device(self, device, count=8):
        """The usual way's batches, loaded beforehand, over and over."""
        return itertools.cycle([tuple(part.to(device) for part in next(self.usual)) for _ in range(count)])


def loading(setting, loaders):
    contenders = {"ours": loaders.ours.__next__, "usual way": loaders.usual.__next__}
    rates = compare({name: (run, setting.batch) for name, run in contenders.items()}, setting, REST)
    return {"unit": "images/s", "contenders": summary(rates)}


def training(setting, loaders, arguments, attack):
    """Steps of the four contenders, each on a network of its own with the same initial weights."""

    def build():
        return models.build(num_classes=10, **arguments).to(setting.device)

    steps = {
        "ours": (our_step(build(), attack), loaders.ours),
        "ours, float32": (our_step(build(), attack, precision="float32"), loaders.ours),
    }
    plain = usual_network(build())
    steps["usual way"] = usual_step(plain, attack and with_torchattacks(attack, plain)), loaders.usual
    absent = "no attack" if attack is None else why_not_foolbox(attack)
    if not absent:
        plain = usual_network(build())
        steps["foolbox"] = usual_step(plain, with_foolbox(attack, plain)), loaders.on_device(setting.device)

    def run(step, batches):
        step(*next(batches))

    contenders = {name: (functools.partial(run, *pair), setting.batch) for name, pair in steps.items()}
    result = {"unit": "images/s", "contenders": summary(compare(contenders, setting, REST))}
    result["precision"] = steps["ours"][0].state.precision
    return result | ({"absent": {"foolbox": absent}} if absent else {})


def share(setting, arguments, precision, batch):
    """What our PGD-10 step achieves of what torch.matmul does, both in this precision and in turns."""
    model = models.build(num_classes=10, **arguments).to(setting.device)
    flops = batch * flops_of_step(usual_network(model), crafting=10)
    images = torch.rand(batch, 3, 32, 32, device=setting.device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,), device=setting.device)
    step = functools.partial(our_step(model, PGD(), precision), images, labels)
    contenders = {"ours": (step, flops), "torch.matmul": matmul(getattr(torch, precision), setting)}
    result = {"unit": "FLOP/s", "contenders": summary(compare(contenders, setting))}
    return result | {"batch": batch, "flops_per_image": flops / batch}


class Target:
    """A network trained a little, as ours and as usually written, and the pictures that it gets right."""

    def __init__(self, setting, arguments, pictures, steps):
        data = utils.load_data("shapes10", setting.session)
        model = models.build(num_classes=10, **arguments).to(setting.device)
        self.model = trained(model, data.train, steps, setting.batch)
        self.plain = usual_network(self.model).eval()
        self.split = data.test.first(pictures)
        self.indices = (predict(self.model, self.split).argmax(1) == self.split.labels).nonzero()[:, 0]

    def ours(self, attack):
        return attacked(self.model, self.model, self.split, attack, self.indices, 0)[0]

    def peer(self, craft):
        """Batch by batch, as everybody's documentation has it; which of the pictures withstand."""
        parts = []
        for some in self.indices.split(BATCH[self.split.labels.device.type]):
            images, labels = self.split.batch(some)
            with torch_defaults():
                found = craft(images.contiguous(), labels)
                with evaluating(self.plain), torch.no_grad():
                    parts.append(self.plain(found).argmax(1) == labels)
        return torch.cat(parts)


def evaluation(setting, target, attack):
    """Which pictures withstand an attack: attacking and judging."""
    target = target()  # made by the first that needs it
    runs = {
        "ours": functools.partial(target.ours, attack),
        "torchattacks": functools.partial(target.peer, with_torchattacks(attack, target.plain)),
    }
    absent = why_not_foolbox(attack)
    if not absent:
        runs["foolbox"] = functools.partial(target.peer, with_foolbox(attack, target.plain))
    standing = {}

    def note(name):
        standing[name] = int(runs[name]().sum())

    rates = compare({name: (functools.partial(note, name), len(target.indices)) for name in runs}, setting)
    result = {"unit": "images/s", "contenders": summary(rates), "n": len(target.split)}
    result |= {"right": len(target.indices), "withstand": standing}
    return result | ({"absent": {"foolbox": absent}} if absent else {})


def peak_memory(setting, arguments):
    our_step(models.build(num_classes=10, **arguments).to(setting.device), PGD())  # its precision is known then
    found = {who: memory.peak(who, arguments, setting.batch, setting.device) for who in ("ours", "usual way")}
    return {"unit": "MiB", "peak": found, "batch": setting.batch}


def cases(setting):
    loaders, cuda = Loaders(setting), setting.device.type == "cuda"
    yield "loading", "augmented batches", functools.partial(loading, setting, loaders)
    for network, arguments in setting.networks().items():
        for name, attack in setting.shortened(TRAINING).items():
            measure = functools.partial(training, setting, loaders, arguments, attack)
            yield "training", f"{network}, {name}", measure
    widths = () if setting.tiny else (16, 64)
    resnets = {f"ResNet-18 width {width}": {"name": "resnet18", "width": width} for width in widths}
    for network, arguments in (setting.networks() | resnets).items():
        batch = 32 if arguments.get("width") == 64 and not cuda else setting.batch  # seconds a step
        for precision in ("bfloat16", "float32")[not fast_bfloat16(setting.device) :]:
            measure = functools.partial(share, setting, arguments, precision, batch)
            yield "share", f"{network}, {precision}", measure
    for network, arguments in setting.networks().items():
        deep = arguments["name"] != "shallow_cnn"
        pictures = 2000 if cuda and not setting.tiny else 100 if deep or setting.tiny else 1000
        steps = 20 if setting.tiny else 300
        target = functools.cache(functools.partial(Target, setting, arguments, pictures, steps))
        for name, attack in setting.shortened(EVALUATION).items():
            yield "evaluation", f"{network}, {name}", functools.partial(evaluation, setting, target, attack)
    for network, arguments in list(setting.networks().items())[: 1 if setting.tiny else None]:
        yield "memory", network, functools.partial(peak_memory, setting, arguments)


def main(arguments=None):
    suite.run(__doc__, "speed", cases, arguments)


if __name__ == "__main__":
    main()
