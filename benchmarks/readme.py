"""What the README shows of the study: a figure, a table, and the notebooks."""

import matplotlib as mpl
import pandas as pd
import torch

from evaluation.finding import Finding
from evaluation.scores import Scores
from storage.atomic_files import read_json, replacing
from storage.paths import ROOT
from study.figures import plot_plane
from study.kept import markdown
from study.style import STYLE

# What the README shows of the study: where it lies, what was trained and how, and some of its networks.
SHOWN = "notebooks/expected/hour-cifar"
EXPERIMENT = "06_robust_transfer"
AGAIN = "notebooks/expected/hour-cifar-seed1"
AT_EQUAL_COST = "notebooks/expected/hour-cifar/02_transfer_learning/scratch-pgd-seed0/autoattack.json"
FIGURE = "notebooks/expected/hour-cifar/clean_against_robust.png"
TRAINED = (
    "ResNet-18 of width 64. Sources: 12 epochs of CIFAR-100 (a lossy copy), the robust one 10 more on attacked "
    "pictures; then 3 of CIFAR-10 (45,000). At equal cost: 13 on clean, 13 on attacked ones. `hour` has 20, 15, 8 "
    "for 12, 10, 3. One H100"
)
NETWORKS = {
    "source-robust": ("robust", "nothing: the source itself, on CIFAR-100"),
    "from-standard-all": ("standard", "all layers, on clean pictures"),
    "from-robust-all": ("robust", "all layers, on clean pictures"),
    "from-robust-head": ("robust", "the head alone, on clean pictures"),
    "from-robust-head-pgd": ("robust", "the head alone, on attacked pictures"),
    "from-scratch-all-pgd": ("none", "all layers, on attacked pictures"),
    "from-standard-all-pgd": ("standard", "all layers, on attacked pictures"),
    "from-robust-all-pgd": ("robust", "all layers, on attacked pictures"),
}


def results(shown=SHOWN, experiment=EXPERIMENT, networks=NETWORKS, again=AGAIN, costly=AT_EQUAL_COST):
    """Figure and table of a study under notebooks/expected; the last column is what another seed has left.

    The last row is what training from scratch reaches for the price of a source and its fine-tuning.
    """
    scores = pd.read_csv(ROOT / shown / "scores.csv").set_index(["model", "evaluation"])
    attack = next(name for _, name in scores.index if name.startswith("AutoAttack"))
    second = pd.read_csv(ROOT / again / "scores.csv").query("evaluation == @attack")
    second.index = second.model.str.replace(r".*/(.*)-seed\d+", r"\1", regex=True)
    rows, counts = [], set()
    for network, said in networks.items():
        found = [scores.loc[(f"{experiment}/{network}-seed0", kind)] for kind in ("clean", attack)]
        other = [second.loc[network]] if network in second.index else []
        counts |= {row.n for row in found + other}
        once_more = [_struck(f"{row.accuracy:.1f}", row) for row in other] or [""]
        rows.append([*said, *map(_accuracy, found), *once_more])
    costly = Scores.read(ROOT / costly)
    found = [
        "{:.1f} ({:.1f}–{:.1f})".format(*(100 * share for share in (costly.share(name), *costly.interval(name))))
        for name in ("clean", "AutoAttack")
    ]
    found[1] += ", the whole"
    rows.append(["none, at equal cost", "all layers, on attacked pictures", *found, ""])
    (n,) = counts | {costly.n}
    said = (
        f"Accuracy in %, n = {n} test pictures, 95 % intervals. {TRAINED}. "
        "[Scores and commands](notebooks/expected)."
    )
    head = ["source", "then trained", "clean", attack, "the same, seed 1"]
    image = f'<img src="{FIGURE}" width="600" alt="Clean and robust accuracy">'
    return "\n\n".join([image, markdown(head, rows, words=2), said])


def _accuracy(row):
    return _struck(f"{row.accuracy:.1f} ({row.low:.1f}–{row.high:.1f})", row)


def _struck(shown, row):
    return f"~~{shown}~~" if row.verdict == "invalid" else shown


def notebooks(root=ROOT):
    """A row a notebook: its title, which is its question, and links to it and to an executed copy.

    Of several copies the one that says most: on photographs before shapes, hour before quick.
    """
    rows = []
    for path in sorted(root.glob("notebooks/[0-9]*.ipynb")):
        title = read_json(path, sealed=False)["cells"][0]["source"][0].removeprefix("# ").strip()
        copies = [(copy.parent.name.split("-"), copy) for copy in root.glob(f"notebooks/expected/*/{path.name}")]
        copies.sort(key=lambda one: (one[0][1] == "shapes", one[0]))
        shown = [f"[{'-'.join(name[:2])}]({copy.relative_to(root)})" for name, copy in copies[:1]]
        rows.append([f"[{path.stem[:2]}]({path.relative_to(root)})", title, *(shown or [""])])
    columns = 3 if any(row[2] for row in rows) else 2
    head = ["notebook", "question", "as it ran"][:columns]
    return markdown(head, [row[:columns] for row in rows], words=columns)


def plot_study(path, experiment):
    """The plane of fine-tuned networks, source-... and from-..., of the first seed, from a kept scores.csv."""
    table = pd.read_csv(path)
    table = table[table.model.str.startswith(f"{experiment}/")]
    attack = next(name for name in table.evaluation if name.startswith("AutoAttack"))
    groups, sources = {"standard": {}, "robust": {}, "scratch": {}}, {}  # in the notebook's order, so its colours
    for model, rows in table[table.evaluation.isin(["clean", attack])].groupby("model", sort=False):
        kind, group, *name = model.removeprefix(f"{experiment}/").removesuffix("-seed0").split("-", 2)
        right = {row.evaluation: round(row.n * row.accuracy / 100) for row in rows.itertuples()}
        outcomes = {name: torch.arange(rows.n.iloc[0]) < count for name, count in right.items()}
        broken = [Finding("", "invalid", 1, 0, "")] if "invalid" in set(rows.verdict) else []
        scores = Scores(rows.split.iloc[0], outcomes, {attack: attack}, findings=broken)
        if kind == "source":
            sources[group] = scores
        elif attack in outcomes:
            groups[group]["".join(name)] = scores
    return plot_plane(groups, attack, sources)


def picture_of_study(target=ROOT / FIGURE):
    """Draw what the README shows first."""
    with replacing(target) as partial, mpl.rc_context(STYLE):
        plot_study(ROOT / SHOWN / "scores.csv", EXPERIMENT).savefig(partial)
    return target
