"""One front function that reads any video or stack of frames as float32 in [0, 1], and one that writes it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from bitlens.data.arrays import ARRAY_SUFFIXES, find_array, frames_first
from bitlens.data.images import (
    IMAGE_SUFFIXES,
    TIF_SUFFIXES,
    read_folder,
    read_image,
    read_tif,
    stack_frames,
    to_float,
    to_grey,
)
from bitlens.data.writers import import_av, video_writer

__all__ = ["MOVIE_SUFFIXES", "Movie", "check_video", "open_movie", "read_video", "write_video"]

MOVIE_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm")
ANIMATION_SUFFIXES = (".gif", ".avif")

USUAL_FPS = 10.0
"""Frames per second of an animation that does not say."""


@dataclass(frozen=True)
class Movie:
    """A video that is read one frame at a time, and as often as one likes."""

    frames: int
    fps: float
    """Frames per second."""
    decode: Callable[[], Iterator[np.ndarray]]

    def __iter__(self) -> Iterator[Float32[np.ndarray, "h w rgb"]]:
        return self.decode()


def open_movie(path: str | os.PathLike[str]) -> Movie:
    """A movie or animation (`MOVIE_SUFFIXES`, .gif, .avif) of which one frame (h, w, 3) is in memory at a time.

    Its frames are counted by decoding it once: what containers say of their number is no promise.

    Raises:
        FileNotFoundError: no such file. ValueError: unknown suffix, damaged, or no frame in it.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; wanted a video; check the path")
    if suffix not in MOVIE_SUFFIXES + ANIMATION_SUFFIXES:
        wanted = ", ".join(MOVIE_SUFFIXES + ANIMATION_SUFFIXES)
        raise ValueError(f"{path} has suffix '{suffix}'; wanted a video of {wanted}; convert it")
    if suffix in MOVIE_SUFFIXES:
        with _movie(path) as (stream, decoded):
            fps = float(stream.average_rate or 0) or USUAL_FPS
            frames = sum(1 for _ in decoded)

        def decode() -> Iterator[np.ndarray]:
            with _movie(path) as (_, decoded):
                for frame in decoded:
                    yield to_float(frame.to_ndarray(format="rgb24"))
    else:
        with _animation(path) as image:
            milliseconds = float(image.info.get("duration", 0))
            fps = 1000 / milliseconds if milliseconds > 0 else USUAL_FPS
            frames = sum(1 for _ in _animation_frames(image, False))

        def decode() -> Iterator[np.ndarray]:
            with _animation(path) as image:
                yield from _animation_frames(image, False)

    if not frames:
        raise ValueError(f"{path} has no frame; wanted at least one; it is damaged: copy it again")
    return Movie(frames, fps, decode)


def read_video(
    path: str | os.PathLike[str],
    max_frames: int | None = None,
    start: int = 0,
    grey: bool = True,
    *,
    key: str | None = None,
    axes: str | None = None,
    white: float | int | None = None,
) -> Float32[np.ndarray, "t h w *rgb"]:
    """Read a video as float32 in [0, 1]: (t, h, w) grey (BT.601 luma), or (t, h, w, 3) with grey=False.

    Args:
        path: .mp4 .avi .mkv .mov .webm (PyAV), .gif .avif, .tif stack, a still image (one frame), a folder of
            images, or an array file .npy .npz .mat.
        max_frames: read at most this many. None: all.
        start: frames to leave out at the beginning.
        key: name of the array in a .npz or .mat. None: `orig` or `video`.
        axes: order of axes of an array, "thw" or "hwt". None: by name. `orig` is the field's (h, w, t);
            `video` and the bare array of a .npy are (t, h, w); an `axes` text in the file goes first.
        white: the array value that means white. None: 255, 65535 for integers, 1 for floats, 255 for
            float `orig` that goes beyond 1 (the field's files have it so).

    Raises:
        FileNotFoundError: no such file or folder, or no frames in the folder.
        ValueError: unknown or damaged file, no frame left, or values that are not in [0, white].

    Example:
        >>> read_video("clip.mp4", max_frames=16).shape  # doctest: +SKIP
        (16, 256, 256)
    """
    path = Path(path)
    if start < 0 or (max_frames is not None and max_frames < 1):
        raise ValueError(
            f"start={start}, max_frames={max_frames}; wanted start >= 0 and max_frames >= 1; change the numbers"
        )
    if not path.exists():
        raise FileNotFoundError(f"no file or folder {path}; wanted a video; check the path")
    stop = None if max_frames is None else start + max_frames
    suffix = path.suffix.lower()
    if path.is_dir():
        video = to_float(read_folder(path, start, stop))
    elif suffix in MOVIE_SUFFIXES:
        video = _read_movie(path, start, stop, grey)
    elif suffix in ANIMATION_SUFFIXES:
        video = _read_animation(path, start, stop, grey)
    elif suffix in TIF_SUFFIXES:
        video = to_float(read_tif(path, start, stop))
    elif suffix in IMAGE_SUFFIXES:
        video = to_float(read_image(path))[None][start:stop]
    elif suffix in ARRAY_SUFFIXES:
        name, array, axes = find_array(path, ("orig", "video"), key, axes)
        video = _in_unit_range(frames_first(array, name, path, axes), name, path, white)[start:stop]
    else:
        raise ValueError(
            f"{path} has suffix '{suffix}'; wanted a folder of frames or one of "
            f"{', '.join((*MOVIE_SUFFIXES, *ANIMATION_SUFFIXES, *IMAGE_SUFFIXES, *ARRAY_SUFFIXES))}; "
            "convert it"
        )
    if 0 in video.shape:
        raise ValueError(f"{path} has no frame from number {start} on; wanted at least one; lower start")
    check_video(video, str(path))
    if grey and video.ndim == 4:
        return to_grey(video)  # t h w 3 -> t h w
    if not grey and video.ndim == 3:
        return np.repeat(video[..., None], 3, axis=-1)  # t h w -> t h w 3
    return video


def check_video(video: np.ndarray, label: str = "video") -> np.ndarray:
    """Return `video` as it is, after checking that it is floats (t, h, w) or (t, h, w, 3), finite, in [0, 1].

    Raises:
        TypeError: not a float array.
        ValueError: wrong shape, empty, NaN or infinite, or outside [0, 1].
    """
    if not isinstance(video, np.ndarray) or video.dtype.kind != "f":
        came = video.dtype if isinstance(video, np.ndarray) else type(video).__name__
        raise TypeError(f"{label} is {came}; wanted a float numpy array in [0, 1]; divide integers by their white")
    if video.ndim not in (3, 4) or 0 in video.shape or (video.ndim == 4 and video.shape[-1] != 3):
        raise ValueError(f"{label} has shape {video.shape}; wanted (t, h, w) or (t, h, w, 3), not empty; reshape it")
    low, high = float(video.min()), float(video.max())  # NaN goes through both
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{label} holds NaN or infinite values; wanted finite numbers; find where they come from")
    if low < 0.0 or high > 1.0:
        raise ValueError(
            f"{label} spans [{low:g}, {high:g}]; wanted [0, 1]; divide by the value of white (white=255, say)"
        )
    return video


def write_video(path: str | os.PathLike[str], video: np.ndarray, fps: float | int = 25) -> None:
    """Write (t, h, w) or (t, h, w, 3) floats, whole or not at all; clipped to [0, 1]. Kinds of files: `video_writer`.

    Raises:
        TypeError: no floats.
        ValueError: unknown suffix, wrong shape, NaN, or PyAV is missing for a movie.
        OSError: the place cannot be written to.
    """
    with video_writer(path, len(video), fps) as write:
        write(video)


def _in_unit_range(array: np.ndarray, name: str, path: Path, white: float | int | None) -> np.ndarray:
    """Array values to float32 with white at 1."""
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{path}: '{name}' has dtype {array.dtype}; wanted real numbers; convert it first")
    if white is not None:
        if not white > 0:
            raise ValueError(f"white={white}; wanted the positive value that means white; pass 255, say")
        return (array / np.float32(white)).astype(np.float32)
    if name == "orig" and array.dtype.kind == "f" and 1.0 < array.max() <= 255.0:
        return array.astype(np.float32) / np.float32(255)
    if array.dtype.kind in "iu" and array.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"{path}: '{name}' has dtype {array.dtype}, whose white is not known; "
            "wanted uint8, uint16 or floats in [0, 1]; pass white=255, say"
        )
    return to_float(array)


@contextmanager
def _movie(path: Path) -> Iterator[tuple[Any, Iterator[Any]]]:
    """PyAV's video stream of a file, and its decoded frames.

    Raises:
        ValueError: no video in it, or damaged, whenever that is found.
    """
    av = import_av(path)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} holds no video stream; wanted one; check the file")
            stream = container.streams.video[0]
            yield stream, container.decode(stream)
    except (av.FFmpegError, UnicodeDecodeError) as error:  # the latter: damaged text beside the video
        raise ValueError(
            f"{path} cannot be decoded ({error}); wanted a complete video file; "
            "it is damaged or of another kind: copy or encode it again"
        ) from error


def _read_movie(path: Path, start: int, stop: int | None, grey: bool) -> np.ndarray:
    """Decode with PyAV; grey is the Y of the stream, at full range, in 16 bits where it has over 8."""
    with _movie(path) as (stream, decoded):
        deep = stream.format is not None and max(part.bits for part in stream.format.components) > 8
        target = ("gray16le" if deep else "gray") if grey else ("rgb48le" if deep else "rgb24")
        frames = [frame.to_ndarray(format=target) for frame in islice(decoded, start, stop)]
    return to_float(stack_frames(frames, path))


@contextmanager
def _animation(path: Path) -> Iterator[Any]:
    """A .gif or .avif, opened by Pillow.

    Raises:
        ValueError: damaged, whenever that is found.
    """
    from PIL import Image, features

    if path.suffix.lower() == ".avif" and not features.check("avif"):
        raise ValueError(f"{path} is AVIF, which this Pillow cannot read; wanted Pillow 11.3 or newer; upgrade it")
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); wanted a complete {path.suffix} file; copy or write it again"
        ) from error


def _read_animation(path: Path, start: int, stop: int | None, grey: bool) -> np.ndarray:
    """Read .gif and .avif frame by frame with Pillow."""
    with _animation(path) as image:
        frames = list(islice(_animation_frames(image, grey), start, stop))
    return stack_frames(frames, path)


def _animation_frames(image, grey: bool) -> Iterator[np.ndarray]:
    for index in range(getattr(image, "n_frames", 1)):
        image.seek(index)
        plain = grey and image.mode == "L"
        values = to_float(np.asarray(image if plain else image.convert("RGB")))
        yield to_grey(values) if grey and not plain else values
