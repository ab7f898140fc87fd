"""What a study found: each question answered in a sentence that is computed from the scores of the runs.

Nothing here trains or attacks. An answer needs both of its numbers to be valid, an interval of their difference
that leaves out zero, and all seeds on one side; otherwise it says that it cannot be told, and why.
"""

from dataclasses import dataclass

import pandas as pd

from report import load_scores, without_seed
from scores import CLEAN, check_attacks, difference, independent_difference

FEWEST = 30  # right answers that a share of them may be computed from
SHARE = "share kept"  # robust accuracy as a share of clean accuracy: comparable between numbers of classes


@dataclass(frozen=True)
class Question:
    """Is `a` above `b`? Both are "experiment/run"; `measure` is "clean", an attack's label, or `SHARE`."""

    text: str
    a: str
    b: str
    measure: str = "PGD-20"

    @property
    def experiment(self):
        return self.a.partition("/")[0]


QUESTIONS = (
    Question(
        "Does adversarial training make a small CNN more robust?", "01_shallow_cnn/pgd", "01_shallow_cnn/standard"
    ),
    Question("Does it cost clean accuracy?", "01_shallow_cnn/standard", "01_shallow_cnn/pgd", CLEAN),
    Question("Is training with VMI-FGSM better than with PGD?", "01_shallow_cnn/vmi", "01_shallow_cnn/pgd"),
    Question(
        "Does adversarial training of the head alone make a standard source more robust?",
        "02_transfer_learning/from-standard-head-pgd",
        "02_transfer_learning/from-standard-head",
    ),
    Question(
        "Under a head trained on clean pictures: is a robust source more robust than a standard one?",
        "02_transfer_learning/from-robust-head",
        "02_transfer_learning/from-standard-head",
    ),
    Question(
        "Is it less robust when all its layers are trained on clean pictures?",
        "02_transfer_learning/from-robust-head",
        "02_transfer_learning/from-robust-all",
    ),
    Question(
        "Adversarially fine-tuned: is a robust source better than a standard one?",
        "02_transfer_learning/from-robust-all-pgd",
        "02_transfer_learning/from-standard-all-pgd",
    ),
    Question(
        "And better than none: is it more robust than a network from scratch, which gets more epochs?",
        "02_transfer_learning/from-robust-all-pgd",
        "02_transfer_learning/scratch-pgd",
    ),
    Question(
        "Adversarially fine-tuned from a standard source: more fragile than from scratch, with more epochs?",
        "02_transfer_learning/scratch-pgd",
        "02_transfer_learning/from-standard-all-pgd",
    ),
    Question(
        "Does adversarial training make a ResNet-18 from scratch more robust?",
        "03_from_scratch/pgd",
        "03_from_scratch/standard",
    ),
    Question(
        "Does long adversarial training overfit: is its best epoch more robust than its last?",
        "03_from_scratch/pgd-long, best",
        "03_from_scratch/pgd-long",
    ),
    Question(
        "Does the small CNN keep a smaller share of its right answers with 100 classes?",
        "04_more_classes/shallow-10-pgd",
        "04_more_classes/shallow-100-pgd",
        SHARE,
    ),
    Question(
        "And the ResNet-18?",
        "04_more_classes/resnet-10-pgd",
        "04_more_classes/resnet-100-pgd",
        SHARE,
    ),
)


def load_study(study):
    """The scores of all experiments below a study's folder: {experiment: {run: Scores}}."""
    if not study.is_dir():
        raise FileNotFoundError(f"{study} is not there: run the other notebooks with this preset and data first")
    experiments = {path.name: load_scores(path) for path in sorted(study.iterdir()) if path.is_dir()}
    return {name: scores for name, scores in experiments.items() if scores}


def answers(experiments, of=None, questions=QUESTIONS):
    """A row a question, of one experiment or of all: "yes", "no", "cannot be told" or "not run", and why.

    `experiments` is what `load_study` returns.
    """
    asked = [question for question in questions if of in (None, question.experiment)]
    return pd.DataFrame([_answer(question, experiments) for question in asked])


def _answer(question, experiments):
    a, b = _seeds(question.a, experiments), _seeds(question.b, experiments)
    answer, sentence = _judge(question, a, b)
    return {"experiment": question.experiment, "question": question.text, "answer": answer, "why": sentence}


def _seeds(name, experiments):
    """The Scores of one run, a list with one a seed."""
    experiment, _, run = name.partition("/")
    scores = experiments.get(experiment, {})
    return [score for label, score in scores.items() if without_seed(label) == run]


def _judge(question, a, b):
    names = [name.partition("/")[2] for name in (question.a, question.b)]
    label = "PGD-20" if question.measure == SHARE else question.measure
    for name, some in zip(names, (a, b), strict=True):
        if not some or any(label not in score.outcomes for score in some):
            return "not run", f"There are no scores of {name} under {label}."
    broken = [
        f
        for score in (*a, *b)
        for f in score.findings
        if f.severity == "invalid" and (f.concerns(label) or f.concerns(CLEAN))
    ]
    if broken:
        return "cannot be told", f"A number is invalid: {broken[0].message}."
    try:
        gap, values = _compare(question, a, b, label)
    except ValueError as error:
        return "cannot be told", f"They cannot be compared: {error}."
    what = f"of n = {a[0].n}, {label}"
    if question.measure == SHARE:
        counts = [f"{hits} of {n}" for some in (a, b) for hits, n in _kept(some, label)]
        what = f"of the right answers withstand {label} ({', '.join(counts)})"
    shown = " against ".join(f"{100 * value:.1f} % ({name})" for value, name in zip(values, names, strict=True))
    seeds = f", {len(a)} seed{'s' if len(a) > 1 else ''}"
    doubts = sorted({f.message for s in (*a, *b) for f in s.findings if f.concerns(label) or f.concerns(CLEAN)})
    suspect = f"; suspect: {doubts[0]}" if doubts else ""
    sentence = f"{shown} {what}{seeds}: {gap}{suspect}"
    if gap.sign == 0:
        why = "the interval holds zero" if gap.consistent else "the seeds disagree"
        return "cannot be told", f"{sentence}; {why}."
    return "yes" if gap.sign > 0 else "no", f"{sentence}."


def _kept(scores, label):
    """How many of the right answers withstand, and how many there are; a pair a seed."""
    return [(int(score.outcome(label).sum()), int(score.outcome(CLEAN).sum())) for score in scores]


def _compare(question, a, b, label):
    """The difference in the question's measure, and both values; raises ValueError where there is none."""
    if question.measure == SHARE:
        check_attacks((*a, *b), label)
        counts = [_kept(some, label) for some in (a, b)]
        fewest = min(n for some in counts for _, n in some)
        if fewest < FEWEST:
            raise ValueError(f"one gives {fewest} right answers, and a share needs {FEWEST}")
        gap = independent_difference(*counts)
        return gap, [sum(hits / max(n, 1) for hits, n in some) / len(some) for some in counts]
    return difference(a, b, label), [sum(score.share(label) for score in some) / len(some) for some in (a, b)]
