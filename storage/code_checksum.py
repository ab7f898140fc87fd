"""A checksum over code, where a result must not outlive a change of what made it: methods, and what they call.

Compiled code is compared, so comments do not count. Followed are functions and classes of the user's own and of
this repository, with their defaults, what they enclose, and the functions, classes, objects and plain values that
they name: of an object its class and its public plain attributes, of a network its weights, too. Lists,
dictionaries, arrays and tensors count where their NAME says that they stay as they are.
"""

import dis
import functools
import hashlib
import sys
import types
from dataclasses import is_dataclass
from pathlib import Path

import numpy as np
import torch

OURS = ("attacks", "defences", "evaluation", "models", "training")  # known by the commit in environment.json
PLACES = ("__firstlineno__", "__module__", "__doc__")  # where code stands and what it says of itself
PLAIN = (bool, int, float, str, bytes, type(None))
MOVING = ("running_mean", "running_var", "num_batches_tracked")  # while a network is shown pictures
NUMBERS = (*PLAIN, np.generic, torch.dtype, torch.device)
FUNCTIONS = (types.BuiltinFunctionType, types.FunctionType)


def of_objects(objects, functions=()):
    """Of all methods and plain class attributes of these objects' classes, and of these functions."""
    classes = {kind: None for thing in objects for kind in type(thing).__mro__ if _is_own(kind.__module__)}
    digest, seen = hashlib.sha256(), set()
    everything = [item for kind in classes for item in vars(kind).items() if item[0] not in PLACES]
    for name, value in [*everything, *((getattr(function, "__name__", ""), function) for function in functions)]:
        for part in _parts(value, seen, name):
            digest.update(f"{name} {part}".encode())
    return digest.hexdigest()[:16]


def of_value(value):
    """The same of what an object names, of its class and its public plain attributes; None where it has none."""
    parts = list(_parts(value, set()))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16] if parts else None


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
    value = getattr(value, "fget", None) or value
    if isinstance(value, types.MethodType):
        yield from _parts(value.__self__, seen)
    value = getattr(value, "__func__", value)
    if not isinstance(value, (types.FunctionType, type, types.ModuleType)):
        value = getattr(value, "__wrapped__", value)
    if isinstance(value, NUMBERS):
        yield repr(value)
    elif isinstance(value, types.FunctionType) and _is_own(value.__module__ or ""):
        yield from _function(value, seen)
    elif isinstance(value, FUNCTIONS):
        yield f"{value.__module__}.{value.__qualname__}"
    elif isinstance(value, type):
        for kind in value.__mro__ if _is_own(value.__module__) and _is_new(value, seen) else ():
            for each, part in vars(kind).items() if _is_own(kind.__module__) else ():
                if each not in PLACES and (isinstance(part, types.FunctionType) or each[:2] != "__"):
                    yield from _parts(part, seen, each)
    elif isinstance(value, functools.partial):
        yield getattr(value.func, "__qualname__", "")
        for part in (value.func, *value.args, *value.keywords.values()):
            yield from _parts(part, seen)
    elif name.isupper() or (isinstance(value, tuple) and name[:2] != "__"):
        yield from _kept(value, seen, name)
    elif _is_object(value) and _is_new(value, seen):
        yield from _object(value, seen)


def _is_new(value, seen):
    return id(value) not in seen and not seen.add(id(value))


def _function(value, seen):
    """What it computes, what it has with it, and what it names; but for what it sets itself, such as a count."""
    if not _is_new(value, seen):
        return
    code = value.__code__
    yield from _constants(code)
    defaults = value.__defaults__ or ()
    named = [*zip(code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount], defaults, strict=True)]
    named += (value.__kwdefaults__ or {}).items()
    cells = zip(code.co_freevars, value.__closure__ or (), strict=True)
    named += [(name, cell.cell_contents) for name, cell in cells if cell != types.CellType()]
    for name, other in named:
        yield from _parts(other, seen, name)
    for name in sorted((_globals(code) - _globals(code, "STORE_GLOBAL")) & value.__globals__.keys()):
        yield from _parts(value.__globals__[name], seen, name)
        yield from _attributes(value.__globals__[name], code, seen)


def _kept(value, seen, name):
    """What stays as it is: all of it; part by part where some parts are no plain values."""
    text = plain_text(value)
    if text is not None:
        yield text
    elif isinstance(value, dict):
        for key, part in value.items():
            yield repr(key)
            yield from _parts(part, seen, name)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _parts(part, seen, name)
    elif _is_object(value) and _is_new(value, seen):
        yield from _object(value, seen)


def _is_object(value):
    """Of a class of the user's own or of this repository, a dataclass, or a network or a loss."""
    return _is_own(type(value).__module__) or is_dataclass(value) or isinstance(value, torch.nn.Module)


def _object(value, seen):
    """Its class, its public attributes that are no containers; of a network its weights and layers."""
    yield type(value).__qualname__
    yield from _parts(type(value), seen)
    attributes = getattr(value, "__dict__", {})
    for name, part in sorted(attributes.items()):
        if name[0] != "_" and name != "training":
            yield from _parts(part, seen, name)
    if isinstance(value, torch.nn.Module):
        for name, part in (*value._parameters.items(), *value._buffers.items()):
            if name not in MOVING:
                yield f"{name} {plain_text(part)}"
        for part in value._modules.values():
            yield from _parts(part, seen)


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


def _globals(code, what="LOAD_GLOBAL"):
    """The names that are looked up outside, or set there; those after a dot are not."""
    names = {found.argval for found in dis.get_instructions(code) if found.opname == what}
    return names.union(*(_globals(inner, what) for inner in code.co_consts if isinstance(inner, types.CodeType)))


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
