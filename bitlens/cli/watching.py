"""Files as they arrive in a folder: a camera's, say."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitlens.cli.archive import stamp

__all__ = ["Arrival", "arrivals"]

REST = 0.5
"""Seconds for which the sizes and times of a file must rest, for it to have arrived."""

POLL = 0.1
"""Seconds between two looks."""


@dataclass(frozen=True)
class Arrival:
    """A file, or a folder that stands for one."""

    path: Path
    at: float
    """When its last byte came, as far as it was seen, by `time.monotonic()`; what is there before: when it was seen."""


def arrivals(found: Callable[[], Sequence[Path]], idle: float | None = None) -> Iterator[Arrival]:
    """Yield files when they have arrived, and again when they have been written anew.

    A file has arrived when its size and time rest, or at once where it is older than that: it was moved here whole.
    Empty files have not.

    Args:
        found: what is there now, in order.
        idle: end after so many seconds without a new file. None: never.
    """
    seen: dict[Path, tuple[list[Any], float]] = {}
    taken: dict[Path, list[Any]] = {}
    last = time.monotonic()
    while True:
        for path in found():
            try:
                now, stamped, age = time.monotonic(), stamp(path), time.time() - _changed(path)
            except FileNotFoundError:
                continue  # gone again
            if seen.get(path, (None,))[0] != stamped:
                seen[path] = stamped, now
                last = now
            rested = max(now - seen[path][1], age) >= REST and _size(path) > 0
            if rested and taken.get(path) != stamped:
                taken[path] = stamped
                yield Arrival(path, seen[path][1])
                last = time.monotonic()
        if idle is not None and time.monotonic() - last > idle:
            return
        time.sleep(POLL)


def _changed(path: Path) -> float:
    """When a file, or any in a folder, was last written, in seconds since 1970."""
    return max([path.stat().st_mtime, *(_changed(each) for each in _inside(path))])


def _size(path: Path) -> int:
    """Bytes."""
    return sum(map(_size, _inside(path))) if path.is_dir() else path.stat().st_size


def _inside(path: Path) -> list[Path]:
    return [each for each in path.iterdir() if each.name[0] != "."] if path.is_dir() else []
