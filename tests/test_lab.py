"""make lab: JupyterLab and TensorBoard for this machine alone, with a token, and both end with it."""

import json
import os
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from small import command_of

ROOT = Path(__file__).parents[1]


def answer(url):
    """The status and the beginning of what a server answers, or None while it does not."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def wait_for(url, seconds=60):
    deadline = time.monotonic() + seconds
    while (status := answer(url)) is None:
        assert time.monotonic() < deadline, url
        time.sleep(0.3)
    return status


@pytest.fixture
def lab():
    """A lab on ports of its own; yields its process and what it has printed of addresses."""
    command = ["make", "lab", "JUPYTER_PORT=28888", "TENSORBOARD_PORT=26006"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    lines = [process.stdout.readline() for _ in range(3)]
    yield process, "".join(lines)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)


def test_the_lab_is_for_this_machine_alone_and_ends_wholly(lab):
    process, said = lab
    jupyter = re.search(r"http://127\.0\.0\.1:(\d+)/lab\?token=([0-9a-f]{32})", said)
    board = re.search(r"TensorBoard +http://127\.0\.0\.1:(\d+)", said)
    ports, token = {int(jupyter.group(1)), int(board.group(1))}, jupyter.group(2)
    contents = f"http://127.0.0.1:{jupyter.group(1)}/api/contents"
    assert wait_for(contents) == 403
    assert answer(f"{contents}?token={'0' * 32}") == 403
    assert answer(f"{contents}?token={token}") == 200
    settings = f"http://127.0.0.1:{jupyter.group(1)}/lab/api/settings/@jupyterlab/apputils-extension:notification"
    with urllib.request.urlopen(f"{settings}?token={token}", timeout=20) as reply:
        news = json.load(reply)["schema"]["properties"]["fetchNews"]
    assert news["default"] == "false"  # nobody is asked
    assert wait_for(f"http://127.0.0.1:{board.group(1)}") == 200
    ours = psutil.Process(process.pid).children(recursive=True)
    pids = {child.pid for child in ours}
    listening = [c for c in psutil.net_connections("inet") if c.pid in pids and c.status == psutil.CONN_LISTEN]
    assert ports <= {connection.laddr.port for connection in listening}
    assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}
    assert not any(token in command_of(child) for child in ours)  # others can read command lines
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=30)
    _, alive = psutil.wait_procs(ours, timeout=20)
    assert not alive
