"""Broken, exchanged and hostile files of a run: each gives its clear error, none a wrong number."""

import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from dataclasses import dataclass, replace

import pytest
import torch
from small import small_network

import models
from attacks import PGD
from defences import Standard
from evaluation import batch_sizes, per_example, tested_before, testing
from evaluation.audit import audit
from evaluation.finding import CLEAN
from evaluation.scores import Scores
from evaluation.statistics import difference
from finetune_framework import SourceError, load_source
from loaders import Split
from models.fingerprint import fingerprint, structure
from storage.atomic_files import Damaged, write_json
from study import tables
from trainer import Recipe, train
from training.run_folder import RunFolder, RunRefused
from training.weights import RunDamaged

RECIPE = Recipe(epochs=3, batch_size=64, learning_rate=0.1, validation_images=16, precision="float32")


class Trap:
    """A pickle that would run a command when it is opened."""

    def __reduce__(self):
        return os.system, ("touch /tmp/study-was-here",)


@pytest.fixture(scope="module")
def small(shapes):
    """The first pictures of Shapes, so that everything here is quick."""
    return replace(shapes, train=shapes.train.first(128), val=shapes.val.first(32), test=shapes.test.first(40))


@pytest.fixture(scope="module")
def made(small, tmp_path_factory):
    """Finished runs with their scores, and one that was stopped: copied for each test."""
    folder = tmp_path_factory.mktemp("made")
    for name, seed in (("run", 0), ("other", 1)):
        model = models.build("resnet18", 10, width=4, seed=seed)
        run = train(model, small, RECIPE, folder / name, progress=False)
        testing.test(run.model, small.test, [PGD(steps=2)], progress=False).save(run.folder)
        testing.test(run.best_model(), small.test, [PGD(steps=2)], progress=False).save(run.folder, epoch="best")
    train(models.build("resnet18", 10, width=5), small, RECIPE, folder / "wide", progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "finish", lambda *_: None)
        for name, seed in (("broken off", 0), ("other broken off", 1)):
            train(models.build("resnet18", 10, width=4, seed=seed), small, RECIPE, folder / name, progress=False)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "ß runs") / "run"


# --- how a file is broken: a function of its path -----------------------------------------------------


def emptied(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def page_instead(path):
    path.write_text("<html>log in first</html>")


def of_another_run(path):
    shutil.copyfile(path.parent.parent / path.parent.name.replace("run", "other", 1) / path.name, path)


def of_a_wider_network(path):
    shutil.copyfile(path.parent.parent / "wide" / path.name, path)


def flipped(path):
    """One bit in the middle, where tensors lie."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def digit_changed(path):
    """A number becomes another one, as a hand or a bad disk would do it."""
    text = path.read_text()
    place = next(i for i in range(len(text) // 2, len(text)) if text[i] in "123456789" and text[i + 1].isdigit())
    path.write_text(text[:place] + str(int(text[place]) % 9 + 1) + text[place + 1 :])


def pickled(path):
    path.write_bytes(pickle.dumps(Trap()))


def pickled_for_torch(path):
    content = io.BytesIO()
    torch.save({"model": Trap()}, content)
    path.write_bytes(content.getvalue())


def lying_header(path):
    """Tensors of a terabyte, in a file of a few bytes."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 64)


def endless_header(path):
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")


def a_bomb(path):
    """A zip whose one member claims to be gigantic."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"\0" * 10**7)


def a_list(path):
    torch.save([1, 2, 3], path)


def other_tensors(path):
    torch.save({"model": {"a": torch.ones(2)}}, path)


def without_header_line(path):
    path.write_text("\n".join(path.read_text().splitlines()[1:]))


def asking(**changes):
    """A recipe.json that describes another network, with a checksum that is right."""

    def ask(path):
        value = json.loads(path.read_text())
        value.pop("sha256")
        value["model"] |= changes
        write_json(path, value)

    return ask


def without_the_model(path):
    write_json(path, {"recipe": {}})


def outcomes_cut(path):
    value = json.loads(path.read_text())
    value.pop("sha256")
    value["outcomes"]["PGD-2"] = value["outcomes"]["PGD-2"][:-1]
    write_json(path, value)


def no_outcomes(path):
    write_json(path, {"split": "x", "outcomes": {}, "findings": []})


# --- what a user does next: a function of the run's folder --------------------------------------------


def train_again(folder, small):
    train(models.build("resnet18", 10, width=4), small, RECIPE, folder, progress=False)


def use_as_source(folder, small):
    load_source(folder)


def look_at_best(folder, small):
    run = train(models.build("resnet18", 10, width=4), small, RECIPE, folder, progress=False)
    run.best_model()


def look_at_history(folder, small):
    RunFolder(folder).load_history()


def look_at_scores(folder, small):
    tables.load_scores(folder.parent)


WEIGHTS = (
    emptied,
    cut,
    page_instead,
    of_another_run,
    of_a_wider_network,
    flipped,
    pickled,
    lying_header,
    endless_header,
)
TEXT = (emptied, cut, page_instead, digit_changed)
CASES = [
    *(("weights.safetensors", how, train_again, RunDamaged) for how in WEIGHTS),
    *(("weights.safetensors", how, use_as_source, RuntimeError) for how in WEIGHTS),
    *(("best.safetensors", how, look_at_best, RunDamaged) for how in WEIGHTS),
    *(("recipe.json", how, train_again, RuntimeError) for how in (*TEXT, of_another_run, of_a_wider_network)),
    *(
        ("recipe.json", how, use_as_source, RuntimeError)
        for how in (
            *TEXT,
            asking(width=10**6),
            asking(num_classes=10**12),
            asking(name="resnet99"),
            asking(depth=3),
            asking(name=7),
            without_the_model,
        )
    ),
    *(("history.csv", how, train_again, RunDamaged) for how in (*TEXT, of_another_run, without_header_line)),
    *(("history.csv", how, look_at_history, RunDamaged) for how in TEXT),
    *(("scores.json", how, look_at_scores, Damaged) for how in (*TEXT, outcomes_cut, no_outcomes, pickled)),
]


def name_of(value):
    return value if isinstance(value, str) else getattr(value, "__name__", "")


@pytest.mark.parametrize(("name", "how", "use", "error"), CASES, ids=name_of)
def test_a_broken_file_of_a_finished_run_is_named(name, how, use, error, folder, small):
    use(folder, small)  # as long as it is whole, it works
    how(folder / name)
    with pytest.raises(error, match=str(folder)) as caught:
        use(folder, small)
    assert isinstance(caught.value, (Damaged, RunRefused, SourceError))
    assert "elete" in str(caught.value)  # what to do
    assert not os.path.exists("/tmp/study-was-here")


def test_scores_of_other_weights_are_marked(folder, small):
    of_another_run(folder / "scores.json")
    (finding,) = [f for f in tables.load_scores(folder.parent)["run"].findings if f.check == "other weights"]
    assert finding.severity == "invalid"


# --- a run that was broken off ------------------------------------------------------------------------

CHECKPOINTS = (emptied, cut, flipped, page_instead, pickled, pickled_for_torch, a_bomb, a_list, other_tensors)


@pytest.fixture
def broken_off(folder):
    return folder.parent / "broken off"


@pytest.mark.parametrize("how", [*CHECKPOINTS, lambda path: path.unlink()], ids=name_of)
def test_a_broken_checkpoint_gives_way_to_the_one_before(how, folder, broken_off, small, caplog):
    how(broken_off / "last.pt")
    with caplog.at_level("INFO", "study"):
        run = train(models.build("resnet18", 10, width=4), small, RECIPE, broken_off, progress=False)
    assert f"step {2 * 2} of 6" in caplog.text  # the one after the second of three epochs
    if how in CHECKPOINTS:
        assert "last.pt is damaged" in caplog.text
        assert "Going on from previous.pt, which is older" in caplog.text
    assert fingerprint(run.model) == fingerprint(load_source(folder))
    assert not (broken_off / "previous.pt").exists()
    assert not os.path.exists("/tmp/study-was-here")


@pytest.mark.parametrize("how", CHECKPOINTS, ids=name_of)
def test_where_both_are_broken_nothing_is_trained(how, broken_off, small):
    for name in ("last.pt", "previous.pt"):
        how(broken_off / name)
    with pytest.raises(RunDamaged, match=r"last\.pt is damaged.* and .*previous\.pt is damaged.*Delete both"):
        train_again(broken_off, small)
    assert not os.path.exists("/tmp/study-was-here")


def test_where_the_only_one_is_broken_it_alone_is_named(broken_off, small):
    (broken_off / "previous.pt").unlink()
    cut(broken_off / "last.pt")
    with pytest.raises(
        RunDamaged, match=r"last\.pt is damaged: its checksum differs\. Delete it, and the run begins"
    ):
        train_again(broken_off, small)


def test_a_checkpoint_of_another_run_is_refused(folder, broken_off, small):
    for name in ("last.pt", "previous.pt"):
        shutil.copyfile(folder.parent / "other broken off" / name, broken_off / name)
    with pytest.raises(RunDamaged, match=r"last\.pt is of another run"):
        train_again(broken_off, small)


def test_the_one_before_is_kept_until_the_new_one_can_be_read(broken_off, small, monkeypatch):
    """A disk that loses what it has taken: the run ends, and goes on later from what was there."""
    state = RunFolder(broken_off).load_checkpoint("cpu")
    before = {path: path.read_bytes() for path in RunFolder(broken_off).checkpoints}
    real = type(broken_off).write_bytes
    monkeypatch.setattr(type(broken_off), "write_bytes", lambda path, content: real(path, bytes(content)[:-50]))
    with pytest.raises(RunDamaged, match=r"partial\.pt is damaged"):
        RunFolder(broken_off).save_checkpoint(state)
    assert before == {path: path.read_bytes() for path in RunFolder(broken_off).checkpoints}


def test_every_byte_of_a_checkpoint_counts(broken_off):
    run, path = RunFolder(broken_off), broken_off / "last.pt"
    content = path.read_bytes()
    for place in range(0, len(content), len(content) // 200):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(RunDamaged, match="checksum differs"):
            run._read_checkpoint(path, "cpu")


@pytest.mark.parametrize("how", [pickled, pickled_for_torch, a_bomb, a_list, other_tensors], ids=name_of)
def test_a_hostile_checkpoint_with_the_right_checksum_is_refused_too(how, broken_off, small):
    for name in ("last.pt", "previous.pt"):
        how(broken_off / name)
        content = (broken_off / name).read_bytes()
        (broken_off / name).write_bytes(content + hashlib.sha256(content).digest())
    with pytest.raises(RunDamaged, match=r"last\.pt is damaged.*previous\.pt is damaged"):
        train_again(broken_off, small)
    assert not os.path.exists("/tmp/study-was-here")


# --- what is only remembered: begun anew, never believed ----------------------------------------------


@pytest.mark.parametrize("how", [emptied, cut, page_instead, digit_changed, pickled], ids=name_of)
def test_batches_that_were_kept_and_are_broken_are_done_anew(how, small, tmp_path, monkeypatch):
    monkeypatch.setitem(batch_sizes.BATCH, "cpu", 10)
    monkeypatch.setattr(tested_before, "SAVE_EVERY", -1)
    model, attack = small_network(classes=10, size=32).eval(), PGD(steps=2)
    whole = testing.test(model, small.test, [attack], progress=False)
    testing.test(model, small.test, [attack], progress=False, folder=tmp_path)
    (kept,) = tmp_path.glob("tested-*.json")
    how(kept)
    again = testing.test(model, small.test, [attack], progress=False, folder=tmp_path)
    assert all(torch.equal(whole.outcomes[label], again.outcomes[label]) for label in whole.outcomes)


def test_a_twin_that_is_broken_is_passed_over(small, tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path))
    where = tmp_path / "quick-shapes"
    recipe = replace(RECIPE, epochs=1, defence=Standard())
    first = train(models.build("shallow_cnn", 10), small, recipe, where / "01" / "run", progress=False)
    broken = {"history.csv": digit_changed, "environment.json": cut, "recipe.json": emptied}
    for number, (name, how) in enumerate((broken | {"weights.safetensors": cut}).items()):
        content = (first.folder / name).read_bytes()
        how(first.folder / name)
        again = train(models.build("shallow_cnn", 10), small, recipe, where / "02" / f"{number}", progress=False)
        assert fingerprint(again.model) == fingerprint(first.model)
        assert "same_run_as" not in json.loads((again.folder / "environment.json").read_text())
        shutil.rmtree(again.folder)
        (first.folder / name).write_bytes(content)
    taken = train(models.build("shallow_cnn", 10), small, recipe, where / "02" / "run", progress=False)
    assert "same_run_as" in json.loads((taken.folder / "environment.json").read_text())


def test_settings_count_and_what_has_no_name_does_not():
    """An object's address differs from one process to the next; a setting that is None is a setting."""
    networks = [small_network() for _ in range(3)]
    for network in networks:
        network[2].helper = object()
        network[2].slope = None
    networks[2][2].slope = 0.1
    one, same, other = map(structure, networks)
    assert one == same
    assert one != other


def test_a_finished_run_can_be_used_where_nothing_can_be_written(folder, small, monkeypatch):
    monkeypatch.setattr(RunFolder, "locked", lambda *_: pytest.fail("it was locked"))
    train_again(folder, small)
    assert len(look_at_everything(folder)) == 2


def look_at_everything(folder):
    return [Scores.load(folder), Scores.load(folder, "best")]


# --- what somebody may do without meaning harm ----------------------------------------------------------


def go(small, folder, recipe=RECIPE, width=4, **options):
    return train(models.build("resnet18", 10, width=width), small, recipe, folder, progress=False, **options)


def test_other_pictures_under_the_same_name_are_another_run(folder, small, broken_off):
    labels = (small.train.labels + 1) % 10
    split = Split(small.train.images, labels, small.train.classes, small.train.name)
    for other in (replace(small, train=split), replace(small, train=small.train.first(64))):
        for place in (folder, broken_off):
            with pytest.raises(RunRefused, match=r"data\.pictures"):
                go(other, place)


def test_a_network_that_was_changed_by_hand_is_not_made_again_from_its_name(small, tmp_path):
    model = models.build("resnet18", 10, width=4)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 0.5
    train(model, small, replace(RECIPE, epochs=1), tmp_path / "run", progress=False)
    with pytest.raises(SourceError, match=r"changed after models\.build"):
        load_source(tmp_path / "run")


def test_a_run_whose_folder_was_taken_over_cannot_pass_for_the_other(small, tmp_path, monkeypatch):
    """Its folder is deleted and begun by another recipe while it trains."""
    other, real = replace(RECIPE, learning_rate=0.02), RunFolder.save_history

    def taken_over(run, history):
        real(run, history)
        if len(history) == 2:
            value = json.loads((tmp_path / "b" / "recipe.json").read_text())
            value.pop("sha256")
            write_json(run.path / "recipe.json", value)

    go(small, tmp_path / "b", other)
    monkeypatch.setattr(RunFolder, "save_history", taken_over)
    go(small, tmp_path / "a")
    monkeypatch.undo()
    with pytest.raises(RunDamaged, match="other weights than this run wrote"):
        go(small, tmp_path / "a", other)


def test_a_history_that_was_edited_meanwhile_is_written_anew(broken_off, small, folder):
    text = (broken_off / "history.csv").read_text()
    (broken_off / "history.csv").write_text(text.replace(".", ".9", 3))
    go(small, broken_off)
    same = [name for name in RunFolder(folder).load_history() if name != "time/epoch_s"]
    assert RunFolder(broken_off).load_history()[same].equals(RunFolder(folder).load_history()[same])


def test_a_history_that_is_gone_is_missed(folder, small):
    (folder / "history.csv").unlink()
    with pytest.raises(RunDamaged, match=r"history\.csv"):
        train_again(folder, small)


def test_the_best_epoch_is_not_the_last(folder, small):
    shutil.copyfile(folder / "best.safetensors", folder / "weights.safetensors")
    with pytest.raises(RunDamaged, match=r"weights\.safetensors holds other weights than this run wrote"):
        train_again(folder, small)


def unsealed(path):
    value = json.loads(path.read_text())
    value.pop("sha256")
    value["outcomes"] = {label: "1" * len(bits) for label, bits in value["outcomes"].items()}
    path.write_text(json.dumps(value))


def more_robust_than_right(path):
    value = json.loads(path.read_text())
    value.pop("sha256")
    value["outcomes"]["PGD-2"], value["outcomes"][CLEAN] = "1" * 40, "0" * 40
    write_json(path, value)


@pytest.mark.parametrize("how", [unsealed, more_robust_than_right])
def test_forged_scores_are_refused(how, folder):
    how(folder / "scores.json")
    with pytest.raises(Damaged, match=r"scores\.json"):
        tables.load_scores(folder.parent)


def test_a_copied_folder_is_no_second_seed(folder):
    shutil.copytree(folder, folder.parent / "new" / "pgd-seed0")
    shutil.copytree(folder, folder.parent / "new" / "pgd-seed1")
    scores = tables.load_scores(folder.parent / "new")
    assert (
        "the same weights" in tables.seeds({name: scores[name] for name in scores if "best" not in name}).to_html()
    )


def test_scores_of_different_pictures_are_not_paired(folder, small):
    model = load_source(folder)
    first, last = (
        testing.test(model, some, progress=False) for some in (small.test.first(20), small.test.last(20))
    )
    with pytest.raises(ValueError, match="not of the same examples"):
        difference([first], [last], CLEAN)


def test_old_scores_in_a_run_that_was_begun_anew_are_marked(folder):
    (folder / "weights.safetensors").unlink()
    (finding,) = [f for f in tables.load_scores(folder.parent)["run"].findings if f.check == "other weights"]
    assert finding.severity == "invalid"


def test_an_audit_of_another_run_is_named(folder, small):
    audited = audit(load_source(folder.parent / "other"), small.test, PGD(steps=2), progress=False)
    audited.save(folder)
    found = tables.load_scores(folder.parent)["run"].findings
    assert any("is of other weights than this run's; run audit() again" in finding.message for finding in found)
    shutil.copyfile(folder / "scores.json", folder / "audit-x.json")
    write_json(folder / "audit-x.json", json.loads((folder / "scores.json").read_text()) | {"attacks": {}})
    with pytest.raises(Damaged, match=r"audit-x\.json is no audit"):
        tables.load_scores(folder.parent)


@dataclass(frozen=True)
class Mine(Standard):
    """A defence of the user's own, as a notebook's cell would hold it."""

    def loss(self, *arguments, **named):
        return super().loss(*arguments, **named)


def test_who_edits_the_loss_of_a_defence_of_his_own_asks_for_another_run(small, tmp_path, monkeypatch):
    recipe = replace(RECIPE, epochs=1, defence=Mine())
    go(small, tmp_path / "run", recipe)
    assert len(go(small, tmp_path / "run", recipe).history) == 1

    def edited(self, *arguments, **named):
        loss, logits = Standard.loss(self, *arguments, **named)
        return 2 * loss, logits

    monkeypatch.setattr(Mine, "loss", edited)
    with pytest.raises(RunRefused, match=r"recipe\.defence\.code"):
        go(small, tmp_path / "run", recipe)


def test_what_one_test_kept_another_one_does_not_throw_away(folder, small, monkeypatch, caplog):
    """A test is stopped; a second one in the same folder ends; the first goes on where it was."""
    monkeypatch.setitem(batch_sizes.BATCH, "cpu", 1)
    caplog.set_level("INFO", "study")
    model, real, calls = load_source(folder), per_example._judge, []

    def judge(source, victim, attack, *rest):
        calls.append(attack.steps)
        if attack.steps == 3 and calls.count(3) == 3 and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        return real(source, victim, attack, *rest)

    stopped = []
    right = int((per_example.predict(model, small.test).argmax(1) == small.test.labels).sum())
    assert right > 3
    monkeypatch.setattr(per_example, "_judge", judge)
    with pytest.raises(KeyboardInterrupt):
        testing.test(model, small.test, [PGD(steps=3)], progress=False, folder=folder)
    testing.test(model, small.test, [PGD(steps=2)], progress=False, folder=folder)
    calls.clear()
    testing.test(model, small.test, [PGD(steps=3)], progress=False, folder=folder)
    assert calls.count(3) == right - 2


def test_another_file_among_the_curves_does_not_matter(broken_off, small):
    (broken_off / "events.out.tfevents.backup").write_text("")
    go(small, broken_off)
