"""What every network here is, as attacks and training see it; `wrap` makes one of any module.

A network of somebody else's keeps its habits: its precision, and the layout that its weights have in memory. Where
these are not channels-last, it may call `.view()`, so it gets its pictures contiguous.
"""

import copy
import itertools
import re
from contextlib import ExitStack, contextmanager
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.functional import interpolate

from models import backbones
from models.normalise import Normalise, other_channels
from storage import code_checksum

# Of pictures to try a network with: the first that it takes counts.
SIDES = (32, 28, 64, 96, 128, 224, 299, 160, 240, 256, 384, 448)
# What torch and torchvision say where a network is for pictures of another size.
MISFITS = "cannot be multiplied", "Output size is too small", "can't be greater than actual input", "Wrong image"
MISFITS += ("doesn't match model",)  # timm
_heads = WeakKeyDictionary()  # of networks whose head had to be looked for


class Model(nn.Module):
    """A network with normalising and resizing in front; `spec` holds the arguments that built it.

    `head` is the name, in the network, of the layer that gives the logits.
    """

    def __init__(self, network, normalise, resize, spec):
        super().__init__()
        self.normalise = normalise
        self.resize = resize  # pixels a side, or None
        self.network = network
        self.head = backbones.head_name(network, spec["num_classes"])
        self.spec = spec

    def forward(self, images):
        images = self.prepared(images.expand(-1, 3, -1, -1))  # grey ones: the same value in each channel
        try:
            return self.network(images)
        except (RuntimeError, AssertionError) as error:
            if not any(words in str(error) for words in MISFITS):
                raise
            name, side = self.spec["name"], " x ".join(map(str, images.shape[2:]))
            usual = (224 if name.startswith(backbones.PREFIX) else 32,)
            usual = getattr(self.network, "pretrained_cfg", {}).get("input_size", usual)[-1]  # timm's
            raise ValueError(
                f"{name} does not take pictures of {side} pixels. In models.build, resize={usual} resizes them "
                "inside the model"
            ) from error

    def prepared(self, images):
        """The pictures as the network wants them."""
        images = self.normalise(images)
        size = (self.resize, self.resize)
        # What is exported takes pictures of any size, so it does not ask for this one's.
        if self.resize is not None and (torch.compiler.is_exporting() or images.shape[-2:] != size):
            images = interpolate(images, size=size, mode="bilinear", align_corners=False)
        return images

    def find_head(self, images):
        """The name of the head; the pictures show it where it is not known."""
        return self.head

    def with_features(self, images):
        """Logits (N, K) and the features that the head makes them of, (N, ...), in one pass."""
        kept = []
        head = self.network.get_submodule(self.find_head(images))
        with head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0])):
            return self(images), kept[0]


class Wrapped(Model):
    """A network that `build` did not make; `spec` is its class's name, and `head` may be unknown at first."""

    def __init__(self, network, normalise, resize, logits, head):
        nn.Module.__init__(self)
        self.normalise = normalise
        self.resize = resize
        self.network = network
        self.head = head
        self.spec = type(network).__name__
        self.logits = logits
        if callable(logits):
            self.logits_code = code_checksum.of_objects((), [logits])

    def forward(self, images):
        layout, dtype = habits(self.network)
        images = self.prepared(images.to(dtype)).contiguous(memory_format=layout)
        try:
            return taken(self.network(images), self.logits)
        except RuntimeError as error:
            if says := _of_channels(error):
                raise ValueError(says) from error
            raise

    def find_head(self, images):
        if self.head is None and self.network not in _heads:
            _heads[self.network] = _found_head(self, images)
        return self.head or _heads[self.network]


def check_is_module(model):
    """Raise TypeError for what is no module, with what to pass in its place."""
    if isinstance(model, nn.Module):
        return
    remedy = "models.wrap(function) makes one of a function"
    if isinstance(model, str):
        remedy = f"load_source({model!r}) loads one with its weights, models.build(name, num_classes) one without"
    elif isinstance(getattr(model, "model", None), nn.Module):
        remedy = "pass its .model"
    what = repr(model) if isinstance(model, str) else f"a {type(model).__name__}"
    raise TypeError(f"{what} is no torch.nn.Module: {remedy}")


class _Function(nn.Module):
    """A plain function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.code = code_checksum.of_objects((), [function]) if hasattr(function, "__name__") else None

    def forward(self, images):
        return self.function(images)


def wrap(network, *, logits=None, mean=None, std=None, resize=None, head=None):
    """Any module, or function, from pictures (N, C, H, W) to logits (N, K) as a Model.

    logits: where they are in what the network gives: an index, a key or an attribute's name, or a function of it.
    mean, std: per channel, for a network that wants normalised pictures and does not normalise them itself.
    resize: the side, in pixels, that it wants. head: the name of the layer that gives the logits, where it is not
    found. What torch.compile or DataParallel put around the network is taken off. Raises ValueError for a head
    that is no linear layer or convolution, and for a mean or deviation that no pixels in [0, 1] have.
    """
    if not callable(network):
        check_is_module(network)
    if (mean is None) != (std is None):
        raise ValueError("mean and std go together: one of them is missing")
    network = bare(network) if isinstance(network, nn.Module) else _Function(network)
    if head is not None and not isinstance(dict(network.named_modules()).get(head), backbones.HEADS):
        raise ValueError(f"head={head!r} is no linear layer or convolution of this network; {_layers(network)}")
    normalise = nn.Identity() if mean is None else Normalise(mean, std)
    return Wrapped(network, normalise, resize, logits, head)


def bare(network):
    """The network inside what torch.compile and DataParallel put around it."""
    kinds = nn.DataParallel, nn.parallel.DistributedDataParallel
    while inner := network.module if isinstance(network, kinds) else getattr(network, "_orig_mod", None):
        network = inner
    return network


def copied(network):
    """A copy, also of a network in which a forward pass has left tensors: they come without their graphs."""
    held = (value for module in network.modules() for value in vars(module).values())
    left = {id(value): value.detach().clone() for value in held if getattr(value, "grad_fn", None) is not None}
    return copy.deepcopy(network, left)


def model_of(network):
    """The network itself where it is a Model, whatever is around it, else `wrap` of it."""
    inner = bare(network)
    return inner if isinstance(inner, Model) else wrap(network)


def picture_for(model):
    """A grey picture (1, C, H, W) that a Model takes. Raises ValueError where it takes none of the usual sizes."""
    weights = list(model.parameters())
    channels = next((weight.shape[1:2] for weight in weights if weight.ndim == 4), (3, 1))
    alone = copied(model).eval()
    for side, count in itertools.product(SIDES, channels):
        grey = torch.full((1, count, side, side), 0.5, device=weights[0].device if weights else "cpu")
        try:
            with torch.no_grad(), fitted(alone):
                alone(grey)
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            last = error
        else:
            return grey
    raise ValueError(f"this network takes no picture of {', '.join(map(str, SIDES))} pixels a side: {last}")


def _found_head(model, images):
    """The last layer that gives the logits, up to scale and shift, in a pass of noise like these pictures."""
    called, model = [], copied(model).eval()
    for name, module in model.network.named_modules():
        if isinstance(module, backbones.HEADS):
            module.register_forward_hook(lambda _, __, out, name=name: called.append((name, out.detach())))
    noise = torch.rand((8, *images.shape[1:]), generator=torch.Generator().manual_seed(0)).to(images)
    with torch.no_grad():
        logits = model(noise)
    found = [name for name, out in called if out.shape[:2] == logits.shape and _same_answers(out, logits)]
    if not found:
        raise ValueError(
            f"no layer of this network gives its {tuple(logits.shape[1:])} logits: which one is its head? "
            f"models.wrap(network, head=...) names it; {_layers(model.network)}"
        )
    return found[-1]


def _same_answers(out, logits):
    """Is what a layer gave, averaged over places, with or without a ReLU, the logits up to scale and shift?"""
    wanted = logits - logits.mean(1, keepdim=True)
    for each in (out, out.relu()):
        given = each.flatten(2).mean(2) if each.ndim > 2 else each
        given = given - given.mean(1, keepdim=True)
        if torch.cosine_similarity(given.flatten().double(), wanted.flatten().double(), 0) > 0.9999:
            return True
    return False


def _layers(network):
    names = [name for name, module in network.named_modules() if name and isinstance(module, backbones.HEADS)]
    return f"there are {', '.join(names[-20:])}" if names else "it has no linear layer and no convolution"


# --- what a network gives --------------------------------------------------------------------------


def taken(output, where=None):
    """The logits in what a network gave. A tensor is taken for them, unless `where` is a function.

    Raises ValueError where there is nothing of that name, TypeError for what is no tensor.
    """
    if callable(where):
        output = where(output)
    elif where is not None and not isinstance(output, torch.Tensor):
        try:
            named = isinstance(where, str) and not isinstance(output, dict)
            output = getattr(output, where) if named else output[where]
        except (KeyError, IndexError, AttributeError, TypeError):
            raise ValueError(f"logits={where!r}: the network gives {_described(output)[0]}") from None
    if not isinstance(output, torch.Tensor):
        described, example = _described(output)
        raise TypeError(
            f"the network gives {described} where a tensor of logits (N, classes) is needed. "
            f"models.wrap(network, logits={example!r}) takes them out: an index, a key, an attribute or a function"
        )
    return output


def _described(output):
    """What this is in words, and the name under which its first tensor lies."""

    def shown(value):
        return f"a tensor {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__

    if isinstance(output, dict):
        parts = output
    elif isinstance(output, (tuple, list)):
        parts = dict(enumerate(output))
    else:
        parts = getattr(output, "__dict__", {})
    listed = ", ".join(f"{key!r}: {shown(value)}" for key, value in list(parts.items())[:6])
    example = next((key for key, value in parts.items() if isinstance(value, torch.Tensor)), "logits")
    return f"a {type(output).__name__}" + (f" ({listed})" if listed else ""), example


# --- what a network is given -----------------------------------------------------------------------


def habits(network):
    """The layout of a network's weights, channels-last or contiguous, and its precision."""
    dtype = None
    for weight in network.parameters():
        dtype = dtype or (weight.dtype if weight.is_floating_point() else None)
        if _is_channels_last(weight):
            return torch.channels_last, dtype
    return torch.contiguous_format, dtype or torch.float32


def _is_channels_last(weight):
    four = weight.ndim == 4 and not weight.is_contiguous()
    return four and weight.is_contiguous(memory_format=torch.channels_last)


@contextmanager
def fitted(model):
    """Inside, pictures reach the model in its precision, and contiguous unless its weights are channels-last."""
    ours = torch.channels_last, torch.float32
    hooked = isinstance(model, nn.Module) and not isinstance(model, torch.jit.ScriptModule)
    layout, dtype = habits(model) if hooked else ours
    with ExitStack() as hooks:
        if (layout, dtype) != ours:
            hooks.enter_context(model.register_forward_pre_hook(partial(_fit, layout, dtype), prepend=True))
        try:
            yield
        except RuntimeError as error:
            if says := _of_channels(error):
                raise ValueError(says) from error
            raise


def _of_channels(error):
    """What to do about an error that says that a network takes pictures of other channels; None for others."""
    found = re.search(r"to have ([13]) channels?, but got ([13]) channel", str(error))
    return found and other_channels(*map(int, found.groups()))


def _fit(layout, dtype, model, inputs):
    images = inputs[0]
    if not images.is_floating_point() or images.ndim != 4:
        return None
    images = images.to(dtype)
    return (images.contiguous() if layout == torch.contiguous_format else images, *inputs[1:])
