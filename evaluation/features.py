"""Where is robustness lost? What an attack does to a network, layer by layer.

    table = through_layers(model, data.test.first(200), PGD(steps=20), source=source)

Everything here is measured, nothing drawn: transfer_figures.py draws it.
"""

from contextlib import ExitStack, contextmanager

import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from attacks import evaluating
from attacks.base import logit_gradient
from attacks.pgd import lengths
from evaluation.batch_sizes import BATCH
from evaluation.per_example import in_float32, on_device_of
from evaluation.testing import seed_for

PIXELS = "pixels"


def through_layers(model, split, attack, *, source=None, seed=0):
    """What an attack does to the features of each layer: a table, a row a layer, from the pixels to the logits.

    shift       mean length of the change under the attack, as a multiple of the features' own length
    noise       the same under uniform noise in ±ε, in L2 of the length ε: what any change of that size does
    cka         likeness of clean and attacked features, 1 where they are alike up to rotation and scale
    alignment   mean cosine of the loss's gradients, for these features, at the picture and at a noisy one: near 1
                the loss is a slope, near 0 its gradient means nothing an ε further (at the pixels: gradient
                alignment, Andriushchenko & Flammarion 2020, arXiv:2007.02617)
    source_cka  likeness of the clean features with those of `source`, where there is one

    Likeness is linear CKA (Kornblith et al. 2019, arXiv:1905.00414) with the unbiased estimate of its parts, which
    does not rise with the number of features. All pictures count, also those that the network gets wrong. A few
    hundred do; at least four are needed. A layer is a child of the network that has weights, or one of its stages.
    """
    if len(split) < 4:
        raise ValueError(f"{split.name}: {len(split)} pictures; CKA needs at least 4")
    if attack.eps == 0:
        raise ValueError(f"{attack} changes nothing, so there is nothing to measure")
    model = on_device_of(split, model)
    clean, attacked, noisy, alignments = _collect(model, split, attack, seed)
    before = {} if source is None else _features_of(on_device_of(split, source), split)
    rows = {}
    for name, features in clean.items():
        rows[name] = {
            "shift": _shift(features, attacked[name]),
            "noise": _shift(features, noisy[name]),
            "cka": cka(features, attacked[name]),
            "alignment": float(alignments[name].mean()),
        }
        if before:
            rows[name]["source_cka"] = cka(features, before[name]) if name in before else float("nan")
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.attrs |= {"split": split.name, "n": len(split), "attack": repr(attack)}
    return table


def cka(one, other):
    """Linear CKA of two sets of features (N, ...) of the same N examples, from the unbiased estimate of HSIC.

    1 where they are alike up to rotation and scale; near 0, and at times just below, where they have nothing in
    common (Song et al. 2012; Nguyen et al. 2021, arXiv:2010.15327). At least 4 examples are needed.
    """
    if len(one) != len(other) or len(one) < 4:
        raise ValueError(f"{len(one)} and {len(other)} examples: as many of each, and at least 4, are needed")
    one, other = _gram(one), _gram(other)
    both = _hsic(one, one) * _hsic(other, other)
    return float(_hsic(one, other) / both.sqrt()) if both > 0 else float("nan")


def _gram(features):
    """The inner products of all pairs of examples, those with themselves left out: (N, N), float64."""
    flat = features.flatten(1).double()
    flat = flat - flat.mean(0)  # changes nothing in exact arithmetic, and keeps digits
    return (flat @ flat.T).fill_diagonal_(0)


def _hsic(one, other):
    """The unbiased estimate of the Hilbert-Schmidt independence criterion, up to a factor."""
    n = len(one)
    product = (one * other).sum() + one.sum() * other.sum() / ((n - 1) * (n - 2))
    return product - 2 * (one.sum(0) @ other.sum(0)) / (n - 2)


def _shift(features, changed):
    lengths = features.flatten(1).norm(dim=1).clamp_min(1e-12)
    return float(((changed - features).flatten(1).norm(dim=1) / lengths).mean())


def layers_of(model):
    """The layers to look at: {name: module}, children of the network with weights; of a row of stages, each."""
    layers = {}
    for name, child in getattr(model, "network", model).named_children():
        row = isinstance(child, nn.Sequential) and all(isinstance(part, nn.Sequential) for part in child)
        parts = {f"{name}.{index}": stage for index, stage in child.named_children()} if row else {name: child}
        layers |= {name: layer for name, layer in parts.items() if next(layer.parameters(), None) is not None}
    return layers


@contextmanager
def _watching(model):
    """Inside, what each layer gives is noted, in order: {name: tensor}."""
    seen = {}

    def note(name, out):
        if not isinstance(out, torch.Tensor) or not out.is_floating_point():
            return None
        seen[name] = out
        return out.clone()  # goes on in its place: the next layer may work in place

    with ExitStack() as hooks:
        for name, layer in layers_of(model).items():
            hooks.enter_context(layer.register_forward_hook(lambda _, __, out, name=name: note(name, out)))
        yield seen


def _collect(model, split, attack, seed):
    """Features of all pictures, clean, attacked and noisy, by layer; and the cosines (N,) of gradients."""
    found = []
    generator = torch.Generator(split.labels.device).manual_seed(seed_for(attack, seed))
    with evaluating(model), in_float32(split):
        for images, labels in split.batches(BATCH[split.labels.device.type]):
            noise = torch.empty_like(images).uniform_(-attack.eps, attack.eps, generator=generator)
            if attack.norm == "L2":
                noise *= attack.eps / lengths(noise)
            noisy = (images + noise).clamp(0, 1)
            adversarial = attack.craft(model, images, labels, generator)
            here, slopes = _with_gradients(model, images, labels)
            near, others = _with_gradients(model, noisy, labels)
            with _watching(model) as seen, torch.no_grad():
                model(adversarial)
            cosines = {
                name: cosine_similarity(slope.flatten(1), others[name].flatten(1))
                for name, slope in slopes.items()
            }
            found.append((here, {PIXELS: adversarial} | seen, near, cosines))
    return map(_joined, zip(*found, strict=True))


def _joined(batches):
    """What was found batch by batch, a list of {name: tensor}, as one dictionary."""
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def _with_gradients(model, images, labels):
    """What each layer gives, from the pixels on, and the gradient of the loss there."""
    points = images.detach().clone().requires_grad_()
    with _watching(model) as seen, torch.enable_grad():
        logits = model(points)
    places, uphill = {PIXELS: points} | seen, logit_gradient(logits.detach(), labels)[0]
    slopes = torch.autograd.grad(logits, list(places.values()), uphill, allow_unused=True, materialize_grads=True)
    features = {name: place.detach() for name, place in places.items()}
    return features, dict(zip(places, slopes, strict=True))


def _features_of(model, split):
    """What each layer gives for all pictures."""
    found = []
    with evaluating(model), in_float32(split), torch.no_grad(), _watching(model) as seen:
        for images, _ in split.batches(BATCH[split.labels.device.type]):
            model(images)
            found.append({PIXELS: images} | seen)
    return _joined(found)
