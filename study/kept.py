"""What is kept of a study for readers: scores, figures, provenance, and the notebooks as they ran."""

import base64
import io
import itertools
import json
import re
import shlex
import shutil
from pathlib import Path

import pandas as pd

from evaluation.scores import Scores
from evaluation.source_gain import source_gain
from evaluation.statistics import difference, interval_of_mean
from storage.atomic_files import read_json, replacing, write_json
from storage.paths import ROOT, data_root, runs_root
from study.report import is_progress, write_page

MOST_BYTES = 1_500_000  # of a notebook that a code host still renders
HEADER = "executed"  # the id of a copy's first cell


def keep(study, target):
    """Copy what a reader wants of a study to `target`: scores, figures (PNG), provenance and the notebooks as they
    ran, but no weights. A notebook that broke off is left out."""
    study, target = Path(study), Path(target)
    write_page(study)
    for path in (*target.glob("*/figures/*.png"), *target.glob("[0-9]*.ipynb")):  # of what was kept there before
        path.unlink()
    data = {}
    for path in sorted(study.glob("*/*/recipe.json")):
        used = read_json(path)["data"]
        data.setdefault(used["name"], set()).add(used["sha256"])
    environments = {}
    for path in sorted(study.glob("*/*/environment.json")):
        values = read_json(path)
        machine = {name: value for name, value in values.items() if name not in ("started", "same_run_as")}
        environments.setdefault(json.dumps(machine), []).append(values["started"])
    same = [json.loads(one) | {"started": min(of), "runs": len(of)} for one, of in environments.items()]
    command = _without_places((study / "command.txt").read_text()).splitlines()
    write_json(
        target / "provenance.json",
        {"commands": command, "data": {name: sorted(of) for name, of in data.items()}, "environments": same},
    )
    for path in (study / "scores.csv", *sorted(study.glob("*/figures/[!.]*.png"))):
        with replacing(target / path.relative_to(study)) as partial:
            shutil.copyfile(path, partial)
    for path in sorted(study.glob("notebooks/[!.]*.ipynb")):
        if text := _readable(path, study, command):
            with replacing(target / path.name) as partial:
                partial.write_text(text, encoding="utf-8")


def index(folder):
    """What is kept in a folder, a row of Markdown a study: notebooks, pictures, device, date."""
    head, rows = ["folder", "notebooks", "test pictures, at most", "device", "date", "commands"], []
    for path in sorted(Path(folder).glob("*/provenance.json")):
        known, name = read_json(path), path.parent.name
        scores = pd.read_csv(path.with_name("scores.csv"))
        splits = scores.groupby("split").n.max().items()
        first = known["environments"][0]
        row = [
            f"[{name}]({name})",
            ", ".join(
                sorted({*scores.model.str[:2]} | {place.name[:2] for place in path.parent.glob("[0-9]*.ipynb")})
            ),
            ", ".join(f"{n:,} ({split.removesuffix(' test')})" for split, n in splits),
            first["device"],
            first["started"][:10],
            f"[{len(known['commands'])}]({name}/provenance.json)",
        ]
        rows.append(row)
    return markdown(head, rows, words=len(head))


def seeds_table(folder, experiment):
    """An experiment of a kept study with several seeds, a row of Markdown a network: accuracies in %, and of each
    seed the last.

    In brackets is Student's 95 % interval of the mean over seeds, which says nothing of other pictures. Sources
    are left out: they may be the same network for all seeds.
    """
    scores = pd.read_csv(Path(folder) / "scores.csv")
    scores = scores[scores.model.str.startswith(f"{experiment}/")].copy()
    scores[["network", "seed"]] = scores.model.str.extract(r"([^/]*)-seed(\d+)$")
    (attack,) = {name for name in scores.evaluation if name.startswith("AutoAttack")}
    rows = []
    for network, some in scores[~scores.network.str.startswith("source")].groupby("network", sort=False):
        row = [network]
        for evaluation in ("clean", attack):
            found = some[some.evaluation == evaluation].sort_values("seed")
            mean, each = found.accuracy.mean(), ", ".join(f"{value:.1f}" for value in found.accuracy)
            low, high = interval_of_mean(mean, found.accuracy.std(), len(found))
            shown = f"{mean:.1f} [{low:.1f}, {high:.1f}]"
            row.append(f"~~{shown}~~" if "invalid" in set(found.verdict) else shown)
        rows.append([*row, each])
    return markdown(["network", "clean", attack, "each seed"], rows)


def paired_table(folders, ours, theirs):
    """Two networks of kept studies, picture by picture: rows of Markdown for a study and a number of pictures.

    `folders` maps what a row says to the folder of an experiment with <network>-seed<n>/scores.json, and perhaps
    autoattack.json, where each picture's outcome stands. Accuracies, in %, are means over the seeds; the last
    difference is split by where it comes from (evaluation/source_gain.py).
    """
    rows = []
    for said, folder in folders.items():
        for name in ("scores", "autoattack"):
            places = [sorted(folder.glob(f"{network}-seed*/{name}.json")) for network in (ours, theirs)]
            if not all(places):
                continue
            both = [[Scores.read(place) for place in some] for some in places]
            size = f"{len(places[0])} × {both[0][0].n:,}"
            known = both[0][0].outcomes
            labels = [label for label in known if label.startswith(("clean", "PGD-20", "AutoAttack"))]
            for label in labels:
                means = [f"{100 * sum(one.share(label) for one in some) / len(some):.1f}" for some in both]
                rows.append([said, size, label, *means, difference(*both, label)])
            gain = source_gain(*([some] for some in both), labels[-1])
            rows.append([said, size, "of it, as more are right", "", "", gain.by_accuracy])
            rows.append([said, size, "of it, as more of the right withstand", "", "", gain.by_withstanding])
    head = ["networks", "seeds × n", "evaluation", ours, theirs, "difference"]
    return markdown(head, [[*map(str, row)] for row in rows], words=3)


def markdown(head, rows, words=1):
    """A table of Markdown; after the columns of words, numbers stand right."""
    lines = [head, [*["---"] * words, *["---:"] * (len(head) - words)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _readable(path, study, commands):
    """An executed notebook for a code host, as JSON: what it shows, without what only its machine knows.

    Progress bars, times of cells and places of folders go; a first cell says where it comes from. Figures of a
    notebook that is too large shrink. None for one that broke off.
    """
    import nbformat  # imported late: two seconds

    book = nbformat.reads(json.dumps(read_json(path, sealed=False)), 4)
    ran = book.metadata.pop("papermill")
    if ran["exception"]:
        return None
    book.metadata.pop("widgets", None)
    for cell in book.cells:
        cell.metadata = {"tags": tags} if (tags := cell.metadata.get("tags")) else {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not is_progress(output)]
    book.cells.insert(0, nbformat.v4.new_markdown_cell(_header(path.stem, study, ran, commands), id=HEADER))
    text = _without_places(nbformat.writes(book)) + "\n"
    for share in (None, 1, 0.7, 0.5):
        fit = re.sub(r'(?<="image/png": ")[^"]+', lambda png, by=share: _smaller(png.group(), by), text)
        if len(fit.encode()) <= MOST_BYTES:
            return fit
    raise ValueError(f"{path} has more than {MOST_BYTES:,} bytes, also with figures of half their width")


def _without_places(text):
    """A text in which folders of this machine are called as in the README."""
    for place, name in {f"{runs_root()}": "runs", f"{data_root()}": "data", f"{ROOT}/": ""}.items():
        text = text.replace(place, name)
    return text


def _smaller(png, share):
    """A PNG in base64: as it is, or with 256 colours at that share of its width."""
    from PIL import Image

    if share is None:
        return png
    image, small = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
    image = image.resize([round(share * pixels) for pixels in image.size], Image.Resampling.LANCZOS)
    image.quantize(256).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def _runs_before(name, study, ran):
    """The runs of a notebook that were trained before it began, this time."""
    own = [read_json(path) for path in sorted((study / name).glob("*/environment.json"))]
    return [run for run in own if "same_run_as" not in run and run["started"] < ran["start_time"]]


def _is_of(command, name):
    """Did a command of a study run this notebook: does it name it, or none?"""
    pairs = itertools.pairwise(shlex.split(command))
    named = [word for before, word in pairs if word[:1].isdecimal() and before[:2] != "--"]
    return not named or name.startswith(tuple(named))


def _header(name, study, ran, commands):
    """Where, when and how a notebook was executed, in a sentence."""
    first = sorted(study.glob(f"{name}/*/environment.json")) or sorted(study.glob("*/*/environment.json"))
    machine = read_json(first[0])
    threads = "" if machine["cuda"] else f" ({machine['threads']} of {machine['cores']} cores)"
    preset, _, data = study.name.partition("-")
    loaded = "; some of its runs were there already" if _runs_before(name, study, ran) else ""
    return (
        f"*Executed on {ran['start_time'][:10]}, {machine['device']}{threads}, {ran['duration'] / 60:.1f} minutes"
        f"{loaded}, preset {preset}, data {data}, commit {ran.get('commit', machine['commit'])}; made by:* "
        + " and ".join(f"`{command}`" for command in commands if _is_of(command, name))
    )
