"""`bitlens upscale`: enlarge pictures and videos with a super-resolution network, in tiles that fit into memory."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from bitlens.engine.registry import Name

if TYPE_CHECKING:
    from bitlens.cli.archive import Item
    from bitlens.inference.images import Enlarged
    from bitlens.inference.starting import Started

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
        bitlens upscale photo.jpg
        bitlens upscale photo.jpg --model ngswin-x2.safetensors --out photo-x2.png
        bitlens upscale film.mp4 --model imdn-x2.safetensors --out film-x2.mp4
        bitlens upscale photos/ --model imdn-x2.safetensors --out large/ --recursive --cluster
    """

    sources: tyro.conf.Positional[tuple[Path, ...]]
    """An image (.png .jpg .bmp .tif .webp .gif .avif), or a video (.mp4 .avi .mkv .mov .webm; an animated .gif .webp
    .png .avif; a .tif of several pages); or several, a folder of images, or 'patterns*'."""
    model: str = ""
    """A super-resolution network: a shipped name (see `bitlens models`) or the path of a .safetensors. Default: the one
    that is marked in `bitlens models`."""
    scale: int | None = None
    """How many times to enlarge, as the network must. Default: as it does."""
    out: str = ""
    """A .png or .tif to write; for a video a video (.mp4 .mkv with sound, .avi, .gif .webp .png, .tif, .npz .zarr) or a
    folder of .png frames; for several sources a folder, which gets one .png for each picture. Default for one image:
    its name with -x2.png, in this folder."""
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
        from bitlens import checkpoint
        from bitlens.cli import archive
        from bitlens.cli.clusters import check_cluster
        from bitlens.cli.shared import check_other, check_positive
        from bitlens.inference.images import scale_of
        from bitlens.inference.starting import describe

        check_positive("--memory-mb", self.memory_mb)
        if self.white is not None:
            check_positive("--white", self.white)
        check_cluster(self.cluster, self.workers)
        if not self.sources:
            raise ValueError("no SOURCES; wanted images, films or folders of images; name what to enlarge")
        if not self.model or not self.out:
            self.completed().run()
            return
        describe(self.model, "super-resolution")
        if self.scale is not None and self.scale != (own := scale_of(checkpoint.load(self.model))):
            raise ValueError(
                f"--scale {self.scale}, and {self.model} enlarges {own} times; wanted one that does; name it with "
                "--model, or leave --scale out"
            )
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
        done = self.enlarge(source, self.out, self.model, print)
        print(f"wrote {done.frames} frames to {self.out}" if done.frames else f"wrote {self.out}")

    def completed(self) -> "Upscale":
        """The same, with the default network and the default name of the result where none was given.

        Raises:
            FileNotFoundError: no such image. ValueError: several results have no default name.
        """
        from bitlens import checkpoint
        from bitlens.inference.images import frames_of, scale_of
        from bitlens.inference.starting import describe

        model = self.model or checkpoint.default("super-resolution")
        if self.out:
            return replace(self, model=model)
        source, *others = self.sources
        if not others and not source.exists():
            raise FileNotFoundError(f"no file {source}; wanted an image; check the path")
        if others or not source.is_file() or frames_of(source) != 1:
            raise ValueError("no --out; wanted a file for a film, or a folder for several results; give it")
        describe(model, "super-resolution")
        return replace(self, model=model, out=f"{source.stem}-x{scale_of(checkpoint.load(model))}.png")

    def enlarge(
        self, source: Path, out: str, model: "str | Started", say: Callable[[str], None] | None = None
    ) -> "Enlarged":
        """One file by the flags that say how."""
        from bitlens.inference.images import upscale

        return upscale(
            source, model, engine=self.engine, out=out, memory_mb=self.memory_mb, white=self.white, say=say
        )  # fmt: skip

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
        from bitlens.cli.shared import check_other
        from bitlens.inference.machine import describe_run
        from bitlens.inference.starting import describe

        out = Path(self.out)
        if out.exists() and not out.is_dir():
            raise FileExistsError(f"{out} is a file; wanted a folder for the results; choose another name")
        about = describe(self.model, "super-resolution")
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
        from bitlens.inference.images import frames_of

        suffix = file.suffix.lower()
        try:
            return ".png" if frames_of(file) == 1 else MOVING.get(suffix, suffix)
        except (ValueError, OSError):
            return ".png"


@lru_cache(maxsize=1)
def start_once(model: str, engine: Name, run: str) -> "Started":
    """A network and what runs it, once for each run in each process."""
    from bitlens.inference.starting import start

    return start(model, engine, "super-resolution")


def enlarge_item(settings: Upscale, run: str, item: "Item", place: Path) -> dict[str, Any]:
    """One of several files, in whatever process: what there is to say of it."""
    from bitlens.inference.images import frames_of

    started = start_once(settings.model, settings.engine, run)
    settings.enlarge(item.source, str(place), started)
    return {"frames": frames_of(item.source) or None, "engine": started.how}
