"""Ctrl-C, and the signals that ask a process to end, as exceptions that arrive where they can be caught.

An exception raised within an import is made into another one by compiled modules, or swallowed by whoever can do
without the module; in a destructor it is printed and lost. There the signal waits, and comes again when that is done;
the next one does not wait.

Compiled code that calls Python makes other errors of interrupts, too: torch's of one that comes within `len(storage)`
says that it `could not determine the shape`. So it is remembered that one came, whatever became of it.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import Any

__all__ = ["Terminated", "heard", "interrupted", "orderly_end"]

AGAIN = 0.02
"""Seconds until a signal comes again that could not be raised."""

IMPORTING = "<frozen importlib._bootstrap>"
"""The file name of Python's own frames while a module is imported."""

CAME: ContextVar[list[KeyboardInterrupt]] = ContextVar("came")
"""Within `orderly_end`: the interrupts that were raised."""


class Terminated(KeyboardInterrupt):
    """The system asked the process to end (SIGTERM, or SIGHUP): outputs are left as at Ctrl-C, absent or whole."""


@contextmanager
def orderly_end() -> Iterator[list[KeyboardInterrupt]]:
    """SIGINT raises KeyboardInterrupt, SIGTERM and SIGHUP `Terminated`, where Python or the system would handle them.

    Nothing is changed in other threads than the main one, which have no handlers. Without timers (Windows) a signal is
    raised wherever it comes.

    Yields:
        The interrupts that were raised and that nobody has `heard`.
    """
    came: list[KeyboardInterrupt] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM")
    usual = signal.SIG_DFL, signal.default_int_handler
    found = {getattr(signal, name): signal.getsignal(getattr(signal, name)) for name in names if hasattr(signal, name)}
    before = {number: handler for number, handler in found.items() if handler in usual}
    alarm, hook = getattr(signal, "SIGALRM", None), sys.unraisablehook
    waiting: list[int] = []

    def wait(number: int) -> None:
        waiting.append(number)
        signal.setitimer(signal.ITIMER_REAL, AGAIN)

    def end(number: int, frame: FrameType | None) -> None:
        first = number == alarm or not waiting
        number = waiting[0] if number == alarm and waiting else number
        if first and alarm in before and importing(frame):
            wait(number)
        else:
            came.append(KeyboardInterrupt() if number == signal.SIGINT else Terminated(number))
            raise came[-1]

    def lost(unraisable: Any) -> None:
        error = unraisable.exc_value
        if alarm in before and isinstance(error, KeyboardInterrupt):
            wait(error.args[0] if isinstance(error, Terminated) else signal.SIGINT)
        else:
            hook(unraisable)

    token = CAME.set(came)
    try:
        sys.unraisablehook = lost
        for number in before:
            signal.signal(number, end)
        yield came
    finally:
        if alarm in before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook
        CAME.reset(token)


def interrupted() -> bool:
    """Whether an interrupt came: what went wrong is a consequence of it."""
    return bool(CAME.get([]))


def heard() -> None:
    """Called by who catches an interrupt and goes on: what goes wrong from here on is no consequence of it."""
    CAME.get([]).clear()


def importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported in the frame, or in one that called it."""
    while frame is not None:
        if frame.f_code.co_filename == IMPORTING:
            return True
        frame = frame.f_back
    return False
