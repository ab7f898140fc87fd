"""Tables of runs, made from their folders, and the HTML page of a study.

Intervals are 95 % Wilson intervals; what the audit found invalid is struck out.
"""

import base64
import html
import json
import logging
import re
import shutil
import warnings
from pathlib import Path

import pandas as pd
from jinja2 import Template

from evaluation.audit import in_order
from evaluation.checks import robust_overfitting
from evaluation.finding import ATTACKED, CLEAN, WORST, Finding
from evaluation.scores import SAVED_AS, Scores
from evaluation.statistics import over_seeds, survival
from storage.atomic_files import Damaged, read_json, replacing, write_json
from study.figures import STYLE, demo, training_attack
from training.run_folder import RunFolder
from training.weights import weights_in

# ---------------------------------------------------------------------------------------------------
# Tables


def load_scores(folder):
    """The saved scores of every run below an experiment's folder: {run's name: Scores}, in order of training.

    Those of a run's best epoch follow as "<run's name>, best".
    """
    found = {}
    files = {"last": SAVED_AS["last"], "best": SAVED_AS["best"]}
    runs = [path for path in Path(folder).glob("*/") if any((path / f"{n}.json").exists() for n in files.values())]
    for run in sorted(runs, key=_begun):
        for epoch, name in files.items():
            if (run / f"{name}.json").exists():
                found[run.name if epoch == "last" else f"{run.name}, {epoch}"] = _checked(
                    Scores.load(run, epoch), run, epoch
                )
    return found


def _begun(run):
    """When a run was begun: its recipe is written then, and never again."""
    files = [run / "recipe.json", *sorted(run.glob("scores*.json"))]
    return next(path for path in files if path.exists()).stat().st_mtime


def _checked(scores, folder, epoch):
    """Scores of a run's folder, with a finding where they are of other weights than those that lie there."""
    there = weights_in(folder, {"last": "weights", "best": "best"}[epoch] + ".safetensors")
    begun = there is None and (folder / "recipe.json").exists()
    if scores.weights is not None and (begun or there not in (None, scores.weights)):
        says = "these scores were measured on other weights than the run's; run test() again"
        scores.findings.append(Finding("other weights", "invalid", 1, 0, says))
    scores.findings = in_order([*scores.findings, *_found_beside(folder, scores, epoch)])
    return scores


def _found_beside(folder, scores, epoch):
    """What audits of the same weights found, as far as it concerns these attacks, and what the history tells."""
    for path in sorted(folder.glob("audit-*.json")):
        audited = Scores.read(path)
        if len(audited.attacks) != 1:
            raise Damaged(f"{path} is no audit, which is of one attack. Delete it and run audit() again")
        ((label, attack),) = audited.attacks.items()
        same = scores.attacks.get(label) == attack
        known = {weights_in(folder), weights_in(folder, "best.safetensors"), scores.weights}
        if None not in known and audited.weights not in known:
            says = f"{path.name} is of other weights than this run's; run audit() again"
            yield Finding("other weights", "suspect", 1, 0, says, ATTACKED)
        if audited.weights == scores.weights:
            yield from (f for f in audited.findings if same or label not in f.rows)
    run = RunFolder(folder)
    if epoch == "last" and run.finished and (folder / "recipe.json").exists():
        recipe = read_json(folder / "recipe.json")
        pictures = min(recipe["recipe"]["validation_images"], recipe["data"]["val"])
        if training_attack(recipe["recipe"]) is not None:
            yield robust_overfitting(run.load_history(), pictures)


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
    splits = ", ".join(sorted({demo(score.split) for score in scores.values()}))
    caption = f"Accuracy in %, on {splits}, with 95 % Wilson intervals; struck out: invalid, ?: suspect"
    return (
        pd.DataFrame.from_dict(rows, orient="index")[columns]
        .style.set_caption(caption)
        .format(escape=None, na_rep="")
    )


def without_seed(name):
    """A run's name without its seed: what runs that differ in nothing else share."""
    return re.sub(r"-seed\d+", "", name)


def seeds_table(scores):
    """Runs with several seeds, one row each: mean and standard deviation between seeds, in percent; or None."""
    groups = {}
    for name, score in scores.items():
        groups.setdefault(without_seed(name), []).append(score)
    rows = {}
    for name, some in groups.items():
        if len(some) > 1:
            try:
                combined = over_seeds(some)
            except ValueError as error:
                rows[name] = {"seeds": f"not combined: {error}"}
                continue
            rows[name] = {
                label: _marked(f"{row['mean']:.1f} ± {row.spread:.1f}", row.verdict)
                for label, row in combined.iterrows()
            }
            rows[name]["seeds"] = len(some)
    if not rows:
        return None
    caption = "Mean over the seeds ± standard deviation between them, in %"
    return pd.DataFrame.from_dict(rows, orient="index").style.set_caption(caption).format(escape=None, na_rep="")


def descent_table(runs, scores, label):
    """What became of each source: accuracies, what survives of its robustness, and what that took; a row a run.

    `runs` maps names to Runs, `scores` names to Scores. A run named from-<source>-... was made of the run
    source-<source>, of the same seed, whose scores are on its own task. *survives* compares shares of right
    answers that withstand, as scores.survival does. The seconds are those of training steps, the head's included
    where that was trained first.
    """
    rows = {}
    for name, run in runs.items():
        score, source = scores[name], re.sub(r"^from-([^-]+)-.*?(-seed\d+)?$", r"source-\1\2", name)
        cells = {row: _cell(score.table().loc[row]) for row in (CLEAN, label)}
        known = source in scores and "invalid" not in (score.verdict(label), scores[source].verdict(label))
        left = survival(scores[source], score, label) if known else "–"
        first = runs.get(name.replace("probe-then-all-pgd", "head").replace("probe-then-all", "head"), run)
        seconds = sum(
            each.history["time/epoch_s"].sum() for each in {id(one): one for one in (run, first)}.values()
        )
        trained = sum(weight.numel() for weight in run.model.parameters() if weight.requires_grad)
        rows[name] = cells | {"survives": left, "weights trained": f"{trained:,}", "seconds": f"{seconds:.0f}"}
    splits = ", ".join(sorted({demo(scores[name].split) for name in runs}))
    caption = f"Accuracy in %, on {splits}, with 95 % intervals; struck out: invalid, ?: suspect"
    return pd.DataFrame.from_dict(rows, orient="index").style.set_caption(caption).format(escape=None)


def _column(label, row, scores):
    """An attack's label, or all of its settings where the same label stands for different ones."""
    settings = {score.attacks[label] for score in scores.values() if label in score.attacks}
    return label if len(settings) < 2 else row.attack


def _cell(row):
    return _marked(f"{row.accuracy:.1f} <small>[{row.low:.1f}, {row.high:.1f}]</small>", row.verdict)


def _marked(shown, verdict):
    return {"invalid": f"<s>{shown}</s>", "suspect": f"{shown} ?"}.get(verdict, shown)


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
# The page


QUIET = logging.getLogger("study.page")  # nbconvert asks for alt texts of figures
QUIET.setLevel(logging.ERROR)

PAGE = Template(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
 body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
 table { border-collapse: collapse; margin: 1rem 0; font-size: 13px } caption { text-align: left; color: #555 }
 th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd } th { font-weight: 600 }
 th:first-child, td:first-child { text-align: left } small { color: #777; white-space: nowrap }
 img { max-width: 100%; margin: .6rem 0 }
 .findings table, .findings td, .findings th { border: 0; text-align: left !important }
 .scroll { overflow-x: auto }
 .warn { background: #fff3d6; padding: .5rem .8rem } .bad { background: #fbdada; padding: .5rem .8rem }
 h2 { margin-top: 3rem; scroll-margin-top: 3rem }
 nav { position: sticky; top: 0; background: #fff; border-bottom: 1px solid #ddd; padding: .4rem 0 }
 nav a { margin-right: 1.2rem; white-space: nowrap } summary { cursor: pointer; color: #0072b2 }
 details > div { border-left: 3px solid #ddd; padding-left: 1rem } pre { overflow-x: auto; font-size: 12px }
 .jp-InputArea pre, .input_area pre { background: #f6f6f6; padding: .4rem .6rem } a.anchor-link { display: none }
 details h1 { font-size: 1.3rem } details h2 { font-size: 1.1rem; margin-top: 1.5rem }
</style></head><body>
<h1>{{ title }}</h1>
<nav>{% if answers %}<a href="#answers">answers</a> {% endif %}
{% for e in experiments %}<a href="#{{ e.name }}">{{ e.name.replace("_", " ") }}</a> {% endfor %}
<a href="#environment">environment</a></nav>
{% if demo %}
<p class="warn">Made from drawn pictures (Shapes): a demonstration of the method, not a result about CIFAR.</p>
{% endif %}{% if invalid %}
<p class="warn">{{ invalid }} evaluation(s) hold numbers that the audit found invalid; they are struck out.</p>
{% endif %}
{% if seeds == 1 %}
<p class="warn">One seed: intervals and p-values are about the choice of test pictures. Another training of the
same recipe can differ by more, and turn an answer.</p>
{% endif %}{% for e in experiments if e.failed %}
<p class="bad"><a href="#{{ e.name }}">{{ e.name.replace("_", " ") }}</a> broke off with an error: what it shows
is incomplete.</p>
{% endfor %}{% if answers %}
<h2 id="answers">The answers</h2>
{% for heading, table in answers.items() %}
<h3>{{ heading }}</h3>
<div class="findings scroll">{{ table }}</div>
{% endfor %}
{% endif %}
{% for e in experiments %}
<h2 id="{{ e.name }}">{{ e.title }}</h2>
{% if e.table %}
<p>{{ e.runs }} runs, {{ "%.1f"|format(e.seconds / 60) }} minutes of training\
{% if e.shared %}; {{ e.shared }} of them shared with an earlier experiment, and not counted again{% endif %}</p>
<div class="scroll">{{ e.table }}</div>
{% if e.seeds %}<div class="scroll">{{ e.seeds }}</div>{% endif %}
<h3>What the audit found</h3>
<div class="findings scroll">{{ e.findings or "Nothing to object to in any of these evaluations." }}</div>
{% for f in e.figures %}
<p><img alt="{{ f.name }}" width="{{ f.width }}" src="data:image/png;base64,{{ f.data }}"></p>
{% endfor %}{% endif %}{% if e.notebook %}
<details{% if not e.table %} open{% endif %}><summary>The notebook as it ran</summary>
<div>{{ e.notebook }}</div></details>
{% endif %}{% endfor %}
<h2 id="environment">Environment of the first run</h2>
<table>
{% for key, value in environment.items() %}
<tr><td>{{ key }}</td><td>{{ "no" if value is none else value }}</td></tr>
{% endfor %}
</table>
</body></html>
"""
)


def write_page(study, answers=None):
    """Write report.html and scores.csv into a study's folder, from its run folders; returns the page's path.

    `answers` maps headings to tables to show at the top, those of summary.py.
    Raises FileNotFoundError where there is no scored run.
    """
    study = Path(study)
    experiments, everything = [], {}
    ran = {path.stem for path in study.glob("notebooks/[!.]*.ipynb")}
    there = {path.name for path in study.iterdir() if path.is_dir()} - {"notebooks"}
    for name in sorted(there | ran):
        scores = load_scores(study / name)
        if scores or name in ran:
            experiments.append(_experiment(study, name, scores))
            everything |= {f"{name}/{run}": score for run, score in scores.items()}
    if not everything:
        raise FileNotFoundError(f"{study} holds no scored run yet; run a notebook first")
    first = sorted(study.glob("*/*/environment.json"), key=lambda path: path.stat().st_mtime)
    page = PAGE.render(
        title=f"Adversarial attacks and transfer learning: {study.name}",
        demo=any(score.split.startswith("shapes") for score in everything.values()),
        invalid=sum(score.verdict() == "invalid" for score in everything.values()),
        seeds=len({seed for run in everything for seed in re.findall(r"-seed(\d+)", run)}),
        experiments=experiments,
        answers={heading: table.to_html(index=False) for heading, table in (answers or {}).items()},
        environment=read_json(first[0]) if first else {},
    )
    with replacing(study / "scores.csv") as partial:
        long_table(everything).to_csv(partial, index=False, float_format="%.3f")
    with replacing(study / "report.html") as partial:
        partial.write_text(page, encoding="utf-8")
    return study / "report.html"


def keep(study, target):
    """Copy what a reader wants of a study to `target`: scores, figures (PNG) and provenance, but no weights."""
    study, target = Path(study), Path(target)
    if not (study / "scores.csv").exists():
        write_page(study)
    environments = {}
    for path in sorted(study.glob("*/*/environment.json")):
        values = read_json(path)
        environments.setdefault(json.dumps({k: v for k, v in values.items() if k != "started"}), []).append(values)
    same = [group[0] | {"runs": len(group)} for group in environments.values()]
    command = (study / "command.txt").read_text().splitlines()
    write_json(target / "provenance.json", {"commands": command, "environments": same})
    for path in (study / "scores.csv", *sorted(study.glob("*/figures/[!.]*.png"))):
        with replacing(target / path.relative_to(study)) as partial:
            shutil.copyfile(path, partial)


def _experiment(study, name, scores):
    """What the page says of one experiment."""
    found = findings(_short(scores))
    folders = sorted({study / name / label.removesuffix(", best") for label in scores})
    taken = [folder for folder in folders if taken_from(folder)]
    histories = [RunFolder(folder).load_history() for folder in folders if folder not in taken]
    return {
        "name": html.escape(name),
        "title": html.escape(_title(study, name)),
        "runs": len(folders),
        "shared": len(taken),
        "failed": _failed(study / "notebooks" / f"{name}.ipynb"),
        "seconds": sum(history["time/epoch_s"].sum() for history in histories if len(history)),
        "notebook": _notebook(study / "notebooks" / f"{name}.ipynb"),
        "table": table(_short(scores)).to_html() if scores else None,
        "seeds": combined.to_html() if (combined := seeds_table(scores)) else None,
        "findings": found.to_html(index=False) if len(found) else None,
        "figures": [_figure(path) for path in sorted((study / name / "figures").glob("[!.]*.png"))],
    }


def taken_from(folder):
    """The run, "experiment/run", that this one was taken over from; None where it was trained here."""
    path = Path(folder) / "environment.json"
    return read_json(path).get("same_run_as") if path.exists() else None


def _failed(path):
    """Did the notebook break off with an error?"""
    cells = read_json(path, sealed=False).get("cells", []) if path.exists() else []
    return any(output["output_type"] == "error" for cell in cells for output in cell.get("outputs", []))


def _notebook(path):
    """An executed notebook as a piece of the page, without its progress bars; None where there is none."""
    if not path.exists():
        return None
    import nbformat  # imported late: two seconds
    from nbconvert import HTMLExporter

    book = nbformat.read(path, 4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_progress(output)]
    book.metadata.pop("widgets", None)
    exporter = HTMLExporter(
        template_name="basic",
        embed_images=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        log=QUIET,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        body, _ = exporter.from_notebook_node(book)
    return body


def _is_progress(output):
    widget = "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    return widget or output.get("name") == "stderr"


def _title(study, experiment):
    """The question that the notebook asks, or the experiment's name."""
    notebook = study / "notebooks" / f"{experiment}.ipynb"
    if not notebook.exists():
        return experiment.replace("_", " ")
    cells = read_json(notebook, sealed=False).get("cells", [])
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    # The first cell, but for the banner that papermill puts above a notebook that failed.
    titles = [text.splitlines()[0].lstrip("# ") for text in texts if text.startswith("# ")]
    return titles[0] if titles else experiment


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
