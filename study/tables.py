"""Tables of what runs scored, made from their folders.

Intervals are 95 % Wilson intervals; what the checks found invalid is struck out.
"""

import re
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd

from evaluation.audit import in_order
from evaluation.comparisons import robust_overfitting
from evaluation.finding import ATTACKED, CLEAN, WORST, Finding
from evaluation.scores import SAVED_AS, Scores
from evaluation.statistics import over_seeds, survival
from storage.atomic_files import Damaged, read_json
from study.figures import column, demo, training_attack
from training.run_folder import RunFolder
from training.weights import weights_in

WEIGHTS = {"last": "weights.safetensors", "best": "best.safetensors"}  # what scores are of, by their epoch

# What to do about a number that is invalid, where the finding does not say it.
REMEDIES = {
    "no better than chance": "train for more epochs, or start from trained weights",
    "constant predictor": "train for more epochs, or start from trained weights",
    "masked gradient": "believe attacks that follow no gradient: Square, or examples carried from another network",
    "catastrophic overfitting": "believe PGD's row, and train with more steps, N-FGSM or a smaller ε",
    "collapse": "believe another attack, with more steps or without gradients",
}


def load_scores(folder):
    """The saved scores of every run below an experiment's folder: {run's name: Scores}, in order of training.

    Those of a run's best epoch follow as "<run's name>, best".
    """
    found = {}
    paths = [path for name in SAVED_AS.values() for path in Path(folder).glob(f"*/{name}.json")]
    for run in sorted(dict.fromkeys(path.parent for path in paths), key=_begun):
        for epoch, name in SAVED_AS.items():
            if run / f"{name}.json" in paths:
                scores = Scores.load(run, epoch)
                scores.findings = in_order([*scores.findings, *_found_beside(run, scores, epoch)])
                found[run.name if epoch == "last" else f"{run.name}, {epoch}"] = scores
    return found


def _begun(run):
    """When a run was begun: its recipe is written then, and never again."""
    recipe = run / "recipe.json"
    return (recipe if recipe.exists() else min(run.glob("scores*.json"))).stat().st_mtime


def _found_beside(folder, scores, epoch):
    """What else concerns these scores: other weights in the folder, audits of the same weights, the history."""
    there, recipe = weights_in(folder, WEIGHTS[epoch]), folder / "recipe.json"
    if scores.weights not in (None, there) and (there is not None or recipe.exists()):
        says = "these scores were measured on other weights than the run's; run test() again"
        yield Finding("other weights", "invalid", 1, 0, says)
    for path in sorted(folder.glob("audit-*.json")):
        audited = Scores.read(path)
        if len(audited.attacks) != 1:
            raise Damaged(f"{path} is no audit, which is of one attack. Delete it and run audit() again")
        ((label, attack),) = audited.attacks.items()
        known = {*(weights_in(folder, name) for name in WEIGHTS.values()), scores.weights}
        if None not in known and audited.weights not in known:
            says = f"{path.name} is of other weights than this run's; run audit() again"
            yield Finding("other weights", "suspect", 1, 0, says, ATTACKED)
        if audited.weights == scores.weights:
            yield from filter(None, (_as_here(finding, label, attack, scores) for finding in audited.findings))
    run = RunFolder(folder)
    if epoch == "last" and run.finished and recipe.exists():
        known = read_json(recipe)
        if training_attack(known["recipe"]) is not None:
            pictures = min(known["recipe"]["validation_images"], known["data"]["val"])
            yield robust_overfitting(run.load_history(), pictures)


def _as_here(finding, label, attack, scores):
    """A finding of an audit with the rows that these scores have for it; None where it concerns none of them.

    Their row of the audited attack may have another name, and one of the same name may be of another ball.
    """
    own = tuple(row for row, settings in scores.attacks.items() if settings == attack)
    if label in finding.rows and not own:
        return None
    others = tuple(row for row in finding.rows if row != label and _as_large(row, attack, scores))
    rows = (*own, *others) if label in finding.rows else others
    return replace(finding, rows=rows) if rows or not finding.rows else None


def _as_large(row, attack, scores):
    """Is what these scores have in a row of the same ε and norm as that attack, or no attack's?"""
    balls = [re.findall(r"ε=[^,)]+|norm=\w+", text) for text in (scores.attacks.get(row, attack), attack)]
    return balls[0] == balls[1]


def taken_from(folder):
    """The run, "experiment/run", that this one was taken over from; None where it was trained here."""
    path = Path(folder) / "environment.json"
    return read_json(path).get("same_run_as") if path.exists() else None


def without_seed(name):
    """A run's name without its seed: what runs that differ in nothing else share."""
    return re.sub(r"-seed\d+", "", name)


def accuracies(scores):
    """One row a model, one column an evaluation: accuracy in percent, with its 95 % interval.

    `scores` maps names to Scores. Invalid numbers are struck out, suspect ones marked with "?".
    """
    rows = {}
    for name, score in scores.items():
        cells = {column(label, score, scores): _cell(row) for label, row in score.table().iterrows()}
        rows[name] = cells | {"n": score.n}
    table = pd.DataFrame.from_dict(rows, orient="index")
    columns = sorted(table, key=lambda label: (label == "n", label == WORST))
    splits = ", ".join(sorted({demo(score.split) for score in scores.values()}))
    caption = f"Accuracy in %, on {splits}, with 95 % Wilson intervals; struck out: invalid, ?: suspect"
    return _styled(table[columns], caption)


def _cell(row):
    return _marked(f"{row.accuracy:.1f} <small>[{row.low:.1f}, {row.high:.1f}]</small>", row.verdict)


def _marked(shown, verdict):
    return {"invalid": f"<s>{shown}</s>", "suspect": f"{shown} ?"}.get(verdict, shown)


def _styled(table, caption):
    return table.style.set_caption(caption).format(escape=None, na_rep="")


def seeds(scores):
    """Runs with several seeds, one row each, in percent: mean, deviation, interval over seeds; or None."""
    groups, rows = {}, {}
    for name, score in scores.items():
        groups.setdefault(without_seed(name), []).append(score)
    for name, some in groups.items():
        if len(some) > 1:
            try:
                combined = over_seeds(some).iterrows()
            except ValueError as error:
                rows[name] = {"seeds": f"not combined: {error}"}
                continue
            cells = {
                some[0].title(label): _marked(
                    f"{row['mean']:.1f} ± {row.spread:.1f} <small>[{row.low:.1f}, {row.high:.1f}]</small>",
                    row.verdict,
                )
                for label, row in combined
            }
            rows[name] = cells | {"seeds": len(some)}
    if not rows:
        return None
    caption = (
        "Mean over the seeds ± standard deviation between them, and the mean's 95 % t-interval over them, in %"
    )
    return _styled(pd.DataFrame.from_dict(rows, orient="index"), caption)


def descent(runs, scores, label):
    """What became of each source: accuracies, what survives of its robustness, and what that took; a row a run.

    `runs` maps names to Runs, `scores` names to Scores. A run named from-<source>-... was made of the run
    source-<source>, of the same seed, whose scores are on its own task. *survives* compares shares of right
    answers that withstand, as statistics.survival does. The seconds are those of training steps, the head's
    included where that was trained first.
    """
    rows = {}
    for name, run in runs.items():
        score, source = scores[name], re.sub(r"^from-([^-]+)-.*?(-seed\d+)?$", r"source-\1\2", name)
        cells = {score.title(row): _cell(score.table().loc[row]) for row in (CLEAN, label)}
        known = source in scores and "invalid" not in (score.verdict(label), scores[source].verdict(label))
        left = survival(scores[source], score, label) if known else "–"
        first = runs.get(re.sub("probe-then-all(-pgd)?", "head", name), run)
        trainings = [run] if first is run else [run, first]
        seconds = sum(training.history["time/epoch_s"].sum() for training in trainings)
        trained = sum(weight.numel() for weight in run.model.parameters() if weight.requires_grad)
        rows[name] = cells | {"survives": left, "weights trained": f"{trained:,}", "seconds": f"{seconds:.0f}"}
    splits = ", ".join(sorted({demo(scores[name].split) for name in runs}))
    caption = f"Accuracy in %, on {splits}, with 95 % intervals; struck out: invalid, ?: suspect"
    return _styled(pd.DataFrame.from_dict(rows, orient="index"), caption)


def long(scores):
    """Everything in one table to compute with: a row a model and evaluation."""
    parts = [score.table().rename_axis("evaluation").reset_index() for score in scores.values()]
    return pd.concat(parts, keys=scores.keys(), names=["model", None]).reset_index(level=0).reset_index(drop=True)


def findings(scores):
    """What the checks found, a row a finding; empty when nothing was."""
    rows = [
        (name, ", ".join(found.rows) or "all", found.severity, found.check, found.message)
        for name, score in scores.items()
        for found in score.findings
    ]
    return pd.DataFrame(rows, columns=["model", "rows", "severity", "check", "why"])


def invalid(experiments):
    """What is invalid in a study, in a line each kind: how often and where, an example, and what to do about it.

    `experiments` maps names to what load_scores returns.
    """
    found = pd.concat([findings(scores).assign(experiment=name) for name, scores in experiments.items()])
    lines = []
    for check, some in found[found.severity == "invalid"].groupby("check"):
        where = ", ".join(f"{name} {n}" for name, n in some.experiment.value_counts(sort=False).items())
        one, remedy = some.iloc[0], REMEDIES.get(check)
        lines += [f"INVALID: {check}, {len(some)} in all ({where}); {one.model}, {one.rows}: {one.why}"]
        lines += [f"    what to do: {remedy}"] if remedy else []
    return lines or ["no number is invalid"]


def written(session):
    """What an experiment has written, a row a folder, and how long it took: for the last cell of a notebook."""
    sizes = {}
    for path in sorted(session.runs.rglob("*")):
        if path.is_file():
            folder = path.parent.relative_to(session.runs.parent)
            sizes.setdefault(str(folder), []).append(path.stat().st_size)
    rows = {folder: [len(some), sum(some) / 1e6] for folder, some in sizes.items()}
    print(f"{session.experiment}: {(time.monotonic() - session.begun) / 60:.1f} minutes")  # noqa: T201
    return pd.DataFrame.from_dict(rows, orient="index", columns=["files", "MB"]).round(2)
