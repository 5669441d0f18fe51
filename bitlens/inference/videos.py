"""Measurements in, video out: `reconstruct`, and the steps that it is made of."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from bitlens.engine.registry import Name
from bitlens.inference.starting import Started, start
from bitlens.inference.tiling import Tiling, choose_tiling
from bitlens.progress import progress

if TYPE_CHECKING:
    from bitlens.data.recording import Crop
    from bitlens.data.stacks import Stack

__all__ = ["Reconstruction", "for_mosaics", "rebuilt", "reconstruct", "reconstructions", "score"]


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What came of a recording, and what was decided on the way."""

    video: np.ndarray | None
    """(n t, h, w), in colour (n t, h, w, 3); black 0, white 1, not clipped. None where it was written to a file."""
    frames: int
    seconds_per_measurement: list[float]
    psnr: float | None
    """dB against the true video, mean over frames (`metrics.psnr_sci`). None where that is not known."""
    ssim: float | None
    model: str
    engine: str
    size: tuple[int, int, int]
    """Frames of a measurement, height and width."""
    gain: float
    """Raw value of one white frame through an open pixel."""
    gain_source: str
    """"file", "given" or "estimated"."""
    notes: tuple[str, ...]
    """What was decided or looks odd about the recording; what is probably wrong starts with 'warning:'."""
    tiles: str
    """How it was cut to fit into memory; empty where it was not."""


def reconstruct(
    measurement: "np.ndarray | str | os.PathLike[str]",
    mask: "np.ndarray | str | os.PathLike[str] | None" = None,
    *,
    model: "str | os.PathLike[str] | Started | None" = None,
    engine: Name = "auto",
    out: str | os.PathLike[str] | None = None,
    fps: float | int = 10.0,
    memory_mb: int | None = None,
    key: str | None = None,
    axes: str | None = None,
    mask_key: str | None = None,
    mask_axes: str | None = None,
    crop: "Crop | None" = None,
    gain: float | int | None = None,
    brightness: float | int = 0.4,
    allow_saturated: bool = False,
    dark: str | os.PathLike[str] | None = None,
    flat: str | os.PathLike[str] | None = None,
    bayer: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Reconstruction:
    """Rebuild the video behind coded measurements; no more than one of them is held at a time where it is written.

    Args:
        measurement: raw camera values (h, w) or (n, h, w), or a file or folder of them as for `data.read_capture`.
        mask: (t, h, w), or its file. None: the one in the measurement's own file.
        model: a shipped name, the path of a checkpoint, "gap-tv", or what `start` returned, for several recordings.
            None: the default network for video.
        engine: what computes (`engine.registry`); not looked at where the model was started already.
        out: a file or folder, as for `data.writers.video_writer`. None: the video is returned.
        fps: frames per second of what is written.
        memory_mb: what the process may use, in MB of 2^20 bytes; larger pictures run in tiles. None: 2048, or less
            where less is free.
        key, axes, mask_key, mask_axes, crop, gain, brightness, allow_saturated, dark, flat: as for
            `data.read_capture`.
        bayer: the sensor's colour mosaic, "RGGB" and so on: each of its four sites is rebuilt at half the size, and
            the mosaic becomes colours.
        say: is handed every note when it is known, before the work begins.

    Raises:
        FileNotFoundError: a file or model is missing.
        ValueError: a recording that cannot be one, a network for other things, or a result that is no video.
        MemoryError: it did not fit.

    Example:
        >>> found = bitlens.reconstruct("capture.mat", "mask.mat")  # doctest: +SKIP
        >>> found.video.shape, found.engine  # doctest: +SKIP
        ((8, 256, 256), 'OpenVINO, int8 in 99 of 99 layers')
    """
    from bitlens import checkpoint
    from bitlens.data.arrays import NAMED_SUFFIXES, array_names
    from bitlens.data.bayer import demosaic, pattern_at
    from bitlens.data.recording import open_recording
    from bitlens.data.writers import About, check_target, video_writer

    say = say or (lambda _: None)
    if out is not None:
        check_target(os.fspath(out))
    recording = open_recording(
        measurement, mask, key=key, axes=axes, mask_axes=mask_axes, mask_key=mask_key, crop=crop, gain=gain,
        brightness=brightness, allow_saturated=allow_saturated, dark=dark, flat=flat, bayer=bayer,
    )  # fmt: skip
    if mask is not None and not isinstance(measurement, np.ndarray) and not isinstance(mask, np.ndarray):
        path = Path(measurement)
        if path.suffix.lower() in NAMED_SUFFIXES and (mask_key or "mask") in array_names(path):
            say(f"mask: {mask}, not the one in {path}")
    for note in recording.notes:
        say(note)
    if not isinstance(model, Started):
        model = start(os.fspath(model or checkpoint.default("video-sci")), engine)
    say(f"engine: {model.how}")
    frames, height, width = recording.mask.shape
    sides = (height, width) if bayer is None else (height // 2, width // 2)
    tiles = choose_tiling(model.network, model.running, (frames, *sides), memory_mb)
    if tiles.note:
        say(tiles.note)
    pattern = bayer and pattern_at(bayer, *(crop or (0, 0))[:2])

    label, running, whole = model.about.name, model.running, tiles
    if pattern is not None:
        running, whole = for_mosaics(running, tiles, label), None
    total, held = frames * len(recording.measurement), []
    seconds, scores = [], []
    truth = iter(()) if recording.reference is None else recording.reference.groups(frames)
    sink = nullcontext(held.append) if out is None else video_writer(out, total, fps, About(group=frames))
    with sink as write:
        for video, spent in reconstructions(running, recording.measurement, recording.mask, label, whole):
            seconds.append(spent)
            write(video if pattern is None else demosaic(video, pattern))
            known = next(truth, None)
            if known is not None and video.ndim == 3:
                scores.append(score(video, known, ssim=min(height, width) >= 11))
    tiles.seams.remark(label)
    similar = [each["ssim"] for each in scores if each["ssim"] is not None]
    return Reconstruction(
        np.concatenate(held) if out is None else None,
        total,
        seconds,
        fmean(each["psnr"] for each in scores) if scores else None,
        fmean(similar) if similar else None,
        label,
        model.how,
        (frames, height, width),
        recording.gain,
        recording.gain_source,
        recording.notes,
        tiles.note,
    )


def rebuilt(
    network: Callable[..., Any], measurement: np.ndarray, mask: np.ndarray, label: str
) -> tuple[np.ndarray, list[float]]:
    """The videos of measurements (n, h, w) as one, under a progress bar.

    Returns:
        (video, seconds): (n t, h, w), or (n t, h, w, 3) in colour, not clipped; the time of each measurement.

    Raises:
        ValueError, MemoryError: as `reconstructions`.
    """
    videos, seconds = zip(*reconstructions(network, measurement, mask, label), strict=True)
    return np.concatenate(videos), list(seconds)


def reconstructions(
    network: Callable[..., Any],
    measurements: "np.ndarray | Stack",
    mask: np.ndarray,
    label: str,
    tiling: Tiling | None = None,
) -> Iterator[tuple[np.ndarray, float]]:
    """Run the network on measurements (h, w) one after the other, under a progress bar; no more than one is held.

    Videos that cannot be right are said in the end, as a remark (`CaptureWatch`).

    Yields:
        (video, seconds) for each: (t, h, w), or (t, h, w, 3) in colour, not clipped.

    Raises:
        ValueError: the network returned NaN, infinity or another shape.
        MemoryError: the network did not fit.
    """
    import torch

    from bitlens.inference.machine import keep_freed_memory
    from bitlens.inference.plausible import CaptureWatch

    tiles = 1 if tiling is None else tiling.count
    bar = progress("measurements" if tiles == 1 else f"tiles, {tiles} a measurement")
    keep_freed_memory()
    watch = CaptureWatch(label)
    masks = torch.from_numpy(np.ascontiguousarray(mask, np.float32))[None]  # 1 t h w
    with bar:
        task = bar.add_task(label, total=len(measurements) * tiles)
        for index, one in enumerate(measurements):
            begun = time.perf_counter()
            data = torch.from_numpy(np.ascontiguousarray(one, np.float32))[None], masks
            with torch.inference_mode():
                video = _run(network, data, label, tiling, lambda *_: bar.advance(task))  # c t h w
            if tuple(video.shape[1:]) != mask.shape:
                raise ValueError(
                    f"{label} returned frames of shape {tuple(video.shape[1:])}; wanted {mask.shape}; "
                    "this checkpoint does not fit the mask"
                )
            if not bool(video.isfinite().all()):
                raise ValueError(
                    f"{label} returned NaN or infinite values for measurement {index}; wanted finite "
                    "numbers; the checkpoint is damaged, or the measurement's scale is far off: pass gain=..."
                )
            spent, frames = time.perf_counter() - begun, video.permute(1, 2, 3, 0).squeeze(-1).numpy()
            watch.see(one, mask, frames)
            yield frames, spent  # t h w, or t h w 3
    watch.remark()


def _run(
    network: Callable[..., Any],
    data: tuple[Any, Any],
    label: str,
    tiling: Tiling | None,
    on_tile: Callable[[int, int], None],
) -> Any:
    """The video (c, t, h, w) of one measurement."""
    try:
        if tiling is not None:
            return tiling.run(network, *data, on_tile)[0]
        video = network(*data)[0]
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        height, width = data[0].shape[-2:]
        raise MemoryError(
            f"{label} ran out of memory on {height}x{width} pixels; wanted a smaller "
            "picture; cut it with crop=(top, left, height, width)"
        ) from error
    on_tile(1, 1)
    return video


def for_mosaics(running: Any, tiles: Tiling | None, label: str) -> Any:
    """A grey network as one for mosaics: each of the four sites is a capture of its own, and they are joined again."""
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


def score(video: np.ndarray, reference: np.ndarray, ssim: bool = True, film: bool = False) -> dict[str, Any]:
    """`psnr` (dB) and `ssim` in video SCI's convention, with `film` `flicker` and `banding` too; None: not asked for.

    None as well where there is none: one frame does not flicker, and without flat places there are no bands.
    """
    from bitlens.metrics import banding, flicker, psnr_sci, ssim_sci

    if video.ndim != 3:
        raise ValueError(
            f"a colour video {video.shape} came; wanted grey frames to compare with a grey reference; "
            "choose a grey network"
        )
    bands = banding(video, reference) if film and min(video.shape[1:]) > 1 else float("nan")
    return {
        "psnr": psnr_sci(video, reference),
        "ssim": ssim_sci(video, reference) if ssim else None,
        "flicker": flicker(video, reference) if film and len(video) > 1 else None,
        "banding": None if isnan(bands) else bands,
    }
