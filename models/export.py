"""A network in files that need none of this repository's code."""

import importlib.util
import logging
import runpy
import warnings
from pathlib import Path

import torch
from torch import nn

from models import low_rank
from models.backbones import PREFIX
from models.model import copied, model_of, picture_for
from storage.atomic_files import replacing

log = logging.getLogger("study")

BY_PROGRAM = '''"""{what}

Needs torch alone. The class of this network lies elsewhere, so the program in network.pt2 is loaded: it computes
the same, and can be attacked, but not trained on. weights.pt holds the same weights as a plain state dict.
"""

from pathlib import Path

import torch


def load(folder=Path(__file__).parent):
    return torch.export.load(Path(folder) / "network.pt2").module()
'''

BY_TORCHVISION = '''"""{what}

Needs torch and torchvision alone. network.pt2 holds the same as a program, for torch.export.load.
"""

from pathlib import Path

import torch
import torchvision


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.network = torchvision.models.get_model("{name}", weights=None{settings})
        self.network.set_submodule("{head}", torch.nn.{layer})
        self.normalise = torch.nn.Module()
        self.normalise.register_buffer("mean", torch.zeros(1, {channels}, 1, 1))
        self.normalise.register_buffer("std", torch.ones(1, {channels}, 1, 1))

    def forward(self, images):
        images = (images - self.normalise.mean) / self.normalise.std
        if {resize}:
            images = torch.nn.functional.interpolate(images, ({resize}, {resize}), mode="bilinear")
        return self.network(images)


def load(folder=Path(__file__).parent):
    network = Network()
    network.load_state_dict(torch.load(Path(folder) / "weights.pt", weights_only=True))
    return network.eval()
'''


def export(source, folder):
    """Write a run's model, or a model, into a folder, for use without this repository. Returns the folder.

    network.pt2     a program for torch.export.load(...).module(): pixels (N, C, H, W) in [0, 1] to logits, any N;
                    normalising and resizing are in it
    weights.pt      the state dict, in float32
    load.py         load(): the network again, with torch (and torchvision for its networks) alone
    network.onnx    the same program, where onnx and onnxscript are installed

    All are in eval mode, on the CPU; adapters are part of the weights. Raises TypeError for what has no model.
    """
    model = source if isinstance(source, nn.Module) else getattr(source, "model", None)
    if model is None:
        raise TypeError(f"{source!r:.80}: a run or a model is needed; load_source() makes one of a run's folder")
    model = copied(model_of(model)).float().cpu().to(memory_format=torch.contiguous_format).eval()
    for module in list(model.modules()):
        low_rank.merge(module)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    grey = picture_for(model)
    pictures = grey.repeat(2, 1, 1, 1)
    Dim = torch.export.Dim
    any_size = ({0: Dim.DYNAMIC, 2: Dim.AUTO, 3: Dim.AUTO},)
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):  # torch's own, of its own next version
        count = model(grey).shape[1]
        program = torch.export.export(model, (pictures,), dynamic_shapes=any_size)
        with replacing(folder / "network.pt2") as partial:
            torch.export.save(program, partial)
        if importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxscript"):
            with replacing(folder / "network.onnx") as partial:
                torch.onnx.export(program, f=partial, verbose=False, external_data=False)
        else:
            log.info("%s has no network.onnx, which needs the packages onnx and onnxscript", folder)
    with replacing(folder / "weights.pt") as partial:
        torch.save(dict(model.state_dict()), partial)
    what = f"Pixels (N, {grey.shape[1]}, height, width) in [0, 1] to logits (N, {count})."
    load, pictures = folder / "load.py", torch.rand(pictures.shape, generator=torch.Generator().manual_seed(0))
    with replacing(load) as partial:
        partial.write_text(_loader(model, what, grey.shape[1]))
    if not _loads(load, model, pictures):  # somebody has changed more of it than its head
        with replacing(load) as partial:
            partial.write_text(BY_PROGRAM.format(what=what))
    return folder


def _loads(path, model, pictures):
    """Does load.py give this network?"""
    with torch.no_grad():
        ours = model(pictures)
        try:
            theirs = runpy.run_path(str(path))["load"]()(pictures)
        except (RuntimeError, AttributeError):
            return False
    return torch.allclose(ours, theirs, rtol=0, atol=1e-4 * float(ours.abs().max()))


def _loader(model, what, channels):
    name = model.spec["name"] if isinstance(model.spec, dict) else ""
    if not name.startswith(PREFIX):
        return BY_PROGRAM.format(what=what)
    head = model.network.get_submodule(model.head)
    if isinstance(head, nn.Linear):
        layer = f"Linear({head.in_features}, {head.out_features}, bias={head.bias is not None})"
    else:
        size = head.in_channels, head.out_channels, head.kernel_size
        how = head.stride, head.padding, head.dilation, head.groups, head.bias is not None
        layer = f"Conv2d{(*size, *how)}"
    settings = ", aux_logits=False, transform_input=True" if hasattr(model.network, "aux_logits") else ""
    return BY_TORCHVISION.format(
        what=what,
        name=name.removeprefix(PREFIX),
        settings=settings,
        head=model.head,
        layer=layer,
        channels=channels,
        resize=model.resize,
    )
