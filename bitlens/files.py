"""Writes every output whole or not at all: a temporary name beside the target, renamed at the end.

What a killed process leaves is hidden, has `.part-` in its name, and is removed by the next process of that machine
which writes into the same folder. What a reader or writer cannot keep of a file is said through `remark`: a warning in
the library, a note at the command line.
"""

import errno
import os
import platform
import re
import secrets
import shutil
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

__all__ = ["FileRemark", "atomic_folder", "atomic_path", "is_part", "remark"]

PART = re.compile(r"\.part-([0-9a-f]{8})-(\d{1,9})-[0-9a-f]{8}")
"""What a temporary name has behind the stem: a hash of the machine's name, the process, and a random number."""

FULL = {
    errno.ENOSPC: "no room is left there",
    errno.EDQUOT: "no room is left of your quota there",
    errno.EFBIG: "files there may not be so large",
    errno.EROFS: "it is read-only there",
}
"""Why a system takes no more bytes."""


class FileRemark(UserWarning):
    """What a file holds and its reader or writer does not keep, or what looks wrong in it: one line for people."""


def remark(message: str) -> None:
    """Warn of it, as `FileRemark`. The message has the three parts of an error's."""
    warnings.warn(message, FileRemark, stacklevel=3)


def is_part(path: Path) -> bool:
    """Whether a file or folder is one that was not finished, by its name."""
    return path.name.startswith(".") and PART.search(path.name) is not None


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`, same suffix; renamed to it on success, removed on any failure.

    Missing parent folders are made, and removed again on failure. An existing file is replaced only at the
    end.

    Raises:
        OSError: the folder cannot be made or written to, `path` is a folder, there is no room, or the body wrote
            nothing.

    Example:
        >>> with atomic_path("out/table.csv") as temporary:  # doctest: +SKIP
        ...     temporary.write_text("a,b")
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder; wanted the path of a file; add a file name to it")
    made = _prepare_parent(target)
    temporary = _temporary_name(target)
    try:
        with _room_named(target):
            yield temporary
        if not temporary.is_file():
            raise OSError(
                f"nothing was written for {target}; wanted one file at the path handed out; "
                "write to that path inside the with block"
            )
        os.chmod(temporary, 0o666 & ~_umask())  # some writers make private files
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        _remove_empty(made)
        raise


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path` on success, remove it on any failure.

    Raises:
        OSError: the parent cannot be made or written to, there is no room, or `path` is a file or a folder that is not
            empty (files of an earlier run are never mixed with new ones).
    """
    target = Path(path)
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{target} is a file; wanted the path of a folder; choose another name or remove it")
    if target.is_dir() and any(target.iterdir()):
        raise FileExistsError(
            f"folder {target} is not empty; wanted a new or an empty folder; remove it or choose another name"
        )
    made = _prepare_parent(target)
    temporary = _temporary_name(target)
    try:
        with _room_named(target):
            temporary.mkdir()
            yield temporary
        if target.is_dir():
            target.rmdir()  # empty, checked above; rename onto a folder is not portable
        os.chmod(temporary, 0o777 & ~_umask())  # some writers make private files
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(made)
        raise


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@contextmanager
def _room_named(target: Path) -> Iterator[None]:
    """Say in three parts that a place takes no more bytes; of the file that was asked for, not of a part of it."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL or is_part(target):
            raise
        raise OSError(
            f"cannot write {target}: {FULL[error.errno]}; wanted room for it; free some, or choose another place"
        ) from error


def _temporary_name(target: Path) -> Path:
    """A hidden name in the same folder, with the same suffix, since writers look at the suffix."""
    stem = PART.sub("", target.stem)[:40]  # names have at most 255 bytes
    return target.with_name(f".{stem}.part-{_machine()}-{os.getpid()}-{secrets.token_hex(4)}{target.suffix}")


@cache
def _machine() -> str:
    """A hash of this machine's name."""
    return f"{zlib.crc32(platform.node().encode()):08x}"


@cache
def _sweep(folder: Path, process: int) -> None:
    """Remove what processes of this machine that run no more have left in a folder; each process looks once."""
    with suppress(OSError), os.scandir(folder) as entries:
        parts = [(Path(entry.path), PART.search(entry.name)) for entry in entries if entry.name[0] == "."]
        for path, found in parts:
            if found and found[1] == _machine() and not _runs(int(found[2])):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    """Whether a process runs on this machine, as far as can be told."""
    if os.name != "posix":
        return True  # elsewhere the question would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # of another user
    return True


def _prepare_parent(target: Path) -> list[Path]:
    """Make the missing parent folders of `target`, writable; return those made, deepest first."""
    parent = target.parent
    missing = []
    while not parent.exists():
        missing.append(parent)
        parent = parent.parent
    if not parent.is_dir():
        raise NotADirectoryError(f"cannot write {target}: {parent} is a file; wanted a folder; choose another path")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(
            f"cannot write {target}: no permission in folder {parent}; wanted a writable folder; "
            "choose another path or change its permissions"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _remove_empty(missing)
        raise OSError(
            f"cannot write {target}: folder {target.parent} cannot be made ({error.strerror}); "
            "wanted a writable folder; choose another path"
        ) from error
    _sweep(target.parent.resolve(), os.getpid())
    return missing


def _remove_empty(folders: list[Path]) -> None:
    """Remove the folders that this write made, deepest first, as far as they are empty."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
