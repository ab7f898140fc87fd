"""A checksum over code: what decides a result counts, wherever it is written; the rest does not."""

import functools
import importlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from attacks import PGD
from defences import Adversarial, Standard
from models import build
from storage.code_checksum import of_objects, of_strangers

LIMIT = 3


def helper(x):
    return x + 1


def made(body="return x", default=1, setting=2, helps=helper, wrapped=False, static=5, enclosed=1):
    """An object of a class that is made anew, differing in one thing from another."""
    names = {"helper": helps, "functools": functools, "LIMIT": LIMIT}
    exec(f"def craft(self, x, rate={default!r}):\n    {body}", names)

    def close(self):
        return enclosed

    def wrap(function):
        @functools.wraps(function)
        def inner(*arguments):
            return function(*arguments)

        return inner

    exec(f"def fixed():\n    return {static}", names)
    for name in ("craft", "fixed"):
        names[name].__module__ = __name__
    craft = wrap(names["craft"]) if wrapped else names["craft"]
    content = {"craft": craft, "setting": setting, "fixed": staticmethod(names["fixed"]), "close": close}
    return type("Mine", (), content | {"__module__": __name__})()


def other_helper(x):
    return x + 2


CHANGES = {
    "the body": {"body": "return x + 1"},
    "a constant": {"body": "return x if x else 7"},
    "a default": {"default": 2},
    "a class attribute": {"setting": 3},
    "a static method": {"static": 6},
    "what is enclosed": {"enclosed": 2},
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_decides_a_result_counts(change):
    assert of_objects([made()]) == of_objects([made()])
    assert of_objects([made(**CHANGES[change])]) != of_objects([made()])


@pytest.mark.parametrize("wrapped", [False, True])
def test_what_a_method_calls_and_names_counts_also_behind_a_decorator(wrapped, monkeypatch):
    call = {"body": "return helper(x)", "wrapped": wrapped}
    before = of_objects([made(**call)])
    assert before == of_objects([made(**call)])
    assert of_objects([made(**call, helps=other_helper)]) != before
    assert of_objects([made(body="return helper(x) + 1", wrapped=wrapped)]) != before


def test_a_name_after_a_dot_is_no_global():
    """A notebook's parameter of the same name as an attribute does not count; one that is read does."""
    names = {"steps": 3}
    exec("def craft(self):\n    return self.steps", names)
    exec("def close(self):\n    return [steps for _ in range(2)]", names)
    for function in ("craft", "close"):
        names[function].__module__ = __name__

    def checksum(function):
        return of_objects([type("Mine", (), {"loss": names[function], "__module__": __name__})()])

    before = checksum("craft"), checksum("close")
    names["steps"] = 4
    assert checksum("craft") == before[0]
    assert checksum("close") != before[1]


def test_code_of_this_repository_is_known_by_its_commit_and_that_of_others_by_itself():
    assert of_strangers([PGD(), Standard(), Adversarial(PGD()), *build("shallow_cnn", 10).modules()]) is None
    assert of_strangers([made(), PGD()]) == of_strangers([made()])
    assert of_strangers([made()]) != of_strangers([made(setting=9)])


NAMED = {  # what a method names, and how
    "a tuple": ("SIZES = ({value},)", "SIZES[0]"),
    "a list that stays": ("SIZES = [0.5, {value}]", "SIZES[1]"),
    "a dictionary that stays": ("SIZES = dict(w={value})", "SIZES['w']"),
    "a tensor that stays": ("import torch\nSIZE = torch.tensor({value})", "SIZE"),
    "an argument": ("import argparse\nargs = argparse.Namespace(w={value})", "args.w"),
    "a class": ("class Scale:\n    def __call__(self): return {value}", "Scale()()"),
    "a partial": ("import functools\ndef f(x): return x\nhalf = functools.partial(f, x={value})", "half()"),
    "a default that is a tuple": ("def f(x=({value},)): return x[0]", "f()"),
    "another module": ("import beside", "beside.f()"),
    "a function of a library": ("import torch\nact = torch.relu if {value} < 2 else torch.tanh", "act"),
    "a number of numpy": ("import numpy\nw = numpy.float32({value})", "w"),
    "an attack": ("from attacks import PGD\nattack = PGD(eps={value} / 255)", "attack"),
    "a loss": ("import torch\nloss = torch.nn.CrossEntropyLoss(label_smoothing={value} / 10)", "loss"),
    "a teacher": (
        "import torch\nnet = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False))\n"
        "torch.nn.init.constant_(net[0].weight, {value})",
        "net",
    ),
    "an object": ("class C: pass\nsettings = C()\nsettings.w = {value}", "settings.w"),
    "a dictionary that stays, with a function in it": ("SIZES = dict(w={value}, f=print)", "SIZES['w']"),
    "a default that stays": ("def f(WEIGHTS=[{value}]): return WEIGHTS", "f()"),
    "what stays in a closure": (
        "def make(WEIGHTS):\n    def f(): return WEIGHTS\n    return f\nf = make([{value}])",
        "f()",
    ),
    "an object's method": (
        "class C:\n    def __init__(self, w): self.w = w\n    def f(self): return self.w\nf = C({value}).f",
        "f()",
    ),
}


@pytest.mark.parametrize("kind", NAMED)
def test_what_a_method_names_counts(kind, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    top, expression = NAMED[kind]

    def checksum(value, log="[]"):
        (tmp_path / "beside.py").write_text(f"def f():\n    return {value}\n")
        text = f"{top.format(value=value)}\nlog = {log}\n"
        text += f"class Mine:\n    def craft(self):\n        log.append(1)\n        return {expression}\n"
        (tmp_path / "mine.py").write_text(text)
        for name in ("mine", "beside"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return of_objects([importlib.import_module("mine").Mine()])

    assert checksum(1.5) == checksum(1.5) != checksum(6.5)
    assert checksum(1.5) == checksum(1.5, log="[1, 2]")  # what is written small may be filled on the way


def test_what_a_method_counts_itself_does_not_count():
    """A run that broke off in its fifth epoch goes on, though a counter is no longer zero."""
    names = {"counter": 0, "scale": 1.0}
    exec("def loss(self):\n    global counter\n    counter += 1\n    return scale", names)
    names["loss"].__module__ = __name__

    def checksum():
        return of_objects([type("Mine", (), {"loss": names["loss"], "__module__": __name__})()])

    before = checksum()
    names["counter"] = 40
    assert checksum() == before
    names["scale"] = 2.0
    assert checksum() != before


HASHED = """
import sys
sys.path[:0] = {path!r}
from dataclasses import dataclass
from storage.code_checksum import of_objects

@dataclass(frozen=True)
class Mine:
    kind: str = "a"
    def loss(self, x):
        return x in {{"one", "two", "three", "four"}} and (lambda y: y * 2)(x)

print(of_objects([Mine()]))
"""


def test_it_is_the_same_in_every_process():
    """Sets of words have another order in each, and so have addresses."""
    script = HASHED.format(path=[str(Path(__file__).parents[2])])
    answers = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(4)
    }
    assert len(answers) == 1


@dataclass(frozen=True)
class Recursive:
    """Functions that call one another are followed once."""

    def loss(self):
        return even(3)


def even(n):
    return n == 0 or odd(n - 1)


def odd(n):
    return n != 0 and even(n - 1)


def test_circles_end():
    assert of_objects([Recursive()]) == of_objects([Recursive()])


def test_a_script_or_module_beside_ours_is_the_users_own(tmp_path, monkeypatch):
    """Also where it lies in the folder of this repository."""
    from storage import code_checksum

    monkeypatch.setattr(code_checksum, "_file", lambda module: Path(code_checksum.__file__).with_name("mine.py"))
    for module in ("__main__", "mine", "my_defences.sub"):
        assert code_checksum.is_strange(module)
    for module in ("attacks.pgd", "defences.free", "models", "training.recipe", "evaluation.flaws.models"):
        assert not code_checksum.is_strange(module)
