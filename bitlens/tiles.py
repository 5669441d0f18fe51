"""Runs a function from images to images on tiles that fit into memory, and puts the result together without seams.

A tile is cut with context around the part of it that is kept. Where the context is at least as wide as the function
sees (its receptive radius), the result is that of the whole image; where it is narrower, `blend` mixes neighbours.
At the border of the image a tile ends with the image, so that padding stays the function's own.

All tiles have one size, since engines compile a model for every size; the last may lack the rows that a function
with `multiple` > 1 pads anyway.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Cut", "bands", "cuts", "tiled", "window_for"]


@dataclass(frozen=True)
class Cut:
    """Along one axis, in pixels: what a tile covers, and what of it is kept."""

    start: int
    stop: int
    kept: tuple[int, int]
    """[first, last + 1) of the result that comes from this tile."""
    fade: tuple[int, int] = (0, 0)
    """Half the widths of the bands around both ends of `kept` in which a blended tile mixes with its neighbours."""


def tiled(
    function: Callable[..., Any],
    inputs: Sequence[Any],
    *,
    window: tuple[int, int],
    overlap: int,
    multiple: int = 1,
    scale: int = 1,
    blend: bool = False,
    on_tile: Callable[[int, int], None] | None = None,
    on_seam: Callable[[Any, Any], None] | None = None,
) -> Any:
    """What `function(*inputs)` returns, computed tile by tile.

    Args:
        function: takes cuts of all inputs and returns a tensor (array) whose last two axes are `scale` times as large.
        inputs: tensors or arrays (..., h, w), all of one height and width; cuts of them are views.
        window: the largest (height, width) that the function may be given.
        overlap: pixels of context that a tile has beyond what is kept of it, where the image goes on. The result is
            exact from the function's receptive radius on.
        multiple: tiles start at multiples of this: the function's stride, or the period of its windows. It pads
            what is no multiple itself, below and to the right.
        scale: size of the result over size of the inputs.
        blend: mix neighbouring tiles linearly across a quarter of the overlap on both sides of where they meet,
            instead of cutting there. For less context than the receptive radius: there is no step, and all that
            counts keeps three quarters of it.
        on_tile: called after every tile with the number done and the number of all.
        on_seam: receives what two neighbours give for the band along which they meet, where each has at least
            `overlap` - 1 pixels of context, or three quarters of it where they are blended: of a function that sees no
            farther, the same. Only of neighbours in a row, or in a column where there is but one.

    Returns:
        (..., scale h, scale w), of the type and dtype that the function returns.

    Raises:
        ValueError: inputs of different sizes, a window with no room beside the overlap, or a result of another size.

    >>> tiled(lambda x: 2 * x, [torch.ones(1, 5, 9)], window=(4, 4), overlap=1).sum()
    tensor(90.)
    """
    height, width = _common_size(inputs)
    rows = cuts(height, window[0], overlap, multiple)
    columns = cuts(width, window[1], overlap, multiple)
    count, result = len(rows) * len(columns), None
    seams = _Seams(on_seam if overlap else None, rows, columns, scale, blend)
    for index in range(count):
        row, column = rows[index // len(columns)], columns[index % len(columns)]
        tile = _tile(function, inputs, row, column, scale)
        seams.see(tile, row, column)
        if count == 1:
            result = tile
        else:
            if result is None:
                result = _zeros(tile, scale * height, scale * width)
            _paste(tile, result, row, column, scale, blend)
        del tile  # before the next one is computed
        if on_tile is not None:
            on_tile(index + 1, count)
    return result


def bands(
    function: Callable[..., Any],
    inputs: Sequence[Any],
    *,
    window: tuple[int, int],
    overlap: int,
    multiple: int = 1,
    scale: int = 1,
    blend: bool = False,
    on_tile: Callable[[int, int], None] | None = None,
    on_seam: Callable[[Any, Any], None] | None = None,
) -> Iterator[Any]:
    """What `tiled` returns, in bands of rows (..., n, scale w) from top to bottom: each when its tiles are computed.

    No more than one band is held, which is what a result larger than memory needs.

    Raises:
        ValueError: as `tiled`, whenever that is found.
    """
    height, width = _common_size(inputs)
    rows = cuts(height, window[0], overlap, multiple)
    columns = cuts(width, window[1], overlap, multiple)
    seams = _Seams(on_seam if overlap else None, rows, columns, scale, blend)
    before: Any = None  # rows that the tiles above have added to, and those below will
    for index, row in enumerate(rows):
        fade = row.fade if blend else (0, 0)
        top, bottom = row.kept[0] - fade[0], row.kept[1] + fade[1]
        kept = (row.kept[0] - top, row.kept[1] - top)
        moved = replace(row, start=row.start - top, stop=row.stop - top, kept=kept)
        band: Any = None
        for number, column in enumerate(columns):
            tile = _tile(function, inputs, row, column, scale)
            seams.see(tile, row, column)
            if band is None:
                band = _zeros(tile, scale * (bottom - top), scale * width)
                if before is not None:
                    band[..., : before.shape[-2], :] = before
            _paste(tile, band, moved, column, scale, blend)
            del tile
            if on_tile is not None:
                on_tile(index * len(columns) + number + 1, len(rows) * len(columns))
        done = scale * (row.kept[1] - fade[1] - top)
        before = band[..., done:, :] + 0 if fade[1] else None
        yield band[..., :done, :]


def cuts(size: int, window: int, overlap: int, multiple: int = 1) -> list[Cut]:
    """The fewest tiles of at most `window` that cover `size` pixels, and the smallest that are as few.

    k tiles of n pixels cover k n - 2 (k - 1) overlap. Neighbours meet in the middle of what both cover.

    Raises:
        ValueError: a number that is not positive (overlap: negative), or a window without room for what is kept.
    """
    if min(size, window, multiple) < 1 or overlap < 0:
        raise ValueError(
            f"size {size}, window {window}, multiple {multiple}, overlap {overlap}; wanted an overlap of 0 or more "
            "and the others above 0; correct them"
        )
    if size <= window:
        return [Cut(0, size, (0, size))]
    overlap, window = _up(overlap, multiple), window // multiple * multiple
    if window <= 2 * overlap:
        raise ValueError(
            f"a window of {window} pixels has no room beside an overlap of {overlap} on both sides; wanted "
            f"{2 * overlap + multiple} or more; give more memory, or overlap less"
        )
    full = _up(size, multiple)
    count = _tile_count(full, window, overlap)
    length = _up(-(-(full + 2 * (count - 1) * overlap) // count), multiple)
    steps = max(1, count - 1)
    starts = [(full - length) // multiple * i // steps * multiple for i in range(count)]
    meets = [0, *((start + before + length) // 2 for before, start in pairwise(starts)), size]
    halves = [0, *_fades(meets, overlap // 4), 0]
    return [
        Cut(start, min(start + length, size), (meets[i], meets[i + 1]), (halves[i], halves[i + 1]))
        for i, start in enumerate(starts)
    ]


def window_for(
    memory_mb: float | int,
    bytes_per_pixel: float | int,
    base_mb: float | int,
    *,
    size: tuple[int, int],
    overlap: int,
    multiple: int = 1,
) -> tuple[int, int]:
    """The (height, width) of tiles of one image that cost the least computation within a memory budget.

    Args:
        memory_mb: the budget, in MB of 2^20 bytes.
        bytes_per_pixel: what the function needs for each pixel of a tile while it runs.
        base_mb: what is needed whatever the tiles are: the program, weights, inputs and the whole result.
        size: height and width of the image; it is returned where it fits as a whole.
        overlap, multiple: as for `tiled`.

    Raises:
        ValueError: the budget does not hold the smallest tile; the message says how much would.

    >>> window_for(100, 1000, 20, size=(512, 512), overlap=16)
    (272, 272)
    """
    height, width = (_up(one, multiple) for one in size)
    overlap = _up(overlap, multiple)
    area = (memory_mb - base_mb) * 2**20 / bytes_per_pixel
    best = None
    for rows in range(1, height // multiple + 1):
        tall = _up(-(-(height + 2 * (rows - 1) * overlap) // rows), multiple)
        if rows > 1 and tall <= 2 * overlap:
            break
        wide = min(int(max(0.0, area) // tall) // multiple * multiple, width)
        if wide < width and wide <= 2 * overlap:
            continue
        columns = 1 if wide == width else _tile_count(width, wide, overlap)
        wide = _up(-(-(width + 2 * (columns - 1) * overlap) // columns), multiple)
        work = (rows * tall * columns * wide, rows * columns)
        if best is None or work < best[0]:
            best = work, (tall, wide)
    if best is None:
        least = min(height, 2 * overlap + multiple) * min(width, 2 * overlap + multiple)
        raise ValueError(
            f"{memory_mb:.0f} MB of memory do not hold the smallest tile, with {overlap} pixels of context on each "
            f"side; wanted {base_mb + least * bytes_per_pixel / 2**20 + 1:.0f} MB or more; give more, "
            "or cut a smaller picture"
        )
    return best[1]


def _up(number: int, multiple: int) -> int:
    """The next multiple."""
    return -(-number // multiple) * multiple


def _tile_count(size: int, window: int, overlap: int) -> int:
    """The fewest k with k (window - 2 overlap) >= size - 2 overlap."""
    return max(1, -(-(size - 2 * overlap) // (window - 2 * overlap)))


def _fades(meets: list[int], most: int) -> list[int]:
    """Half the width of the band around each meeting: at most `most`, and clear of the next band."""
    widths = [after - before for before, after in pairwise(meets)]
    return [min(most, before // 2, after // 2) for before, after in pairwise(widths)]


def _common_size(inputs: Sequence[Any]) -> tuple[int, int]:
    """Height and width of all inputs."""
    sizes = {tuple(one.shape[-2:]) for one in inputs}
    if len(sizes) != 1 or len(size := sizes.pop()) != 2 or 0 in size:
        shapes = ", ".join(str(tuple(one.shape)) for one in inputs)
        raise ValueError(f"inputs of shapes {shapes}; wanted one or more of one height and width; cut them alike")
    return size


def _tile(function: Callable[..., Any], inputs: Sequence[Any], row: Cut, column: Cut, scale: int) -> Any:
    """The function's result for one cut of all inputs."""
    tile = function(*(one[..., row.start : row.stop, column.start : column.stop] for one in inputs))
    wanted = (scale * (row.stop - row.start), scale * (column.stop - column.start))
    if tuple(tile.shape[-2:]) != wanted:
        raise ValueError(
            f"the function returned {tuple(tile.shape[-2:])} for a tile of {row.stop - row.start}x"
            f"{column.stop - column.start}; wanted {wanted}; correct scale={scale}, or the function"
        )
    return tile


class _Seams:
    """Hands `on_seam` what each tile and the one before it give for the band along which they meet."""

    def __init__(
        self, on_seam: Callable[[Any, Any], None] | None, rows: list[Cut], columns: list[Cut], scale: int, blend: bool
    ):
        self.on_seam, self.scale, self.blend = on_seam, scale, blend
        self.axis, self.end = (1, columns[-1]) if len(columns) > 1 else (0, rows[-1])
        self.before: Any = None

    def see(self, tile: Any, *cuts: Cut) -> None:
        """Take the next tile, in the order of reading, and its cuts along rows and columns."""
        if self.on_seam is None:
            return
        if self.before is not None:
            self.on_seam(self.before, self.band(tile, cuts, 0))
        going_on = cuts[self.axis] != self.end
        self.before = self.band(tile, cuts, 1) + 0 if going_on else None  # a view would hold all of the tile

    def band(self, tile: Any, cuts: tuple[Cut, ...], end: int) -> Any:
        """What a tile gives around one end of what is kept of it."""
        ranges = [cut.kept for cut in cuts]
        meeting, half = ranges[self.axis][end], max(1, cuts[self.axis].fade[end]) if self.blend else 1
        ranges[self.axis] = (meeting - half, meeting + half)
        rows, columns = (
            slice(self.scale * (first - cut.start), self.scale * (last - cut.start))
            for cut, (first, last) in zip(cuts, ranges, strict=True)
        )
        return tile[..., rows, columns]


def _zeros(tile: Any, height: int, width: int) -> Any:
    """Room for the whole result, of the tile's kind."""
    shape = (*tile.shape[:-2], height, width)
    return tile.new_zeros(shape) if isinstance(tile, Tensor) else np.zeros(shape, tile.dtype)


def _paste(tile: Any, result: Any, row: Cut, column: Cut, scale: int, blend: bool) -> None:
    """Write what is kept of a tile, or add it with weights that fall to 0 across the bands."""
    areas, places = [], []
    for cut in (row, column):
        before, after = cut.fade if blend else (0, 0)
        first, last = cut.kept[0] - before, cut.kept[1] + after
        areas.append(slice(scale * first, scale * last))
        places.append(slice(scale * (first - cut.start), scale * (last - cut.start)))
    part = tile[..., places[0], places[1]]
    if not blend:
        result[..., areas[0], areas[1]] = part
        return
    weights = np.outer(_ramp(row, scale), _ramp(column, scale)).astype(np.float32)
    factor = torch.from_numpy(weights).to(part) if isinstance(part, Tensor) else weights.astype(part.dtype)
    result[..., areas[0], areas[1]] += part * factor


def _ramp(cut: Cut, scale: int) -> np.ndarray:
    """Weights along one axis: those of two neighbours add up to 1 at every pixel of the band that they share."""
    before, after = (2 * scale * half for half in cut.fade)
    inner = scale * (cut.kept[1] - cut.kept[0]) - before // 2 - after // 2
    rise, fall = ((np.arange(band) + 0.5) / max(band, 1) for band in (before, after))
    return np.concatenate([rise, np.ones(inner), fall[::-1]])
