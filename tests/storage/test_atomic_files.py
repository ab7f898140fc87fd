"""Files are whole or not there, show when they were damaged, and have one writer at a time."""

import errno
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from storage import atomic_files as files
from storage.atomic_files import Damaged, Held, NotWritten, held, impatient, read_json, replacing, write_json

ROOT = Path(__file__).parents[2]


def python(code, *arguments, **options):
    """A process that runs `code` with our modules at hand."""
    ours = f"sys.path.insert(0, {str(ROOT)!r})\nfrom storage import atomic_files as files"
    code = f"import os, sys, time\n{ours}\n{code}"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


# --- whole or not at all -----------------------------------------------------------------------------


def test_a_block_that_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "é ü" / "a b.txt"
    with replacing(path) as partial:
        partial.write_text("first")
    with pytest.raises(ZeroDivisionError), replacing(path) as partial:
        partial.write_text(f"second {1 / 0}")
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


def test_what_a_killed_process_left_is_written_over(tmp_path):
    killed = "with files.replacing(sys.argv[1]) as p:\n p.write_text('half' * 99); os.kill(os.getpid(), 9)"
    assert python(killed, tmp_path / "a.txt").wait() == -9
    assert [path.name for path in tmp_path.iterdir()] == [".a.partial.txt"]
    with replacing(tmp_path / "a.txt") as partial:
        partial.write_text("whole")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "whole"}


def test_writers_of_the_same_file_take_turns(tmp_path):
    """Forty threads, each with a content of its own, many times: what is there is always one of them, whole."""
    path, wrong = tmp_path / "a.txt", []

    def write(letter):
        for _ in range(10):
            with replacing(path) as partial:
                partial.write_text(letter * 5000)
            text = path.read_text()
            if len(text) != 5000 or len(set(text)) != 1:
                wrong.append(text)

    threads = [threading.Thread(target=write, args=(chr(97 + n),)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_takes_nothing_is_named(tmp_path, monkeypatch, code):
    path = tmp_path / "a.txt"
    path.write_text("first")

    def refuse(handle):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    said = f"{os.strerror(code)}. What was there before is untouched: '{path}'"
    with pytest.raises(NotWritten, match=said), replacing(path) as partial:
        partial.write_text("second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_fits_only_in_part_is_not_there(tmp_path):
    """The system itself cuts the write short, as a full disk does."""

    def little():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    code = "try: files.write_json(sys.argv[1], {'x': 'y' * 5000})\nexcept files.NotWritten as e: print(e)"
    process = python(code, tmp_path / "a.json", preexec_fn=little)
    assert "cannot be written: File too large" in process.communicate()[0]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_permission_is_named(tmp_path):
    """Also for root, who may write anywhere: the process gives its rights away."""
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)

    tmp_path.chmod(0o555)
    code = """
if os.getuid() == 0:
    os.setuid(65534)
folder = files.Path(sys.argv[1])
for write in (lambda: files.write_json(folder / "a.json", {}), files.held(folder / "x" / ".lock", "x").__enter__):
    try: write()
    except files.NotWritten as error: print(error)"""
    text = python(code, tmp_path).communicate()[0]
    tmp_path.chmod(0o755)
    assert text.count("cannot be written: Permission denied") == 2, text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(NotWritten, match=r"cannot be written: (File exists|Not a directory)"):
        write_json(tmp_path / "runs" / "a.json", {})
    with pytest.raises(NotWritten, match="Choose another folder"), held(tmp_path / "runs" / ".lock", "x"):
        pass


def test_a_link_to_another_file_system_is_followed(tmp_path):
    """Where there is one: the partial file lies beside the file itself, not where a temporary one would."""
    other = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else tmp_path
    folder = other / f"study-{os.getpid()}"
    folder.mkdir()
    try:
        (tmp_path / "runs").symlink_to(folder)
        write_json(tmp_path / "runs" / "a.json", {"a": 1})
        assert read_json(folder / "a.json") == {"a": 1}
    finally:
        (folder / "a.json").unlink(missing_ok=True)
        folder.rmdir()


# --- one at a time ------------------------------------------------------------------------------------

HOLDING = """
with files.held(sys.argv[1], "it is being used"):
    print("held", flush=True)
    time.sleep(60)"""


def test_the_second_is_told_who_and_since_when_and_a_dead_one_counts_for_nothing(tmp_path):
    first = python(HOLDING, tmp_path / ".lock")
    assert first.stdout.readline() == "held\n"
    said = f"it is being used by process {first.pid} on {socket.gethostname()} since 20"
    with pytest.raises(Held, match=said), held(tmp_path / ".lock", "this is being used"):
        pass
    first.kill()
    first.wait()
    with held(tmp_path / ".lock", "the folder is being used"):
        assert f"process {os.getpid()}" in (tmp_path / ".lock").read_text()
    assert (tmp_path / ".lock").read_text() == ""


def test_the_second_waits_where_it_may_and_says_for_whom(tmp_path, caplog):
    first = python(HOLDING, tmp_path / ".lock")
    assert first.stdout.readline() == "held\n"
    threading.Timer(0.5, first.kill).start()
    begun = time.monotonic()
    with caplog.at_level("INFO", "study"), held(tmp_path / ".lock", "data is being made", wait=True):
        assert time.monotonic() - begun > 0.3
    first.wait()
    assert f"waiting: it is being used by process {first.pid}" in caplog.text


def test_without_locks_in_the_file_system_it_works_all_the_same(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    with held(tmp_path / ".lock", "x"):
        write_json(tmp_path / "a.json", {"a": 1})
    assert read_json(tmp_path / "a.json") == {"a": 1}


# --- a checksum in each -------------------------------------------------------------------------------


def test_what_is_read_is_what_was_written(tmp_path):
    value = {"ü": [1, 2.5, None, True, "é"], "tuple": (1, 2), "inner": {"nan": float("inf"), "3": 1e-300}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value | {"tuple": [1, 2]}
    (tmp_path / "a.json").write_text('{"a": 1}')  # somebody else's
    assert read_json(tmp_path / "a.json", sealed=False) == {"a": 1}
    with pytest.raises(Damaged, match="checksum differs"):
        read_json(tmp_path / "a.json")


def test_every_changed_byte_of_a_json_shows(tmp_path):
    """Each byte in turn becomes another one: never a value that differs and is believed."""
    path, value = tmp_path / "a.json", {"accuracy": 0.125, "n": 200, "bits": "0110"}
    write_json(path, value)
    whole = path.read_bytes()
    for place in range(len(whole)):
        for other in (b"7", b"\xff", b" "):
            path.write_bytes(whole[:place] + other + whole[place + 1 :])
            with suppress(Damaged):
                there = read_json(path)
                assert all(there[key] == value[key] for key in value)
    for length in range(len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(Damaged, match=rf"{path} .*Do this"):
            read_json(path, "Do this")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"7", b"null", b"\xff\xfe", b"<html>", b"[" * 100_000, b"\0" * 50]
)
def test_what_is_no_dict_is_damaged(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(Damaged, match=r"a\.json is damaged"):
        read_json(tmp_path / "a.json")


def test_patience_with_servers_ends_with_the_block(monkeypatch):
    before = socket.getdefaulttimeout()
    with impatient():
        assert socket.getdefaulttimeout() == files.SILENCE
    assert socket.getdefaulttimeout() == before


def test_a_folder_that_cannot_be_flushed_is_taken_all_the_same(tmp_path, monkeypatch):
    """Some file systems flush files only; a disk that fails is another matter."""
    real = os.fsync

    def only_files(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(handle)

    monkeypatch.setattr(os, "fsync", only_files)
    write_json(tmp_path / "a.json", {"a": 1})
    assert read_json(tmp_path / "a.json") == {"a": 1}
