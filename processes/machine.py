"""This machine: the device of a process and its settings; versions and commit, for whoever reads a number."""

import ctypes
import functools
import logging
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

from processes import data_parallel
from processes.stopping import leave_on_sigterm
from storage.paths import ROOT

log = logging.getLogger("study")


def environment(device):
    """What a reader needs to judge or repeat a number: versions, device, commit, time."""
    cuda = torch.device(device).type == "cuda"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if cuda else _processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "cuda": torch.version.cuda if cuda else None,
        "processes": data_parallel.world(),
        "commit": _commit(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@functools.cache  # what is imported now is what runs, whatever is committed later
def _commit():
    """The commit of the code, with a + where files differ from it; None outside a git checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def own_device(kind="auto"):
    """This process's device, "cpu" or "cuda": its GPU; "auto" is the CPU where torch has none."""
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if kind == "auto" else kind
    return torch.device(kind, data_parallel.own_gpu()) if kind == "cuda" else torch.device(kind)


def prepare(device):
    """Settings of this process on which numbers, speed and what it says depend; `start` makes them."""
    leave_on_sigterm()
    _keep_freed_memory()
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False  # accuracy is judged in float32; training has bf16
    data_parallel.join(device)
    if not log.handlers:  # the library's messages (resumed, loaded, saved) belong into the notebook
        log.addHandler(logging.StreamHandler(sys.stdout))
        log.setLevel(logging.INFO if data_parallel.leads() else logging.ERROR)
        log.propagate = False


def fast_bfloat16(device):
    """Does the device compute in bfloat16 (CUDA from Ampere on, CPUs with AVX-512 BF16 or AMX)?"""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()


LOW = {"bfloat16": torch.bfloat16, "float16": torch.float16}
PRECISIONS = ("auto", *LOW, "float32")


def fast_precision(device):
    """What networks compute in at their fastest: "bfloat16" where the hardware has it, on other GPUs "float16"."""
    if fast_bfloat16(device):
        return "bfloat16"
    return "float16" if device.type == "cuda" else "float32"


# What libraries say, besides torch.OutOfMemoryError, when the memory of a device or of the machine is full.
FULL = "out of memory", "ALLOC_FAILED", "can't allocate memory", "unable to find an engine"


def ran_out_of_memory(error):
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in FULL)


def _keep_freed_memory():
    """Have the C library keep freed blocks instead of returning them to the system.

    A training step frees and asks again for the same few megabytes hundreds of times a second. glibc
    gives blocks of that size back, and every page is cleared anew at the next touch: on two cores that
    was half the time of a PGD step of the shallow CNN.
    """
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3
        ctypes.CDLL(None).mallopt(mmap_threshold, 1 << 30)
        ctypes.CDLL(None).mallopt(trim_threshold, (1 << 31) - 1)
