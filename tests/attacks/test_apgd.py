"""APGD, formula by formula, against what its paper writes; as strong as that of torchattacks."""

import pytest
import torch
import torchattacks
from small import generator, points_with_gradient, small_network, standing
from torch import nn

from attacks import APGD, FGSM, PGD, AutoAttack, apgd
from attacks.autoattack_search import Search
from attacks.pgd import projection


class Standing(nn.Module):
    """Nothing moves its answer, and every pixel has a gradient."""

    def forward(self, images):
        logits = torch.zeros(len(images), 3).to(images)
        logits[:, 0] = 100
        return logits + images.flatten(1) @ torch.linspace(-1, 1, images[0].numel() * 3).view(-1, 3).to(images)


def pictures(count=5):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(count).long()


@pytest.mark.parametrize(("loss", "rank"), [("dlr", None), ("targeted", 1)])
def test_the_ratio_of_logits_is_the_papers(loss, rank):
    """Croce & Hein 2020: below the line stands the third logit, for a target the mean of third and fourth."""
    model = small_network(classes=10).eval()
    images = torch.rand(6, 3, 8, 8, generator=generator())
    with torch.no_grad():
        logits = model(images)
    order = logits.argsort(1, descending=True)
    search = Search(model, images, order[:, 0], False, "float32")
    value = APGD(loss=loss)._objective(search, rank)(logits)
    first, second, third, fourth = logits.gather(1, order)[:, :4].T
    rival, low = (second, third) if rank is None else (third, (third + fourth) / 2)
    assert torch.allclose(value, (rival - first) / (first - low), atol=1e-5)


@pytest.mark.parametrize(
    ("steps", "marks"),
    [(100, [22, 41, 57, 70, 80, 87, 93, 99]), (50, [11, 20, 27, 32, 35, 38, 41, 44, 47, 50])],
)
def test_apgd_looks_back_where_the_paper_does(steps, marks, monkeypatch):
    """Croce & Hein 2020, section 3.1: p = 0, 0.22, then p + max(last - 0.03, 0.06); in whole steps."""
    seen, real = [], apgd._checkpoint
    monkeypatch.setattr(apgd, "_checkpoint", lambda state, window: seen.append(window) or real(state, window))
    APGD(steps=steps)(Standing(), *pictures())
    assert torch.tensor(seen).cumsum(0).tolist() == marks


def test_apgd_halves_where_it_climbed_too_seldom_or_found_nothing_new():
    rises = torch.tensor([0.0, 16, 17, 22, 22, 22])
    state = {
        "rises": rises,
        "halved": torch.tensor([False, False, False, False, False, True]),
        "checked": torch.tensor([0.0, 0, 0, 0, 1, 1]),
        "top": torch.tensor([1.0, 1, 1, 1, 1, 1]),
        "size": torch.full((6,), 0.04),
        "here": torch.full((6, 1, 1, 1), 0.5),
        "best": torch.full((6, 1, 1, 1), 0.7),
        "gradient": torch.full((6, 1, 1, 1), 1.0),
        "uphill": torch.full((6, 1, 1, 1), 2.0),
    }
    after = apgd._checkpoint(state, 22)  # three quarters of 22 steps are 16.5
    halved = torch.tensor([True, True, False, False, True, False])
    assert torch.equal(after["halved"], halved)
    assert torch.equal(after["size"], torch.where(halved, 0.02, 0.04))
    assert torch.equal(after["here"].flatten(), torch.where(halved, 0.7, 0.5))
    assert torch.equal(after["gradient"].flatten(), torch.where(halved, 2.0, 1.0))
    assert torch.equal(after["checked"], state["top"])
    assert not after["rises"].any()


def test_apgd_moves_by_its_step_and_a_quarter_of_the_last_movement():
    """z = P(x + η sign g), then x + 0.75 (z - x) + 0.25 (x - x before), projected; the first step has no past."""
    here, before = torch.tensor([0.50, 0.50, 0.98, 0.50]), torch.tensor([0.48, 0.48, 0.97, 0.60])
    gradient = torch.tensor([3.0, -2.0, 1.0, 0.0])
    shape = (1, 1, 1, 4)
    state = {"here": here.view(shape), "before": before.view(shape), "gradient": gradient.view(shape)}
    state |= {"size": torch.tensor([0.1])}
    lower, upper = torch.zeros(shape), torch.ones(shape)
    upper[..., 1] = 0.52
    lower[..., 1] = 0.46
    inside = ((lambda points: points.clamp_(lower, upper)), "Linf")
    z = torch.tensor([0.60, 0.46, 1.0, 0.50])
    expected = (here + 0.75 * (z - here) + 0.25 * (here - before)).clamp(max=1)
    after = apgd._move(state, 0.75, *inside)
    assert torch.allclose(after["here"].flatten(), expected)
    assert torch.equal(after["before"], state["here"])
    assert torch.allclose(apgd._move(state, 1.0, *inside)["here"].flatten(), z)


def test_apgd_moves_by_the_length_of_its_step_in_l2():
    """z = P(x + η g / |g|), then as in L∞; P shortens the change to ε, then cuts it at [0, 1]."""
    shape = (1, 1, 1, 2)
    image, here, before = (torch.tensor(point) for point in ([0.5, 0.05], [0.6, 0.05], [0.5, 0.05]))
    state = {"here": here.view(shape), "before": before.view(shape), "size": torch.tensor([0.2])}
    state["gradient"] = torch.tensor([3e-30, -4e-30]).view(shape)  # squares of these are 0 in float32
    z = torch.tensor([0.72, 0.05 - 0.16]) - image
    z = (image + z * 0.25 / z.norm()).clamp(0, 1)
    expected = here + 0.75 * (z - here) + 0.25 * (here - before) - image
    expected = (image + expected * min(1, 0.25 / expected.norm())).clamp(0, 1)
    after = apgd._move(state, 0.75, projection(image.view(shape), 0.25, "L2"), "L2")
    assert torch.allclose(after["here"].flatten(), expected)


def test_apgd_remembers_the_best_point_and_counts_what_rose():
    state = {name: torch.zeros(3, 1, 1, 1) for name in ("best", "uphill")}
    state |= {"here": torch.ones(3, 1, 1, 1), "rises": torch.zeros(3), "loss": torch.tensor([1.0, 1.0, 1.0])}
    state["top"] = torch.tensor([2.0, 1.0, 0.5])
    after = apgd._note(state, torch.tensor([1.5, 1.0, 0.7]), torch.full((3, 1, 1, 1), 5.0))
    assert after["best"].flatten().tolist() == [0, 0, 1]
    assert after["uphill"].flatten().tolist() == [0, 0, 5]
    assert after["top"].tolist() == [2.0, 1.0, pytest.approx(0.7)]
    assert after["rises"].tolist() == [1, 0, 0]


def test_apgd_starts_somewhere_on_the_border_in_every_direction():
    images, labels = 0.25 + 0.5 * pictures()[0], pictures()[1]
    asked, _ = points_with_gradient(APGD(eps=0.1, steps=3), Standing(), images, labels)
    change = asked[0] - images
    assert change.abs().amax((1, 2, 3)) == pytest.approx(0.1, abs=1e-6)
    assert abs(float(change.mean())) < 0.01
    assert float(change.std()) == pytest.approx(0.1 / 3**0.5, rel=0.1)  # uniform
    asked, _ = points_with_gradient(APGD(norm="L2", steps=3), Standing(), images, labels)
    change = asked[0] - images
    assert change.flatten(1).norm(dim=1) == pytest.approx(0.5, abs=1e-5)
    assert float(change.mean()) == pytest.approx(0, abs=0.01)


EPS = 8 / 255


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("loss", ["ce", "dlr", "targeted"])
def test_apgd_is_as_strong_as_torchattacks(loss, norm, attacked):
    model, few = attacked
    images, labels = few.batch(torch.arange(len(few)))
    make = {"ce": torchattacks.APGD, "dlr": torchattacks.APGD, "targeted": torchattacks.APGDT}[loss]
    options = {"loss": loss} if loss != "targeted" else {"n_classes": few.num_classes}
    ball = {"norm": norm, "eps": EPS if norm == "Linf" else 0.3}
    attack = make(model.to(memory_format=torch.contiguous_format).eval(), **ball, steps=40, **options)
    theirs = int((model(attack(images.contiguous(), labels)).argmax(1) == labels).sum())
    model.to(memory_format=torch.channels_last)
    ours = standing(model, APGD(**ball, steps=40, loss=loss), few)
    assert 0 < ours <= theirs + 2
    if loss != "dlr":  # which of the two losses is the stronger depends on the network
        assert ours <= standing(model, PGD(**ball, steps=40), few) + 2


def test_what_stands_is_attacked_on_and_nothing_else():
    """An example that the model gets wrong is left alone; one that has fallen costs no further step."""
    passed = []
    model = small_network().eval()
    images = torch.rand(40, 3, 8, 8, generator=generator())
    right = model(images).argmax(1)
    labels = torch.where(torch.arange(40) < 10, (right + 1) % 4, right)
    model.register_forward_hook(lambda _, inputs, out: passed.append(len(inputs[0])))
    found = APGD(steps=30, eps=4 / 255, precision="float32").craft(model, images, labels, generator())
    assert torch.equal(found[:10], images[:10])
    assert passed[:3] == [40, 10, 30]  # all, those that look wrong once more, and what stands
    assert passed[-1] < 30


def test_many_samples_steady_a_random_model(sound, blobs):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = sound["standard"]

        def forward(self, images):
            return self.inner(images + 0.1 * torch.randn_like(images))

    images, labels = blobs.test.batch(torch.arange(128))
    model, sizes = Noisy().eval(), []
    assert [stage.samples for stage in AutoAttack(version="rand").stages] == [20, 20]

    def accuracy(attack):
        """The mean over 50 answers."""
        torch.manual_seed(0)
        found = attack.craft(model, images, labels, generator())
        with torch.no_grad():
            return sum(float((model(found).argmax(1) == labels).double().mean()) for _ in range(50)) / 50

    assert accuracy(FGSM(eps=0.0)) > accuracy(FGSM(eps=4 / 255)) + 0.05
    assert accuracy(APGD(eps=4 / 255, steps=20, samples=20)) < accuracy(FGSM(eps=4 / 255)) + 0.01
    # No example leaves because it was unlucky once: after the first look all steps see the same ones.
    model.inner.register_forward_hook(lambda _, inputs, out: sizes.append(len(inputs[0])))
    APGD(eps=4 / 255, steps=5, samples=2).craft(model, images, labels, generator())
    model.inner._forward_hooks.clear()
    assert len(set(sizes[3:-2])) == 1


def test_settings_of_torch_are_given_back(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)  # else they concern nobody
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    model, seen = small_network().eval(), []
    images = torch.rand(2, 3, 8, 8, generator=generator())
    labels = model(images).argmax(1)
    model.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.benchmark))
    APGD(steps=2, eps=1e-4).craft(model, images, labels, generator())
    assert torch.backends.cudnn.benchmark
    assert not seen[-2]
    assert not torch.is_autocast_enabled("cpu")


def test_a_lucky_first_answer_takes_no_picture_out_where_the_network_answers_at_random():
    """Its first answer is wrong, all others are right: one that is asked often is attacked nevertheless."""
    asked = []

    class Moody(nn.Module):
        def forward(self, images):
            asked.append(len(images))
            right = -1.0 if len(asked) == 1 else 1.0
            return images.flatten(1).sum(1, keepdim=True) * torch.tensor([[right, 0.0]])

    images, labels = torch.full((4, 1, 2, 2), 0.5), torch.zeros(4).long()
    found = APGD(steps=4, samples=2, eps=0.1, precision="float32").craft(Moody(), images, labels, generator())
    assert (found != images).any(1).all()
    assert len(asked) > 8
    asked.clear()
    sure = APGD(steps=4, eps=0.1, precision="float32").craft(Moody(), images, labels, generator())
    assert not torch.equal(sure, images)  # verified once more, it was no success
