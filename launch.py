"""Other processes of this machine that call a function of ours: in one process each, or in several under torchrun.

What is passed and returned may come from a notebook. Their progress is shown here, what they raise is raised
here, and they end, and save, with the process that has started them. Where torchrun watches and one of them dies,
all are started anew and go on from the last checkpoint.
"""

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import cloudpickle
import torch
from tqdm.auto import tqdm
from tqdm.std import tqdm as plain_tqdm

import parallel
from stopping import GRACE, leave_on_sigterm

RESTARTS = 3  # of all processes, when torchrun sees one die
MARK = "\x1e"  # begins a line that tells of progress, or that all is done
RESULTS = ("raised", "returned")
log = logging.getLogger("study")


class Died(RuntimeError):
    """The process ended without a result: killed, out of memory, or a fault in a library."""


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
    """Call `function(progress=...)` in so many processes under torchrun; returns what the first of them returns.

    Raises what it raises there, Died where they died more than RESTARTS times. Interrupted, it stops them.
    """
    threads = max(1, torch.get_num_threads() // processes)
    with Child(function, processes, {"OMP_NUM_THREADS": str(threads)}, log.info if progress else None) as child:
        return child.result()


class Child:
    """A call of `function(progress=...)` that has been started in another process, or in several under torchrun.

    `variables` are added to its environment, `keep` are file descriptors that it shall have. `say` is called with
    each line that it prints, and has its progress shown; None for neither.
    """

    def __init__(self, function, processes=1, variables=(), say=None, keep=()):
        self.place = tempfile.TemporaryDirectory(prefix="study-")  # which nobody else can read or write
        self.folder, self.said, self.say = Path(self.place.name), [], say
        self.finished = threading.Event()
        self._write(function)
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
        torchrun += [f"--nproc-per-node={processes}", f"--max-restarts={RESTARTS}"]
        # torchrun makes a new meeting place for each start, else processes find what those before have left there.
        ours = {"GLOO_SOCKET_IFNAME": "lo", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        ours["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        with (self.folder / "errors").open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, *(torchrun if processes > 1 else []), __file__, str(self.folder)],
                stdin=subprocess.PIPE,  # it closes when this process is gone
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # the stop button is for us, and we pass it on
                env=os.environ | ours | dict(variables),
                pass_fds=keep,
            )
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stop()

    def _write(self, function):
        (self.folder / "job").write_bytes(cloudpickle.dumps((function, self.say is not None)))

    def again(self, function):
        """Have a single process that is done call another function: it need not start and import anew."""
        for name in RESULTS:
            (self.folder / name).unlink(missing_ok=True)
        self.finished.clear()
        self._write(function)
        with contextlib.suppress(BrokenPipeError):  # then it is dead, and says so by its result
            self.process.stdin.write("again\n")
            self.process.stdin.flush()
        if self.process.poll() is not None:
            self.finished.set()

    def _listen(self):
        bar = None
        for line in self.process.stdout:
            if not line.startswith(MARK):
                self.said.append(line)
                if self.say is not None:
                    self.say(line.rstrip())
                continue
            told = json.loads(line[1:])
            if told is None:
                self.finished.set()
                continue
            if bar is None:
                bar = tqdm(total=told["total"], initial=told["n"], desc=told["desc"], unit="step")
            bar.n = told["n"]
            bar.set_postfix_str(told["postfix"])
        if bar is not None:
            bar.close()
        self.process.wait()
        self.finished.set()

    @property
    def done(self):
        return self.finished.is_set()

    def result(self):
        """What the function returned, or raises what it raised, when it is done; Died without either."""
        self.finished.wait()
        for name in RESULTS:
            if (self.folder / name).exists():
                value = cloudpickle.loads((self.folder / name).read_bytes())
                if name == "raised":
                    raise value
                return value
        errors = (self.folder / "errors").read_text(errors="replace").splitlines(keepends=True)
        last = "".join([*self.said[-5:], *errors[-40:]])
        raise Died(f"ended with code {self.process.poll()} and without a result. Its last words:\n{last}")

    def ask_to_stop(self):
        if not self.done:
            self.process.terminate()

    def stop(self):
        """End it, if it is not done: it has some seconds to save."""
        self.ask_to_stop()
        try:
            self.finished.wait(GRACE + 1)
        finally:
            self.close()

    def close(self):
        """Take away whatever is left of it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.listener.join()
        self.process.stdout.close()
        self.place.cleanup()


class Told(plain_tqdm):
    """A progress bar that is shown by the process that has started this one."""

    def display(self, msg=None, pos=None):
        told = {
            "n": self.n,
            "total": self.total,
            "desc": self.desc.removesuffix(": "),
            "postfix": self.postfix or "",
        }
        print(MARK + json.dumps(told), flush=True)  # noqa: T201


def _main(folder):
    """What each process does: the job in the folder, and where it is alone those that are put there later."""
    calls = queue.SimpleQueue()
    end_with_starter(calls)
    leave_on_sigterm()
    while True:
        _do(Path(folder))
        if parallel.world() > 1:
            return
        print(f"{MARK}null", flush=True)  # noqa: T201
        calls.get()


def _do(folder):
    function, progress = cloudpickle.loads((folder / "job").read_bytes())
    try:
        name, value = "returned", function(progress=Told if progress else False)
    except Exception as error:
        # torch's own errors, such as that of a lost process, are RuntimeErrors: torchrun starts all again. What we
        # raise would be raised again, by all of them alike.
        foreign = type(error) is RuntimeError or isinstance(error, torch.distributed.DistError)
        if parallel.world() > 1 and (foreign or isinstance(error, torch.OutOfMemoryError)):
            raise
        name, value = "raised", error
    if parallel.leads():
        partial = folder / f"{name}.partial"
        partial.write_bytes(cloudpickle.dumps(value))
        partial.rename(folder / name)


def end_with_starter(calls=None):
    """From here on this process ends when the one that has started it, with a pipe as stdin, is gone.

    What is written there is passed on to the queue `calls`.
    """
    threading.Thread(target=_hear, args=(os.getppid(), calls or queue.SimpleQueue()), daemon=True).start()


def _hear(parent, calls):
    while os.read(0, 64):
        calls.put("again")
    torchrun = parallel.world() > 1 and os.getppid() == parent
    os.kill(parent if torchrun else os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    _main(sys.argv[1])
