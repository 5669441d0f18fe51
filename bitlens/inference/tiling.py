"""A picture that does not fit into memory goes through the network in tiles: how large, and how they are run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitlens.inference.plausible import Seams

if TYPE_CHECKING:
    from torch import Tensor, nn

DEFAULT_MB = 2048
"""The most that is used where --memory-mb is not given."""
DEAREST = 3.0
"""Exact tiles may compute this many times the picture's pixels; beyond that, less context is blended."""
CONTEXT = 48
"""Pixels of context of blended tiles. docs/engine.md has the deviation that was measured."""


@dataclass(frozen=True)
class Tiling:
    """How pictures of one size are run."""

    window: tuple[int, int]
    overlap: int
    multiple: int
    blend: bool
    count: int
    note: str
    """For people; empty where the picture is run as a whole."""
    seams: Seams
    """What was seen where tiles meet."""

    def run(
        self,
        running: Callable[..., Any],
        measurement: "Tensor",
        mask: "Tensor",
        on_tile: Callable[[int, int], None] | None = None,
    ) -> "Tensor":
        """The video (1, c, t, h, w) of a measurement (1, h, w) and its mask (1, t, h, w)."""
        from bitlens.tiles import tiled

        return tiled(
            running, [measurement, mask], window=self.window, overlap=self.overlap, multiple=self.multiple,
            blend=self.blend, on_tile=on_tile, on_seam=self.seams.see,
        )  # fmt: skip


def choose_tiling(
    network: "nn.Module", running: Callable[..., Any], mask_shape: tuple[int, int, int], memory_mb: int | None
) -> Tiling:
    """The tiles that cost the least computation within a budget for the whole process; one, where that fits.

    Args:
        network: with `radius` and `alignment`.
        running: what computes (the network itself, or an engine).
        mask_shape: frames, height and width.
        memory_mb: the budget in MB; None: 2048, or half of the free memory beside what is in use where that is less.

    Raises:
        ValueError: the budget does not hold the smallest tile.
    """
    import torch

    from bitlens.engine.memory import bytes_per_pixel, fixed_mb, patches_mb
    from bitlens.engine.registry import memory_of
    from bitlens.tiles import cuts, window_for

    frames, height, width = mask_shape
    kind = memory_of(running, network)
    need = bytes_per_pixel(network, frames, kind, getattr(running, "precision", "f32"))
    colours = getattr(network, "config", {}).get("color_ch", getattr(network, "config", {}).get("color_channels", 1))
    results = 2 * 4 * colours * frames * height * width / 2**20  # the video, and room to look at it
    base = used_mb() + fixed_mb(network, torch.get_num_threads()) + results
    budget = default_mb() if memory_mb is None else memory_mb
    radius, multiple = int(network.radius), int(network.alignment)  # type: ignore[arg-type]

    def planned(context: int) -> tuple[Tiling, float]:
        overlap = context + 1 if context >= radius else context  # one more, and neighbours can be compared
        patches = more = 0.0  # bytes for each pixel; small tiles need more of them than large ones
        while True:
            patches = more
            window = window_for(budget, need + patches, base, size=(height, width), overlap=overlap, multiple=multiple)
            sides = min(window[0], height), min(window[1], width)
            more = 2**20 * patches_mb(network, frames, *sides) / (sides[0] * sides[1]) if kind == "torch" else 0.0
            if more <= patches:
                break
        rows, columns = cuts(height, window[0], overlap, multiple), cuts(width, window[1], overlap, multiple)
        count = len(rows) * len(columns)
        text = f"{len(rows)} x {len(columns)} tiles of {sides[0]}x{sides[1]} within {budget} MB"
        text += f", {context} pixels of context: " + (
            "all that the network sees, so no seams"
            if context >= radius
            else f"the network sees {radius}, so tiles are blended and differ a little from the whole"
        )
        blend = context < radius
        plan = Tiling(window, overlap, multiple, blend, count, text if count > 1 else "", Seams(blend))
        return plan, count * sides[0] * sides[1] / (height * width)

    less = min(radius, CONTEXT)
    try:
        exact, cost = planned(radius)
    except ValueError:
        if less == radius:
            raise
        cost = float("inf")
    if cost <= DEAREST or less == radius:
        return exact
    return planned(less)[0]


def default_mb() -> int:
    """2048, or what is in use and half of the memory that is free, where that is less."""
    free = free_mb()
    return DEFAULT_MB if free is None else min(DEFAULT_MB, int(used_mb() + free / 2))


def free_mb() -> float | None:
    """MB that this process may still take, by the system or its control group; None where neither says (no Linux)."""
    found = []
    memory = _fields(Path("/proc/meminfo"))
    if "MemAvailable" in memory:
        found.append(memory["MemAvailable"] / 1024)
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        if limit != "max":
            found.append((int(limit) - int(used)) / 2**20)
    except (OSError, ValueError):
        pass  # no control group of version 2
    return max(0.0, min(found)) if found else None


def used_mb() -> float:
    """MB of memory that this process holds now; on systems that do not tell, what a loaded network takes."""
    return _fields(Path("/proc/self/status")).get("VmRSS", 400 * 1024) / 1024


def _fields(path: Path) -> dict[str, int]:
    """`name: number kB` of a file of /proc; nothing where there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    parts = (line.split() for line in lines)
    return {part[0].rstrip(":"): int(part[1]) for part in parts if len(part) == 3 and part[2] == "kB"}
