"""What an epoch ends in: how the network does on the validation split, clean and under attack; in float32."""

import torch
from torch.nn.functional import cross_entropy

from attacks import evaluating
from evaluation.per_example import attacked, predict
from processes.seeds import derive_seed

AT_LEAST = 10  # steps, before which every network says nearly the same


def validate(state, split):
    """Loss and accuracy on the validation split, robust accuracy on its first pictures, `at_chance`; float32."""
    model, recipe = state.result(), state.recipe
    logits = predict(model, split)
    right = logits.argmax(1) == split.labels
    few = split.first(recipe.validation_images)
    robust = withstanding(state, model, few, right[: len(few)], recipe.validation_attack)
    clean = float(right.double().mean())
    stuck = at_chance(state, split.labels, logits, clean)
    return float(cross_entropy(logits, split.labels)), clean, robust, stuck


def at_chance(state, labels, logits, clean):
    """What to say where, once a quarter of the steps is done, a network says the same of every picture; else None.

    Measured on Shapes: the logits of plain networks that never leave chance spread by 0.02 and less over the
    pictures, those of a ResNet-18 that learns late, from scratch under PGD, by 0.2 and more.
    """
    if not state.step - state.steps < state.total / 4 <= state.step or state.step < AT_LEAST:
        return None
    spread, chance = float((logits - logits.mean(0)).std()), float(torch.bincount(labels).max()) / len(labels)
    if spread > 0.05 or clean > chance + 0.02 or chance == 1:
        return None
    return (
        f"after {state.step} of {state.total} steps the network says nearly the same of every picture "
        f"({100 * clean:.1f} % right, as by chance; its logits spread by {spread:.2g}). It may never learn. What "
        "usually helps: a lower learning_rate, a network with BatchNorm, a start from the weights of standard "
        "training, a longer ramp of ε"
    )


def withstanding(state, model, split, right, attack):
    """The share of a split, 0 to 1, that withstands an attack after this epoch, if it is `right`, bool (N,)."""
    indices, seed = right.nonzero()[:, 0], derive_seed(state.recipe.seed, 2, state.epoch)
    stood, _ = attacked(model, model, split, attack, indices, seed)
    return int(stood.sum()) / len(split)


def examples(state, split):
    """The first eight pictures of the split and their adversarial versions, (8, C, H, W) each."""
    model, attack = state.result(), state.recipe.validation_attack
    clean, labels = split.batch(torch.arange(min(8, len(split)), device=state.device))
    with evaluating(model):
        return clean, attack.craft(model, clean, labels, torch.Generator(state.device).manual_seed(0))
