"""Many runs, many tests: one after the other in this process, or at once in a pool of processes."""

import functools
import os
import time

import pandas as pd
import torch
from tqdm.auto import tqdm

from evaluation.testing import test, test_here
from finetune_framework import load_source
from models.low_rank import Packed
from processes import data_parallel
from processes.run_queue import Task, run_all
from storage.atomic_files import Damaged, write_json
from trainer import Run, train, train_here
from training.identity import identity_of
from training.run_folder import RunFolder

SHOW_EVERY = 1.0  # seconds


def train_all(asked, session, *, on=None, progress=True):
    """Train what is asked for; returns a Run for each, by the same keys.

    `asked` maps (name, seed), which say the folder, to what `train` takes: (model, data, recipe). In place of the
    model may stand the key of a run further up, whose trained network this one starts from, or (key, function):
    then it starts from what the function makes of that network. A Run in place of all three is there already, for
    others to start from. With `on` or STUDY_ON
    (see chosen) all that do not wait for another are trained at once, to the same results. Runs that are
    finished are loaded. Raises ValueError for keys that do not stand further up, and what `train` raises: at
    once, or in a pool when all others are done.
    """
    _check(asked)
    pool = chosen(on)
    runs, data_here = {key: there for key, there in asked.items() if isinstance(there, Run)}, {}

    def start_of(key):
        start, made = asked[key][0], _needed(asked[key][0])
        if made is None:
            return start
        return run_of(made).model if made == start else start[1](run_of(made).model)

    def run_of(key):
        if key not in runs:
            _, data, recipe = asked[key]
            runs[key] = train(start_of(key), data, recipe, session.folder(*key), progress=progress)
        return runs[key]

    def arguments(key):
        """What another process needs for it."""
        _, data, recipe = asked[key]
        model, folder = start_of(key), session.folder(*key).resolve()
        if id(data) not in data_here:
            data_here[id(data)] = pool.lend(data.to("cpu"))
        identity = identity_of(model, data, recipe)
        return Packed(model), data_here[id(data)], recipe, folder, identity, _kind(pool, session)

    if pool is not None:
        folders, tasks = {key: RunFolder(session.folder(*key)) for key in asked if key not in runs}, {}
        for key, folder in folders.items():
            if not folder.finished:
                note, after = _notes(session) / f"{folder.path.name}.json", _needed(asked[key][0])
                after = after if after in tasks else None
                tasks[key] = Task(train_here, functools.partial(arguments, key), note, after)
        _at_once(tasks, pool, session, "train", progress)
        for folder in folders.values():
            if not folder.finished:
                raise Damaged(
                    f"{folder.path} was trained by {pool}, but it is not here: all nodes need the same runs/; "
                    "STUDY_RUNS can name a shared folder"
                )
    return {key: run_of(key) for key in asked}


def ready_run(session, dataset, kind, name):
    """One of the small networks that lie in the repository, as a run that others start from; nothing is trained.

    dataset: "cifar10" or "cifar100", on Shapes its stand-in; kind: "standard" or "robust". The run has no history;
    its folder, of this name, takes its scores.
    """
    model = load_source(f"ours/{session.dataset(dataset)}-{kind}-w16").to(session.device)
    return Run(model, session.folder(name, session.seed), pd.DataFrame())


def _needed(start):
    """The key of the run that a start is made of; None for a network."""
    if isinstance(start, torch.nn.Module):
        return None
    return start[0] if isinstance(start, tuple) and len(start) == 2 and callable(start[1]) else start


def _check(asked):
    above = []
    for key, what in asked.items():
        needed = None if isinstance(what, Run) else _needed(what[0])
        if needed not in (None, *above):
            raise ValueError(
                f"{key!r} is to start from {needed!r}, neither a network nor the key of a run further up; "
                f"there are {', '.join(map(repr, above)) or 'none'}"
            )
        above.append(key)


def test_all(runs, split, attacks, session, *, on=None, progress=True):
    """Test runs, by label, and save the scores in their folders; returns the Scores by label. As train_all."""
    pool, scores = chosen(on), {}
    if pool is not None:
        lent, kind, tasks = pool.lend(split.to("cpu")), _kind(pool, session), {}
        for label, run in runs.items():
            arguments = Packed(run.model), lent, attacks, run.folder.resolve(), kind
            tasks[label] = Task(test_here, arguments, _notes(session) / f"{run.folder.name}.json")
        scores = _at_once(tasks, pool, session, "test", progress)
    for label, run in runs.items():
        if label not in scores:
            scores[label] = test(run.model, split, attacks, folder=run.folder, progress=progress)
        scores[label].save(run.folder)
    return {label: scores[label] for label in runs}


def chosen(on=None):
    """The pool of processes that is asked for, by `on` or STUDY_ON in the environment; None where nothing is.

    "local" takes one process per GPU, or without any per core, "local:3" three at once; "ray" the cluster that Ray
    finds, else one of this machine; "ray:HOST:PORT" or "ray://HOST:PORT" that cluster. Several processes share a
    GPU where STUDY_PER_GPU in the environment says how many.
    """
    on = on or os.environ.get("STUDY_ON")
    return _pool(on) if on and data_parallel.world() == 1 else None


@functools.cache
def _pool(on):
    if on.startswith("local"):  # Ray reads it when it is imported, and stays on the loopback
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        from processes import ray_cluster  # imported late: Ray is an extra
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"on={on!r} needs Ray: make cluster installs it") from error
    return ray_cluster.Pool(on)


def _kind(pool, session):
    """The kind of device that tasks are to use: on this machine the session's, on a cluster what a node has."""
    return session.device.type if pool.local else "auto"


def _notes(session):
    """Where is written what of this experiment is at work, for `python -m study`."""
    return session.runs.parent / ".jobs" / session.experiment


def _at_once(tasks, pool, session, what, progress):
    """Run the tasks, and show and write how far they are."""
    if not tasks:
        return {}
    path, shown = _notes(session).with_suffix(".json"), [0.0]
    bar = tqdm(total=len(tasks), desc=what, unit=what, disable=not progress)

    def show(states):
        over = all(state in ("done", "failed") for state in states.values())
        if time.monotonic() - shown[0] < SHOW_EVERY and not over:
            return
        shown[0] = time.monotonic()
        named = {tasks[name].note.stem: state for name, state in states.items()}
        write_json(path, {"what": what, "states": named, "pool": repr(pool)})
        bar.n = sum(state in ("done", "failed") for state in states.values())
        bar.set_postfix_str(", ".join(name for name, state in named.items() if state == "runs"))

    with bar:
        return run_all(tasks, pool, show)
