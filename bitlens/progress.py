"""Bars for what takes time: on stderr, gone when it is done, and none where nobody looks."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["progress", "quietly"]

QUIET: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def quietly() -> Iterator[None]:
    """Show no bars: there is one for the whole already, or this is a worker."""
    token = QUIET.set(True)
    try:
        yield
    finally:
        QUIET.reset(token)


def progress(unit: str) -> "Progress":
    """A bar that counts units, with an estimate; nothing where stderr is no terminal, and within `quietly`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
        TimeRemainingColumn(), console=(console := Console(stderr=True)), transient=True,
        disable=QUIET.get() or not console.is_terminal,
    )  # fmt: skip
