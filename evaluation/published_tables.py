"""Are published numbers to be believed? A table alone shows what cannot be true and what other attacks refute.

A robust accuracy under an attack is an upper bound: where the same row has a lower one, the higher is too high.
"""

import math
from pathlib import Path

import pandas as pd

from evaluation import checks, comparisons
from evaluation.audit import in_order
from evaluation.finding import Finding
from storage.atomic_files import read_json

CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
ABOUT = ("clean", "classes", "eps", "unreliable")  # the columns that are no attack's
NAMES = {"clean_acc": "clean", "clean_accuracy": "clean", "autoattack_acc": "AutoAttack"}

# Of a published number, by how many points a lower one in the same row makes it suspect, and invalid. What is
# reported is often PGD's: healthy networks lose at most 6.4 points more to AutoAttack (126 runs in the logs of
# FastAT_Benchmark), so 8 are asked for. AutoAttack is held against what beat it on the same network and pictures.
LIMITS = {"reported": (1, 8), "AutoAttack": (0.2, 1)}
COMPARED = (*LIMITS, "external")


def judge(clean, robust, *, chance=None, eps=8 / 255):
    """Findings about a published table alone: clean accuracy and {"FGSM": ..., "PGD-20": ...}, shares from 0 to 1.

    It takes no model and no picture, so it finds only what cannot be true. NaN stands for a missing number; `eps`
    is that of the attacks, in L∞.
    """
    robust = {label: share for label, share in robust.items() if not math.isnan(share)}
    found = [chance is not None and checks.better_than_chance(clean, chance)]
    found += [comparisons.robust_above_clean(clean, label, share) for label, share in robust.items()]
    if "FGSM" in robust:
        for label in robust:
            if label.startswith("PGD"):
                found.append(comparisons.attack_order(robust["FGSM"], robust[label], against=label, eps=eps))
        found.append(comparisons.alike(clean, robust))
    return in_order(found)


def judge_table(table):
    """Judge each row of a published table: the table with a column more, verdict.

    `table` is a DataFrame in percent, or a path: of a CSV, of a JSON file of RobustBench's model_info, or of a
    folder of these. Columns are clean, an attack each and, where known, classes, eps ("8/255" or a number) and
    unreliable (says the table itself). Under *reported* stands what a paper said, under *AutoAttack* and
    *external* what others measured on its network. Of a file those columns count that end in _acc or _accuracy,
    where there are none all numbers; shares are taken times 100. Raises ValueError without clean accuracy.
    """
    if not isinstance(table, pd.DataFrame):
        table = read_table(table)
    return table.assign(verdict=["; ".join(map(str, found)) or "no finding" for found in judged(table)])


def judged(table):
    """The findings of each row of such a table, a list of lists."""
    if "clean" not in table:
        raise ValueError(f"a column 'clean' is needed, and these are there: {', '.join(map(str, table))}")
    sizes = [_size(value) for value in table["eps"]] if "eps" in table else []
    usual = pd.Series(sizes, dtype=float).mode()
    rows = []
    for place, row in enumerate(table.to_dict("records")):
        shares = {name: float(value) / 100 for name, value in row.items() if name not in ABOUT}
        chance = 1 / row["classes"] if row.get("classes", 0) > 0 else None
        eps = {"eps": sizes[place]} if sizes and not math.isnan(sizes[place]) else {}
        found = judge(row["clean"] / 100, shares, chance=chance, **eps)
        found += [impossible(name, share) for name, share in ({"clean": row["clean"] / 100} | shares).items()]
        found += [refuted(name, shares) for name in LIMITS]
        if sizes:
            found.append(other_size(sizes[place], usual[0] if len(usual) else math.nan))
        if "AutoAttack" in row and math.isnan(row["AutoAttack"]):
            found.append(Finding("no AutoAttack", "suspect", 0, 0, "nobody has attacked it with AutoAttack"))
        if row.get("unreliable") in (True, "true"):
            found.append(Finding("unreliable", "suspect", 1, 0, "its own table calls it unreliable"))
        rows.append(in_order(found))
    return rows


def refuted(name, shares):
    """Suspect or invalid, see LIMITS: a number in whose row another attack leaves less."""
    known = {label: 100 * shares[label] for label in COMPARED if not math.isnan(shares.get(label, math.nan))}
    strongest = min(known, key=known.get, default=name)
    if name not in known or strongest == name:
        return None
    gap, (doubt, limit) = known[name] - known[strongest], LIMITS[name]
    severity, over = ("invalid", limit) if gap > limit + 1e-9 else ("suspect", doubt)
    if gap > over + 1e-9:
        says = f"{known[name]:.2f} %, and {strongest} leaves {known[strongest]:.2f} %, {gap:.1f} points less"
        return Finding("refuted", severity, gap, over, says, (name,))


def impossible(name, share):
    """Invalid: an accuracy below 0 or above 100 %."""
    if share < 0 or share > 1:
        return Finding("percent", "invalid", share, 1, f"{100 * share:g} % is no accuracy in percent", (name,))


def other_size(eps, usual):
    """Suspect: no ε, or another one than most of the table has."""
    if math.isnan(eps):
        return Finding("ε", "suspect", 0, 0, "no ε is given, and a robust accuracy is of one ε")
    if abs(eps - usual) > 1e-6:
        says = f"ε = {eps:.4g}, where most of the table has {usual:.4g}: the numbers are not of one size"
        return Finding("ε", "suspect", eps, usual, says)


def _size(text):
    """ε of "8/255", "0.031" or a number; NaN where there is none."""
    if isinstance(text, str) and "/" in text:
        above, below = text.split("/")
        return float(above) / float(below)
    return float(text) if text not in (None, "") else math.nan


def read_table(path):
    """A published table as judge_table wants it; see there."""
    path = Path(path)
    if path.suffix == ".csv":
        raw = pd.read_csv(path)
    else:
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"{path} holds no JSON files, such as those of RobustBench's model_info")
        rows = [read_json(file, "Get it again", sealed=False) | {"name": file.stem} for file in files]
        raw = pd.DataFrame(rows)
    ending = [NAMES.get(name, name) for name in raw if name.endswith(("_acc", "_accuracy"))]
    raw = raw.rename(columns=NAMES)
    there = ["clean", *COMPARED, *ending] if ending else raw.select_dtypes("number")
    there = [name for name in dict.fromkeys(there) if name in raw and name not in ABOUT[1:]]
    table = raw[there].apply(pd.to_numeric, errors="coerce")
    table *= 100 if table.max(axis=None) <= 1 else 1
    if "dataset" in raw and "classes" not in raw and raw["dataset"].isin(CLASSES).any():
        raw["classes"] = raw["dataset"].map(CLASSES)
    about = [name for name in ABOUT[1:] if name in raw]
    words = [name for name in raw.select_dtypes(exclude="number") if name not in (*there, *about)]
    table.index = raw["name"] if "name" in raw else raw[words].astype(str).agg(", ".join, axis=1)
    return table.assign(**{name: raw[name].to_numpy() for name in about})
