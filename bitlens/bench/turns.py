"""Interleaved timing: every contestant lives in a process of its own and runs once whenever its turn comes.

The clock of a machine drifts while it is measured; what took turns can be compared all the same. A process of its own
gives each contestant its own allocator and threads, and shows its memory.
"""

import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

__all__ = ["Contestant", "Timing", "environment", "interleave", "peak_memory"]

PAUSE = 0.1
"""Seconds between turns, in which the last contestant's threads fall asleep."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_vbmi", "avx512_bf16", "amx_int8", "asimddp", "i8mm")
"""Flags of /proc/cpuinfo that decide how fast low bits run."""


@dataclass(frozen=True)
class Contestant:
    """What is timed."""

    name: str
    prepare: Callable[..., Callable[[], Any]]
    """A function of a module; called in the contestant's process, it returns the run that is timed."""
    arguments: tuple[Any, ...] = ()
    """Of `prepare`; they are pickled."""


@dataclass
class Timing:
    """How a contestant fared."""

    name: str
    seconds: list[float] = field(default_factory=list)
    """Of each timed run."""
    start: float = 0.0
    """Seconds from the birth of the process to the end of its first run, which is not timed."""
    start_mb: float = 0.0
    """Peak resident memory until then."""
    peak_mb: float = 0.0
    """Peak resident memory during the timed runs, of the whole process."""
    value: float | None = None
    """What the last run returned, where that is a number."""
    failure: str | None = None
    """Why it did not run, in one line."""

    @property
    def median(self) -> float:
        """Seconds."""
        return median(self.seconds)


def interleave(
    contestants: Sequence[Contestant],
    rounds: int,
    *,
    threads: int | None = None,
    keep: Path | None = None,
    on_turn: Callable[[str], None] | None = None,
) -> list[Timing]:
    """Start the contestants one after the other, then let each run once a round, in turn.

    Args:
        contestants: each with a name of its own.
        rounds: timed runs of each.
        threads: of the libraries that read OMP_NUM_THREADS; None leaves that to them.
        keep: folder for what each first run returned, as NAME.npy.
        on_turn: receives the contestant's name before its start and before each run.

    Returns:
        One Timing each, in order. A contestant that raises an error has it as its `failure`; the others go on.

    Raises:
        ValueError: no rounds, or a name comes twice.
    """
    names = [contestant.name for contestant in contestants]
    if rounds < 1 or len(set(names)) < len(names):
        raise ValueError(f"{rounds} rounds of {', '.join(names)}; wanted one or more, and no name twice; change them")
    timings = [Timing(name) for name in names]
    lines: dict[str, Connection] = {}
    with thread_limit(threads), processes() as start:
        for contestant, timing in zip(contestants, timings, strict=True):
            if on_turn:
                on_turn(contestant.name)
            begun = time.time()
            lines[contestant.name] = start(contestant, begun, keep)
            listen(lines[contestant.name], timing)
        for _ in range(rounds):
            for timing in timings:
                if timing.failure is None:
                    if on_turn:
                        on_turn(timing.name)
                    time.sleep(PAUSE)
                    lines[timing.name].send(None)
                    listen(lines[timing.name], timing)
    return timings


def listen(line: Connection, timing: Timing) -> None:
    """Take in what a process tells next: fields of its Timing, and the seconds of a run."""
    try:
        told: dict[str, Any] = line.recv()
    except (EOFError, ConnectionError):
        told = {"failure": "its process died; it may have been killed for its memory"}
    seconds = told.pop("seconds", None)
    if seconds is not None:
        timing.seconds.append(seconds)
    for name, value in told.items():
        setattr(timing, name, value)


@contextmanager
def thread_limit(threads: int | None) -> Iterator[None]:
    """What processes that start inside the block see as the number of threads."""
    before = {name: os.environ[name] for name in THREADS if name in os.environ}
    if threads is not None:
        os.environ.update(dict.fromkeys(THREADS, str(threads)))
    try:
        yield
    finally:
        for name in THREADS:
            os.environ.pop(name, None)
        os.environ.update(before)


@contextmanager
def processes() -> Iterator[Callable[[Contestant, float, Path | None], Connection]]:
    """Hands out a function that starts a contestant's process and returns the line to it; all end with the block."""
    context = multiprocessing.get_context("spawn")
    started = []

    def start(contestant: Contestant, begun: float, keep: Path | None) -> Connection:
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, contestant, begun, keep), daemon=True)
        process.start()
        theirs.close()
        started.append((process, ours))
        return ours

    try:
        yield start
    finally:
        for process, line in started:
            line.close()
            process.terminate()
        for process, _ in started:
            process.join()


def serve(line: Connection, contestant: Contestant, begun: float, keep: Path | None) -> None:
    """A contestant's process: prepare, run once, then once for every message, until the line is closed."""
    import numpy as np

    try:
        run = contestant.prepare(*contestant.arguments)
        result = run()
        told: dict[str, Any] = {"start": time.time() - begun, "start_mb": peak_memory()}
        if keep is not None:
            np.save(keep / f"{contestant.name}.npy", np.asarray(result))
        del result
        forget_peak()
        line.send(told)
        while True:
            line.recv()
            before = time.perf_counter()
            result = run()
            told = {"seconds": time.perf_counter() - before, "peak_mb": peak_memory()}
            if isinstance(result, float):
                told["value"] = result
            del result
            line.send(told)
    except (EOFError, KeyboardInterrupt):
        return
    except Exception as error:  # whatever it is, the others go on, and the table says so
        line.send({"failure": " ".join(str(error).split()) or type(error).__name__})


def peak_memory() -> float:
    """Peak resident memory of this process in MB (10^6 bytes) since its start, or since `forget_peak`."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024 / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def forget_peak() -> None:
    """Start `peak_memory` anew, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def environment() -> dict[str, Any]:
    """The machine: processor, its features, cores, memory, system, Python, and what else it does now (its load)."""
    facts: dict[str, Any] = {"cpu": platform.processor() or platform.machine(), "features": []}
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
        known = {name.strip(): value.strip() for name, value in lines.items()}
        flags = set(known.get("flags", known.get("Features", "")).split())
        facts = {"cpu": known.get("model name", facts["cpu"]), "features": [name for name in FEATURES if name in flags]}
        facts |= {name: known[name] for name in ("cpu family", "model") if name in known}
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return facts | {
        "cores": os.cpu_count(),
        "memory_gb": round(pages / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }
