"""Any attack of torchattacks (Kim 2020, arXiv:2010.01950) behind our contract."""

import inspect
import random
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from attacks.base import Attack, refuse_inference_mode

# These follow no cross-entropy, so it may saturate.
OTHER_LOSS = (
    *("APGDT", "CW", "DeepFool", "EADEN", "EADL1", "FAB", "JSMA"),
    *("OnePixel", "Pixle", "SparseFool", "Square"),
)
BLIND = ("GN", "OnePixel", "Pixle", "SPSA", "Square", "VANILA")  # these ask for no gradient


@dataclass(frozen=True, repr=False)
class Torchattacks(Attack):
    """`Torchattacks("CW", c=1)`: the attack of that name with those settings, made anew at each call.

    torchattacks leaves the model in training mode, draws from global generators and may write gradients
    into the weights; none of that gets out of here. It runs in float32 also inside autocast.
    Its AutoAttack gives the gradient attacks 10 steps where the standard, `attacks.AutoAttack`, has 100.
    Attacks without an ε of their own (CW, Pixle, ...) are bounded by [0, 1] alone, and their `eps` reads 1.
    """

    name: str
    settings: dict

    changes_all = False

    def __init__(self, name, **settings):
        probe = _make(name, torch.nn.Linear(1, 1, device="meta"), settings)
        eps = getattr(probe, "eps", getattr(probe, "max_epsilon", None))
        norm = str(getattr(probe, "norm", "L2" if name.endswith("L2") else "Linf"))
        norm = norm if norm in ("L1", "L2") else "Linf"
        vars(self).update(name=name, settings=settings, norm=norm, eps=1.0 if eps is None else float(eps))
        super().__post_init__()

    @property
    def pace(self):
        probe = _make(self.name, torch.nn.Linear(1, 1, device="meta"), self.settings)
        return getattr(probe, "alpha", None), getattr(probe, "steps", None)

    @property
    def origin(self):
        """The package that the attack is of: somebody may have put his own among torchattacks'."""
        return _find(self.name).__module__.split(".")[0]

    @property
    def follows_cross_entropy(self):
        return self.name not in OTHER_LOSS

    zero_gradient_is_failure = follows_cross_entropy

    def scaled(self, factor):
        probe = _make(self.name, torch.nn.Linear(1, 1), self.settings)
        sizes = {key: getattr(probe, key) * factor for key in ("eps", "alpha") if hasattr(probe, key)}
        if not sizes:
            raise ValueError(f"{self} has no ε to scale")
        return Torchattacks(self.name, **self.settings | sizes)

    @property
    def label(self):
        return self.name

    def __repr__(self):
        def shown(value):
            return f"{value:.4g}" if isinstance(value, float) else repr(value)

        settings = (f", {key}={shown(value)}" for key, value in self.settings.items())
        return f"{type(self).__name__}({self.name!r}{''.join(settings)})"

    def craft(self, model, images, labels, generator, targeted=False):
        if self.name not in BLIND:
            refuse_inference_mode()
        settings, possible = dict(self.settings), inspect.signature(_find(self.name)).parameters
        if "n_classes" in possible and "n_classes" not in settings:  # it would take ten for granted
            with torch.no_grad():
                settings["n_classes"] = model(images[:1]).shape[1]
        seed = int(torch.randint(2**31, (), generator=generator, device=images.device))
        if "seed" in possible:
            settings.setdefault("seed", seed)  # AutoAttack would take the time of day
        single = torch.autocast(images.device.type, enabled=False)
        with _own_randomness(seed, images.device), torch.enable_grad(), single:
            # In eval mode, or torchattacks would put all of it into training mode when it is done.
            attack = _make(self.name, torch.nn.Sequential(_PlainGradient(), model).eval(), settings)
            if targeted:
                attack.set_mode_targeted_by_label(quiet=True)
            try:
                adversarial = attack(images.contiguous(), labels)
            except RuntimeError as error:
                if "does not require grad" not in str(error):
                    raise
                raise RuntimeError(
                    f"{self}: no gradient leads from the model's logits to the images (a forward under no_grad, "
                    "in numpy, or detached), so this attack cannot run; Square and Noise need none"
                ) from error
            except IndexError as error:  # losses of AutoAttack look at the third and the fourth class
                with torch.no_grad():
                    classes = model(images[:1]).shape[1]
                if classes > 3:
                    raise
                raise ValueError(
                    f"{self}: torchattacks' attack is for more classes than the {classes} of this model. Ours are "
                    'for any number: AutoAttack(), APGD(loss="targeted"), APGD(loss="dlr"), FAB()'
                ) from error
        return torch.empty_like(images).copy_(adversarial.detach())


class _PlainGradient(torch.nn.Module):
    """The pictures as they are; their gradient laid out as torchattacks expects it, which calls `view` on it."""

    def forward(self, images):
        if images.requires_grad:
            images.register_hook(lambda gradient: gradient.contiguous())
        return images


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


@contextmanager
def _own_randomness(seed, device):
    """Seed the generators of Python, NumPy and torch, and put all three back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
