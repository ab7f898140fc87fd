"""timm's networks: built, normalised, adapted, attacked and found again as our own are."""

from dataclasses import replace

import pytest
import safetensors.torch as safetensors
import timm
import torch
from huggingface_hub import constants
from small import late
from torch.nn.functional import cross_entropy

import models
from attacks import PGD
from defences import Adversarial
from finetune_framework import BATCH_NORM, SourceError, adapt, load_source
from models import WeightsError
from trainer import Recipe, train

# A small one of each kind: by maps, by tokens, and by tokens with buffers that no file of weights holds.
KINDS = {
    "test_resnet": {},
    "test_vit": {"img_size": 32, "patch_size": 8},
    "swin_tiny_patch4_window7_224": {
        "img_size": 32,
        "window_size": 4,
        "embed_dim": 8,
        "depths": (1, 2),
        "num_heads": (1, 1),
    },
}
LAST = {"test_resnet": "layer4", "test_vit": "blocks.5", "swin_tiny_patch4_window7_224": "layers.1"}
HEADS = {"test_resnet": "fc", "test_vit": "head", "swin_tiny_patch4_window7_224": "head.fc"}


def small(name, classes=20):
    return models.build(f"timm/{name}", classes, pretrained=False, **KINDS[name])


def trained(model):
    return {name.removeprefix("network.") for name, weight in model.named_parameters() if weight.requires_grad}


def test_it_is_normalised_as_its_weights_want_it_inside_the_model():
    model = small("test_vit").eval()
    assert (
        model.spec["mean"]
        == list(timm.get_pretrained_cfg("test_vit").mean)
        != models.build("resnet18", 10).spec["mean"]
    )
    images = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(model.spec[name]).view(3, 1, 1) for name in ("mean", "std"))
    assert torch.allclose(model(images), model.network((images - mean) / std), atol=1e-5)
    assert (
        models.build("timm/test_vit", 10, pretrained=False, mean=(0.1,) * 3, **KINDS["test_vit"]).spec["mean"]
        == [0.1] * 3
    )


def test_a_size_that_it_does_not_take_is_answered_with_its_own():
    tiny = {"name": "timm/vit_tiny_patch16_224", "pretrained": False, "embed_dim": 12, "depth": 1}
    model = models.build(num_classes=10, **tiny)
    with pytest.raises(ValueError, match=r"vit_tiny_patch16_224 does not take pictures of 32 x 32.*resize=224"):
        model(torch.rand(1, 3, 32, 32))
    assert models.build(num_classes=10, resize=224, **tiny)(torch.rand(1, 3, 32, 32)).shape == (1, 10)
    assert adapt(model, 5, train="head").spec["adapted"][0]["num_classes"] == 5


@pytest.mark.parametrize("name", KINDS)
def test_it_adapts_trains_adversarially_and_is_found_again(name, shapes, tmp_path):
    few = replace(shapes, **{part: getattr(shapes, part).first(32) for part in ("train", "val", "test")})
    model = adapt(small(name), 10, train="head")
    head = {f"{HEADS[name]}.{kind}" for kind in ("weight", "bias")}
    assert trained(model) == head
    start = {key: value.clone() for key, value in model.state_dict().items()}
    attack = PGD(steps=1, step_size=8 / 255)
    recipe = Recipe(epochs=1, batch_size=16, validation_images=4, precision="float32", defence=Adversarial(attack))
    run = train(model, few, recipe, tmp_path / "run", progress=False)
    for key, value in run.model.state_dict().items():
        assert torch.equal(start[key], value) == (key.removeprefix("network.") not in head), key
    again = load_source(tmp_path / "run").eval()
    images = torch.rand(4, 3, 32, 32)
    assert torch.equal(again(images), run.model.eval()(images))


@pytest.mark.parametrize("name", KINDS)
def test_an_attack_raises_its_loss(name):
    model, generator = small(name).eval(), torch.Generator().manual_seed(0)
    images, labels = torch.rand((8, 3, 32, 32), generator=generator), torch.arange(8)
    attacked = PGD(steps=3, step_size=4 / 255)(model, images, labels)
    before, after = (cross_entropy(model(each), labels, reduction="none") for each in (images, attacked))
    assert (after > before).all()


@pytest.mark.parametrize("name", KINDS)
def test_its_last_stage_is_the_last_that_timm_lists(name):
    model = adapt(small(name), 10, train="last_stage")
    weights = {key.removeprefix("network.") for key, _ in model.named_parameters()}
    after = tuple(f"{stage}." for stage in (LAST[name], "norm", HEADS[name]))
    assert trained(model) == {key for key in weights if key.startswith(after)}
    assert {key for key in trained(model) if key.startswith(after[0])}


def test_weights_from_a_file(tmp_path):
    model = small("test_vit", 7)
    torch.save(model.network.state_dict(), tmp_path / "vit.pt")
    loaded = load_source(tmp_path / "vit.pt", "timm/test_vit", 7, **KINDS["test_vit"])
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded.eval()(images), model.eval()(images))
    with pytest.raises(SourceError, match="does not fit timm/test_resnet"):
        load_source(tmp_path / "vit.pt", "timm/test_resnet", 7)


def test_weights_from_the_cache_of_timm(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    place = tmp_path / ("models--" + timm.get_pretrained_cfg("test_resnet").hf_hub_id.replace("/", "--"))
    with pytest.raises(WeightsError, match=r"weights of timm/test_resnet could not be had.*pretrained=False"):
        models.build("timm/test_resnet", 10, cache_dir=str(tmp_path))
    (place / "snapshots" / "1").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("1")
    published = timm.create_model("test_resnet").state_dict()
    safetensors.save_file(published, place / "snapshots" / "1" / "model.safetensors")
    whole = load_source("timm/test_resnet", cache_dir=str(tmp_path)).network.state_dict()
    assert all(torch.equal(whole[key], value) for key, value in published.items())
    other = models.build("timm/test_resnet", 10, cache_dir=str(tmp_path)).network.state_dict()
    assert {key for key, value in published.items() if not torch.equal(value, other[key])} == {
        "fc.weight",
        "fc.bias",
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", "timm has no 'resnet81'; it has resnet18"),
        ("resnet18.mine", r"timm has no 'resnet18.mine'; it has resnet18\.a1_in1k"),
        (
            "deit_tiny_distilled_patch16_224",
            "VisionTransformerDistilled of timm has several heads, head, head_dist",
        ),
    ],
)
def test_what_it_cannot_build_is_told_why(name, message):
    with pytest.raises(ValueError, match=message):
        models.build(f"timm/{name}", 10, pretrained=False)


def test_a_source_without_a_head_asks_for_the_number_of_classes():
    with pytest.raises(
        ValueError, match=r"have no head: models\.build\('timm/vit_small_patch14_dinov2', CLASSES\)"
    ):
        load_source("timm/vit_small_patch14_dinov2")


@pytest.mark.parametrize(
    "name", ["mobilenetv3_small_050", "resnetv2_50", late("ghostnet_100"), late("fastvit_t8")]
)
def test_a_batchnorm_that_holds_its_activation_is_a_batchnorm(name):
    """adapt() freezes it, and `norms` finds it: of timm most have such."""
    source = models.build(f"timm/{name}", 10, pretrained=False)

    def moving(**how):
        model = adapt(source, 5, **how).train()
        norms = {n: m for n, m in model.network.named_modules() if isinstance(m, BATCH_NORM) and m.training}
        assert all(weight.requires_grad for norm in norms.values() for weight in norm.parameters())
        return len(norms)

    every = sum(isinstance(module, BATCH_NORM) for module in source.modules())
    assert any(isinstance(module, timm.layers.BatchNormAct2d) for module in source.modules())
    assert moving(train="all") == moving(train="head", norms="adapted") == every
    assert moving(train="head") == moving(train="all", norms="frozen") == 0
    assert 0 < moving(train="last_stage") < every
