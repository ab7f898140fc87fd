"""What people complained of in public about libraries of this kind, tried here: tests/strangers as a table.

python -m benchmarks.strangers      runs these tests and writes benchmarks/results/strangers.md
"""

import argparse
import ast
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.suite import RESULTS
from storage.atomic_files import replacing
from storage.paths import ROOT


def complaints(folder):
    """Source and complaint, from the docstrings: {(file, test): [source, complaint]}."""
    found = {}
    for path in sorted(folder.glob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if getattr(node, "name", "").startswith("test_"):
                first = (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ")
                found[path.stem, node.name] = first.partition(": ")[::2]
    return found


def endings(folder):
    """How each test ended: {(file, test): "failed", "passed" or "skipped"}, the worst of its cases."""
    with tempfile.TemporaryDirectory() as place:
        target, ended = Path(place) / "ended.xml", {}
        subprocess.run([sys.executable, "-m", "pytest", "--junit-xml", target, folder], cwd=ROOT, check=False)
        for case in ElementTree.parse(target).iter("testcase"):
            key = case.get("classname").split(".")[-1], case.get("name").split("[")[0]
            tags = {part.tag for part in case}
            how = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
            ended[key] = min(how, ended.get(key, how))
    return ended


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=Path, default=ROOT / "tests" / "strangers", help="their folder")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder (default: benchmarks/results)")
    options = parser.parse_args(arguments)
    ended = endings(options.tests)
    rows = [[*said, ended[key]] for key, said in complaints(options.tests).items()]
    good = sum(row[-1] == "passed" for row in rows)
    lines = [f"{good} of {len(rows)} complaints kept as tests do not hold here."]
    lines += ["", "| source | complaint | test |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    with replacing(options.output / "strangers.md") as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return int(good < len(rows))


if __name__ == "__main__":
    sys.exit(main())
