"""Writes a video as it comes, a few frames at a time, whole or not at all."""

import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from bitlens.data.images import TIF_SUFFIXES, to_levels
from bitlens.files import atomic_folder, atomic_path

__all__ = ["WRITE_SUFFIXES", "import_av", "video_writer"]

WRITE_SUFFIXES = (".mp4", ".avi", ".mkv", ".gif", ".npz", ".tif", ".tiff")

Write = Callable[[np.ndarray], None]
"""Appends frames (t, h, w) or (t, h, w, 3), floats; clipped to [0, 1]."""


@contextmanager
def video_writer(path: str | os.PathLike[str], frames: int, fps: float | int = 25) -> Iterator[Write]:
    """Yield a function that appends frames to a video; at the end of the with block there is the whole file, or none.

    By suffix: `.avi .mkv` FFV1 (grey: lossless at 8 bits); `.mp4` H.264 in 4:2:0 (lossy; an odd height or width is
    padded by repeating the last row or column, since players want even sizes); `.gif` 8 bits; `.npz` float32 as
    `video`; `.tif` 16-bit grey or 8-bit colour pages; no suffix or a closing '/': a folder of 8-bit PNG frames.

    Args:
        path: a file, or a new or empty folder.
        frames: how many there will be.
        fps: frames per second, in files that know time.

    Raises:
        TypeError: frames that are no floats.
        ValueError: unknown suffix, wrong shape, NaN, PyAV is missing for a movie, or not as many frames as announced.
        OSError: the place cannot be written to.
    """
    folder = os.fspath(path).endswith(("/", os.sep))
    target = Path(path)
    suffix = target.suffix.lower()
    if folder or not suffix:
        kind, place = _folder_writer, atomic_folder(target)
    elif suffix in WRITE_SUFFIXES:
        kind, place = _KINDS[suffix], atomic_path(target)
    else:
        raise ValueError(
            f"cannot write a video to {path}; wanted {', '.join(WRITE_SUFFIXES)} or a folder; change the suffix"
        )
    came: list[tuple[int, ...]] = []

    with place as temporary, kind(temporary, frames, fps) as append:

        def write(video: np.ndarray) -> None:
            _check(video)
            if came and video.shape[1:] != came[0][1:]:
                raise ValueError(
                    f"frames of shape {video.shape[1:]} after {came[0][1:]}; wanted one size; correct them"
                )
            came.append(video.shape)
            for frame in video:  # one at a time, for the copies that are made of it
                append(np.clip(frame[None], 0.0, 1.0))

        yield write
        count = sum(shape[0] for shape in came)
        if count != frames:
            raise ValueError(f"{count} frames were written to {path}; wanted {frames}; announce as many as will come")


def import_av(path: Path) -> ModuleType:
    """PyAV, or how to get it."""
    try:
        import av
    except ImportError as error:
        raise ValueError(
            f"{path} is a movie and PyAV is not installed; wanted a reader and writer for it; "
            "run pip install 'bitlens[video]', or use .gif, .tif, .npz or a folder of PNG frames"
        ) from error
    return av


def _check(video: np.ndarray) -> None:
    """Refuse what is no video."""
    if not isinstance(video, np.ndarray) or video.dtype.kind != "f":
        came = video.dtype if isinstance(video, np.ndarray) else type(video).__name__
        raise TypeError(f"video to write is {came}; wanted a float numpy array in [0, 1]; convert it")
    if video.ndim not in (3, 4) or 0 in video.shape or (video.ndim == 4 and video.shape[-1] != 3):
        raise ValueError(
            f"video to write has shape {video.shape}; wanted (t, h, w) or (t, h, w, 3), not empty; reshape it"
        )
    if not np.isfinite(video).all():
        raise ValueError(
            "video to write holds NaN or infinite values; wanted finite numbers; find where they come from"
        )


@contextmanager
def _folder_writer(folder: Path, frames: int, fps: float | int) -> Iterator[Write]:
    """PNG frames of 8 bits."""
    from PIL import Image

    done = 0

    def append(video: np.ndarray) -> None:
        nonlocal done
        for frame in video:
            Image.fromarray(to_levels(frame)).save(folder / f"frame_{done:04d}.png")
            done += 1

    yield append


@contextmanager
def _tif_writer(path: Path, frames: int, fps: float | int) -> Iterator[Write]:
    """16-bit grey pages, or 8-bit colour pages."""
    from PIL import Image
    from PIL.TiffImagePlugin import AppendingTiffWriter

    with path.open("w+b") as file, AppendingTiffWriter(file) as pages:

        def append(video: np.ndarray) -> None:
            for frame in video:
                level = to_levels(frame, np.uint16 if frame.ndim == 2 else np.uint8)
                Image.fromarray(level).save(pages, format="TIFF")
                pages.newFrame()

        yield append


@contextmanager
def _npz_writer(path: Path, frames: int, fps: float | int) -> Iterator[Write]:
    """Float32 `video`, compressed, and `axes`, the order of its axes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("video.npy", "w", force_zip64=True) as entry:
            begun = False

            def append(video: np.ndarray) -> None:
                nonlocal begun
                if not begun:
                    about = {"descr": "<f4", "fortran_order": False, "shape": (frames, *video.shape[1:])}
                    np.lib.format.write_array_header_1_0(entry, about)
                    begun = True
                entry.write(np.ascontiguousarray(video, "<f4").tobytes())

            yield append
        with archive.open("axes.npy", "w") as entry:
            np.lib.format.write_array(entry, np.asarray("thw"), allow_pickle=False)


@contextmanager
def _gif_writer(path: Path, frames: int, fps: float | int) -> Iterator[Write]:
    """8 bits: 256 greys, or 256 colours for each frame. Pillow's own writer would hold all frames until the end."""
    from PIL import GifImagePlugin, Image

    with path.open("wb") as file:
        begun = False

        def append(video: np.ndarray) -> None:
            nonlocal begun
            for level in to_levels(video):
                image = Image.fromarray(level)
                if level.ndim == 3:
                    image = image.convert("P", palette=Image.Palette.ADAPTIVE)
                if not begun:
                    header, _ = GifImagePlugin.getheader(image, info={"loop": 0, "duration": round(1000 / fps)})
                    file.write(b"".join(header))
                    begun = True
                settings: dict[str, Any] = {"duration": round(1000 / fps), "include_color_table": level.ndim == 3}
                file.write(b"".join(GifImagePlugin.getdata(image, **settings)))

        yield append
        file.write(b";")


@contextmanager
def _movie_writer(path: Path, frames: int, fps: float | int) -> Iterator[Write]:
    """PyAV: FFV1 for .avi and .mkv, H.264 4:2:0 for .mp4."""
    av = import_av(path)
    mp4 = path.suffix.lower() == ".mp4"
    size: list[int] = []
    try:
        with av.open(str(path), mode="w") as container:
            stream: Any = container.add_stream("libx264" if mp4 else "ffv1", rate=Fraction(fps).limit_denominator(1001))
            if mp4:
                stream.options = {"crf": "12", "preset": "medium"}

            def append(video: np.ndarray) -> None:
                levels = to_levels(video)
                if mp4:
                    odd = ((0, 0), (0, levels.shape[1] % 2), (0, levels.shape[2] % 2), (0, 0))[: levels.ndim]
                    levels = np.pad(levels, odd, mode="edge")
                colour = levels.ndim == 4
                if not size:  # the codec opens with the first frame
                    size[:] = video.shape[1:3]
                    stream.height, stream.width = levels.shape[1:3]
                    stream.pix_fmt = "yuv420p" if mp4 else ("bgr0" if colour else "gray")
                for level in levels:
                    frame = av.VideoFrame.from_ndarray(level, format="rgb24" if colour else "gray")
                    container.mux(stream.encode(frame))

            yield append
            container.mux(stream.encode())
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise  # a full disk, say: the system's own words
        raise ValueError(
            f"a video of {'x'.join(map(str, size))} at {fps} frames/s cannot be encoded as "
            f"{path} ({error}); wanted a size and rate that the codec takes; write .npz or .tif"
        ) from error


_KINDS = {
    ".mp4": _movie_writer,
    ".avi": _movie_writer,
    ".mkv": _movie_writer,
    ".gif": _gif_writer,
    ".npz": _npz_writer,
    **dict.fromkeys(TIF_SUFFIXES, _tif_writer),
}
