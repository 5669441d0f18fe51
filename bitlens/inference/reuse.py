"""Frames of a film through a network for images, where what did not change keeps its result.

A pixel's result depends on nothing farther away than the network's `radius`. Where no pixel within it differs from the
frame that a result was computed from, that result is the frame's own, and is kept: exactly where they are equal, or,
with `still` above 0, where they differ by no more than that. A result is always compared with what it was computed
from, so slow changes cannot add up unseen. [Skip-Convolutions, Habibian et al., CVPR 2021; ResQ and Shortcut-V2V keep
features or residuals, here it is results, and engines need to know nothing of it].
"""

from collections.abc import Callable

import numpy as np

from bitlens.tiles import Cut, cuts

__all__ = ["Reuse"]

TILE = 128
"""Pixels in height and width, with context, of what is computed anew at a time: engines compile one size once."""
WORTH = 0.8
"""Tiles are computed where they have no more than this share of the frame's pixels; else the whole frame is."""

CLOSE = 1e-6
"""Two values of 8 bits that are some levels apart are that far apart in [0, 1] but for this."""


class Reuse:
    """Computes frame after frame, all of one size.

    Args:
        whole: computes a frame (3, h, w): (3, scale h, scale w).
        tile: the same of a part of one.
        scale: how many times larger results are.
        overlap, multiple: pixels of context around tiles, more than the network sees, and what cuts are multiples of.
        still: the most that a value in [0, 1] may differ from the one that a result was computed from, to keep it.
    """

    def __init__(
        self,
        whole: Callable[[np.ndarray], np.ndarray],
        tile: Callable[[np.ndarray], np.ndarray],
        *,
        scale: int,
        overlap: int,
        multiple: int,
        still: float | int = 0.0,
    ):
        self.whole, self.tile, self.scale = whole, tile, scale
        self.overlap, self.multiple, self.still = overlap, multiple, still
        self.seen: list[np.ndarray] = []
        self.shape: tuple[int, ...] = ()
        self.result = np.zeros(0, np.float32)
        self.pixels = self.computed = 0

    @property
    def kept(self) -> float:
        """The share of all pixels so far whose result was kept; context of tiles counts as computed."""
        return max(0.0, 1 - self.computed / self.pixels) if self.pixels else 0.0

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """The result of the next frame; it is this object's own, and holds until the next call."""
        tiles = self.tiles(frame)
        self.pixels += frame[0].size
        if self.shape != frame.shape:
            changed = list(range(len(tiles)))
        else:
            changed = [index for index, tile in enumerate(tiles) if self.differs(index, frame[inside(tile)])]
        area = sum(frame[0][inside(tiles[index])[1:]].size for index in changed)
        if area > WORTH * frame[0].size or self.shape != frame.shape:
            self.computed += frame[0].size
            self.shape, self.result = frame.shape, np.array(self.whole(frame))
            self.seen = [frame[inside(tile)].copy() for tile in tiles]
            return self.result
        self.computed += area
        for index in changed:
            row, column = tiles[index]
            self.seen[index] = frame[inside(tiles[index])].copy()
            large = self.tile(self.seen[index])
            to = (slice(*(self.scale * end for end in cut.kept)) for cut in (row, column))
            come = (slice(*(self.scale * (end - cut.start) for end in cut.kept)) for cut in (row, column))
            self.result[(slice(None), *to)] = large[(slice(None), *come)]
        return self.result

    def differs(self, index: int, part: np.ndarray) -> bool:
        """Whether a part of a frame is another than that which the result there was computed from."""
        before = self.seen[index]
        return (
            not np.array_equal(part, before)
            if self.still == 0
            else bool((abs(part - before) > self.still + CLOSE).any())
        )

    def tiles(self, frame: np.ndarray) -> list[tuple[Cut, Cut]]:
        """The tiles of a frame."""
        rows, columns = (cuts(length, TILE, self.overlap, self.multiple) for length in frame.shape[1:])
        return [(row, column) for row in rows for column in columns]


def inside(tile: tuple[Cut, Cut]) -> tuple[slice, slice, slice]:
    """Where a tile, with its context, lies in a frame."""
    row, column = tile
    return slice(None), slice(row.start, row.stop), slice(column.start, column.stop)
