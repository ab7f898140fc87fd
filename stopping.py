"""The stop button and a preemption's SIGTERM: they take effect between two steps, after the run was saved."""

import logging
import signal
import threading

RESUME = 75  # the exit code EX_TEMPFAIL: start me again, and I go on

log = logging.getLogger("study")


class Stop:
    """While it is entered, the first signal is noted, a second one takes effect at once."""

    def __init__(self):
        self.requested = None
        self.previous = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self.previous = {
                number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def __exit__(self, kind, error, trace):
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if self.requested and kind is None:  # it came when there was nothing left to do
            self.leave("stopped; this run was just finished")

    def _note(self, number, frame):
        if self.requested:
            raise KeyboardInterrupt
        self.requested = number

    def leave(self, message):
        """End what is running: like an interrupted cell or, after SIGTERM, with the exit code RESUME."""
        if self.requested == signal.SIGTERM:
            log.info(message)
            raise SystemExit(RESUME)
        raise KeyboardInterrupt(message)
