"""TensorBoard on all runs, opened where curves are seen at once: python -m study.board --port 6006

A run is called 01/pgd there if it is of the study that was last written to when this began, else
quick-shapes/01/pgd. Other seeds than the first keep their number, 01/pgd-seed1. TensorBoard's filter of runs hides
these and other studies, until it is cleared.
"""

import argparse
import json
import re
import shutil
import time
import urllib.parse

from storage.paths import runs_root

REFRESH = 5.0  # seconds
PINNED = ("accuracy/clean", "accuracy/robust", "loss/train")
FIRST_VIEW = urllib.parse.urlencode(
    {
        "pinnedCards": json.dumps([{"plugin": "scalars", "tag": tag} for tag in PINNED], separators=(",", ":")),
        "runFilter": r"^[^/]+/(?!.*-seed\d+$)[^/]+$",
        "smoothing": 0,
    }
)


def names(runs, current):
    """What the run folders below `runs` are called, by name; those of the study `current` without its name."""
    shown = {}
    for folder in sorted({events.parent for events in _events(runs)}):
        study, experiment, run = folder.relative_to(runs).parts
        number = re.sub(r"^(\d+)_.*", r"\1", experiment)
        place = "" if study == current else f"{study}/"
        free = (
            f"{place}{number}/{re.sub(r'-seed[0-9]+$', '', run)}",
            f"{place}{number}/{run}",
            f"{study}/{experiment}/{run}",
        )
        shown[next(name for name in free if name not in shown)] = folder
    return shown


def last_written(runs):
    """The name of the study that was last written to, None without one."""
    latest = max(_events(runs), key=lambda path: path.stat().st_mtime, default=None)
    return latest and latest.relative_to(runs).parts[0]


def _events(runs):
    return list(runs.glob("[!.]*/[!.]*/[!.]*/events.out.tfevents.*"))


def link(board, shown):
    """Lay a link below the folder `board` for each name that has none."""
    for name, folder in shown.items():
        path = board / name
        if not path.is_symlink():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(folder)


def opening(app):
    """A WSGI app that opens on the first view, and then is that app."""

    def answer(environ, start_response):
        if environ["PATH_INFO"] == "/" and not environ.get("QUERY_STRING"):
            start_response("302 Found", [("Location", f"/?{FIRST_VIEW}")])
            return [b""]
        return app(environ, start_response)

    return answer


def main():
    from tensorboard import program  # imported late: it costs a second

    parser = argparse.ArgumentParser(prog="python -m study.board", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=6006)
    port = parser.parse_args().port
    runs, current = runs_root(), None
    board = runs / ".board" / str(port)
    shutil.rmtree(board, ignore_errors=True)
    board.mkdir(parents=True)
    server = program.TensorBoard(server_class=lambda app, flags: program.WerkzeugServer(opening(app), flags))
    server.configure(logdir=str(board), host="127.0.0.1", port=port, reload_interval=REFRESH)
    server.launch()
    while True:
        current = current or last_written(runs)
        link(board, names(runs, current))
        time.sleep(REFRESH)


if __name__ == "__main__":
    main()
