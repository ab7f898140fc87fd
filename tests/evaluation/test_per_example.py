"""Which examples withstand: stages in full batches; a test that was stopped goes on, one that was done is read."""

import copy
import functools
import importlib.metadata
import json
import shutil
from dataclasses import dataclass

import pytest
import torch
import torchattacks
from small import small_network

from attacks import PGD, Attack, AutoAttack, Torchattacks
from attacks.autoattack import Nearest
from evaluation import batch_sizes, checks, per_example, tested_before, testing
from loaders import Split
from storage.atomic_files import NotWritten

CHEAP = AutoAttack(eps=6 / 255, steps=5, queries=20)


class Mine(PGD):
    pass


THREE = PGD(steps=3)
calls = []


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    calls.clear()
    monkeypatch.setitem(batch_sizes.BATCH, "cpu", 20)
    monkeypatch.setattr(tested_before, "SAVE_EVERY", -1)


def kept_in(folder):
    (path,) = folder.glob("tested-*.json")
    return path


def stop_after(batches, monkeypatch, model, split, folder, attack=THREE):
    judge, judged = per_example._judge, []

    def stopping(*given):
        judged.append(1)
        if len(judged) > batches:
            raise KeyboardInterrupt
        return judge(*given)

    with monkeypatch.context() as patch:
        patch.setattr(per_example, "_judge", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(model, split, [attack], folder)


@pytest.fixture
def crafted(monkeypatch):
    """Notes each batch that is crafted and judged."""
    judge = per_example._judge
    monkeypatch.setattr(per_example, "_judge", lambda *given: calls.append(1) or judge(*given))


def run(model, split, attacks, folder=None):
    return testing.test(model, split, attacks, progress=False, folder=folder)


def test_a_stopped_test_goes_on_to_the_same_outcomes(sound, blobs, tmp_path, monkeypatch, crafted):
    model = sound["pgd"]
    whole = run(model, blobs.test, [THREE])
    batches = len(calls)
    calls.clear()
    stop_after(3, monkeypatch, model, blobs.test, tmp_path)
    assert kept_in(tmp_path).exists()
    calls.clear()
    again = run(model, blobs.test, [THREE], tmp_path)
    assert len(calls) == batches - 3
    for label, outcome in whole.outcomes.items():
        assert torch.equal(outcome, again.outcomes[label])
    assert again.findings == whole.findings


def test_a_test_that_was_done_is_read_until_its_file_is_deleted(sound, blobs, tmp_path, caplog, crafted):
    caplog.set_level("INFO", "study")
    model, attacks = sound["pgd"], [PGD(steps=3), CHEAP]
    first = run(model, blobs.test, attacks, tmp_path)
    batches = len(calls)
    assert batches > 4
    assert not caplog.records
    again = run(model, blobs.test, attacks, tmp_path)
    assert len(calls) == batches
    assert again.findings == first.findings
    for label, outcome in first.outcomes.items():
        assert torch.equal(outcome, again.outcomes[label])
    assert again.seconds | {"clean": 0} == first.seconds | {"clean": 0}
    assert f"to test anew, delete {kept_in(tmp_path).name}" in caplog.text
    run(model, blobs.test, [*attacks, PGD(steps=4)], tmp_path)
    assert batches < len(calls) < 2 * batches
    calls.clear()
    kept_in(tmp_path).unlink()
    run(model, blobs.test, attacks, tmp_path)
    assert len(calls) == batches


def test_of_an_attack_of_ones_own_nothing_is_kept(sound, blobs, tmp_path, monkeypatch):
    """What it names may have been mended meanwhile: a criterion, a dictionary, another network."""
    for attack in (Mine(steps=3), Nearest(attack=Mine(steps=3))):
        stop_after(3, monkeypatch, sound["pgd"], blobs.test, tmp_path, attack)
        assert not list(tmp_path.glob("tested-*"))


class Dark(Split):
    def batch(self, *arguments, **settings):
        images, labels = super().batch(*arguments, **settings)
        return self.strength * images, labels


def test_of_pictures_of_ones_own_only_a_stopped_test_is_kept(sound, blobs, tmp_path, monkeypatch, crafted):
    test = blobs.test
    dark = Dark(test.images, test.labels, test.classes, test.name)
    dark.strength = 0.99
    run(sound["pgd"], dark, [CHEAP], tmp_path)
    assert not list(tmp_path.glob("tested-*"))
    stop_after(2, monkeypatch, sound["pgd"], dark, tmp_path)
    assert kept_in(tmp_path).exists()
    dark.strength = 1.0
    calls.clear()
    changed = run(sound["pgd"], dark, [THREE], tmp_path)
    batches = len(calls)
    alone = run(sound["pgd"], test, [THREE])
    assert len(calls) == 2 * batches  # as many for both: nothing was read
    assert torch.equal(changed.worst_case, alone.worst_case)


def test_what_others_bring_is_kept_until_its_test_is_done(sound, blobs, tmp_path, monkeypatch, crafted):
    """An attack, a network or a setting of somebody's own may hide what it hangs on."""

    class Theirs(torchattacks.FGSM):
        pass

    monkeypatch.setattr(torchattacks, "Mine", Theirs, raising=False)
    stop_after(3, monkeypatch, Around(sound["pgd"], lambda inner, images: inner(images)), blobs.test, tmp_path)
    kept_in(tmp_path).rename(tmp_path / "elsewhere.json")
    for model, attack in (
        (sound["pgd"], Mine(steps=3)),
        (sound["pgd"], Nearest(attack=Mine(steps=3))),
        (Around(sound["pgd"], lambda inner, images: inner(images)), PGD(steps=3)),
        (sound["pgd"], Torchattacks("Mine", eps=8 / 255)),
    ):
        run(model, blobs.test, [attack], tmp_path)
        assert not list(tmp_path.glob("tested-*"))
        counts = []
        for attacks in ([attack], [PGD(steps=2)], [attack], [attack, PGD(steps=2)], [attack]):
            calls.clear()
            run(model, blobs.test, attacks, tmp_path)
            counts.append(len(calls))
        own, other = counts[:2]
        assert own > 0
        lasts = not isinstance(model, Around)  # of PGD(steps=2)
        assert counts[2:] == [own, own if lasts else own + other, own]
        for path in tmp_path.glob("tested-*"):
            path.unlink()


def test_what_others_put_on_a_network_is_seen(sound, blobs, tmp_path, monkeypatch, crafted):
    """The weights are the same, and so is what eight clean pictures say."""
    plain = copy.deepcopy(sound["pgd"])
    run(plain, blobs.test, [PGD(steps=3)], tmp_path)
    batches = len(calls)

    def same(module, inputs):
        return None

    def forward():
        network = copy.deepcopy(plain)
        network.forward = functools.partial(network.forward)
        return network

    def backward_hook():
        network = copy.deepcopy(plain)
        network.register_full_backward_pre_hook(lambda module, gradient: None)
        return network

    for change in (forward, backward_hook):
        calls.clear()
        run(change(), blobs.test, [PGD(steps=3)], tmp_path)
        assert len(calls) == batches, change
    hook = torch.nn.modules.module.register_module_forward_pre_hook(same)
    try:
        calls.clear()
        run(plain, blobs.test, [PGD(steps=3)], tmp_path)
        assert len(calls) == batches
    finally:
        hook.remove()
    calls.clear()
    run(plain, blobs.test, [PGD(steps=3)], tmp_path)
    assert not calls  # its own file is still there
    craft = PGD.craft
    monkeypatch.setattr(PGD, "craft", lambda *given: craft(*given))
    for _ in range(2):
        calls.clear()
        run(plain, blobs.test, [PGD(steps=3)], tmp_path)
        assert len(calls) == batches


def test_nothing_is_kept_while_files_are_newer_than_what_runs(
    sound, blobs, tmp_path, monkeypatch, caplog, crafted
):
    run(sound["pgd"], blobs.test, [PGD(steps=3)], tmp_path)
    calls.clear()
    before = kept_in(tmp_path).read_bytes()
    for folder in tested_before.JUDGES:
        shutil.copytree(tested_before.ROOT / folder, tmp_path / "ours" / folder)
    with (tmp_path / "ours" / "models" / "model.py").open("a") as code:
        code.write("\n")
    monkeypatch.setattr(tested_before, "ROOT", tmp_path / "ours")
    run(sound["pgd"], blobs.test, [PGD(steps=3)], tmp_path)
    assert len(calls) > 0
    assert "were edited since this process began" in caplog.text
    assert kept_in(tmp_path).read_bytes() == before


def test_a_full_disk_costs_no_scores(sound, blobs, tmp_path, monkeypatch, caplog):
    def full(*_):
        raise NotWritten("no space left")

    monkeypatch.setattr(tested_before, "write_json", full)
    scores = run(sound["pgd"], blobs.test, [PGD(steps=3)], tmp_path)
    assert "PGD-3" in scores.outcomes
    assert "what was tested is not kept: no space left" in caplog.text


def test_an_error_before_the_test_lets_the_folder_go(blobs, tmp_path):
    broken = Around(small_network(), lambda inner, images: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught, tested_before.Kept(tmp_path, broken, blobs.test):
        pass
    assert caught.tb is not None  # holds what was open there
    run(small_network(), blobs.test, [PGD(steps=2)], tmp_path)


class Around(torch.nn.Module):
    """The same weights, another function."""

    def __init__(self, inner, function):
        super().__init__()
        self.inner, self.function = inner, function

    def forward(self, images):
        return self.function(self.inner, images)


def rewritten(monkeypatch):
    """The attack after somebody has edited its code: the settings are the same."""
    monkeypatch.setattr(PGD, "craft", lambda self, model, images, *rest: images)


@pytest.mark.parametrize(
    "change", ["model", "function", "pictures", "right pictures", "attack", "our code", "torch", "broken file"]
)
def test_what_was_done_for_something_else_is_not_used(change, sound, blobs, tmp_path, monkeypatch, crafted):
    model, split = Around(sound["pgd"], lambda inner, images: inner(images.detach())), blobs.test
    stop_after(3, monkeypatch, model, split, tmp_path)
    calls.clear()
    if change == "model":
        model = sound["standard"]
    elif change == "function":
        model = Around(sound["pgd"], lambda inner, images: inner(images))
    elif change == "pictures":
        split = blobs.val
    elif change == "right pictures":  # one clean prediction differs: batches shift, all but the first ones
        logits = per_example.predict(model, split)
        first = int((logits.argmax(1) == split.labels).nonzero()[0])
        logits[first, split.labels[first]] = -1000
        monkeypatch.setattr(testing, "predict", lambda *_: logits)
    elif change == "attack":
        rewritten(monkeypatch)
    elif change == "our code":
        monkeypatch.setattr(tested_before, "_code", lambda: "another")
        monkeypatch.setattr(tested_before, "CODE", "another")
    elif change == "torch":
        version = importlib.metadata.version
        monkeypatch.setattr(importlib.metadata, "version", lambda name: version(name) + ("+x" * (name == "torch")))
        monkeypatch.setattr(tested_before, "CODE", tested_before._code())
    else:
        kept_in(tmp_path).write_text('{"key":')
    expected = run(model, split, [THREE])
    before = len(calls)
    again = run(model, split, [THREE], tmp_path)
    assert len(calls) == 2 * before
    assert torch.equal(expected.worst_case, again.worst_case)


def test_stages_get_what_is_left_in_full_batches(sound, blobs):
    """AutoAttack over the split, compacted between its stages, finds what it finds in one batch."""
    model, sizes = sound["pgd"], []

    @dataclass(frozen=True, kw_only=True, repr=False)
    class Noted(Attack):
        inner: object

        def craft(self, model, images, labels, generator, targeted=False):
            sizes.append((self.inner.label, len(images)))
            return self.inner.craft(model, images, labels, generator, targeted)

    class Staged(AutoAttack):
        @property
        def stages(self):
            return tuple(Noted(eps=self.eps, inner=stage) for stage in super().stages)

    scores = run(model, blobs.test, [Staged(eps=6 / 255, steps=5, queries=20)])
    (label,) = scores.attacks
    left = int(scores.outcomes["clean"].sum())
    first = [size for name, size in sizes if name == "APGD-CE"]
    assert sum(first) == left
    for name in ("APGD-T", "FAB-T", "Square"):
        mine = [size for stage, size in sizes if stage == name]
        assert sum(mine) <= left
        assert all(size == 20 for size in mine[:-1])
        left = sum(mine)
    assert int(scores.outcomes[label].sum()) <= left


def test_the_bound_only_falls_and_ends_at_the_number(sound, blobs):
    class Bar:
        shown, done = [], 0

        def update(self, count):
            self.done += count

        def set_postfix_str(self, text):
            self.shown.append(int(text.split("at most ")[1].split(" of")[0]))

    bar, indices = Bar(), torch.arange(len(blobs.test))
    stood, _ = per_example.attacked(sound["pgd"], sound["pgd"], blobs.test, CHEAP, indices, 0, bar)
    assert bar.shown == sorted(bar.shown, reverse=True)
    assert bar.shown[-1] == int(stood.sum())
    assert bar.done == len(indices)


def test_nothing_to_attack_is_no_error(blobs):
    stood, extent = per_example.attacked(small_network(), small_network(), blobs.test, CHEAP, torch.arange(0), 0)
    assert len(stood) == 0
    assert extent == (0.0, 0.0, 0.0, 0, 0, 0.0)


def test_the_file_of_a_stopped_test_is_written_whole(sound, blobs, tmp_path, monkeypatch):
    stop_after(2, monkeypatch, sound["pgd"], blobs.test, tmp_path)
    kept = json.loads(kept_in(tmp_path).read_text())
    assert len(kept["batches"]) == 2
    assert all(set(stood) <= {"0", "1"} for stood, _extent in kept["batches"].values())


def test_the_extent_is_nan_where_a_pixel_is(blobs):
    @dataclass(frozen=True, kw_only=True, repr=False)
    class OneBadPixel(Attack):
        def craft(self, model, images, labels, generator, targeted=False):
            images[0, 0, 0, 0] = float("nan")
            return images

    class Deaf(torch.nn.Module):
        """NaN does not show in its logits."""

        def forward(self, images):
            return torch.nn.functional.one_hot(images.flatten(1).nan_to_num(0)[:, :4].argmax(1), 4).float()

    _, extent = per_example.attacked(Deaf(), Deaf(), blobs.test, OneBadPixel(), torch.arange(40), 0)
    assert extent[0] != extent[0]
    assert checks.inside_ball("x", OneBadPixel(), extent).severity == "invalid"
