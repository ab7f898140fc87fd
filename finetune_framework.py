"""A source network becomes a network for the target task: a new head, and a choice of what trains.

    source = load_source("ours/cifar100-robust-w16")    # or "imagenet/resnet18", "timm/...", a run, a file
    model = adapt(source, num_classes=10, train="head")          # or "last_stage", "all", or names of layers
    describe(model)                                              # stages, parameters, what trains, rates
    export(run, "folder")                                        # files that need nothing of this repository

What does not train is frozen wholly: its weights ask for no gradient, its BatchNorm statistics and its
dropout stay in eval mode, whoever calls `.train()`. Low-rank adapters may learn on top of it.
"""

import functools
import logging
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import torch
from torch import nn

import models
from attacks import evaluating
from evaluation.per_example import on_device_of, predict
from evaluation.statistics import wilson
from models import low_rank, ours
from models.backbones import PREFIX, PREFIXES, TIMM, replace_head
from models.export import export
from models.fingerprint import structure
from models.freezing import freeze, is_frozen, thaw
from models.model import picture_for
from models.source_files import SourceError, fill
from models.timm_backbones import own_classes
from storage.atomic_files import read_json
from training.run_folder import ANEW, RunFolder
from training.weights import header_of

__all__ = ["SourceError", "adapt", "describe", "export", "load_source"]

log = logging.getLogger("study")

OURS = "ours/"
BATCH_NORM = nn.modules.batchnorm._BatchNorm


def load_source(where, architecture=None, num_classes=None, *, weights=None, check=None, **options):
    """A trained model: one of ours, torchvision's or timm's ("imagenet/resnet18", "timm/..."), a run, a file.

    It is in eval mode. "ours/cifar100-robust-w16" and its like lie in models/weights/, each with a card that says
    what it is worth; a name that is not there is answered with those that are.
    A file, safetensors or saved by torch, needs `architecture` (a name for `models.build`) and the `num_classes`
    that it was trained for. The state dict in it is found, whatever stands before its names; where there are
    several, `weights` is the key of one. A normaliser that it holds becomes the model's; where it holds none, the
    log says what is assumed. Nothing is unpickled but tensors and plain values.

    check: a split with labels of the source's own classes; the log says how accurate it is there. Raises
    SourceError for files that do not fit, and for a source at chance on `check`; WeightsError where a download
    fails.
    """
    model = _loaded(str(where), architecture, num_classes, weights, options).eval()
    if check is not None:
        _measure(model, check, where)
    return model


def _loaded(where, architecture, num_classes, weights, options):
    given = architecture, num_classes, weights, options
    if where.startswith(PREFIX):
        if any(given[:3]):
            raise SourceError(
                f"{where}: its name says what it is, so it takes no architecture, classes or weights"
            )
        return models.build(where, 1000, **options)
    if where.startswith(TIMM):
        if architecture or weights:
            raise SourceError(f"{where}: its name says what it is, so it takes no architecture and no weights")
        return models.build(where, num_classes or own_classes(where.removeprefix(TIMM)), **options)
    if where.startswith(OURS):
        return _ours(where.removeprefix(OURS), *given)
    path = Path(where).expanduser()
    if architecture is None and path.name == "weights.safetensors" and (path.parent / "recipe.json").exists():
        path = path.parent
    if path.is_dir() and any(given):
        raise SourceError(f"{path} is a folder: a run's recipe.json says what it is, so it takes only `check`")
    if (path / "recipe.json").exists():
        return _from_run(path)
    if path.is_dir():
        raise SourceError(f"{path} is no run: it has no recipe.json")
    if not path.exists():
        known = ", ".join(OURS + name for name in ours.names())
        raise SourceError(
            f"{path.absolute()} does not exist: a run's folder, a file of weights, {PREFIX}<name>, {TIMM}<name> "
            f"or {known} is needed"
        )
    if architecture is None or num_classes is None:
        raise SourceError(f"{path} holds weights only: say which architecture and num_classes they belong to")
    model = from_spec({"name": architecture, "num_classes": num_classes} | options)
    fill(model, path, weights, said=options)
    return model


def _measure(model, split, where):
    """Say how accurate a source is; raises SourceError where it knows no more than the commonest class."""
    logits = predict(on_device_of(split, model), split)
    if logits.shape[1] != split.num_classes:
        raise SourceError(
            f"{where} knows {logits.shape[1]} classes and {split.name} has {split.num_classes}: check= wants "
            "pictures of the source's own classes, in their order"
        )
    right, n = int((logits.argmax(1) == split.labels).sum()), len(split)
    chance = int(split.labels.bincount().max()) / n
    found = f"{where} is right on {100 * right / n:.1f} % of {n} pictures of {split.name}"
    if wilson(right, n)[0] <= chance:
        raise SourceError(
            f"{found}, where always saying one class gives {100 * chance:.1f} %: are these its weights, its "
            "classes in this order, its normaliser (mean=, std=), its size of pictures (resize=)?"
        )
    log.info("%s", found)


def _ours(name, *options):
    if any(options):
        raise SourceError(f"{OURS}{name}: its card says what it is, so it takes no architecture and no options")
    try:
        return ours.load(name)
    except KeyError as error:
        raise SourceError(error.args[0]) from None


def _from_run(path):
    if not (path / "weights.safetensors").exists():
        raise SourceError(f"{path} is not finished: run its cell again, it goes on where it was")
    recipe = read_json(path / "recipe.json", ANEW)
    there = header_of(path / "weights.safetensors")[1]
    try:
        with torch.device("meta"):  # it takes no memory until it is known to fit
            model = from_spec(recipe["model"])
        kept = model.state_dict()
        if any(name not in kept for name, _ in model.named_buffers()):  # made with the network, and in no file
            model = from_spec(recipe["model"])
    except SourceError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, RuntimeError) as error:
        raise SourceError(f"{path} describes no network that can be built ({error}). {ANEW}") from error
    for name, value in model.state_dict().items():
        if there.get(name) != value.shape:
            raise SourceError(
                f"{path}: recipe.json asks for {name!r} of shape {tuple(value.shape)}, weights.safetensors has "
                f"{there.get(name, 'none')}: they do not belong together. {ANEW}"
            )
    if structure(model) != recipe.get("structure"):
        raise SourceError(
            f"{path} is of a network that was changed after models.build() and adapt(): recipe.json cannot make "
            "it again. Build and change it the same way, then call train() with this folder: it loads the run"
        )
    if next(model.parameters()).is_meta:
        model.to_empty(device="cpu")
    RunFolder(path).load_result(model)
    return model


def from_spec(spec):
    """The model that a recipe.json describes, with fresh weights. Raises SourceError for models built by hand."""
    if not isinstance(spec, dict):
        raise SourceError(
            f"the model {spec!r} was not made by models.build, so it cannot be made again from its name. Make it "
            "yourself, and call train() with this folder: it loads the run"
        )
    fresh = {"pretrained": False} if spec["name"].startswith(PREFIXES) else {}
    model = models.build(**{key: value for key, value in spec.items() if key != "adapted"} | fresh)
    for adapted in spec.get("adapted", []):
        model = adapt(model, **adapted)
    return model


def adapt(source, num_classes, train="all", *, seed=0, rates=None, rank=None, norms=None):
    """A copy of `source` with a fresh head for `num_classes`, of which only a part trains.

    `num_classes=None` keeps the head that is there. So probe-then-all (linear probing, then fine-tuning: Kumar
    et al. 2022, arXiv:2202.10054) is two trainings, each with the defence that it likes:

        probe = train(adapt(source, 10, train="head"), data, recipe, folder)
        model = adapt(probe.model, None, train="all")

    train: "head"; "last_stage", everything after the resolution last falls, or what timm calls so, which of a ViT
    is the last block; "all"; or a list of names of layers (`describe` shows them; "head" stands for the head). The
    head always trains with "head", "last_stage" and "all". `rates` maps names of layers, or "head", to multiples
    of the recipe's learning rate; the longest name that fits counts. `rank` gives every convolution and linear
    layer that is frozen a low-rank adapter of that rank, which trains (LoRA: Hu et al. 2021, arXiv:2106.09685),
    but for torchvision's attention, whose weights are none of a layer that is called; adapting again makes the
    adapters part of the weights first. `norms` "frozen" freezes every BatchNorm, also where the layers around it
    train; "adapted" lets every BatchNorm train and follow the target's statistics, also
    where these are frozen.
    The new head and the adapters depend on `seed` alone. Raises ValueError for unknown names, for choices that
    change nothing in this network, or where nothing would train.
    """
    if num_classes is not None:
        models.check_num_classes(num_classes)
    if norms not in (None, "frozen", "adapted"):
        raise ValueError(f"norms={norms!r}: None, 'frozen' or 'adapted' is needed")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise ValueError(f"rank={rank!r}: None or a whole number of at least 1 is needed")
    model = models.copied(models.model_of(source))
    grey = picture_for(model)
    model.head = model.find_head(grey)
    for module in list(model.requires_grad_(True).modules()):
        low_rank.merge(module)
        thaw(module)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if num_classes is not None:
            replace_head(model.network, model.head, num_classes)
        leaves = _leaves(model, grey, num_classes)
        wanted = _chosen(leaves, model, train)
        chosen = _with_norms(wanted, leaves, norms)
        _freeze_layers(leaves, chosen)
        _freeze_between(model.network, leaves, wanted)
        if rank is not None:
            _add_adapters(leaves, chosen, rank)
    model.rates = _checked_rates(model, rates or {})
    adapted = {"num_classes": num_classes, "train": train, "seed": seed, "rates": rates}
    adapted |= {name: value for name, value in (("rank", rank), ("norms", norms)) if value is not None}
    if isinstance(model.spec, dict):
        model.spec = model.spec | {"adapted": [*model.spec.get("adapted", []), adapted]}
    return model.to(memory_format=models.habits(model)[0])


def _with_norms(chosen, leaves, norms):
    """The names of the leaves that train, when BatchNorm has been asked for or excluded."""
    if norms is None:
        return chosen
    found = {name for name, (module, _) in leaves.items() if isinstance(module, BATCH_NORM)}
    if not found:
        raise ValueError(f"norms={norms!r}: this network has no BatchNorm")
    return chosen | found if norms == "adapted" else chosen - found


def _add_adapters(leaves, chosen, rank):
    """A low-rank adapter for every frozen layer whose weight is that of a convolution or a linear layer."""
    kinds = nn.Linear, nn.modules.conv._ConvNd
    frozen = [module for name, (module, _) in leaves.items() if name not in chosen and isinstance(module, kinds)]
    if not frozen:
        raise ValueError(f"rank={rank}: no convolution or linear layer is frozen, so there is nothing to adapt")
    for module in frozen:
        low_rank.add(module, rank)


def _leaves(model, grey, num_classes=None):
    """Layers, in the order a picture passes them: {name: (module, side of its output)}.

    They have no children, but for a BatchNorm that holds its activation, as timm's do.
    """
    seen, within = {}, ()

    def note(name, module, inputs, output):
        side = output.shape[-1] if isinstance(output, torch.Tensor) and output.ndim == 4 else None
        seen[name] = (module, side)

    with ExitStack() as hooks, evaluating(model), torch.no_grad():
        for name, module in model.network.named_modules():
            if name.startswith(within):
                continue
            last = next(module.children(), None) is None and ".parametrizations" not in name
            if isinstance(module, BATCH_NORM):
                last, within = True, (*within, f"{name}.")
            if last or low_rank.is_adapted(module):
                hooks.enter_context(module.register_forward_hook(functools.partial(note, name)))
        count = model(grey).shape[1]
    if num_classes not in (None, count):
        raise ValueError(
            f"with a head {model.head!r} for {num_classes} classes the network gives {count} logits: is another "
            "layer its head? models.wrap(network, head=...) names it"
        )
    return seen


def _weighted(leaves):
    """The names of the leaves that have weights."""
    return [name for name, (module, _) in leaves.items() if next(module.parameters(), None) is not None]


def _chosen(leaves, model, train):
    """The names of the leaves that train."""
    head = model.head
    if train == "all":
        return set(leaves)
    if train == "head":
        return {head}
    if train in ("last_stage", "last-stage"):  # as the notebooks' runs are called
        return set(_last_stage_of_timm(leaves, model.network) or _last_stage(leaves, head)) | {head}
    if isinstance(train, str) or not train:
        raise ValueError(f"train={train!r}: 'head', 'last_stage', 'all' or a list of layers' names is needed")
    chosen = set()
    for wanted in train:
        layer = head if wanted == "head" else wanted
        found = {name for name in leaves if name == layer or name.startswith(f"{layer}.")}
        if not found:
            raise ValueError(f"train names {wanted!r}, which is no layer; {_at_the_top(leaves)} and 'head'")
        chosen |= found
    if not any(weight.numel() for name in chosen for weight in leaves[name][0].parameters()):
        raise ValueError(f"train={train!r}: these layers have no weights, so nothing would train")
    return chosen


def _last_stage(leaves, head):
    """The layers with weights after the resolution has fallen for the last time, from the feature maps' size."""
    weighted = _weighted(leaves)
    maps = [name for name in weighted if name != head and leaves[name][1] is not None]
    final = leaves[maps[-1]][1] if maps else None
    first = next((name for name in maps if leaves[name][1] == final), weighted[0])
    if first == weighted[0]:
        raise ValueError(
            "train='last_stage': this network's resolution never falls; name the layers (see describe): "
            f"{_at_the_top(weighted)}"
        )
    return weighted[weighted.index(first) :]


def _last_stage_of_timm(leaves, network):
    """The layers with weights after the last stage but one of a network of timm, which lists its stages."""
    stages = getattr(network, "feature_info", ()) if type(network).__module__.startswith("timm.") else ()
    weighted = _weighted(leaves)
    before = [name for name in weighted if len(stages) > 1 and name.startswith(f"{stages[-2]['module']}.")]
    return weighted[weighted.index(before[-1]) + 1 :] if before else []


def _at_the_top(leaves):
    return f"at the top there are {', '.join(dict.fromkeys(name.split('.')[0] for name in leaves))}"


def _freeze_layers(leaves, chosen):
    """Freeze what is not chosen; layers without weights, such as dropout, only before the first that trains."""
    weighted, trains_before = _weighted(leaves), False
    for name, (module, _) in leaves.items():
        if name not in chosen and (name in weighted or isinstance(module, BATCH_NORM) or not trains_before):
            freeze(module)
        trains_before = trains_before or (name in chosen and name in weighted)


def _freeze_between(network, leaves, chosen):
    """Weights outside the layers that are called, such as a class token, train as what is around them.

    They hang on a parent, or on a layer that its parent reads without calling it. They train where every
    layer with weights in the nearest parent trains, and are frozen elsewhere.
    """
    weighted = _weighted(leaves)
    for name, module in network.named_modules():
        if name in leaves:
            continue
        parent = name
        while parent and not any(leaf.startswith(f"{parent}.") for leaf in weighted):
            parent = parent.rpartition(".")[0]
        around = {leaf for leaf in weighted if not parent or leaf.startswith(f"{parent}.")}
        if not around <= chosen:
            for weight in module.parameters(recurse=False):
                weight.requires_grad_(False)
        inside = {leaf for leaf, _ in leaves.values()} & set(module.modules())
        if not around & chosen and all(is_frozen(leaf) for leaf in inside):
            freeze(module)


def _checked_rates(model, rates):
    names = {name for name, _ in model.network.named_modules()}
    checked = {}
    for name, rate in rates.items():
        layer = model.head if name == "head" else name
        if layer not in names:
            raise ValueError(f"rates names {name!r}, which is no layer of this network")
        if not 0 < rate < float("inf"):
            raise ValueError(f"rates[{name!r}]={rate!r}: a number above 0 is needed")
        if not any(weight.requires_grad for weight in model.network.get_submodule(layer).parameters()):
            raise ValueError(f"rates[{name!r}]={rate!r}: this layer is frozen, so no rate changes anything")
        checked[layer] = float(rate)
    return checked


def describe(model):
    """A row a layer with weights: parameters, how many train, BatchNorm's mode, multiple of the learning rate."""
    model = models.model_of(model)
    rows, rates = [], getattr(model, "rates", {})
    grey = picture_for(model)
    leaves = _leaves(model, grey)
    try:
        head = model.find_head(grey)
    except ValueError:  # it is shown without one
        head = None
    for name, module in model.network.named_modules():
        count = sum(weight.numel() for weight in module.parameters(recurse=False))
        if count == 0:
            continue
        layer, _, part = name.partition(".parametrizations.weight")
        mark = " (low rank)" if part else " (head)" if name == head else ""
        trains = any(weight.requires_grad for weight in module.parameters(recurse=False))
        norm = isinstance(module, nn.modules.batchnorm._NormBase)
        rows.append(
            {
                "layer": layer + mark,
                "side": leaves.get(layer, (module, None))[1] or "",
                "parameters": count,
                "trains": trains,
                "BatchNorm": ("fixed" if is_frozen(module) else "moves") if norm else "",
                "rate": models.rate_of(name, rates) if trains else 0.0,
            }
        )
    return pd.DataFrame(rows)
