"""Networks: shapes, sizes, normalisation inside, and clear errors."""

import copy
import pickle

import pytest
import torch
from torch import nn

import models
from attacks import evaluating, input_gradient

PARAMETERS = {
    ("shallow_cnn", 10): 62_006,
    ("shallow_cnn_wide", 100): 5_897_508,
    ("resnet18", 10): 11_173_962,
}


@pytest.mark.parametrize(("name", "classes"), PARAMETERS)
def test_pixels_in_logits_out(name, classes):
    model = models.build(name, classes).eval()
    assert sum(weight.numel() for weight in model.parameters()) == PARAMETERS[name, classes]
    logits = model(torch.rand(2, 3, 32, 32))
    assert logits.shape == (2, classes)
    assert torch.isfinite(logits).all()


def test_normalisation_is_inside():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    model = models.build("shallow_cnn", 10, mean=mean, std=std)
    images = torch.rand(2, 3, 32, 32)
    by_hand = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(model.normalise(images), by_hand)
    assert torch.equal(model(images), model.network(model.normalise(images)))


def test_weights_depend_on_the_seed_alone():
    first = models.build("shallow_cnn", 10, seed=1)
    torch.rand(17)
    state = torch.get_rng_state()
    again, other = models.build("shallow_cnn", 10, seed=1), models.build("shallow_cnn", 10, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    for one, same, different in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, different)


def test_width_scales_a_resnet():
    assert models.build("resnet18", 10, width=16).network.head.in_features == 128


def test_resnet_equals_torchvisions_after_the_stem():
    """The same weights in torchvision's ResNet-18 with the stem exchanged give the same logits."""
    from torch import nn
    from torchvision.models import resnet18

    theirs = resnet18(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    ours = models.build("resnet18", 10).network
    values = list(ours.state_dict().values())
    names = theirs.state_dict().keys()
    assert len(values) == len(names)
    theirs.load_state_dict(dict(zip(names, values, strict=True)))
    images = torch.rand(2, 3, 32, 32)
    assert torch.allclose(ours.eval()(images), theirs.eval()(images), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "classes", "options", "message"),
    [
        ("resnet19", 10, {}, "the models are: preact_resnet18, resnet18"),
        ("resnet18", 1, {}, "num_classes=1"),
        ("resnet18", "ten", {}, "num_classes='ten'"),
        ("resnet18", 10, {"width": 0}, "width=0"),
    ],
)
def test_errors_are_clear(name, classes, options, message):
    with pytest.raises(ValueError, match=message):
        models.build(name, classes, **options)


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


def pictures(count=8, side=32):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, side, side, generator=generator).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(10, (count,), generator=generator)


def distance(gradient, reference):
    """Relative L2 distance, the median of the examples: rounding may flip a ReLU in one of them."""
    gap = (gradient.double() - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)
    return float(gap.median())


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


@pytest.mark.parametrize("side", [32, 36])
def test_the_shallow_network_in_bfloat16_is_the_same_function(side):
    network, (images, labels) = models.build("shallow_cnn", 10).network, pictures(16, side)
    if side != 32:  # the sizes work out, but for the linear layers
        network[7] = nn.Linear(16 * 6 * 6, 120)
    plain = nn.Sequential(*network)
    with torch.autocast("cpu", torch.bfloat16):
        fast, slow = network(images), plain(images)
        assert torch.allclose(fast, slow, atol=1e-2)
        for one, other in zip(
            torch.autograd.grad(nn.functional.cross_entropy(fast.float(), labels), list(network.parameters())),
            torch.autograd.grad(nn.functional.cross_entropy(slow.float(), labels), list(network.parameters())),
            strict=True,
        ):
            assert (one - other).norm() < 0.1 * other.norm()
        rough = input_gradient(plain, images, labels)
        near = input_gradient(network, images, labels)
    exact = input_gradient(plain.double(), images.double(), labels)
    assert distance(near, exact) < 1.2 * distance(rough, exact)


def test_the_shallow_network_has_its_own_weights_while_an_attack_lasts_and_no_longer():
    network, (images, _) = models.build("shallow_cnn", 10).network, pictures(4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with evaluating(network):
            before = network(images)
            assert torch.equal(network(images), before)
        network[0].weight.mul_(2)
        assert not torch.equal(network(images), before)
        network[2] = nn.Tanh()  # somebody's own layer counts
        other = network(images)
        network[2] = nn.ReLU()
        assert not torch.equal(network(images), other)


def test_the_shallow_network_pools_by_its_layers_where_someone_watches_or_sizes_are_odd():
    network, (images, _) = models.build("shallow_cnn", 10).network, pictures(2)
    seen = []
    network[1].register_forward_hook(lambda *_: seen.append(1))
    with torch.autocast("cpu", torch.bfloat16):
        network(images)
        assert seen
        odd = models.build("shallow_cnn", 10).network
        odd[7] = nn.Linear(16 * 5 * 5, 120)
        assert odd(pictures(2, 34)[0][:, :, :33, :33]).shape == (2, 10)


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


@pytest.mark.parametrize(
    "change", [change_stem, lengthen_stem, change_shortcut, scale_shortcut, pool_shortcut, pad_by_name]
)
def test_somebodys_own_parts_of_a_resnet_count(change):
    model, (images, labels) = lived_in("resnet18", width=4), pictures(4)
    change(model.network)
    plain = model.eval()(images)  # weights ask for gradients: layer by layer
    gradient = input_gradient(model, images, labels)
    with evaluating(model):
        assert torch.allclose(model(images), plain, atol=1e-4)
        assert torch.allclose(input_gradient(model, images, labels), gradient, atol=1e-4)


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


def test_inference_mode_leaves_weights_that_can_lead_a_gradient_back():
    for name in ("shallow_cnn", "resnet18"):
        model, (images, labels) = models.build(name, 10), pictures(4)
        with evaluating(model), torch.autocast("cpu", torch.bfloat16):
            with torch.inference_mode():
                model(images)
            assert input_gradient(model, images, labels).any()
