"""Sources, heads, and what stays frozen."""

import copy
import pickle
import signal
import socket
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from small import late, tiny_resnet
from torch import nn

import models
from attacks import PGD
from defences import (
    AWP,
    L2SP,
    MART,
    NFGSM,
    TRADES,
    Adversarial,
    FeatureDistillation,
    Free,
    Guided,
    Standard,
)
from finetune_framework import SourceError, adapt, describe, load_source
from loaders import Split
from models.fingerprint import fingerprint
from models.low_rank import Packed
from storage import atomic_files
from trainer import Recipe, train
from training import step as steps
from training.weights import RunDamaged

# The study's five backbones and three others.
BACKBONES = {
    "resnet18": 32,
    "alexnet": 64,
    "vgg11_bn": 32,
    "squeezenet1_0": 32,
    "densenet121": 32,
    "mobilenet_v3_small": 32,
    "shufflenet_v2_x0_5": 32,
    "efficientnet_b0": 32,
}
LATE = ("alexnet", "vgg11_bn", "densenet121", "shufflenet_v2_x0_5", "efficientnet_b0")  # large, or deep
RECIPE = Recipe(epochs=1, batch_size=16, learning_rate=0.01, validation_images=4, precision="float32")
ADVERSARIAL = replace(RECIPE, defence=Adversarial(PGD(steps=1, step_size=8 / 255)))


@pytest.fixture
def few(shapes):
    small = {part: getattr(shapes, part).first(32) for part in ("train", "val", "test")}
    return replace(shapes, **small)


def small_resnet(classes=100):
    return models.build("resnet18", classes, width=4)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def trained(model):
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("name", [late(name) if name in LATE else name for name in BACKBONES])
def test_every_backbone_adapts_trains_adversarially_and_keeps_its_frozen_part(name, few, tmp_path):
    source = models.build(f"imagenet/{name}", 1000, pretrained=False, resize=BACKBONES[name])
    before = state(source)
    model = adapt(source, 10, train="head")
    assert all(torch.equal(before[key], value) for key, value in source.state_dict().items())
    head = {f"network.{model.head}.{kind}" for kind in ("weight", "bias")}
    assert trained(model) == head
    start = state(model)
    run = train(model, few, ADVERSARIAL, tmp_path / "run", progress=False)
    for key, value in run.model.state_dict().items():
        assert torch.equal(start[key], value) == (key not in head), key
    again = load_source(tmp_path / "run")
    assert fingerprint(again) == fingerprint(run.model)
    assert trained(again) == head


@pytest.mark.parametrize("name", [late(name) if name in (*LATE, "resnet18") else name for name in BACKBONES])
def test_a_backbone_resumes(name, few, tmp_path, monkeypatch):
    source = models.build(f"imagenet/{name}", 1000, pretrained=False, resize=BACKBONES[name])
    model = adapt(source, 10, train="head")
    whole = train(model, few, ADVERSARIAL, tmp_path / "whole", progress=False)

    def stop(*arguments):
        signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    step = steps.train_step
    monkeypatch.setattr(steps, "train_step", stop)
    with pytest.raises(KeyboardInterrupt, match="step 1 of 2"):
        train(model, few, ADVERSARIAL, tmp_path / "stopped", progress=False)
    monkeypatch.undo()
    resumed = train(model, few, ADVERSARIAL, tmp_path / "stopped", progress=False)
    assert fingerprint(resumed.model) == fingerprint(whole.model)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("resnet18", "layer4.0.conv1"),
        ("alexnet", "features.6"),
        late("vgg11_bn", "features.22"),
        ("squeezenet1_0", "features.12.squeeze"),
        ("densenet121", "features.denseblock4.denselayer1.norm1"),
    ],
)
def test_the_last_stage_begins_where_the_resolution_last_falls(name, first):
    model = adapt(models.build(f"imagenet/{name}", 1000, pretrained=False, resize=64), 10, train="last_stage")
    layers = [name.removeprefix("network.").rpartition(".")[0] for name, _ in model.named_parameters()]
    order = list(dict.fromkeys(layers))
    trains = {name.removeprefix("network.").rpartition(".")[0] for name in trained(model)}
    assert trains == set(order[order.index(first) :])


@pytest.mark.parametrize("name", [late("convnext_tiny"), "swin_t", "vit_b_32"])
def test_weights_outside_the_layers_are_frozen_with_what_is_around_them(name):
    size = {"vit_b_32": 224}.get(name, 32)
    source = models.build(f"imagenet/{name}", 1000, pretrained=False, resize=size)
    model = adapt(source, 10, train="head")
    head = model.network.get_submodule(model.head)
    assert trained(model) == {f"network.{model.head}.{key}" for key, _ in head.named_parameters()}
    assert describe(model).query("trains").parameters.sum() == sum(weight.numel() for weight in head.parameters())
    everything = adapt(source, 10, train="all")
    assert trained(everything) == {key for key, _ in everything.named_parameters()}
    if name == "vit_b_32":  # one resolution throughout
        with pytest.raises(ValueError, match="resolution never falls"):
            adapt(source, 10, train="last_stage")
        part = adapt(source, 10, train=["encoder.layers.encoder_layer_11", "head"])
    else:
        part = adapt(source, 10, train="last_stage")
    assert trained(model) < trained(part) < trained(everything)
    model.train()
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(images), model(images))  # dropout and stochastic depth stand still


def test_last_stage_of_ours():
    model = adapt(small_resnet(), 10, train="last_stage")
    assert {name.split(".")[1] + name.split(".")[2] for name in trained(model)} == {
        "stages3",
        "headweight",
        "headbias",
    }
    assert trained(adapt(small_resnet(), 10, train="all")) == {n for n, _ in small_resnet(10).named_parameters()}


def test_named_layers_and_rates(few, tmp_path):
    model = adapt(small_resnet(), 10, train=["stem", "head"], rates={"stem": 0.1, "head": 2})
    assert {name.split(".")[1] for name in trained(model)} == {"stem", "head"}
    table = describe(model).set_index("layer")
    assert table.rate[["stem.0", "head (head)", "stages.0.0.conv1"]].tolist() == [0.1, 2, 0]
    assert table.BatchNorm[["stem.1", "stages.0.0.bn1"]].tolist() == ["moves", "fixed"]
    assert table.parameters.sum() == sum(weight.numel() for weight in model.parameters())
    # A rate of 0.1 moves a weight as a tenth of the learning rate does.
    recipe = replace(RECIPE, batch_size=32, schedule="constant", defence=Standard())
    whole = adapt(small_resnet(), 10, train=["stem", "head"])
    moved = {}
    for name, each in (("rates", model), ("plain", whole)):
        moved[name] = train(each, few, recipe, tmp_path / name, progress=False).model.network.stem[0].weight
        moved[name] = moved[name] - each.network.stem[0].weight
    assert torch.allclose(moved["rates"], 0.1 * moved["plain"], atol=1e-7)


@pytest.mark.parametrize("who", ["model", "network", "layer", "copy", "torchattacks"])
def test_frozen_means_frozen_whoever_calls_train(who):
    from attacks import Torchattacks

    model = adapt(models.build("imagenet/mobilenet_v3_small", 1000, pretrained=False, resize=32), 10, train="head")
    assert any(isinstance(module, nn.Dropout) for module in model.modules())
    resnet = adapt(small_resnet(), 10, train="head")
    images = torch.rand(8, 3, 32, 32)
    for each in (model, resnet):
        if who == "copy":
            each = copy.deepcopy(each)
        elif who == "torchattacks":
            Torchattacks("FGSM")(each, images, torch.arange(8))
        target = {"network": each.network, "layer": next(each.network.children())}.get(who, each)
        before = state(each)
        for module in target.modules():
            module.train()
        assert torch.equal(each(images), each(images))  # dropout and BatchNorm stand still
        assert all(torch.equal(before[name], value) for name, value in each.state_dict().items())


def test_dropout_behind_the_first_layer_that_trains_is_alive():
    model = adapt(
        models.build("imagenet/alexnet", 1000, pretrained=False, resize=64), 10, train=["classifier.1", "head"]
    )
    model.train()
    assert not model.network.classifier[0].training  # before it
    assert model.network.classifier[3].training


def test_adapting_again_thaws(few, tmp_path):
    head_only = adapt(small_resnet(), 10, train="head")
    everything = adapt(head_only, 10, train="all")
    everything.train()
    assert all(module.training for module in everything.modules())
    assert all(weight.requires_grad for weight in everything.parameters())
    run = train(everything, few, replace(RECIPE, defence=Standard()), tmp_path / "run", progress=False)
    assert fingerprint(load_source(run.folder)) == fingerprint(run.model)


def test_probe_then_all_keeps_the_head_that_was_probed(few, tmp_path):
    probe = train(adapt(small_resnet(), 10, train="head"), few, RECIPE, tmp_path / "probe", progress=False)
    everything = adapt(probe.model, None, train="all")
    assert fingerprint(everything) == fingerprint(probe.model)
    assert all(weight.requires_grad for weight in everything.parameters())
    run = train(everything, few, RECIPE, tmp_path / "all", progress=False)
    assert fingerprint(load_source(run.folder)) == fingerprint(run.model) != fingerprint(probe.model)


HEAD_ALONE = replace(RECIPE, epochs=3, defence=Standard(), augment=False, weight_decay=0.01)


@pytest.mark.parametrize(
    ("name", "ema"),
    [("resnet18", 0.0), ("resnet18", 0.5), ("imagenet/mobilenet_v3_small", 0.5), late("imagenet/alexnet", 0.5)],
)
def test_a_head_on_stored_features_is_the_head_trained_the_long_way(name, ema, few, tmp_path, monkeypatch):
    options = {"width": 4} if name == "resnet18" else {"pretrained": False, "resize": 64}
    model = adapt(models.build(name, 100, **options), 10, train="head")
    passes = []
    model.network.register_forward_hook(lambda module, images, logits: passes.append(len(logits)))
    recipe = replace(HEAD_ALONE, ema=ema)
    fast = train(model, few, recipe, tmp_path / "fast", progress=False)
    through = sum(passes)
    passes.clear()
    monkeypatch.setattr(steps, "CACHE_BYTES", 0)
    slow = train(model, few, recipe, tmp_path / "slow", progress=False)
    # Two epochs' pictures less, and the two of the trial; validation passes through both.
    assert sum(passes) == through + 2 * len(few.train)
    start = model.state_dict()
    for (key, one), other in zip(fast.model.state_dict().items(), slow.model.state_dict().values(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-6)
        assert torch.equal(one, start[key]) == (not key.startswith(f"network.{model.head}."))


class Noisy(Split):
    """Draws anew what it gives, each time."""

    def batch(self, *arguments, **settings):
        images, labels = super().batch(*arguments, **settings)
        return (images + 0.1 * torch.rand_like(images)).clamp(0, 1), labels


@pytest.mark.parametrize(
    "change",
    [
        "an own network",
        "augmented",
        "adversarial",
        "last stage",
        "BatchNorm moves",
        "drawn anew",
        "squeezenet",
        "penalty",
        "low",
        "own pictures",
    ],
)
def test_features_are_stored_only_where_they_stand_still(change, few, tmp_path, monkeypatch):
    source = small_resnet()
    model = adapt(source, 10, train="last_stage" if change == "last stage" else "head")
    if change == "an own network":
        model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
        model.head = "1"  # the name that ours has too
    if change == "BatchNorm moves":
        model = small_resnet(10)
        model.requires_grad_(False)
        model.network.head.requires_grad_(True)
    if change == "drawn anew":  # no layer, so none that a mode would tell of
        model.network.stages[3].register_forward_hook(lambda *_: nn.functional.dropout(_[2], 0.1, True))
    if change == "squeezenet":  # there is more behind its head
        model = adapt(models.build("imagenet/squeezenet1_0", 1000, pretrained=False), 10, train="head")
    defences = {"adversarial": Adversarial(PGD(steps=1)), "penalty": L2SP(Standard(), source)}
    recipe = replace(HEAD_ALONE, epochs=1, augment=change == "augmented", defence=defences.get(change, Standard()))
    recipe = replace(recipe, low_resolution=16 if change == "low" else None)
    if change == "own pictures":
        few = replace(few, train=Noisy(few.train.images, few.train.labels, few.classes, "noisy"))
    stored = []
    real = steps.use_features
    monkeypatch.setattr(
        steps, "use_features", lambda state, *rest: real(state, *rest) or stored.append(state.features)
    )
    train(model, few, recipe, tmp_path / "run", progress=False)
    assert stored == [None]


def test_a_network_in_which_a_pass_has_left_tensors_can_be_sent():
    model = small_resnet()
    model.network.seen = model(torch.rand(2, 3, 16, 16)).sum()
    assert fingerprint(Packed(model).unpacked("cpu")) == fingerprint(model)


def test_a_run_below_ones_home_is_found_and_says_itself_what_it_is(few, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run = train(small_resnet(10), few, replace(HEAD_ALONE, epochs=1), "~/runs/mine", progress=False)
    assert fingerprint(load_source("~/runs/mine")) == fingerprint(run.model)
    for more in ({"architecture": "resnet18"}, {"num_classes": 10}, {"weights": "ema"}, {"width": 4}):
        with pytest.raises(SourceError, match=r"is a folder: a run's recipe\.json says what it is"):
            load_source("~/runs/mine", **more)
        if "architecture" in more or "weights" in more:
            for name in ("ours/shapes10-robust-w16", "timm/resnet18"):
                with pytest.raises(SourceError, match="it takes no architecture"):
                    load_source(name, **more)
    with pytest.raises(SourceError, match="is a folder"):
        load_source("~/runs/mine/weights.safetensors", weights="ema")


def test_the_new_head_depends_on_its_seed_alone():
    source = small_resnet()
    torch.manual_seed(3)
    one = adapt(source, 10)
    torch.manual_seed(4)
    assert fingerprint(one) == fingerprint(adapt(source, 10)) != fingerprint(adapt(source, 10, seed=1))


# --- low-rank adapters, BatchNorm ------------------------------------------------------------------


def logits_of(model):
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(images)


@pytest.mark.parametrize("name", ["resnet18", late("imagenet/densenet121"), "imagenet/mobilenet_v3_small"])
def test_low_rank_adapters_learn_on_a_frozen_backbone_and_become_part_of_it(name, few, tmp_path):
    options = {"width": 4} if name == "resnet18" else {"pretrained": False, "resize": 32}
    source = models.build(name, 100, **options)
    plain, model = adapt(source, 10, train="head"), adapt(source, 10, train="head", rank=2)
    assert torch.allclose(logits_of(model), logits_of(plain), atol=1e-5)  # until they have learned
    learns = trained(model) - trained(plain)
    layers = [m for m in source.network.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    assert len(learns) == 2 * (len(layers) - 1)
    assert all(key.endswith((".up", ".down")) for key in learns)
    recipe = replace(RECIPE, defence=Adversarial(PGD(steps=1)))
    run = train(model, few, recipe, tmp_path / "run", progress=False)
    start = state(model)
    for key, value in run.model.state_dict().items():  # every adapter has moved, and what is beneath has not
        assert torch.equal(start[key], value) == (key not in trained(model)) or key.endswith(".down"), key
    again = load_source(run.folder)
    assert fingerprint(again) == fingerprint(run.model)
    assert trained(again) == trained(model)
    merged = adapt(run.model, None, train="all")
    assert {key for key, _ in merged.named_parameters()} == {key for key, _ in plain.named_parameters()}
    assert trained(merged) == {key for key, _ in merged.named_parameters()}
    assert torch.allclose(logits_of(merged), logits_of(run.model), atol=1e-4)
    assert not torch.allclose(logits_of(merged), logits_of(plain), atol=1e-3)
    further = train(merged, few, recipe, tmp_path / "further", progress=False)
    assert fingerprint(load_source(further.folder)) == fingerprint(further.model)


def test_an_adapter_of_full_rank_can_be_any_change_and_counts_in_l2sp():
    source = small_resnet()
    model = adapt(source, 10, train="head", rank=10_000)
    adapters = [module for module in model.modules() if isinstance(module, models.LowRank)]
    assert all(one.up.shape[1] == min(one.up.shape[0], one.down.shape[1]) for one in adapters)
    assert L2SP(Standard(), source).distance(model, None, source) == 0
    wanted = 0
    with torch.no_grad():
        for one in adapters:
            one.up.normal_(0, 0.1)
            wanted += one.change().square().sum()
    distance = L2SP(Standard(), source).distance(model, None, source)
    assert distance.item() == pytest.approx(float(wanted) / 2, rel=1e-5)
    with pytest.raises(ValueError, match="the source has no"):
        L2SP(Standard(), source).distance(adapt(models.build("resnet18", 5, width=8), 10), None, source)


def test_heads_and_adapters_are_made_where_the_network_lies_and_drawn_on_the_cpu():
    """As on CUDA, where a head on another device would be an error, and its generator another."""
    source = models.build("imagenet/resnet18", 100, pretrained=False, resize=32).to("meta")
    before = torch.get_rng_state()
    model = adapt(source, 10, train="head", rank=2)
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    assert torch.equal(before, torch.get_rng_state())
    drawn = [one.down for one in adapt(small_resnet(), 10, rank=2, train="head").modules() if hasattr(one, "down")]
    torch.manual_seed(5)
    again = [one.down for one in adapt(small_resnet(), 10, rank=2, train="head").modules() if hasattr(one, "down")]
    assert all(map(torch.equal, drawn, again))


def test_l2sp_takes_a_source_with_adapters():
    source = adapt(small_resnet(), 10, train="head", rank=2)
    for module in source.modules():
        if isinstance(module, models.LowRank):
            nn.init.normal_(module.up, 0, 0.1)
    assert L2SP(Standard(), source).distance(adapt(source, 5), None, source) == 0


def test_frozen_norms_leave_weights_beside_them_alone():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return self.head((self.scale * self.bn(self.conv(x))).mean((2, 3)))

    source = models.Model(Scaled(), models.Normalise((0.5,) * 3, (0.2,) * 3), None, {"num_classes": 5})
    names = trained(adapt(source, 10, norms="frozen"))
    assert names == {f"network.{n}" for n in ("scale", "conv.weight", "conv.bias", "head.weight", "head.bias")}


def test_crafting_on_adapters_takes_the_fused_form_and_finds_the_same(monkeypatch):
    model = adapt(small_resnet(), 10, train="head", rank=2).eval()
    for module in model.modules():
        if isinstance(module, models.LowRank):
            nn.init.normal_(module.up, 0, 0.1, generator=torch.Generator().manual_seed(0))
    merged = adapt(model, None)
    images, labels = torch.rand(4, 3, 32, 32), torch.arange(4)
    attack = PGD(steps=2, random_start=False)
    one, other = attack(model, images, labels), attack(merged.eval(), images, labels)
    assert ((one - other).abs() < 1e-6).float().mean() > 0.99
    calls, real = [], nn.Conv2d._conv_forward
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda *parts: calls.append(1) or real(*parts))
    attack(model, images, labels)
    assert not calls


def norms_of(model):
    rows = describe(model)
    return rows[rows.BatchNorm != ""]


def test_norms_frozen_or_adapted(few, tmp_path):
    source = small_resnet()
    frozen = adapt(source, 10, train="all", norms="frozen")
    assert set(norms_of(frozen).BatchNorm) == {"fixed"}
    assert not norms_of(frozen).trains.any()
    assert describe(frozen).query("BatchNorm == ''").trains.all()
    moving = adapt(source, 10, train="head", norms="adapted")
    assert set(norms_of(moving).BatchNorm) == {"moves"}
    assert norms_of(moving).trains.all()
    assert list(describe(moving).query("BatchNorm == ''").query("trains").layer) == ["head (head)"]
    for name, model in (("frozen", frozen), ("moving", moving)):
        run = train(model, few, replace(RECIPE, defence=Standard()), tmp_path / name, progress=False)
        for key, value in run.model.state_dict().items():
            if "running" in key:
                assert torch.equal(value, model.state_dict()[key]) == (name == "frozen"), key
        assert fingerprint(load_source(run.folder)) == fingerprint(run.model)


WAYS = {
    "head": {"train": "head"},
    "last stage": {"train": "last_stage"},
    "all": {"train": "all"},
    "low rank": {"train": "head", "rank": 2},
    "norms adapted": {"train": "head", "norms": "adapted"},
    "norms frozen": {"train": "all", "norms": "frozen"},
    "low rank and norms": {"train": "last_stage", "rank": 2, "norms": "adapted"},
}
SOURCE, ATTACK = tiny_resnet(classes=100), PGD(steps=1, step_size=8 / 255)
DEFENCES = {
    "standard": Standard(),
    "pgd": Adversarial(ATTACK, ramp=(0.2, 0.5)),
    "trades": TRADES(ATTACK),
    "mart": MART(ATTACK),
    "n-fgsm": NFGSM(),
    "free": Free(),
    "guided": Guided(),
    "awp": AWP(TRADES(ATTACK)),
    "l2sp": L2SP(AWP(MART(ATTACK)), SOURCE),
    "distillation": FeatureDistillation(Adversarial(ATTACK), SOURCE),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_adapt_goes_with_every_defence(way):
    """What is to train moves, and nothing else does, BatchNorm's statistics included."""
    images, labels = torch.rand(4, 3, 16, 16).contiguous(memory_format=torch.channels_last), torch.arange(4)
    for name, defence in DEFENCES.items():
        model = adapt(SOURCE, 10, **WAYS[way]).train()
        before, moves = state(model), trained(model)
        norms = {
            key for key, module in model.named_modules() if isinstance(module, nn.BatchNorm2d) and module.training
        }
        training = steps.State(model, replace(RECIPE, defence=defence, ema=0.5), 2, torch.device("cpu"))
        for _ in range(2):  # low-rank adapters: the half that begins at random moves with the second step
            training.step = 1
            loss, _ = steps.train_step(training, images, labels)
            assert torch.isfinite(loss), name
        for key, value in model.state_dict().items():
            moved = key in moves or key.rpartition(".")[0] in norms
            assert torch.equal(value, before[key]) != moved, (name, key)


def test_describe_shows_adapters():
    rows = describe(adapt(small_resnet(), 10, train="last_stage", rank=3)).set_index("layer")
    assert not rows.trains["stages.0.0.conv1"]
    assert rows.trains["stages.0.0.conv1 (low rank)"]
    assert rows.side["stages.0.0.conv1"] == rows.side["stages.0.0.conv1 (low rank)"] == 32
    assert rows.parameters["stages.0.0.conv1 (low rank)"] == 3 * (4 + 36)
    assert "stages.3.0.conv1 (low rank)" not in rows.index
    assert rows.trains["head (head)"]


# --- files of weights ------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return (open, ("/tmp/evil", "w"))


def write_fault(fault, path):
    weights = {name: value.clone() for name, value in small_resnet(7).network.state_dict().items()}
    if fault == "cut":
        torch.save(weights, path)
        path.write_bytes(path.read_bytes()[:2000])
    elif fault == "code":
        torch.save({"state_dict": weights, "payload": Evil()}, path)
    elif fault == "plain pickle":
        path.write_bytes(pickle.dumps(Evil()))
    elif fault == "other":
        torch.save({f"conv{k}": torch.ones(3) for k in range(5)}, path)
    elif fault == "no tensors":
        torch.save({"epoch": 3}, path)
    elif fault == "empty":
        path.write_bytes(b"")
    elif fault == "width":
        torch.save(models.build("resnet18", 7, width=8).network.state_dict(), path)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("cut", "cannot be read as weights"),
        ("code", "a pickle with code in it is never opened"),
        ("plain pickle", "cannot be read as weights"),
        ("other", "misses 102 of 122 tensors"),
        ("no tensors", "holds no tensors"),
        ("empty", "cannot be read as weights"),
        ("width", "of shape"),
        ("absent", "does not exist"),
    ],
)
def test_files_that_do_not_fit_are_refused(fault, message, tmp_path):
    path = tmp_path / "weights.pt"
    write_fault(fault, path)
    with pytest.raises(SourceError, match=message) as caught:
        load_source(path, "resnet18", 7, width=4)
    assert "weights.pt" in str(caught.value)


def test_a_file_that_lies_about_being_safetensors(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-3])
    with pytest.raises(SourceError, match="cannot be read"):
        load_source(tmp_path / "w.safetensors", "resnet18", 7)


def test_folders_that_are_no_finished_run(tmp_path, few):
    with pytest.raises(SourceError, match="no run"):
        load_source(tmp_path)
    run = train(small_resnet(10), few, replace(RECIPE, defence=Standard()), tmp_path / "run", progress=False)
    (run.folder / "weights.safetensors").write_bytes(b"half")
    with pytest.raises(RunDamaged, match="damaged"):
        load_source(run.folder)
    (run.folder / "weights.safetensors").unlink()
    with pytest.raises(SourceError, match="not finished"):
        load_source(run.folder)
    with pytest.raises(SourceError, match="say which architecture"):
        load_source(__file__)


def test_downloads_that_fail_say_where_to_put_the_file(tmp_path, monkeypatch):
    from torchvision.models import ResNet18_Weights

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    original = ResNet18_Weights.DEFAULT.value
    monkeypatch.setattr(
        ResNet18_Weights.DEFAULT, "_value_", replace(original, url="http://127.0.0.1:9/r-f37072fd.pth")
    )
    with pytest.raises(models.WeightsError, match=r"Check the network.*put it at .*r-f37072fd\.pth"):
        load_source("imagenet/resnet18")
    place = tmp_path / "checkpoints" / "r-f37072fd.pth"
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(models.WeightsError, match="delete what is there"):
        load_source("imagenet/resnet18")
    network = models.build("imagenet/resnet18", 1000, pretrained=False).network
    torch.save(network.state_dict(), place)
    loaded = load_source("imagenet/resnet18")
    with pytest.raises(SourceError, match="its name says what it is"):
        load_source("imagenet/resnet18", "vgg11", 7)
    assert torch.equal(loaded.network.fc.weight, network.fc.weight)


def test_weights_from_a_server_that_is_silent_are_not_waited_for(tmp_path, monkeypatch):
    from torchvision.models import ResNet18_Weights

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(atomic_files, "SILENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/r-f37072fd.pth"
        monkeypatch.setattr(ResNet18_Weights.DEFAULT, "_value_", replace(ResNet18_Weights.DEFAULT.value, url=url))
        begun = time.monotonic()
        with pytest.raises(models.WeightsError, match="timed out"):
            load_source("imagenet/resnet18")
    assert time.monotonic() - begun < 10
    assert not list(tmp_path.rglob("*.pth"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "num_classes=1"),
        ({"num_classes": 10, "train": "nothing"}, "'head', 'last_stage', 'all'"),
        ({"num_classes": 10, "train": []}, "train=\\[\\]"),
        (
            {"num_classes": 10, "train": ["layer9"]},
            "'layer9', which is no layer; at the top there are stem, stages",
        ),
        ({"num_classes": 10, "train": ["stem.2"]}, "nothing would train"),
        ({"num_classes": 10, "rates": {"fc": 1}}, "rates names 'fc'"),
        ({"num_classes": 10, "rates": {"head": 0}}, "rates\\['head'\\]=0"),
        ({"num_classes": 10, "rates": {"stem": 0.1}, "train": "head"}, "'stem'\\]=0.1: this layer is frozen"),
        ({"num_classes": 10, "train": "head", "rank": 0}, "rank=0"),
        ({"num_classes": 10, "train": "head", "rank": True}, "rank=True"),
        ({"num_classes": 10, "train": "all", "rank": 4}, "nothing to adapt"),
        ({"num_classes": 10, "norms": "moving"}, "norms='moving'"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        adapt(small_resnet(), **arguments)


def test_a_batchnorm_without_weights_is_frozen_too():
    network = nn.Sequential(
        *(
            nn.Conv2d(3, 4, 3, 2),
            nn.BatchNorm2d(4, affine=False),
            nn.Conv2d(4, 8, 3),
            nn.BatchNorm2d(8, affine=False),
        ),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )
    source = models.wrap(network, mean=(0.5,) * 3, std=(0.5,) * 3, head="6")
    for train_, norms, expected in (
        ("all", None, [1, 3]),
        ("all", "frozen", []),
        ("head", None, []),
        (["0"], None, []),
    ):
        model = adapt(source, 5, train=train_, norms=norms).train()
        there = [i for i, part in enumerate(model.network) if isinstance(part, nn.BatchNorm2d) and part.training]
        assert there == expected, (train_, norms)


def test_a_head_that_is_a_convolution_keeps_its_settings():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    head = nn.Conv2d(8, 10, 3, padding=2, dilation=2, groups=2, bias=False, padding_mode="reflect")
    network = nn.Sequential(*network, head, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    new = adapt(models.wrap(network, mean=(0.5,) * 3, std=(0.5,) * 3, head="2"), 4).network[2]
    assert (new.dilation, new.groups, new.bias, new.padding_mode) == ((2, 2), 2, None, "reflect")
    assert adapt(models.wrap(network, mean=(0.5,) * 3, std=(0.5,) * 3, head="2"), 5).network[2].groups == 1


def test_a_frozen_model_is_not_trained(few, tmp_path):
    model = small_resnet(10)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing trains"):
        train(model, few, RECIPE, tmp_path / "run", progress=False)


def test_resizing_is_inside_the_model():
    model = models.build("imagenet/alexnet", 10, pretrained=False, resize=64).eval()
    images = torch.rand(2, 3, 32, 32)
    adversarial = PGD(steps=2)(model, images, torch.tensor([0, 1]))
    assert adversarial.shape == images.shape
    assert (adversarial - images).abs().max() <= 8 / 255 + 1e-6
