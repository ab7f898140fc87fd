"""The study that faults.py stops: everything that a study does, in a few seconds, in a process of its own."""

import os
import sys
import time
import traceback

import torch

import models
import utils
from attacks import FGSM, PGD, AutoAttack
from defences import Adversarial
from evaluation import batch_sizes, tested_before
from study import figures, report
from trainer import Recipe, test, train

PHASES = ("data", "training", "evaluation", "AutoAttack", "report")


def small_study(folder, say):
    """Data, training, evaluation, AutoAttack and report in a few seconds; `say` is told the phase that begins."""
    os.environ |= {"STUDY_RUNS": str(folder / "runs"), "STUDY_DATA": str(folder / "data")}
    torch.set_num_threads(1)
    batch_sizes.BATCH["cpu"] = 20
    tested_before.SAVE_EVERY = 0.1
    say("data")
    session = utils.start("01_faults", preset="smoke", data="shapes")
    data = utils.load_data("shapes10", session)
    say("training")
    recipe = Recipe(epochs=6, batch_size=64, defence=Adversarial(PGD(steps=3)), ema=0.9, precision="float32")
    run = train(models.build("shallow_cnn", 10), data, recipe, session.folder("pgd"), progress=False)
    say("evaluation")
    few, options = data.test.first(100), {"progress": False, "folder": run.folder}
    scores = test(run.model, few, [FGSM(eps=4 / 255), PGD(eps=4 / 255, steps=40, restarts=4)], **options)
    scores.save(run.folder)
    say("AutoAttack")
    attack = AutoAttack(eps=4 / 255, steps=20, queries=200)
    test(run.best_model(), few, [attack], **options).save(run.folder, epoch="best")
    say("report")
    figures.save(figures.plot_training({"pgd": run}), session, "training")
    figures.save(figures.plot_scores({"pgd": scores}), session, "scores")
    report.write_page(session.runs.parent)


def process(folder, pipe):
    """A process of its own: what it says goes to a file, the phases through the pipe."""
    output = (folder / "output.txt").open("a", buffering=1)
    sys.stdout = sys.stderr = output
    try:
        small_study(folder, lambda phase: pipe.send((phase, time.monotonic())))
    except BaseException as error:
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        raise
    pipe.send(("end", time.monotonic()))
