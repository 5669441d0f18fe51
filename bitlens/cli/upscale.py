"""`bitlens upscale`: enlarge pictures and videos with a super-resolution network, in tiles that fit into memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

if TYPE_CHECKING:
    import numpy as np

MOST_CONTEXT = 48
"""Pixels. A network that sees farther gets `CONTEXT` around its tiles, which are blended; the others are exact."""

CONTEXT = 32

ENCODED = 60
"""Frames that a video's encoder holds at once, of 1.5 bytes a pixel: what H.264 looks ahead, and its threads'."""

LIBRARIES_MB = 100
"""What torch takes when it first computes."""

HEADROOM = {"float": 2.5, "low-bit": 4.0, "openvino": 1.5}
"""What tiles take, over what the tensors of one take: operators copy their inputs, simulated grids more so, and what is
freed leaves gaps.

Measured in float: 1.0 to 1.4 for one picture of 320 x 320 (PAN, IMDN, SwinIR), 2.0 after many tiles (PAN). OpenVINO, 8
bits, 256 x 256, compilation included: 0.4 (IMDN), 0.6 (PAN).
"""


@dataclass(frozen=True)
class Upscale:
    """Enlarge a picture, all pictures of a folder, or a video, by the scale of the network.

    What does not fit into --memory-mb as a whole is cut into tiles, which overlap. A network that sees no farther than
    48 pixels (PAN, EDSR) gives exactly what it gives for the whole picture; the tiles of others are blended.

    Example:
        bitlens upscale photo.jpg --model ngswin-x2.safetensors --out photo-x2.png
        bitlens upscale film.mp4 --model imdn-x2.safetensors --out film-x2.mp4
    """

    source: tyro.conf.Positional[Path]
    """An image, a folder of them (.png .jpg .bmp .tif), or a video (.mp4 .avi .mkv .mov .webm .gif .avif)."""
    model: str
    """A super-resolution network: a shipped name (see `bitlens models`) or the path of a .safetensors."""
    out: str
    """A .png to write; for a folder a new or empty folder, which gets one .png for each picture; for a video a video
    (.mp4 .avi .mkv .gif .npz .tif, without sound) or a folder of .png frames."""
    engine: Literal["auto", "native", "openvino", "onnxruntime", "torch", "reference"] = "auto"
    """What computes: torch (low bits are simulated), openvino (int8 on the CPU; each size of tile is compiled once), or
    native (our kernels: SwinIR), or reference (integers in plain torch, slow); onnxruntime knows video networks alone.
    auto: for low-bit networks native where it knows them, or openvino; else torch."""
    memory_mb: int = 2000
    """The most memory to take, in MB of 2^20 bytes, the program itself included."""

    def run(self) -> None:
        from bitlens import checkpoint
        from bitlens.cli.pictures import scale_of
        from bitlens.cli.shared import check_positive, output_file
        from bitlens.data.images import write_png
        from bitlens.data.pairs import picture_files
        from bitlens.data.video import ANIMATION_SUFFIXES, MOVIE_SUFFIXES
        from bitlens.files import atomic_folder

        check_positive("--memory-mb", self.memory_mb)
        is_video = self.source.suffix.lower() in MOVIE_SUFFIXES + ANIMATION_SUFFIXES and not self.source.is_dir()
        files = [] if is_video else picture_files(self.source)
        network = checkpoint.load(self.model)
        if scale_of(network) is None:
            raise ValueError(f"{self.model} reconstructs video; wanted a super-resolution network; see bitlens models")
        if is_video:
            self.enlarge_movie(network)
            return
        out = Path(self.out)
        if self.source.is_file():
            with output_file(out, ".png") as path:
                assert path is not None
                running = self.start(network)
                write_png(path, self.enlarged(network, running, files[0]))
            print(f"wrote {self.out}")
            return
        stems = [file.stem for file in files]
        twice = next((stem for stem in stems if stems.count(stem) > 1), None)
        if twice is not None:
            raise ValueError(f"{self.source} has two pictures named {twice}; wanted one of each name; rename one")
        with atomic_folder(out) as folder:
            running = self.start(network)
            for file in files:
                write_png(folder / f"{file.stem}.png", self.enlarged(network, running, file))
        print(f"wrote {len(files)} pictures to {self.out}")

    def enlarge_movie(self, network: Any) -> None:
        """Write the enlarged video, one frame after the other."""
        import numpy as np

        from bitlens.cli.shared import output_video, progress
        from bitlens.data.video import open_movie
        from bitlens.data.writers import video_writer

        with output_video(self.out) as path:
            movie = open_movie(self.source)
            running = self.start(network)
            with video_writer(path, movie.frames, movie.fps) as write, progress("frames") as bar:
                task = bar.add_task(self.source.name, total=movie.frames)
                window = None
                for frame in movie:
                    if window is None:  # that of all frames: the encoder's memory comes with the first ones
                        held = ENCODED * 1.5 * frame[..., 0].size * network.scale**2 / 2**20
                        window = window_of(network, frame.shape[:2], self.memory_mb, running, held)
                    picture = np.ascontiguousarray(frame.transpose(2, 0, 1))  # 3 h w
                    large = enlarge_tiled(network, picture, self.memory_mb, None, running, window)
                    write(large.transpose(1, 2, 0)[None])
                    bar.advance(task)
        print(f"wrote {movie.frames} frames to {self.out}")

    def start(self, network: Any) -> Any:
        """What runs the network."""
        from bitlens.cli.shared import choose_engine, keep_freed_memory
        from bitlens.report import console

        keep_freed_memory()
        with console().status("checking every layer"):
            running, how = choose_engine(network, self.engine)
        print(f"engine: {how}")
        return running

    def enlarged(self, network: Any, running: Any, file: Path) -> "np.ndarray":
        """The enlarged picture, uint8 (h, w, 3)."""
        from bitlens.cli.shared import progress
        from bitlens.data.images import to_float
        from bitlens.data.pairs import read_picture

        picture = to_float(read_picture(file))  # 3 h w
        with progress("tiles") as bar:
            task = bar.add_task(file.name, total=None)
            large = enlarge_tiled(
                network, picture, self.memory_mb, lambda done, count: bar.update(task, completed=done, total=count),
                running,
            )  # fmt: skip
        return levels_last(large)


def enlarge_tiled(
    network: Any,
    picture: "np.ndarray",
    memory_mb: int,
    on_tile: Any = None,
    running: Any = None,
    window: tuple[int, int] | None = None,
) -> "np.ndarray":
    """Run a super-resolution network on a picture (3, h, w) in [0, 1], in tiles: (3, scale h, scale w), not clipped.

    Args:
        network: with `radius`, `alignment` and `scale`.
        picture: (3, h, w).
        memory_mb: the most memory of the whole process.
        on_tile: as for `tiled`.
        running: what computes; None: the network itself.
        window: of the tiles; None: `window_of`.

    Raises:
        ValueError: the budget does not hold the smallest tile (the message says what would), or NaN came out.
        MemoryError: the system has less than the budget.
    """
    from bitlens.cli.pictures import enlarge
    from bitlens.tiles import tiled

    running = network if running is None else running
    cut = cut_of(network)
    return tiled(
        lambda tile: enlarge(running, tile, "upscale"),
        [picture],
        window=window or window_of(network, picture.shape[1:], memory_mb, running),
        scale=network.scale,
        blend=cut["overlap"] != network.radius,
        on_tile=on_tile,
        **cut,
    )


def cut_of(network: Any) -> dict[str, int]:
    """How tiles lie: the pixels around each, and what their sides are multiples of."""
    radius: int | None = network.radius
    overlap = CONTEXT if radius is None or radius > MOST_CONTEXT else radius
    return dict(overlap=overlap, multiple=int(network.alignment))


def window_of(
    network: Any, size: tuple[int, ...], memory_mb: int, running: Any, held_mb: float = 0.0
) -> tuple[int, int]:
    """The largest tile that fits, for a picture of a height and width; `held_mb` is what others will take meanwhile.

    Raises:
        ValueError: the budget does not hold the smallest tile.
    """
    from bitlens.cli.memory import bytes_per_pixel
    from bitlens.cli.tiling import used_mb
    from bitlens.quant.layers import quantized_layers
    from bitlens.tiles import window_for

    height, width = size
    result_mb = 3 * height * width * network.scale**2 * (4 + 2) / 2**20  # floats, then levels, twice
    if type(running).__module__ == "bitlens.engine.openvino":
        room = HEADROOM["openvino"]
    else:
        room = HEADROOM["low-bit" if quantized_layers(network) else "float"]
    taken = used_mb() + LIBRARIES_MB + result_mb + held_mb
    return window_for(memory_mb, bytes_per_pixel(network) * room, taken, size=(height, width), **cut_of(network))


def levels_last(large: "np.ndarray") -> "np.ndarray":
    """A picture (3, h, w) in [0, 1] as 8-bit levels (h, w, 3); a few rows at a time, to take little memory."""
    import numpy as np

    from bitlens.data.images import to_levels

    levels = np.empty((*large.shape[1:], 3), np.uint8)
    for row in range(0, len(levels), 64):
        levels[row : row + 64] = to_levels(large[:, row : row + 64]).transpose(1, 2, 0)
    return levels
