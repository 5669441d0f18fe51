"""`bitlens calibrate`: recordings of a white scene in, the camera's mask out, with its checks and a picture of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Calibrate:
    """Make the mask that `reconstruct` needs: record a white scene once for each position of the mask, and the dark.

    Light the scene so that open pixels come near three quarters of the camera's range, and keep exposure and focus as
    they will be. Take each position several times (--repeats) for less noise, and the first once more at the end
    (--again), so that what moved or dimmed meanwhile is noticed. The mask, a .npz, has a picture beside it.

    Example:
        bitlens calibrate white.tif --dark dark.tif --out mask.npz
    """

    recordings: tyro.conf.Positional[tuple[Path, ...]]
    """One file or folder that holds all positions in order (.tif .npz .npy .mat, images), or one for each position,
    which are taken in the order of their names (2 before 10)."""
    dark: Path
    """Pictures in the dark, at the same exposure time, in any of these formats; their mean is subtracted."""
    out: Path
    """Where the mask goes: a .npz. A picture of it, .png, is put beside."""
    flat: Path | None = None
    """The white scene without the mask, to take out the unevenness of its light."""
    again: Path | None = None
    """The first position once more, recorded after the last."""
    repeats: int = 1
    """How many pictures of each position follow each other in one file or folder."""
    key: str | None = None
    """Name of the recordings in a .mat or .npz. Default: measurement or meas."""
    axes: str | None = None
    """Order of the recordings' axes in a .mat or .npz, thw or hwt. Default: by name."""

    def run(self) -> None:
        import numpy as np

        from bitlens.cli import in_flags, shared
        from bitlens.data.arrays import write_npz
        from bitlens.data.calibration import calibrate
        from bitlens.data.correction import mean_picture
        from bitlens.data.images import write_png
        from bitlens.report import console

        shared.check_positive("--repeats", self.repeats)
        picture = self.out.with_suffix(".png")
        with shared.output_file(self.out, ".npz") as mask_path, shared.output_file(picture) as picture_path:
            assert mask_path is not None and picture_path is not None
            names = ", ".join(map(str, self.recordings[:2])) + (", ..." if len(self.recordings) > 2 else "")
            found = calibrate(
                self.positions(),
                mean_picture(self.dark, "dark"),
                flat=None if self.flat is None else mean_picture(self.flat, "flat"),
                again=None if self.again is None else mean_picture(self.again, "again"),
                label=names,
            )
            write_npz(mask_path, mask=found.mask, axes="thw", white=found.white, hot_pixels=found.hot)
            shown = [found.mask[0], found.mask[-1], found.mask.mean(axis=0) / found.mask.mean(axis=0).max()]
            write_png(picture_path, np.concatenate(shown, axis=1))

        out = console()
        for note in found.notes:
            out.print(in_flags(note), style="yellow" if note.startswith("warning:") else None)
        frames, height, width = found.mask.shape
        out.print(
            f"{self.out}: a mask of {frames} frames of {height}x{width}; {picture}: its first, its last, their mean"
        )
        out.print(f"next: bitlens reconstruct FILE --mask {self.out} --dark {self.dark} --model gap-tv --out video.gif")

    def positions(self) -> "list[np.ndarray]":
        """The mean picture (h, w) of each position."""
        from bitlens.data.correction import mean_picture
        from bitlens.data.images import natural_key
        from bitlens.data.stacks import open_raw

        paths = [*self.recordings]
        if not paths:
            raise ValueError("no recordings came; wanted a file, a folder or one file for each position; name them")
        if len(paths) > 1:
            paths.sort(key=lambda path: [natural_key(Path(part)) for part in path.parts])
            return [mean_picture(path, "white") for path in paths]
        path = paths[0]
        stack = open_raw(path, self.key, self.axes, ("measurement", "meas"))
        if len(stack) % self.repeats:
            raise ValueError(
                f"{path} holds {len(stack)} pictures, and --repeats is {self.repeats}; wanted as many of each "
                "position; change --repeats, or record the missing ones"
            )
        return [group.mean(axis=0) for group in stack.groups(self.repeats)]
