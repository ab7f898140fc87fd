"""The first look: what it draws is what the networks say, and its slider and menus draw it anew."""

import pytest
import torch

from attacks import FGSM, PGD
from evaluation.per_example import predict
from study import first_look


@pytest.fixture(scope="module")
def pictures(sound, blobs):
    return first_look.recognised(sound, blobs.test)


def captions(figure):
    """What stands below the clean and the attacked picture of each network."""
    rows = [[text.get_text() for text in axis.texts if "“" in text.get_text()] for axis in figure.axes]
    return [row for row in rows if row]


def test_recognised_are_the_first_of_each_class_that_all_get_right(sound, blobs, pictures):
    right = torch.stack([predict(model, blobs.test).argmax(1) == blobs.test.labels for model in sound.values()])
    for place in pictures:
        label = blobs.test.labels[place]
        assert int((right.all(0) & (blobs.test.labels == label)).nonzero()[0]) == place
    assert len(pictures) == 4
    assert first_look.recognised(sound, blobs.test, count=2) == pictures[:2]


def test_it_draws_what_the_networks_say(sound, blobs, pictures):
    attack, (images, labels) = FGSM(eps=30 / 255), blobs.test.batch(torch.tensor([pictures[0]]))
    drawn = captions(first_look.draw(sound, blobs.test, pictures[0], attack))
    for model, (before, after) in zip(sound.values(), drawn, strict=True):
        for shown, caption in ((images, before), (attack(model, images, labels), after)):
            likeliest, guess = model(shown).detach().softmax(1).max(1)
            assert caption == f"“{blobs.classes[int(guess)]}”\n{100 * float(likeliest):.0f} %"


def test_without_a_change_they_say_the_same(sound, blobs, pictures):
    figure = first_look.draw(sound, blobs.test, pictures[0], FGSM(eps=0))
    assert all(before == after for before, after in captions(figure))
    assert "no change" in {text.get_text() for text in figure.axes[0].texts}


def test_each_control_draws_anew(sound, blobs, pictures):
    box = first_look.explore(sound, blobs.test, pictures, [FGSM(), PGD()])
    (picture, attack, eps), shown = box.children[0].children, box.children[1]
    assert box._repr_mimebundle_()["text/plain"].endswith(
        "a slider stand here then."
    )  # where there is no front end
    seen = [bytes(shown.value)]
    for control, label in ((picture, picture.options[1][0]), (attack, "PGD-10"), (eps, "16/255"), (eps, "0/255")):
        control.label = label
        seen.append(bytes(shown.value))
    assert all(value.startswith(b"\x89PNG") for value in seen)
    assert len(set(seen)) == len(seen)
