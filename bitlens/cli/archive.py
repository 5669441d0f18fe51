"""One verb over many files: what is finished is skipped, what is broken loses nothing else, a cluster may do the work.

A result is written in a hidden folder of the folder of results and renamed when it is whole. Beside it, in
`.bitlens/`, lies its record: what it was made of and with. Only a result whose record says the same is skipped.
"""

import glob
import hashlib
import json
import os
import secrets
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bitlens.cli.interrupts import interrupted

__all__ = ["Item", "Row", "archive", "conclude", "expand", "finished", "item_of", "name_of", "over", "report", "stamp"]

RECORDS = ".bitlens"
"""The folder of records, in the folder of results."""

REFUSED = (ValueError, TypeError, OSError, MemoryError)
"""What a file that cannot be used raises; anything else is a fault of bitlens."""

COLUMNS = {
    "frames": ("frames", "d"),
    "psnr": ("PSNR (dB)", ".2f"),
    "seconds": ("s", ".2f"),
    "frames_per_second": ("frames/s", ".1f"),
    "delay": ("delay (s)", ".2f"),
}
"""Facts that have a column in the table: its heading, and how numbers are written."""

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
    from bitlens.cli.clusters import on_cluster
    from bitlens.progress import progress

    todo = partial(attempt, work=work, room=room)
    rows = map(todo, items) if cluster is None else on_cluster(items, todo, cluster, workers)
    with progress(unit) as bar:
        task = bar.add_task("", total=len(items))
        for row in rows:
            bar.advance(task)
            yield row


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
