"""SIGTERM and the stop button, wherever they come: what is done is saved, and the exit code says to resume."""

import os
import signal
import threading
import time

import pytest
import torch
from small import small_network

from attacks import PGD
from evaluation import batch_sizes, per_example, testing
from models.fingerprint import fingerprint
from processes import stopping
from processes.stopping import RESUME, Stop, leave_on_sigterm
from trainer import Recipe, train
from training import step as steps

RECIPE = Recipe(epochs=3, batch_size=64, validation_images=16)


@pytest.fixture(autouse=True)
def handlers(caplog):
    """Every handler is given back."""
    caplog.set_level("INFO", "study")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    yield before
    assert before == {number: signal.getsignal(number) for number in before}


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


def test_the_first_signal_is_noted_and_a_second_interrupt_does_not_wait():
    with Stop() as stop:
        send(signal.SIGINT)
        assert stop.requested == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        stop.requested = None


def test_sigterm_may_come_again_and_again():
    """Whoever sends it sends it twice: to a study and, through it, to its notebook's kernel."""
    with pytest.raises(SystemExit) as caught, Stop():
        send(signal.SIGTERM, signal.SIGTERM, signal.SIGTERM)
    assert caught.value.code == RESUME


def test_elsewhere_than_in_the_main_thread_signals_are_left_alone():
    seen = []

    def work():
        with Stop() as stop:
            leave_on_sigterm()
            seen.append(stop.previous)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [{}]


def test_a_step_that_takes_too_long_is_given_up_for_the_last_checkpoint(blobs, tmp_path, monkeypatch, caplog):
    whole = train(small_network(), blobs, RECIPE, tmp_path / "whole", progress=False)
    monkeypatch.setattr(stopping, "GRACE", 1)
    real = steps.train_step

    def endless(state, *rest):
        if state.step == 6:  # in the second epoch
            send(signal.SIGTERM)
            time.sleep(30)
        return real(state, *rest)

    monkeypatch.setattr(steps, "train_step", endless)
    begun = time.monotonic()
    with pytest.raises(SystemExit) as caught:
        train(small_network(), blobs, RECIPE, tmp_path / "run", progress=False)
    assert caught.value.code == RESUME
    assert time.monotonic() - begun < 10
    assert "the last checkpoint counts" in caplog.text
    monkeypatch.setattr(steps, "train_step", real)
    run = train(small_network(), blobs, RECIPE, tmp_path / "run", progress=False)
    assert "goes on from step 4 of 12" in caplog.text
    assert fingerprint(run.model) == fingerprint(whole.model)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_test_that_is_stopped_keeps_every_batch_that_is_done(
    number, error, blobs, tmp_path, monkeypatch, caplog
):
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, signal.SIG_DFL)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    leave_on_sigterm()
    monkeypatch.setitem(batch_sizes.BATCH, "cpu", 20)
    model, real, seen = small_network().eval(), per_example._judge, []

    def judge(*given):
        seen.append(1)
        if len(seen) == 3:
            send(number)
        return real(*given)

    whole = testing.test(model, blobs.train, [PGD(steps=3)], progress=False)
    monkeypatch.setattr(per_example, "_judge", judge)
    with pytest.raises(error) as caught:
        testing.test(model, blobs.train, [PGD(steps=3)], progress=False, folder=tmp_path)
    assert getattr(caught.value, "code", RESUME) == RESUME
    assert "2 batches are kept" in caplog.text
    again = testing.test(model, blobs.train, [PGD(steps=3)], progress=False, folder=tmp_path)
    assert "2 of 4 batches were tested before" in caplog.text
    assert all(torch.equal(whole.outcomes[label], again.outcomes[label]) for label in whole.outcomes)
    for known, handler in before.items():
        signal.signal(known, handler)


def test_a_handler_of_the_users_own_is_left_alone():
    def mine(*_):
        pass

    before = signal.signal(signal.SIGTERM, mine)
    leave_on_sigterm()
    assert signal.signal(signal.SIGTERM, before) is mine
