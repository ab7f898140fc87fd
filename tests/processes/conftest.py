"""The stop button, for tests of what it stops."""

import signal

import pytest


@pytest.fixture
def stop_button():
    """SIGINT raises KeyboardInterrupt, also where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
