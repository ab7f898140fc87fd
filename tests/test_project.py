"""The project's own rules: which way imports point, what is locked, what must not appear."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import utils

ROOT = Path(__file__).parents[1]
MOST_LINES = 420

# The house, from the ground up: a wing may import from the floors below it, and from nothing beside or above it.
FLOORS = [
    {"storage": "files that are whole or not there; where things lie; what code a result came from"},
    {
        "processes": "this machine and its processes: devices, seeds, signals, several at once",
        "models": "networks: pixels go in, logits come out",
    },
    {"attacks": "FGSM, PGD and their kin, AutoAttack", "loaders": "data sets as checked files, and their splits"},
    {
        "defences": "what a training step minimises",
        "utils": "start(), load_data(): the session and the data",
        "evaluation": "what a network withstands, and whether to believe it",
    },
    {"training": "what one training is made of"},
    {"trainer": "train()", "finetune_framework": "load_source(), adapt(), describe()"},
    {"study": "many runs, the notebooks, what comes out"},
    {"benchmarks": "speed, faults, verdicts, measured"},
]
FLOOR = {wing: number for number, wings in enumerate(FLOORS, 1) for wing in wings}
MODULES = [*ROOT.glob("*.py"), *sorted(path for wing in FLOOR for path in ROOT.glob(f"{wing}/**/*.py"))]


def owner(path):
    """The wing of a file: a folder, or one of the three doors."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def plan():
    rows = [f"{n}  {wing:<20}{what}" for n, wings in enumerate(FLOORS, 1) for wing, what in wings.items()]
    return "\nfloor, wing, subject: an import goes down\n" + "\n".join(reversed(rows))


def imported(path):
    """Our own wings that a file imports from, wherever in it, with the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno} says where from in full"
            names = [node.module]
        yield from ((name.split(".")[0], node) for name in names if name.split(".")[0] in FLOOR)


def test_the_top_has_three_doors():
    doors = {path.name for path in ROOT.glob("*.py")}
    assert doors == {"trainer.py", "utils.py", "finetune_framework.py"}, plan()


def test_every_folder_with_code_is_a_wing():
    wings = {owner(path) for path in ROOT.glob("*/**/*.py") if not path.relative_to(ROOT).parts[0].startswith(".")}
    assert wings - {"tests", "runs", "data"} == {wing for wing in FLOOR if (ROOT / wing).is_dir()}, plan()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_the_floors(path):
    own = owner(path)
    for other, node in imported(path):
        place = f"{path.relative_to(ROOT)}:{node.lineno} imports {other}"
        assert other == own or FLOOR[other] < FLOOR[own], f"{place}{plan()}"
        hidden = [alias.name for alias in node.names if alias.name.startswith("_")]
        assert other == own or not hidden, f"{place}: {', '.join(hidden)} is for {other} alone"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_about_one_thing(path):
    lines = len(path.read_text().splitlines())
    assert lines <= MOST_LINES, f"{lines} lines: are there two subjects in it?"


# Tests that are of no single module.
OF_MANY = {"project", "properties", "gpu", "lab", "notebooks", "notebook_life", "twins", "benchmarks"}


def test_tests_lie_as_the_code_does():
    for path in (ROOT / "tests").rglob("test_*.py"):
        place, name = path.relative_to(ROOT / "tests").parent, path.stem.removeprefix("test_")
        if place.name == "strangers":  # public complaints, of any wing
            continue
        assert (ROOT / place).is_dir(), f"{path} is of no wing"
        there = {module.stem.strip("_") for module in (ROOT / place).glob("*.py")}
        assert name in there | OF_MANY, f"{path} is of no module"


def test_the_readme_shows_the_plan():
    """The tree has each wing and each door once, in the order of the floors, in four to eight words."""
    tree = re.search(r"## The map\n.*?```\n(.*?)\n\n", (ROOT / "README.md").read_text(), re.S).group(1)
    rows = [re.fullmatch(r"(\w+)(?:/|\.py) +(.*)", line).groups() for line in tree.splitlines()]
    shown = [name for name, _ in rows if name != "notebooks"]
    assert sorted(shown) == sorted(FLOOR.keys() - {"benchmarks"}), plan()
    assert [FLOOR[name] for name in shown] == sorted((FLOOR[name] for name in shown), reverse=True), plan()
    assert all(4 <= len(words.split()) <= 8 for _, words in rows)


PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def anchors(text):
    """What a link may name in a page: its headings, as a code host writes them."""
    headings = re.findall(r"^#+ (.*)", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
        place, _, anchor = "".join(link).partition("#")
        if not place.startswith("https:"):
            target = (page.parent / place) if place else page
            assert target.exists(), place
            assert not anchor or anchor in anchors(target.read_text()), f"{place}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_code_in_a_page_can_be_read_and_imports_what_there_is(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                there = vars(importlib.import_module(node.module))
                assert not [alias.name for alias in node.names if alias.name not in there]


def test_the_readme_is_short_and_names_every_preset_and_page():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert len(text) <= 9000
    assert tuple(re.findall(r"^\| `(\w+)` \|", text, re.M)) == utils.PRESETS
    assert {path.name for path in PAGES[3:]} == set(
        re.findall(r"\(docs/(\w+\.md)\)", text.partition("## Where more is")[2])
    )


def test_the_cell_for_colab_asks_pip_for_all_that_running_needs_but_torch(monkeypatch, tmp_path):
    """Run beside this repository, as if it had been cloned, with pip's commands written down."""
    cell = re.search(r"```python\n(REPOSITORY.*?)```", (ROOT / "docs" / "setup.md").read_text(), re.S).group(1)
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(subprocess, "run", lambda command, check: asked.append(command))
    (tmp_path / "adversarial-transfer").symlink_to(ROOT)
    exec(cell, {})
    packages, alone = (command[command.index("--quiet") + 1 :] for command in asked)
    assert sys.path[0] == str(ROOT)
    names = {re.match(r"[\w-]+", package).group() for package in packages}
    assert {"safetensors", "pandas", "scipy", "tensorboard", "psutil"} <= names
    assert not [name for name in names if name.startswith(("torch", "jupyter"))]
    assert alone == [
        "--no-deps",
        *re.findall(r"^torchattacks==\S+", (ROOT / "requirements.txt").read_text(), re.M),
    ]


def test_every_wing_says_what_it_is_for():
    for wing in {owner(path) for path in MODULES if path.parent != ROOT}:
        assert ast.get_docstring(ast.parse((ROOT / wing / "__init__.py").read_text())), f"{wing} has no face"


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
    importing = [
        str(path.relative_to(ROOT))
        for path in MODULES
        if re.search(r"^\s*(import|from) ray\b", path.read_text(), re.M)
    ]
    assert importing == ["processes/ray_cluster.py"]


@pytest.mark.parametrize(
    "path", [*MODULES, *ROOT.glob("tests/**/*.py")], ids=lambda path: str(path.relative_to(ROOT))
)
def test_nothing_is_unpickled_and_no_curve_makes_a_phantom_run(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = ast.unparse(node.func)
            assert node.func.attr not in ("add_scalars", "add_hparams"), called
            if called == "torch.load":
                assert any(keyword.arg == "weights_only" for keyword in node.keywords), path
            assert called != "pickle.loads" or "tests" in path.parts
