"""What networks say of the memory that they take while they run: plain data, measured, for `engine.memory`."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Memory"]


@dataclass(frozen=True)
class Memory:
    """The memory of one network for video; each has it as its attribute `memory`, of its own widths."""

    needs: Mapping[str, tuple[float, float]]
    """Bytes for each pixel of a frame in float32, and for each pair of frames at a pixel, by the name of the engine.

    "low-bit" is torch with its integers simulated. An engine that is not named needs what torch does."""
    volumes: tuple[tuple[int, int], ...] = ()
    """What its 3x3x3 convolutions read, one of each kind: channels, and by what height and width are divided."""
    thread_mb: float = 0.0
    """MB more for each of torch's threads."""
