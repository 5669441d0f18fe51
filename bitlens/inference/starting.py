"""A network made ready to run: its checkpoint, checked for the task, and the engine that computes."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bitlens.engine.registry import Name

__all__ = ["Started", "describe", "start"]

WANTED = {
    "video-sci": "wanted one that reconstructs video; enlarge pictures with bitlens upscale, or choose a model of "
    "bitlens models",
    "super-resolution": "wanted a super-resolution network; run bitlens reconstruct with it, or enlarge with "
    "another one",
    "restoration": "wanted a network that restores images at their size; enlarge with bitlens upscale, or choose a "
    "model of bitlens models",
}
"""What to do with a network for other things, by the task that was asked for."""


@dataclass(frozen=True)
class Started:
    """A network that is ready to run; it can be used for many inputs."""

    about: Any
    """The checkpoint's description, as `checkpoint.describe` gives it."""
    network: Any
    running: Callable[..., Any]
    """What computes: measurement (1, h, w) and mask (1, t, h, w) -> video (1, c, t, h, w), or image (1, 3, h, w) -> a
    larger one."""
    how: str
    """The engine in words."""


def start(model: str | os.PathLike[str], engine: Name = "auto", task: str = "video-sci") -> Started:
    """Load a network and start what runs it.

    Args:
        model: a shipped name, or the path of a checkpoint.
        engine: what computes (`engine.registry`).
        task: what it must be for, as `bitlens models --json` lists it.

    Raises:
        FileNotFoundError, TypeError, ValueError: no such model, it is for other things, or no such engine.
    """
    from bitlens import checkpoint
    from bitlens.engine.registry import choose_engine
    from bitlens.inference.machine import keep_freed_memory

    keep_freed_memory()
    about = describe(model, task)
    network = checkpoint.load(model)
    return Started(about, network, *choose_engine(network, engine))


def describe(model: str | os.PathLike[str], task: str = "video-sci") -> Any:
    """A checkpoint's description.

    Raises:
        FileNotFoundError: no such model.
        ValueError: it is for other things.
    """
    from bitlens import checkpoint

    about = checkpoint.describe(os.fspath(model))
    if about.task != task:
        raise ValueError(f"{about.name} is a network for {about.task}; {WANTED[task]}")
    return about
