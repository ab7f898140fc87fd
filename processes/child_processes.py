"""A function called in several processes of this machine under torchrun, from a notebook too.

What is passed and returned may come from a cell. Their progress is shown here, what they raise is raised here, and
they end, and save, with the process that has started them. Where one of them dies, torchrun starts all anew, and
they go on from the last checkpoint.
"""

import codecs
import functools
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

import cloudpickle
import torch
from tqdm import tqdm

from processes import data_parallel
from processes.stopping import GRACE, end, leave_on_sigterm

RESTARTS = 3  # of all processes, when torchrun sees one die
log = logging.getLogger("study")


class Died(RuntimeError):
    """Processes, or a node, ended without a result: killed, out of memory, or a fault in a library."""


def count(processes, device):
    """How many processes are asked for on devices of this kind. Raises ValueError for what cannot be had."""
    gpus = torch.cuda.device_count() if device.type == "cuda" else None
    if processes == "all":
        if gpus is None:
            log.info('processes="all" is one per GPU; without any, one process already uses all cores')
        return gpus or 1
    whole = isinstance(processes, int) and not isinstance(processes, bool) and processes >= 1
    if not whole or (gpus is not None and processes > gpus):
        most = "" if gpus is None else f" up to {gpus}, the GPUs of this machine,"
        raise ValueError(f'processes={processes!r}: "all" or a whole number from 1{most} is needed')
    return processes


def run(function, processes, progress=True):
    """Call `function(progress=...)` in so many processes; returns what the first of them returns.

    Raises what it raises there, Died where they died more than RESTARTS times. Interrupted, it stops them: they
    have some seconds to save.
    """
    with tempfile.TemporaryDirectory(prefix="study-") as place:  # which nobody else can read or write
        folder = Path(place)
        (folder / "job").write_bytes(cloudpickle.dumps((function, progress)))
        with (folder / "errors").open("w") as errors:
            process = _torchrun(folder, processes, errors)
        try:
            said = _listen(process)
            process.wait()
        finally:
            end(process, GRACE + 1)
        for name in ("returned", "raised"):
            if (folder / name).exists():
                value = cloudpickle.loads((folder / name).read_bytes())
                if name == "raised":
                    raise value
                return value
        errors = (folder / "errors").read_text(errors="replace").splitlines(keepends=True)
        causes = [file.read_text(errors="replace") for file in sorted(folder.glob("cause-*"))]
        last = "".join([said, *(causes or errors[-40:])])
        raise Died(f"ended with code {process.returncode} and without a result. Its last words:\n{last}")


def _torchrun(folder, processes, errors):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    command += [f"--nproc-per-node={processes}", f"--max-restarts={RESTARTS}"]
    command += [f"--log-dir={folder / 'torchrun'}"]  # else it leaves one behind
    # torchrun makes a new meeting place for each start, else processes find what those before have left there.
    ours = {"GLOO_SOCKET_IFNAME": "lo", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    ours["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    ours["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // processes))
    return subprocess.Popen(
        [*command, "-m", "processes.child_processes", str(folder)],
        stdin=subprocess.PIPE,  # it closes when this process is gone
        stdout=subprocess.PIPE,
        stderr=errors,
        start_new_session=True,  # the stop button is for us, and we pass it on
        env=os.environ | ours,
    )


def _listen(process):
    """Pass on what they say, bars of progress too, as it comes; returns the last of it."""
    said, decoder = "", codecs.getincrementaldecoder("utf-8")(errors="replace")
    while piece := process.stdout.read1():
        text = decoder.decode(piece)
        sys.stdout.write(text)
        sys.stdout.flush()
        said = (said + text)[-500:]
    return said


def _main(folder):
    """What each process does: the job in the folder."""
    end_with_starter()
    leave_on_sigterm()
    if (folder / "raised").exists():  # before torchrun has started these: it would be raised again
        return
    function, progress = cloudpickle.loads((folder / "job").read_bytes())
    try:
        name, value = "returned", function(progress=progress and functools.partial(tqdm, file=sys.stdout))
    except Exception as error:
        text = traceback.format_exc()
        # torch's own errors, such as that of a lost process, are RuntimeErrors: torchrun starts all again.
        foreign = type(error) is RuntimeError or isinstance(error, torch.distributed.DistError)
        if foreign or isinstance(error, torch.OutOfMemoryError):
            (folder / f"cause-{data_parallel.rank()}").write_text(text)
            raise
        error.add_note(f"In the process that did the work:\n{text}")
        name, value = "raised", error
    if name == "raised" or data_parallel.leads():
        _write(folder / name, value)
    if name == "raised":
        sys.exit(1)  # the others may not know; torchrun ends them


def _write(path, value):
    try:
        content = cloudpickle.dumps(value)
        cloudpickle.loads(content)
    except Exception as error:  # of classes that cannot be sent
        content = cloudpickle.dumps(RuntimeError(f"{value!r}, which cannot be sent: {error}"))
        path = path.with_name("raised")
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.rename(path)


def end_with_starter():
    """From here on this process ends when the one that has started it, with a pipe as stdin, is gone."""
    threading.Thread(target=_hear, args=(os.getppid(),), daemon=True).start()


def _hear(parent):
    while os.read(0, 64):
        pass
    torchrun = data_parallel.world() > 1 and os.getppid() == parent
    os.kill(parent if torchrun else os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
