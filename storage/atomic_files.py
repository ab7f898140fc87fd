"""Files that are written whole or not at all and show when they were damaged; folders that one process holds.

And the patience with servers that files are fetched from.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import socket
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)  # of file systems that lack something
SILENCE = 60

log = logging.getLogger("study")


class Damaged(RuntimeError):
    """A file cannot be used; the message names it and what to do."""


class Held(RuntimeError):
    """Another process is at work there; the message names it and the time since it is."""


class NotWritten(OSError):
    """The disk or the folder does not take a file; the message names it. What was there before is untouched."""


def first_line(error):
    """What an error says, for a message that tells what to do about it."""
    return (str(error) or type(error).__name__).splitlines()[0]


@contextmanager
def replacing(path):
    """Yield a path beside `path`; it is renamed into place when the block succeeds, and removed when it fails.

    Processes that write the same file take turns; what a killed one has left, the next one writes over. Raises
    NotWritten where the disk is full or the folder cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _opened_alone(partial)
        try:
            yield partial
            _flush(partial)
            partial.replace(path)
            _flush(path.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)


@contextmanager
def _writing(path, remedy="What was there before is untouched"):
    """Whatever the system refuses in here is NotWritten, of this path."""
    try:
        yield
    except NotWritten:
        raise
    except OSError as error:
        why = f"cannot be written: {error.strerror or error}. {remedy}"
        raise NotWritten(error.errno, why, str(path)) from error


def _opened_alone(partial):
    """A handle of the partial file that no other process has; to be closed when the file is in its place."""
    while True:
        handle = os.open(partial, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(handle)
            if os.fstat(handle).st_ino == partial.stat().st_ino:
                return handle
        except FileNotFoundError:  # the one before has renamed it in the meantime
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle, wait=True):
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def _flush(path):
    """Have the disk, not only the system, take a file or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(handle)


@contextmanager
def held(lock, what, wait=False, refusal=Held):
    """Hold the file `lock` against other processes while the block runs. A dead one's lock is void.

    Where another one holds it: wait for it and say so, or raise the refusal, a Held. `what` says what is held.
    """
    lock = Path(lock)
    with _writing(lock.parent, "Choose another folder, or make this one writable"):
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a+")
    with file:
        try:
            _lock(file, wait=False)
        except BlockingIOError:
            file.seek(0)
            said = file.read().strip() or f"{what} by another process"
            if not wait:
                raise refusal(f"{said}. Wait for it or end it; a dead process's lock counts for nothing") from None
            log.info("waiting: %s", said)
            _lock(file)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with _writing(lock):
            file.truncate(0)
            file.write(f"{what} by process {os.getpid()} on {socket.gethostname()} since {now}\n")
            file.flush()
        try:
            yield
        finally:
            file.truncate(0)


@contextmanager
def impatient():
    """Downloads give up on a server that is silent for SILENCE seconds; the libraries that fetch would wait on."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def write_json(path, value):
    """Write a dict as JSON, with a checksum over all of it."""
    value = {key: inner for key, inner in value.items() if key != "sha256"}
    sealed = value | {"sha256": _checksum(value)}
    with replacing(path) as partial:
        partial.write_text(json.dumps(sealed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path, remedy="Delete it, and it will be made again", sealed=True):
    """The dict that `write_json` wrote; not `sealed`, any. Raises Damaged, with the remedy, where it is none."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        written = value.pop("sha256", None)
    except (ValueError, AttributeError, TypeError, RecursionError, IsADirectoryError) as error:
        raise Damaged(f"{path} is damaged ({first_line(error)}). {remedy}") from error
    if sealed and written != _checksum(value):
        raise Damaged(f"{path} was changed after it was written: its checksum differs. {remedy}")
    return value


def _checksum(value):
    """Over what comes back from a file, where tuples are lists and all keys are strings."""
    plain = json.loads(json.dumps(value))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
