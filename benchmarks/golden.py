"""Attacks against networks whose truth is known: ours, torchattacks' and foolbox's.

python -m benchmarks.golden      writes benchmarks/results/golden.md

All at ε = 8/255, in L2 at 0.5, each with the settings that its library gives it unless they are named. foolbox,
which is no dependency, takes part where it is installed.
"""

import argparse
import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from attacks import (
    APGD,
    DIFGSM,
    FAB,
    FGSM,
    MIFGSM,
    NIFGSM,
    PGD,
    SINIFGSM,
    TIFGSM,
    VMIFGSM,
    VNIFGSM,
    Attack,
    AutoAttack,
    Square,
    Torchattacks,
)
from attacks.settings import NORMS, USUAL_EPS
from benchmarks.suite import RESULTS
from evaluation import golden
from storage.atomic_files import replacing

QUERIES = 1000  # of Square, alone and in AutoAttack, which has 5,000 by itself


@dataclass(frozen=True, kw_only=True, repr=False)
class Foolbox(Attack):
    """foolbox's attack of that name."""

    name: str
    norm: str = "Linf"
    steps: int | None = None

    changes_all = False

    def __repr__(self):
        return f"{self.name}({'' if self.steps is None else f'steps={self.steps}'})"

    def craft(self, model, images, labels, generator, targeted=False):
        import foolbox

        settings = {} if self.steps is None else {"steps": self.steps}
        wrapped = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device=images.device)
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            attack = getattr(foolbox.attacks, self.name)(**settings)
            criterion = foolbox.criteria.Misclassification(labels)
            return attack(wrapped, images.contiguous(), criterion, epsilons=self.eps)[1].detach()


def ours(norm):
    ball = {"norm": norm}
    found = [FGSM(**ball), PGD(**ball), PGD(**ball, steps=20), PGD(**ball, steps=20, restarts=5)]
    if norm == "Linf":
        found += [kind() for kind in (MIFGSM, NIFGSM, VMIFGSM, VNIFGSM, DIFGSM, TIFGSM, SINIFGSM)]
    found += [APGD(**ball, loss=loss) for loss in ("ce", "dlr", "targeted")]
    return [*found, FAB(**ball), Square(**ball, queries=QUERIES), AutoAttack(**ball, queries=QUERIES)]


def torchattacks(norm):
    ball = {"eps": USUAL_EPS[norm]} | ({} if norm == "Linf" else {"norm": norm})
    if norm == "L2":
        found = [Torchattacks("PGDL2", eps=ball["eps"], alpha=0.0625, steps=20)]
    else:
        names = "FGSM", "PGD", "MIFGSM", "NIFGSM", "VMIFGSM", "VNIFGSM", "DIFGSM", "TIFGSM", "SINIFGSM"
        found = [Torchattacks(name, **ball) for name in names]
        found.insert(2, Torchattacks("PGD", **ball, steps=20))
    found += [Torchattacks("APGD", **ball), Torchattacks("APGD", **ball, steps=100), Torchattacks("APGDT", **ball)]
    return [*found, Torchattacks("FAB", **ball), Torchattacks("Square", **ball, n_queries=QUERIES)]


def foolbox(norm):
    if importlib.util.find_spec("foolbox") is None:
        return []
    names = "FastGradientAttack", "BasicIterativeAttack", "ProjectedGradientDescentAttack", "DeepFoolAttack"
    found = [Foolbox(eps=USUAL_EPS[norm], norm=norm, name=f"{norm}{name}") for name in names]
    return [
        *found,
        Foolbox(eps=USUAL_EPS[norm], norm=norm, name=f"{norm}ProjectedGradientDescentAttack", steps=20),
    ]


LIBRARIES = {"ours": ours, "torchattacks": torchattacks, "foolbox": foolbox}


def lines(norm, attacks):
    """The rows of a table: what is true, and how many points each attack leaves too many."""
    known = golden.networks(USUAL_EPS[norm], norm)
    yield f"| {norm} | {' | '.join(one.name for one in known)} | seconds |"
    yield "|---|" + (len(known) + 1) * "---:|"
    yield f"| the truth, % | {' | '.join(map(truth, known))} | |"
    for library, attack in attacks:
        begun = time.perf_counter()
        cells = [too_many(one, attack) for one in known]
        seconds = time.perf_counter() - begun
        yield f"| {library}: {attack} | {' | '.join(cells)} | {seconds:.1f} |"


def too_many(known, attack):
    """A cell; a dash where the attack refuses the network, as torchattacks' do that want four classes."""
    try:
        return f"{golden.measured(known, attack)['too many']:.1f}"
    except ValueError:
        return "–"


def truth(known):
    low, high = (100 * float(some.double().mean()) for some in (known.surely, known.maybe))
    return f"{low:.1f}" if low == high else f"{low:.1f}–{high:.1f}"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder (default: benchmarks/results)")
    parser.add_argument("--only", nargs="*", help="parts of attacks' names, such as PGD")
    options = parser.parse_args(arguments)
    text = [
        "How many points of robust accuracy an attack leaves too many, on networks whose truth is known "
        f"(evaluation/golden.py), {golden.COUNT} pictures each.",
    ]
    for norm in NORMS:
        attacks = [(library, attack) for library, make in LIBRARIES.items() for attack in make(norm)]
        if options.only is not None:
            attacks = [pair for pair in attacks if any(part in repr(pair[1]) for part in options.only)]
        text.append("")
        for line in lines(norm, attacks):
            print(line, flush=True)
            text.append(line)
        with replacing(options.output / "golden.md") as partial:
            partial.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
