"""Weights of others, as they lie in files: each case is a public complaint about a peer, and what is right."""

import logging
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from small import late
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import models
from finetune_framework import SourceError, adapt, export, load_source
from models.fingerprint import fingerprint
from trainer import Recipe, train
from training import step as steps
from training.run_folder import RunRefused

RECIPE = Recipe(epochs=1, batch_size=16, validation_images=4, precision="float32")


def small(seed=0, classes=7, name="resnet18", **options):
    return models.build(name, classes, width=4, seed=seed, **options)


@pytest.fixture
def file(tmp_path):
    """Saves what it is called with; returns the path."""

    def save(content):
        torch.save(content, tmp_path / "weights.pt")
        return tmp_path / "weights.pt"

    return save


@pytest.fixture
def few(shapes):
    return replace(shapes, **{part: getattr(shapes, part).first(32) for part in ("train", "val", "test")})


def load(path, classes=7, name="resnet18", **options):
    return load_source(path, name, classes, width=4, **options)


PREFIXES = (
    "network.",
    "module.model.",
    "_orig_mod.",
    "_orig_mod.module.",
    "module._orig_mod.",
    "net.",
    "backbone.",
    "model.0.",
    "a.b.c.d.",
)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes(prefix, file):
    """pytorch/pytorch #101107: weights that were saved from a compiled network have other names (_orig_mod.)."""
    source = small()
    path = file({prefix + name: value for name, value in source.network.state_dict().items()})
    assert fingerprint(load(path)) == fingerprint(source)


@pytest.mark.parametrize("number", [69.7, torch.tensor(69.7), np.float64(69.7), torch.ones(3)], ids=type)
def test_numbers_beside_the_weights(number, file):
    """bearpaw/pytorch-classification #11, suno-ai/bark #653: a number beside the state_dict hides the weights."""
    source = small()
    weights = {f"module.{name}": value for name, value in source.network.state_dict().items()}
    momenta = {"state": {0: {"momentum_buffer": torch.ones(4)}}, "param_groups": [{"lr": 0.1}]}
    path = file({"epoch": 90, "best_acc1": number, "optimizer": momenta, "state_dict": weights})
    assert fingerprint(load(path)) == fingerprint(source)


def test_averaged_weights_count_their_updates(file):
    """huggingface/pytorch-image-models PR 2003: an AveragedModel's file begins with n_averaged."""
    source = small()
    averaged = torch.optim.swa_utils.AveragedModel(source.network)
    averaged.update_parameters(source.network)
    assert "n_averaged" in averaged.state_dict()
    assert fingerprint(load(file(averaged.state_dict()))) == fingerprint(source)


@pytest.mark.parametrize(
    ("made", "asked", "message"),
    [
        (("resnet34", {"width": 4}), ("resnet18", 7), r"holds 80 .* no use for.*It fits resnet34 .*width=4"),
        (("resnet18", {"width": 4}), ("resnet34", 7), r"misses \d+ of 218 tensors.*It fits resnet18"),
        (("resnet18", {"width": 8}), ("resnet18", 7), r"of another shape.*It fits resnet18 .*width=8"),
        (("resnet18", {"width": 4}), ("resnet18", 9), r"2 of another shape.*with num_classes=7"),
        (("preact_resnet18", {"width": 4}), ("resnet18", 7), r"It fits preact_resnet18"),
        (("shallow_cnn", {}), ("resnet18", 7), r"misses 102 of 122 .*Another architecture"),
    ],
    ids=str,
)
def test_another_architecture(made, asked, message, file):
    """huggingface/transformers #12939: tensors that are not used, or missing, are passed over without a word."""
    name, options = made
    path = file(models.build(name, 7, **options).state_dict())
    with pytest.raises(SourceError, match=message):
        load_source(path, *asked, width=4)


def test_torchvisions_weights_in_ours(file):
    """huggingface/transformers #12939: torchvision's ResNet-18 is another network than ours; the error says so."""
    path = file(models.build("imagenet/resnet18", 7, pretrained=False).network.state_dict())
    with pytest.raises(SourceError, match="It fits imagenet/resnet18"):
        load(path)
    assert load_source(path, "imagenet/resnet18", 7).network.fc.weight.shape == (7, 512)


def test_more_tensors_than_are_used(file):
    """huggingface/transformers #12939: one tensor more would change what the network computes."""
    weights = small().network.state_dict()
    with pytest.raises(SourceError, match=r"holds 1 that it has no use for \('temperature'\)"):
        load(file(weights | {"temperature": torch.tensor(2.0)}))
    counters = {name: value for name, value in weights.items() if "num_batches_tracked" not in name}
    assert len(load(file(counters | {"extra.num_batches_tracked": torch.tensor(3)})).state_dict()) == 124


NORMALISERS = {
    "ours": ("normalise.mean", "normalise.std", (1, 3, 1, 1), 1),
    "RobustBench": ("mu", "sigma", (3, 1, 1), 1),
    "robustness": ("normalizer.new_mean", "normalizer.new_std", (3, 1, 1), 1),
    "plain": ("model.mean", "model.std", (3,), 1),
    "255ths": ("pixel_mean", "pixel_std", (3,), 255),
}


@pytest.mark.parametrize("kind", NORMALISERS)
@pytest.mark.parametrize("beside", [True, False])
def test_the_normaliser_of_the_file(kind, beside, file, caplog):
    """RobustBench/robustbench #16, MadryLab/robustness #74: the mean and deviation in a checkpoint are dropped."""
    mean, std, shape, scale = NORMALISERS[kind]
    source = small(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)).eval()
    weights = {f"network.{name}": value for name, value in source.network.state_dict().items()}
    held = {
        mean: scale * source.normalise.mean.clone().view(shape),
        std: scale * source.normalise.std.clone().view(shape),
    }
    path = file(weights | held if beside else {"state_dict": weights} | held)
    with caplog.at_level(logging.WARNING, "study"):
        loaded = load(path).eval()
    assert not caplog.text
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(loaded(images), source(images), atol=1e-5)
    assert loaded.spec["mean"] == pytest.approx([0.1, 0.2, 0.3])
    with pytest.raises(SourceError, match="leave it out"):
        load(path, mean=(0, 0, 0), std=(1, 1, 1))


def test_no_normaliser_is_said(file, caplog):
    """MadryLab/robustness #74: where is the normalisation? Where the file has none, what is assumed is said."""
    path = file(small().network.state_dict())
    with caplog.at_level(logging.WARNING, "study"):
        load(path)
    assert "holds no normaliser: mean (0.4914, 0.4822, 0.4465)" in caplog.text
    caplog.clear()
    load(path, mean=(0, 0, 0), std=(1, 1, 1))
    assert not caplog.text


@pytest.mark.parametrize("together", [True, False])
def test_several_sets_of_weights(together, file):
    """zhuyu-cs/MeanFlow #12: of raw and averaged weights in one file the wrong ones are evaluated."""
    raw, averaged = small(0), small(1)
    parts = {"model": raw.network.state_dict(), "ema": averaged.network.state_dict()}
    content = {f"{key}.{name}": value for key, part in parts.items() for name, value in part.items()}
    path = file({"state_dict": content} if together else parts | {"epoch": 3})
    with pytest.raises(SourceError, match=r"holds several sets.*model.*ema.*weights="):
        load(path)
    at = "state_dict." if together else ""
    assert fingerprint(load(path, weights=f"{at}ema")) == fingerprint(averaged)
    assert fingerprint(load(path, weights=f"{at}model")) == fingerprint(raw)
    with pytest.raises(SourceError, match="no fitting weights under 'best'"):
        load(path, weights="best")
    shadow = {"shadow": dict(averaged.network.named_parameters())}  # of the weights alone, without statistics
    path = file({"model": raw.network.state_dict(), "ema": shadow})
    with pytest.raises(SourceError, match=r"several sets of weights, 'model' and, in part, 'ema\.shadow'"):
        load(path)
    assert fingerprint(load(path, weights="model")) == fingerprint(raw)


def test_copies_of_the_same_weights_need_no_answer(file):
    """MadryLab/robustness #74: its checkpoints hold the network twice, as `model` and as `attacker.model`."""
    source = small()
    weights = source.network.state_dict()
    path = file({f"module.{at}model.{name}": value for at in ("", "attacker.") for name, value in weights.items()})
    assert fingerprint(load(path)) == fingerprint(source)


def test_a_source_is_measured(shapes, file, caplog):
    """happyharrycn/actionformer_release #103: weights that fit and are worth nothing; `check=` measures them."""
    with caplog.at_level(logging.INFO, "study"):
        load_source("ours/shapes10-standard-w16", check=shapes.test)
    (share,) = re.findall(r"is right on ([\d.]+) % of \d+ pictures of shapes10 test", caplog.text)
    assert float(share) > 60
    with pytest.raises(SourceError, match=r"always saying one class gives [\d.]+ %: are these its weights"):
        load(file(small(classes=10).network.state_dict()), 10, check=shapes.test)
    with pytest.raises(SourceError, match="knows 11 classes and shapes10 test has 10"):
        load(file(small(classes=11).network.state_dict()), 11, check=shapes.test)


def test_a_runs_weights(few, tmp_path):
    """RobustBench/robustbench #16: a run's weights.safetensors alone, with its normaliser or beside its recipe."""
    model = models.build("resnet18", 10, width=4, mean=(0.0,) * 3, std=(1.0,) * 3)
    run = train(model, few, RECIPE, tmp_path / "run", progress=False)
    weights = run.folder / "weights.safetensors"
    assert fingerprint(load_source(weights)) == fingerprint(run.model)
    shutil.copy(weights, tmp_path / "moved.safetensors")
    assert fingerprint(load_source(tmp_path / "moved.safetensors", "resnet18", 10, width=4)) == fingerprint(
        run.model
    )


def test_a_run_of_ones_own_network_is_loaded_by_its_own_call(few, tmp_path):
    """MadryLab/robustness #96: a run of one's own network cannot be made from a name; the refusal says so."""
    network = models.wrap(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)))
    run = train(network, few, RECIPE, tmp_path / "run", progress=False)
    with pytest.raises(SourceError, match=r"was not made by models\.build.*call train\(\) with this folder"):
        load_source(run.folder)
    again = train(network, few, RECIPE, tmp_path / "run", progress=False)
    assert fingerprint(again.model) == fingerprint(run.model)


OUTSIDE = """
import sys, torch
from load import load
network = load()
found = [torch.export.load("network.pt2").module(), network]
for images, wanted in torch.load("pictures.pt", weights_only=True):
    for each in found:
        logits = each(images)
        assert (logits - wanted).abs().max() < 1e-5, (logits - wanted).abs().max()
assert not {"models", "attacks", "trainer"} & sys.modules.keys()
"""


def without_pooling():
    model = models.build("imagenet/resnet18", 5, pretrained=False)
    model.network.maxpool = nn.Identity()  # the usual change for small pictures, of which no weight tells
    return model


@pytest.mark.parametrize("kind", [late("ours"), late("torchvision"), late("changed"), "own"])
def test_export(kind, tmp_path):
    """open-mmlab/mmdetection #8255, richzhang/colorization-pytorch #2: a file without normaliser or loader.

    Both files give the same logits elsewhere, without this repository, for any number of pictures.
    """
    model = {
        "ours": lambda: adapt(small(), 5, train="head", rank=2),
        "torchvision": lambda: models.build("imagenet/squeezenet1_1", 5, pretrained=False, resize=48),
        "changed": without_pooling,
        "own": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 5)),
    }[kind]().eval()
    export(model, tmp_path / "there")
    sizes = [(1, 32), (5, 32), *((3, size) for size in (48, 64) if kind != "own")]
    with torch.no_grad():
        pairs = [(images, model(images)) for images in (torch.rand(n, 3, size, size) for n, size in sizes)]
    torch.save(pairs, tmp_path / "there" / "pictures.pt")
    outside = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-P", "-c", "import sys; sys.path.insert(0, '.')" + OUTSIDE],
        cwd=tmp_path / "there",
        env=outside,
        check=True,
    )
    weights = torch.load(tmp_path / "there" / "weights.pt", weights_only=True)
    assert all(value.dtype in (torch.float32, torch.int64) for value in weights.values())
    if kind == "torchvision":
        again = load_source(tmp_path / "there" / "weights.pt", "imagenet/squeezenet1_1", 5, resize=48).eval()
        with torch.no_grad():
            assert torch.allclose(again(pairs[1][0]), pairs[1][1], atol=1e-5)
    with pytest.raises(TypeError, match="a run or a model is needed"):
        export(tmp_path, tmp_path)


def test_an_edited_number_of_epochs(few, tmp_path):
    """deepinsight/insightface #2143: a run whose epochs were edited cannot go on; how, is not said."""
    model = small(classes=10)
    train(model, few, RECIPE, tmp_path / "run", progress=False)
    with pytest.raises(
        RunRefused, match=r"recipe\.epochs: 1 in the folder, 2 asked\n.*run-2, or delete .*run to train"
    ):
        train(model, few, replace(RECIPE, epochs=2), tmp_path / "run", progress=False)


def test_the_curves_of_an_early_kill_are_of_one_recipe(few, tmp_path, monkeypatch):
    """eriklindernoren/PyTorch-YOLOv3 #599: curves of two runs in one folder; after an early kill, two recipes."""
    with monkeypatch.context() as patch:
        patch.setattr(steps, "train_step", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(small(classes=10), few, replace(RECIPE, learning_rate=0.3), tmp_path / "run", progress=False)
    run = train(small(classes=10), few, RECIPE, tmp_path / "run", progress=False)
    events = EventAccumulator(str(run.folder)).Reload()
    (text,) = events.Tensors("recipe/text_summary")
    assert f"learning_rate | {RECIPE.learning_rate}" in str(text.tensor_proto.string_val[0])
    assert len(events.Scalars("loss/train")) == 1
