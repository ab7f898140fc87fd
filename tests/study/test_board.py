"""TensorBoard's names of runs, and where it opens."""

import os
import re
import urllib.parse

from study import board


def run(folder, minute):
    folder.mkdir(parents=True)
    (folder / "events.out.tfevents.1.x").touch()
    os.utime(folder / "events.out.tfevents.1.x", (60 * minute, 60 * minute))


def test_runs_have_short_names_and_one_seed_is_seen_first(tmp_path):
    assert board.last_written(tmp_path) is None
    for minute, place in enumerate(
        ("full-cifar/01_cnn/pgd-seed0", "quick-shapes/01_cnn/pgd-seed1", "quick-shapes/mine/try")
    ):
        run(tmp_path / place, minute)
    run(tmp_path / "quick-shapes" / "01_cnn" / "pgd-seed0", 0)
    assert board.last_written(tmp_path) == "quick-shapes"
    shown = board.names(tmp_path, "quick-shapes")
    places = {name: folder.relative_to(tmp_path).as_posix() for name, folder in shown.items()}
    assert places == {
        "full-cifar/01/pgd": "full-cifar/01_cnn/pgd-seed0",
        "01/pgd": "quick-shapes/01_cnn/pgd-seed0",
        "01/pgd-seed1": "quick-shapes/01_cnn/pgd-seed1",
        "mine/try": "quick-shapes/mine/try",
    }
    seen = dict(urllib.parse.parse_qsl(board.FIRST_VIEW))["runFilter"]
    assert [name for name in shown if re.search(seen, name)] == ["01/pgd", "mine/try"]
    for _ in range(2):
        board.link(tmp_path / ".board" / "6006", shown)
    assert (tmp_path / ".board" / "6006" / "01" / "pgd" / "events.out.tfevents.1.x").exists()
    assert board.names(tmp_path, "quick-shapes") == shown  # its own links are no runs


def test_it_opens_where_curves_are_seen_and_lets_all_else_pass():
    said = []
    app = board.opening(lambda environ, start: [b"as it is"])
    assert app({"PATH_INFO": "/"}, lambda *answer: said.append(answer)) == [b""]
    (status, [(header, there)]) = said[0]
    assert (status, header) == ("302 Found", "Location")
    assert "accuracy%2Frobust" in there
    assert "+" not in there  # which TensorBoard does not read as a space
    for asked in ({"PATH_INFO": "/", "QUERY_STRING": there.lstrip("/?")}, {"PATH_INFO": "/data/runs"}):
        assert app(asked, None) == [b"as it is"]
