"""Do the checks find what is planted, and leave alone what is sound? The confusion table, on networks of a study.

    make study && python -m benchmarks.verdicts runs/quick-shapes

Every flaw of flaws/catalogue.py is planted in the small CNN (notebook 01) and in the ResNet-18 (notebook 03).
Sound are the evaluations of all networks of the study that have learned something, each under four attacks, and
audits of those of the experiments named by --audit. A network at chance, or one that says one class for most
pictures, is left out: that is a flaw of its own.
"""

import argparse
import time
from pathlib import Path

import pandas as pd
import torch

import utils
from attacks import FGSM, NIFGSM, PGD, VMIFGSM
from benchmarks.suite import RESULTS
from evaluation.audit import audit
from evaluation.flaws.catalogue import FLAWS, Lab
from evaluation.testing import test
from finetune_framework import load_source
from models.fingerprint import fingerprint
from processes.machine import environment
from storage.atomic_files import read_json, write_json

NOT_SOUND = {"better than chance", "constant predictor"}
# At 8/255 the ResNet-18 loses so little on Shapes that there would be nothing to hide.
LABS = {"small CNN": ("01_shallow_cnn", 8 / 255), "ResNet-18": ("03_from_scratch", 16 / 255)}


def network(folder, session):
    """A run's network, and the test pictures of its data."""
    data = utils.load_data(read_json(folder / "recipe.json")["data"]["name"], session)
    return load_source(folder).to(session.device).eval(), data.test


def sound_evaluations(study, session, pictures, audits):
    """(name, findings) of every network of the study, once."""
    seen = set()
    for recipe in sorted(study.glob("0[1-4]*/*/recipe.json")):
        folder = recipe.parent
        if not (folder / "weights.safetensors").exists():
            continue
        model, split = network(folder, session)
        if fingerprint(model) in seen:
            continue
        seen.add(fingerprint(model))
        name, split = f"{folder.parent.name}/{folder.name}", split.first(pictures)
        attacks = [FGSM(), PGD(steps=20), NIFGSM(), VMIFGSM(steps=5)]
        findings = test(model, split, attacks, progress=False).findings
        if any(finding.check in NOT_SOUND for finding in findings):
            print(f"{name}: left out, {findings[0]}", flush=True)
            continue
        print(f"{name}: {'; '.join(map(str, findings)) or 'no finding'}", flush=True)
        yield name, findings
        if folder.parent.name.startswith(tuple(audits)):
            findings = audit(model, split, PGD(steps=20), progress=False).findings
            print(f"{name}, audit: {'; '.join(map(str, findings)) or 'no finding'}", flush=True)
            yield f"{name}, audit", findings


def labs(study, session, pictures):
    """Where the flaws are planted: a standard network and an adversarially trained one."""
    for name, (experiment, eps) in LABS.items():
        (standard,) = sorted(study.glob(f"{experiment}/standard-seed0"))
        (robust,) = sorted(study.glob(f"{experiment}/pgd-seed0"))
        model, split = network(standard, session)
        yield name, Lab(model, network(robust, session)[0], split.first(pictures), PGD(eps=eps, step_size=eps / 4))


def plant(lab, progress=None):
    """Plant every flaw: a table with a row a flaw, and whether it was found by the right check."""
    rows = []
    for flaw in FLAWS:
        hit, findings = flaw.found(lab)
        everything = "; ".join(sorted({finding.check for finding in findings}))
        rows.append([flaw.name, flaw.severity, flaw.check, hit, everything])
        if progress:
            progress(rows[-1])
    return pd.DataFrame(rows, columns=["flaw", "severity", "check", "found", "all findings"])


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
    parser.add_argument("--pictures", type=int, default=200, help="in a sound evaluation (default: 200)")
    parser.add_argument("--lab-pictures", type=int, default=100, help="where flaws are planted (default: 100)")
    parser.add_argument("--audit", nargs="*", default=["01", "03"], help="experiments to audit (default: 01 03)")
    options = parser.parse_args()
    begun = time.perf_counter()
    family = "cifar" if "cifar" in options.study.name else "shapes"
    session = utils.start("benchmark", preset="quick", data=family)
    flawed = {}
    for name, lab in labs(options.study, session, options.lab_pictures):
        print(f"\n{name}", flush=True)
        flawed[name] = plant(lab, lambda row: print("found " if row[3] else "MISSED", *row[:3], flush=True))
    print()
    sound = dict(sound_evaluations(options.study, session, options.pictures, options.audit))
    summary = confusion(flawed, sound)
    print(f"\n{summary.to_string()}")
    values = {"environment": environment(session.device), "threads": torch.get_num_threads()}
    values |= {"seconds": time.perf_counter() - begun, "study": options.study.name, "pictures": options.pictures}
    values |= {"lab_pictures": options.lab_pictures, "summary": summary.to_dict("index")}
    values |= {"planted": {name: table.to_dict("records") for name, table in flawed.items()}}
    target = RESULTS / f"verdicts-{session.device.type}.json"
    write_json(target, values | {"sound": {name: list(map(str, found)) for name, found in sound.items()}})
    print(f"\nwritten to {target.relative_to(utils.ROOT)}")


if __name__ == "__main__":
    main()
