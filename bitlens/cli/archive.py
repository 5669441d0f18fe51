"""One verb over many files: what is finished is skipped, what is broken loses nothing else, a cluster may do the work.

A result is written in a hidden folder of the folder of results and renamed when it is whole. Beside it, in
`.bitlens/`, lies its record: what it was made of and with. Only a result whose record says the same is skipped.
"""

import glob
import hashlib
import json
import logging
import os
import secrets
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

from bitlens.cli.interrupts import interrupted

__all__ = ["Item", "Row", "archive", "conclude", "expand", "finished", "item_of", "name_of", "over", "report", "stamp"]

RECORDS = ".bitlens"
"""The folder of records, in the folder of results."""

REFUSED = (ValueError, TypeError, OSError, MemoryError)
"""What a file that cannot be used raises; anything else is a fault of bitlens."""

CONNECT = 10.0
"""Seconds until a scheduler that does not answer is given up."""

PATIENCE = 60.0
"""Seconds for which a cluster may be without any worker; SLURM's jobs may wait for ever."""

COLUMNS = {
    "frames": ("frames", "d"),
    "psnr": ("PSNR (dB)", ".2f"),
    "seconds": ("s", ".2f"),
    "frames_per_second": ("frames/s", ".1f"),
    "delay": ("delay (s)", ".2f"),
}
"""Facts that have a column in the table: its heading, and how numbers are written."""

SCHEDULING = {"distributed.scheduler.worker-saturation": 1.0, "distributed.scheduler.allowed-failures": 1}
"""Of our own schedulers: no file waits at a worker, so that the one that it was doing is blamed for its death."""

SHOWN = 5
"""Names of broken files in the closing line."""

ONE_AT_A_TIME = threading.Lock()
"""A worker with several threads has one engine nevertheless."""


@dataclass(frozen=True)
class Item:
    """A file, or a folder that stands for one, and what will be made of it."""

    name: str
    """Its path in the archive, without suffix."""
    source: Path
    out: Path
    """The result, a file or a folder."""
    record: Path
    """What the result was made of and with, a .json."""
    key: str
    """The same for the same source, settings and network."""


@dataclass
class Row:
    """What became of one file."""

    name: str
    source: str
    out: str
    state: str
    """made, there (from an earlier run) or broken."""
    note: str = ""
    """Why it is broken, or what looks odd about it."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the verb says of the result: `frames`, `seconds`, `psnr`, ..."""


Work = Callable[[Item, Path], dict[str, Any]]
"""Makes the result of an item at a path, and says what there is to say of it. Sent to workers: it can be pickled."""


def expand(
    inputs: Sequence[Path], inside: Callable[[Path], list[Path] | None], without: Sequence[Path] = ()
) -> tuple[dict[str, Path], bool]:
    """Files, folders and patterns (`a/*.npz`, `**` for folders of any depth) as named files.

    Args:
        inputs: as they were typed.
        inside: the files of a folder; None: the folder itself stands for one.
        without: files and folders that are left out where they lie in a folder.

    Returns:
        (files by name, whether they are an archive: more than one input, a pattern, or a folder of files). A file's
        name is its path below the folder that was typed, or below the pattern's fixed part.

    Raises:
        FileNotFoundError: nothing there, or nothing matches.
        ValueError: two files of one name.
    """
    left_out = {path.resolve() for path in without}
    left_out -= {parent for given in inputs for parent in (given.resolve(), *given.resolve().parents)}
    found: dict[Path, str] = {}
    many = len(inputs) > 1
    for given in inputs:
        pattern = not given.exists() and glob.has_magic(str(given))
        if pattern:
            matches = sorted(map(Path, glob.glob(str(given), recursive=True)))
            root = Path(*_fixed(given.parts))
            if not matches:
                raise FileNotFoundError(f"nothing matches {given}; wanted a pattern of files or folders; check it")
        else:
            matches, root = [given], given
        many |= pattern
        for match in matches:
            held = inside(match) if match.is_dir() else None
            many |= held is not None
            for path in [match] if held is None else held:
                if path == given or not left_out & {path.resolve(), *path.resolve().parents}:
                    found.setdefault(path, name_of(path, root))
    if inputs and not found:
        said = ", ".join(map(str, inputs))
        raise FileNotFoundError(f"{said} holds no images or captures; wanted files, or folders of them; check the path")
    names: dict[str, Path] = {}
    for path, name in found.items():
        if name in names:
            raise ValueError(
                f"{names[name]} and {path} would both become {name}; wanted one of each name; rename one, or give "
                "the folder that holds both"
            )
        names[name] = path
    return names, many


def _fixed(parts: tuple[str, ...]) -> list[str]:
    """The folders of a pattern before the first that is one."""
    fixed: list[str] = []
    for part in parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return fixed


def name_of(path: Path, root: Path) -> str:
    """The path below root, or its last part where it is the root; without the suffix of a file."""
    below = Path(path.resolve().name) if path == root else path.relative_to(root)
    return (below if path.is_dir() and path.suffix.lower() != ".zarr" else below.with_suffix("")).as_posix()


def stamp(path: Path) -> list[Any]:
    """What changes when a file, or a file of a folder, is written again: names, sizes in bytes, times."""
    about = path.stat()
    if not path.is_dir():
        return [str(path), about.st_size, about.st_mtime_ns]
    return [str(path), *(stamp(each) for each in sorted(path.iterdir()) if each.name[0] != ".")]


def item_of(
    name: str, source: Path, folder: Path, suffix: str, settings: Mapping[str, Any], *others: Path | None
) -> Item:
    """The result of a file in a folder: `name` + `suffix`, which depends on the settings and on other files too."""
    source, out = source.absolute(), folder.absolute() / f"{name}{suffix}"
    files = [stamp(path.absolute()) for path in (source, *others) if path is not None and path.exists()]
    key = hashlib.sha256(json.dumps([settings, files], sort_keys=True, default=str).encode()).hexdigest()
    return Item(name, source, out, folder.absolute() / RECORDS / f"{name}{suffix}.json", key)


def finished(item: Item) -> Row | None:
    """The row of an item whose result is there and was made so; else None."""
    if not item.out.exists():
        return None
    try:
        record = json.loads(item.record.read_text(encoding="utf-8"))
        if record["key"] != item.key:
            return None
        facts, note = dict(record["facts"]), str(record["note"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no record, or half of one: made again
    return Row(item.name, str(item.source), str(item.out), "there", note, facts)


@contextmanager
def room_in(folder: Path) -> Iterator[Path]:
    """A hidden folder for unfinished results, on the disk of the finished ones; it goes with all that is in it.

    Raises:
        OSError: it cannot be made.
    """
    room = folder.absolute() / RECORDS / f"unfinished-{secrets.token_hex(4)}"
    made = [parent for parent in room.parents if not parent.exists()]
    try:
        room.mkdir(parents=True)
    except OSError as error:
        raise OSError(
            f"cannot write to {folder} ({error.strerror}); wanted a folder for the results; choose another with --out"
        ) from error
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)
        for parent in made:
            with suppress(OSError):  # there are results in it
                parent.rmdir()


def attempt(item: Item, work: Work, room: Path) -> Row:
    """Make one result, whole or not at all; what is refused becomes a row like any other.

    What is there already was made in this run, by a worker that died before it could tell.
    """
    from bitlens.files import FileRemark
    from bitlens.progress import quietly

    there = finished(item)
    if there is not None:
        return replace(there, state="made")
    row = Row(item.name, str(item.source), str(item.out), "made")
    start = time.perf_counter()
    with ONE_AT_A_TIME, quietly(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FileRemark)
        place = item.out
        try:
            with TemporaryDirectory(dir=room) as made:
                place = Path(made) / item.out.name
                row.facts = work(item, place)
                row.facts["seconds"] = time.perf_counter() - start
                item.out.parent.mkdir(parents=True, exist_ok=True)
                remarks = [str(one.message) for one in caught if issubclass(one.category, FileRemark)]
                row.note = "; ".join([*row.facts.pop("warnings", []), *remarks])
                if item.out.is_dir():
                    os.replace(item.out, Path(made) / ".before")
                os.replace(place, item.out)
                _write_record(item, row)
        except REFUSED as error:
            if interrupted():
                raise
            said = " ".join(str(error).split()) or type(error).__name__
            row.state, row.note = "broken", said.replace(str(place), str(item.out))
    for one in caught:
        if not issubclass(one.category, FileRemark):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return row


def _write_record(item: Item, row: Row) -> None:
    """After its result: an old record does not vouch for a new result."""
    from bitlens.files import atomic_path

    with atomic_path(item.record) as path:
        content = {"key": item.key, "source": row.source, "facts": row.facts, "note": row.note}
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def over(items: Sequence[Item], work: Work, room: Path, cluster: str | None = None, workers: int | None = None,
         unit: str = "files") -> Iterator[Row]:  # fmt: skip
    """Do the work for every item, under a progress bar; rows come as they are done.

    Args:
        items: what to do.
        work: makes one result.
        room: a folder for unfinished results that all workers can reach.
        cluster: None: here, one after the other. `local`: in processes of this machine. `slurm`: in jobs. Or the
            address of a Dask scheduler, whose workers see the same files.
        workers: how many, of one thread each. None: for `local` one for each core, for `slurm` 4.
        unit: what is counted.

    Raises:
        ValueError: Dask is missing, nothing answers at the address, or all workers are gone.
    """
    from bitlens.progress import progress

    todo = partial(attempt, work=work, room=room)
    rows = map(todo, items) if cluster is None else _on_cluster(items, todo, cluster, workers)
    with progress(unit) as bar:
        task = bar.add_task("", total=len(items))
        for row in rows:
            bar.advance(task)
            yield row


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


def _on_cluster(items: Sequence[Item], todo: Callable[[Item], Row], cluster: str, workers: int | None) -> Iterator[Row]:
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
    gone = ValueError(f"the scheduler of --cluster {cluster} went away; {_WHAT_NEXT}")
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


_WHAT_NEXT = "wanted one that stays until the end; finished results are kept: start it, and the same command, again"


def _alive(client: Any, cluster: str, seen: float) -> float:
    """When a worker was last seen; refuses to wait for one for ever."""
    try:
        if client.nthreads():
            return time.monotonic()
    except OSError:
        pass  # it does not answer, which may pass
    if time.monotonic() - seen > PATIENCE and cluster != "slurm":
        raise ValueError(f"no worker of --cluster {cluster} for {PATIENCE:.0f} s; {_WHAT_NEXT}")
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


def archive(
    items: Sequence[Item],
    work: Work,
    folder: Path,
    verb: str,
    unit: str,
    cluster: str | None = None,
    workers: int | None = None,
    path: Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Make what is not finished; then, or where Ctrl-C comes, print a table of all and write the .json at `path`.

    Args:
        items: all results of the archive, in order.
        work: makes one.
        folder: where they lie.
        verb: what is done to one, for people: `rebuilt`.
        unit: what one is: `captures`.
        cluster, workers: as for `over`.
        path: of the .json; None: none.
        settings: what to write into it.

    Raises:
        ValueError: in the end, naming those that are broken; and as `over`.
    """
    from bitlens.files import remark
    from bitlens.report import console

    rows = {item.name: row for item in items if (row := finished(item)) is not None}
    todo = [item for item in items if item.name not in rows]
    if rows:
        print(f"{len(rows)} of {len(items)} are there", flush=True)
    said: set[str] = set()

    def told() -> list[Row]:
        done = [rows[item.name] for item in items if item.name in rows]
        report(done, unit, path, settings)
        return done

    try:
        if todo:
            with room_in(folder) as room:
                for row in over(todo, work, room, cluster, workers, unit):
                    rows[row.name] = row
                    if row.state == "broken":
                        remark(f"{row.source} is left out: {row.note}")
                    how = row.facts.get("engine")
                    if how and how not in said:
                        said.add(how)
                        console().print(f"engine: {how}")
    except KeyboardInterrupt:
        told()
        raise
    conclude(told(), folder, verb, unit)


def report(rows: Sequence[Row], unit: str, path: Path | None = None, settings: Mapping[str, Any] | None = None) -> None:
    """Print the table, and write it with the settings as .json where a path is given."""
    from bitlens.cli.shared import output_file
    from bitlens.report import console, table

    columns = {name: form for name, form in COLUMNS.items() if any(name in row.facts for row in rows)}
    cells = [[row.name, *(_cell(row, *column) for column in columns.items()), _note(row)] for row in rows]
    made = table("", [unit.removesuffix("s"), *(head for head, _ in columns.values()), "note"], cells)
    made.columns[-1].justify = "left"
    if rows:
        console().print(made)
    with output_file(path) as temporary:
        if temporary is not None:
            content = {"results": [vars(row) for row in rows], "settings": dict(settings or {})}
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _cell(row: Row, name: str, form: tuple[str, str]) -> str:
    value = row.facts.get(name)
    return "–" if value is None else format(value, form[1])


def _note(row: Row) -> str:
    return "; ".join(part for part in ("was there" if row.state == "there" else "", row.note) if part)


def conclude(rows: Sequence[Row], folder: Path, verb: str, unit: str) -> None:
    """Say how many were made, or refuse what is broken.

    Raises:
        ValueError: naming what is broken, in one line.
    """
    broken = [row for row in rows if row.state == "broken"]
    if broken:
        names = [f"{row.name}{Path(row.source).suffix}" for row in broken[:SHOWN]]
        named = ", ".join([*names, "..."] if len(broken) > SHOWN else names)
        others = f"the others are in {folder}" if len(broken) < len(rows) else "which is all"
        why = broken[0].note
        if len({row.note.replace(row.out, "") for row in broken}) > 1:
            why = "wanted whole files; the table says what is wrong with each: repair them, and run it again"
        raise ValueError(f"{len(broken)} of {len(rows)} {unit} could not be {verb} ({named}), {others}; {why}")
    print(f"wrote {sum(row.state == 'made' for row in rows)} {unit} to {folder}")
