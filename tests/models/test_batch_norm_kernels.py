"""The kernels on the CPU, by Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_they_do_what_torch_does():
    pytest.importorskip("triton")
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", here / "interpreted_kernels.py"]
    settings = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=settings, cwd=here.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
