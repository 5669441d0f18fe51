"""Writes a video as it comes, a few frames at a time, whole or not at all."""

import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import lcm
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from bitlens.data.chunks import ZARR, import_zarr, zarr_writer
from bitlens.data.images import TIF_SUFFIXES, import_tifffile
from bitlens.data.levels import to_levels
from bitlens.data.pictures import write_picture
from bitlens.files import atomic_folder, atomic_path, remark

__all__ = ["WRITE_SUFFIXES", "About", "check_size", "check_target", "import_av", "video_writer"]

WRITE_SUFFIXES = (".mp4", ".avi", ".mkv", ".gif", ".webp", ".png", ".npz", ".tif", ".tiff", ZARR)

MOST_PIXELS = {".gif": 65535, ".webp": 16383}
"""The largest height and width that a format can state."""

KEEPS_TIMES = (".mp4", ".mkv", ".gif", ".webp", ".png")
KEEPS_SOUND = MOVIES = (".mp4", ".mkv", ".avi")
KEEPS_ASPECT = (".mp4",)
KEEPS_ALPHA = (".gif", ".webp", ".png", "")
KEEPS_DEPTH = (".mp4", ".mkv", ".avi", ".npz", ".tif", ".tiff", ZARR, "")
"""Suffixes of files that can hold it; "": a folder of frames."""

UNSPECIFIED, BT709, BT2020 = 2, 1, 9
"""Primaries and matrices of colours, and BT.709's transfer [ITU-T H.273]."""

LIMITED = 1
"""Levels from 16 to 235, as FFmpeg numbers ranges."""

SPEAKERS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
"""What so many channels of sound usually are."""

FINEST = 90_000
"""Ticks per second where the times of frames have no common measure below a million."""

Write = Callable[[np.ndarray], None]
"""Appends frames (t, h, w), (t, h, w, 3), or with transparency (t, h, w, 4), floats; clipped to [0, 1]."""


@dataclass(frozen=True)
class About:
    """What a file of moving pictures holds beside its frames."""

    times: tuple[Fraction, ...] = ()
    """Seconds at which each frame begins, and at which the last one ends. (): evenly, `fps` a second."""
    aspect: Fraction = Fraction(1)
    """Width of a pixel over its height."""
    deep: bool = False
    """More than 8 bits."""
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED
    """What the red, green and blue are, and how levels become light [ITU-T H.273, tables 2 and 3]."""
    sound: Path | None = None
    """The file whose sound belongs to it."""
    start: Fraction = Fraction(0)
    """Seconds into that file at which the frames' time 0 is."""
    loops: int = 0
    """How often an animation is shown; 0: for ever."""
    group: int = 1
    """Frames that are written at once, and will be read so: the chunks of a .zarr."""


@contextmanager
def video_writer(
    path: str | os.PathLike[str], frames: int, fps: float | int = 25, about: About | None = None
) -> Iterator[Write]:
    """Yield a function that appends frames to a video; at the end of the with block there is the whole file, or none.

    By suffix: `.avi .mkv` FFV1 (grey: lossless at 8 bits); `.mp4` H.264 in 4:2:0 (lossy; an odd height or width is
    padded by repeating the last row or column, since players want even sizes; tagged as BT.709); `.gif` 8 bits; `.webp
    .png` 8 bits, lossless (all frames are held until the end); `.npz .zarr` float32 as `video`; `.tif` 16-bit grey or
    8-bit colour pages; no suffix or a closing '/': a folder of 8-bit PNG frames. Where `about` says that frames are
    deep, 10 bits in `.mp4`, and 16 in `.avi .mkv .tif` and folders.

    What of `about` the kind of file cannot hold is left out with a remark.

    Args:
        path: a file, or a new or empty folder.
        frames: how many there will be.
        fps: frames per second, in files that know time.
        about: times, shape of pixels, depth, colours and sound. None: even times, and none of the others.

    Raises:
        TypeError: frames that are no floats.
        ValueError: unknown suffix, wrong shape, NaN, PyAV is missing for a movie, or not as many frames as announced.
        OSError: the place cannot be written to.
    """
    folder = os.fspath(path).endswith(("/", os.sep))
    target = Path(path)
    suffix = "" if folder else target.suffix.lower()
    about = about or About()
    if not suffix:
        kind, place = _folder_writer, atomic_folder(target)
    elif suffix in WRITE_SUFFIXES:
        kind, place = _KINDS[suffix], atomic_folder(target) if suffix == ZARR else atomic_path(target)
    else:
        raise ValueError(
            f"cannot write a video to {path}; wanted {', '.join(WRITE_SUFFIXES)} or a folder; change the suffix"
        )
    _remark_left_out(about, suffix)
    came: list[tuple[int, ...]] = []

    with place as temporary, kind(temporary, frames, fps, about) as append:

        def write(video: np.ndarray) -> None:
            _check(video)
            if came and video.shape[1:] != came[0][1:]:
                raise ValueError(
                    f"frames of shape {video.shape[1:]} after {came[0][1:]}; wanted one size; correct them"
                )
            if not came:
                check_size(video.shape[1], video.shape[2], suffix)
                if video.shape[3:] == (4,) and suffix not in KEEPS_ALPHA:
                    remark(f"{suffix} holds no transparency, which is laid on black; wanted .webp, .png or a folder")
            came.append(video.shape)
            if video.shape[3:] == (4,) and suffix not in KEEPS_ALPHA:
                video = video[..., :3] * video[..., 3:]
            for frame in video:  # one at a time, for the copies that are made of it
                append(np.clip(frame[None], 0.0, 1.0))

        yield write
        count = sum(shape[0] for shape in came)
        if count != frames:
            raise ValueError(f"{count} frames were written to {path}; wanted {frames}; announce as many as will come")


def check_target(out: str) -> str:
    """The suffix of a target of `video_writer`, small; nothing for a folder.

    Raises:
        ValueError: it cannot be written here.
    """
    path = Path(out)
    suffix = "" if out.endswith("/") else path.suffix.lower()
    if not suffix:
        return suffix
    if suffix not in WRITE_SUFFIXES:
        raise ValueError(
            f"cannot write a video to {path}; wanted {', '.join(WRITE_SUFFIXES)}, or a folder for PNG "
            "frames; change the suffix"
        )
    if suffix in MOVIES:
        import_av(path)
    if suffix == ZARR:
        import_zarr(path)
    return suffix


def _remark_left_out(about: About, suffix: str) -> None:
    """Say what of it a kind of file does not hold."""
    name = suffix or "a folder of frames"
    if about.times and suffix not in KEEPS_TIMES:
        remark(f"{name} holds frames at even times, and these are not; wanted .mp4 or .mkv to keep their times")
    if about.sound is not None and suffix not in KEEPS_SOUND:
        remark(f"{name} holds no sound, which is left out; wanted .mp4 or .mkv to keep it")
    if about.aspect != 1 and suffix not in KEEPS_ASPECT:
        remark(f"{name} holds square pixels, and these are {about.aspect} as wide as high; wanted .mp4 to keep that")
    if about.deep and suffix not in KEEPS_DEPTH:
        remark(f"{name} holds 8 bits, and these frames have more; wanted .mp4, .mkv, .tif or a folder to keep more")


def check_size(height: int, width: int, suffix: str) -> None:
    """Refuse frames that a format cannot hold."""
    most = MOST_PIXELS.get(suffix)
    if most is not None and max(height, width) > most:
        raise ValueError(
            f"frames of {height}x{width} pixels came; wanted at most {most} in height and width for "
            f"{suffix}; write .tif, .npz or a folder of frames"
        )


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
    if video.ndim not in (3, 4) or 0 in video.shape or (video.ndim == 4 and video.shape[-1] not in (3, 4)):
        raise ValueError(
            f"video to write has shape {video.shape}; wanted (t, h, w) or (t, h, w, 3), not empty; reshape it"
        )
    if not np.isfinite(video).all():
        raise ValueError(
            "video to write holds NaN or infinite values; wanted finite numbers; find where they come from"
        )


@contextmanager
def _folder_writer(folder: Path, frames: int, fps: float | int, about: About) -> Iterator[Write]:
    """PNG frames of 8 bits, or 16 for deep ones."""
    done = 0

    def append(video: np.ndarray) -> None:
        nonlocal done
        for frame in video:
            level = to_levels(frame, np.uint16 if about.deep else np.uint8)
            write_picture(folder / f"frame_{done:04d}.png", level.shape[0], level.shape[1], [level])
            done += 1

    yield append


@contextmanager
def _tif_writer(path: Path, frames: int, fps: float | int, about: About) -> Iterator[Write]:
    """16-bit grey pages, or colour pages of 8 bits, of 16 for deep ones."""
    from PIL import Image
    from PIL.TiffImagePlugin import AppendingTiffWriter

    tifffile = import_tifffile()
    if about.deep and tifffile is not None:  # Pillow writes no colours of 16 bits
        with tifffile.TiffWriter(path) as pages:

            def append_deep(video: np.ndarray) -> None:
                for frame in video:
                    kind = "rgb" if frame.ndim == 3 else "minisblack"
                    pages.write(to_levels(frame, np.uint16), photometric=kind, compression="zlib", metadata=None)

            yield append_deep
        return
    with path.open("w+b") as file, AppendingTiffWriter(file) as pages:

        def append(video: np.ndarray) -> None:
            for frame in video:
                level = to_levels(frame, np.uint16 if frame.ndim == 2 else np.uint8)
                Image.fromarray(level).save(pages, format="TIFF")
                pages.newFrame()

        yield append


@contextmanager
def _npz_writer(path: Path, frames: int, fps: float | int, about: About) -> Iterator[Write]:
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
def _zarr_writer(path: Path, frames: int, fps: float | int, about: About) -> Iterator[Write]:
    """Float32 `video`, a chunk for each group of frames, and the order of its axes."""
    with zarr_writer(path, frames, about.group, {"axes": "thw", "fps": float(fps)}) as append:
        yield append


@contextmanager
def _gif_writer(path: Path, frames: int, fps: float | int, about: About) -> Iterator[Write]:
    """8 bits: 256 greys, or 256 colours for each frame. Pillow's own writer would hold all frames until the end."""
    from PIL import GifImagePlugin, Image

    lasting = iter(_milliseconds(frames, fps, about, 10))
    with path.open("wb") as file:
        begun = False

        def append(video: np.ndarray) -> None:
            nonlocal begun
            for level in to_levels(video):
                image = Image.fromarray(level)
                settings: dict[str, Any] = {"duration": next(lasting), "include_color_table": level.ndim == 3}
                if image.mode == "RGBA":
                    clear = Image.fromarray(np.where(level[..., 3] < 128, 255, 0).astype(np.uint8))
                    image = image.convert("RGB").quantize(255)
                    image.paste(255, mask=clear)
                    settings |= {"transparency": 255, "disposal": 2}
                elif level.ndim == 3:
                    image = image.convert("P", palette=Image.Palette.ADAPTIVE)
                if not begun:
                    loop = {} if about.loops == 1 else {"loop": max(0, about.loops - 1)}
                    header, _ = GifImagePlugin.getheader(image, info={**loop, **settings})
                    file.write(b"".join(header))
                    begun = True
                file.write(b"".join(GifImagePlugin.getdata(image, **settings)))

        yield append
        file.write(b";")


@contextmanager
def _animation_writer(path: Path, frames: int, fps: float | int, about: About) -> Iterator[Write]:
    """An animated .webp, lossless, or .png: 8 bits, with transparency where the frames have it."""
    from PIL import Image

    images: list[Any] = []

    def append(video: np.ndarray) -> None:
        for level in to_levels(video):
            image = Image.fromarray(level)
            images.append(image if image.mode != "L" or path.suffix.lower() == ".png" else image.convert("RGB"))

    yield append
    if len(images) != frames:
        return  # which the caller refuses
    lasting = _milliseconds(frames, fps, about, 1)
    settings: dict[str, Any] = {"duration": lasting, "loop": about.loops}
    settings |= {"lossless": True} if path.suffix.lower() == ".webp" else {"default_image": False}
    images[0].save(path, save_all=True, append_images=images[1:], **settings)


def _milliseconds(frames: int, fps: float | int, about: About, step: int) -> list[int]:
    """How long each frame is shown, in multiples of `step`; rounding does not add up."""
    times = about.times or [Fraction(index) / Fraction(fps) for index in range(frames + 1)]
    ends = [step * round(time * 1000 / step) for time in times]
    return [max(step, after - before) for before, after in pairwise(ends)]


@contextmanager
def _movie_writer(path: Path, frames: int, fps: float | int, about: About) -> Iterator[Write]:
    """PyAV: FFV1 for .avi and .mkv, H.264 4:2:0 for .mp4."""
    av = import_av(path)
    suffix = path.suffix.lower()
    mp4 = suffix == ".mp4"
    rate = Fraction(fps).limit_denominator(1001)
    uneven = suffix in KEEPS_TIMES and bool(about.times)
    times = about.times if uneven else tuple(index / rate for index in range(frames + 1))
    measure = lcm(*(time.denominator for time in times))
    tick = Fraction(1, measure if measure <= 1_000_000 else FINEST) if uneven else 1 / rate
    starts = [round(time / tick) for time in times]
    lasting = {before: max(1, after - before) for before, after in pairwise(starts)}
    size: list[int] = []
    done = 0
    try:
        with av.open(str(path), mode="w") as container, _sound(av, container, about) as mux_sound:
            stream: Any = container.add_stream("libx264" if mp4 else "ffv1", rate=rate)
            stream.time_base = stream.codec_context.time_base = tick
            if mp4:
                stream.options = {"crf": "12", "preset": "medium"}
                stream.codec_context.sample_aspect_ratio = about.aspect
                if uneven:  # the last frame must be written last, for its duration to count
                    stream.codec_context.max_b_frames = 0

            def mux(packets: Any) -> None:
                for packet in packets:
                    packet.duration = lasting.get(packet.pts, packet.duration)
                    container.mux(packet)

            def append(video: np.ndarray) -> None:
                nonlocal done
                levels = to_levels(video, np.uint16 if about.deep else np.uint8)
                if mp4:
                    odd = ((0, 0), (0, levels.shape[1] % 2), (0, levels.shape[2] % 2), (0, 0))[: levels.ndim]
                    levels = np.pad(levels, odd, mode="edge")
                colour = levels.ndim == 4
                if not size:  # the codec opens with the first frame
                    size[:] = video.shape[1:3]
                    stream.height, stream.width = levels.shape[1:3]
                    stream.pix_fmt = _pixel_format(mp4, colour, about.deep)
                    _tag_colours(stream.codec_context, mp4, about)
                given = ("rgb48le" if about.deep else "rgb24") if colour else ("gray16le" if about.deep else "gray")
                for level in levels:
                    frame = av.VideoFrame.from_ndarray(level, format=given)
                    if mp4:
                        matrix = BT2020 if about.primaries == BT2020 else BT709
                        frame = frame.reformat(format=stream.pix_fmt, dst_colorspace=matrix, dst_color_range=LIMITED)
                    if done < frames:  # more are refused in the end
                        frame.pts, frame.time_base = starts[done], tick
                    mux(stream.encode(frame))
                    mux_sound(times[min(done, frames)])
                    done += 1

            yield append
            mux(stream.encode())
            mux_sound(None)
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise  # a full disk, say: the system's own words
        raise ValueError(
            f"a video of {'x'.join(map(str, size))} at {fps} frames/s cannot be encoded as "
            f"{path} ({error}); wanted a size and rate that the codec takes; write .npz or .tif"
        ) from error


def _pixel_format(mp4: bool, colour: bool, deep: bool) -> str:
    """What the codec gets."""
    if mp4:
        return "yuv420p10le" if deep else "yuv420p"
    if deep:
        return "gbrp16le" if colour else "gray16le"
    return "bgr0" if colour else "gray"


def _tag_colours(codec: Any, mp4: bool, about: About) -> None:
    """What colours a stream holds; without tags, players guess by the size of the picture."""
    codec.color_primaries = BT709 if about.primaries == UNSPECIFIED else about.primaries
    codec.color_trc = BT709 if about.transfer == UNSPECIFIED else about.transfer
    if mp4:
        codec.colorspace = BT2020 if about.primaries == BT2020 else BT709
        codec.color_range = LIMITED


@contextmanager
def _sound(av: Any, container: Any, about: About) -> Iterator[Callable[[Fraction | None], None]]:
    """Yields a function that copies the sound up to a time in seconds, as it is; None: all of it."""
    if about.sound is None:
        yield lambda until: None
        return
    with av.open(str(about.sound)) as source:
        known = [stream for stream in source.streams.audio if stream.codec_context is not None]
        taken = [stream for stream in known if stream.codec_context.name in container.supported_codecs]
        if len(taken) < len(source.streams.audio):
            names = (
                ", ".join(stream.codec_context.name for stream in known if stream not in taken) or "an unknown codec"
            )
            remark(f"{container.format.name} does not take sound of {names}, which is left out; wanted .mkv to keep it")
        copies = {stream.index: container.add_stream_from_template(stream) for stream in taken}
        for stream in taken:
            layout = stream.codec_context.layout
            if "channels" in layout.name and layout.nb_channels in SPEAKERS:  # .avi says their number alone
                copies[stream.index].codec_context.layout = SPEAKERS[layout.nb_channels]
            with suppress(KeyError, ValueError):  # a language that the container cannot say
                copies[stream.index].metadata.update(stream.metadata)
        packets = iter(source.demux(taken)) if taken else iter(())
        waiting: list[Any] = []

        def mux_sound(until: Fraction | None) -> None:
            while True:
                packet = waiting.pop() if waiting else next(packets, None)
                if packet is None:
                    return
                if packet.pts is None or packet.dts is None:
                    continue  # the end of a stream
                shift = round(about.start / packet.time_base)
                if packet.pts + (packet.duration or 0) <= shift and container.format.name != "mp4":
                    continue  # what decoders throw away; Matroska and AVI would begin with it, and delay the frames
                if until is not None and (packet.pts - shift) * packet.time_base > until:
                    waiting.append(packet)
                    return
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = copies[packet.stream.index]
                container.mux(packet)

        yield mux_sound


_KINDS = {
    ".mp4": _movie_writer,
    ".avi": _movie_writer,
    ".mkv": _movie_writer,
    ".gif": _gif_writer,
    ".webp": _animation_writer,
    ".png": _animation_writer,
    ".npz": _npz_writer,
    ZARR: _zarr_writer,
    **dict.fromkeys(TIF_SUFFIXES, _tif_writer),
}
