"""A Python that has imported everything, and runs each command line in a fork of itself: quick, apart, and watched.

Reads orders as lines of JSON and answers each with one; see `Commands` in commands.py. To fork is safe where there is
one thread, which is made sure of.
"""

import importlib
import json
import os
import pkgutil
import resource
import signal
import sys
import time
import traceback
import warnings
from contextlib import suppress
from typing import Any

MOST_BYTES = 8 << 30
"""Of addresses that a command line may take, beyond those of this process: more would harm the machine."""


def main() -> None:
    """Answer orders until there are no more."""
    warm_up()
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), flush=True)


def warm_up() -> None:
    """Import what a command line may import, and call torch once."""
    import torch

    import bitlens

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        modules = [found.name for found in pkgutil.walk_packages(bitlens.__path__, "bitlens.")]
        others = ["av", "h5py", "imageio", "matplotlib.pyplot", "onnx", "scipy.io", "tifffile", "torch._dynamo", "tyro"]
        for name in [*modules, *others, "PIL.AvifImagePlugin", "PIL.WebPImagePlugin", "rich.progress"]:
            if name != "bitlens.__main__":
                with suppress(ImportError):
                    importlib.import_module(name)
    torch.nn.functional.conv2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3)).sum().item()
    with open("/proc/self/status") as file:
        threads = next(line.split()[1] for line in file if line.startswith("Threads"))
    print(json.dumps({"threads": int(threads)}), flush=True)


def run(
    arguments: list[str], folder: str, shown: str, seconds: float, after: float | None, number: int, most: int | None
) -> dict[str, Any]:
    """Run a command line in a folder; its output goes to the files `shown`.out and `shown`.err.

    `after` seconds after its start it gets the signal `number`; after `seconds` it is killed. `most`: bytes that its
    files may have.
    """
    started, starts = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(arguments, folder, shown, most, starts)
    os.close(starts)
    os.read(started, 1)  # a busy machine may take a while for a fork
    os.close(started)
    start, hung = time.monotonic(), False
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        spent = time.monotonic() - start
        if after is not None and spent >= after:
            os.kill(pid, number)
            after = None
        if spent > seconds:
            hung = True
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.0005)
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "hung": hung, "seconds": time.monotonic() - start, "peak_mb": usage.ru_maxrss / 1024}


def child(arguments: list[str], folder: str, shown: str, most: int | None, starts: int) -> None:
    """What the fork does; it never returns. `starts`: a pipe that hears when the command line is run."""
    code = 70
    try:
        os.chdir(folder)
        for number, ending in ((0, None), (1, ".out"), (2, ".err")):
            name = os.devnull if ending is None else shown + ending
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), number)
        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MOST_BYTES, resource.RLIM_INFINITY))
        if most is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
        from bitlens.cli import main as command

        os.write(starts, b".")
        code = command(arguments)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
