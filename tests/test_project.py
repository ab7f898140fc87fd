"""The project's own rules: which way imports point, what is locked, what must not appear."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A module may import what stands before it, never what stands after.
LAYERS = [
    {"parallel"},
    {"code_checksum", "files", "shapes", "stopping", "graphs", "attacks"},
    {"models", "data_files", "launch"},
    {"scheduler"},
    {"utils"},
    {"machine"},
    {"runs"},
    {"defences", "curves", "precision", "unfinished", "scores"},
    {"recipes", "checks", "outcomes"},
    {"audit"},
    {"evaluation", "guard"},
    {"steps", "flaws", "diagnostics", "features"},
    {"trainer", "cluster", "live"},
    {"grid"},
    {"finetune_framework"},
    {"figures"},
    {"report", "transfer_figures"},
    {"summary"},
    {"study"},
]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
PACKAGES = ("models", "attacks", "defences", "flaws")
MODULES = [*ROOT.glob("*.py"), *(path for name in PACKAGES for path in ROOT.glob(f"{name}/*.py"))]


def imported(path):
    """Our own modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        yield from {name.split(".")[0] for name in names} & LAYER.keys()


def owner(path):
    return path.parent.name if path.parent != ROOT else path.stem


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    own = owner(path)
    assert own in LAYER, f"{own} has no place in the order of modules"
    for other in imported(path):
        assert other == own or LAYER[other] < LAYER[own], f"{own} imports {other}"


def test_every_module_has_a_test():
    tests = {path.stem for path in (ROOT / "tests").glob("test_*.py")}
    untested = {owner(path) for path in MODULES} - {name.removeprefix("test_") for name in tests}
    assert untested <= {"files", "runs", "curves", "stopping", "steps", "unfinished"}  # tested through others


@pytest.mark.parametrize("path", sorted(ROOT.glob("benchmarks/[a-z]*.py")), ids=lambda path: path.stem)
def test_a_benchmark_is_a_command_or_serves_one(path):
    """Either `python -m` starts it, through its main(), or another one imports it."""
    module = importlib.import_module(f"benchmarks.{path.stem}")
    if "__main__" in path.read_text():
        assert callable(module.main)
    else:
        others = "".join(other.read_text() for other in path.parent.glob("*.py") if other != path)
        assert re.search(rf"from benchmarks(\.| import .*\b){path.stem}\b", others), f"nobody uses {path.name}"


@pytest.mark.parametrize("file", ["requirements", "requirements-cluster"])
def test_the_lock_holds_every_requirement(file):
    locked = dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^ ;\n]+)", (ROOT / f"{file}.lock").read_text(), re.M))
    for line in (ROOT / f"{file}.txt").read_text().splitlines():
        if requirement := re.match(r"([A-Za-z0-9_.-]+)(>=|==)([0-9.]+)", line):
            name, _, least = requirement.groups()
            assert name in locked
            assert tuple(map(int, locked[name].split(".")[:2])) >= tuple(map(int, least.split(".")[:2])), name
    assert "://" not in (ROOT / f"{file}.lock").read_text()


def test_the_cluster_has_the_packages_of_everybody_and_ray():
    everybody, cluster = (
        set((ROOT / f"{name}.lock").read_text().splitlines()) for name in ("requirements", "requirements-cluster")
    )
    assert everybody < cluster
    assert any(line.startswith("ray==") for line in cluster - everybody)
    importing = [path.name for path in MODULES if re.search(r"^\s*(import|from) ray\b", path.read_text(), re.M)]
    assert importing == ["cluster.py"]


@pytest.mark.parametrize(
    "path", [*MODULES, *ROOT.glob("tests/*.py")], ids=lambda path: str(path.relative_to(ROOT))
)
def test_nothing_is_unpickled_and_no_curve_makes_a_phantom_run(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = ast.unparse(node.func)
            assert node.func.attr not in ("add_scalars", "add_hparams"), called
            if called == "torch.load":
                assert any(keyword.arg == "weights_only" for keyword in node.keywords), path
            assert called != "pickle.loads" or path.parent.name == "tests"
