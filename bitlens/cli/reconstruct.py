"""`bitlens reconstruct`: measurements and their mask in, video out, with what was decided on the way."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

if TYPE_CHECKING:
    from bitlens.cli.tiling import Tiling
    from bitlens.data.recording import Recording


@dataclass(frozen=True)
class Reconstruct:
    """Turn coded measurements into a video, with any checkpoint or with gap-tv, which needs no weights.

    The scale of the measurement is shown and, where nothing states it, estimated. Where the file carries the
    true video (`bitlens measure` stores it), PSNR and SSIM are printed.

    Example:
        bitlens reconstruct y.npz --out video.gif
        bitlens reconstruct y.npz --model efficientsci-t-qsci-w4a4 --out video.gif
    """

    measurement: tyro.conf.Positional[Path]
    """Raw camera values: .npz .mat .npy .zarr .tif, .png of 8 or 16 bits, or a folder of such images."""
    out: str
    """The video, by its suffix: .mp4 .mkv .avi .gif .tif .npz .zarr, or a folder (no suffix) of PNG frames."""
    model: str | None = None
    """A shipped checkpoint (see `bitlens models`), the path of a .safetensors, or gap-tv. Default: the one that is
    marked in `bitlens models`."""
    mask: Path | None = None
    """The camera's mask: .mat .npz .npy .zarr .tif, a folder of images. Default: from the measurement's file."""
    gain: float | None = None
    """Raw value of one white frame through an open pixel. Default: from the file, or estimated."""
    brightness: float = 0.4
    """Mean brightness of the scene that the estimate of the gain assumes, in (0, 1]."""
    crop: str | None = None
    """Cut top,left,height,width (pixels) from both measurement and mask, for example 0,0,256,256."""
    key: str | None = None
    """Name of the measurement in a .mat or .npz. Default: measurement or meas."""
    axes: str | None = None
    """Order of the measurement's axes, thw or hwt. Default: by name."""
    mask_axes: str | None = None
    """Order of the mask's axes, thw or hwt. Default: by name."""
    mask_key: str | None = None
    """Name of the mask in a .mat or .npz. Default: mask."""
    allow_saturated: bool = False
    """Accept measurements in which more than 1 percent of the pixels are clipped."""
    dark: Path | None = None
    """Pictures that the camera took in the dark, in any format of measurements: their mean is subtracted."""
    flat: Path | None = None
    """Pictures of an even white surface without a mask: their shape is divided out, where the mask lacks it."""
    bayer: str | None = None
    """The colour mosaic of the sensor: RGGB, BGGR, GRBG or GBRG, the colours of its upper left 2x2 pixels, row by row.
    Each of the four is rebuilt at half the size, and the mosaic becomes colours (Malvar), without white balance."""
    engine: Literal["auto", "native", "openvino", "onnxruntime", "torch", "reference"] = "auto"
    """What computes: torch (low bits are simulated), native (our kernels, where they are built), openvino (int8 on the
    CPU), onnxruntime (integers, portable), or reference (integers in plain torch, slow). auto: for networks that
    they know native or openvino, as bitlens benchmark measured here or by a rule; else torch."""
    memory_mb: int | None = None
    """Memory that the process may use. A picture too large for it is run in tiles. Default: 2048, or less where
    less is free."""
    fps: float = 10.0
    """Frames per second of the video written."""
    json: Path | None = None
    """Also write scale, notes, times and scores to this file."""

    def run(self) -> None:
        from bitlens import checkpoint
        from bitlens.cli import in_flags, shared, tiling
        from bitlens.data.arrays import NAMED_SUFFIXES, array_names
        from bitlens.data.bayer import pattern_at
        from bitlens.data.recording import open_recording
        from bitlens.report import console

        shared.check_positive("--fps", self.fps)
        shared.check_positive("--memory-mb", 1 if self.memory_mb is None else self.memory_mb)
        out = console()
        with shared.output_video(self.out) as video_path, shared.output_file(self.json) as json_path:
            recording = open_recording(
                self.measurement, self.mask, key=self.key, axes=self.axes, mask_axes=self.mask_axes,
                mask_key=self.mask_key, crop=shared.parse_crop(self.crop), gain=self.gain, brightness=self.brightness,
                allow_saturated=self.allow_saturated, dark=self.dark, flat=self.flat, bayer=self.bayer,
            )  # fmt: skip
            beside = self.measurement.suffix.lower() in NAMED_SUFFIXES and array_names(self.measurement)
            if self.mask and beside and (self.mask_key or "mask") in beside:
                out.print(f"mask: {self.mask}, not the one in {self.measurement}")
            for note in recording.notes:
                out.print(in_flags(note), style="yellow" if note.startswith("warning:") else None)
            model = self.model or checkpoint.default("video-sci")
            about = checkpoint.describe(model)
            if about.task != "video-sci":
                raise ValueError(
                    f"{about.name} is a network for {about.task}; wanted one that reconstructs video; enlarge pictures "
                    "with bitlens upscale, or choose a model of bitlens models"
                )
            network = checkpoint.load(model)
            running, how = shared.choose_engine(network, self.engine)
            out.print(f"engine: {how}")
            frames, height, width = recording.mask.shape
            size = (height, width) if self.bayer is None else (height // 2, width // 2)
            tiles = tiling.choose_tiling(network, running, (frames, *size), self.memory_mb)
            if tiles.note:
                out.print(tiles.note)
            pattern = self.bayer and pattern_at(self.bayer, *(shared.parse_crop(self.crop) or (0, 0))[:2])
            result = self.stream(running, recording, about.name, tiles, video_path, pattern)
            if json_path is not None:
                result["settings"] = {
                    "measurement": str(self.measurement),
                    "mask": str(self.mask or self.measurement),
                    "model": about.name,
                    "sha256": None if about.path is None else checkpoint.weights_sha256(about.path),
                    "gain": recording.gain,
                    "gain_source": recording.gain_source,
                    "notes": list(recording.notes),
                    "engine": how,
                    "tiles": tiles.note or None,
                    **shared.describe_run(),
                }
                json_path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

        seconds = result["seconds_per_measurement"]
        times = ", ".join(f"{value:.2f}" for value in seconds[:8]) + (", ..." if len(seconds) > 8 else "")
        out.print(f"{about.name}: {times} s per measurement of {len(recording.mask)} frames")
        if "psnr" in result:
            similar = "" if result["ssim"] is None else f", SSIM {result['ssim']:.4f}"
            out.print(f"PSNR {result['psnr']:.2f} dB{similar} (psnr_sci: grey floats, mean over frames)")
        height, width = recording.mask.shape[1:]
        out.print(f"{self.out}: {result['frames']} frames of {height}x{width}")

    def stream(
        self,
        running: Any,
        recording: "Recording",
        label: str,
        tiles: "Tiling | None",
        video_path: str,
        bayer: str | None = None,
    ) -> dict[str, Any]:
        """Reconstruct, write and score one measurement after the other, and hold no more than one."""
        from statistics import fmean

        from bitlens.cli import shared
        from bitlens.data.bayer import demosaic
        from bitlens.data.writers import About, video_writer

        frames, height, width = recording.mask.shape
        total = frames * len(recording.measurement)
        truth = iter(()) if recording.reference is None else recording.reference.groups(frames)
        seconds, scores = [], []
        if bayer is not None:
            running, tiles = for_mosaics(running, tiles, label), None
        with video_writer(video_path, total, self.fps, About(group=frames)) as write:
            for video, time in shared.reconstructions(running, recording.measurement, recording.mask, label, tiles):
                seconds.append(time)
                write(video if bayer is None else demosaic(video, bayer))
                known = next(truth, None)
                if known is not None and video.ndim == 3:
                    scores.append(shared.score(video, known, ssim=min(height, width) >= 11))
        result: dict[str, Any] = {"frames": total, "seconds_per_measurement": seconds}
        if scores:
            result["psnr"] = fmean(score["psnr"] for score in scores)
            result["ssim"] = None if scores[0]["ssim"] is None else fmean(score["ssim"] for score in scores)
        return result


def for_mosaics(running: Any, tiles: "Tiling | None", label: str) -> Any:
    """A grey network as one for mosaics: each of the four sites is a capture of its own, and they are joined again."""
    import numpy as np
    import torch

    from bitlens.data.bayer import join, split

    def run(measurement: Any, mask: Any) -> Any:
        parts = []
        for site in zip(split(measurement.numpy()), split(mask.numpy()), strict=True):
            part, part_mask = (torch.from_numpy(np.ascontiguousarray(array)) for array in site)
            video = running(part, part_mask) if tiles is None else tiles.run(running, part, part_mask)  # 1 c t h/2 w/2
            if video.shape[1] != 1:
                raise ValueError(
                    f"--bayer with {label}, which makes colours of a mosaic itself; wanted a network for grey video; "
                    "leave --bayer out, or choose another network"
                )
            parts.append(video.numpy())
        return torch.from_numpy(join(parts))

    return run
