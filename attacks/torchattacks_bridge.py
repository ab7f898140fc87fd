"""Any attack of torchattacks (Kim 2020, arXiv:2010.01950) behind our contract."""

import inspect
import random
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from attacks.base import Attack

# What these take for granted is ten classes; elsewhere they would aim at classes that do not exist.
COUNTS_CLASSES = ("AutoAttack", "APGDT", "FAB")

# These follow no cross-entropy, so it may saturate.
OTHER_LOSS = ("APGDT", "CW", "DeepFool", "FAB", "JSMA", "OnePixel", "Pixle", "SparseFool", "Square")


@dataclass(frozen=True, repr=False)
class Torchattacks(Attack):
    """`Torchattacks("CW", c=1)`: the attack of that name with those settings, made anew at each call.

    torchattacks leaves the model in training mode, draws from global generators and may write gradients
    into the weights; none of that gets out of here. It runs in float32 also inside autocast.
    Its AutoAttack gives the gradient attacks 10 steps where the standard, `attacks.AutoAttack`, has 100.
    Attacks without an ε of their own (CW, Pixle, ...) are bounded by [0, 1] alone, and their `eps` reads 1.
    """

    name: str
    settings: dict = field(default_factory=dict)

    zero_gradient_is_failure: ClassVar[bool] = False

    def __init__(self, name, **settings):
        probe = _make(name, torch.nn.Linear(1, 1), settings)
        eps = getattr(probe, "eps", getattr(probe, "max_epsilon", None))
        norm = str(getattr(probe, "norm", "L2" if name.endswith("L2") else "Linf"))
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "settings", settings)
        object.__setattr__(self, "norm", norm if norm in ("L1", "L2") else "Linf")
        object.__setattr__(self, "eps", 1.0 if eps is None else float(eps))
        super().__post_init__()

    @property
    def follows_cross_entropy(self):
        return self.name not in OTHER_LOSS

    def scaled(self, factor):
        probe = _make(self.name, torch.nn.Linear(1, 1), self.settings)
        sizes = {key: getattr(probe, key) * factor for key in ("eps", "alpha") if hasattr(probe, key)}
        if not sizes:
            raise ValueError(f"{self} has no ε to scale")
        return Torchattacks(self.name, **self.settings | sizes)

    @property
    def label(self):
        return self.name

    def _settings(self):
        def shown(value):
            return f"{value:.4g}" if isinstance(value, float) else repr(value)

        return [repr(self.name), *(f"{key}={shown(value)}" for key, value in self.settings.items())]

    def craft(self, model, images, labels, generator, targeted=False):
        settings = dict(self.settings)
        if self.name in COUNTS_CLASSES and "n_classes" not in settings:
            with torch.no_grad():
                settings["n_classes"] = model(images[:1]).shape[1]
        seed = int(torch.randint(2**31, (), generator=generator, device=images.device))
        if "seed" in inspect.signature(_find(self.name)).parameters:
            settings.setdefault("seed", seed)  # AutoAttack would take the time of day
        single = torch.autocast(images.device.type, enabled=False)
        with _own_randomness(seed, images.device), _weights_frozen(model), torch.enable_grad(), single:
            # In eval mode, or torchattacks would put all of it into training mode when it is done.
            attack = _make(self.name, _Plain(model).eval(), settings)
            if targeted:
                attack.set_mode_targeted_by_label(quiet=True)
            adversarial = attack(images.contiguous(), labels)
        return adversarial.detach().to(images.dtype).contiguous(memory_format=_format(images))


class _Plain(torch.nn.Module):
    """The model with gradients laid out as torchattacks expects them: it calls `view` on them."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        if images.requires_grad:
            images.register_hook(lambda gradient: gradient.contiguous())
        return self.model(images)


def _find(name):
    import torchattacks  # imported late: it costs 0.7 s

    if not isinstance(getattr(torchattacks, name, None), type):
        known = sorted(key for key, value in vars(torchattacks).items() if isinstance(value, type))
        raise ValueError(f"torchattacks has no attack {name!r}; it has {', '.join(known)}")
    return getattr(torchattacks, name)


def _make(name, model, settings):
    try:
        return _find(name)(model, **settings)
    except TypeError as error:
        raise ValueError(f"Torchattacks({name!r}): these settings do not fit: {error}") from error


def _format(images):
    channels_last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


class _own_randomness:
    """Seed the generators of Python, NumPy and torch, and put all three back afterwards."""

    def __init__(self, seed, device):
        self.seed = seed
        self.torch = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])

    def __enter__(self):
        self.python, self.numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
        self.torch.__enter__()
        random.seed(self.seed)
        np.random.seed(self.seed)  # noqa: NPY002
        torch.manual_seed(self.seed)

    def __exit__(self, *error):
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002
        return self.torch.__exit__(*error)


class _weights_frozen:
    """No weight asks for a gradient, so none can be written into it."""

    def __init__(self, model):
        self.asking = [weight for weight in model.parameters() if weight.requires_grad]

    def __enter__(self):
        for weight in self.asking:
            weight.requires_grad_(False)

    def __exit__(self, *error):
        for weight in self.asking:
            weight.requires_grad_(True)
