"""What a study found: each question answered in a sentence that is computed from the scores of the runs.

Nothing here trains or attacks. An answer needs both of its numbers to be valid, an interval of their difference
that leaves out zero, and all seeds on one side; otherwise it says that it cannot be told, and why.
"""

from dataclasses import dataclass

import pandas as pd

from evaluation.finding import CLEAN
from evaluation.statistics import check_attacks, difference, independent_difference
from storage.paths import ROOT
from study.report import load_scores, taken_from, without_seed

FEWEST = 30  # right answers that a share of them may be computed from
SHARE = "share kept"  # robust accuracy as a share of clean accuracy: comparable between numbers of classes
AUTOATTACK = "AutoAttack"  # or, where that was not run, AutoAttack cut short
EARLIER = ROOT / "notebooks" / "earlier_study.csv"


@dataclass(frozen=True)
class Question:
    """Is `a` above `b`? Both are "experiment/run"; `measure` is "clean", an attack's label, AUTOATTACK or `SHARE`.

    `against` is what b is to withstand, where that is something else than for a.
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
    published: tuple
    questions: tuple


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
    *(
        Question(text, f"06_robust_transfer/from-{a}", f"06_robust_transfer/from-{b}", AUTOATTACK)
        for text, a, b in (
            (
                "Frozen features, head trained on clean pictures: is a robust source better than a standard one?",
                "robust-head",
                "standard-head",
            ),
            ("Does training all layers on clean pictures take robustness away?", "robust-head", "robust-all"),
            ("Of that, does training the head first keep more?", "robust-probe-then-all", "robust-all"),
            ("Does a pull of the features back to the source's?", "robust-distilled", "robust-all"),
            ("Does a pull of the weights?", "robust-l2sp", "robust-all"),
            ("Does freezing BatchNorm?", "robust-norms-frozen", "robust-all"),
            ("Do low-rank adapters on a frozen backbone?", "robust-low-rank", "robust-all"),
            (
                "Adversarially fine-tuned: is a robust source better than none, in as many epochs?",
                "robust-all-pgd",
                "scratch-all-pgd",
            ),
            ("Is a standard source better than none?", "standard-all-pgd", "scratch-all-pgd"),
            ("Does raising ε late help a standard source?", "standard-scheduled", "standard-all-pgd"),
            (
                "From a robust source: is TRADES better than PGD's cross-entropy?",
                "robust-trades",
                "robust-all-pgd",
            ),
            ("Is MART?", "robust-mart", "robust-all-pgd"),
            ("Does adversarial weight perturbation help?", "robust-awp", "robust-all-pgd"),
        )
    ),
)

# In our words; the study's README has them: github.com/irmadong/Practical_Deep_Learning_Project
CONCLUSIONS = (
    Conclusion(
        "Adversarial training is very effective on models from scratch, against white-box attacks.",
        (("pgd", "PGD"), ("ResNet-18 from scratch: pgd 100 epochs", "PGD")),
        (
            Question("Small CNN", "01_shallow_cnn/pgd", "01_shallow_cnn/standard"),
            Question("ResNet-18", "03_from_scratch/pgd", "03_from_scratch/standard"),
        ),
    ),
    Conclusion(
        "A fine-tuned model is much more vulnerable than one from scratch.",
        (("ResNet-18 from ImageNet: head pgd", "PGD"), ("ResNet-18 from scratch: pgd 100 epochs", "PGD")),
        (
            Question(
                "From a standard source, in as many epochs",
                "06_robust_transfer/from-scratch-all-pgd",
                "06_robust_transfer/from-standard-all-pgd",
                AUTOATTACK,
            ),
        ),
    ),
    Conclusion(
        "FGSM is weak against pretrained models.",
        (("ResNet-18 from ImageNet: head", "FGSM"), ("ResNet-18 from ImageNet: head", "PGD")),
        tuple(
            Question(
                f"More is left by FGSM than by PGD-20, {part}",
                f"02_transfer_learning/from-standard-{part}",
                f"02_transfer_learning/from-standard-{part}",
                "FGSM",
                "PGD-20",
            )
            for part in ("head", "all")
        ),
    ),
    Conclusion(
        "Training from scratch, without pretrained layers, performs better and is more robust.",
        (
            ("ResNet-18 from scratch: standard", "clean"),
            ("ResNet-18 from ImageNet: head", "clean"),
            ("ResNet-18 from scratch: pgd 10 epochs", "PGD"),
            ("ResNet-18 from ImageNet: head pgd", "PGD"),
        ),
        (
            Question(
                "Clean, in as many epochs",
                "06_robust_transfer/from-scratch-all",
                "06_robust_transfer/from-standard-all",
                CLEAN,
            ),
            Question(
                "Robust, in as many epochs, and no better from a robust source",
                "06_robust_transfer/from-scratch-all-pgd",
                "06_robust_transfer/from-robust-all-pgd",
                AUTOATTACK,
            ),
        ),
    ),
    Conclusion(
        "With more classes accuracy is lower, with adversarial training and without.",
        (
            ("ResNet-18 from scratch: standard", "clean"),
            ("ResNet-18 on CIFAR-100: standard", "clean"),
            ("ResNet-18 on CIFAR-100: pgd", "clean"),
        ),
        (
            Question("Without", "04_more_classes/resnet-10", "04_more_classes/resnet-100", CLEAN),
            Question("With, clean", "04_more_classes/resnet-10-pgd", "04_more_classes/resnet-100-pgd", CLEAN),
            Question("With, attacked", "04_more_classes/resnet-10-pgd", "04_more_classes/resnet-100-pgd"),
        ),
    ),
)


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
                number = experiment[:2]
                found[f"{number if number.isdigit() else experiment} {label}"] = score
    return found


def answers(experiments, of=None, questions=QUESTIONS):
    """A row a question, of one experiment or of all: "yes", "no", "cannot be told" or "not run", and why.

    `experiments` is what `load_study` returns.
    """
    asked = [question for question in questions if of in (None, question.experiment)]
    return pd.DataFrame([_answer(question, experiments) for question in asked])


def tables(experiments):
    """What the report begins with: headings and tables."""
    return {
        "Question by question": answers(experiments),
        "The five conclusions of the earlier study": conclusions(experiments),
    }


def conclusions(experiments, of=CONCLUSIONS):
    """A row a conclusion of the earlier study: "holds", "does not hold" or "cannot be told", and the numbers."""
    published = pd.read_csv(EARLIER, index_col="model")
    rows = []
    for conclusion in of:
        found = [_answer(question, experiments) for question in conclusion.questions]
        told = [row["answer"] for row in found]
        verdict = "does not hold" if "no" in told else "holds" if set(told) == {"yes"} else "cannot be told"
        theirs = [f"{published.loc[row, column]:g} % {column} ({row})" for row, column in conclusion.published]
        ours = " ".join(f"{row['question']}: {row['answer']}. {row['why']}" for row in found)
        rows.append(
            {"conclusion": conclusion.text, "verdict": verdict, "its numbers": "; ".join(theirs), "here": ours}
        )
    return pd.DataFrame(rows)


def _answer(question, experiments):
    a, b = _seeds(question.a, experiments), _seeds(question.b, experiments)
    answer, sentence = _judge(question, a, b)
    return {"experiment": question.experiment, "question": question.text, "answer": answer, "why": sentence}


def _seeds(name, experiments):
    """The Scores of one run, a list with one a seed."""
    experiment, _, run = name.partition("/")
    scores = experiments.get(experiment, {})
    return [score for label, score in scores.items() if without_seed(label) == run]


def _label(measure, scores):
    """The row of the scores that a measure is about."""
    if measure == SHARE:
        return "PGD-20"
    cut = f"{AUTOATTACK}, cut short"
    return cut if measure == AUTOATTACK and scores and all(cut in score.outcomes for score in scores) else measure


def _judge(question, a, b):
    labels = [_label(question.measure, (*a, *b)), _label(question.against or question.measure, (*a, *b))]
    names = [name.partition("/")[2] for name in (question.a, question.b)]
    for name, label, some in zip(names, labels, (a, b), strict=True):
        if not some or any(label not in score.outcomes for score in some):
            return "not run", f"There are no scores of {name} under {label}."
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
    try:
        gap, values = _compare(question.measure, a, b, labels)
    except ValueError as error:
        return "cannot be told", f"They cannot be compared: {error}."
    if question.against:
        names = [f"{name}, {label}" for name, label in zip(names, labels, strict=True)]
    shown = " against ".join(f"{100 * value:.1f} % ({name})" for value, name in zip(values, names, strict=True))
    doubts = sorted({message for _, message in found})
    suspect = f"; suspect: {doubts[0]}" if doubts else ""
    seeds = f"{len(a)} seed{'s' if len(a) > 1 else ''}"
    sentence = f"{shown} {_of_what(question, a, b, labels[0])}, {seeds}: {gap}{suspect}"
    if gap.sign == 0:
        why = "the interval holds zero" if gap.consistent else "the seeds disagree"
        return "cannot be told", f"{sentence}; {why}."
    return "yes" if gap.sign > 0 else "no", f"{sentence}."


def _of_what(question, a, b, label):
    """What the percentages are of."""
    if question.measure == SHARE:
        counts = [f"{hits} of {n}" for some in (a, b) for hits, n in _kept(some, label)]
        return f"of the right answers withstand {label} ({', '.join(counts)})"
    sizes = " and ".join(dict.fromkeys(str(some[0].n) for some in (a, b)))
    return f"of n = {sizes}" + ("" if question.against else f", {label}")


def _kept(scores, label):
    """How many of the right answers withstand, and how many there are; a pair a seed."""
    return [(int(score.outcome(label).sum()), int(score.outcome(CLEAN).sum())) for score in scores]


def _compare(measure, a, b, labels):
    """The difference in the measure, and both values; raises ValueError where there is none."""
    if measure == SHARE:
        check_attacks((*a, *b), labels[0])
        counts = [_kept(some, labels[0]) for some in (a, b)]
        fewest = min(n for some in counts for _, n in some)
        if fewest < FEWEST:
            raise ValueError(f"one gives {fewest} right answers, and a share needs {FEWEST}")
        gap = independent_difference(*counts)
        return gap, [sum(hits / max(n, 1) for hits, n in some) / len(some) for some in counts]
    values = [
        sum(score.share(label) for score in some) / len(some) for some, label in zip((a, b), labels, strict=True)
    ]
    if {score.split for score in a} != {score.split for score in b}:  # other pictures, so nothing is paired
        check_attacks((*a, *b), labels[0])
        counts = [[(int(score.outcome(labels[0]).sum()), score.n) for score in some] for some in (a, b)]
        return independent_difference(*counts), values
    return difference(a, b, *labels), values
