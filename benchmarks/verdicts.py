"""Do the checks find what is planted, and leave alone what is sound? The confusion table, on networks of a study.

    make study && python -m benchmarks.verdicts runs/quick-shapes

Every flaw of flaws/catalogue.py is planted in the small CNN (notebook 01) and in the ResNet-18 (models/weights).
Sound are the evaluations of all networks of the study that have learned something, and of those of models/weights,
under three attacks; these and those of the experiments named by --audit are audited, and tested and audited in L2.
A network at chance, or one that says one class for most pictures, is left out: that is a flaw of its own. Beside
our checks stand the detectors of rivals.py, asked about the same networks, with PGD-10 on the first 24 pictures.
"""

import argparse
import sys
import time
from pathlib import Path

import pandas as pd
import torch

import utils
from attacks import FGSM, NIFGSM, PGD
from attacks.settings import USUAL_EPS
from benchmarks.rivals import DETECTORS, asked, raised
from benchmarks.suite import RESULTS
from evaluation.audit import audit
from evaluation.flaws.catalogue import FLAWED_ATTACKS, FLAWED_MODELS, FLAWS, Lab
from evaluation.testing import test
from finetune_framework import load_source
from models import ours
from models.fingerprint import fingerprint
from processes.machine import environment
from storage.atomic_files import read_json, write_json

NOT_SOUND = {"no better than chance", "constant predictor"}
CNN = "01_shallow_cnn"
# At 8/255 the ResNet-18 loses so little on Shapes that there would be nothing to hide.
RESNET_EPS = {"shapes": 20 / 255, "cifar": 8 / 255}


def network(folder, session):
    """A run's network, and the test pictures of its data."""
    data = utils.load_data(read_json(folder / "recipe.json")["data"]["name"], session)
    return load_source(folder).to(session.device).eval(), data.test


def known(name, session):
    """A network of models/weights, and the test pictures of its data."""
    data = utils.load_data(name.partition("-")[0], session)
    return load_source(f"ours/{name}").to(session.device).eval(), data.test


def networks(study, session, family):
    """(name, network, test pictures) of the study and of models/weights, each once."""
    seen = set()
    for recipe in sorted(study.glob("0[1-4]*/*/recipe.json")):
        folder = recipe.parent
        if (folder / "weights.safetensors").exists():
            model, split = network(folder, session)
            if fingerprint(model) not in seen:
                seen.add(fingerprint(model))
                yield f"{folder.parent.name}/{folder.name}", model, split
    for name in filter(lambda name: name.startswith(family), ours.names()):
        yield f"ours/{name}", *known(name, session)


def sound_evaluations(study, session, family, pictures, audits):
    """(name, findings by what they are of, what others raise) of networks that nothing is wrong with, by norm."""
    for name, model, split in networks(study, session, family):
        split = split.first(pictures)
        for norm in ("Linf", "L2") if name.startswith(("ours/", *audits)) else ("Linf",):
            several = [FGSM(norm=norm), PGD(norm=norm, steps=20), NIFGSM()][: 3 if norm == "Linf" else 2]
            findings = {"test": test(model, split, several, progress=False).findings}
            if any(finding.check in NOT_SOUND for finding in findings["test"]):
                print(f"{name}: left out, {findings['test'][0]}", flush=True)
                break
            if name.startswith(("ours/", *audits)):
                findings["audit"] = audit(model, split, several[1], progress=False).findings
            eps = USUAL_EPS[norm]
            others = raised(model, split, PGD(norm=norm, eps=eps, step_size=eps / 4))
            yield f"{name}, {norm}", findings, others


def labs(study, session, family, pictures):
    """Where the flaws are planted: a standard network and an adversarially trained one."""
    (standard, split), (robust, _) = (
        network(study / CNN / f"{kind}-seed0", session) for kind in ("standard", "pgd")
    )
    yield "small CNN", Lab(standard, robust, split.first(pictures), PGD())
    eps = RESNET_EPS[family]
    (standard, split), (robust, _) = (known(f"{family}10-{kind}-w16", session) for kind in ("standard", "robust"))
    yield "ResNet-18", Lab(standard, robust, split.first(pictures), PGD(eps=eps, step_size=eps / 4))


def plant(lab, progress=None):
    """Plant every flaw: a table with a row a flaw, whether the right check found it, and what others raise.

    Others are asked about flawed models and attacks; of protocols they do not speak (None).
    """
    rows = []
    for flaw in FLAWS:
        hit, findings = flaw.found(lab)
        kind = "model" if flaw in FLAWED_MODELS else "attack" if flaw in FLAWED_ATTACKS else "protocol"
        row = {"flaw": flaw.name, "of": kind, "severity": flaw.severity, "check": flaw.check, "found": hit}
        row["all findings"] = "; ".join(sorted({finding.check for finding in findings}))
        others = dict.fromkeys(DETECTORS) if kind == "protocol" else raised(*asked(flaw, lab))
        rows.append(row | others)
        if progress:
            progress(rows[-1])
    return pd.DataFrame(rows)


def confusion(planted, sound):
    """How often the checks were right: a row a kind of evaluation.

    `planted` maps names of labs to tables of `plant`, `sound` maps names of evaluations that nothing is wrong with
    to their findings.
    """
    rows = {}
    for name, table in planted.items():
        for severity, part in table.groupby("severity"):
            rows[f"{name}: planted, {severity}"] = {"evaluations": len(part), "as expected": int(part.found.sum())}
    for severity in ("invalid", "suspect"):
        clear = sum(all(finding.severity != severity for finding in found) for found in sound.values())
        rows[f"sound: nothing {severity}"] = {"evaluations": len(sound), "as expected": clear}
    return pd.DataFrame.from_dict(rows, orient="index")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="a study's folder, such as runs/quick-shapes")
    parser.add_argument("--pictures", type=int, default=80, help="in a sound evaluation (default: 80)")
    parser.add_argument("--lab-pictures", type=int, default=60, help="where flaws are planted (default: 60)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder (default: benchmarks/results)")
    parser.add_argument("--audit", nargs="*", default=["01"], help="experiments to audit (default: 01)")
    options = parser.parse_args()
    begun = time.perf_counter()
    family = "cifar" if "cifar" in options.study.name else "shapes"
    session = utils.start("benchmark", preset="quick", data=family)
    flawed = {}
    for name, lab in labs(options.study, session, family, options.lab_pictures):
        print(f"\n{name}", flush=True)
        flawed[name] = plant(lab, lambda row: print(*row.values(), sep=" | ", flush=True))
    print()
    sound, beside = {}, {}
    for name, found, others in sound_evaluations(options.study, session, family, options.pictures, options.audit):
        sound |= {f"{name}, {kind}": findings for kind, findings in found.items()}
        beside[name] = {"ours": [str(finding) for findings in found.values() for finding in findings]} | others
        print(name, beside[name], flush=True)
    summary = confusion(flawed, sound)
    print(f"\n{summary.to_string()}")
    values = {"environment": environment(session.device), "threads": torch.get_num_threads()}
    values |= {"seconds": time.perf_counter() - begun, "study": options.study.name, "pictures": options.pictures}
    values |= {"lab_pictures": options.lab_pictures, "summary": summary.to_dict("index")}
    values |= {"command": f"python -m benchmarks.verdicts {' '.join(sys.argv[1:])}"}
    values["sound"] = beside
    values |= {"planted": {name: table.to_dict("records") for name, table in flawed.items()}}
    target = options.output / f"verdicts-{session.device.type}.json"
    write_json(target, values)
    print(f"\nwritten to {target}")


if __name__ == "__main__":
    main()
