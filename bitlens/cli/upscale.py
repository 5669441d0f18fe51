"""`bitlens upscale`: enlarge pictures and videos with a super-resolution network, in tiles that fit into memory."""

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from bitlens.cli.plausible import Seams, Watch
from bitlens.engine.registry import Name

if TYPE_CHECKING:
    import numpy as np

    from bitlens.cli.archive import Item
    from bitlens.data.images import Picture

MOST_CONTEXT = 48
"""Pixels. A network that sees farther gets `CONTEXT` around its tiles, which are blended; the others are exact."""

CONTEXT = 32

ENCODED = 60
"""Frames that a video's encoder holds at once, of 1.5 bytes a pixel: what H.264 looks ahead, and its threads'."""

LIBRARIES_MB = 100
"""What torch takes when it first computes."""

MOVING = {".avif": ".webp", ".mov": ".mp4", ".webm": ".mkv"}
"""What a film or animation becomes among several results, where it does not keep its suffix."""


@dataclass(frozen=True)
class Upscale:
    """Enlarge a picture, all pictures of a folder, or a video, by the scale of the network.

    What does not fit into --memory-mb as a whole is cut into tiles, which overlap. A network that sees no farther than
    48 pixels (PAN, EDSR) gives exactly what it gives for the whole picture; the tiles of others are blended.

    What a file says of itself is kept: orientation, transparency (enlarged beside the colours), 16 bits, colour profile
    and resolution; of a video times, sound, the shape of pixels, 10 bits and colours. What a kind of file cannot hold
    is said.

    A folder, several files or 'patterns*' in quotes become one result each in the folder --out, whole or not at all.
    What is there from an earlier run, of the same files, network and settings, is skipped; what is broken is named in
    the end, and the others are made.

    Example:
        bitlens upscale photo.jpg --model ngswin-x2.safetensors --out photo-x2.png
        bitlens upscale film.mp4 --model imdn-x2.safetensors --out film-x2.mp4
        bitlens upscale photos/ --model imdn-x2.safetensors --out large/ --recursive --cluster
    """

    sources: tyro.conf.Positional[tuple[Path, ...]]
    """An image (.png .jpg .bmp .tif .webp .gif .avif), or a video (.mp4 .avi .mkv .mov .webm; an animated .gif .webp
    .png .avif; a .tif of several pages); or several, a folder of images, or 'patterns*'."""
    model: str
    """A super-resolution network: a shipped name (see `bitlens models`) or the path of a .safetensors."""
    out: str
    """A .png or .tif to write; for a video a video (.mp4 .mkv with sound, .avi, .gif .webp .png, .tif, .npz .zarr) or a
    folder of .png frames; for several sources a folder, which gets one .png for each picture."""
    engine: Name = "auto"
    """What computes: torch (low bits are simulated), openvino (int8 on the CPU; each size of tile is compiled once),
    native (our kernels, where they are built), onnxruntime (in float what low bits compute), or reference (integers in
    plain torch, slow). auto: for low-bit networks native where it is faster, or openvino; else torch."""
    memory_mb: int = 2000
    """The most memory to take, in MB of 2^20 bytes, the program itself included."""
    recursive: bool = False
    """Enlarge the pictures in the folders of a folder too; the result has the same folders."""
    white: float | None = None
    """The value of white in pictures of 16 bits or floats: 4095 for 12 bits of a camera. Default: 65535, and 1."""
    cluster: str | None = None
    """Have a Dask cluster do it: local (or no value) for processes of this machine, the address of a scheduler
    (tcp://host:8786) whose workers see the same files, or slurm for jobs as Dask's configuration describes them."""
    workers: int | None = None
    """Workers of the cluster, of one thread and --memory-mb each. Default: one for each core; for slurm 4 jobs."""
    json: Path | None = None
    """Also write the table of several results to this file."""

    def run(self) -> None:
        from bitlens.cli import archive
        from bitlens.cli.shared import check_other, check_positive

        check_positive("--memory-mb", self.memory_mb)
        if self.white is not None:
            check_positive("--white", self.white)
        archive.check_cluster(self.cluster, self.workers)
        if not self.sources:
            raise ValueError("no SOURCES; wanted images, films or folders of images; name what to enlarge")
        for source in self.sources:
            check_other(self.out, source)
        found, many = archive.expand(self.sources, self.pictures_in, [Path(self.out)])
        if many or self.cluster is not None or self.json is not None:
            self.enlarge_all(found)
            return
        (source,) = found.values()
        if not source.exists():
            raise FileNotFoundError(
                f"no file or folder {source}; wanted an image or a folder of images, or a video; check the path"
            )
        network = load_enlarging(self.model)
        self.enlarge_file(network, source, self.out)

    def pictures_in(self, folder: Path) -> list[Path]:
        """The pictures of a folder, and of its folders where that was asked for.

        Raises:
            FileNotFoundError: there are none.
        """
        from bitlens.data.images import IMAGE_SUFFIXES, folder_images
        from bitlens.data.video import ANIMATION_SUFFIXES, MOVIE_SUFFIXES
        from bitlens.files import remark

        files = folder_images(folder, (*IMAGE_SUFFIXES, *ANIMATION_SUFFIXES), self.recursive)
        inside = list(folder.iterdir())
        if not self.recursive and any(each.is_dir() and each.name[0] != "." for each in inside):
            remark(f"{folder} has folders, which are left out; wanted pictures; pass --recursive for theirs")
        if any(each.suffix.lower() in MOVIE_SUFFIXES for each in inside):
            remark(f"{folder} has films, which are left out; wanted pictures; give the films one by one")
        return files

    def enlarge_all(self, found: Mapping[str, Path]) -> None:
        """Write what can be enlarged and is not there yet.

        Raises:
            ValueError: in the end, naming those that could not be.
        """
        from bitlens import __version__, checkpoint
        from bitlens.cli import archive
        from bitlens.cli.shared import check_other, describe_run

        out = Path(self.out)
        if out.exists() and not out.is_dir():
            raise FileExistsError(f"{out} is a file; wanted a folder for the results; choose another name")
        load_enlarging(self.model)
        about = checkpoint.describe(self.model)
        sha256 = None if about.path is None else checkpoint.weights_sha256(about.path)
        flags = {flag: getattr(self, flag) for flag in ("engine", "memory_mb", "white")}
        settings = {**flags, "model": about.name, "sha256": sha256}
        items = []
        for name, source in found.items():
            keyed = {**settings, "bitlens": __version__}
            items.append(archive.item_of(name, source, out, self.suffix_for(source), keyed))
            check_other(items[-1].out, source)
        file = Path(self.model).is_file()
        alone = replace(self, sources=(), model=str(Path(self.model).absolute()) if file else self.model)
        archive.archive(
            items, partial(enlarge_item, alone, secrets.token_hex(4)), out, "enlarged", "pictures", self.cluster,
            self.workers, self.json, {**settings, **describe_run()} if self.json else {},
        )  # fmt: skip

    def suffix_for(self, file: Path) -> str:
        """Of the result among several: .png for a picture, which a broken file is taken for."""
        suffix = file.suffix.lower()
        try:
            return ".png" if self.frames_of(file) == 1 else MOVING.get(suffix, suffix)
        except (ValueError, OSError):
            return ".png"

    def frames_of(self, file: Path) -> int:
        """Frames or pages of a file; 0 for a film, whose frames are not counted here."""
        from bitlens.data.images import count_frames
        from bitlens.data.video import MOVIE_SUFFIXES

        return 0 if file.suffix.lower() in MOVIE_SUFFIXES else count_frames(file)

    def enlarge_file(self, network: Any, file: Path, out: str, running: Any = None) -> None:
        """Write the enlarged picture or video. `running`: what computes, where that has been started for a folder."""
        from bitlens.data.pictures import PICTURE_SUFFIXES
        from bitlens.data.video import ANIMATION_SUFFIXES

        frames = self.frames_of(file)
        animated = file.suffix.lower() in ANIMATION_SUFFIXES and Path(out).suffix.lower() not in PICTURE_SUFFIXES
        if frames == 1 and not animated:
            self.enlarge_picture(network, file, Path(out), running)
        else:
            self.enlarge_movie(network, file, out, running)

    def enlarge_picture(self, network: Any, file: Path, out: Path, running: Any = None) -> None:
        """Write the enlarged picture, in strips."""
        from bitlens.cli.shared import output_file
        from bitlens.data.images import check_white, load_picture
        from bitlens.data.pictures import PICTURE_SUFFIXES, write_picture

        with output_file(out, *PICTURE_SUFFIXES) as path:
            assert path is not None
            picture = load_picture(file)
            check_white(picture.levels, file, self.white)
            running, alone = running or self.start(network), running is None
            height, width = (network.scale * length for length in picture.levels.shape[:2])
            write_picture(path, height, width, self.enlarged(network, running, picture, file), picture)
        if alone:
            print(f"wrote {out}")

    def enlarge_movie(self, network: Any, file: Path, out: str, running: Any = None) -> None:
        """Write the enlarged video, one frame after the other."""
        import numpy as np

        from bitlens.cli.shared import output_video, progress
        from bitlens.data.video import open_movie
        from bitlens.data.writers import video_writer

        with output_video(out) as path:
            movie = open_movie(file, self.white)
            running, alone = running or self.start(network), running is None
            watch, seams = Watch(str(file)), Seams(blends(network))
            with video_writer(path, movie.frames, movie.fps, movie.about) as write, progress("frames") as bar:
                task = bar.add_task(file.name, total=movie.frames)
                window = None
                for frame in movie:
                    if window is None:  # that of all frames: the encoder's memory comes with the first ones
                        held = ENCODED * 1.5 * frame[..., 0].size * network.scale**2 / 2**20
                        window = window_of(network, frame.shape[:2], self.memory_mb, running, held)
                    alpha = frame[..., 3] if frame.shape[-1] == 4 else None
                    colours = frame[..., :3] if alpha is None else without_hidden(frame[..., :3], alpha)
                    picture = np.ascontiguousarray(colours.transpose(2, 0, 1))  # 3 h w
                    large = enlarge_tiled(network, picture, self.memory_mb, None, running, window, seams)
                    watch.see(picture, large)
                    large = large.transpose(1, 2, 0)
                    if alpha is not None:
                        large = np.dstack([large, enlarge_alpha(alpha, network.scale)])
                    write(large[None])
                    bar.advance(task)
            watch.remark()
            seams.remark(str(file))
        if alone:
            print(f"wrote {movie.frames} frames to {out}")

    def start(self, network: Any) -> Any:
        """What runs the network."""
        from bitlens.cli.shared import keep_freed_memory
        from bitlens.engine.registry import choose_engine
        from bitlens.report import console

        keep_freed_memory()
        with console().status("checking every layer"):
            running, how = choose_engine(network, self.engine)
        print(f"engine: {how}")
        return running

    def enlarged(self, network: Any, running: Any, picture: "Picture", file: Path) -> "Iterator[np.ndarray]":
        """The enlarged picture, a few rows at a time: levels (n, w, channels) of 8 bits, or 16 for finer ones."""
        import numpy as np

        from bitlens.cli.pictures import enlarge
        from bitlens.cli.shared import progress
        from bitlens.data.images import in_unit_range, to_float, to_grey, to_levels
        from bitlens.tiles import bands

        dtype = np.uint8 if picture.levels.dtype == np.uint8 else np.uint16
        grey, levels, alpha = picture.levels.ndim == 2, picture.levels, None
        if picture.alpha is not None:
            levels = without_hidden(levels, picture.alpha)
            alpha = to_levels(enlarge_alpha(to_float(picture.alpha), network.scale), dtype)

        def values(tile: "np.ndarray") -> "np.ndarray":
            """A tile (1 or 3, h, w) of levels as (3, h, w) in [0, 1]."""
            return np.array(np.broadcast_to(in_unit_range(tile, self.white), (3, *tile.shape[1:])))

        watch, seams, done = Watch(str(file)), Seams(blends(network)), 0
        planes = levels[None] if grey else levels.transpose(2, 0, 1)
        with progress("tiles") as bar:
            task = bar.add_task(file.name, total=None)

            def run(tile: "np.ndarray") -> "np.ndarray":
                small = values(tile)
                large = enlarge(running, small, "upscale")
                watch.see(small, large)
                return large

            for band in bands(
                run,
                [planes],
                window=band_window(network, planes.shape[1:], self.memory_mb, running),
                scale=network.scale,
                blend=blends(network),
                on_tile=lambda done, count: bar.update(task, completed=done, total=count),
                on_seam=seams.see,
                **cut_of(network),
            ):
                for first in range(0, band.shape[1], 64):
                    part = band[:, first : first + 64].transpose(1, 2, 0)
                    level = to_levels(to_grey(part)[..., None] if grey else part, dtype)
                    if alpha is not None:
                        level = np.dstack([level, alpha[done : done + len(level)]])
                    done += len(level)
                    yield level
        watch.remark()
        seams.remark(str(file))


def load_enlarging(model: str) -> Any:
    """A network that enlarges pictures.

    Raises:
        FileNotFoundError, ValueError: no such model, or one that reconstructs video.
    """
    from bitlens import checkpoint
    from bitlens.cli.pictures import scale_of

    network = checkpoint.load(model)
    if scale_of(network) is None:
        raise ValueError(
            f"{model} reconstructs video from measurements; wanted a super-resolution network; run bitlens reconstruct "
            "with it, or enlarge with another one"
        )
    return network


@lru_cache(maxsize=1)
def start_once(model: str, engine: str, run: str) -> tuple[Any, Any, str]:
    """A network, what runs it, and a line that says so, once for each run in each process."""
    from bitlens.cli.shared import keep_freed_memory
    from bitlens.engine.registry import choose_engine

    keep_freed_memory()
    network = load_enlarging(model)
    return network, *choose_engine(network, engine)


def enlarge_item(settings: Upscale, run: str, item: "Item", place: Path) -> dict[str, Any]:
    """One of several files, in whatever process: what there is to say of it."""
    network, running, how = start_once(settings.model, settings.engine, run)
    settings.enlarge_file(network, item.source, str(place), running)
    return {"frames": settings.frames_of(item.source) or None, "engine": how}


def without_hidden(levels: "np.ndarray", alpha: "np.ndarray") -> "np.ndarray":
    """Levels (h, w) or (h, w, 3) in which pixels that cannot be seen have the colour of the nearest that can.

    What lies hidden under transparency, noise often, would otherwise be drawn into what is seen.
    """
    import numpy as np
    from scipy.ndimage import distance_transform_edt

    hidden = alpha == 0
    if not hidden.any():
        return levels
    if hidden.all():
        return np.zeros_like(levels)
    nearest: Any = distance_transform_edt(hidden, return_distances=False, return_indices=True)
    return levels[nearest[0], nearest[1]]


def enlarge_alpha(alpha: "np.ndarray", scale: int) -> "np.ndarray":
    """Transparency (h, w) in [0, 1], enlarged by bicubic interpolation, in [0, 1]."""
    import numpy as np
    from PIL import Image

    size = scale * alpha.shape[1], scale * alpha.shape[0]
    large = Image.fromarray(np.ascontiguousarray(alpha, np.float32)).resize(size, Image.Resampling.BICUBIC)
    return np.clip(np.asarray(large), 0, 1)


def enlarge_tiled(
    network: Any,
    picture: "np.ndarray",
    memory_mb: int,
    on_tile: Any = None,
    running: Any = None,
    window: tuple[int, int] | None = None,
    seams: Seams | None = None,
) -> "np.ndarray":
    """Run a super-resolution network on a picture (3, h, w) in [0, 1], in tiles: (3, scale h, scale w), not clipped.

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
    from bitlens.cli.pictures import enlarge
    from bitlens.tiles import tiled

    running = network if running is None else running
    return tiled(
        lambda tile: enlarge(running, tile, "upscale"),
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
    from bitlens.tiles import window_for

    height, width = size
    result_mb = 3 * height * width * network.scale**2 * (4 + 2) / 2**20  # floats, then levels, twice
    need, taken = need_of(network, running)
    return window_for(memory_mb, need, taken + result_mb + held_mb, size=(height, width), **cut_of(network))


def band_window(network: Any, size: tuple[int, ...], memory_mb: int, running: Any) -> tuple[int, int]:
    """The tile that costs the least computation where no more of the result is held than the rows of one tile.

    Raises:
        ValueError: the budget does not hold the smallest tile.
    """
    from bitlens.tiles import cuts, window_for

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
    from bitlens.cli.tiling import used_mb
    from bitlens.engine.memory import bytes_per_pixel
    from bitlens.engine.registry import memory_of

    return bytes_per_pixel(network, None, memory_of(running, network)), used_mb() + LIBRARIES_MB


def levels_last(large: "np.ndarray") -> "np.ndarray":
    """A picture (3, h, w) in [0, 1] as 8-bit levels (h, w, 3); a few rows at a time, to take little memory."""
    import numpy as np

    from bitlens.data.images import to_levels

    levels = np.empty((*large.shape[1:], 3), np.uint8)
    for row in range(0, len(levels), 64):
        levels[row : row + 64] = to_levels(large[:, row : row + 64]).transpose(1, 2, 0)
    return levels
