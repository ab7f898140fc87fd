"""What a study found: each question answered in a sentence that is computed from the scores of the runs.

Nothing here trains or attacks. Yes and no need both numbers to be valid, an interval of their difference that
leaves out zero, and all seeds on one side. An interval that holds zero says how large a difference can be at most.
Otherwise it cannot be told, and why is said. Of many questions some are answered by luck: beside each p stands
Holm's, corrected for all that are asked together, and an answer that does not withstand it says so.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from evaluation.finding import CLEAN
from evaluation.statistics import (
    check_attacks,
    check_examples,
    difference,
    holm,
    independent_difference,
    p_shown,
    paired_kept,
)
from storage.paths import ROOT
from study.tables import load_scores, taken_from, without_seed

FEWEST = 30  # right answers that a share of them may be computed from
SHARE = "share kept"  # robust accuracy as a share of clean accuracy: comparable between numbers of classes
AUTOATTACK = "AutoAttack"  # or, where that was not run, AutoAttack cut short
NULL = "no difference seen"
HOLM = "p, Holm"
ABOUT_HOLM = (
    "p, Holm: corrected (Holm 1979) for all questions that have runs here, those of other notebooks included."
)
ANSWERED = ("yes", "no", NULL)
EARLIER = ROOT / "notebooks" / "earlier_study.csv"


@dataclass(frozen=True)
class Question:
    """Is `a` above `b`? Both are "experiment/run"; `measure` is "clean", an attack's label, AUTOATTACK or `SHARE`.

    `against` is what b is to withstand, where that is something else than for a. A text with {a} and {b}, which
    stand for the two numbers, is no question but the answer's own words.
    """

    text: str
    a: str
    b: str
    measure: str = "PGD-20"
    against: str | None = None

    @property
    def experiment(self):
        return self.a.partition("/")[0]


@dataclass(frozen=True)
class Conclusion:
    """What the earlier study concluded, which numbers it showed, and the questions that it comes to.

    `published` are pairs of a row and a column of earlier_study.csv. It holds where all questions are answered by
    yes, and does not where one is by no.
    """

    text: str
    published: list
    questions: list


ASKED = tomllib.loads(Path(__file__).with_name("questions.toml").read_text(encoding="utf-8"))
QUESTIONS = [Question(*asked) for asked in ASKED["questions"]]
FIRST = [Question(*asked) for asked in ASKED.get("first", [])]
CONCLUSIONS = [
    Conclusion(one["text"], one["published"], [Question(*asked) for asked in one["questions"]])
    for one in ASKED["conclusions"]
]


def load_study(study):
    """The scores of all experiments below a study's folder: {experiment: {run: Scores}}."""
    if not study.is_dir():
        raise FileNotFoundError(f"{study} is not there: run the other notebooks with this preset and data first")
    experiments = {path.name: load_scores(path) for path in sorted(study.iterdir()) if path.is_dir()}
    return {name: scores for name, scores in experiments.items() if scores}


def every_score(experiments, study):
    """The Scores of all runs by "01 run", from what load_study returned of this folder.

    A run that was taken over from another experiment is there where it was tested under something that it was not
    tested under there.
    """
    found = {}
    for experiment, scores in experiments.items():
        for label, score in scores.items():
            run, best, _ = label.partition(", best")
            first, _, name = (taken_from(study / experiment / run) or "/").partition("/")
            before = experiments.get(first, {}).get(name + best)
            if before is None or not set(score.outcomes) <= set(before.outcomes):
                found[f"{experiment[:2] if experiment[:2].isdigit() else experiment} {label}"] = score
    return found


def questions(experiments, of=None, among=QUESTIONS, missing=True):
    """A row a question, of one experiment or of all; without `missing`, only of those that have runs here.

    The answer is "yes", "no", NULL, "cannot be told", "not asked" (by the runs of this preset) or "not run" (the
    notebook). p is that of the difference; under HOLM it is corrected for all questions that have runs here,
    of any experiment. `experiments` is what `load_study` returns.
    """
    columns = ["experiment", "question", "answer", "p", HOLM, "why"]
    table = pd.DataFrame(_answers(among, experiments), columns=columns)
    table = table if of is None else table[table.experiment == of]
    return table if missing else table[~table.answer.isin(["not asked", "not run"])]


def left_out(experiments, of=None, among=QUESTIONS):
    """Which questions have no runs here, and who has them: a sentence, "" where there are none."""
    table, sentence = questions(experiments, of, among), ""
    if len(some := table[table.answer == "not asked"]):
        texts = " ".join(some.question)
        sentence += (
            f"Not asked by these runs, but by presets with more, {len(some)} of {len(table)} questions: {texts} "
        )
    if len(some := table[table.answer == "not run"]):
        names = ", ".join(some.experiment.unique())
        sentence += (
            f"Not asked, because their notebooks were not run, {len(some)} of {len(table)} questions: {names}."
        )
    return sentence.strip()


def shown(experiments, of=None):
    """The questions of one experiment, or of all, for a notebook; below the table, those without runs."""
    table = questions(experiments, of, missing=False).style.hide().format(p_in_table, subset=["p", HOLM])
    table = table.set_properties(**{"text-align": "left", "white-space": "normal"})
    return table.set_caption(f"{ABOUT_HOLM} {left_out(experiments, of)}".strip()).set_table_styles(
        [{"selector": "caption", "props": "caption-side: bottom; text-align: left"}]
    )


def p_in_table(p):
    """A p for a table: three digits, or a dash where there is none."""
    return "–" if pd.isna(p) else p_shown(p).removeprefix("p ").removeprefix("= ")


def highlights(experiments, most=3, first=FIRST, among=QUESTIONS):
    """What matters most, in full sentences: those of `first` that are answered, then the other answers."""
    sentences = {}
    asked = (*first, *among)
    for question, row in zip(asked, _answers(asked, experiments), strict=True):
        if row["answer"] in ANSWERED:
            own = "{a}" in question.text
            sentence = row["why"] if own else f"{question.text} {row['answer'].capitalize()}: {row['why']}"
            sentences.setdefault((question.a, question.b, question.measure), sentence)
    return list(sentences.values())[:most]


def conclusions(experiments, of=CONCLUSIONS):
    """A row a conclusion of the earlier study: "holds", "does not hold" or "cannot be told", and the numbers.

    Where some of its questions have no runs here, the verdict is of the others, and says so, as it does where
    Holm's correction for the questions of all conclusions would change it.
    """
    published = pd.read_csv(EARLIER, index_col="model")
    rows, every = [], iter(_answers([question for one in of for question in one.questions], experiments))
    for conclusion in of:
        found = [next(every) for _ in conclusion.questions]
        asked = [row for row in found if row["answer"] not in ("not asked", "not run")]
        verdict = _verdict([row["answer"] for row in asked])
        firm = _verdict([NULL if _by_luck(row) else row["answer"] for row in asked])
        verdict += ", as far as asked" if asked and len(asked) < len(found) else ""
        verdict += "" if verdict.startswith(firm) else ", but not after Holm's correction"
        theirs = [f"{published.loc[row, column]:g} % {column} ({row})" for row, column in conclusion.published]
        ours = " ".join(f"{row['question']}: {row['answer']}. {row['why']}" for row in found)
        rows.append(
            {"conclusion": conclusion.text, "verdict": verdict, "its numbers": "; ".join(theirs), "here": ours}
        )
    return pd.DataFrame(rows)


def _verdict(answers):
    return "does not hold" if "no" in answers else "holds" if set(answers) == {"yes"} else "cannot be told"


def _answers(asked, experiments):
    """A row a question. All that are asked together are corrected together; the same comparison counts once."""
    rows = [_answer(question, experiments) for question in asked]
    keys = [(question.a, question.b, question.measure, question.against) for question in asked]
    known = {key: row["p"] for key, row in zip(keys, rows, strict=True) if row["p"] is not None}
    corrected = dict(zip(known, holm(list(known.values())), strict=True))
    for key, row in zip(keys, rows, strict=True):
        row[HOLM] = corrected.get(key)
        if _by_luck(row):
            alone = f"This holds asked alone, but not after Holm's correction for {len(known)} questions"
            row["why"] += f" {alone} ({p_shown(row[HOLM])})."
    return rows


def _by_luck(row):
    """Is this an answer that Holm's correction takes away?"""
    return row["answer"] in ("yes", "no") and row[HOLM] >= 0.05


def _answer(question, experiments):
    if question.experiment in experiments:
        seeds = (_seeds(name, experiments) for name in (question.a, question.b))
        answer, sentence, *p = _judge(question, *seeds)
    else:
        answer, sentence, *p = "not run", f"The notebook {question.experiment} was not run."
    row = {"experiment": question.experiment, "question": question.text, "answer": answer, "why": sentence}
    return row | {"p": p[0] if p else None}


def _seeds(name, experiments):
    """The Scores of one run, a list with one a seed, in the order of the seeds."""
    experiment, _, run = name.partition("/")
    scores = experiments.get(experiment, {})
    labels = (label for label in scores if without_seed(label) == run)
    return [scores[label] for label in sorted(labels, key=lambda label: (len(label), label))]


def _label(measure, scores):
    """The row of the scores that a measure is about."""
    if measure == SHARE:
        return "PGD-20"
    cut = f"{AUTOATTACK}, cut short"
    whole, short = (all(label in score.outcomes for score in scores) for label in (AUTOATTACK, cut))
    return cut if measure == AUTOATTACK and scores and short and not whole else measure


def _judge(question, a, b):
    labels = [_label(measure, (*a, *b)) for measure in (question.measure, question.against or question.measure)]
    names = [name.partition("/")[2] for name in (question.a, question.b)]
    for name, label, some in zip(names, labels, (a, b), strict=True):
        if not some or any(label not in score.outcomes for score in some):
            return "not asked", f"There are no scores of {name} under {label}."
    for name, some in zip(names, (a, b), strict=True):
        known = [score.weights for score in some if score.weights]
        if len(set(known)) < len(known):
            return "cannot be told", f"Two seeds of {name} are the same network."
    if len(a) != len(b):
        return "cannot be told", f"{names[0]} has {len(a)} seeds and {names[1]} {len(b)}: as many are needed."
    found = [
        (finding.severity, finding.message)
        for some, label in ((a, labels[0]), (b, labels[1]))
        for score in some
        for finding in score.findings
        if finding.concerns(label) or finding.concerns(CLEAN)
    ]
    broken = [message for severity, message in found if severity == "invalid"]
    if broken:
        return "cannot be told", f"A number is invalid: {broken[0]}."
    counts = [_counts(question.measure, some, label) for some, label in zip((a, b), labels, strict=True)]
    try:
        gap = _compare(question.measure, a, b, labels, counts)
    except ValueError as error:
        return "cannot be told", f"They cannot be compared: {error}."
    if question.against:
        names = [f"{name}, {label}" for name, label in zip(names, labels, strict=True)]
    values = [f"{100 * sum(hits / max(n, 1) for hits, n in some) / len(some):.1f} %" for some in counts]
    doubts = sorted({message for _, message in found})
    suspect = f"; suspect: {doubts[0]}" if doubts else ""
    of = f"{_of_what(question, counts, labels[0])}, {len(a)} seed{'s' if len(a) > 1 else ''}"
    if "{a}" in question.text:
        sentence = f"{question.text.format(a=values[0], b=values[1])} ({of.removeprefix('of ')}): {gap}"
    else:
        sentence = f"{values[0]} ({names[0]}) against {values[1]} ({names[1]}) {of}: {gap}"
    if gap.sign == 0 and not gap.consistent and not gap.low <= 0 <= gap.high:
        return "cannot be told", f"{sentence}; the seeds disagree{suspect}.", gap.p
    if gap.sign == 0:
        low, high = gap.widest
        bound = f"no difference of more than {100 * max(-low, high):.1f} points"
        mean = " in the mean of the seeds" if len(a) > 1 else ""
        return NULL, f"{sentence}: {bound}{mean}{suspect}.", gap.p
    return "yes" if gap.sign > 0 else "no", f"{sentence}{suspect}.", gap.p


def _counts(measure, scores, label):
    """How many withstand, and of how many: of all, or of the right answers; a pair a seed."""
    wholes = [int(score.outcome(CLEAN).sum()) if measure == SHARE else score.n for score in scores]
    return [(int(score.outcome(label).sum()), n) for score, n in zip(scores, wholes, strict=True)]


def _of_what(question, counts, label):
    """What the percentages are of."""
    if question.measure == SHARE:
        told = ", ".join(f"{hits} of {n}" for some in counts for hits, n in some)
        return f"of the right answers withstand {label} ({told})"
    sizes = " and ".join(dict.fromkeys(str(some[0][1]) for some in counts))
    return f"of n = {sizes}" + ("" if question.against else f", {label}")


def _compare(measure, a, b, labels, counts):
    """The difference in the measure; raises ValueError where there is none."""
    same = {score.split for score in a} == {score.split for score in b}
    if measure != SHARE and same:
        return difference(a, b, *labels)
    check_attacks((*a, *b), labels[0])
    fewest = min(n for some in counts for _, n in some)
    if measure == SHARE and fewest < FEWEST:
        raise ValueError(f"one gives {fewest} right answers, and a share needs {FEWEST}")
    if not same:
        return independent_difference(*counts)
    check_examples((*a, *b))
    return paired_kept(*([(score.outcome(CLEAN), score.outcome(labels[0])) for score in some] for some in (a, b)))
