"""Does the search as it is here leave as many examples as one in plain float32, kernel by kernel?

    python -m benchmarks.strength                       # on a GPU: 16 bits, TF32 and graphs against none of them
    python -m benchmarks.strength ours/cifar10-robust-w16 RUN --pictures 1000
    python -m benchmarks.strength --float16             # as it is on GPUs before Ampere, on any GPU

On networks of the repository, or others, and CIFAR. Each attack runs three times: in float32, as it is, and as it
is with another seed, which says how much is chance.
"""

import argparse
import time
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from unittest import mock

import utils
from attacks import APGD, FAB, PGD, Square, autoattack_search
from benchmarks.suite import RESULTS
from evaluation import network_graphs, per_example
from finetune_framework import load_source
from models.tf32 import rounding
from processes.machine import environment
from storage.atomic_files import write_json

NETWORKS = [f"ours/{data}-{kind}-w16" for data in ("cifar10", "cifar100") for kind in ("robust", "standard")]
ATTACKS = [
    PGD(steps=20),
    APGD(steps=50),
    APGD(steps=50, loss="targeted", targets=2),
    FAB(steps=30, targets=2),
    Square(queries=300),
]

SHORT = {PGD: {"steps": 2}, APGD: {"steps": 2}, FAB: {"steps": 2}, Square: {"queries": 5}}


@contextmanager
def plainly():
    """In float32, with neither graphs nor TF32, nor convolutions that are tried out."""

    @contextmanager
    def exactly(**_):
        with rounding(tf32=False):
            yield

    places = (per_example, autoattack_search)
    with ExitStack() as patches:
        for place in places:
            patches.enter_context(mock.patch.object(place, "rounding", exactly))
        patches.enter_context(mock.patch.object(network_graphs, "OFTEN", 10**9))
        patches.enter_context(searching_in("float32"))
        yield


def searching_in(precision):
    return mock.patch.object(autoattack_search, "fast_precision", return_value=precision)


def left(model, split, attack, right, seed):
    """How many of the examples withstand, and in how many seconds."""
    begun = time.perf_counter()
    stood, _ = per_example.attacked(model, model, split, attack, right, seed)
    return int(stood.sum()), time.perf_counter() - begun


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "networks", nargs="*", default=NETWORKS, help="sources (default: four of the repository's)"
    )
    parser.add_argument("--pictures", type=int, default=1000, help="test pictures of CIFAR (default: 1000)")
    parser.add_argument("--float16", action="store_true", help="search as GPUs before Ampere do")
    parser.add_argument("--tiny", action="store_true", help="a few steps: does it run?")
    options = parser.parse_args(arguments)
    session = utils.start(
        "strength", preset="smoke" if options.tiny else "full", data="shapes" if options.tiny else "cifar"
    )
    known = {"environment": environment(session.device), "pictures": options.pictures, "rows": []}
    print(
        f"{'network':28} {'attack':10} {'right':>6} {'float32':>8} {'as it is':>9} {'again':>6}   seconds of each"
    )
    for name in options.networks:
        model = load_source(name).to(session.device).eval()
        classes = "cifar100" if "100" in name else "cifar10"
        split = utils.load_data(session.dataset(classes), session).test.first(options.pictures)
        right = (per_example.predict(model, split).argmax(1) == split.labels).nonzero()[:, 0]
        for attack in ATTACKS:
            attack = replace(attack, **SHORT[type(attack)]) if options.tiny else attack
            with plainly():
                found = [left(model, split, attack, right, 0)]
            with searching_in("float16") if options.float16 else nullcontext():
                found += [left(model, split, attack, right, seed) for seed in (0, 1)]
            counts, seconds = zip(*found, strict=True)
            known["rows"].append(
                {"network": name, "attack": repr(attack), "right": len(right), "left": counts, "seconds": seconds}
            )
            shown = f"{attack.label:10} {len(right):6} {counts[0]:8} {counts[1]:9} {counts[2]:6}  "
            print(f"{name[-28:]:28} {shown}", *(f"{value:.2f}" for value in seconds), flush=True)
    if not options.tiny:
        write_json(RESULTS / f"strength-{session.device.type}{'-float16' * options.float16}.json", known)


if __name__ == "__main__":
    main()
