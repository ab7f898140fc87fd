"""What people complained of in public about training, fine-tuning, checkpoints and curves elsewhere, done here.

The first line of a docstring says who and where, and what; the assertions say what is right.
"""

import copy
import io
import os
import signal
from dataclasses import replace

import pytest
import torch
from PIL import Image
from small import Blobs, pictures, small_network, small_split, tiny_resnet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn.functional import cross_entropy

import models
from attacks import PGD
from finetune_framework import SourceError, adapt, load_source
from loaders import Data, DataError, Split
from loaders.split import stratified
from models.fingerprint import fingerprint
from trainer import Recipe, TrainingDiverged, train
from training import step
from training.run_folder import RunRefused
from training.tensorboard_log import Curves

RECIPE = Recipe(epochs=3, batch_size=16, validation_images=8, learning_rate=0.05, validation_attack=PGD(steps=1))


@pytest.fixture(scope="module")
def few():
    """48 pictures to train on, 16 to choose with; nothing to test on, for training asks for none."""
    parts = Blobs().split(48, 0, "train"), Blobs().split(16, 1, "validation")
    return Data("blobs", *parts, None, list("abcd"), {"name": "blobs"})


@pytest.fixture(scope="module")
def whole(few, tmp_path_factory):
    """A training that nobody stopped, of three epochs of three steps."""
    return go(few, tmp_path_factory.mktemp("whole") / "run")


def go(data, folder, recipe=RECIPE, network=None):
    return train(network or small_network(), data, recipe, folder, progress=False)


def stopped(monkeypatch, number, data, folder):
    """The stop button is pressed in the step of that number."""
    real = step.train_step

    def stopping(state, *rest):
        if state.step == number:
            os.kill(os.getpid(), signal.SIGINT)
        return real(state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(step, "train_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            go(data, folder)


@pytest.fixture
def resumed(few, tmp_path, monkeypatch):
    """The same training, stopped in its second epoch and started again."""
    stopped(monkeypatch, 4, few, tmp_path / "run")
    return go(few, tmp_path / "run")


def test_a_resumed_run_goes_on_where_it_was(whole, resumed):
    """MadryLab/robustness #41: resuming takes the weights, but not the epoch and the learning rate's schedule.

    The same: pytorch/pytorch #60265, ultralytics/yolov5 #292, D-X-Y/NAS-Bench-201 #19. Right: the same rates, the
    same losses, the same weights as without a stop.
    """
    for column in ("epoch", "lr", "loss/train", "accuracy/clean"):
        assert list(resumed.history[column]) == list(whole.history[column])
    assert fingerprint(resumed.model) == fingerprint(whole.model)


def test_resumed_curves_do_not_go_back(resumed):
    """tensorflow/tensorboard #3732: after a resume the curve goes back and runs over itself.

    The same: fvisin/main_loop_tf #22, Nerogar/OneTrainer #1422. Right: one point an epoch, in order.
    """
    events = EventAccumulator(str(resumed.folder), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("loss/train")] == [1, 2, 3]


def test_hyperparameters_are_no_second_run(whole):
    """lanpa/tensorboardX #519: add_hparams makes a folder that TensorBoard shows as one more run.

    The same: pytorch/pytorch #40574. Right: one folder, one run, with its recipe and its curves.
    """
    assert not [path for path in whole.folder.rglob("*") if path.is_dir()]
    tags = EventAccumulator(str(whole.folder)).Reload().Tags()
    assert "accuracy/robust" in tags["scalars"]
    assert [tag for tag in tags["tensors"] if tag.startswith("recipe")]


def test_pictures_in_tensorboard_are_the_pictures(tmp_path):
    """pytorch/pytorch #31459: pictures overflow in TensorBoard.

    The same: lanpa/tensorboardX #285, contrast turned round. Right: to one part in 255, as they are.
    """
    images, _ = pictures()
    curves = Curves(tmp_path, RECIPE)
    curves.pictures(1, images, images, 8 / 255)
    curves.close()
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    (shown,) = events.Images("examples/clean")
    grid = torch.frombuffer(
        bytearray(Image.open(io.BytesIO(shown.encoded_image_string)).tobytes()), dtype=torch.uint8
    )
    grid = grid.view(shown.height, shown.width, 3).permute(2, 0, 1)
    for index, image in enumerate(images):
        columns = shown.width // 8
        top, left = 8 * (index // columns), 8 * (index % columns)
        part = grid[:, top : top + 8, left : left + 8].int()
        assert int((part - (image * 255).round().int()).abs().max()) <= 1


def test_a_checkpoint_that_was_cut_off(few, whole, tmp_path, monkeypatch, caplog):
    """Lightning-AI/pytorch-lightning #688: killed while it saved, a run has a checkpoint that cannot be read.

    The same: zylo117/Yet-Another-EfficientDet-Pytorch #101. Right: it goes on from the one before, to the same
    weights, and says so.
    """
    stopped(monkeypatch, 7, few, tmp_path / "run")
    last = tmp_path / "run" / "last.pt"
    last.write_bytes(last.read_bytes()[:-1000])
    assert fingerprint(go(few, tmp_path / "run").model) == fingerprint(whole.model)
    assert "previous.pt" in caplog.text


def test_an_edited_setting_is_not_ignored(few, whole):
    """mapbox/robosat #169: resuming ignores the learning rate that is asked for, without a word.

    Right: refused, with the field and both values.
    """
    with pytest.raises(RunRefused, match=r"recipe.learning_rate: 0.05 in the folder, 0.01 asked"):
        go(few, whole.folder, replace(RECIPE, learning_rate=0.01))


def test_training_needs_no_test_pictures(few, whole):
    """shizhouxing/Fast-Certified-Robust-Training #3: the best epoch is chosen on the test pictures.

    The same: csdongxian/AWP #2. Right: training and choosing do without them.
    """
    assert few.test is None
    assert 1 <= whole.best_epoch <= 3
    assert isinstance(whole.best_model(), nn.Module)


def test_a_test_split_that_chooses_is_said(few, tmp_path, caplog):
    """kuangliu/pytorch-cifar #145: the test split is used as the validation split.

    The same: KaihuaTang/Long-Tailed-Recognition.pytorch #31. Right: a warning; none where they are two.
    """
    other = Blobs().split(16, 2, "test")
    go(replace(few, test=other), tmp_path / "two", replace(RECIPE, epochs=1))
    assert "test pictures" not in caplog.text
    go(replace(few, test=few.val), tmp_path / "one", replace(RECIPE, epochs=1))
    assert "100.0 % of the test pictures are in what training or choosing has seen" in caplog.text


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_that_the_caller_turned_off(mode, few, whole, tmp_path):
    """meta-pytorch/tnt #539: training fails where the caller has turned gradients off.

    Right: it trains as ever.
    """
    with mode():
        run = go(few, tmp_path / "run")
    assert fingerprint(run.model) == fingerprint(whole.model)


def test_a_folder_below_home(few, tmp_path, monkeypatch):
    """Lightning-AI/pytorch-lightning #19058: "~/checkpoints" makes a folder named "~" where one happens to be."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert go(few, "~/run", replace(RECIPE, epochs=1)).folder == tmp_path / "home" / "run"
    assert not (tmp_path / "~").exists()


def test_a_last_batch_of_one_picture(few, tmp_path):
    """meetps/pytorch-semseg #214: the last batch has one picture, and BatchNorm dies of it.

    The same: erdongsanshi/Fuss-Free-structure #1. Right: the ragged rest is left out of an epoch.
    """
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    data = replace(few, train=few.train.first(33))
    assert len(go(data, tmp_path, replace(RECIPE, epochs=1), network).history) == 1


def test_validation_is_of_the_pictures_as_they_are(few, whole):
    """Lightning-AI/pytorch-lightning #2924: a small last batch counts as much as a full one.

    And gpleiss/efficient_densenet_pytorch #51: the validation pictures are augmented too. Right: loss and accuracy
    are means over the pictures as they are, in eval mode, of the weights that the epoch has ended with.
    """
    images, labels = few.val.batch(slice(None))
    with torch.no_grad():
        logits = whole.model(images)
    last = whole.history.iloc[-1]
    assert last["loss/val"] == pytest.approx(float(cross_entropy(logits, labels)), rel=1e-5)
    assert last["accuracy/clean"] == pytest.approx(float((logits.argmax(1) == labels).double().mean()))


def test_a_loss_that_is_nan_ends_the_run(few, tmp_path):
    """chs20/RobustVLM #20: the loss is NaN, and training goes on.

    The same: Phoveran/vp-for-adversarial-robustness #4. Right: it ends, and names step, learning rate and remedy.
    """
    with pytest.raises(TrainingDiverged, match=r"at step \d+ of 9 .*learning rate.*A lower learning_rate"):
        go(few, tmp_path, replace(RECIPE, learning_rate=1e30, warm_up=0.0))


def test_labels_that_begin_with_one():
    """AlfredXiangWu/LightCNN #5: labels count from 1, and CUDA dies of an assertion.

    The same: D-X-Y/NAS-Bench-201 #14, pytorch/pytorch #1204. Right: refused with both ranges.
    """
    with pytest.raises(DataError, match="labels from 1 to 4; 0 to 3 is needed"):
        small_split(8, labels=torch.arange(8) % 4 + 1)


def test_pictures_in_another_order_of_axes():
    """bethgelab/foolbox #153: (N, H, W, C) is reshaped, not transposed, and every attack fails.

    Right: refused, with the order that is needed.
    """
    split = small_split(8)
    with pytest.raises(DataError, match=r"H, W"):
        Split(split.images.permute(0, 2, 3, 1), split.labels, split.classes, "last axis")


def test_validation_has_some_of_each_class():
    """keras-team/keras #8346: data lie by class, and the last fifth, for validation, is one class.

    The same: keras-team/keras #597, #796. Right: a share of each class.
    """
    labels = torch.arange(5).repeat_interleave(20)
    kept, aside = stratified(labels, 0.2, seed=0)
    assert torch.bincount(labels[aside]).tolist() == [4] * 5
    assert torch.bincount(labels[kept]).tolist() == [16] * 5


def test_frozen_means_batchnorm_too(few, tmp_path):
    """pytorch/pytorch #86590: weights are frozen, but BatchNorm's statistics move, so features are others.

    The same: lightly-ai/lightly #1438, Lightning-AI/pytorch-lightning #15062. Right: only the head has changed.
    """
    source = tiny_resnet()
    trained = go(few, tmp_path, replace(RECIPE, epochs=1), adapt(source, 4, train="head")).model
    before, after = source.state_dict(), trained.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {f"network.{source.head}.weight", f"network.{source.head}.bias"}


def test_another_number_of_classes():
    """huggingface/pytorch-image-models #2332: weights for 1,000 classes do not load for three.

    The same: #948, huggingface/transformers #14218. Right: loaded as they are, then given a new head.
    """
    source = models.build("resnet18", 100, width=4)
    model = adapt(source, 3)
    images = torch.rand(2, 3, 32, 32)
    assert model(images).shape == (2, 3)
    assert source(images).shape == (2, 100)
    assert torch.equal(model.network.stem[0].weight, source.network.stem[0].weight)


def test_the_head_may_learn_faster(few):
    """w1oves/Rein #97: is the backbone's learning rate really a tenth of the head's?

    Right: the rate asked for is the optimiser's, and the schedule keeps it.
    """
    state = step.State(adapt(tiny_resnet(), 4, rates={"head": 10}), RECIPE, 3, torch.device("cpu"))
    for _ in range(3):
        step.train_step(state, *few.train.batch(torch.arange(16)))
        state.step += 1
        rates = {len(group["params"]): group["lr"] for group in state.optimizer.param_groups}
        assert rates[2] == pytest.approx(10 * min(rates.values()))


def test_averaged_weights_have_statistics_that_fit(few):
    """CuriousAI/mean-teacher #9: the averaged model keeps BatchNorm's first statistics, and is at chance.

    The same: pytorch/ignite #2590, huggingface/pytorch-image-models #102. Right: they follow like the weights.
    """
    model = small_network()
    state = step.State(model, replace(RECIPE, ema=0.5), 3, torch.device("cpu"))
    first = copy.deepcopy(state.average)
    for _ in range(9):
        step.train_step(state, *few.train.batch(torch.arange(16)))
        state.step += 1
    near = (state.average[1].running_mean - model[1].running_mean).norm()
    assert near < 0.2 * (first[1].running_mean - model[1].running_mean).norm()


def test_a_long_average_forgets_where_it_began(few):
    """huggingface/pytorch-image-models #1182: with a decay of 0.9999 the average still is where training began.

    Right: early on it follows faster.
    """
    model = small_network()
    state = step.State(model, replace(RECIPE, ema=0.9999), 3, torch.device("cpu"))
    first = copy.deepcopy(model)
    for _ in range(30):
        step.train_step(state, *few.train.batch(torch.arange(16)))
        state.step += 1
    way = (model[0].weight - first[0].weight).norm()
    assert (state.average[0].weight - first[0].weight).norm() > 0.3 * way


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.head = nn.Linear(192, 192), nn.Linear(192, 192), nn.Linear(192, 4)
        self.two.weight = self.one.weight

    def forward(self, images):
        return self.head(torch.relu(self.two(torch.relu(self.one(images.flatten(1))))))


def test_tied_weights_can_be_saved(few, tmp_path):
    """safetensors/safetensors #98: weights that two layers share cannot be saved.

    Right: saved, loaded, and still shared.
    """
    run = go(few, tmp_path, replace(RECIPE, epochs=1), Tied())
    assert run.model.one.weight is run.model.two.weight
    assert fingerprint(go(few, tmp_path, replace(RECIPE, epochs=1), Tied()).model) == fingerprint(run.model)


def test_weights_from_before_batches_were_counted(tmp_path):
    """pytorch/pytorch #8430: an old file has no num_batches_tracked, and does not load.

    Right: it loads, and computes what it did.
    """
    source = models.build("resnet18", 10, width=4).eval()
    old = {name: value for name, value in source.network.state_dict().items() if "num_batches" not in name}
    torch.save(old, tmp_path / "old.pt")
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(
        load_source(tmp_path / "old.pt", "resnet18", 10, width=4).eval()(images), source(images)
    )


def test_weights_of_a_model_on_several_gpus(tmp_path):
    """LayneH/self-adaptive-training #5: weights with "module." before their names, or without, do not load.

    Right: they do, both.
    """
    source = models.build("resnet18", 10, width=4)
    for network in (source.network, nn.DataParallel(source.network)):
        torch.save({"state_dict": network.state_dict(), "epoch": 3}, tmp_path / "some.pt")
        assert fingerprint(load_source(tmp_path / "some.pt", "resnet18", 10, width=4)) == fingerprint(source)


def test_a_page_in_place_of_weights(tmp_path):
    """RobustBench/robustbench #87: a failed download leaves a web page, and unpickling dies of "<".

    Right: the error names the file and says that it holds no weights.
    """
    (tmp_path / "weights.pt").write_text("<!DOCTYPE html><html>Quota exceeded</html>")
    with pytest.raises(SourceError, match=r"weights\.pt cannot be read as weights"):
        load_source(tmp_path / "weights.pt", "shallow_cnn", 10)


def test_a_pickled_model_is_not_opened(tmp_path):
    """Cadene/pretrained-models.pytorch #203: a model saved as a whole needs the code it was saved with.

    The same: pytorch/pytorch #2762. Right: nothing is unpickled but tensors, and the error says what to save.
    """
    torch.save(models.build("shallow_cnn", 10), tmp_path / "model.pt")
    with pytest.raises(SourceError, match="Save the state_dict alone"):
        load_source(tmp_path / "model.pt", "shallow_cnn", 10)


def test_the_wrong_number_of_classes_is_named(tmp_path):
    """facebookresearch/ConvNeXt #73: a head of the wrong size, and no word of what to do.

    Right: the error names both sizes, and num_classes.
    """
    torch.save(models.build("shallow_cnn", 10).network.state_dict(), tmp_path / "ten.pt")
    with pytest.raises(SourceError, match=r"\(10, 84\) where \(13, 84\) is needed.*num_classes"):
        load_source(tmp_path / "ten.pt", "shallow_cnn", 13)
