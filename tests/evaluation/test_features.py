"""What an attack does to the layers: each measure against its definition."""

import pytest
import torch
from small import small_network
from torch import nn

import models
from attacks import FGSM, PGD
from evaluation import features
from finetune_framework import adapt
from loaders import Split


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_cka_is_one_up_to_rotation_and_scale_and_zero_where_nothing_is_common():
    x = draw(200, 20)
    turn, _ = torch.linalg.qr(draw(20, 20, seed=1))
    assert features.cka(x, x) == pytest.approx(1)
    assert features.cka(x, 3 * x @ turn + 7) == pytest.approx(1)
    assert features.cka(x.view(200, 5, 2, 2), x) == pytest.approx(1)
    # The biased estimate would say some 0.7 here: more features than examples look alike.
    unlike = [features.cka(draw(50, 400, seed=s), draw(50, 400, seed=s + 100)) for s in range(20)]
    assert abs(sum(unlike) / 20) < 0.02
    assert 0.2 < features.cka(x, x + 1.5 * draw(200, 20, seed=2)) < 0.6


def test_hsic_is_the_mean_over_quadruples():
    """The unbiased estimate, spelled out (Song et al. 2012): a U-statistic over all four distinct examples."""
    x, y = draw(6, 3), draw(6, 2, seed=1)
    k, m = features._gram(x), features._gram(y)
    total, count = 0.0, 0
    for i in range(6):
        for j in range(6):
            for q in range(6):
                for r in range(6):
                    if len({i, j, q, r}) == 4:
                        total += k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
                        count += 1
    ours = features._hsic(k, m) / (6 * 3)  # n (n - 3)
    assert float(ours) == pytest.approx(float(total / count))


def test_too_few_examples_are_refused(blobs):
    with pytest.raises(ValueError, match="at least 4"):
        features.cka(draw(3, 2), draw(3, 2))
    with pytest.raises(ValueError, match="3 pictures; CKA needs at least 4"):
        features.through_layers(small_network(), blobs.test.first(3), FGSM())
    with pytest.raises(ValueError, match="changes nothing"):
        features.through_layers(small_network(), blobs.test, FGSM(eps=0))


def test_shifts_are_lengths_of_the_change(blobs):
    """On one linear layer everything can be computed by hand."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    fifty = blobs.test.first(50)
    split = Split(fifty.images, fifty.labels.clamp(max=1), ["a", "b"], "two of the blobs")
    attack = FGSM(eps=0.02)
    table = features.through_layers(network, split, attack)
    assert list(table.index) == ["pixels", "1"]
    images, labels = split.batch(torch.arange(50))
    adversarial = attack(network, images, labels)
    for name, clean, attacked in (
        ("pixels", images, adversarial),
        ("1", network(images), network(adversarial)),
    ):
        shift = ((attacked - clean).flatten(1).norm(dim=1) / clean.flatten(1).norm(dim=1)).mean()
        assert table["shift"][name] == pytest.approx(shift.item(), rel=1e-4)
        assert table.cka[name] == pytest.approx(features.cka(clean.detach(), attacked.detach()), rel=1e-4)
    assert table.noise["pixels"] < table["shift"]["pixels"]  # its pixels change by less than ε
    assert table.alignment.tolist() == pytest.approx([1, 1])  # the gradient of two classes has one direction
    assert table.attrs["n"] == 50
    in_l2 = features.through_layers(network, split, FGSM(norm="L2", eps=0.02))
    share = (0.02 / images.flatten(1).norm(dim=1)).mean().item()
    assert in_l2["shift"]["pixels"] == pytest.approx(share, rel=0.01)
    assert in_l2.noise["pixels"] == pytest.approx(share, rel=0.01)


def test_alignment_is_the_cosine_of_two_gradients(blobs, monkeypatch):
    network, split, attack = small_network().eval(), blobs.test.first(40), PGD(eps=0.1, steps=2)
    noisy = []
    real = features._with_gradients
    monkeypatch.setattr(features, "_with_gradients", lambda m, x, y: noisy.append(x) or real(m, x, y))
    table = features.through_layers(network, split, attack)
    images, labels = split.batch(torch.arange(40))
    assert torch.equal(noisy[0], images)
    slopes = []
    for points in noisy:
        points = points.clone().requires_grad_()
        loss = nn.functional.cross_entropy(network(points), labels, reduction="sum")
        slopes.append(torch.autograd.grad(loss, points)[0].flatten(1))
    assert 0.09 < (noisy[1] - images).abs().max() <= 0.1 + 1e-6
    cosine = nn.functional.cosine_similarity(*slopes).mean().item()
    assert table.alignment["pixels"] == pytest.approx(cosine, rel=1e-3)
    assert cosine < 0.999


def test_every_layer_is_seen_as_it_was_before_the_next_worked_in_place(shapes):
    network = models.build("imagenet/resnet18", 10, pretrained=False, resize=32)
    before = [module.training for module in network.modules()]
    table = features.through_layers(network, shapes.test.first(8), FGSM(), source=network)
    assert list(table.index) == ["pixels", "conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"]
    # BatchNorm begins as nothing, so it must show what the convolution shows, and not its ReLU.
    assert table["shift"]["bn1"] == pytest.approx(table["shift"]["conv1"], rel=1e-3)
    assert table.alignment["bn1"] == pytest.approx(table.alignment["conv1"], rel=1e-3)
    assert table.source_cka.tolist() == pytest.approx([1] * 8)
    assert [module.training for module in network.modules()] == before
    assert not any(module._forward_hooks for module in network.modules())


def test_stages_count_each_and_a_source_with_other_classes_is_compared(shapes):
    one, other = models.build("resnet18", 10, width=4), models.build("resnet18", 100, width=4, seed=1)
    table = features.through_layers(one, shapes.test.first(30), FGSM(), source=other)
    assert list(table.index) == ["pixels", "stem", *(f"stages.{k}" for k in range(4)), "head"]
    assert table.source_cka["pixels"] == pytest.approx(1)
    assert table.source_cka["head"] < 0.95
    frozen = adapt(other, 10, train="head")
    assert list(features.layers_of(frozen)) == list(features.layers_of(one))
    again = features.through_layers(one, shapes.test.first(30), FGSM(), source=other)
    assert again.equals(table)


def test_a_network_that_is_sure_of_itself_still_has_gradients(blobs):
    table = features.through_layers(
        models.wrap(small_network(), logits=lambda out: 1e4 * out), blobs.test.first(40), FGSM()
    )
    plain = features.through_layers(small_network(), blobs.test.first(40), FGSM())
    assert table.alignment["pixels"] > 0.5 * plain.alignment["pixels"] > 0.1
