"""The contracts on a GPU: `make test-gpu`. Without one they are tried on the CPU, beside itself, in make test-all.

Where nothing is drawn at random, results are the CPU's; where something is, devices draw differently, so what
counts is how strong an attack is and how well a network learns.
"""

import copy
import gc
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import Blobs, small_network
from torch import nn

import models
import utils
from attacks import (
    APGD,
    DIFGSM,
    FAB,
    FGSM,
    MIFGSM,
    NIFGSM,
    PGD,
    SINIFGSM,
    TIFGSM,
    VMIFGSM,
    VNIFGSM,
    AutoAttack,
    Square,
    autoattack_search,
    evaluating,
    input_gradient,
)
from attacks.autoattack_search import LOW
from defences import AWP, L2SP, MART, NFGSM, TRADES, Adversarial, Free, Guided, Standard
from evaluation import batch_sizes, per_example, testing
from evaluation.audit import audit
from loaders import Data
from loaders.mapped import Mapped, Rows
from models import fused
from models.tf32 import rounding
from processes.machine import fast_bfloat16
from trainer import Recipe, train
from training import step as steps
from training.cuda_graphs import WARM_UP
from training.sgd import SGD

pytestmark = [pytest.mark.gpu, pytest.mark.long]
DEVICE = torch.device(os.environ.get("STUDY_TESTS_ON", "cpu"))
CUDA = DEVICE.type == "cuda"

DETERMINISTIC = [
    FGSM(),
    FGSM(norm="L2", eps=0.5),
    PGD(random_start=False),
    PGD(norm="L2", eps=0.5, step_size=0.1, random_start=False),
    MIFGSM(),
    NIFGSM(),
    TIFGSM(kernel=3),
    SINIFGSM(copies=2),
    FAB(steps=10),
]
RANDOM = [
    PGD(),
    PGD(restarts=2),
    VMIFGSM(),
    VNIFGSM(),
    DIFGSM(),
    APGD(steps=20, precision="float32"),
    APGD(steps=20, loss="targeted"),
    APGD(steps=20, loss="targeted", precision="float16"),
    Square(queries=200),
    Square(queries=200, precision="float16"),
    AutoAttack(steps=10, queries=100),
]


@pytest.fixture(scope="module", autouse=True)
def prepared():
    utils.start("gpu", preset="smoke", data="shapes", device=DEVICE.type)


@pytest.fixture(scope="module")
def split():
    return Blobs().split(400, 3, "test")


def standing(network, split, attack):
    network = copy.deepcopy(network).to(split.labels.device)
    indices = torch.arange(len(split), device=split.labels.device)
    return per_example.attacked(network, network, split, attack, indices, 0)[0].cpu()


@pytest.mark.parametrize("attack", DETERMINISTIC, ids=repr)
def test_an_attack_makes_the_pictures_that_it_makes_on_the_cpu(sound, split, attack, monkeypatch):
    monkeypatch.setitem(autoattack_search.EVERY, "cpu", autoattack_search.EVERY[DEVICE.type])
    images, labels = split.batch(torch.arange(64))
    here = attack(sound["pgd"], images, labels)
    there = attack(copy.deepcopy(sound["pgd"]).to(DEVICE), images.to(DEVICE), labels.to(DEVICE)).cpu()
    assert ((here - there).abs() < 1e-4).double().mean() > 0.99  # a sign may turn where a gradient is nearly zero
    stood = (standing(sound["pgd"], place, attack) for place in (split, split.to(DEVICE)))
    assert torch.ne(*stood).sum() <= 4  # of 400


@pytest.mark.parametrize("attack", RANDOM, ids=repr)
def test_an_attack_is_as_strong_as_on_the_cpu(sound, split, attack):
    here, there = (int(standing(sound["pgd"], place, attack).sum()) for place in (split, split.to(DEVICE)))
    assert 20 < here < 380
    assert abs(here - there) <= 12  # of 400


class Headed(nn.Sequential):
    head = "6"


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "tf32"])
def test_the_fused_form_is_the_plain_one_in_the_precision_that_fuses_it(precision):
    """Up to what the precision rounds; with NaN in a weight, judging still says NaN."""
    model = models.build("resnet18", 10, width=16).to(DEVICE).eval()
    images, labels = torch.rand(8, 3, 32, 32, device=DEVICE), torch.arange(8, device=DEVICE)
    wanted, plain = model(images), input_gradient(model, images, labels)
    low = torch.autocast(DEVICE.type, LOW.get(precision, torch.bfloat16), enabled=precision in LOW)
    with evaluating(model), rounding(tf32=True), low:
        logits, gradient = model(images).float(), input_gradient(model, images, labels)
    # Where rounding turns a ReLU, a part of the gradient goes: 6.3 % of it in float16 on an H100.
    allowed, of_gradient = (0.1, 0.3) if precision == "bfloat16" else (0.02, 0.1)
    assert (logits - wanted).norm() < allowed * wanted.norm()
    assert (gradient - plain).norm() < of_gradient * plain.norm()
    model.network.stages[0][0].conv1.weight.data[0] = math.nan
    pictures = utils.Split((255 * images.cpu()).byte(), labels.cpu(), list("abcdefghij"), "noise").to(DEVICE)
    assert per_example.predict(model, pictures).isnan().all()


def test_batch_norm_in_training_is_a_kernel_of_ours_and_does_what_torch_does(monkeypatch):
    """A GPU that computes in bfloat16 without it would be slow, and nobody would know."""
    found, images = {}, torch.rand(64, 3, 32, 32, device=DEVICE).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(64, device=DEVICE) % 10
    if CUDA and fast_bfloat16(DEVICE):
        assert fused._kernels(DEVICE) is not None
    for name in ("ours", "torch", "exact"):
        model = models.build("resnet18", 10, width=16, seed=0).to(DEVICE).train()
        if name == "torch":
            monkeypatch.setattr(fused, "_kernels", lambda device: None)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=name != "exact"):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        gradient = torch.cat([weight.grad.flatten() for weight in model.parameters()])
        statistics = torch.cat([buffer.flatten() for name, buffer in model.named_buffers() if "running" in name])
        found[name] = loss.item(), gradient, statistics
        assert model.network.stem[1].num_batches_tracked == 1
    (loss, gradient, statistics), torchs, exact = found.values()
    assert loss == pytest.approx(exact[0], rel=0.02)
    assert (gradient - exact[1]).norm() < 1.2 * (torchs[1] - exact[1]).norm() + 1e-6
    assert (statistics - exact[2]).norm() < 0.01 * exact[2].norm()


def headed():
    return Headed(*small_network())


def stepped(defence, device, count=WARM_UP + 5, **settings):
    """The weights after some steps, the last loss, and the state."""
    network = headed().to(device)
    network[3] = nn.Identity()
    recipe = Recipe(**{"epochs": 1, "batch_size": 64, "defence": defence, "precision": "float32"} | settings)
    state = steps.State(network.train(), recipe, count, device)
    split = Blobs().split(256, 0, "train").to(device)
    for step in range(count):
        state.generator.manual_seed(step)
        images, labels = split.batch(torch.arange(64, device=device) + 64 * (step % 4))
        loss, _ = steps.train_step(state, images, labels)
        state.step += 1
    return [weight.detach().cpu() for weight in state.model.parameters()], float(loss), state


FIXED = PGD(steps=2, random_start=False)
DEFENCES = [
    Standard(),
    Adversarial(FIXED),
    Adversarial(FIXED, ramp=1.0),
    Adversarial(MIFGSM(steps=2), ramp=0.5, grow=0.5),
    MART(FIXED),
    AWP(MART(FIXED)),
    Free(replays=2),
    L2SP(Standard(), headed()),
]


@pytest.mark.parametrize("defence", DEFENCES, ids=lambda defence: type(defence).__name__)
def test_steps_reach_the_weights_that_they_reach_on_the_cpu(defence):
    here, _, _ = stepped(defence, torch.device("cpu"), clip_gradient=1.0)
    there, _, state = stepped(defence, DEVICE, clip_gradient=1.0)
    assert state.graphed.possible == CUDA
    assert all(torch.allclose(one, other, atol=1e-3) for one, other in zip(here, there, strict=True))


@pytest.mark.parametrize(
    "defence", [TRADES(PGD(steps=2)), NFGSM(), Guided(), Adversarial(VMIFGSM(steps=2), ramp=1.0)], ids=repr
)
def test_what_is_drawn_in_a_graph_is_drawn_anew_each_time(defence):
    _, loss, state = stepped(defence, DEVICE)
    assert state.graphed.possible == CUDA
    assert 0 < loss < 10


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("defence", [Standard(), Adversarial(PGD(steps=2), ramp=0.5)], ids=repr)
def test_a_network_learns_in_every_precision(tmp_path, precision, defence):
    if CUDA and precision == "bfloat16" and not fast_bfloat16(DEVICE):
        pytest.skip("no bfloat16 in hardware")
    run = train(small_network(), data(), recipe(precision=precision, defence=defence, epochs=6), tmp_path / "run")
    assert run.history["accuracy/clean"].iloc[-1] > 0.8


def data():
    make = Blobs().split
    parts = (make(count, seed, "blobs").to(DEVICE) for seed, count in enumerate((640, 200, 200)))
    return Data("blobs", *parts, list("abcd"), {"name": "blobs"})


def recipe(**settings):
    common = {"epochs": 3, "batch_size": 32, "learning_rate": 0.2, "augment": False, "validation_images": 100}
    return Recipe(**common | {"defence": Adversarial(PGD(steps=2))} | settings)


def test_steps_of_sgd_are_those_of_torch_bit_by_bit():
    """With a learning rate in a tensor, as a graph reads it."""
    networks, settings = (
        [models.build("shallow_cnn", 10).to(DEVICE) for _ in range(2)],
        {"momentum": 0.9, "weight_decay": 5e-4},
    )
    rate = torch.tensor(0.1, device=DEVICE) if CUDA else 0.1
    mine = SGD([{"params": [*networks[0].parameters()], "lr": rate}], **settings)
    theirs = torch.optim.SGD(networks[1].parameters(), lr=rate, nesterov=True, fused=True, **settings)
    for step in range(4):
        for model, optimizer in zip(networks, (mine, theirs), strict=True):
            generator = torch.Generator().manual_seed(step)
            for weight in model.parameters():
                drawn = torch.randn(weight.shape, generator=generator)
                weight.grad = torch.empty_like(weight).copy_(
                    drawn
                )  # laid out like the weight, as autograd does it
            optimizer.step()
    pairs = zip(*(model.parameters() for model in networks), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    whole, real = train(small_network(), data(), recipe(), tmp_path / "whole", progress=False), steps.train_step

    def stop_at(state, *rest):
        if state.step == 30:
            os.kill(os.getpid(), signal.SIGINT)
        return real(state, *rest)

    monkeypatch.setattr(steps, "train_step", stop_at)
    with pytest.raises(KeyboardInterrupt):
        train(small_network(), data(), recipe(), tmp_path / "run", progress=False)
    monkeypatch.setattr(steps, "train_step", real)
    resumed = train(small_network(), data(), recipe(), tmp_path / "run", progress=False)
    for one, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-2 if CUDA else 0)


def test_a_test_finds_what_it_finds_on_the_cpu(sound, split, tmp_path):
    attacks = [FGSM(), PGD(steps=5), AutoAttack(steps=5, queries=50)]
    here, there = (
        testing.test(sound["pgd"], place, attacks, progress=False) for place in (split, split.to(DEVICE))
    )
    assert list(here.outcomes) == list(there.outcomes)
    for name, outcome in here.outcomes.items():
        assert abs(int(outcome.sum()) - int(there.outcomes[name].cpu().sum())) <= 12, name
    assert {finding.check for finding in here.findings} == {finding.check for finding in there.findings}
    assert "invalid" not in {found.severity for found in audit(sound["pgd"], split.to(DEVICE), PGD()).findings}


@pytest.mark.skipif(not CUDA, reason="there is no GPU whose memory could run out")
def test_memory_that_really_runs_out(tmp_path):
    """A ResNet-18 with 700 MB: in evaluation, and in training."""
    pictures = torch.randint(256, (1000, 3, 32, 32), dtype=torch.uint8)
    split = utils.Split(pictures, torch.arange(1000) % 10, [str(n) for n in range(10)], "noise").to(DEVICE)
    model = models.build("resnet18", 10).to(DEVICE)
    gc.collect()  # graphs of other tests
    torch.cuda.empty_cache()
    most = torch.cuda.memory_reserved() + 700e6
    torch.cuda.set_per_process_memory_fraction(most / torch.cuda.get_device_properties(DEVICE).total_memory)
    try:
        assert per_example.predict(model, split).shape == (1000, 10)
        assert len(standing(model, split, PGD(steps=1))) == 1000
        known = batch_sizes._most.get(model) or {}
        assert min(known.values()) < 1000
        large = Recipe(epochs=1, batch_size=1000, validation_images=10, precision="float32")
        run = train(model, Data("noise", split, split, split, split.classes, {"name": "noise"}), large, tmp_path)
        assert len(run.history) == 1
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_notebook(tmp_path):
    environment = os.environ | {"STUDY_RUNS": str(tmp_path), "STUDY_TESTS_ON": DEVICE.type}
    command = [sys.executable, "-m", "study", "01", "--preset", "smoke", "-p", "test_pictures=20"]
    subprocess.run(command, cwd=Path(__file__).parents[1], env=environment, check=True)
    assert list(tmp_path.glob("*/01_shallow_cnn/*/scores.json"))


def test_pictures_that_stay_in_their_file_are_those_of_a_split_on_the_device():
    plain = Blobs().split(64, 0, "pictures").to(DEVICE)
    lazy = Mapped(Rows(plain.images.cpu()), plain.labels, plain.classes, plain.name)
    for one, two in zip(*(split.shuffled(8, seed=1) for split in (plain, lazy)), strict=True):
        for augment in (False, True):
            generators = [torch.Generator(DEVICE).manual_seed(2) for _ in range(2)]
            wanted, found = plain.batch(one, generators[0], augment), lazy.batch(two, generators[1], augment)
            assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    assert lazy.checksum == plain.checksum
