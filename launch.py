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
import traceback
from pathlib import Path

import cloudpickle
import psutil
import torch
from tqdm.auto import tqdm
from tqdm.std import tqdm as plain_tqdm

import parallel
from stopping import GRACE, leave_on_sigterm

RESTARTS = 3  # of all processes, when torchrun sees one die
MARK = "\x1e"  # begins a line that tells of progress, or that all is done
RESULTS = ("returned", "raised")
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
    with Child(function, processes, {"OMP_NUM_THREADS": str(threads)}, log.info, progress) as child:
        return child.result()


class Child:
    """A call of `function(progress=...)` that has been started in another process, or in several under torchrun.

    `variables` are added to its environment, `keep` are file descriptors that it shall have. `say` is called with
    each line that it prints; `progress` has its progress shown.
    """

    def __init__(self, function, processes=1, variables=(), say=log.info, progress=False, keep=()):
        self.place = tempfile.TemporaryDirectory(prefix="study-")  # which nobody else can read or write
        self.folder, self.said, self.say, self.progress = Path(self.place.name), [], say, progress
        self.finished = threading.Event()
        self._write(function)
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
        torchrun += [f"--nproc-per-node={processes}", f"--max-restarts={RESTARTS}"]
        torchrun += [f"--log-dir={self.folder / 'torchrun'}"]  # else it leaves one behind
        # torchrun makes a new meeting place for each start, else processes find what those before have left there.
        ours = {"GLOO_SOCKET_IFNAME": "lo", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        ours["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        with (self.folder / "errors").open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, *(torchrun if processes > 1 else []), __file__, str(self.folder)],
                stdin=subprocess.PIPE,  # it closes when this process is gone
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                errors="replace",
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
        (self.folder / "job").write_bytes(cloudpickle.dumps((function, self.progress)))

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
        try:
            for line in self.process.stdout:
                told = _message(line)
                if told is None and line.strip():
                    self.said.append(line)
                    self.say(line.rstrip())
                elif told == "done":
                    self.finished.set()
                elif told is not None:
                    bar = bar or tqdm(total=told["total"], initial=told["n"], desc=told["desc"], unit="step")
                    bar.n = told["n"]
                    bar.set_postfix_str(told["postfix"])
        finally:
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
        causes = [file.read_text(errors="replace") for file in sorted(self.folder.glob("cause-*"))]
        last = "".join([*self.said[-5:], *(causes or errors[-40:])])
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
        """Take away whatever is left of it, with what it has started."""
        family = [self.process.pid]
        with contextlib.suppress(psutil.Error):
            family += [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]
        for process in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.listener.join(GRACE)
        self.place.cleanup()


def _message(line):
    """What a process tells in a line; None for what it merely prints."""
    if not line.startswith(MARK):
        return None
    with contextlib.suppress(ValueError):
        return json.loads(line[1:])
    return None


def _tell(message):
    """To the process that has started this one: in a line of its own, whatever was printed before."""
    sys.stdout.write(f"\n{MARK}{json.dumps(message)}\n")
    sys.stdout.flush()


class Told(plain_tqdm):
    """A progress bar that is shown by the process that has started this one."""

    def display(self, msg=None, pos=None):
        name = self.desc.removesuffix(": ")
        _tell({"n": self.n, "total": self.total, "desc": name, "postfix": self.postfix or ""})


def _main(folder):
    """What each process does: the job in the folder, and where it is alone those that are put there later."""
    calls = queue.SimpleQueue()
    end_with_starter(calls)
    leave_on_sigterm()
    while True:
        _do(Path(folder))
        if parallel.world() > 1:
            return
        _tell("done")
        calls.get()


def _do(folder):
    if (folder / "raised").exists():  # before torchrun has started these: it would be raised again
        return
    function, progress = cloudpickle.loads((folder / "job").read_bytes())
    try:
        name, value = "returned", function(progress=Told if progress else False)
    except Exception as error:
        text = traceback.format_exc()
        # torch's own errors, such as that of a lost process, are RuntimeErrors: torchrun starts all again.
        foreign = type(error) is RuntimeError or isinstance(error, torch.distributed.DistError)
        if parallel.world() > 1 and (foreign or isinstance(error, torch.OutOfMemoryError)):
            (folder / f"cause-{parallel.rank()}").write_text(text)
            raise
        error.add_note(f"In the process that did the work:\n{text}")
        name, value = "raised", error
    if name == "raised" or parallel.leads():
        _write(folder / name, value)
    if name == "raised" and parallel.world() > 1:
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
