"""The stop button and a preemption's SIGTERM: what is done is saved, and the same command goes on from there."""

import contextlib
import logging
import signal
import subprocess
import threading

import psutil

RESUME = 75  # the exit code EX_TEMPFAIL: start me again, and I go on
GRACE = 8  # seconds that a step may still take after SIGTERM; who sends it often kills after ten

_entered = set()  # Stops, in whichever thread
log = logging.getLogger("study")


def leave_on_sigterm():
    """From here on SIGTERM ends the process with the code RESUME, as an exception, so that work is put away."""
    if (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    ):
        signal.signal(signal.SIGTERM, _leave)


def _leave(number, frame):
    for stop in _entered:  # of other threads, which get no signals
        stop.requested = number
    raise SystemExit(RESUME)


def end(process, seconds):
    """End a process, whose stdin is a pipe, with all that it has started; it has so many seconds to save."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        pass
    finally:
        if process.poll() is None:  # once it was waited for, its number may be another's
            for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
        process.wait()
        process.stdin.close()


class Stop:
    """While it is entered, a signal is noted, to take effect between two steps; a second SIGINT does so at once.

    After SIGTERM the step has GRACE seconds: one that takes longer is given up, and the last checkpoint counts.
    """

    def __init__(self):
        self.requested = None
        self.previous = {}

    def __enter__(self):
        _entered.add(self)
        if threading.current_thread() is threading.main_thread():
            handlers = {signal.SIGINT: self._note, signal.SIGTERM: self._note, signal.SIGALRM: self._too_late}
            self.previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, kind, error, trace):
        _entered.discard(self)
        if self.requested == signal.SIGTERM:
            signal.alarm(0)
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if self.requested and kind is None:  # it came when there was nothing left to do
            self.leave("stopped; this run was just finished")

    def _note(self, number, frame):
        if number == signal.SIGTERM:
            if self.requested != number:
                signal.alarm(GRACE)
        elif self.requested:
            raise KeyboardInterrupt
        self.requested = number

    def _too_late(self, number, frame):
        log.warning("a step, or the disk, took too long: the last checkpoint counts")
        raise SystemExit(RESUME)

    def leave(self, message):
        """End what is running: like an interrupted cell or, after SIGTERM, with the exit code RESUME."""
        if self.requested == signal.SIGTERM:
            log.info(message)
            raise SystemExit(RESUME)
        raise KeyboardInterrupt(message)
