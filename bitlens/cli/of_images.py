"""What the verbs for images and films share: `bitlens upscale` and `bitlens restore`."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import tyro

from bitlens.engine.registry import Name
from bitlens.tasks import TASKS

if TYPE_CHECKING:
    from bitlens.cli.archive import Item
    from bitlens.inference.images import Enlarged
    from bitlens.inference.starting import Started

MOVING = {".avif": ".webp", ".mov": ".mp4", ".webm": ".mkv"}
"""What a film or animation becomes among several results, where it does not keep its suffix."""


@dataclass(frozen=True)
class OfImages:
    """Images, all images of a folder, or a film through a network, in tiles that fit into memory."""

    task: ClassVar[str]
    """What the network must be for, as `bitlens.tasks` has it."""
    done: ClassVar[str]
    """What its results are, in a word."""

    sources: tyro.conf.Positional[tuple[Path, ...]]
    """An image (.png .jpg .bmp .tif .webp .gif .avif), or a video (.mp4 .avi .mkv .mov .webm; an animated .gif .webp
    .png .avif; a .tif of several pages); or several, a folder of images, or 'patterns*'."""
    model: str = ""
    """A network for it: a shipped name (see `bitlens models`) or the path of a .safetensors. Default: the one that is
    marked in `bitlens models`."""
    out: str = ""
    """A .png or .tif to write; for a video a video (.mp4 .mkv with sound, .avi, .gif .webp .png, .tif, .npz .zarr) or a
    folder of .png frames; for several sources a folder, which gets one .png for each picture. Default for one image:
    its name with -x2.png or -restored.png, in this folder."""
    engine: Name = "auto"
    """What computes: torch (low bits are simulated), openvino (int8 on the CPU; each size of tile is compiled once),
    native (our kernels, where they are built), onnxruntime (in float what low bits compute), or reference (integers in
    plain torch, slow). auto: for low-bit networks native where it is faster, or openvino; else torch."""
    memory_mb: int = 2000
    """The most memory to take, in MB of 2^20 bytes, the program itself included."""
    recursive: bool = False
    """Take the pictures in the folders of a folder too; the result has the same folders."""
    white: float | None = None
    """The value of white in pictures of 16 bits or floats: 4095 for 12 bits of a camera. Default: 65535, and 1."""
    still: float = 0.0
    """Of a video: how many levels of 255 a pixel may change for what was computed of it before to be kept. 0: none, so
    that the result is the same; more saves work where a recording is noisy; -1: compute every frame whole."""
    cluster: str | None = None
    """Have a Dask cluster do it: local (or no value) for processes of this machine, the address of a scheduler
    (tcp://host:8786) whose workers see the same files, or slurm for jobs as Dask's configuration describes them."""
    workers: int | None = None
    """Workers of the cluster, of one thread and --memory-mb each. Default: one for each core; for slurm 4 jobs."""
    json: Path | None = None
    """Also write the table of several results to this file."""

    def run(self) -> None:
        from bitlens.cli import archive
        from bitlens.cli.clusters import check_cluster
        from bitlens.cli.shared import check_other, check_positive
        from bitlens.inference.starting import describe

        check_positive("--memory-mb", self.memory_mb)
        if self.white is not None:
            check_positive("--white", self.white)
        check_cluster(self.cluster, self.workers)
        if not self.sources:
            raise ValueError("no SOURCES; wanted images, films or folders of images; name them")
        if not self.model or not self.out:
            self.completed().run()
            return
        describe(self.model, self.task)
        self.check_network()
        for source in self.sources:
            check_other(self.out, source)
        found, many = archive.expand(self.sources, self.pictures_in, [Path(self.out)])
        if many or self.cluster is not None or self.json is not None:
            self.all_of(found)
            return
        (source,) = found.values()
        if not source.exists():
            raise FileNotFoundError(
                f"no file or folder {source}; wanted an image or a folder of images, or a video; check the path"
            )
        done = self.one(source, self.out, self.model, print)
        again = f", {done.kept:.0%} of what they show kept from frames before" if done.kept else ""
        print(f"wrote {done.frames} frames to {self.out}{again}" if done.frames else f"wrote {self.out}")

    def check_network(self) -> None:
        """Refuse a network that does not fit the flags.

        Raises:
            ValueError: it does not.
        """

    def name_for(self, source: Path, model: str) -> str:
        """The result of one image where no name was given."""
        raise NotImplementedError

    def default_model(self) -> str:
        """The shipped network that is taken where none was named."""
        from bitlens import checkpoint

        return checkpoint.default(self.task)

    def completed(self) -> "OfImages":
        """The same, with the default network and the default name of the result where none was given.

        Raises:
            FileNotFoundError: no such image. ValueError: several results have no default name.
        """
        from bitlens.inference.images import frames_of
        from bitlens.inference.starting import describe

        model = self.model or self.default_model()
        if self.out:
            return replace(self, model=model)
        source, *others = self.sources
        if not others and not source.exists():
            raise FileNotFoundError(f"no file {source}; wanted an image; check the path")
        if others or not source.is_file() or frames_of(source) != 1:
            raise ValueError("no --out; wanted a file for a film, or a folder for several results; give it")
        describe(model, self.task)
        return replace(self, model=model, out=self.name_for(source, model))

    def one(
        self, source: Path, out: str, model: "str | Started", say: Callable[[str], None] | None = None
    ) -> "Enlarged":
        """One file by the flags that say how."""
        from bitlens.inference import images

        run = getattr(images, TASKS[self.task].verb)
        return run(
            source, model, engine=self.engine, out=out, memory_mb=self.memory_mb, white=self.white,
            still=None if self.still < 0 else self.still / 255, say=say, **self.more(),
        )  # fmt: skip

    def more(self) -> dict[str, Any]:
        """What this verb alone asks for."""
        return {}

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

    def all_of(self, found: Mapping[str, Path]) -> None:
        """Write what can be made and is not there yet.

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
        about = describe(self.model, self.task)
        sha256 = None if about.path is None else checkpoint.weights_sha256(about.path)
        flags = {flag: getattr(self, flag) for flag in ("engine", "memory_mb", "white", "still")}
        settings = {**flags, **self.more(), "model": about.name, "sha256": sha256}
        items = []
        for name, source in found.items():
            keyed = {**settings, "bitlens": __version__}
            items.append(archive.item_of(name, source, out, self.suffix_for(source), keyed))
            check_other(items[-1].out, source)
        alone = replace(self, sources=(), model=checkpoint.absolute(self.model))
        archive.archive(
            items, partial(item_of_images, alone, secrets.token_hex(4)), out, self.done, "pictures", self.cluster,
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
def start_once(model: str, engine: Name, task: str, run: str) -> "Started":
    """A network and what runs it, once for each run in each process."""
    from bitlens.inference.starting import start

    return start(model, engine, task)


def item_of_images(settings: OfImages, run: str, item: "Item", place: Path) -> dict[str, Any]:
    """One of several files, in whatever process: what there is to say of it."""
    from bitlens.inference.images import frames_of

    started = start_once(settings.model, settings.engine, settings.task, run)
    settings.one(item.source, str(place), started)
    return {"frames": frames_of(item.source) or None, "engine": started.how}
