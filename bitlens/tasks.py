"""What networks are for: one entry a task, with what its networks take, give, and are called in words.

Which task a network has stands in its entry of `bitlens.networks.catalog`; nothing else asks what kind it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitlens.networks.catalog import CATALOG, RESTORATION, SCI, SR, task_of

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["TASKS", "Task", "of", "of_family"]


@dataclass(frozen=True)
class Task:
    """What networks of one kind have in common."""

    name: str
    verb: str
    """Of the command line: what runs its networks."""
    does: str
    """In words."""
    unit: str
    """What a network takes at a time, in words."""
    axes: tuple[str, ...]
    """What the size of a unit is given by."""
    inputs: tuple[str, ...]
    """Names of what a network is called with, in exported files too."""
    output: str
    ones: "Callable[..., tuple[Tensor, ...]]"
    """Inputs for a network, of ones, for a batch of one of a size."""

    @property
    def still(self) -> bool:
        """Whether its networks take images, not captures of moving scenes."""
        return len(self.axes) == 2


def _capture(frames: int, height: int, width: int) -> "tuple[Tensor, ...]":
    import torch

    return torch.ones(1, height, width), torch.ones(1, frames, height, width)


def _picture(height: int, width: int) -> "tuple[Tensor, ...]":
    import torch

    return (torch.ones(1, 3, height, width),)


TASKS = {
    task.name: task
    for task in (
        Task(
            SCI, "reconstruct", "reconstruct video", "measurement", ("frames", "height", "width"),
            ("measurement", "mask"), "video", _capture,
        ),
        Task(
            SR, "upscale", "enlarge pictures", "picture", ("height", "width"),
            ("image",), "large", _picture,
        ),
        Task(
            RESTORATION, "restore", "restore pictures", "picture", ("height", "width"),
            ("image",), "restored", _picture,
        ),
    )
}  # fmt: skip
"""By name."""


def of(network: "nn.Module") -> Task:
    """The task of a network."""
    return TASKS[task_of(network)]


def of_family(name: str) -> Task:
    """The task of a family of networks, by its name in the catalogue."""
    return TASKS[CATALOG[name].task]
