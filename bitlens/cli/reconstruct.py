"""`bitlens reconstruct`: measurements and their mask in, video out, with what was decided on the way."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro


@dataclass(frozen=True)
class Reconstruct:
    """Turn coded measurements into a video, with any checkpoint or with gap-tv, which needs no weights.

    The scale of the measurement is shown and, where nothing states it, estimated. Where the file carries the
    true video (`bitlens measure` stores it), PSNR and SSIM are printed.

    Example:
        bitlens reconstruct y.npz --model efficientsci-t-qsci-w4a4 --out video.gif
    """

    measurement: tyro.conf.Positional[Path]
    """Raw camera values: .npz .mat .npy .tif, .png of 8 or 16 bits, or a folder of such images."""
    model: str
    """A shipped checkpoint (see `bitlens models`), the path of a .safetensors, or gap-tv."""
    out: str
    """The video, by its suffix: .mp4 .mkv .avi .gif .tif .npz, or a folder (no suffix) of PNG frames."""
    mask: Path | None = None
    """The camera's mask: .mat .npz .npy .tif, a folder of images. Default: from the measurement's file."""
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
    allow_saturated: bool = False
    """Accept measurements in which more than 1 percent of the pixels are at the maximum."""
    engine: Literal["auto", "openvino", "onnxruntime", "torch", "reference"] = "torch"
    """What computes: torch (low bits are simulated), openvino (int8 on the CPU; auto takes it for low-bit networks),
    onnxruntime (integers, portable), or reference (integers in plain torch, slow)."""
    fps: float = 10.0
    """Frames per second of the video written."""
    json: Path | None = None
    """Also write scale, notes, times and scores to this file."""

    def run(self) -> None:
        from bitlens import checkpoint
        from bitlens.cli import in_flags, shared
        from bitlens.data.arrays import array_names
        from bitlens.data.capture import read_capture
        from bitlens.data.video import write_video
        from bitlens.report import console

        shared.check_positive("--fps", self.fps)
        out = console()
        with shared.output_video(self.out) as video_path, shared.output_file(self.json) as json_path:
            capture = read_capture(
                self.measurement, self.mask, key=self.key, axes=self.axes, mask_axes=self.mask_axes,
                crop=shared.parse_crop(self.crop), gain=self.gain, brightness=self.brightness,
                allow_saturated=self.allow_saturated,
            )  # fmt: skip
            beside = self.measurement.suffix.lower() in (".mat", ".npz") and array_names(self.measurement)
            if self.mask and beside and "mask" in beside:
                out.print(f"mask: {self.mask}, not the one in {self.measurement}")
            for note in capture.notes:
                out.print(in_flags(note), style="yellow" if note.startswith("warning:") else None)
            network = checkpoint.load(self.model)
            about = checkpoint.describe(self.model)
            running, how = shared.choose_engine(network, self.engine)
            out.print(f"engine: {how}")
            video, seconds = shared.reconstruct(running, capture.measurement, capture.mask, about.name)
            result: dict[str, Any] = {"frames": len(video), "seconds_per_measurement": seconds}
            if capture.reference is not None and video.ndim == 3:
                known = video[: len(capture.reference)]
                result |= shared.score(known, capture.reference, ssim=min(video.shape[1:]) >= 11)
            write_video(video_path, video, self.fps)
            if json_path is not None:
                result["settings"] = {
                    "measurement": str(self.measurement),
                    "mask": str(self.mask or self.measurement),
                    "model": about.name,
                    "sha256": None if about.path is None else checkpoint.weights_sha256(about.path),
                    "gain": capture.gain,
                    "gain_source": capture.gain_source,
                    "notes": list(capture.notes),
                    "engine": how,
                    **shared.describe_run(),
                }
                json_path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

        times = ", ".join(f"{value:.2f}" for value in seconds[:8]) + (", ..." if len(seconds) > 8 else "")
        out.print(f"{about.name}: {times} s per measurement of {len(capture.mask)} frames")
        if "psnr" in result:
            similar = "" if result["ssim"] is None else f", SSIM {result['ssim']:.4f}"
            out.print(f"PSNR {result['psnr']:.2f} dB{similar} (psnr_sci: grey floats, mean over frames)")
        out.print(f"{self.out}: {len(video)} frames of {video.shape[1]}x{video.shape[2]}")
