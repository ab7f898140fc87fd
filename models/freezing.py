"""Layers that are frozen wholly and for good: no gradients, and eval mode whoever calls `.train()`."""

import functools

from torch import nn


def freeze(module):
    """Freeze a layer and all that is in it, in place."""
    for inner in module.modules():
        if not is_frozen(inner):
            inner.__class__ = _frozen_class(type(inner))
        inner.training = False
    module.requires_grad_(False)


def thaw(module):
    """Undo it for one layer, but for the gradients."""
    if is_frozen(module):
        module.__class__ = type(module).thawed


def is_frozen(module):
    return hasattr(type(module), "thawed")


@functools.cache
def _frozen_class(kind):
    """The same kind of layer, deaf to `.train()`; a class and no patched instance, so copies are frozen too."""

    def train(self, mode=True):
        return nn.Module.train(self, False)

    methods = {"train": train, "thawed": kind, "__module__": kind.__module__, "__reduce_ex__": _reduce}
    return type(kind.__name__, (kind,), methods)


def _reduce(self, protocol):
    """For copies and pickles, which would look for the class by its name and find the one that is not frozen."""
    _, _, *state = super(type(self), self).__reduce_ex__(protocol)
    return _made_frozen, (type(self).thawed,), *state


def _made_frozen(kind):
    return object.__new__(_frozen_class(kind))
