"""One front function that reads any video or stack of frames as float32 in [0, 1], and one that writes it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from bitlens.data.arrays import ARRAY_SUFFIXES, find_array, frames_first
from bitlens.data.images import (
    IMAGE_SUFFIXES,
    TIF_SUFFIXES,
    Picture,
    Refused,
    count_frames,
    first_frame,
    opened,
    picture_of,
    read_folder,
    read_image,
    read_tif,
    stack_frames,
)
from bitlens.data.levels import check_white, in_unit_range, to_float, to_grey
from bitlens.data.metadata import turned
from bitlens.data.whole import lacks_bytes
from bitlens.data.writers import About, import_av, video_writer
from bitlens.files import remark

__all__ = ["ANIMATION_SUFFIXES", "MOVIE_SUFFIXES", "Movie", "check_video", "open_movie", "read_video", "write_video"]

MOVIE_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm")
ANIMATION_SUFFIXES = (".gif", ".avif", ".webp")

USUAL_FPS = 10.0
"""Frames per second of an animation that does not say."""

HD = 720
"""Rows from which players take colours to be BT.709 where the file does not say; below, BT.601."""


@dataclass(frozen=True)
class Movie:
    """A video that is read one frame at a time, and as often as one likes."""

    frames: int
    fps: float
    """Frames per second; on average, where they come unevenly."""
    decode: Callable[[], Iterator[np.ndarray]]
    about: About = field(default_factory=About)
    """What to keep when it is written again; `aspect` is that of frames as they are shown."""

    def __iter__(self) -> Iterator[Float32[np.ndarray, "h w c"]]:
        return self.decode()


def open_movie(path: str | os.PathLike[str], white: float | None = None) -> Movie:
    """A video of which one frame is in memory at a time: (h, w, 3), or (h, w, 4) where an animation is transparent.

    Movies (`MOVIE_SUFFIXES`), animations (`ANIMATION_SUFFIXES`, an animated .png), and the pages of a .tif (which are
    held as stored). Frames are counted by decoding all of them once: what containers say of their number is no
    promise. A file that ends early is read as far as it goes, with a remark. `white` is the value of white in the pages
    of a .tif of 16 bits or floats; None: 65535, and 1.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unknown suffix, damaged, of a codec that is not known, or no frame in it.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; wanted a video; check the path")
    if suffix in MOVIE_SUFFIXES:
        movie = _open_film(path)
    elif suffix in TIF_SUFFIXES:
        movie = _open_pages(path, white)
    elif suffix in (*ANIMATION_SUFFIXES, *IMAGE_SUFFIXES):
        movie = _open_animation(path)
    else:
        wanted = ", ".join(MOVIE_SUFFIXES + ANIMATION_SUFFIXES)
        raise ValueError(f"{path} has suffix '{suffix}'; wanted a video of {wanted}; convert it")
    if not movie.frames:
        raise ValueError(f"{path} has no frame; wanted at least one; it is damaged: copy it again")
    return movie


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
        path: .mp4 .avi .mkv .mov .webm (PyAV), .gif .avif .webp, an animated .png, .tif stack, a still image (one
            frame), a folder of images, or arrays: .npy .npz .mat .zarr. Frames are turned as players show them.
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
    if path.is_dir() and suffix not in ARRAY_SUFFIXES:
        video = to_float(read_folder(path, start, stop))
    elif suffix in MOVIE_SUFFIXES:
        video = _read_movie(path, start, stop, grey)
    elif suffix in ANIMATION_SUFFIXES:
        video = _read_animation(path, start, stop, grey)
    elif suffix in TIF_SUFFIXES:
        video = to_float(read_tif(path, start, stop))
    elif suffix == ".png" and count_frames(path) > 1:
        video = _read_animation(path, start, stop, grey)
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
def _movie(path: Path) -> Iterator[tuple[Any, Any]]:
    """PyAV's container of a file, and its first video stream that is not a cover.

    Raises:
        ValueError: no video in it, of a codec that is not known, or damaged, whenever that is found.
    """
    av = import_av(path)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise Refused(f"{path} holds no video stream; wanted one; check the file")
            cover = av.stream.Disposition.attached_pic
            stream = min(container.streams.video, key=lambda one: bool(one.disposition & cover))
            if stream.codec_context is None:
                raise Refused(
                    f"{path} has a codec that no decoder here knows; wanted H.264, VP9, AV1, FFV1 or the like; "
                    "it is damaged, or convert it"
                )
            yield container, stream
    except Refused:
        raise
    except (av.FFmpegError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        missing = lacks_bytes(path)
        cause = f"it ends {missing} bytes early" if missing else "it is damaged or of another kind"
        raise ValueError(
            f"{path} cannot be decoded ({error}); wanted a complete video file; {cause}: copy or encode it again"
        ) from error


def _frames(path: Path, container: Any, stream: Any) -> Iterator[Any]:
    """PyAV's frames of a video; at their end, a remark where there should be more, or where some are damaged."""
    count = damaged = 0
    for frame in container.decode(stream):
        count += 1
        damaged += bool(frame.is_corrupt)
        yield frame
    missing = lacks_bytes(path)
    if not count:
        raise ValueError("no frame in it")
    if missing:
        remark(
            f"{path} ends early: {count} frames are read, and its header states {missing} bytes more; wanted a whole "
            "file; copy or record it again if the rest matters"
        )
    if damaged:
        remark(f"{path} has {damaged} damaged frame(s) of {count}, says the decoder; wanted whole ones; copy it again")


def _remark_others(path: Path, container: Any, stream: Any) -> None:
    """Say that a film has other streams of video than the one that is read."""
    count = len(container.streams.video)
    if count > 1:
        remark(
            f"{path} has {count} streams of video, of which the one of {stream.width}x{stream.height} is read; wanted "
            "one; write the others to files of their own if they matter"
        )


def _open_film(path: Path) -> Movie:
    """A movie that PyAV decodes."""
    with _movie(path) as (container, stream):
        start = max(Fraction(0), Fraction(container.start_time or 0, 1_000_000))
        rate = Fraction(stream.average_rate or 0)
        times: list[Fraction | None] = []
        last, first = None, None
        for frame in _frames(path, container, stream):
            first = frame if first is None else first
            times.append(None if frame.pts is None else frame.pts * Fraction(frame.time_base) - start)
            last = frame
        clear = stream.format is not None and any(part.is_alpha for part in stream.format.components)
        count, deep, aspect = len(times), _is_deep(stream), Fraction(stream.sample_aspect_ratio or 1) or Fraction(1)
        sound, avi = path if len(container.streams.audio) else None, container.format.name == "avi"
        if container.streams.subtitles:
            remark(f"{path} has subtitles, which are left out; wanted none; add them to the result by other means")
        _remark_others(path, container, stream)
        lasting = Fraction(0) if last is None else Fraction(last.duration or 0) * Fraction(last.time_base or 1)
        tags = (2, 2) if first is None else (int(first.color_primaries or 2), int(first.color_trc or 2))
        if first is not None and _orientation(first) >= 5:
            aspect = 1 / aspect
    fps = rate or Fraction(USUAL_FPS)
    known = [time for time in times if time is not None]
    rising = len(known) == count and all(a < b for a, b in pairwise(known))
    uneven: tuple[Fraction, ...] = ()
    if rising and count:
        step = Fraction(1, 1000) if rate else Fraction(0)
        begin = known[0] if avi else Fraction(0)  # FFmpeg's .avi begins late by the frames that are predicted ahead
        if any(abs(time - begin - index / fps) > step for index, time in enumerate(known)):
            uneven = (*known, known[-1] + (lasting if lasting > 0 else 1 / fps))
            fps = count / (uneven[-1] - uneven[0])
    about = About(uneven, aspect, deep, *tags, sound, start)
    target = ("rgba64le" if deep else "rgba") if clear else ("rgb48le" if deep else "rgb24")

    def decode() -> Iterator[np.ndarray]:
        with _movie(path) as (container, stream):
            for frame in container.decode(stream):
                yield to_float(_levels(frame, target))

    return Movie(count, float(fps), decode, about)


def _is_deep(stream: Any) -> bool:
    """Whether a stream has over 8 bits."""
    return stream.format is not None and max(part.bits for part in stream.format.components) > 8


def _orientation(frame: Any) -> int:
    """How a frame is to be shown, as EXIF numbers it, by its display matrix.

    The matrix moves a pixel from (x, y) to (a x + c y, b x + d y); a and d, or b and c, are 0.
    """
    found = frame.side_data.get("DISPLAYMATRIX")
    if found is None:
        return 1
    a, b, _, c, d = np.frombuffer(bytes(found), np.int32)[:5].tolist()
    if abs(a) >= abs(b):
        return {(False, False): 1, (True, False): 2, (True, True): 3, (False, True): 4}[a < 0, d < 0]
    return {(False, False): 5, (True, False): 6, (True, True): 7, (False, True): 8}[c < 0, b < 0]


def _levels(frame: Any, target: str) -> np.ndarray:
    """A frame as it is shown, in a format of FFmpeg. Colours that are not tagged are taken as players take them."""
    from av.video.reformatter import Colorspace

    untagged = frame.colorspace == 2 and not frame.format.is_rgb and frame.height >= HD
    levels = frame.to_ndarray(format=target, **({"src_colorspace": Colorspace.ITU709} if untagged else {}))
    return turned(levels, _orientation(frame))


def _read_movie(path: Path, start: int, stop: int | None, grey: bool) -> np.ndarray:
    """Decode with PyAV; grey is the Y of the stream, at full range, in 16 bits where it has over 8."""
    with _movie(path) as (container, stream):
        _remark_others(path, container, stream)
        deep, aspect = _is_deep(stream), Fraction(stream.sample_aspect_ratio or 1)
        target = ("gray16le" if deep else "gray") if grey else ("rgb48le" if deep else "rgb24")
        frames = [_levels(frame, target) for frame in islice(_frames(path, container, stream), start, stop)]
    if aspect not in (0, 1):
        remark(f"{path} has pixels {aspect} as wide as high, which are taken as square; wanted square ones; scale it")
    return to_float(stack_frames(frames, path))


def _open_animation(path: Path) -> Movie:
    """An animation that Pillow reads."""
    lasting: list[int] = []
    clear = False
    with opened(path) as image:
        loops = int(image.info.get("loop", 1 if image.format == "GIF" else 0))
        loops = loops + 1 if image.format == "GIF" and loops and "loop" in image.info else loops
        for picture in _pictures(image, path):
            clear = clear or (picture.alpha is not None and bool((picture.alpha < 255).any()))
            lasting.append(round(float(image.info.get("duration") or 1000 / USUAL_FPS)))
    _remark_cut(path, len(lasting))
    even = len(set(lasting)) == 1
    times = () if even else tuple(Fraction(sum(lasting[:index]), 1000) for index in range(len(lasting) + 1))

    def decode() -> Iterator[np.ndarray]:
        with opened(path) as image:
            for picture in _pictures(image, path):
                yield _in_colour(picture, clear)

    fps = 1000 * len(lasting) / sum(lasting) if lasting else USUAL_FPS
    return Movie(len(lasting), fps, decode, About(times, loops=loops))


def _in_colour(picture: Picture, clear: bool) -> np.ndarray:
    """(h, w, 3), or with transparency (h, w, 4), floats."""
    colours = to_float(picture.levels if clear else picture.on_black())
    colours = colours if colours.ndim == 3 else np.repeat(colours[..., None], 3, axis=2)
    if not clear:
        return colours
    alpha = np.ones(colours.shape[:2], np.float32) if picture.alpha is None else to_float(picture.alpha)
    return np.dstack([colours, alpha])


def _open_pages(path: Path, white: float | None) -> Movie:
    """The pages of a .tif, which have no times."""
    pages = read_tif(path)
    check_white(pages, path, white)
    deep = pages.dtype != np.uint8

    def decode() -> Iterator[np.ndarray]:
        for page in pages:
            yield _in_colour(Picture(in_unit_range(page, white)), False)

    return Movie(len(pages), USUAL_FPS, decode, About(deep=deep))


def _read_animation(path: Path, start: int, stop: int | None, grey: bool) -> np.ndarray:
    """Read an animation frame by frame with Pillow, on black where it is transparent."""
    with opened(path) as image:
        pictures = _pictures(image, path)
        frames = [to_float(picture.on_black()) for picture in islice(pictures, start, stop)]
    if stop is None:
        _remark_cut(path, start + len(frames))
    if grey:
        frames = [to_grey(frame) if frame.ndim == 3 else frame for frame in frames]
    elif any(frame.ndim == 3 for frame in frames):
        frames = [frame if frame.ndim == 3 else np.repeat(frame[..., None], 3, axis=2) for frame in frames]
    return stack_frames(frames, path)


def _pictures(image: Any, path: Path) -> Iterator[Picture]:
    """The frames of an animation that Pillow has opened."""
    for index in range(first_frame(image), getattr(image, "n_frames", 1)):
        image.seek(index)
        yield picture_of(image, path)


def _remark_cut(path: Path, frames: int) -> None:
    """Say that an animation ends early, where it does."""
    if lacks_bytes(path):
        remark(
            f"{path} ends early: {frames} frames are read, and there should be more of it; wanted a complete file; "
            "copy or write it again if the rest matters"
        )
