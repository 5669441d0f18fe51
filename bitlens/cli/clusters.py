"""A Dask cluster that works on files: of this machine, at an address, or of SLURM's jobs.

What a worker had begun when it died is done again by another one; a scheduler that goes away is named.
"""

import logging
import os
import secrets
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from queue import Empty, SimpleQueue
from typing import Any

from bitlens.cli.archive import Item, Row

__all__ = ["check_cluster", "connected", "on_cluster", "slurm_jobs", "without_interrupts"]

CONNECT = 10.0
"""Seconds until a scheduler that does not answer is given up."""

PATIENCE = 60.0
"""Seconds for which a cluster may be without any worker; SLURM's jobs may wait for ever."""

SCHEDULING = {"distributed.scheduler.worker-saturation": 1.0, "distributed.scheduler.allowed-failures": 1}
"""Of our own schedulers: no file waits at a worker, so that the one that it was doing is blamed for its death."""

WHAT_NEXT = "wanted one that stays until the end; finished results are kept: start it, and the same command, again"


def check_cluster(cluster: str | None, workers: int | None) -> None:
    """Refuse what names no cluster, before anything is read."""
    if workers is not None and (cluster is None or "://" in cluster):
        why = "without --cluster" if cluster is None else f"with the cluster at {cluster}, which has its own"
        raise ValueError(f"--workers {workers} {why}; wanted it with --cluster local or slurm; leave it out")
    if workers is not None and workers < 1:
        raise ValueError(f"--workers {workers}; wanted a whole number above 0; change it")
    if cluster is None:
        return
    if cluster not in ("local", "slurm") and "://" not in cluster:
        raise ValueError(
            f"--cluster {cluster}; wanted local, slurm or the address of a scheduler such as tcp://host:8786; "
            "change it (files go before the flags)"
        )
    import_distributed()
    if cluster == "slurm":
        if shutil.which("sbatch") is None:
            raise ValueError(
                "--cluster slurm, and there is no sbatch here; wanted a machine that can send jobs to SLURM; run it "
                "on a login node, or use --cluster local"
            )
        _import("dask_jobqueue")


def import_distributed() -> Any:
    """Dask's scheduler and workers, or how to get them."""
    return _import("distributed")


def _import(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(
            f"--cluster, and {name.replace('_', '-')} is not installed; wanted Dask; run pip install "
            "'bitlens[cluster]', or leave --cluster out"
        ) from error


def on_cluster(items: Sequence[Item], todo: Callable[[Item], Row], cluster: str, workers: int | None) -> Iterator[Row]:
    """The rows of items that workers are doing. What a dying worker had begun is done again by another one.

    Dask blames every file that a worker held when it died, whichever of them it was; so what is blamed too often is
    tried once more in the end, alone.
    """
    blamed: list[Item] = []
    with connected(cluster, workers) as client:
        for future, item in _done(client, items, todo, cluster):
            if future.status == "error" and type(future.exception()).__name__ == "KilledWorker":
                blamed.append(item)
            else:
                yield _row(future, item, cluster)
        for one in blamed:
            for future, item in _done(client, [one], todo, cluster):
                yield _row(future, item, cluster)


def _done(client: Any, items: Sequence[Item], todo: Callable[[Item], Row], cluster: str) -> Iterator[tuple[Any, Item]]:
    """(future, item) of each, as they end."""
    run = secrets.token_hex(4)
    keys = [f"bitlens-{run}-{index}" for index in range(len(items))]
    waiting = dict(zip(keys, items, strict=True))
    done: SimpleQueue[Any] = SimpleQueue()
    futures = client.map(todo, items, key=keys, pure=False)
    for future in futures:
        future.add_done_callback(done.put)
    seen = time.monotonic()
    try:
        while waiting:
            try:
                future = done.get(timeout=1)
            except Empty:
                seen = _alive(client, cluster, seen)
                continue
            seen = time.monotonic()
            if future.status == "lost":  # with the worker that held what it says; it is done again
                future.add_done_callback(done.put)
                continue
            yield future, waiting.pop(future.key)
            future.release()
    finally:
        with suppress(Exception):  # the scheduler may be gone
            client.cancel([future for future in futures if future.key in waiting], force=True)


def _row(future: Any, item: Item, cluster: str) -> Row:
    """What became of an item.

    Raises:
        ValueError: nothing, since the scheduler went away.
    """
    gone = ValueError(f"the scheduler of --cluster {cluster} went away; {WHAT_NEXT}")
    if future.status == "finished":
        try:
            return future.result()
        except (OSError, CancelledError) as error:
            raise gone from error
    if future.status != "error":
        raise gone
    error = future.exception()
    if type(error).__name__ == "KilledWorker":
        note = "every worker that took it died; wanted memory for it; lower --memory-mb, or give workers more"
    else:
        note = f"{type(error).__name__} on a worker: {' '.join(str(error).split())}"
    return Row(item.name, str(item.source), str(item.out), "broken", note)


def _alive(client: Any, cluster: str, seen: float) -> float:
    """When a worker was last seen; refuses to wait for one for ever."""
    try:
        if client.nthreads():
            return time.monotonic()
    except OSError:
        pass  # it does not answer, which may pass
    if time.monotonic() - seen > PATIENCE and cluster != "slurm":
        raise ValueError(f"no worker of --cluster {cluster} for {PATIENCE:.0f} s; {WHAT_NEXT}")
    return seen


@contextmanager
def connected(cluster: str, workers: int | None = None) -> Iterator[Any]:
    """A client of a cluster, which ends with it where it was made for it.

    Raises:
        ValueError: Dask is missing, or nothing answers at the address.
    """
    distributed = import_distributed()
    configuration = _import("dask.config")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for name in ("distributed", "distributed.client", "distributed.nanny", "distributed.scheduler"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what goes wrong is said here, in one line
    made: Any = None
    try:
        configuration.set(SCHEDULING)
        if cluster == "local":
            with without_interrupts():
                made = distributed.LocalCluster(
                    n_workers=workers or cores, threads_per_worker=1, processes=True, dashboard_address=None,
                    memory_limit=None, silence_logs=logging.CRITICAL,
                )  # fmt: skip
        elif cluster == "slurm":
            made = _import("dask_jobqueue").SLURMCluster(**slurm_jobs())
            made.scale(jobs=workers or 4)
        try:
            client = distributed.Client(made or cluster, timeout=CONNECT)
        except (OSError, TimeoutError, ValueError) as error:
            raise ValueError(
                f"--cluster {cluster} does not answer ({' '.join(str(error).split())}); wanted the address of a "
                "running scheduler; start one with `dask scheduler`, and `dask worker` for it, or use --cluster local"
            ) from error
        try:
            yield client
        finally:
            client.close()
    finally:
        if made is not None:
            made.close()


@contextmanager
def without_interrupts() -> Iterator[None]:
    """What is started here, threads and their processes, does not hear Ctrl-C, which is for the command alone."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # its start would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def slurm_jobs() -> dict[str, Any]:
    """What a job gets where Dask's own configuration (jobqueue.slurm) does not say it: one process, one core."""
    _import("dask_jobqueue")
    stated = _import("dask.config").get("jobqueue.slurm", {})
    usual = {"cores": 1, "processes": 1, "memory": "4 GB"}
    return {name: value for name, value in usual.items() if stated.get(name) is None}
