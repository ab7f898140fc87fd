"""What decides a run, as plain values: two runs are the same where these are."""

import functools
from dataclasses import fields, is_dataclass

import torch

from models.fingerprint import fingerprint, structure
from storage import code_checksum


def identity_of(model, data, recipe):
    """Everything that decides the result of a run."""
    pictures = {"pictures": [data.train.checksum, data.val.checksum]}
    if not data.train.mirror:
        pictures["mirror"] = False
    if any(code := [data.train.code, data.val.code]):
        pictures["code"] = code
    return {
        "recipe": as_dict(recipe),
        "model": getattr(model, "spec", type(model).__name__),
        "structure": structure(model),
        "initial_weights": fingerprint(model),
        "data": data.provenance | pictures,
    }


def as_dict(settings):
    """Settings as plain values for JSON: dataclasses with their class under "kind", models by their weights.

    Where a class is the user's own, its code counts too: who edits its method asks for another run.
    """
    if is_dataclass(settings):
        values = [(field, getattr(settings, field.name)) for field in fields(settings)]
        inner = {
            field.name: as_dict(value)
            for field, value in values
            if field.metadata.get("written", True) or value != field.default  # what older runs could not say
        }
        code = code_checksum.of_strangers([settings])
        if code:
            inner |= _beside_fields(settings)
        return {"kind": type(settings).__name__} | inner | ({"code": code} if code else {})
    if isinstance(settings, torch.nn.Module):
        weights = {"weights": fingerprint(settings), "structure": structure(settings)}
        return {"kind": type(settings).__name__} | weights
    if isinstance(settings, dict):
        return {key: as_dict(value) for key, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return [as_dict(value) for value in settings]
    if settings is None or isinstance(settings, (bool, int, float, str)):
        return settings
    raise TypeError(
        f"{settings!r} cannot be written into recipe.json; make {type(settings).__name__} a frozen dataclass, "
        "so that its settings say which run this is"
    )


def _beside_fields(settings):
    """Plain attributes of somebody's own class that are no fields: its __init__ may set what it likes."""
    known = {field.name for field in fields(settings)}
    return {
        name: value
        for name, value in vars(settings).items()
        if name not in known
        and name[0] != "_"
        and isinstance(value, code_checksum.PLAIN[:4])
        and not isinstance(getattr(type(settings), name, None), functools.cached_property)
    }


def differences(there, here, prefix=""):
    """Yield (field, value there, value here) wherever two nested dicts differ."""
    for key in sorted(there.keys() | here.keys()):
        old, new = there.get(key), here.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{prefix}{key}.")
        elif old != new and (old == old or new == new):  # NaN is NaN
            yield f"{prefix}{key}", old, new
