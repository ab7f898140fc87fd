"""Tables and figures of runs, made from their folders, and the HTML page of a study.

Colours keep their run from figure to figure; error bars are 95 % Wilson intervals; what the audit found
invalid is struck out in tables and left out of figures.
"""

import base64
import html
import json
import re
import shutil
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import torch
from jinja2 import Template
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from attacks import evaluating
from audit import Finding
from evaluation import predict
from files import replacing
from runs import RunFolder, read_json, weights_in, write_json
from scores import WORST, Scores

COLOURS = ("#4c4c4c", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe & Ito 2008
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "font.size": 9,
    "figure.dpi": 110,
    "savefig.dpi": 200,
    "savefig.bbox": "tight",
    "legend.frameon": False,
}


def _demo(name):
    """What every table and figure of drawn pictures says."""
    return f"{name} (drawn pictures: a demonstration)" if name.startswith("shapes") else name


# ---------------------------------------------------------------------------------------------------
# Tables


def load_scores(folder):
    """The saved scores of every run below an experiment's folder: {run's name: Scores}, in order of training."""
    begun = {path: path.parent / "recipe.json" for path in Path(folder).glob("*/scores.json")}
    files = sorted(begun, key=lambda path: (begun[path] if begun[path].exists() else path).stat().st_mtime)
    return {path.parent.name: _checked(Scores.load(path.parent), path.parent) for path in files}


def _checked(scores, folder):
    """Scores of a run's folder, with a finding where they are of other weights than those that lie there."""
    there = weights_in(folder)
    if None not in (there, scores.weights) and there != scores.weights:
        says = "these scores were measured on other weights than the run's; run test() again"
        scores.findings.append(Finding("other weights", "invalid", 1, 0, says))
    return scores


def table(scores):
    """One row a model, one column an evaluation: accuracy in percent, with its 95 % interval.

    `scores` maps names to Scores. Invalid numbers are struck out, suspect ones marked with "?".
    """
    rows = {}
    for name, score in scores.items():
        cells = {_column(label, row, scores): _cell(row) for label, row in score.table().iterrows()}
        rows[name] = cells | {"n": score.n}
    columns = list(dict.fromkeys(label for row in rows.values() for label in row))
    columns.sort(key=lambda label: (label == "n", label == WORST))
    splits = ", ".join(sorted({_demo(score.split) for score in scores.values()}))
    caption = f"Accuracy in %, on {splits}, with 95 % Wilson intervals; struck out: invalid, ?: suspect"
    return (
        pd.DataFrame.from_dict(rows, orient="index")[columns]
        .style.set_caption(caption)
        .format(escape=None, na_rep="")
    )


def _column(label, row, scores):
    """An attack's label, or all of its settings where the same label stands for different ones."""
    settings = {score.attacks[label] for score in scores.values() if label in score.attacks}
    return label if len(settings) < 2 else row.attack


def _cell(row):
    shown = f"{row.accuracy:.1f} <small>[{row.low:.1f}, {row.high:.1f}]</small>"
    return {"invalid": f"<s>{shown}</s>", "suspect": f"{shown} ?"}.get(row.verdict, shown)


def long_table(scores):
    """Everything in one table to compute with: a row a model and evaluation."""
    parts = [score.table().rename_axis("evaluation").reset_index() for score in scores.values()]
    return pd.concat(parts, keys=scores.keys(), names=["model", None]).reset_index(level=0).reset_index(drop=True)


def findings(scores):
    """What the audit found, a row a finding; empty when nothing was."""
    rows = [
        {
            "model": name,
            "rows": ", ".join(f.rows) or "all",
            "severity": f.severity,
            "check": f.check,
            "why": f.message,
        }
        for name, score in scores.items()
        for f in score.findings
    ]
    return pd.DataFrame(rows, columns=["model", "rows", "severity", "check", "why"])


# ---------------------------------------------------------------------------------------------------
# Figures: each returns a matplotlib Figure


def plot_training(runs):
    """Clean and robust validation accuracy, and training loss, by epoch; `runs` maps names to Runs."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(10, 2.9), layout="constrained")
        panels = (("accuracy/clean", "clean accuracy, %", 100), ("accuracy/robust", "robust accuracy, %", 100))
        for axis, (column, title, scale) in zip(axes, (*panels, ("loss/train", "training loss", 1)), strict=True):
            for run, look in zip(runs.values(), _looks(runs), strict=True):
                axis.plot(run.history["epoch"], scale * run.history[column], marker=".", markersize=3, **look)
            axis.set(title=title, xlabel="epoch")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            if scale == 100:
                axis.set_ylim(0, 100)
        axes[0].legend()
        known = read_json(next(iter(runs.values())).folder / "recipe.json")
        attack = known["recipe"]["validation_attack"]
        against = f"{attack['kind']} with {attack['steps']} steps" if "steps" in attack else attack["kind"]
        where = f"Training on {_demo(known['data']['name'])}; accuracies on the validation split"
        figure.suptitle(f"{where}, robust: {against}", fontsize=9)
        return _done(figure)


def plot_scores(scores):
    """Accuracy of each model, clean and under each attack, as bars with their intervals."""
    labels = list(dict.fromkeys(label for score in scores.values() for label in score.outcomes))
    width = 0.8 / len(scores)
    with mpl.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
        for index, (score, look) in enumerate(zip(scores.values(), _looks(scores), strict=True)):
            rows = score.table()
            rows = rows[(rows.verdict != "invalid") & rows.index.isin(labels)]
            places = [labels.index(label) + (index - (len(scores) - 1) / 2) * width for label in rows.index]
            reach = [rows.accuracy - rows.low, rows.high - rows.accuracy]
            for place, value in zip(places, rows.accuracy, strict=True):
                if value < 1:  # a bar too low to be seen
                    axis.text(place, 1.5, f"{value:.1f}", ha="center", fontsize=6, rotation=90)
            axis.bar(places, rows.accuracy, width * 0.92, **look)
            axis.errorbar(
                places, rows.accuracy, yerr=reach, fmt="none", ecolor="black", elinewidth=0.8, capsize=1.5
            )
        axis.set_xticks(range(len(labels)), labels)
        axis.set(ylabel="accuracy, %", ylim=(0, 100))
        axis.grid(axis="x", visible=False)
        # Drawn by hand: a model whose numbers are all left out has no bar to take the colour from.
        axis.legend(handles=[Patch(**look) for look in _looks(scores) if look["label"]], ncols=2)
        first = next(iter(scores.values()))
        left_out = ", invalid numbers left out" if any(s.verdict() == "invalid" for s in scores.values()) else ""
        axis.set_title(f"{_demo(first.split)}, n = {first.n}" + left_out, fontsize=9)
        return _done(figure)


def plot_eps(tables, title, trained=8 / 255):
    """Robust accuracy against ε; `tables` maps names to the tables of `accuracy_against_eps`."""
    with mpl.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
        for rows, look in zip(tables.values(), _looks(tables), strict=True):
            axis.plot(255 * rows.eps, 100 * rows.accuracy, marker="o", markersize=3, **look)
            low, high = 100 * rows.low, 100 * rows.high
            axis.fill_between(255 * rows.eps, low, high, color=look["color"], alpha=0.15, linewidth=0)
        axis.axvline(255 * trained, color="grey", linewidth=0.8, linestyle=":", label="ε of the training")
        axis.set(xlabel="ε, in 255ths of the pixel range", ylabel="accuracy, %", ylim=(0, 100))
        first = next(iter(tables.values()))
        axis.set_title(f"{title}, {_demo(first.attrs['split'])}, n = {first.n[0]}, bands: 95 %", fontsize=9)
        axis.legend()
        return _done(figure)


def plot_examples(models, split, attack, count=6):
    """Pictures before and after the attack and the change, with what each model says; `models` maps names.

    Shown are the first pictures that all of these models get right, so that red means: the attack did it.
    """
    few = split.first(200)
    right = torch.stack([predict(model, few).argmax(1) == few.labels for model in models.values()]).all(0)
    images, labels = split.batch(torch.argsort(~right, stable=True)[:count])
    before = "Right" if int(right.sum()) >= count else "Not all right"
    with mpl.rc_context(STYLE | {"axes.grid": False, "font.size": 7}):
        rows = 1 + 2 * len(models)
        figure, axes = plt.subplots(rows, count, figsize=(1.15 * count + 0.9, 1.32 * rows), layout="constrained")
        _picture_row(axes[0], images, [split.classes[int(label)] for label in labels], "clean")
        for index, (name, model) in enumerate(models.items()):
            generator = torch.Generator(images.device).manual_seed(0)
            adversarial = attack(model, images, labels, generator=generator)
            with evaluating(model), torch.no_grad():
                said = model(adversarial).argmax(1)
            captions = [split.classes[int(guess)] for guess in said]
            row = axes[1 + 2 * index]
            _picture_row(row, adversarial, captions, f"{name}:\nattacked", right=(said == labels).tolist())
            change = (adversarial - images) / (2 * attack.eps) + 0.5
            _picture_row(axes[2 + 2 * index], change.clamp(0, 1), [""] * count, "change")
        figure.suptitle(
            f"{attack}, {_demo(split.name)}. {before} before the attack.\nCaptions: what the model says; "
            "change: ±ε is black to white",
            fontsize=8,
        )
        return _done(figure)


def _picture_row(axes, images, captions, name, right=None):
    for index, (axis, image) in enumerate(zip(axes, images.cpu(), strict=True)):
        axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        wrong = right is not None and not right[index]
        axis.set_title(captions[index], fontsize=7, pad=2, color="#c02020" if wrong else "black")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    axes[0].set_ylabel(name)


def _looks(named):
    """Colour and legend entry of each: seeds of one model share a colour and one entry."""
    families = [re.sub(r"(, |-)seed ?\d+$", "", name) for name in named]
    known = list(dict.fromkeys(families))
    for index, family in enumerate(families):
        first = families.index(family) == index
        yield {"color": COLOURS[known.index(family) % len(COLOURS)], "label": family if first else None}


def _done(figure):
    """Hand the figure over without leaving it open: pyplot would show it twice in a notebook."""
    plt.close(figure)
    return figure


def save_figure(figure, session, name):
    """Keep a figure of an experiment as PNG and PDF, for the report and for papers; returns it."""
    for ending in ("png", "pdf"):
        with replacing(session.runs / "figures" / f"{name}.{ending}") as partial, mpl.rc_context(STYLE):
            figure.savefig(partial)
    return figure


# ---------------------------------------------------------------------------------------------------
# The page


PAGE = Template(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
 body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
 table { border-collapse: collapse; margin: 1rem 0; font-size: 13px } caption { text-align: left; color: #555 }
 th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd } th { font-weight: 600 }
 th:first-child, td:first-child { text-align: left } small { color: #777 } img { max-width: 100%; margin: .6rem 0 }
 .findings table, .findings td, .findings th { border: 0; text-align: left } .scroll { overflow-x: auto }
 .warn { background: #fff3d6; padding: .5rem .8rem }
</style></head><body>
<h1>{{ title }}</h1>
{% if demo %}
<p class="warn">Made from drawn pictures (Shapes): a demonstration of the method, not a result about CIFAR.</p>
{% endif %}{% if invalid %}
<p class="warn">{{ invalid }} evaluation(s) hold numbers that the audit found invalid; they are struck out.</p>
{% endif %}
{% for e in experiments %}
<h2 id="{{ e.name }}">{{ e.title }}</h2>
<p>{% if e.notebook %}<a href="{{ e.notebook }}">The notebook as it ran</a> · {% endif %}
{{ e.runs }} runs, {{ "%.1f"|format(e.seconds / 60) }} minutes of training</p>
<div class="scroll">{{ e.table }}</div>
<h3>What the audit found</h3>
<div class="findings scroll">{{ e.findings or "Nothing to object to in any of these evaluations." }}</div>
{% for f in e.figures %}
<p><img alt="{{ f.name }}" width="{{ f.width }}" src="data:image/png;base64,{{ f.data }}"></p>
{% endfor %}{% endfor %}
<h2>Environment of the first run</h2>
<table>
{% for key, value in environment.items() %}
<tr><td>{{ key }}</td><td>{{ "no" if value is none else value }}</td></tr>
{% endfor %}
</table>
</body></html>
"""
)


def write_page(study):
    """Write report.html and scores.csv into a study's folder, from its run folders; returns the page's path.

    Raises FileNotFoundError where there is no scored run.
    """
    study = Path(study)
    experiments, everything = [], {}
    for folder in sorted(path for path in study.iterdir() if path.is_dir()):
        scores = load_scores(folder)
        if scores:
            experiments.append(_experiment(study, folder, scores))
            everything |= {f"{folder.name}/{name}": score for name, score in scores.items()}
    if not everything:
        raise FileNotFoundError(f"{study} holds no scored run yet; run a notebook first")
    invalid = sum(score.verdict() == "invalid" for score in everything.values())
    first = study / next(iter(everything))
    page = PAGE.render(
        title=f"Adversarial attacks and transfer learning: {study.name}",
        demo=any(score.split.startswith("shapes") for score in everything.values()),
        invalid=invalid,
        experiments=experiments,
        environment=read_json(first / "environment.json"),
    )
    with replacing(study / "scores.csv") as partial:
        long_table(everything).to_csv(partial, index=False, float_format="%.3f")
    with replacing(study / "report.html") as partial:
        partial.write_text(page, encoding="utf-8")
    return study / "report.html"


def keep(study, target):
    """Copy what a reader wants of a study to `target`: scores, figures (PNG) and provenance, but no weights."""
    study, target = Path(study), Path(target)
    write_page(study)
    environments = {}
    for path in sorted(study.glob("*/*/environment.json")):
        values = read_json(path)
        environments.setdefault(json.dumps({k: v for k, v in values.items() if k != "started"}), []).append(values)
    same = [group[0] | {"runs": len(group)} for group in environments.values()]
    command = (study / "command.txt").read_text().splitlines()
    write_json(target / "provenance.json", {"commands": command, "environments": same})
    for path in (study / "scores.csv", *sorted(study.glob("*/figures/*.png"))):
        with replacing(target / path.relative_to(study)) as partial:
            shutil.copyfile(path, partial)


def _experiment(study, folder, scores):
    """What the page says of one experiment."""
    found = findings(scores)
    histories = [RunFolder(folder / name).load_history() for name in scores]
    notebook = study / "notebooks" / f"{folder.name}.html"
    figures = sorted((folder / "figures").glob("*.png"))
    return {
        "name": folder.name,
        "title": html.escape(_title(study, folder.name)),
        "runs": len(scores),
        "seconds": sum(history["time/epoch_s"].sum() for history in histories if len(history)),
        "notebook": notebook.relative_to(study) if notebook.exists() else None,
        "table": table(_short(scores)).to_html(),
        "findings": found.to_html(index=False) if len(found) else None,
        "figures": [_figure(path) for path in figures],
    }


def _title(study, experiment):
    """The question that the notebook asks, or the experiment's name."""
    notebook = study / "notebooks" / f"{experiment}.ipynb"
    if not notebook.exists():
        return experiment.replace("_", " ")
    return "".join(read_json(notebook)["cells"][0]["source"]).splitlines()[0].lstrip("# ")


def _short(scores):
    """Without the seed in the names, where there is one only."""
    short = [re.sub(r"-seed\d+$", "", name) for name in scores]
    return dict(zip(short, scores.values(), strict=True)) if len(set(short)) == len(short) else scores


def _figure(path):
    """A PNG for the page, as wide as on paper (96 CSS pixels an inch)."""
    content = path.read_bytes()
    width = int.from_bytes(content[16:20], "big")  # of the header that every PNG begins with
    inches = width / STYLE["savefig.dpi"]
    return {"name": path.stem, "width": round(96 * inches), "data": base64.b64encode(content).decode()}


def written(session):
    """What an experiment has written, a row a folder: for the last cell of a notebook."""
    rows = {}
    for path in sorted(session.runs.rglob("*")):
        if path.is_file():
            folder = path.parent.relative_to(session.runs.parent)
            rows.setdefault(str(folder), []).append(path)
    table = {name: [len(files), sum(file.stat().st_size for file in files) / 1e6] for name, files in rows.items()}
    return pd.DataFrame.from_dict(table, orient="index", columns=["files", "MB"]).round(2)
