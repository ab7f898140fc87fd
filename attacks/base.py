"""What every attack promises, and the one gradient that they all climb.

    adversarial = attack(model, images, labels)

gives pictures of the same shape, type, device and memory format, within ε and [0, 1], crafted on the
model that is passed and leaving it as it was found. An attack holds settings, never a model, so its
examples cannot come from another network than the one in the call.
"""

import copy
import math
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import nn

from attacks.settings import EPS_HINT, USUAL_EPS, NamedSettings, check_setting, check_settings
from models import fitted, taken
from models.fused import Folding

LIFT = 128.0  # between what float16 loses, below 6e-8, and what it cannot hold, above 65,504


class Chosen(float):
    """A size that an attack chose for its `norm`. dataclasses.replace hands it on as if somebody had given it."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Attack(NamedSettings):
    """Settings of an attack. `eps` is the largest change: of a pixel in the `norm` "Linf", in units of the [0, 1]
    range; in "L2" the length of the change of the whole picture. None is 8/255, in L2 0.5.
    """

    eps: float | None = None

    norm: ClassVar[str] = "Linf"  # a setting where there is a choice: see norm_setting
    # Does it change every picture that withstands it, or give some back as they were?
    changes_all: ClassVar[bool] = True
    # Ours have a gradient wherever the model has one; CW and others stop on purpose once they have won.
    zero_gradient_is_failure: ClassVar[bool] = True
    # May ε and the step size be scalar tensors in `craft`? So one CUDA graph serves all sizes.
    takes_tensors: ClassVar[bool] = False

    def __post_init__(self):
        if self._is_open("eps"):
            self._take("eps", USUAL_EPS.get(self.norm, USUAL_EPS["Linf"]))
        largest = math.inf if self.norm == "L2" else 1
        check_setting(self, "eps", 0, largest, hint=EPS_HINT)
        check_settings(self)

    def _is_open(self, name):
        """Is this size for the attack to choose: not given, or chosen for another norm?"""
        value = getattr(self, name)
        return value is None or getattr(value, "norm", self.norm) != self.norm

    def _take(self, name, value):
        chosen = vars(self)[name] = Chosen(value)
        chosen.norm = self.norm

    def __call__(self, model, images, labels, *, targets=None, generator=None):
        """Adversarial versions of `images` (N, C, H, W) in [0, 1], for `labels` (N,) int64.

        With `targets` (N,) int64 the attack pushes towards those classes instead of away from the
        labels. Randomness comes from `generator`, or from the global seed. Raises TypeError or
        ValueError for input outside the contract and for logits that are not finite, RuntimeError where no
        gradient can be had (torch.inference_mode). Warns when the gradient of an example is missing, exactly zero
        or not finite, or nothing was changed: surviving such an attack means nothing.
        """
        check_images(images)
        check_labels(labels, images, "labels")
        if targets is not None:
            check_labels(targets, images, "targets")
        if len(images) == 0 or self.eps == 0:
            return images.detach().clone()
        if images.is_inference() and not torch.is_inference_mode_enabled():
            images, labels = images.clone(), labels.clone()  # from there no gradient follows
        images = images.detach()  # nor is any of the caller's graph kept
        goal = labels if targets is None else targets
        if generator is None:  # from the global one: torch.manual_seed makes all of it repeatable
            generator = torch.Generator(images.device).manual_seed(int(torch.randint(2**62, ())))
        watched = _Watched(model, int(torch.maximum(labels, goal).max()), _in_float16(images.device.type))
        with evaluating(watched):
            adversarial = self.craft(watched, images, goal, generator, targets is not None).detach()
            same = (adversarial == images).flatten(1).all(1)
            if self.changes_all and bool(same.any()):
                with torch.no_grad():
                    reached = watched(images[same]).argmax(1) == goal[same]
                watched.unchanged = int((reached ^ (targets is not None)).sum())
        watched.report(self, len(images))
        return adversarial

    def craft(self, model, images, labels, generator, targeted=False):
        """The bare attack, without checks, for use inside training; those trained with do not wait for the device.

        The caller has put the model into eval mode (`evaluating`). With `targeted`, `labels` are the
        classes to reach.
        """
        raise NotImplementedError

    @property
    def pace(self):
        """The size of a step and their number, where it takes steps of one size; else None for what it has not."""
        return getattr(self, "step_size", None), getattr(self, "steps", None)

    @property
    def stages(self):
        """The attacks that it consists of, each on what the ones before have left."""
        return (self,)

    def scaled(self, factor):
        """The same attack with ε and the step size times `factor`, above 0. Raises ValueError where ε is 0."""
        if self.eps == 0:
            raise ValueError(f"{self} cannot be scaled: its ε is 0")
        sizes = {name: getattr(self, name) * factor for name in ("eps", "step_size") if hasattr(self, name)}
        return replace(self, **sizes)

    def with_sizes(self, sizes):
        """The same attack with other values for ε and the step size, which may be tensors; nothing is checked."""
        other = copy.copy(self)
        vars(other).update({name: value for name, value in sizes.items() if name in vars(self)})
        return other

    def __init_subclass__(cls, **settings):
        super().__init_subclass__(**settings)
        if "craft" in vars(cls):  # what is said of one craft does not hold for another
            cls.takes_tensors = vars(cls).get("takes_tensors", False)

    @property
    def label(self):
        """A short name for tables and curves."""
        return type(self).__name__

    def __repr__(self):
        """As people write settings: sizes in 255ths, so that 2/225 in place of 2/255 shows."""
        sizes = {"eps": "ε", "step_size": "α"}
        shown = []
        for each in sorted(fields(self), key=lambda each: each.name == "norm"):
            value = getattr(self, each.name)
            if each.name in sizes:
                shown.append(f"{sizes[each.name]}={in_255ths(value, self.norm)}")
            elif each.name == "steps":
                shown.append(f"{value} step{'s' * (value != 1)}")
            elif value != each.default:
                shown.append(f"{each.name}={value}")
        return f"{type(self).__name__}({', '.join(shown)})"


def in_255ths(value, norm="Linf"):
    """0.0313725 -> '8/255'; a value off the grid keeps four digits: '2.267/255'; a length in L2 is as it is."""
    return f"{value * 255:.4g}/255" if norm == "Linf" else f"{value:.4g}"


def whole_range(norm, images):
    """The ε with which every picture of [0, 1] can be reached from every other: 1, in L2 √(C · H · W)."""
    return 1.0 if norm == "Linf" else math.sqrt(images.shape[1:].numel())


@contextmanager
def evaluating(model):
    """Put every submodule into eval mode and ask no gradient for any weight: crafting needs neither.

    Each module and weight gets its own flag back afterwards, whatever happens. Without gradients for weights less
    is kept in memory, and the networks of `models` take their fused form. Inside, no weight may be changed, and
    pictures reach a network in its own precision and layout.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    weights = [weight for module in modules for weight in module.parameters(recurse=False)]
    before = [(module, "training", module.training) for module in modules]
    before += [(weight, "requires_grad", True) for weight in weights if weight.requires_grad]
    for owner, flag, on in before:
        if on:
            setattr(owner, flag, False)
    before += [(module, "_folds", module.keep_folds()) for module in modules if isinstance(module, Folding)]
    try:
        with fitted(model):
            yield
    finally:
        for owner, flag, value in before:
            setattr(owner, flag, value)


def input_gradient(model, images, labels, targeted=False, scaled=False):
    """Gradient of the cross-entropy with respect to the images, in the direction the attacker wants to go.

    It never saturates. The gradient of cross-entropy in the logits is (1 - p) (q - onehot), where p is
    the probability of the label and q the softmax over the other classes. For a confident model 1 - p
    underflows and an attack that follows the textbook formula stops without a word. The factor does not
    change the direction, so it is left out; with `scaled` it is kept, down to 1e-20, for the attacks
    that mix gradients from several points (VMI, VNI).

    autograd.grad asks for the images alone, so no gradient of a weight is computed or stored.
    """
    refuse_inference_mode()
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(images)
    if not logits.requires_grad:
        return torch.zeros_like(images)
    ascent, doubt = logit_gradient(logits.detach(), labels)
    gradient = led_back(logits, images, -ascent if targeted else ascent)
    return gradient * doubt.clamp_min(1e-20)[:, None, None, None].to(gradient.dtype) if scaled else gradient


def _in_float16(kind):
    return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16


def refuse_inference_mode():
    """Raise RuntimeError where torch computes no gradient, whatever is asked of it."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "inside torch.inference_mode() there is no gradient, so an attack would change nothing: "
            "call it outside; torch.no_grad() around it does no harm"
        )


def led_back(logits, images, ascent):
    """The gradient for `images` that `ascent`, one for `logits` of the same type, leads back to.

    What flows back in float16 is LIFT times as large, for what is small there is lost.
    """
    lifted = _in_float16(logits.device.type) or logits.dtype == torch.float16
    ascent = LIFT * ascent if lifted else ascent
    (gradient,) = torch.autograd.grad(logits, images, ascent, allow_unused=True, materialize_grads=True)
    return torch.nan_to_num(gradient / LIFT) if lifted else gradient


def moved(images, direction, size):
    """Add `size`, a number or a scalar tensor, times a direction to the images, in place."""
    if isinstance(size, torch.Tensor):
        return images.addcmul_(direction, size)
    return images.add_(direction, alpha=size)


def logit_gradient(logits, labels):
    """Where, in the logits (N, K), cross-entropy rises, never saturated, and the factor (N,) left out: 1 - p."""
    index = labels[:, None]
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    others = wide.scatter(1, index, -math.inf)
    ascent = others.softmax(1).scatter_(1, index, -1)
    doubt = torch.sigmoid(others.logsumexp(1) - wide.gather(1, index)[:, 0])
    return ascent.to(logits.dtype), doubt


def dead_gradients(gradient):
    """Which examples (N,) have a gradient that leads nowhere: all zero, or NaN or infinite in some place."""
    flat = gradient.flatten(1)
    return (flat == 0).all(1) | ~torch.isfinite(flat).all(1)


class _Watched(nn.Module):
    """The model under attack, noting what would make the result meaningless, to be read once at the end."""

    def __init__(self, model, largest_label, in_float16):
        super().__init__()
        self.model = model
        self.largest_label = largest_label
        self.in_float16 = in_float16  # the caller
        self.finite = True
        self.asked = 0  # examples whose first gradient was asked for
        self.without_gradient = None
        self.cut = False  # did logits come without a graph?
        self.unchanged = 0

    def forward(self, images):
        asks = images.requires_grad and torch.is_grad_enabled()
        if asks and self.without_gradient is None:
            self.asked = self.asked or len(images)
            images = images.view_as(images)  # what an attack's own loss says of the pictures passes this by
            images.register_hook(self._note_gradient)
        logits = taken(self.model(images))
        self.cut = self.cut or (asks and not logits.requires_grad)
        if logits.ndim != 2 or len(logits) != len(images):
            raise ValueError(
                f"the model gave a tensor of shape {tuple(logits.shape)} for {len(images)} images; "
                "an attack needs logits of shape (N, classes)"
            )
        if self.largest_label >= logits.shape[1]:
            raise ValueError(
                f"label {self.largest_label} is out of range: the model has {logits.shape[1]} classes, "
                f"0 to {logits.shape[1] - 1}; were the labels made for another data set?"
            )
        if self.in_float16 or not _in_float16(logits.device.type):  # what an attack's own cannot hold says nothing
            self.finite = torch.isfinite(logits.detach()).all() & self.finite
        return logits

    def _note_gradient(self, gradient):
        if self.without_gradient is None:
            self.without_gradient = dead_gradients(gradient).sum()

    def report(self, attack, count):
        if not self.finite:
            raise ValueError(
                f"{attack}: the model gave logits that are NaN or infinite; "
                "its weights are broken (diverged training?) or its arithmetic overflows"
            )
        says, zero = None, 0 if self.without_gradient is None else int(self.without_gradient)
        missing = self.asked and self.without_gradient is None  # some look at logits, and stop where they have won
        if self.cut or (missing and attack.zero_gradient_is_failure):
            says = (
                f"no gradient leads from the logits of {self.asked} of {count} examples to the images (a forward "
                "under no_grad, in numpy, or detached), so the attack cannot move them; that is no robustness"
            )
        elif zero and attack.zero_gradient_is_failure:
            says = (
                f"{zero} of {count} examples have an input gradient of exactly zero, or not finite, so "
                "the attack cannot move them; a model that masks its gradient is not robust for that"
            )
        elif self.unchanged:
            says = (
                f"{self.unchanged} of {count} examples withstand and were not changed at all; "
                "is ε, or a step, too small to tell in float32?"
            )
        if says:
            warnings.warn(f"{attack}: {says}", RuntimeWarning, stacklevel=3)


def check_images(images):
    """Raise unless images are float32 or float64, (N, C, H, W), finite and in [0, 1]."""
    if not isinstance(images, torch.Tensor) or images.dtype not in (torch.float32, torch.float64):
        kind = images.dtype if isinstance(images, torch.Tensor) else type(images).__name__
        raise TypeError(f"images are {kind}: float32 or float64 tensors in [0, 1] are needed")
    if images.ndim != 4:
        raise ValueError(f"images have shape {tuple(images.shape)}: (N, channels, height, width) is needed")
    if len(images) == 0:
        return
    low, high = (float(value) for value in images.detach().aminmax())
    if not (low >= 0 and high <= 1):  # also refuses NaN
        raise ValueError(
            f"images reach from {low:.4g} to {high:.4g}: [0, 1] is needed. "
            "Normalise inside the model, not in the loader: ε would have another unit"
        )


def check_labels(labels, images, name):
    """Raise unless labels are int64 (N,), not negative, on the device of the images."""
    if not isinstance(labels, torch.Tensor) or labels.dtype != torch.int64:
        kind = labels.dtype if isinstance(labels, torch.Tensor) else type(labels).__name__
        raise TypeError(f"{name} are {kind}: class indices as an int64 tensor are needed")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{name} have shape {tuple(labels.shape)}: ({len(images)},) is needed, one per image")
    if labels.device != images.device:
        raise ValueError(f"{name} are on {labels.device} and images on {images.device}: move one of them")
    if len(labels) and int(labels.min()) < 0:
        raise ValueError(f"{name} reach down to {int(labels.min())}: classes count from 0")
