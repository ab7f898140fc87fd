"""The HTML page of a study, made from its folder: report.html is its template."""

import base64
import html
import json
import logging
import re
import warnings
from pathlib import Path

from jinja2 import Template

from storage.atomic_files import read_json, replacing
from study import answers, tables
from study.style import STYLE
from training.run_folder import RunFolder

QUIET = logging.getLogger("study.page")  # nbconvert asks for alt texts of figures
QUIET.setLevel(logging.ERROR)


def write_page(study):
    """Write report.html and scores.csv into a study's folder, from its run folders; returns the page's path.

    Raises FileNotFoundError where there is no scored run.
    """
    study = Path(study)
    experiments, everything, known = [], {}, {}
    ran = {path.stem for path in study.glob("notebooks/[!.]*.ipynb")}
    there = {path.name for path in study.iterdir() if path.is_dir()} - {"notebooks"}
    for name in sorted(there | ran):
        scores = tables.load_scores(study / name)
        if scores or name in ran:
            experiments.append(_experiment(study, name, scores))
            everything |= {f"{name}/{run}": score for run, score in scores.items()}
            known |= {name: scores} if scores else {}
    if not everything:
        raise FileNotFoundError(f"{study} holds no scored run yet (notebook 00 scores none)")
    first = sorted(study.glob("*/*/environment.json"), key=lambda path: path.stat().st_mtime)
    figure = None if is_smoke(study) else telling(study)
    page = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8")).render(
        title=f"Adversarial attacks and transfer learning: {study.name}",
        smoke=is_smoke(study),
        demo=any(score.split.startswith("shapes10") for score in everything.values()),
        invalid=sum(score.verdict() == "invalid" for score in everything.values()),
        seeds=len({seed for run in everything for seed in re.findall(r"-seed(\d+)", run)}),
        experiments=experiments,
        figure=_figure(figure) if figure else None,
        highlights=[
            re.sub(r" (?=[%=<])|(?<=[=<]) ", "\u00a0", sentence) for sentence in answers.highlights(known)
        ],
        questions=answers.questions(known, missing=False).to_dict("records"),
        p_in_table=answers.p_in_table,
        about=answers.ABOUT_HOLM,
        left_out=answers.left_out(known),
        conclusions=answers.conclusions(known).to_html(index=False, classes="answers"),
        environment=read_json(first[0]) if first else {},
    )
    with replacing(study / "scores.csv") as partial:
        tables.long(everything).to_csv(partial, index=False, float_format="%.3f")
    with replacing(study / "report.html") as partial:
        partial.write_text(page, encoding="utf-8")
    return study / "report.html"


def is_smoke(study):
    """Is this the preset smoke, whose numbers mean nothing?"""
    return Path(study).name.startswith("smoke-")


def telling(study):
    """The path of the figure that shows most; None where there is none."""
    places = ("06*/figures/1_clean_against_robust.png", "99*/figures/[!.]*.png", "*/figures/[!.]*.png")
    return next((path for place in places for path in sorted(Path(study).glob(place))), None)


def _experiment(study, name, scores):
    """What the page says of one experiment."""
    # Without the seed in the names, where there is one only.
    short = [tables.without_seed(label) for label in scores]
    named = dict(zip(short, scores.values(), strict=True)) if len(set(short)) == len(short) else scores
    folders = sorted({study / name / label.removesuffix(", best") for label in scores})
    taken = [folder for folder in folders if tables.taken_from(folder)]
    histories = [RunFolder(folder).load_history() for folder in folders if folder not in taken]
    return _notebook(study / "notebooks" / f"{name}.ipynb") | {
        "name": html.escape(name),
        "shared": len(taken),
        "seconds": sum(history["time/epoch_s"].sum() for history in histories if len(history)),
        "valid": _part(name, scores, named, invalid=False),
        "invalid": _part(name, scores, named, invalid=True),
        "seeds": combined.to_html() if (combined := tables.seeds(scores)) else None,
        "folders": [_run(study, folder) for folder in folders],
        "figures": [_figure(path) for path in sorted((study / name / "figures").glob("[!.]*.png"))],
    }


def _part(name, scores, named, invalid):
    """Of the evaluations that hold a valid number, or of those that hold none: the table and the findings."""
    some, linked = {}, {}
    for run, (short, score) in zip(scores, named.items(), strict=True):
        if invalid == all(score.verdict(label) == "invalid" for label in score.outcomes):
            target = html.escape(f"{name}/{run.removesuffix(', best')}")
            some[short] = linked[f'<a href="#{target}">{html.escape(short)}</a>'] = score
    if some:
        found = tables.findings(some)
        listed = found.to_html(index=False) if len(found) else None
        return {"n": len(some), "table": tables.accuracies(linked).to_html(), "findings": listed}


def _run(study, folder):
    """Of a run: its accuracies by epoch, as points of an SVG of 300 by 100, and its recipe and environment."""
    history, curves = RunFolder(folder).load_history(), {}
    for kind in ("clean", "robust"):
        shares = history[f"accuracy/{kind}"].dropna() if f"accuracy/{kind}" in history else []
        step = 300 / max(1, len(shares) - 1)
        curves[kind] = " ".join(
            f"{step * place:.1f},{100 - 100 * share:.1f}" for place, share in enumerate(shares)
        )
    files = [folder / "recipe.json", folder / "environment.json"]
    return {
        "name": folder.relative_to(study).as_posix(),
        "epochs": len(history),
        "curves": curves,
        "files": {path.name: json.dumps(read_json(path), indent=1) for path in files if path.exists()},
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
            cell.outputs = [output for output in cell.outputs if not is_progress(output)]
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


def is_progress(output):
    widget = "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    return widget or output.get("name") == "stderr"


def _figure(path):
    """A PNG for the page, as wide as on paper (96 CSS pixels an inch)."""
    content = path.read_bytes()
    width = int.from_bytes(content[16:20], "big")  # of the header that every PNG begins with
    inches = width / STYLE["savefig.dpi"]
    return {
        "name": path.stem,
        "of": path.parts[-3],
        "width": round(96 * inches),
        "data": base64.b64encode(content).decode(),
    }
