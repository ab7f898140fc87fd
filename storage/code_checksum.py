"""A checksum over code, where a result must not outlive a change of what made it: methods, and what they call.

Compiled code is compared, so comments do not count. Followed are functions of the user's own and of this
repository, with their defaults, what they enclose, and the functions and plain values that they name.
"""

import dis
import hashlib
import sys
import types
from pathlib import Path

OURS = ("attacks", "defences", "evaluation", "models", "training")  # known by the commit in environment.json
PLACES = ("__firstlineno__", "__module__", "__doc__")  # where code stands and what it says of itself
PLAIN = (bool, int, float, str, bytes, type(None))


def of_objects(objects, functions=()):
    """Of all methods and plain class attributes of these objects' classes, and of these functions."""
    classes = {kind: None for thing in objects for kind in type(thing).__mro__ if _is_own(kind.__module__)}
    digest, seen = hashlib.sha256(), set()
    everything = [item for kind in classes for item in vars(kind).items() if item[0] not in PLACES]
    for name, value in [*everything, *((function.__name__, function) for function in functions)]:
        for part in _parts(value, seen):
            digest.update(f"{name} {part}".encode())
    return digest.hexdigest()[:16]


def of_strangers(objects):
    """The same for those of the objects whose class is not this repository's, as a cell's; None without any."""
    strange = [thing for thing in objects if _is_strange(type(thing).__module__)]
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


def _is_strange(module):
    """The user's own: a cell, a script or a module beside ours, which no commit tells of."""
    return _is_own(module) and module.split(".")[0] not in OURS


def _parts(value, seen):
    """Everything that decides what a function does, as texts that are the same in every process."""
    # What is inside a property, a static method, functools.cache; other decorators enclose what they wrap.
    value = getattr(value, "fget", None) or getattr(value, "__func__", value)
    if not isinstance(value, types.FunctionType):
        value = getattr(value, "__wrapped__", value)
    if isinstance(value, PLAIN):
        yield repr(value)
    elif isinstance(value, types.FunctionType) and _is_own(value.__module__ or "") and id(value) not in seen:
        seen.add(id(value))
        yield from _constants(value.__code__)
        names = sorted(_globals(value.__code__) & value.__globals__.keys())
        inner = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        inner += [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
        inner += [value.__globals__[name] for name in names]
        for other in inner:
            if isinstance(other, (*PLAIN, types.FunctionType)):
                yield from _parts(other, seen)


def _globals(code):
    """The names that are looked up outside; those after a dot are not."""
    names = {found.argval for found in dis.get_instructions(code) if found.opname == "LOAD_GLOBAL"}
    return names.union(*(_globals(inner) for inner in code.co_consts if isinstance(inner, types.CodeType)))


def _constants(code):
    yield f"{code.co_code.hex()} {code.co_names}"
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _constants(constant)
        else:
            yield str(sorted(map(repr, constant))) if isinstance(constant, frozenset) else repr(constant)
