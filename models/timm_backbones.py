"""timm's classifiers by name: github.com/huggingface/pytorch-image-models."""

from difflib import get_close_matches
from http.client import HTTPException
from pickle import UnpicklingError

from safetensors import SafetensorError

from models.backbones import TIMM, WeightsError, only_tensors


def backbone(name, num_classes, pretrained=True, **options):
    """timm's classifier of that name (no prefix), with a fresh head unless its weights know as many classes.

    Weights are downloaded at first use and kept by timm, in the folder that HF_HOME names. `options` go to timm,
    as `img_size` for transformers. Raises WeightsError where weights cannot be had, ValueError for unknown names.
    """
    import timm  # imported late: it costs seconds

    _settings(name)
    try:
        with only_tensors():
            return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **options)
    except (OSError, RuntimeError, UnpicklingError, HTTPException, SafetensorError) as error:
        if not pretrained:
            raise
        raise WeightsError(
            f"the weights of {TIMM}{name} could not be had: {error}. Check the network, or fetch them elsewhere: "
            f'load_source("FILE", "{TIMM}{name}", CLASSES) reads a file, pretrained=False does without'
        ) from error


def own_classes(name):
    """How many classes the weights of that name (no prefix) know. Raises ValueError where they have no head."""
    if count := _settings(name).num_classes:
        return count
    raise ValueError(f"the weights of {TIMM}{name} have no head: models.build({TIMM + name!r}, CLASSES) adds one")


def _settings(name):
    """What timm knows of weights: normaliser, classes, size of the pictures."""
    import timm

    try:
        return timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:  # an unknown network, or weights of it
        network, names = name.partition(".")[0], timm.list_models()
        near = timm.list_pretrained(f"{network}.*") if network in names else get_close_matches(network, names, 4)
        hint = f"it has {', '.join(near)}" if near else "timm.list_models() names all that it has"
        raise ValueError(f"timm has no {name!r}; {hint}") from error
