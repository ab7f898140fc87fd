"""The main job: run the notebooks headless, one after the other, then write the report.

    python -m study                          every notebook, the preset that suits this machine
    python -m study 01 --preset full         one notebook, by the beginning of its name
    python -m study --data cifar -p epochs=3 any parameter of the notebooks' first cell
    python -m study --on local               runs and tests at once, on all GPUs or cores; --on ray: on a cluster

report.html, scores.csv and notebooks/, as they ran, land in runs/<preset>-<data>/. Ends with 1 if a notebook
failed; after Ctrl-C (130) or SIGTERM (75) the same command goes on where it was.
"""

import argparse
import ast
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext, suppress

import psutil

import loaders
import utils
from processes.child_processes import end_with_starter
from processes.machine import environment
from processes.run_queue import Task, run_all, run_command
from processes.stopping import GRACE, RESUME
from storage.atomic_files import Damaged, Held, held, replacing
from study import many_runs, progress_table
from study.progress_table import minutes

NOTEBOOKS, SELF = utils.ROOT / "notebooks", [sys.executable, "-m", "study"]


def main(arguments=None):
    options = _parse(arguments)
    notebooks = _choose(options.notebooks)
    asked = dict(_parameter(text) for text in options.parameter)
    known = _parameters_of(notebooks, {} if options.part else asked)
    target = _place(options.copy_to) if options.copy_to else None
    try:
        session = utils.start("notebooks", preset=options.preset, seed=options.seed, data=options.data)
    except (ValueError, utils.DataError) as error:
        sys.exit(str(error))
    if not options.notebooks:
        notebooks = _without_long(notebooks, session.preset)
    study = session.runs.parent
    data = session.dataset("cifar10") if session.own else session.family
    values = {"preset": session.preset, "data": data, "seed": session.seed} | asked
    parameters = {path: {n: v for n, v in values.items() if n in known[path]} for path in notebooks}
    if options.part:
        end_with_starter()
        return 1 if [path for path in notebooks if not _ran(path, study, parameters[path])] else 0
    options.preset, options.data = session.preset, data  # for other machines, which may have a GPU
    _fetch(session)
    _note(shlex.join(["python", "-m", "study", *(sys.argv[1:] if arguments is None else arguments)]), study)
    begun = time.monotonic()
    failures = _at_once(notebooks, options, study) if options.on else _one_by_one(parameters, study)
    if not _report(study, options.keep):
        failures.append("the report")
    if target and not _copy(study, target):
        failures.append("the copy")
    failed = f"; failed: {', '.join(failures)}" if failures else ""
    print(f"done in {minutes(time.monotonic() - begun)}{failed}")
    return 1 if failures else 0


def _fetch(session):
    """Have CIFAR, or another target, before the first notebook starts; ends where it cannot be had."""
    try:
        for name in map(session.dataset, ("cifar10", "cifar100")):
            if not name.startswith("shapes"):
                loaders.load(name, session.data)
    except utils.DataError as error:
        remedy = "Without a download, on pictures that the program draws: make study DATA=shapes"
        sys.exit(f"{error}\n{remedy}" if name in loaders.DATASETS else str(error))


def _one_by_one(parameters, study):
    """Run the notebooks with their parameters; returns the names of those that failed."""
    print("watch its curves: make lab", flush=True)
    expected = utils.lengths(study.name).get("seconds", {})
    line = progress_table.Line(study, [notebook.stem for notebook in parameters], expected)
    return [path.stem for path, its_own in parameters.items() if not _ran(path, study, its_own, line)]


def _at_once(notebooks, options, study):
    """Run all notebooks at once, each after those that it reads; returns the names of those that failed."""
    os.environ["STUDY_ON"] = options.on
    os.environ["STUDY_PER_GPU"] = str(options.per_gpu)
    try:
        pool = many_runs.chosen()
    except (ValueError, ImportError) as error:
        sys.exit(f"--on {options.on}: {error}")
    print(f"on {pool}; watch its curves: make lab", flush=True)
    shutil.rmtree(study / ".jobs", ignore_errors=True)  # what was at work when the last one was stopped
    table, codes = progress_table.Table(study, pool), {}
    last = [notebook for notebook in notebooks if notebook.stem.startswith("99")]  # it reads all the others
    try:
        for some in ([notebook for notebook in notebooks if notebook not in last], last):
            tasks = {notebook.stem: _task(notebook, some, options, study) for notebook in some}
            codes |= run_all(tasks, pool, table.show)
    except (KeyboardInterrupt, SystemExit) as stop:
        _aside("stopped; the same command goes on from here")
        raise SystemExit(getattr(stop, "code", None) or 128 + signal.SIGINT) from None
    for name in (failed := [name for name, code in codes.items() if code]):
        print(f"{name}:\n{(study / 'notebooks' / f'{name}.log').read_text()[-2000:]}", file=sys.stderr)
    return failed


def _task(notebook, notebooks, options, study):
    """A notebook as a task: this command, for it alone."""
    command = [*SELF, notebook.stem, "--part"]
    command += ["--preset", options.preset, "--data", options.data, "--seed", str(options.seed)]
    command += [word for text in options.parameter for word in ("-p", text)]
    output = study / "notebooks" / f"{notebook.stem}.log"
    output.parent.mkdir(parents=True, exist_ok=True)
    after = _metadata(notebook).get("after")
    after = after if after in [other.stem for other in notebooks] else None
    note = study / ".jobs" / f"{notebook.stem}-notebook.json"
    return Task(run_command, (command, output), note, after, light=True)


def _parse(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", help="beginnings of notebooks' names; without any, all run")
    parser.add_argument("--preset", default="auto", help="smoke, quick, hour, full or auto (default: auto)")
    parser.add_argument(
        "--data", default="auto", help="cifar, shapes, stl10, svhn, auto (the default) or folder:PATH"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument(
        "--on",
        metavar="WHERE",
        help="all at once: local, local:3 (processes), ray, ray:HOST:PORT or ray://HOST:PORT",
    )
    parser.add_argument("--per-gpu", type=int, default=1, metavar="N", help="with --on: runs that share a GPU")
    parser.add_argument(
        "--copy-to", metavar="URL", help="copy the study there at the end: s3://..., any of fsspec's"
    )
    parser.add_argument("--part", action="store_true", help=argparse.SUPPRESS)  # what --on calls for a notebook
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


def _without_long(notebooks, preset):
    """Those that run in this preset where none is asked for by name; says which are left out."""
    left = [path for path in notebooks if preset in _metadata(path).get("not_in", ())]
    if left:
        print(f"not in the preset {preset}: {', '.join(path.stem for path in left)}; named alone, each runs in it")
    return [path for path in notebooks if path not in left]


def _metadata(notebook):
    return json.loads(notebook.read_text(encoding="utf-8"))["metadata"]


def _parameter(text):
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        sys.exit(f"-p {text!r}: NAME=VALUE is needed, for instance -p epochs=3")
    if name in ("preset", "data", "seed"):
        sys.exit(f"-p {text!r}: --{name} sets this")
    for read in (json.loads, ast.literal_eval):  # true as well as True
        with suppress(ValueError, SyntaxError):
            return name, read(value)
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


def _ran(notebook, study, parameters, line=None):
    """Run one notebook and keep it as it ran, also when it breaks off; says what went wrong, or returns True."""
    target = study / "notebooks" / notebook.name
    failed = target.parent / "failed" / notebook.name
    try:
        with (
            line.of(notebook.stem) if line else nullcontext(),
            held(target.with_name(f".{notebook.stem}.lock"), f"{notebook.stem} is being run"),
            _stopping_together(),
            replacing(target) as partial,
        ):
            failed.unlink(missing_ok=True)
            there = failed if _whole(target) else target  # what ran well before stays
            failure = _papermill(notebook, partial, there, parameters)
            if failure and there is failed:
                failed.parent.mkdir(exist_ok=True)
                shutil.copyfile(partial, failed)
                shutil.copyfile(target, partial)
    except Held as error:
        failure = error
    if failure:
        print(failure, file=sys.stderr)
        if line:
            line.took.pop(notebook.stem, None)  # its time says nothing of the pace
    return not failure


def _whole(notebook):
    """Is there a notebook that ran to its end?"""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        return all(cell["metadata"]["papermill"]["status"] == "completed" for cell in cells)
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # somebody's own, or damaged
        return False


def _papermill(notebook, partial, target, parameters):
    import papermill
    from jupyter_client import AsyncKernelManager
    from traitlets.config import Config

    class Manager(AsyncKernelManager):
        """Of a kernel whose words beside its cells, also those of Jupyter when it ends, are for when it dies."""

        async def start_kernel(self, **options):
            return await super().start_kernel(stderr=words, **options)

    commit = environment("cpu")["commit"]
    manager = {"transport_encryption": "required", "shutdown_wait_time": 2 * GRACE}
    with tempfile.TemporaryFile("w+", errors="replace") as words:
        try:
            book = papermill.execute_notebook(
                str(notebook),
                str(partial),
                parameters,
                progress_bar=False,
                kernel_name="python3",
                cwd=str(NOTEBOOKS),
                config=Config(KernelManager=manager),
                kernel_manager_class=Manager,
            )
            book.metadata.papermill["commit"] = commit  # its runs may be older
            papermill.iorw.write_ipynb(book, str(partial))
        except papermill.PapermillExecutionError as error:
            return (
                f"{notebook.name} failed in cell {error.exec_count} with {error.ename}: {error.evalue}\n"
                f"    {error.source.strip().splitlines()[0]}\nThe notebook up to there: {target}"
            )
        except RuntimeError as error:  # nbclient's, and its DeadKernelError
            words.seek(0)
            last = "".join(words.readlines()[-20:]) or f"{error}\n"
            return (
                f"{notebook.name}: its kernel died (out of memory, killed, or it could not start):\n{last}"
                f"The notebook up to there: {target}"
            )
    return None


def _aside(text):
    """Say it below the line that a terminal shows."""
    print("\n" * sys.stdout.isatty() + text, file=sys.stderr)


@contextmanager
def _stopping_together():
    """Ctrl-C and SIGTERM go on to the kernel, which has a session of its own and saves; then all ends."""
    asked = []

    def ask(number, frame):
        if not asked:
            asked.append(number)
            for child in psutil.Process().children():
                child.terminate()
            signal.alarm(GRACE)

    def overdue(*_):
        """End a kernel that is still there, so that its notebook is kept; a second later, end without it."""
        if "killed" in asked:
            end()
        asked.append("killed")
        for child in psutil.Process().children():
            child.kill()
        signal.alarm(1)

    def end():
        _aside("stopped; the same command goes on from here")
        raise SystemExit(RESUME if asked[0] == signal.SIGTERM else 128 + asked[0])

    handlers = {signal.SIGINT: ask, signal.SIGTERM: ask, signal.SIGALRM: overdue}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    except Exception as error:  # of a kernel that was told to end, or of what is written then
        if not asked:
            raise
        _aside(f"while stopping: {type(error).__name__}: {error}")
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        end()


def _place(url):
    """A file system of fsspec and the path there; ends where it cannot be used."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        sys.exit(f"--copy-to {url}: {error}")


def _copy(study, target):
    """Copy all that is not hidden; returns False where the other side does not take it."""
    files, path = target
    try:
        for source in sorted(source for source in study.rglob("*") if source.is_file()):
            name = source.relative_to(study).as_posix()
            if not any(part.startswith(".") for part in name.split("/")):
                there = f"{path.rstrip('/')}/{name}"
                files.makedirs(there.rsplit("/", 1)[0], exist_ok=True)
                files.put_file(str(source), there)
    except Exception as error:  # whatever its library raises
        print(f"not all is copied to {path}: {error}. The study is whole in {study}", file=sys.stderr)
        return False
    print(f"copied to {files.unstrip_protocol(path)}")
    return True


def _report(study, keep):
    """Write the page and say what matters most; returns False where a damaged file was in the way."""
    from study import answers, kept, report, tables

    try:
        experiments = answers.load_study(study)
        page = report.write_page(study)
    except (FileNotFoundError, Damaged) as error:
        print(f"no report: {error}", file=sys.stderr)
        return not isinstance(error, Damaged)
    if report.is_smoke(study):
        print("\neverything runs; so short, networks learn nothing, and no number counts")
        print(f"report: {page.resolve().as_uri()}")
    else:
        if "-shapes" in study.name:
            print(
                "\nOn drawn pictures, which are easy: a demonstration of the method, no result about photographs"
            )
        print("", *(answers.highlights(experiments) or ["no question is answered by these runs"]), sep="\n")
        print(f"\nfigure: {report.telling(study) or 'none'}\nreport: {page.resolve().as_uri()}")
        print(f"scores: {study / 'scores.csv'}\n", *tables.invalid(experiments), sep="\n")
    try:
        if keep:
            kept.keep(study, keep)
    except (ValueError, Damaged, OSError) as error:
        print(f"not all is kept in {keep}: {error}", file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
