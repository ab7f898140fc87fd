"""What only a GPU can show, in a call of under ten minutes: steps as graphs, speed, share of the peak, the record.

    python -m benchmarks.gpu --turns 3

The record comes last, with as many pictures under AutoAttack as RECORD says: `python -m benchmarks.fast_robust`
has them all, and three seeds. How long the full preset takes, `make study PRESET=full` says itself, notebook by
notebook. On a CPU only `--tiny` makes sense: does it run?
"""

import functools
import time

import torch

import models
from benchmarks import fast_robust, suite
from benchmarks.peers import our_step
from benchmarks.speed import TRAINING, Loaders, share, training
from benchmarks.timing import compare, summary
from storage.atomic_files import read_json

MINUTES = 8  # after which no case is begun
BATCHES = (128, 256, 512, 1024, 2048)
RECORD = ["--seeds", "1", "--pictures", "1000"]
STEPS = 20


def graphs(setting, arguments, attack):
    """Steps as one CUDA graph against the same steps kernel by kernel, and how far their weights are apart."""
    images = torch.rand(setting.batch, 3, 32, 32, device=setting.device).contiguous(
        memory_format=torch.channels_last
    )
    labels = torch.randint(10, (setting.batch,), device=setting.device)
    built = {name: models.build(num_classes=10, **arguments).to(setting.device) for name in ("graph", "plain")}
    steps = {name: our_step(model, attack, precision="float32") for name, model in built.items()}
    steps["plain"].state.graphed.possible = False
    for step in steps.values():
        for number in range(STEPS):
            step.state.generator.manual_seed(number)
            step(images, labels)
    pairs = zip(built["graph"].parameters(), built["plain"].parameters(), strict=True)
    apart = max(float((one - other).detach().abs().max()) for one, other in pairs)
    captured = steps["graph"].state.graphed.replay is not None
    fast = {name: our_step(model, attack) for name, model in built.items()}
    fast["plain"].state.graphed.possible = False
    contenders = {name: (functools.partial(step, images, labels), setting.batch) for name, step in fast.items()}
    result = {"unit": "images/s", "contenders": summary(compare(contenders, setting))}
    return result | {"captured": captured, "weights_apart_after_20_steps": apart}


def record(setting, target):
    """One seed of fast_robust."""
    arguments = ["--preset", "smoke"] if setting.tiny else []
    fast_robust.main([*RECORD, *arguments, "--output", str(target)])
    known = read_json(target / f"fast_robust-{setting.device.type}.json")
    row = known["seeds"][0]
    found = {"wall s": row["wall_seconds"] or float("nan"), "steps s": row["steps_seconds"]}
    return {
        "unit": "",
        "found": found | {name: row[name]["accuracy"] for name in ("clean", "worst case")},
        "row": row,
    }


def cases(setting):
    loaders, begun = Loaders(setting), time.perf_counter()
    networks = setting.networks()

    def every():
        for network, arguments in networks.items():
            for name in ("standard", "PGD-10"):
                attack = setting.shortened(TRAINING)[name]
                yield "graphs", f"{network}, {name}", functools.partial(graphs, setting, arguments, attack)
        for network, arguments in networks.items():
            for name, attack in setting.shortened(TRAINING).items():
                yield (
                    "training",
                    f"{network}, {name}",
                    functools.partial(training, setting, loaders, arguments, attack),
                )
        _, resnet = list(networks.items())[-1]
        for batch in (4, 8) if setting.tiny else BATCHES:
            measure = functools.partial(share, setting, resnet, "bfloat16", batch)
            yield "share", f"ResNet-18 width {setting.width}, batch {batch}", measure
        yield "record", "ResNet-18, PGD with growing steps", functools.partial(record, setting, setting.output)

    for group, case, measure in every():
        if time.perf_counter() - begun < 60 * MINUTES:
            yield group, case, measure


def main(arguments=None):
    suite.run(__doc__, "gpu", cases, arguments)


if __name__ == "__main__":
    main()
