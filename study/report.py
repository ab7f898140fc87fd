"""The HTML page of a study, made from its folder: report.html is its template."""

import base64
import html
import json
import logging
import re
import shutil
import warnings
from pathlib import Path

from jinja2 import Template

from storage.atomic_files import read_json, replacing, write_json
from study import tables
from study.figures import STYLE
from training.run_folder import RunFolder

QUIET = logging.getLogger("study.page")  # nbconvert asks for alt texts of figures
QUIET.setLevel(logging.ERROR)


def write_page(study, answers=None):
    """Write report.html and scores.csv into a study's folder, from its run folders; returns the page's path.

    `answers` maps headings to tables to show at the top, those of answers.py.
    Raises FileNotFoundError where there is no scored run.
    """
    study = Path(study)
    experiments, everything = [], {}
    ran = {path.stem for path in study.glob("notebooks/[!.]*.ipynb")}
    there = {path.name for path in study.iterdir() if path.is_dir()} - {"notebooks"}
    for name in sorted(there | ran):
        scores = tables.load_scores(study / name)
        if scores or name in ran:
            experiments.append(_experiment(study, name, scores))
            everything |= {f"{name}/{run}": score for run, score in scores.items()}
    if not everything:
        raise FileNotFoundError(f"{study} holds no scored run yet; run a notebook first")
    first = sorted(study.glob("*/*/environment.json"), key=lambda path: path.stat().st_mtime)
    page = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8")).render(
        title=f"Adversarial attacks and transfer learning: {study.name}",
        demo=any(score.split.startswith("shapes") for score in everything.values()),
        invalid=sum(score.verdict() == "invalid" for score in everything.values()),
        seeds=len({seed for run in everything for seed in re.findall(r"-seed(\d+)", run)}),
        experiments=experiments,
        answers={heading: table.to_html(index=False) for heading, table in (answers or {}).items()},
        environment=read_json(first[0]) if first else {},
    )
    with replacing(study / "scores.csv") as partial:
        tables.long(everything).to_csv(partial, index=False, float_format="%.3f")
    with replacing(study / "report.html") as partial:
        partial.write_text(page, encoding="utf-8")
    return study / "report.html"


def _experiment(study, name, scores):
    """What the page says of one experiment."""
    # Without the seed in the names, where there is one only.
    short = [re.sub(r"-seed\d+$", "", label) for label in scores]
    named = dict(zip(short, scores.values(), strict=True)) if len(set(short)) == len(short) else scores
    found = tables.findings(named)
    folders = sorted({study / name / label.removesuffix(", best") for label in scores})
    taken = [folder for folder in folders if tables.taken_from(folder)]
    histories = [RunFolder(folder).load_history() for folder in folders if folder not in taken]
    return _notebook(study / "notebooks" / f"{name}.ipynb") | {
        "name": html.escape(name),
        "runs": len(folders),
        "shared": len(taken),
        "seconds": sum(history["time/epoch_s"].sum() for history in histories if len(history)),
        "table": tables.accuracies(named).to_html() if scores else None,
        "seeds": combined.to_html() if (combined := tables.seeds(scores)) else None,
        "findings": found.to_html(index=False) if len(found) else None,
        "figures": [_figure(path) for path in sorted((study / name / "figures").glob("[!.]*.png"))],
    }


def _notebook(path):
    """Of an executed notebook: its question, whether it broke off with an error, and all of it but progress bars.

    Where there is none, the experiment's name.
    """
    if not path.exists():
        return {"title": html.escape(path.stem.replace("_", " "))}
    import nbformat  # imported late: two seconds
    from nbconvert import HTMLExporter

    book = nbformat.reads(json.dumps(read_json(path, sealed=False)), 4)
    texts = [cell.source for cell in book.cells if cell.cell_type == "markdown"]
    # The first cell, but for the banner that papermill puts above a notebook that failed.
    titles = [text.splitlines()[0].lstrip("# ") for text in texts if text.startswith("# ")]
    failed = any(output["output_type"] == "error" for cell in book.cells for output in cell.get("outputs", []))
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
    return {"title": html.escape(titles[0] if titles else path.stem), "failed": failed, "notebook": body}


def _is_progress(output):
    widget = "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    return widget or output.get("name") == "stderr"


def _figure(path):
    """A PNG for the page, as wide as on paper (96 CSS pixels an inch)."""
    content = path.read_bytes()
    width = int.from_bytes(content[16:20], "big")  # of the header that every PNG begins with
    inches = width / STYLE["savefig.dpi"]
    return {"name": path.stem, "width": round(96 * inches), "data": base64.b64encode(content).decode()}


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
