"""What can be known to be wrong before anything of a run is written."""

import logging

import torch
from torch import nn

from attacks import evaluating
from evaluation.per_example import predict
from models import copied, fitted, taken
from training.step import shrunk

log = logging.getLogger("study")


def check(model, data, recipe, name="this run"):
    """Raise ValueError or TypeError for a model that does not fit the data or the recipe; say what looks wrong."""
    if recipe.batch_size > len(data.train):
        few = max(1, len(data.train) // 4)
        raise ValueError(
            f"batch_size={recipe.batch_size}: there are only {len(data.train)} training pictures; "
            f"Recipe(batch_size={few}) would be four steps an epoch"
        )
    if torch.is_autocast_enabled(data.train.labels.device.type):
        raise ValueError(
            "train() was called inside torch.autocast, of which the run's files would not tell: call it outside; "
            f"Recipe(precision={recipe.precision!r}) says what it computes in"
        )
    if low := {weight.dtype for weight in model.parameters()} & {torch.float16, torch.bfloat16}:
        raise ValueError(
            f"the weights are {low.pop()}, in which small updates are lost: train model.float(); the recipe's "
            "precision decides what it computes in"
        )
    outputs = predict(model, data.val.first(2)).shape[1]  # raises where there are too few
    if outputs > data.num_classes:
        log.warning(
            "%s: the network has %d outputs for %d classes: adapt() gives it a head for these",
            *(name, outputs, data.num_classes),
        )
    images, _ = next(data.val.batches(2))
    _in_training_mode(model, images[: recipe.batch_size], recipe.batch_size, name)
    if recipe.low_resolution is not None:
        _check_low_resolution(model, images, recipe.low_resolution)


def check_for_hooks(model):
    """Raise ValueError for hooks on weights, which a copy of the model lacks."""
    hooked = [name for name, weight in model.named_parameters() if weight._backward_hooks]
    if hooked:
        raise ValueError(
            f"the weight {hooked[0]} has a hook on its gradient, which the copy that is trained would not have: "
            "requires_grad_(False) freezes a weight, a defence's loss may do the rest"
        )


def _in_training_mode(model, images, batch_size, name):
    """One forward pass of a copy, which gives what training will get: some networks differ there."""
    model = copied(model).train()
    _look_for_moving_norms(model, name)
    with torch.no_grad(), torch.random.fork_rng(devices=[images.device] if images.is_cuda else []), fitted(model):
        try:
            taken(model(images))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f"batch_size={batch_size}: in training BatchNorm needs a batch of at least 2 pictures ({error})"
            ) from error


def _look_for_moving_norms(model, name):
    """Warn where BatchNorm's weights are frozen and its statistics are not."""
    moving = [
        layer
        for layer, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.track_running_stats
        if (weights := list(module.parameters())) and not any(weight.requires_grad for weight in weights)
    ]
    if moving:
        log.warning(
            "%s: the weights of %d BatchNorm layers (%s, ...) are frozen, but their statistics move with every "
            "batch, so the network is not frozen. finetune_framework.adapt() freezes both, whoever calls .train()",
            *(name, len(moving), moving[0]),
        )


def _check_low_resolution(model, images, side):
    if images.shape[2] != images.shape[3]:
        raise ValueError(f"low_resolution={side}: the pictures, {tuple(images.shape[2:])}, are not square")
    if side >= min(images.shape[2:]):
        raise ValueError(f"low_resolution={side}: the pictures have {min(images.shape[2:])} pixels a side already")
    try:
        with evaluating(model), torch.no_grad():
            model(shrunk(images, side))
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"low_resolution={side}: the model cannot take pictures of {side} x {side} pixels ({error}). Networks "
            "that average over all places before their head can, resnet18 for instance"
        ) from error
