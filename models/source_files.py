"""Weights from files that others wrote: which tensors are a network's, under whatever names, and which are not.

A file fits a network where it holds every tensor of it, and nothing else that would change what it computes.
"""

import itertools
import logging
import re
from collections import Counter
from dataclasses import dataclass
from pickle import UnpicklingError

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import models
from models import backbones
from models.normalise import of_bytes
from storage.atomic_files import first_line

log = logging.getLogger("study")

COUNTER = "num_batches_tracked"  # of BatchNorm: older files have none, and nothing is computed from it
MEAN = ("mean", "mu", "new_mean", "pixel_mean", "image_mean")
STD = ("std", "sigma", "new_std", "pixel_std", "image_std")
# Numbers that checkpoints hold beside their tensors: plain values, no code.
SCALAR = np.float64().__reduce__()[0]
NUMBERS = [np.dtype, SCALAR, (SCALAR, "numpy.core.multiarray.scalar"), *{type(np.dtype(k)) for k in "?bhilBHILfd"}]


class SourceError(RuntimeError):
    """The source cannot be used; the message names it and what to do."""


@dataclass
class Set:
    """Weights that lie at one place of a file: the tensors beside them too, and what stands before their names."""

    place: str
    file: dict
    prefix: str
    wanted: dict

    @property
    def label(self):
        return ".".join(filter(None, (self.place, self.prefix.rstrip("."))))

    @property
    def tensors(self):
        return {name: self.file[self.prefix + name] for name in self.wanted if self.prefix + name in self.file}

    @property
    def missing(self):
        return [n for n in self.wanted if self.prefix + n not in self.file and not n.endswith(COUNTER)]

    @property
    def unlike(self):
        return [name for name, value in self.tensors.items() if value.shape != self.wanted[name].shape]

    @property
    def fits(self):
        return not self.missing and not self.unlike


def fill(model, path, key=None, said=()):
    """Load what a file holds into a model of `models.build`, its normaliser too, or say which one is assumed.

    `key` says which, where the file holds several sets of weights; `said` names the options that are the user's.
    Raises SourceError for a file that does not fit.
    """
    content = read(path)
    best, left, normaliser = _match(content, model, path, key)
    if best.missing or best.unlike or left:
        raise SourceError(_misfit(best, left, content, path, model))
    model.network.load_state_dict(best.wanted | best.tensors)
    if normaliser is not None:
        _take_normaliser(model, normaliser, path, said)
    elif not {"mean", "std"} <= set(said):
        assumed = (tuple(round(value, 4) for value in model.spec[name]) for name in ("mean", "std"))
        log.warning(
            "%s holds no normaliser: mean %s and std %s are assumed; mean= and std= say others", path, *assumed
        )


def _take_normaliser(model, normaliser, path, said):
    for name, values in zip(("mean", "std"), normaliser, strict=True):
        if np.allclose(values, model.spec[name], rtol=0, atol=1e-6):
            continue
        if name in said:
            raise SourceError(
                f"{path} holds a normaliser with {name}={values}, not {model.spec[name]}: leave it out"
            )
        model.spec[name] = values
    model.normalise = models.Normalise(model.spec["mean"], model.spec["std"])


def read(path):
    """What is in a file of weights; only tensors and plain values are ever unpickled."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise SourceError(f"{path} cannot be read as weights ({_trouble(path, error)})") from error


def _trouble(path, error):
    """Why a file is not read, and the remedy; never torch's, which is to run the code in it."""
    if not isinstance(error, OSError):
        with open(path, "rb") as file:
            if file.read(100).lstrip().startswith(b"<"):
                return "it is a web page, as failed downloads leave them. Fetch it again"
    held = re.search(r"GLOBAL (\S+) was not", str(error))
    if held or "weights_only" in first_line(error):
        what = f"it holds {held[1]}" if held else "it holds more than tensors"
        return f"{what}: a pickle with code in it is never opened. Save the state_dict alone, where it was written"
    return f"{first_line(error)}; it is cut off, or of another kind. Fetch it again"


def _match(content, model, path, key=None):
    """The set of weights that is the network's, what is left beside it, and the normaliser."""
    found, partial = _sets(content, model.network.state_dict())
    if not found:
        raise SourceError(f"{path} holds no tensors")
    best = _the_one(found, partial, path, key)
    used = {each.prefix + name for each in found if each.file is best.file for name in each.tensors}
    auxiliary = backbones.WITH_AUXILIARY.get(model.spec["name"].removeprefix(backbones.PREFIX), ())
    spare = tuple(f"{best.prefix}{name}." for name in auxiliary)
    left = {name: value for name, value in best.file.items() if not (name in used or name.startswith(spare))}
    left = {name: value for name, value in left.items() if not _is_count(name, value)}
    above = [
        tensors
        for place, tensors in _with_tensors(content)
        if place != best.place and (not place or best.place.startswith(f"{place}."))
    ]
    normaliser = _normaliser(left, path) or next(filter(None, (_normaliser(dict(t), path) for t in above)), None)
    return best, left, normaliser


def _sets(content, wanted):
    """The places where the wanted tensors lie, else the one that has most of them; and those that have many."""
    found = []
    for place, tensors in _with_tensors(content):
        counts = Counter({"": len(tensors) / 1e9})  # has it none, the largest is spoken of
        for name in tensors:
            parts = name.split(".")
            ends = (".".join(parts[begin:]) for begin in range(len(parts)))
            counts.update(name.removesuffix(end) for end in ends if end in wanted)
        found += [(count, Set(place, tensors, prefix, wanted)) for prefix, count in counts.items()]
    found.sort(key=lambda pair: -pair[0])
    fitting = [each for _, each in found if each.fits]
    partial = [each for count, each in found if count > len(wanted) / 3 and not each.fits]
    return fitting or [each for _, each in found[:1]], partial


def _with_tensors(content, place=""):
    """The dictionaries in a file that hold tensors, with the keys that lead there."""
    if not isinstance(content, dict):
        return
    tensors = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if tensors:
        yield place, tensors
    for key, value in content.items():
        yield from _with_tensors(value, f"{place}.{key}" if place else str(key))


def _the_one(found, partial, path, key):
    """The set of that key, or the only one; copies count once. Averaged weights may lack what is no weight."""
    labels = ", ".join(repr(each.label) for each in found)
    if key is None and found[0].fits and partial:
        others = ", ".join(repr(each.label) for each in partial)
        raise SourceError(
            f"{path} holds several sets of weights, {labels} and, in part, {others}: say which with "
            f"weights={found[0].label!r}"
        )
    if key is not None:
        found = [one for one in found if f"{one.label}.".startswith(f"{key}.")]
        if not found:
            raise SourceError(f"{path} holds no fitting weights under {key!r}; there are {labels}")
    first, *others = found
    for other in others:
        if not all(torch.equal(value, other.tensors[name]) for name, value in first.tensors.items()):
            raise SourceError(
                f"{path} holds several sets of weights, {labels}: say which with weights={first.label!r}"
            )
    return first


def _is_count(name, value):
    """Is this a count of steps? Nothing is computed from it."""
    return (value.ndim == 0 and not value.is_floating_point()) or name.split(".")[-1] == COUNTER


def _normaliser(left, path):
    """The mean and deviation per channel among tensors that are no weights; they are taken from these."""
    pairs = {}
    for name in [name for name in left if name.rpartition(".")[2] in MEAN]:
        start, _, kind = name.rpartition(".")
        other = ".".join(filter(None, (start, STD[MEAN.index(kind)])))
        if other in left and left[name].numel() == left[other].numel() in (1, 3):
            pairs[name] = [left.pop(each).flatten().float().tolist() for each in (name, other)]
    if not pairs:
        return None
    (mean, std), *others = pairs.values()
    if any(other != [mean, std] for other in others):
        raise SourceError(f"{path} holds several normalisers that differ: {', '.join(pairs)}")
    if of_bytes(mean, std):
        mean, std = ([value / 255 for value in values] for values in (mean, std))
    return mean, std


def _misfit(best, left, content, path, model):
    """Why a file does not fit, and what would."""

    def some(names):
        names = list(names)
        return f"({', '.join(map(repr, names[:3]))}{', ...' if len(names) > 3 else ''})"

    faults = []
    if best.missing:
        faults.append(f"misses {len(best.missing)} of {len(best.wanted)} tensors {some(best.missing)}")
    if left:
        faults.append(f"holds {len(left)} that it has no use for {some(left)}")
    for name in best.unlike[:1]:
        shapes = tuple(best.tensors[name].shape), tuple(best.wanted[name].shape)
        faults.append(
            f"has {len(best.unlike)} of another shape ({name!r} of shape {shapes[0]} where {shapes[1]} is needed)"
        )
    fitting = _what_fits(best, content, model)
    hint = f"It fits {fitting}" if fitting else "Another architecture, width, num_classes?"
    return f"{path} does not fit {model.spec['name']}: it {', and '.join(faults)}. {hint}"


def _what_fits(best, content, model):
    """In words, the first of a network's kin that a file fits; None where there is none."""
    head = best.file.get(f"{best.prefix}{model.head}.weight")
    stem = next((value for name, value in best.file.items() if name.endswith("stem.0.weight")), None)
    classes = [model.spec["num_classes"]] + ([len(head)] if head is not None else [])
    widths = {model.spec.get("width", 64), len(stem)} if stem is not None else ()
    kin = _kin(model.spec["name"], models.NETWORKS if stem is not None else None)
    for name, count, width in itertools.product(kin, dict.fromkeys(classes), (None, *widths)):
        options = {"pretrained": False} if name.startswith(backbones.PREFIXES) else {}
        options |= {} if width is None else {"width": width}
        try:
            with torch.device("meta"):
                other = models.build(name, count, **options)
            found, left, _ = _match(content, other, "")
        except (TypeError, ValueError, SourceError):  # it has no width, so many classes are none, several sets
            continue
        if found.fits and not left:
            return f"{name} with num_classes={count}" + ("" if width is None else f" and width={width}")
    return None


def _kin(name, known=None):
    """Networks, of the known ones or of all, whose names share a word with this one's; itself first."""

    def words(name):
        return set(re.findall("[a-z]{3,}", name.removeprefix(backbones.PREFIX)))

    if known is None:
        from torchvision import models as published  # imported late: it costs 1.4 s

        known = [*models.NETWORKS, *(backbones.PREFIX + one for one in published.list_models(module=published))]
    return [name, *(other for other in known if words(other) & words(name) and other != name)]
