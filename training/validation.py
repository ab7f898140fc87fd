"""What an epoch ends in: how the network does on the validation split, clean and under attack; in float32."""

import torch
from torch.nn.functional import cross_entropy

from attacks import evaluating
from evaluation.per_example import attacked, predict
from processes.seeds import derive_seed


def validate(state, split):
    """Loss and accuracy on the validation split, robust accuracy on its first pictures; in float32."""
    model, recipe = state.result(), state.recipe
    logits = predict(model, split)
    right = logits.argmax(1) == split.labels
    few = split.first(recipe.validation_images)
    robust = withstanding(state, model, few, right[: len(few)], recipe.validation_attack)
    return float(cross_entropy(logits, split.labels)), float(right.double().mean()), robust


def withstanding(state, model, split, right, attack):
    """The share of a split, 0 to 1, that withstands an attack after this epoch, if it is `right`, bool (N,)."""
    indices, seed = right.nonzero()[:, 0], derive_seed(state.recipe.seed, 2, state.epoch)
    stood, _ = attacked(model, model, split, attack, indices, seed)
    return int(stood.sum()) / len(split)


def examples(state, split):
    """The first eight pictures of the split and their adversarial versions, (8, 3, H, W) each."""
    model, attack = state.result(), state.recipe.validation_attack
    clean, labels = split.batch(torch.arange(min(8, len(split)), device=state.device))
    with evaluating(model):
        return clean, attack.craft(model, clean, labels, torch.Generator(state.device).manual_seed(0))
