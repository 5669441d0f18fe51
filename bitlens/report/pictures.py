"""What people look at: tables in the terminal, side-by-side animations and contact sheets of videos.

Pictures are grey floats in [0, 1]; values outside are clipped when they are written.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from rich import box
from rich.console import Console
from rich.table import Table

from bitlens.data.images import write_png
from bitlens.data.video import write_video

__all__ = [
    "Panel", "console", "contact_sheet", "exposed", "side_by_side", "table", "write_contact_sheet",
    "write_side_by_side",
]  # fmt: skip

PAPER, INK, FAINT = 0.16, 0.97, 0.68
"""Grey levels of the background, of titles and of captions."""

GAP = 10
"""Pixels between panels and around them."""

TITLE, CAPTION = 17, 14
"""Sizes of the two lines of text over a panel, in pixels."""

HEAD = TITLE + CAPTION + 12
"""Height of the text over a panel."""

NARROWEST, WIDEST = 192, 512
"""Panels are enlarged or shrunk by whole factors until their width lies between these."""


@dataclass(frozen=True, eq=False)
class Panel:
    """One video with the two lines of text over it."""

    title: str
    """What it is: "gap-tv"."""
    caption: str
    """What to know about it: "27.31 dB, 0 MB"."""
    video: Float[np.ndarray, "t h w"]
    """Grey, in [0, 1]; one frame stands still."""


def console() -> Console:
    """Where tables go: stdout, plainly; 120 columns wide where that is no terminal."""
    width = None if sys.stdout.isatty() else 120
    return Console(width=width, highlight=False, markup=False, emoji=False, soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> Table:
    """A table whose first `texts` columns are text and whose other columns are numbers, set to the right.

    Columns without names have no line of headings.
    """
    made = Table(
        title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold",
        pad_edge=False, show_header=any(columns),
    )  # fmt: skip
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index < texts else "right", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def exposed(measurement: Float[np.ndarray, "n h w"], frames: int) -> Float[np.ndarray, "nt h w"]:
    """Measurements as a video to look at: each stands for its `frames` frames, the top 0.2 % are white."""
    white = max(float(np.quantile(measurement, 0.998)), 1e-12)
    return np.repeat(np.clip(measurement / white, 0.0, 1.0), frames, axis=0).astype(np.float32)


def side_by_side(panels: Sequence[Panel]) -> Float[np.ndarray, "t height width"]:
    """All panels in one video: up to three in one row, more in two; a bar at the bottom shows the time.

    Raises:
        ValueError: no panel, or videos that differ in size or length (a single frame goes with any length).
    """
    frames, height, width = _common_size(panels)
    columns = len(panels) if len(panels) <= 3 else -(-len(panels) // 2)
    rows = -(-len(panels) // columns)
    canvas = _canvas(rows * (HEAD + height + GAP) + 2 * GAP, columns * (width + GAP) + GAP)
    corners = [
        (GAP + (index // columns) * (HEAD + height + GAP), GAP + (index % columns) * (width + GAP))
        for index in range(len(panels))
    ]
    for panel, (top, left) in zip(panels, corners, strict=True):
        _label(canvas, panel, top, left, width)
    film = np.repeat(canvas[None], frames, axis=0)  # t height width
    for panel, (top, left) in zip(panels, corners, strict=True):
        film[:, top + HEAD : top + HEAD + height, left : left + width] = fitted(panel.video)
    for index, frame in enumerate(film):
        done = round((film.shape[2] - 2 * GAP) * (index + 1) / frames)
        frame[-GAP - 2 : -GAP + 2, GAP : GAP + done] = FAINT
    return film


def contact_sheet(measurement: Panel, panels: Sequence[Panel], columns: int = 4) -> Float[np.ndarray, "height width"]:
    """One picture: the measurement at the left, then a row for each panel with `columns` of its frames.

    The frames are spread evenly over the first measurement's; all rows show the same ones.

    Raises:
        ValueError: as `side_by_side`.
    """
    frames, height, width = _common_size([measurement, *panels])
    shown = sorted({round(index) for index in np.linspace(0, frames - 1, min(columns, frames))})
    row_height = HEAD + height + GAP
    canvas = _canvas(len(panels) * row_height + GAP, (len(shown) + 1) * (width + GAP) + 3 * GAP)
    _label(canvas, measurement, GAP, GAP, width)
    canvas[GAP + HEAD : GAP + HEAD + height, GAP : GAP + width] = fitted(measurement.video)[0]
    for row, panel in enumerate(panels):
        top, start = row * row_height + GAP, width + 4 * GAP
        _label(canvas, panel, top, start, len(shown) * (width + GAP) - GAP)
        video = fitted(panel.video)
        for column, index in enumerate(shown):
            left = start + column * (width + GAP)
            _write(canvas, f"frame {index + 1}", top + TITLE + 5, left, width, CAPTION, FAINT, anchor="ra")
            canvas[top + HEAD : top + HEAD + height, left : left + width] = video[min(index, len(video) - 1)]
    return canvas


def write_side_by_side(path: str | os.PathLike[str], panels: Sequence[Panel], fps: float = 6.0) -> None:
    """Write `side_by_side` as a GIF or movie, whole or not at all."""
    write_video(path, side_by_side(panels), fps)


def write_contact_sheet(path: str | os.PathLike[str], measurement: Panel, panels: Sequence[Panel]) -> None:
    """Write `contact_sheet` as a PNG, whole or not at all."""
    write_png(path, contact_sheet(measurement, panels))


def fitted(video: Float[np.ndarray, "t h w"]) -> Float[np.ndarray, "t h2 w2"]:
    """The video enlarged (pixels repeated) or shrunk (pixels averaged) by a whole factor, to fit a panel."""
    video = np.clip(video, 0.0, 1.0).astype(np.float32)
    width = video.shape[2]
    if width < NARROWEST:
        factor = -(-NARROWEST // width)
        return video.repeat(factor, axis=1).repeat(factor, axis=2)
    factor = -(-width // WIDEST)
    height, width = video.shape[1] // factor, width // factor
    cut = video[:, : height * factor, : width * factor].reshape(-1, height, factor, width, factor)
    return cut.mean(axis=(2, 4))


def _common_size(panels: Sequence[Panel]) -> tuple[int, int, int]:
    """(frames, height, width) of every panel as it is shown."""
    lengths = {len(panel.video) for panel in panels} - {1} or {1}
    sizes = {panel.video.shape[1:] for panel in panels}
    if not panels or len(lengths) != 1 or len(sizes) != 1:
        came = ", ".join(f"{panel.title} {panel.video.shape}" for panel in panels) or "no panel"
        raise ValueError(f"{came}; wanted videos (t, h, w) of one size and length; cut them to fit")
    height, width = fitted(panels[0].video[:1]).shape[1:]
    return lengths.pop(), height, width


def _canvas(height: int, width: int) -> np.ndarray:
    return np.full((height, width), PAPER, np.float32)


def _label(canvas: np.ndarray, panel: Panel, top: int, left: int, width: int) -> None:
    _write(canvas, panel.title, top, left, width, TITLE, INK)
    _write(canvas, panel.caption, top + TITLE + 5, left, width, CAPTION, FAINT)


def _write(
    canvas: np.ndarray, text: str, top: int, left: int, width: int, size: int, grey: float, anchor: str = "la"
) -> None:
    """Write one line of text at (top, left), smaller where it is wider than `width`; `ra`: to the right."""
    from PIL import Image, ImageDraw, ImageFont

    font: Any = ImageFont.load_default(size=size)
    while font.getlength(text) > width and size > 8:
        size -= 1
        font = ImageFont.load_default(size=size)
    strip = Image.new("L", (width, size + 6), 0)
    ImageDraw.Draw(strip).text((width if anchor == "ra" else 0, 0), text, 255, font=font, anchor=anchor)
    alpha = np.asarray(strip, np.float32) / 255
    window = canvas[top : top + strip.height, left : left + width]
    window += alpha[: window.shape[0], : window.shape[1]] * (grey - window)
