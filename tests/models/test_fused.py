"""Convolution, BatchNorm and ReLU as one: the same function, only where nobody sees the difference."""

import copy
import pickle
import sys
from contextlib import nullcontext

import pytest
import torch
from photos import distance, pictures
from torch import nn
from torch.overrides import TorchFunctionMode

import models
from attacks import evaluating, input_gradient
from evaluation.batch_sizes import AnySize


def lived_in(name, **options):
    """A network whose BatchNorm statistics are not those of the start, in eval mode."""
    model = models.build(name, 10, **options).eval()
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.2, generator=generator)
    return model


@pytest.mark.parametrize(
    ("name", "width"), [("resnet18", 8), ("resnet34", 4), ("resnet50", 4), ("preact_resnet18", 4)]
)
def test_the_fused_form_is_the_same_function(name, width):
    model, (images, labels) = lived_in(name, width=width), pictures()
    exact = model.double()
    logits = exact(images.double())  # its weights ask for gradients, so this is the plain form
    gradient = input_gradient(exact, images.double(), labels)
    with evaluating(exact):
        assert torch.allclose(exact(images.double()), logits, atol=1e-10)
        assert distance(input_gradient(exact, images.double(), labels), gradient) < 1e-10
    model.float()
    with evaluating(model):
        assert torch.allclose(model(images).double(), logits, atol=1e-4, rtol=1e-4)
        assert distance(input_gradient(model, images, labels), gradient) < 1e-4
    with torch.autocast("cpu", torch.bfloat16):
        rough = distance(input_gradient(model, images, labels), gradient)
        with evaluating(model):
            assert distance(input_gradient(model, images, labels), gradient) < 1.2 * rough


def test_the_fused_form_is_taken_only_where_it_may_be(monkeypatch):
    model, (images, labels) = lived_in("resnet18", width=4), pictures(2)
    taken = []
    whole = models.fused._Chain.apply
    monkeypatch.setattr(models.fused._Chain, "apply", lambda *given: taken.append(given) or whole(*given))

    def count(act):
        taken.clear()
        act()
        return len(taken)

    everywhere = 1 + 8  # the stem and the blocks
    with torch.no_grad():
        assert count(lambda: model(images)) == everywhere
    assert count(lambda: model(images)) == 0  # the weights may want a gradient
    with evaluating(model):
        assert count(lambda: input_gradient(model, images, labels)) == everywhere
        block = model.network.stages[0][0]
        block.bn1.train()
        assert count(lambda: model(images)) == everywhere - 1
        block.bn1.eval()
        seen = []
        block.conv2.register_forward_hook(lambda *_: seen.append(1))
        assert count(lambda: model(images)) == everywhere - 1
        assert seen
        other = model.network.stages[1][1]
        for name, own in (("bn1", nn.GroupNorm(1, 8)), ("conv2", nn.Conv2d(8, 8, 3, padding=1, groups=2))):
            setattr(other, name, own)  # somebody's own layers
            assert count(lambda: model(images)) == everywhere - 2


def test_the_fused_form_sees_weights_that_move():
    """Nothing folded is kept: weights written behind autograd's back count at once."""
    model, (images, _) = lived_in("resnet18", width=4), pictures(2)
    with torch.no_grad():
        before = model(images)
        model.network.stages[0][0].conv1.weight.data.mul_(2)
        assert not torch.allclose(model(images), before)


def test_folded_weights_are_kept_while_an_attack_lasts_and_no_longer(monkeypatch):
    model, (images, _) = lived_in("resnet18", width=4), pictures(2)
    folded, fold = [], models.fused._fold
    monkeypatch.setattr(models.fused, "_fold", lambda *given: folded.append(given) or fold(*given))
    with evaluating(model):
        for _ in range(3):
            before = model(images)
        copied = copy.deepcopy(model)
    assert len(folded) == 20
    for changed in (model, copied):
        with torch.no_grad():
            changed.network.stages[0][0].conv1.weight.mul_(2)
            assert not torch.allclose(changed(images), before)
            changed.network.stages[0][0].conv1.weight.mul_(0.5)
            assert torch.allclose(changed(images), before, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf")])
@pytest.mark.parametrize("precise", [True, False], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "place"), [("resnet18", 0), ("resnet18", 3), ("resnet18", 20), ("shallow_cnn", 0)]
)
def test_broken_weights_still_break_the_logits(name, place, precise, bad):
    model = models.build(name, 10, **({"width": 4} if name == "resnet18" else {})).eval()
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    weight = convolutions[min(place, len(convolutions) - 1)].weight
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=not precise):
        weight[0, 0, 0, 0], weight[0, 0, 1, 1] = bad, -bad
        assert not torch.isfinite(model(pictures(4)[0])).all()


def test_a_second_derivative_of_the_fused_form_is_refused():
    model, (images, _) = lived_in("resnet18", width=4), pictures(2)
    with evaluating(model):
        value = model(images.requires_grad_()).square().sum()
        first = torch.autograd.grad(value, images, create_graph=True)[0]
        with pytest.raises(RuntimeError, match=r"not have been used|once_differentiable"):
            torch.autograd.grad(first.square().sum(), images)


class Halved(nn.Module):
    def forward(self, x):
        return 0.5 * x


class Noise(nn.Module):
    def forward(self, weight):
        return weight + 0.1 * torch.randn_like(weight)


def change_stem(network):
    network.stem[2] = nn.SiLU()


def lengthen_stem(network):
    network.stem.append(nn.AvgPool2d(2))


def change_shortcut(network):
    network.stages[1][0].shortcut = nn.Conv2d(4, 8, 1, 2)


def scale_shortcut(network):
    network.stages[0][0].shortcut = Halved()


def pool_shortcut(network):
    network.stages[1][0].shortcut = nn.Sequential(
        nn.AvgPool2d(2), nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8)
    )


def pad_by_name(network):
    network.stages[0][0].conv1.padding = "same"


def patch_convolution(network):
    network.stages[0][0].conv1.forward = torch.zeros_like


def patch_norm(network):
    network.stages[1][0].bn2.forward = torch.neg


class Standardised(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean((1, 2, 3), keepdim=True), bias)


class Shifted(nn.BatchNorm2d):
    def __call__(self, x):
        return 0.5 + super().__call__(x)


def standardise_weights(network):
    network.stages[0][0].conv1.__class__ = Standardised


def shift_norm(network):
    network.stages[0][0].bn1.__class__ = Shifted


def patch_what_calls(network):
    network.stages[0][0].conv1._conv_forward = lambda x, weight, bias: torch.zeros_like(x)


def norm_without_offset(network):
    network.stages[1][0].bn1.bias = None


def norm_that_is_none(network):
    network.stages[0][0].bn1 = nn.Identity()


@pytest.mark.parametrize(
    "change",
    [
        standardise_weights,
        shift_norm,
        patch_what_calls,
        norm_without_offset,
        norm_that_is_none,
        change_stem,
        lengthen_stem,
        change_shortcut,
        scale_shortcut,
        pool_shortcut,
        pad_by_name,
        patch_convolution,
        patch_norm,
    ],
)
def test_somebodys_own_parts_of_a_resnet_count(change):
    model, (images, labels) = lived_in("resnet18", width=4), pictures(4)
    torch.manual_seed(0)  # or a ReLU may lie so near its kink that rounding decides its side
    change(model.network)
    plain = model.eval()(images)  # weights ask for gradients: layer by layer
    gradient = input_gradient(model, images, labels)
    with evaluating(model):
        assert torch.allclose(model(images), plain, atol=1e-4)
        assert torch.allclose(input_gradient(model, images, labels), gradient, atol=1e-4)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.BatchNorm2d])
def test_a_forward_put_on_all_layers_of_a_kind_counts(kind, monkeypatch):
    model, (images, _) = lived_in("resnet18", width=4).eval(), pictures(4)
    real = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x: 0.5 * real(self, x))
    wanted = model(images)
    with evaluating(model), torch.no_grad():
        assert torch.allclose(model(images), wanted, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18"])
def test_what_a_hook_keeps_of_a_norm_stays_as_it_was(name):
    model, (images, _) = lived_in(name, width=4).eval(), pictures(4)
    kept, norm = [], model.network.stages[0][0].bn2
    norm.register_forward_hook(lambda module, inputs, out: kept.append((inputs[0].clone(), out)))
    with torch.no_grad():
        model(images)
        assert torch.allclose(nn.BatchNorm2d.forward(norm, kept[0][0]), kept[0][1], atol=1e-6)


def test_a_hook_on_all_modules_sees_each_layer():
    model, (images, _) = lived_in("resnet18", width=4), pictures(2)
    seen = []
    with evaluating(model), torch.no_grad():
        handle = nn.modules.module.register_module_forward_hook(
            lambda module, *_: seen.append(isinstance(module, nn.Conv2d))
        )
        try:
            model(images)
        finally:
            handle.remove()
    assert sum(seen) == 20


def test_weights_that_are_drawn_anew_stay_so_while_an_attack_lasts():
    model, (images, _) = lived_in("resnet18", width=4), pictures(2)
    nn.utils.parametrize.register_parametrization(model.network.stages[0][0].conv1, "weight", Noise())
    with evaluating(model):
        assert not torch.equal(model(images), model(images))


def test_where_onednn_has_no_bfloat16_torch_computes(monkeypatch):
    model, (images, labels) = lived_in("resnet18", width=4), pictures(4)
    with evaluating(model), torch.autocast("cpu", torch.bfloat16):
        there = input_gradient(model, images, labels)
        monkeypatch.setattr(models.fused, "_FOR_ONEDNN", (torch.float32,))
        assert distance(input_gradient(model, images, labels), there.double()) < 0.4


def test_flops_are_counted_as_ever():
    from torch.utils.flop_counter import FlopCounterMode

    model, (images, _) = lived_in("resnet18", width=4), pictures(1)
    counts = []
    for grad in (True, False):
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(grad):
            model(images)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 1e6


def test_a_network_pickled_in_the_middle_of_an_attack_keeps_nothing():
    model, (images, _) = lived_in("resnet18", width=4), pictures(2)
    with evaluating(model):
        model(images)
        assert model.network.stem._folds
        assert b"Layer" not in pickle.dumps(model)
        assert copy.copy(model.network.stem._folds) is None  # what unpickling makes of it


class Looking(TorchFunctionMode):
    def __torch_function__(self, function, types, arguments=(), settings=None):
        return function(*arguments, **(settings or {}))


def bare(**changes):
    norm = nn.BatchNorm2d(4)
    for name, value in changes.items():
        setattr(norm, name, value)
    return norm


def test_batch_norm_in_training_goes_to_our_kernels_only_as_everybody_has_it():
    x = torch.rand(2, 4, 3, 3).to(torch.bfloat16, memory_format=torch.channels_last)
    taken = models.fused._for_kernels
    assert taken(x, bare(), None)
    assert taken(x, bare(), x)
    watched = bare()
    watched.register_forward_hook(lambda *_: None)
    for norm in (
        bare().eval(),
        bare(track_running_stats=False),
        bare(num_batches_tracked=None),
        bare(momentum=None),
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.BatchNorm2d(8),
        nn.BatchNorm1d(4),
        bare().bfloat16(),
        watched,
    ):
        assert not taken(x, norm, None)
    for other in (x.float(), x.contiguous(), x[:1, :, :1, :1]):
        assert not taken(other, bare(), None)
    for add in (x.float(), x[:1]):
        assert not taken(x, bare(), add)
    with Looking():
        assert not taken(x, bare(), None)


def test_out_of_memory_does_not_switch_our_kernels_off(monkeypatch):
    """Elsewhere they are missing, and the log says so."""

    class Broken:
        error = torch.OutOfMemoryError("no memory")

        def __getattr__(self, name):
            raise self.error

    monkeypatch.setitem(sys.modules, "models.batch_norm_kernels", Broken())
    monkeypatch.setattr(models, "batch_norm_kernels", Broken(), raising=False)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    models.fused._kernels.cache_clear()
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            models.fused._kernels(torch.device("cpu"))
    Broken.error = RuntimeError("no compiler")
    assert models.fused._kernels(torch.device("cpu")) is None
    models.fused._kernels.cache_clear()


@pytest.mark.parametrize(("name", "width"), [("resnet18", 4), ("resnet50", 4)])
def test_channels_of_zeros_change_nothing(name, width, monkeypatch):
    """As on a GPU, where eight are multiplied at once."""
    model, (images, labels) = lived_in(name, width=width), pictures()
    with evaluating(model):
        logits, gradient = model(images), input_gradient(model, images, labels)
    monkeypatch.setattr(models.fused, "_by_eights", lambda weight, dtype: True)
    monkeypatch.setattr(models.fused, "_by_onednn", lambda x: False)
    with evaluating(model):
        assert torch.allclose(model(images), logits, atol=1e-4, rtol=1e-4)
        assert distance(input_gradient(model, images, labels), gradient) < 1e-5
        assert next(iter(model.network.stem._folds.values()))[0].weight.shape[1] == 8


@pytest.mark.parametrize("eights", [False, True])
def test_pictures_of_other_channels_are_refused_in_a_test_too(eights, monkeypatch):
    monkeypatch.setattr(models.fused, "_by_eights", lambda weight, dtype: eights)
    model = lived_in("resnet18", width=4).network
    for channels in (1, 4, 9):
        with evaluating(model), pytest.raises((RuntimeError, ValueError), match="channel"):
            model(torch.rand(2, channels, 32, 32))


def test_a_part_of_a_network_may_be_attacked_in_any_wrapping():
    stem = lived_in("resnet18", width=4).network.stem
    with evaluating(AnySize(stem)):
        assert stem._folds is not None
    assert stem._folds is None


def test_inference_mode_leaves_weights_that_can_lead_a_gradient_back():
    for name in ("shallow_cnn", "resnet18"):
        model, (images, labels) = models.build(name, 10), pictures(4)
        with evaluating(model), torch.autocast("cpu", torch.bfloat16):
            with torch.inference_mode():
                model(images)
            assert input_gradient(model, images, labels).any()
