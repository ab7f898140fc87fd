"""The main job: run the notebooks headless, one after the other, then write the report.

    python study.py                          every notebook, the quick preset
    python study.py 01 --preset full         one notebook, by the beginning of its name
    python study.py --data cifar -p epochs=3 any parameter of the notebooks' first cell

Executed notebooks, report.html and scores.csv land in runs/<preset>-<data>/. Ends with 1 if a notebook failed;
after Ctrl-C (130) or SIGTERM (75) the same command goes on where it was.
"""

import argparse
import ast
import json
import shlex
import signal
import sys
import threading
import time
from contextlib import contextmanager

import psutil

import utils
from files import Damaged, Held, held, read_json, replacing
from runs import RunFolder
from stopping import GRACE, RESUME

NOTEBOOKS = utils.ROOT / "notebooks"


def main(arguments=None):
    options = _parse(arguments)
    notebooks = _choose(options.notebooks)
    asked = dict(_parameter(text) for text in options.parameter)
    known = _parameters_of(notebooks, asked)
    session = utils.start("study", preset=options.preset, seed=options.seed, data=options.data)
    study = session.runs.parent
    parameters = {"preset": session.preset, "data": session.family, "seed": session.seed}
    parameters |= asked
    _note(shlex.join(["python", "study.py", *(sys.argv[1:] if arguments is None else arguments)]), study)
    begun = time.monotonic()
    failures = []
    for index, notebook in enumerate(notebooks):
        print(
            f"\n[{index + 1}/{len(notebooks)}] {notebook.stem} · {_minutes(time.monotonic() - begun)} so far",
            flush=True,
        )
        print("watch its curves: make lab", flush=True)
        its_own = {name: value for name, value in parameters.items() if name in known[notebook]}
        failure = _execute(notebook, study / "notebooks" / notebook.name, its_own)
        if failure:
            failures.append(notebook.stem)
            print(failure, file=sys.stderr)
    if not _report(study, options.keep):
        failures.append("the report")
    print(
        f"done in {_minutes(time.monotonic() - begun)}" + (f"; failed: {', '.join(failures)}" if failures else "")
    )
    return 1 if failures else 0


def _parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", help="beginnings of notebooks' names; without any, all run")
    parser.add_argument("--preset", default="quick", help="smoke, quick, full or auto (default: quick)")
    parser.add_argument("--data", default="auto", help="cifar, shapes or auto (default: auto)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--keep", metavar="FOLDER", help="copy scores, figures and provenance there")
    return parser.parse_args(arguments)


def _note(command, study):
    """Add the command to those that the study was made by."""
    with held(study / ".lock", f"{study} is being written", wait=True):
        path = study / "command.txt"
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        if command not in before.splitlines():
            with replacing(path) as partial:
                partial.write_text(before + command + "\n", encoding="utf-8")


def _choose(beginnings):
    """The notebooks to run, in order."""
    there = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    for beginning in beginnings:
        if not any(path.name.startswith(beginning) for path in there):
            sys.exit(f"no notebook begins with {beginning!r}; there are {', '.join(path.stem for path in there)}")
    return [path for path in there if not beginnings or path.name.startswith(tuple(beginnings))]


def _parameter(text):
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        sys.exit(f"-p {text!r}: NAME=VALUE is needed, for instance -p epochs=3")
    if name in ("preset", "data", "seed"):
        sys.exit(f"-p {text!r}: --{name} sets this")
    for read in (json.loads, ast.literal_eval):  # true as well as True
        try:
            return name, read(value)
        except (ValueError, SyntaxError):
            continue
    return name, value


def _parameters_of(notebooks, asked):
    """The names that each notebook's first cell sets; ends where a name that is asked for is in none of them."""
    import papermill  # imported late, so that a wrong argument is answered at once

    known = {notebook: set(papermill.inspect_notebook(str(notebook))) for notebook in notebooks}
    everything = set().union(*known.values())
    if unknown := set(asked) - everything:
        names = ", ".join(sorted(everything))
        sys.exit(f"-p {', '.join(sorted(unknown))}: no notebook has this parameter; they have {names}")
    return known


def _execute(notebook, target, parameters):
    """Run one notebook and keep it as it ran, also when it breaks off; returns what went wrong, or None."""
    ended = threading.Event()
    threading.Thread(target=_watch, args=(target.parents[1] / notebook.stem, ended), daemon=True).start()
    try:
        with (
            held(target.with_name(f".{notebook.stem}.lock"), f"{notebook.stem} is being run"),
            _stopping_together(),
            replacing(target) as partial,
        ):
            failure = _papermill(notebook, partial, target, parameters)
        return failure
    except Held as error:
        return f"{error}"
    finally:
        ended.set()


def _papermill(notebook, partial, target, parameters):
    import papermill
    from nbclient.exceptions import DeadKernelError
    from traitlets.config import Config

    manager = {"transport_encryption": "required", "shutdown_wait_time": 2 * GRACE}
    try:
        papermill.execute_notebook(
            str(notebook),
            str(partial),
            parameters,
            kernel_name="python3",
            cwd=str(NOTEBOOKS),
            config=Config(KernelManager=manager),
        )
    except DeadKernelError:
        return f"{notebook.name}: its kernel died (out of memory, or killed). The notebook up to there: {target}"
    except papermill.PapermillExecutionError as error:
        return (
            f"{notebook.name} failed in cell {error.exec_count} with {error.ename}: {error.evalue}\n"
            f"    {error.source.strip().splitlines()[0]}\nThe notebook up to there: {target}"
        )
    return None


@contextmanager
def _stopping_together():
    """Ctrl-C and SIGTERM go on to the kernel, which has a session of its own and saves; then all ends."""
    asked = []

    def ask(number, frame):
        if not asked:
            asked.append(number)
            for child in psutil.Process().children():
                child.terminate()
            signal.alarm(GRACE + 1)

    def end(*_):
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(RESUME if asked[0] == signal.SIGTERM else 128 + asked[0])

    handlers = {signal.SIGINT: ask, signal.SIGTERM: ask, signal.SIGALRM: end}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    except Exception:
        if not asked:
            raise
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        end()


def _watch(experiment, ended):
    """Say how far the run in training is and how long it will take, as its folder grows."""
    shown = None
    while not ended.wait(2):
        line = _progress(experiment)
        if line and line != shown:
            print(f"\n    {line}", flush=True)
            shown = line


def _progress(experiment):
    """The epochs done of the run that is being trained, and about how long the rest takes; None without one."""
    for recipe in sorted(experiment.glob("*/recipe.json")):
        run = RunFolder(recipe.parent)
        history = run.load_history()
        if run.finished or not len(history):
            continue
        epochs = read_json(recipe)["recipe"]["epochs"]
        left = (epochs - len(history)) * history["time/epoch_s"].mean()
        return f"{run.path.name}: {len(history)} of {epochs} epochs, about {_minutes(left)} left in this run"
    return None


def _report(study, keep):
    """Write the page; returns False where a damaged file was in the way."""
    import report
    import summary

    try:
        experiments = summary.load_study(study)
        page = report.write_page(study, summary.tables(experiments) if experiments else None)
        print(f"\nreport: {page}\nscores: {study / 'scores.csv'}")
        if keep:
            report.keep(study, keep)
    except (FileNotFoundError, Damaged) as error:
        print(f"no report: {error}", file=sys.stderr)
        return not isinstance(error, Damaged)
    invalid = []
    for folder in sorted(path for path in study.iterdir() if path.is_dir()):
        found = report.findings(report.load_scores(folder))
        invalid += [(folder.name, row) for row in found[found.severity == "invalid"].itertuples()]
    print(f"\n{len(invalid)} findings say that a number is invalid" + (":" if invalid else ""))
    for experiment, row in invalid:
        print(f"INVALID: {experiment}, {row.model}, {row.rows}: {row.check}: {row.why}")
    return True


def _minutes(seconds):
    return f"{int(seconds // 60)}:{int(seconds % 60):02d} min"


if __name__ == "__main__":
    sys.exit(main())
