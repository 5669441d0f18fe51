"""Images and films in, larger or better ones out: `upscale`, `restore`, and the steps that they are made of."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bitlens import checkpoint
from bitlens.data.images import Picture, count_frames, load_picture
from bitlens.data.jpeg import Jpeg
from bitlens.data.levels import check_white, in_unit_range, to_float, to_grey, to_levels
from bitlens.data.pictures import PICTURE_SUFFIXES, write_picture
from bitlens.data.video import ANIMATION_SUFFIXES, MOVIE_SUFFIXES, open_movie
from bitlens.data.writers import check_size, check_target, video_writer
from bitlens.engine.registry import Name
from bitlens.files import remark
from bitlens.inference.plausible import Seams, Watch
from bitlens.inference.reuse import Reuse
from bitlens.inference.starting import Started, start
from bitlens.inference.tiling import used_mb
from bitlens.progress import progress
from bitlens.tiles import bands, cuts, tiled, window_for

__all__ = ["Enlarged", "enlarge", "enlarge_tiled", "frames_of", "restore", "scale_of", "strips", "upscale"]

MOST_CONTEXT = 48
"""Pixels. A network that sees farther gets `CONTEXT` around its tiles, which are blended; the others are exact."""

CONTEXT = 32

ENCODED = 60
"""Frames that a video's encoder holds at once, of 1.5 bytes a pixel: what H.264 looks ahead, and its threads'."""

LIBRARIES_MB = 100
"""What torch takes when it first computes."""


@dataclass(frozen=True, eq=False)
class Enlarged:
    """What came of an image or film."""

    levels: np.ndarray | None
    """(h, w), (h, w, 3), or with transparency one channel more; uint8, or uint16 where the image was finer. None where
    it was written to a file."""
    frames: int
    """0 for an image."""
    model: str
    engine: str
    kept: float = 0.0
    """Of a film: the share of its pixels whose result was kept from frames before."""


def upscale(
    source: np.ndarray | str | os.PathLike[str],
    model: str | os.PathLike[str] | Started | None = None,
    *,
    engine: Name = "auto",
    out: str | os.PathLike[str] | None = None,
    memory_mb: int = 2000,
    white: float | int | None = None,
    still: float | int | None = 0,
    say: Callable[[str], None] | None = None,
) -> Enlarged:
    """Enlarge an image or a film by the scale of a super-resolution network, in tiles that fit into memory.

    Args:
        source: (h, w) or (h, w, 3), uint8, uint16 or floats in [0, 1]; or the path of an image or film.
        model: a shipped name, the path of a checkpoint, or what `start` returned, for several images. None: the
            default network.
        engine: what computes (`engine.registry`); not looked at where the model was started already.
        out: a file or folder to write; of an image .png or .tif. What the source says of itself (orientation,
            transparency, depth, profile, resolution; of films times, sound, shape of pixels) is kept as far as the kind
            of file can. None: the image is returned; a film is always written.
        memory_mb: the most memory of the whole process, in MB of 2^20 bytes.
        white: the value of white in images of 16 bits or floats. None: 65535, and 1.
        still: of films: the most, of values in [0, 1], that pixels may have changed for the result of the frame before
            to be kept. 0: nothing, so that the result is the same; None: every frame is computed.
        say: is handed every note when it is known, before the work begins.

    Raises:
        FileNotFoundError: the file or the model is missing.
        ValueError: no image, a network for other things, NaN came out, or no tile fits.
        MemoryError: the system has less memory than the budget.

    Example:
        >>> bitlens.upscale("photo.jpg").levels.shape  # doctest: +SKIP
        (1536, 2048, 3)
    """
    return _run("super-resolution", source, model, engine, out, memory_mb, white, still, say)


def restore(
    source: np.ndarray | str | os.PathLike[str],
    model: str | os.PathLike[str] | Started | None = None,
    *,
    engine: Name = "auto",
    out: str | os.PathLike[str] | None = None,
    memory_mb: int = 2000,
    white: float | int | None = None,
    still: float | int | None = 0,
    faithful: bool = False,
    say: Callable[[str], None] | None = None,
) -> Enlarged:
    """Take noise and what JPEG left behind out of an image or a film, at its size, in tiles that fit into memory.

    Arguments, results and errors are those of `upscale`, for networks whose task is restoration; and:

    Args:
        faithful: of the path of a .jpg: hold the result to what the file says of the image that was compressed
            (`data.jpeg`). That gives more of what compression took, and leaves the noise that was there before it.

    Example:
        >>> bitlens.restore("photo.jpg").levels.shape  # doctest: +SKIP
        (768, 1024, 3)
    """
    return _run("restoration", source, model, engine, out, memory_mb, white, still, say, faithful)


def _run(
    task: str,
    source: np.ndarray | str | os.PathLike[str],
    model: str | os.PathLike[str] | Started | None,
    engine: Name,
    out: str | os.PathLike[str] | None,
    memory_mb: int,
    white: float | int | None,
    still: float | int | None,
    say: Callable[[str], None] | None,
    faithful: bool = False,
) -> Enlarged:
    """An image or a film through a network for a task."""
    model = checkpoint.default(task) if model is None else model
    begin = partial(_started, task, model, engine, say or (lambda _: None))
    if isinstance(source, np.ndarray):
        if source.ndim not in (2, 3) or source.shape[2:] not in ((), (3,)) or source.dtype.kind not in "uf":
            raise ValueError(
                f"an image {source.shape} of {source.dtype} came; wanted (h, w) or (h, w, 3) of uint8, uint16 or floats"
                "; convert it"
            )
        return _image(Path("the image"), Picture(source), begin, out, memory_mb, white, faithful)
    path = Path(source)
    movie = path.suffix.lower() in ANIMATION_SUFFIXES and (
        out is None or Path(out).suffix.lower() not in PICTURE_SUFFIXES
    )
    if frames_of(path) != 1 or movie:
        if out is None:
            raise ValueError(f"{path} holds frames, and no place came for them; wanted one; pass out=...")
        if faithful:
            not_held(path)
        return _film(path, begin, os.fspath(out), memory_mb, white, still)
    return _image(path, None, begin, out, memory_mb, white, faithful)


def frames_of(path: Path) -> int:
    """Frames or pages of a file; 0 for a film, whose frames are not counted here."""
    return 0 if path.suffix.lower() in MOVIE_SUFFIXES else count_frames(path)


def _started(task: str, model: str | os.PathLike[str] | Started, engine: Name, say: Callable[[str], None]) -> Started:
    """What computes, said."""
    if not isinstance(model, Started):
        model = start(model, engine, task)
    say(f"engine: {model.how}")
    return model


def _image(
    path: Path,
    image: Picture | None,
    begin: Callable[[], Started],
    out: str | os.PathLike[str] | None,
    memory_mb: int,
    white: float | int | None,
    faithful: bool,
) -> Enlarged:
    """An image, written in strips."""
    if out is not None and Path(out).suffix.lower() not in PICTURE_SUFFIXES:
        raise ValueError(f"cannot write {out}; wanted a name that ends in {' or '.join(PICTURE_SUFFIXES)}; change it")
    image = load_picture(path) if image is None else image
    check_white(image.levels, path, white)
    if faithful and image.jpeg is None:
        not_held(path)
    model = begin()
    rows = strips(model, image, path, memory_mb, white, image.jpeg if faithful else None)
    if out is None:
        levels = np.concatenate(list(rows))
        return Enlarged(levels[..., 0] if levels.shape[-1] == 1 else levels, 0, model.about.name, model.how)
    height, width = (model.network.scale * length for length in image.levels.shape[:2])
    write_picture(out, height, width, rows, image)
    return Enlarged(None, 0, model.about.name, model.how)


def not_held(path: Path) -> None:
    """Say that a result is not held to its file."""
    remark(f"{path} does not say what was compressed; wanted a .jpg in grey or luma and colour; it is restored freely")


def strips(
    model: Started, image: Picture, path: Path, memory_mb: int, white: float | int | None, jpeg: Jpeg | None = None
) -> Iterator[np.ndarray]:
    """The enlarged image, a few rows at a time: levels (n, w, channels) of 8 bits, or 16 for finer ones.

    `jpeg`: what a restored one is held to.
    """
    network, running = model.network, model.running
    dtype = np.uint8 if image.levels.dtype == np.uint8 else np.uint16
    grey, levels, alpha = image.levels.ndim == 2, image.levels, None
    if image.alpha is not None:
        levels = without_hidden(levels, image.alpha)
        alpha = to_levels(enlarge_alpha(to_float(image.alpha), network.scale), dtype)

    def values(tile: np.ndarray) -> np.ndarray:
        """A tile (1 or 3, h, w) of levels as (3, h, w) in [0, 1]."""
        return np.array(np.broadcast_to(in_unit_range(tile, white), (3, *tile.shape[1:])))

    watch, seams, done = Watch(str(path)), Seams(blends(network)), 0
    planes = levels[None] if grey else levels.transpose(2, 0, 1)
    with progress("tiles") as bar:
        task = bar.add_task(path.name, total=None)

        def run(tile: np.ndarray) -> np.ndarray:
            small = values(tile)
            large = enlarge(running, small, str(path))
            watch.see(small, large)
            return large

        found = bands(
            run,
            [planes],
            window=band_window(network, planes.shape[1:], memory_mb, running),
            scale=network.scale,
            blend=blends(network),
            on_tile=lambda done, count: bar.update(task, completed=done, total=count),
            on_seam=seams.see,
            **cut_of(network),
        )
        for band in found if jpeg is None else jpeg.hold(found, planes):
            for first in range(0, band.shape[1], 64):
                part = band[:, first : first + 64].transpose(1, 2, 0)
                level = to_levels(to_grey(part)[..., None] if grey else part, dtype)
                if alpha is not None:
                    level = np.dstack([level, alpha[done : done + len(level)]])
                done += len(level)
                yield level
    watch.remark()
    seams.remark(str(path))


def _film(
    path: Path,
    begin: Callable[[], Started],
    out: str,
    memory_mb: int,
    white: float | int | None,
    still: float | int | None,
) -> Enlarged:
    """A film, one frame after the other."""
    suffix = check_target(out)
    movie = open_movie(path, white)
    model = begin()
    network, running = model.network, model.running
    watch, seams = Watch(str(path)), Seams(blends(network))
    with video_writer(out, movie.frames, movie.fps, movie.about) as write, progress("frames") as bar:
        task = bar.add_task(path.name, total=movie.frames)
        run: Callable[[np.ndarray], np.ndarray] | None = None
        for frame in movie:
            if run is None:  # for all frames: the encoder's memory comes with the first ones
                check_size(network.scale * frame.shape[0], network.scale * frame.shape[1], suffix)
                held = ENCODED * 1.5 * frame[..., 0].size * network.scale**2 / 2**20
                window = window_of(network, frame.shape[:2], memory_mb, running, held)
                run = _frame_by_frame(model, window, memory_mb, seams, still)
            alpha = frame[..., 3] if frame.shape[-1] == 4 else None
            colours = frame[..., :3] if alpha is None else without_hidden(frame[..., :3], alpha)
            small = np.ascontiguousarray(colours.transpose(2, 0, 1))  # 3 h w
            large = run(small)
            watch.see(small, large)
            large = large.transpose(1, 2, 0)
            if alpha is not None:
                large = np.dstack([large, enlarge_alpha(alpha, network.scale)])
            write(large[None])
            bar.advance(task)
    watch.remark()
    seams.remark(str(path))
    kept = run.kept if isinstance(run, Reuse) else 0.0
    return Enlarged(None, movie.frames, model.about.name, model.how, kept)


def _frame_by_frame(
    model: Started, window: tuple[int, int], memory_mb: int, seams: Seams, still: float | int | None
) -> Callable[[np.ndarray], np.ndarray]:
    """What computes one frame after the other, all of one size; with `still` it keeps what did not change."""
    network, running = model.network, model.running

    def whole(frame: np.ndarray) -> np.ndarray:
        return enlarge_tiled(network, frame, memory_mb, None, running, window, seams)

    if still is None or blends(network):
        return whole
    return Reuse(whole, partial(enlarge, running, label="a tile"), scale=network.scale, still=still, **cut_of(network))


def scale_of(network: Any) -> int | None:
    """How many times a network enlarges images, 1 if it restores them; None for one that reconstructs video."""
    return getattr(network, "scale", None)


def enlarge(network: Callable[..., Any], picture: np.ndarray, label: str) -> np.ndarray:
    """Run a network for images on one of them (3, h, w) in [0, 1]: (3, scale h, scale w), not clipped.

    Raises:
        ValueError: the network returned NaN or infinity.
        MemoryError: the network did not fit.
    """
    import torch

    try:
        with torch.inference_mode():
            large = network(torch.from_numpy(picture)[None])[0]
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        height, width = picture.shape[1:]
        raise MemoryError(
            f"{label} ran out of memory on {height}x{width} pixels; wanted a smaller picture; "
            "use bitlens upscale or restore with --memory-mb, or crop it"
        ) from error
    if not bool(large.isfinite().all()):
        raise ValueError(
            f"{label}: the network returned NaN or infinite values; wanted finite numbers; the checkpoint is damaged"
        )
    return large.numpy()


def without_hidden(levels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Levels (h, w) or (h, w, 3) in which pixels that cannot be seen have the colour of the nearest that can.

    What lies hidden under transparency, noise often, would otherwise be drawn into what is seen.
    """
    from scipy.ndimage import distance_transform_edt

    hidden = alpha == 0
    if not hidden.any():
        return levels
    if hidden.all():
        return np.zeros_like(levels)
    nearest: Any = distance_transform_edt(hidden, return_distances=False, return_indices=True)
    return levels[nearest[0], nearest[1]]


def enlarge_alpha(alpha: np.ndarray, scale: int) -> np.ndarray:
    """Transparency (h, w) in [0, 1], enlarged by bicubic interpolation, in [0, 1]."""
    from PIL import Image

    size = scale * alpha.shape[1], scale * alpha.shape[0]
    large = Image.fromarray(np.ascontiguousarray(alpha, np.float32)).resize(size, Image.Resampling.BICUBIC)
    return np.clip(np.asarray(large), 0, 1)


def enlarge_tiled(
    network: Any,
    picture: np.ndarray,
    memory_mb: int,
    on_tile: Any = None,
    running: Any = None,
    window: tuple[int, int] | None = None,
    seams: Seams | None = None,
) -> np.ndarray:
    """Run a network for images on one (3, h, w) in [0, 1], in tiles: (3, scale h, scale w), not clipped.

    Args:
        network: with `radius`, `alignment` and `scale`.
        picture: (3, h, w).
        memory_mb: the most memory of the whole process.
        on_tile: as for `tiled`.
        running: what computes; None: the network itself.
        window: of the tiles; None: `window_of`.
        seams: looks at where tiles meet.

    Raises:
        ValueError: the budget does not hold the smallest tile (the message says what would), or NaN came out.
        MemoryError: the system has less than the budget.
    """

    running = network if running is None else running
    return tiled(
        lambda tile: enlarge(running, tile, "the network"),
        [picture],
        window=window or window_of(network, picture.shape[1:], memory_mb, running),
        scale=network.scale,
        blend=blends(network),
        on_tile=on_tile,
        on_seam=None if seams is None else seams.see,
        **cut_of(network),
    )


def cut_of(network: Any) -> dict[str, int]:
    """How tiles lie: the pixels around each, and what their sides are multiples of.

    Exact tiles have a pixel more than the network sees, so that neighbours can be compared (`Seams`).
    """
    return dict(overlap=CONTEXT if blends(network) else network.radius + 1, multiple=int(network.alignment))


def blends(network: Any) -> bool:
    """Whether the network sees so far that its tiles have less context, and are blended."""
    return network.radius is None or network.radius > MOST_CONTEXT


def window_of(
    network: Any, size: tuple[int, ...], memory_mb: int, running: Any, held_mb: float = 0.0
) -> tuple[int, int]:
    """The largest tile that fits, for a picture of a height and width; `held_mb` is what others will take meanwhile.

    Raises:
        ValueError: the budget does not hold the smallest tile.
    """

    height, width = size
    result_mb = 3 * height * width * network.scale**2 * (4 + 2) / 2**20  # floats, then levels, twice
    need, taken = need_of(network, running)
    return window_for(memory_mb, need, taken + result_mb + held_mb, size=(height, width), **cut_of(network))


def band_window(network: Any, size: tuple[int, ...], memory_mb: int, running: Any) -> tuple[int, int]:
    """The tile that costs the least computation where no more of the result is held than the rows of one tile.

    Raises:
        ValueError: the budget does not hold the smallest tile.
    """

    height, width = size
    cut = cut_of(network)
    overlap, multiple = cut["overlap"], cut["multiple"]
    need, taken = need_of(network, running)
    best: tuple[tuple[int, int], tuple[int, int]] | None = None  # pixels and tiles that are computed, and the tile
    rows = height
    while True:
        band_mb = 3 * rows * width * network.scale**2 * 4 / 2**20
        try:
            window = window_for(memory_mb, need, taken + band_mb, size=(rows, width), **cut)
            tall, wide = cuts(height, window[0], overlap, multiple), cuts(width, window[1], overlap, multiple)
        except ValueError:
            if rows <= 2 * overlap + multiple and best is None:
                raise
        else:
            work = sum((row.stop - row.start) * (column.stop - column.start) for row in tall for column in wide)
            found = (work, len(tall) * len(wide)), window
            best = min(best or found, found)
        if rows <= 2 * overlap + multiple:
            assert best is not None
            return best[1]
        rows = max(-(-rows // 2), 2 * overlap + multiple)


def need_of(network: Any, running: Any) -> tuple[float, float]:
    """Bytes for each pixel of a tile while it is computed, and MB that are taken whatever the tiles are."""
    from bitlens.engine.memory import bytes_per_pixel
    from bitlens.engine.registry import memory_of

    return bytes_per_pixel(network, None, memory_of(running, network)), used_mb() + LIBRARIES_MB
