"""Networks of others, as people bring them: each case is a public complaint about a peer, and what is right."""

import copy
import io
import logging
import pickle
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from small import late, small_network
from torch import nn

import models
from attacks import FGSM, PGD, AutoAttack
from defences import L2SP, Adversarial, FeatureDistillation, Standard
from evaluation import testing
from evaluation.audit import audit
from finetune_framework import adapt, describe
from loaders import Split
from models.fingerprint import fingerprint
from trainer import Recipe, train
from training import step as steps

RECIPE = Recipe(
    epochs=1,
    batch_size=16,
    learning_rate=0.02,
    validation_images=4,
    precision="float32",
    defence=Adversarial(PGD(steps=1, step_size=8 / 255)),
)


class Viewing(nn.Module):
    """The network of PyTorch's tutorial, with .view()."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.pool = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5), nn.MaxPool2d(2, 2)
        self.bn, self.fc = nn.BatchNorm2d(16), nn.Linear(400, 10)

    def forward(self, x):
        x = self.pool(torch.relu(self.conv1(x)))
        return self.fc(self.pool(torch.relu(self.bn(self.conv2(x)))).view(-1, 400))


class Giving(nn.Module):
    """A network whose answer is wrapped in something."""

    def __init__(self, give):
        super().__init__()
        self.inner, self.give = viewing(), give

    def forward(self, x):
        return self.give(self.inner(x), x)


@dataclass
class Answer:
    logits: torch.Tensor
    hidden: torch.Tensor


def viewing(seed=0):
    torch.manual_seed(seed)
    return Viewing()


@pytest.fixture
def few(shapes):
    return replace(shapes, **{part: getattr(shapes, part).first(32) for part in ("train", "val", "test")})


def labelled(network, count=24):
    """Pictures that the network gets right."""
    images = torch.randint(
        0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    with torch.no_grad():
        labels = models.model_of(copy.deepcopy(network)).eval()(images / 255).argmax(1)
    return Split(images, labels, list("abcdefghij"), "right ones")


@pytest.mark.parametrize("wrapped", [False, True])
def test_view(wrapped, few, tmp_path):
    """lukemelas/EfficientNet-PyTorch #259: a network with .view() crashes on channels-last batches.

    It runs through test, audit, training and a further run; its clean accuracy is that of plain torch.
    """
    network = models.wrap(viewing()) if wrapped else viewing()
    images, labels = few.test.batch(slice(None))
    plain = float((viewing().eval()(images.contiguous()).argmax(1) == labels).double().mean())
    scores = testing.test(network, few.test, [FGSM(), AutoAttack(steps=2, targets=1, queries=4)], progress=False)
    assert scores.share("clean") == plain
    if not wrapped:
        audit(network, few.test.first(2), PGD(steps=1), progress=False)
    run = train(network, few, RECIPE, tmp_path / "run", progress=False)
    assert fingerprint(train(network, few, RECIPE, tmp_path / "run", progress=False).model) == fingerprint(
        run.model
    )
    assert not run.model._forward_pre_hooks
    stored = replace(RECIPE, defence=Standard(), augment=False)
    train(adapt(run.model, 10, train="head"), few, stored, tmp_path / "head", progress=False)


def test_batches_lie_in_memory_as_the_weights_do():
    """pytorch/examples #836: batches in another memory format than the network was written for.

    Networks of this project are channels-last and get such batches; somebody's own gets what its weights are.
    """
    usual, last = small_network(size=32, classes=10), small_network(size=32, classes=10)
    ours = models.build("resnet18", 10, width=4)
    for network, flat in ((ours, False), (usual, True), (last.to(memory_format=torch.channels_last), False)):
        seen, layer = [], next(module for module in network.modules() if isinstance(module, nn.Conv2d))
        layer.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].is_contiguous()))
        testing.test(network, labelled(usual, 4), [FGSM()], progress=False)
        assert set(seen) == {flat}


ANSWERS = {
    "tuple": (lambda logits, x: (logits, x), 0),
    "dict": (lambda logits, x: {"logits": logits, "x": x}, "logits"),
    "dataclass": (lambda logits, x: Answer(logits, x), "logits"),
    "nested": (lambda logits, x: {"out": [x, logits]}, lambda out: out["out"][1]),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_answers_that_are_no_tensor(kind, few, tmp_path):
    """fra31/auto-attack #83: a network that answers with a tuple, a dict or an object fails without saying why.

    The refusal says what is needed, and with `logits=` every accuracy is that of the network inside.
    """
    give, where = ANSWERS[kind]
    network = Giving(give)
    split, attack = labelled(network.inner), PGD(steps=2)
    images, labels = split.batch(slice(None))
    for act in (
        lambda: attack(network, images, labels),
        lambda: testing.test(network, split, [attack], progress=False),
        lambda: train(network, few, RECIPE, tmp_path / "run", progress=False),
    ):
        with pytest.raises(TypeError, match=r"a tensor of logits .* is needed.*models\.wrap\(network, logits="):
            act()
    found = [
        testing.test(each, split, [attack], progress=False)
        for each in (models.wrap(network, logits=where), network.inner)
    ]
    assert [scores.share("clean") for scores in found] == [1, 1]
    assert found[0].share("PGD-2") == found[1].share("PGD-2")
    if not callable(where):
        with pytest.raises(ValueError, match="logits='absent': the network gives"):
            models.wrap(network, logits="absent")(images)


def test_a_tuple_in_training_alone(few, tmp_path):
    """pytorch/vision #302: Inception and GoogLeNet answer with a tuple in training, with a tensor in eval mode."""

    class Auxiliary(Viewing):
        def forward(self, x):
            logits = super().forward(x)
            return (logits, logits) if self.training else logits

    with pytest.raises(TypeError, match="logits=0"):
        train(Auxiliary(), few, RECIPE, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    train(models.wrap(Auxiliary(), logits=0), few, RECIPE, tmp_path / "run", progress=False)


@pytest.mark.long
def test_googlenet_by_name():
    """pytorch/vision #302: fine-tuning GoogLeNet fails on its auxiliary heads. Here it has none."""
    model = models.build("imagenet/googlenet", 10, pretrained=False, resize=32)
    assert model.train()(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert model.network.transform_input  # as its published weights want it


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_and_double(dtype, few, tmp_path):
    """nvidia-cosmos/cosmos-transfer1 #137: "Input type (float) and bias type (c10::Half) should be the same".

    Each is tested in its own precision; pictures and ε stay in float32. float64 trains, 16 bits are refused.
    """
    if dtype == torch.float16:
        audit(models.build("shallow_cnn", 10).half(), few.test.first(2), PGD(steps=1), progress=False)
    network = small_network(size=32, classes=10).eval()
    split = labelled(network)
    reference = testing.test(network, split, [PGD(steps=3)], progress=False)
    for low in (network.to(dtype), models.wrap(network)):
        scores = testing.test(low, split, [PGD(steps=3)], progress=False)
        assert scores.share("clean") >= 0.9  # rounding moves a logit, but few answers
        assert abs(scores.share("PGD-3") - reference.share("PGD-3")) <= 0.1
        images, labels = split.batch(slice(None))
        assert PGD(steps=1)(low, images, labels).dtype == torch.float32
    if dtype == torch.float64:
        train(network, few, RECIPE, tmp_path / "run", progress=False)
    else:
        with pytest.raises(ValueError, match=r"small updates are lost: train model\.float\(\)"):
            train(network, few, RECIPE, tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    "put", [late(partial(torch.compile, backend="eager")), nn.DataParallel], ids=["compile", "DataParallel"]
)
def test_compiled_and_in_parallel(put):
    """NVIDIA/apex #1632: attacks on a network that DataParallel or torch.compile is around.

    Both give the numbers of the network inside, and `adapt` takes what is around off.
    """
    network = viewing().eval()
    split = labelled(network, 20)
    plain = testing.test(network, split, [PGD(steps=2)], progress=False)
    scores = testing.test(put(network), split, [PGD(steps=2)], progress=False)
    assert scores.share("clean") == plain.share("clean") == 1
    assert abs(scores.share("PGD-2") - plain.share("PGD-2")) <= 0.05
    model = adapt(put(network), 5, train="head")
    assert model.head == "fc"
    trains = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trains == {"network.fc.weight", "network.fc.bias"}
    ours = models.build("shallow_cnn", 10)
    assert adapt(put(ours), 5).spec["name"] == "shallow_cnn"


def test_a_function():
    """Trusted-AI/adversarial-robustness-toolbox #252: a plain function in a network's place.

    Asked for a test it is refused with the way out, and wrapped it gets the network's numbers.
    """
    network = viewing().eval()
    split = labelled(network)
    with pytest.raises(TypeError, match=r"models\.wrap\(function\)"):
        testing.test(lambda images: network(images), split, progress=False)
    scores = testing.test(models.wrap(lambda images: network(images)), split, [FGSM()], progress=False)
    assert scores.share("clean") == 1
    assert scores.share("FGSM") == testing.test(network, split, [FGSM()], progress=False).share("FGSM")
    with pytest.raises(TypeError, match=r"models\.build\(name, num_classes\)"):
        models.wrap("resnet18")


def test_a_batch_of_one(few, tmp_path):
    """fastai/fastai #1352: BatchNorm's "Expected more than 1 value per channel" for a batch of one picture."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    with pytest.raises(ValueError, match="batch_size=1: in training BatchNorm needs a batch of at least 2"):
        train(network, few, replace(RECIPE, batch_size=1), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("frozen", [True, False])
def test_norms_that_move_under_frozen_weights(frozen, few, tmp_path, caplog):
    """pytorch/pytorch #86590: requires_grad=False leaves BatchNorm's statistics moving, and nobody says so.

    It is said before the run; nothing is said of `adapt`, which freezes both.
    """
    network = viewing()
    if frozen:
        network.requires_grad_(False)
        network.fc.requires_grad_(True)
    else:
        network = adapt(network, 10, train="head")
    with caplog.at_level(logging.WARNING, "study"):
        train(network, few, RECIPE, tmp_path / "run", progress=False)
    assert ("their statistics move" in caplog.text) == frozen


@pytest.mark.parametrize("way", ["head", "last_stage", "all"])
def test_ones_own_network_is_adapted(way, few, tmp_path):
    """MadryLab/robustness #96: exchange the head of one's own network, and fine-tune it.

    What is to train moves and nothing else; both pulls to the source, and stored features, take it.
    """
    source = viewing()
    model = adapt(source, 5, train=way)
    assert model.head == "fc"
    assert describe(model).set_index("layer").parameters["fc (head)"] == 5 * 401
    few = replace(
        few,
        classes=list("abcde"),
        **{
            part: Split(split.images, split.labels % 5, list("abcde"), part)
            for part, split in (("train", few.train), ("val", few.val), ("test", few.test))
        },
    )
    layers = {"head": {"fc"}, "last_stage": {"conv2", "bn", "fc"}, "all": {"conv1", "conv2", "bn", "fc"}}[way]
    for name, defence in (
        ("l2sp", L2SP(Standard(), source)),
        ("features", FeatureDistillation(Standard(), source)),
    ):
        run = train(model, few, replace(RECIPE, defence=defence), tmp_path / name, progress=False)
        after = run.model.state_dict()
        moved = {
            key.split(".")[1] for key, value in model.state_dict().items() if not torch.equal(value, after[key])
        }
        assert moved == layers
        assert torch.isfinite(torch.tensor(run.history["loss/train"])).all()


def test_stored_features_of_ones_own_network(few, tmp_path, monkeypatch):
    """MadryLab/robustness #96: the head of one's own network alone, on features that are computed once."""
    model = adapt(viewing(), 10, train="head")
    recipe = replace(RECIPE, epochs=3, defence=Standard(), augment=False)
    stored, real = [], steps.use_features
    monkeypatch.setattr(
        steps, "use_features", lambda state, *rest: real(state, *rest) or stored.append(state.features)
    )
    fast = train(model, few, recipe, tmp_path / "fast", progress=False).model
    monkeypatch.setattr(steps, "CACHE_BYTES", 0)
    slow = train(model, few, recipe, tmp_path / "slow", progress=False).model
    assert stored[0].shape == (32, 400)
    assert stored[1] is None
    assert torch.allclose(fast.network.fc.weight, slow.network.fc.weight, atol=1e-6)
    assert not torch.equal(fast.network.fc.weight, model.network.fc.weight)


def test_a_head_that_is_not_found():
    """MadryLab/robustness #96: a head under another name. The error lists the layers, and `head=` names one."""

    class Twice(Viewing):
        def forward(self, x):
            return super().forward(x).repeat(1, 2)

    with pytest.raises(ValueError, match=r"no layer .* gives its \(20,\) logits.*head=.*conv1, conv2, fc"):
        adapt(Twice(), 4)
    with pytest.raises(ValueError, match=r"head 'fc' for 4 classes the network gives 8 logits"):
        adapt(models.wrap(Twice(), head="fc"), 4)
    with pytest.raises(ValueError, match="head='bn' is no linear layer"):
        models.wrap(Twice(), head="bn")
    assert len(describe(Twice())) == 4
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.raises(ValueError, match="takes no picture of 32"):
        adapt(flat, 4)
    flat[1] = nn.Linear(784, 8)  # 1 x 28 x 28
    with pytest.raises(ValueError, match=r"resolution never falls.*at the top there are 1, 3"):
        adapt(flat, 4, train="last_stage")


def test_adapted_networks_are_pickled():
    """iscyy/ultralyticsPro #125: "Can't pickle <class ...>: it's not the same object". The copy is frozen, too."""
    for source in (models.build("resnet18", 10, width=4), viewing()):
        model = adapt(source, 5, train="head")
        saved = io.BytesIO()
        torch.save(model, saved)
        saved.seek(0)
        for other in (
            pickle.loads(pickle.dumps(model)),
            copy.deepcopy(model),
            torch.load(saved, weights_only=False),
        ):
            assert fingerprint(other) == fingerprint(model)
            other.train()
            norms = [module for module in other.modules() if isinstance(module, nn.BatchNorm2d)]
            assert norms
            assert not any(norm.training for norm in norms)
            assert not any(weight.requires_grad for norm in norms for weight in norm.parameters())
            assert all(module.training for module in adapt(other, None).train().modules())


@pytest.mark.parametrize("shape", [(64, 32), (32, 64), (20, 20), (32, 32)])
def test_pictures_that_are_not_square(shape):
    """fastai/fastai #1851: pictures of another shape than a square stay so under a resize to one."""
    seen = []
    for model in (models.build("resnet18", 10, width=4, resize=32), models.wrap(viewing(), resize=32)):
        model.network.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
        assert model.eval()(torch.rand(2, 3, *shape)).shape == (2, 10)
    assert seen == [(2, 3, 32, 32)] * 2
