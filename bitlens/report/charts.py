"""Charts as SVG for a page: points with lines through them, whose colours and fonts are the page's."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

__all__ = ["Point", "Series", "scatter"]

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 18, 16, 46
TICKS = 5


@dataclass(frozen=True)
class Point:
    """One measurement."""

    x: float | int
    y: float | int
    label: str
    """Beside it; empty: none."""
    note: str
    """What is shown where the pointer rests."""


@dataclass(frozen=True)
class Series:
    """Points of one kind."""

    name: str
    points: Sequence[Point]
    line: bool = False
    """Whether a line goes through them."""


def scatter(series: Sequence[Series], x: str, y: str) -> str:
    """The points of all series, with axes named `x` and `y`; series get the page's classes s0, s1, ...

    Raises:
        ValueError: there is no point.
    """
    points = [point for one in series for point in one.points]
    if not points:
        raise ValueError("no point to draw; wanted one or more; leave the chart out")
    across, up = Axis([point.x for point in points]), Axis([point.y for point in points])

    def place(point: Point) -> tuple[float, float]:
        right, top = WIDTH - RIGHT, HEIGHT - BOTTOM
        return LEFT + across.share(point.x) * (right - LEFT), top - up.share(point.y) * (top - TOP)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y)} against {escape(x)}">']
    for tick in across.ticks:
        at = place(Point(tick, up.low, "", ""))[0]
        parts.append(f'<path class="grid" d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:g}</text>')
    for tick in up.ticks:
        at = place(Point(across.low, tick, "", ""))[1]
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{tick:g}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x)}</text>')
    parts.append(f'<text transform="translate(14 {middle})rotate(-90)" text-anchor="middle">{escape(y)}</text>')
    for index, one in enumerate(series):
        places = [place(point) for point in one.points]
        if one.line and len(places) > 1:
            path = "L".join(f"{a:.1f} {b:.1f}" for a, b in sorted(places))
            parts.append(f'<path class="line s{index}" d="M{path}"/>')
        for point, (a, b) in zip(one.points, places, strict=True):
            title = f"<title>{escape(point.note)}</title>"
            parts.append(f'<circle class="s{index}" cx="{a:.1f}" cy="{b:.1f}" r="5" tabindex="0">{title}</circle>')
            if point.label:
                end = a > WIDTH - 110
                anchor, shift = ("end", -9) if end else ("start", 9)
                top = b - 7 if index < 2 else b + 18  # of the third series below, as it lies among the others
                at = f'x="{a + shift:.1f}" y="{top:.1f}" text-anchor="{anchor}"'
                parts.append(f"<text {at}>{escape(point.label)}</text>")
    parts.append("</svg>")
    names = "".join(f'<span class="key s{i}">{escape(one.name)}</span>' for i, one in enumerate(series))
    return f"<figure>{''.join(parts)}<figcaption>{names}</figcaption></figure>"


class Axis:
    """A range that holds all values, between round numbers."""

    def __init__(self, values: Sequence[float | int]):
        low, high = min(values), max(values)
        room = (high - low) or abs(high) or 1.0
        step = 10 ** floor(log10(room / TICKS))
        step *= next(factor for factor in (1, 2, 5, 10) if room / (factor * step) <= TICKS)
        self.low, self.high = floor(low / step) * step, ceil(high / step) * step
        if self.low == self.high:
            self.high += step
        count = round((self.high - self.low) / step)
        self.ticks = [round(self.low + index * step, 10) for index in range(count + 1)]

    def share(self, value: float | int) -> float:
        """Where a value lies, 0 to 1."""
        return (value - self.low) / (self.high - self.low)
