"""The table of complaints is made of docstrings and of how their tests end."""

import re

from benchmarks import strangers

TESTS = '''
import pytest

def test_good():
    """owner/one #1: it crashes: always.

    Right: it does not.
    """

@pytest.mark.parametrize("number", [1, 2])
def test_bad(number):
    """owner/two #2, owner/three #3: the number is
    wrong."""
    assert number == 1

@pytest.mark.xfail(strict=True)
def test_known():
    """owner/four #4: this is known."""
    assert False
'''


def test_every_complaint_has_a_row_with_its_end(tmp_path, capsys):
    (tmp_path / "test_some.py").write_text(TESTS)
    assert strangers.main(["--tests", str(tmp_path), "--output", str(tmp_path)]) == 1
    table = (tmp_path / "strangers.md").read_text()
    assert "| owner/one #1 | it crashes: always. | passed |" in table
    assert "| owner/two #2, owner/three #3 | the number is wrong. | failed |" in table
    assert "| owner/four #4 | this is known. | skipped |" in table
    assert table.startswith("1 of 3")
    assert capsys.readouterr().out == table


def test_every_complaint_names_its_source():
    """Where somebody can read it: a repository and a number."""
    for (file, test), (source, complaint) in strangers.complaints(strangers.ROOT / "tests" / "strangers").items():
        assert re.search(r"/\S+ (#|PR )\d", source), (file, test)
        assert complaint.endswith((".", "?")), (file, test)
