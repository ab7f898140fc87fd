"""A checksum over code, where a result must not outlive a change of what made it: methods, and what they call.

Compiled code is compared, so comments do not count. Followed are functions and classes of the user's own and of
this repository, with their defaults, what they enclose, and the functions, classes and plain values that they
name. Lists, dictionaries, arrays and tensors count where their NAME says that they stay as they are.
"""

import dis
import functools
import hashlib
import sys
import types
from pathlib import Path

import numpy as np
import torch

OURS = ("attacks", "defences", "evaluation", "models", "training")  # known by the commit in environment.json
PLACES = ("__firstlineno__", "__module__", "__doc__")  # where code stands and what it says of itself
PLAIN = (bool, int, float, str, bytes, type(None))


def of_objects(objects, functions=()):
    """Of all methods and plain class attributes of these objects' classes, and of these functions."""
    classes = {kind: None for thing in objects for kind in type(thing).__mro__ if _is_own(kind.__module__)}
    digest, seen = hashlib.sha256(), set()
    everything = [item for kind in classes for item in vars(kind).items() if item[0] not in PLACES]
    for name, value in [*everything, *((getattr(function, "__name__", ""), function) for function in functions)]:
        for part in _parts(value, seen, name):
            digest.update(f"{name} {part}".encode())
    return digest.hexdigest()[:16]


def of_strangers(objects):
    """The same for those of the objects whose class is not this repository's, as a cell's; None without any."""
    strange = [thing for thing in objects if is_strange(type(thing).__module__)]
    return of_objects(strange) if strange else None


def _file(module):
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file).resolve() if file else None


def _is_own(module):
    """Neither a library nor Python itself: what may be edited between two runs."""
    file = _file(module)
    if module == "__main__" or file is None:
        return module == "__main__"
    library = {"site-packages", "dist-packages"} & {*file.parts} or Path(sys.base_prefix).resolve() in file.parents
    return not library


def is_strange(module):
    """The user's own: a cell, a script or a module beside ours, which no commit tells of."""
    return _is_own(module) and module.split(".")[0] not in OURS


def _parts(value, seen, name=""):
    """Everything that decides what a function does, as texts that are the same in every process."""
    # What is inside a property, a static method, functools.cache; other decorators enclose what they wrap.
    if isinstance(value, functools.cached_property):
        value = value.func
    value = getattr(value, "fget", None) or getattr(value, "__func__", value)
    if not isinstance(value, (types.FunctionType, type, types.ModuleType)):
        value = getattr(value, "__wrapped__", value)
    if isinstance(value, PLAIN):
        yield repr(value)
    elif isinstance(value, types.FunctionType) and _is_own(value.__module__ or "") and id(value) not in seen:
        seen.add(id(value))
        yield from _constants(value.__code__)
        names = sorted(_globals(value.__code__) & value.__globals__.keys())
        inner = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        inner += [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
        for other in inner:
            yield from _parts(other, seen)
        for each in names:
            yield from _parts(value.__globals__[each], seen, each)
            yield from _attributes(value.__globals__[each], value.__code__, seen)
    elif isinstance(value, type) and _is_own(value.__module__) and id(value) not in seen:
        seen.add(id(value))
        for kind in value.__mro__:
            for each, part in vars(kind).items() if _is_own(kind.__module__) else ():
                if each not in PLACES and (isinstance(part, types.FunctionType) or each[:2] != "__"):
                    yield from _parts(part, seen, each)
    elif isinstance(value, functools.partial):
        yield getattr(value.func, "__qualname__", "")
        for part in (value.func, *value.args, *value.keywords.values()):
            yield from _parts(part, seen)
    elif (name.isupper() or (isinstance(value, tuple) and name[:2] != "__")) and plain_text(value) is not None:
        yield plain_text(value)


def _attributes(value, code, seen):
    """Of an own module or a namespace, such as argparse's: what of it the code names after a dot."""
    if isinstance(value, types.ModuleType) and _is_own(value.__name__):
        there = vars(value)
    elif type(value).__name__ in ("Namespace", "SimpleNamespace"):
        there = {name: part for name, part in vars(value).items() if isinstance(part, PLAIN)}
    else:
        return
    for name in sorted(_named(code) & there.keys()):
        yield from _parts(there[name], seen, name)


def plain_text(value):
    """A value that holds nothing but plain ones, arrays and tensors, as a text; None for any other."""
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, dict):
        pairs = [(repr(key), plain_text(part)) for key, part in value.items()]
        return None if any(text is None for _, text in pairs) else repr(pairs)
    if isinstance(value, (tuple, list, set, frozenset)):
        texts = [plain_text(part) for part in value]
        if any(text is None for text in texts):
            return None
        return repr(sorted(texts) if isinstance(value, (set, frozenset)) else texts)
    if isinstance(value, torch.Tensor) and not value.is_meta:
        value = value.detach().cpu()
        value = value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype != object:  # that would be addresses
        value = np.asarray(value)
        return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()[:16]}"
    return None


def _globals(code):
    """The names that are looked up outside; those after a dot are not."""
    names = {found.argval for found in dis.get_instructions(code) if found.opname == "LOAD_GLOBAL"}
    return names.union(*(_globals(inner) for inner in code.co_consts if isinstance(inner, types.CodeType)))


def _named(code):
    """All names in it, also those after a dot."""
    inner = (_named(part) for part in code.co_consts if isinstance(part, types.CodeType))
    return {*code.co_names}.union(*inner)


def _constants(code):
    yield f"{code.co_code.hex()} {code.co_names}"
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _constants(constant)
        else:
            yield str(sorted(map(repr, constant))) if isinstance(constant, frozenset) else repr(constant)
