"""`bitlens measure`: simulate the camera, a video file in, coded measurements with their mask out."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Measure:
    """Simulate the camera: every group of T frames becomes one coded picture, y = sum_t mask_t * x_t.

    The .npz holds the measurements, the mask and, unless --no-reference is given, the frames that were
    measured, so that `bitlens reconstruct` needs nothing else and can score its result.

    Example:
        bitlens measure clip.mp4 --mask random --frames 8 --out y.npz
    """

    video: tyro.conf.Positional[Path]
    """The video: .mp4 .avi .mkv .mov .webm .gif .avif .webp .tif .npz .npy .mat, or a folder of images. Read as grey,
    turned as players show it."""
    mask: str
    """The mask: .mat .npz .npy .tif or a folder of images; or random, with half of the pixels open."""
    out: Path
    """Where the measurements go: a .npz."""
    frames: int | None = None
    """T, the frames in one measurement, for a random mask. Default: 8."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise on the measurement, where a white open frame counts 1."""
    seed: int = 0
    """Seed of the random mask and of the noise."""
    crop: str | None = None
    """Cut top,left,height,width (pixels) from the video first, for example 0,0,256,256."""
    reference: bool = True
    """Store the measured frames too, for scoring."""

    def run(self) -> None:
        from bitlens.cli.shared import check_other, check_seed, output_file, parse_crop
        from bitlens.data.capture import simulate, write_capture
        from bitlens.data.masks import random_mask, read_mask
        from bitlens.data.video import read_video
        from bitlens.report import console

        check_seed(self.seed)
        check_other(self.out, self.video, self.mask)
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"--noise {self.noise:g}; wanted a finite number >= 0; change it")
        crop = parse_crop(self.crop)
        with output_file(self.out, ".npz") as temporary:
            assert temporary is not None
            video = read_video(self.video)
            if self.mask == "random":
                frames = 8 if self.frames is None else self.frames
                height, width = video.shape[1:] if crop is None else crop[2:]
                mask = random_mask(frames, height, width, self.seed)
            else:
                mask = read_mask(self.mask)
                if self.frames not in (None, len(mask)):
                    raise ValueError(
                        f"--frames {self.frames}, but the mask {self.mask} has {len(mask)}; wanted the same; "
                        "leave --frames out"
                    )
            capture = simulate(video, mask, self.noise, self.seed, crop)
            if not self.reference:
                capture = replace(capture, reference=None)
            write_capture(temporary, capture)

        count, height, width = capture.measurement.shape
        out = console()
        for note in capture.notes:
            out.print(f"note: {note}", style="yellow")
        out.print(f"{self.out}: {count} measurement(s) of {height}x{width}, {len(capture.mask)} frames in each")
        out.print(f"next: bitlens reconstruct {self.out} --model gap-tv --out video.gif")
