"""What is measured with: turns, the device's matmul peak, the arithmetic that a step needs.

Contenders run in one process and in turns, so that what else the machine does meets all of them. What counts is
the median over the turns, and of the quotients of each turn, with the lowest and the highest.
"""

import statistics
import time

import torch
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

TURN = 0.5  # seconds
LIMIT = 20.0  # seconds after which a case makes do with fewer turns,
LEAST_TURNS = 3  # but not with fewer than these
MATMUL_SIZES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}


def seconds_of(run, count, device):
    """Seconds that `count` calls take, the device's work included."""
    _wait(device)
    begun = time.perf_counter()
    for _ in range(count):
        run()
    _wait(device)
    return time.perf_counter() - begun


def _wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare(contenders, setting, rest=0.0):
    """Units a second of each contender, turn by turn: {name: [...]}.

    `contenders` maps names to (run, units that one call does). A turn lasts TURN seconds, or one call if that
    is longer; a case that takes longer than LIMIT has fewer turns. `rest` seconds pass before each turn, in which
    worker processes fill their queues and fall silent.
    """
    device = setting.device
    counts = {name: _calls_a_turn(run, setting) for name, (run, _) in contenders.items()}
    rates = {name: [] for name in contenders}
    begun = time.perf_counter()
    for turn in range(setting.turns):
        if turn >= LEAST_TURNS and time.perf_counter() - begun > LIMIT:
            break
        for name, (run, units) in contenders.items():
            time.sleep(0 if setting.tiny else rest)
            rates[name].append(counts[name] * units / seconds_of(run, counts[name], device))
    return rates


def _calls_a_turn(run, setting):
    """How many calls a turn takes; running them warms up. The first is not counted: it may tune and compile."""
    if setting.tiny:
        return 1
    run()
    calls, seconds = 0, 0.0
    while seconds < TURN:
        seconds += seconds_of(run, 1, setting.device)
        calls += 1
    return max(1, round(TURN * calls / seconds))


def spread(values):
    values = sorted(values)
    return {"median": statistics.median(values), "lowest": values[0], "highest": values[-1]}


def summary(rates):
    """For each contender its rate and "ratio", how many times as fast as it the first one is, turn by turn."""
    first = next(iter(rates.values()))
    return {
        name: {
            "rate": spread(values),
            "ratio": spread(a / b for a, b in zip(first, values, strict=True)),
            "turns": values,
        }
        for name, values in rates.items()
    }


def matmul(dtype, setting):
    """The fastest square torch.matmul of the device, as (run, FLOPs that one call does)."""
    best, fastest = None, 0.0
    for size in (64, 128) if setting.tiny else MATMUL_SIZES[setting.device.type]:
        left, right = (torch.randn(size, size, device=setting.device).to(dtype) for _ in range(2))

        def run(left=left, right=right):
            torch.matmul(left, right)

        count = _calls_a_turn(run, setting)
        rate = 2 * size**3 * count / seconds_of(run, count, setting.device)
        if rate > fastest:
            best, fastest = (run, 2 * size**3), rate
    return best


def flops_of_step(model, crafting):
    """FLOPs that a training step on one 32x32 picture needs, with `crafting` gradients of the picture before it.

    What is needed, not what somebody's step executes: of crafting, forward and the gradient of the picture; of the
    update, forward and the gradients of weights and activations, that of the picture left out. Counted are
    convolutions and matrix products, a multiplication and an addition as two, which is 2 n³ for a matmul.
    """
    weight = next(model.parameters())
    images, labels = torch.rand(2, 3, 32, 32, device=weight.device), torch.zeros(2, device=weight.device).long()
    with FlopCounterMode(display=False) as craft:
        images.requires_grad_()
        moved = images + 0  # the counter cannot follow autograd.grad to what a module was handed itself
        torch.autograd.grad(cross_entropy(model(moved), labels), images)
    with FlopCounterMode(display=False) as update:
        loss = cross_entropy(model(images.detach()), labels)
        torch.autograd.grad(loss, [weight for weight in model.parameters() if weight.requires_grad])
    return (crafting * craft.get_total_flops() + update.get_total_flops()) / 2
