"""`bitlens reconstruct`: measurements and their mask in, video out, with what was decided on the way."""

import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from bitlens.engine.registry import Name

if TYPE_CHECKING:
    from bitlens.cli.archive import Item, Row, Work
    from bitlens.inference.starting import Started
    from bitlens.inference.videos import Reconstruction


CAPTURE_SUFFIXES = (".npz", ".mat", ".npy", ".zarr")
PAGED = (".tif", ".tiff")
"""Files that are captures wherever they lie; and those that may be a page of one."""

SAME_RESULT = ("measurements", "out", "json", "format", "cluster", "workers", "watch", "stop_after", "idle")
"""Flags that do not change a video."""

HOW = (
    "mask", "engine", "fps", "memory_mb", "key", "axes", "mask_key", "mask_axes", "gain", "brightness",
    "allow_saturated", "dark", "flat", "bayer",
)  # fmt: skip
"""Flags that `bitlens.reconstruct` takes by the same names."""


@dataclass(frozen=True)
class Reconstruct:
    """Turn coded measurements into a video, with any checkpoint or with gap-tv, which needs no weights.

    The scale of the measurement is shown and, where nothing states it, estimated. Where the file carries the
    true video (`bitlens measure` stores it), PSNR and SSIM are printed.

    Several captures (files, folders of them, 'patterns*' in quotes) become one video each in the folder --out, whole or
    not at all. What is there from an earlier run, of the same files, network and settings, is skipped; what is broken
    is named in the end, and the others are made. A folder with nothing but pictures of one page is one capture.

    Example:
        bitlens reconstruct y.npz --out video.gif
        bitlens reconstruct y.npz --model efficientsci-t-qsci-w4a4 --out video.gif
        bitlens reconstruct captures/ --mask mask.npz --out videos/ --format .mp4 --cluster
        bitlens reconstruct --watch camera/ --mask mask.npz --out videos/
    """

    out: str
    """The video, by its suffix: .mp4 .mkv .avi .gif .tif .npz .zarr, or a folder (no suffix) of PNG frames. For several
    captures the folder of their videos."""
    measurements: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Raw camera values: .npz .mat .npy .zarr .tif, .png of 8 or 16 bits, or a folder of such images. Or several:
    files, folders of them, 'patterns*'."""
    format: str | None = None
    """Suffix of the videos of several captures, or folder: PNG frames. Default: .mp4."""
    model: str | None = None
    """A shipped checkpoint (see `bitlens models`), the path of a .safetensors, or gap-tv. Default: the one that is
    marked in `bitlens models`."""
    mask: Path | None = None
    """The camera's mask: .mat .npz .npy .zarr .tif, a folder of images. Default: from the measurement's file."""
    gain: float | None = None
    """Raw value of one white frame through an open pixel. Default: from the file, or estimated."""
    brightness: float = 0.4
    """Mean brightness of the scene that the estimate of the gain assumes, in (0, 1]."""
    crop: str | None = None
    """Cut top,left,height,width (pixels) from both measurement and mask, for example 0,0,256,256."""
    key: str | None = None
    """Name of the measurement in a .mat or .npz. Default: measurement or meas."""
    axes: str | None = None
    """Order of the measurement's axes, thw or hwt. Default: by name."""
    mask_axes: str | None = None
    """Order of the mask's axes, thw or hwt. Default: by name."""
    mask_key: str | None = None
    """Name of the mask in a .mat or .npz. Default: mask."""
    allow_saturated: bool = False
    """Accept measurements in which more than 1 percent of the pixels are clipped."""
    dark: Path | None = None
    """Pictures that the camera took in the dark, in any format of measurements: their mean is subtracted."""
    flat: Path | None = None
    """Pictures of an even white surface without a mask: their shape is divided out, where the mask lacks it."""
    bayer: str | None = None
    """The colour mosaic of the sensor: RGGB, BGGR, GRBG or GBRG, the colours of its upper left 2x2 pixels, row by row.
    Each of the four is rebuilt at half the size, and the mosaic becomes colours (Malvar), without white balance."""
    engine: Name = "auto"
    """What computes: torch (low bits are simulated), native (our kernels, where they are built), openvino (int8 on the
    CPU), onnxruntime (portable; integers for EfficientSCI), or reference (integers in plain torch, slow). auto: for
    networks that they know native or openvino, as bitlens benchmark measured here or by a rule; else torch."""
    memory_mb: int | None = None
    """Memory that the process may use. A picture too large for it is run in tiles. Default: 2048, or less where
    less is free."""
    fps: float = 10.0
    """Frames per second of the video written."""
    json: Path | None = None
    """Also write scale, notes, times and scores to this file."""
    cluster: str | None = None
    """Have a Dask cluster do it: local (or no value) for processes of this machine, the address of a scheduler
    (tcp://host:8786) whose workers see the same files, or slurm for jobs as Dask's configuration describes them."""
    workers: int | None = None
    """Workers of the cluster, of one thread and --memory-mb each. Default: one for each core; for slurm 4 jobs."""
    watch: Path | None = None
    """Rebuild the captures of this folder as they arrive, until Ctrl-C. Every file is one, a .png too, and every folder
    of pictures."""
    stop_after: int | None = None
    """End --watch after so many captures."""
    idle: float | None = None
    """End --watch when nothing has arrived for so many seconds."""

    def run(self) -> None:
        from bitlens.cli import archive, shared
        from bitlens.cli.clusters import check_cluster
        from bitlens.data.writers import WRITE_SUFFIXES

        shared.check_positive("--fps", self.fps)
        for flag, value in (("memory-mb", self.memory_mb), ("stop-after", self.stop_after), ("idle", self.idle)):
            shared.check_positive(f"--{flag}", 1 if value is None else value)
        check_cluster(self.cluster, self.workers)
        if self.watch is not None:
            self.rebuild_arriving(self.watch)
            return
        if self.stop_after is not None or self.idle is not None:
            raise ValueError("--stop-after or --idle without --watch; wanted them with --watch FOLDER; leave them out")
        if not self.measurements:
            raise ValueError("no MEASUREMENTS; wanted files or folders, or --watch FOLDER; name what to reconstruct")
        found, many = archive.expand(self.measurements, captures_in, (*self.beside(), Path(self.out)))
        asked = self.format is not None or self.cluster is not None
        if asked or (many and not (len(found) == 1 and Path(self.out).suffix.lower() in WRITE_SUFFIXES)):
            self.rebuild_all(found)
        else:
            self.rebuild_one(*found.values())

    def beside(self) -> list[Path]:
        """Files that are read for every capture."""
        return [path for path in (self.mask, self.dark, self.flat) if path is not None]

    def rebuild_one(self, measurement: Path) -> None:
        """One capture, with all that there is to say."""
        from bitlens import checkpoint
        from bitlens.cli import in_flags, shared
        from bitlens.inference.machine import describe_run
        from bitlens.report import console

        out = console()

        def say(line: str) -> None:
            out.print(in_flags(line), style="yellow" if line.startswith("warning:") else None)

        with shared.output_video(self.out) as video_path, shared.output_file(self.json) as json_path:
            found = self.rebuild(measurement, video_path, self.model, say)
            if json_path is not None:
                about = checkpoint.describe(self.model or checkpoint.default("video-sci"))
                result = self.result(measurement, found)
                result["settings"] |= {
                    "model": found.model,
                    "sha256": None if about.path is None else checkpoint.weights_sha256(about.path),
                    **describe_run(),
                }
                json_path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

        seconds, (frames, height, width) = found.seconds_per_measurement, found.size
        times = ", ".join(f"{value:.2f}" for value in seconds[:8]) + (", ..." if len(seconds) > 8 else "")
        out.print(f"{found.model}: {times} s per measurement of {frames} frames")
        if found.psnr is not None:
            similar = "" if found.ssim is None else f", SSIM {found.ssim:.4f}"
            out.print(f"PSNR {found.psnr:.2f} dB{similar} (psnr_sci: grey floats, mean over frames)")
        out.print(f"{self.out}: {found.frames} frames of {height}x{width}")

    def rebuild(
        self, measurement: Path, out: str, model: "str | Started | None", say: Callable[[str], None] | None = None
    ) -> "Reconstruction":
        """One capture by the flags that say how, into a file."""
        from bitlens.cli import shared
        from bitlens.inference.videos import reconstruct

        how: dict[str, Any] = {name: getattr(self, name) for name in HOW}
        return reconstruct(measurement, model=model, out=out, crop=shared.parse_crop(self.crop), say=say, **how)

    def result(self, measurement: Path, found: "Reconstruction") -> dict[str, Any]:
        """What the .json says."""
        scores = {} if found.psnr is None else {"psnr": found.psnr, "ssim": found.ssim}
        return {
            "frames": found.frames,
            "seconds_per_measurement": found.seconds_per_measurement,
            **scores,
            "settings": {
                "measurement": str(measurement),
                "mask": str(self.mask or measurement),
                "size": list(found.size),
                "gain": found.gain,
                "gain_source": found.gain_source,
                "notes": list(found.notes),
                "engine": found.engine,
                "tiles": found.tiles or None,
            },
        }

    def planned(self) -> "Callable[[str, Path], Item]":
        """What gives the result of a named capture among several, in the folder `out`.

        Raises:
            FileNotFoundError: a mask, or a picture for corrections, that is not there.
            ValueError: an output that cannot be, or a network that does not reconstruct video.
        """
        from bitlens import __version__, checkpoint
        from bitlens.cli import archive, shared
        from bitlens.data.writers import WRITE_SUFFIXES, check_target
        from bitlens.inference.starting import describe

        folder = Path(self.out)
        if folder.suffix.lower() in WRITE_SUFFIXES and not folder.is_dir():
            raise ValueError(
                f"--out {self.out} for several captures; wanted a folder, which gets a video of each; leave the suffix "
                "out, and choose the kind of video with --format"
            )
        for path in self.beside():
            if not path.exists():
                raise FileNotFoundError(f"no file {path}; wanted a mask or pictures for correction; check the path")
        for path in (*self.measurements, *([self.watch] if self.watch else [])):
            shared.check_other(folder, path)
        kind = (self.format or ".mp4").lower()
        suffix = "" if kind == "folder" else "." + kind.lstrip(".")
        check_target(f"video{suffix}")
        about = describe(self.model or checkpoint.default("video-sci"))
        settings = {flag: value for flag, value in vars(self).items() if flag not in SAME_RESULT} | {
            "model": about.name,
            "sha256": None if about.path is None else checkpoint.weights_sha256(about.path),
            "bitlens": __version__,
        }

        def item(name: str, source: Path) -> "Item":
            made = archive.item_of(name, source, folder, suffix, settings, *self.beside())
            shared.check_other(made.out, source, *self.beside())
            return made

        return item

    def work(self) -> "Work":
        """What makes one of several results; it can be sent to other processes."""
        from bitlens.checkpoint import absolute

        mask, dark, flat = (path and path.absolute() for path in (self.mask, self.dark, self.flat))
        settings = replace(self, model=self.model and absolute(self.model), mask=mask, dark=dark, flat=flat)
        return partial(rebuild_item, settings, secrets.token_hex(4))

    def rebuild_all(self, found: Mapping[str, Path]) -> None:
        """Several captures, those that are not there yet."""
        from bitlens.cli import archive

        item = self.planned()
        archive.archive(
            [item(name, path) for name, path in found.items()], self.work(), Path(self.out), "rebuilt", "captures",
            self.cluster, self.workers, self.json, self.described(),
        )  # fmt: skip

    def described(self) -> dict[str, Any]:
        """The settings of several captures, for the .json."""
        from bitlens import checkpoint
        from bitlens.inference.machine import describe_run
        from bitlens.inference.starting import describe

        if self.json is None:
            return {}
        about = describe(self.model or checkpoint.default("video-sci"))
        sha256 = None if about.path is None else checkpoint.weights_sha256(about.path)
        flags = {flag: value for flag, value in vars(self).items() if flag not in ("json", "measurements")}
        plain = {flag: str(value) if isinstance(value, Path) else value for flag, value in flags.items()}
        return {**plain, "model": about.name, "sha256": sha256, **describe_run()}

    def rebuild_arriving(self, folder: Path) -> None:
        """The captures of a folder, as they arrive; the engine stays."""
        from bitlens.cli import archive
        from bitlens.cli.interrupts import heard
        from bitlens.cli.watching import arrivals

        if self.measurements or self.cluster is not None:
            other = "--cluster" if self.cluster is not None else str(self.measurements[0])
            raise ValueError(f"--watch {folder} and {other}; wanted one of them; leave one out")
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}; wanted the one where captures arrive; make it, or correct it")
        item_of, work = self.planned(), self.work()
        rows: dict[str, Row] = {}
        count = 0
        print(f"watching {folder}; Ctrl-C ends it", flush=True)
        try:
            with archive.room_in(Path(self.out)) as room:
                for arrival in arrivals(lambda: self.arrived(folder), self.idle):
                    name = archive.name_of(arrival.path, folder)
                    if name in rows and rows[name].source != str(arrival.path.absolute()):
                        name += arrival.path.suffix  # a.npz and a.png
                    item = item_of(name, arrival.path)
                    row = rows[name] = archive.finished(item) or archive.attempt(item, work, room)
                    count += row.state != "there"
                    if row.state == "made":
                        row.facts["delay"] = time.monotonic() - arrival.at
                        row.facts["frames_per_second"] = row.facts["frames"] / row.facts["seconds"]
                    print(f"{name}: {said_of(row)}", flush=True)
                    if self.stop_after is not None and count >= self.stop_after:
                        break
        except KeyboardInterrupt as error:
            if type(error) is not KeyboardInterrupt:  # terminated
                raise
            heard()
            print()
        finally:
            archive.report(list(rows.values()), "captures", self.json, self.described())
        archive.conclude(list(rows.values()), Path(self.out), "rebuilt", "captures")

    def arrived(self, folder: Path) -> list[Path]:
        """What a watched folder holds."""
        from bitlens.data.images import natural_key

        left_out = {path.resolve() for path in (*self.beside(), Path(self.out))}
        found: list[Path] = []
        for path in sorted(visible(folder), key=natural_key):
            if path.resolve() in left_out:
                continue
            if path.suffix.lower() in (*CAPTURE_SUFFIXES, *PAGED, ".png"):
                found.append(path)
            elif path.is_dir():
                held = captures_in(path)
                found += [path] if held is None else held
        return found


@lru_cache(maxsize=1)
def start_once(model: str, engine: Name, run: str) -> "Started":
    """What runs a model, started once for each run in each process."""
    from bitlens.inference.starting import start

    return start(model, engine)


def rebuild_item(settings: Reconstruct, run: str, item: "Item", place: Path) -> dict[str, Any]:
    """One of several captures, in whatever process: what there is to say of it."""
    from bitlens import checkpoint

    path = str(place) if place.suffix else f"{place}/"
    started = start_once(settings.model or checkpoint.default("video-sci"), settings.engine, run)
    result = settings.result(item.source, settings.rebuild(item.source, path, started))
    decided = result.pop("settings")
    warned = [note.removeprefix("warning: ") for note in decided["notes"] if note.startswith("warning:")]
    return {**result, **decided, "warnings": warned}


def said_of(row: "Row") -> str:
    """A line about a capture that arrived."""
    if row.state == "there":
        return "is there"
    if row.state == "broken":
        return f"left out: {row.note}"
    facts = row.facts
    return (
        f"{facts['frames']} frames in {facts['seconds']:.2f} s ({facts['frames_per_second']:.1f} frames/s), "
        f"{facts['delay']:.2f} s after it arrived"
    )


def captures_in(folder: Path) -> list[Path] | None:
    """The captures of a folder and its folders; None: it is one itself, a stack of pictures, or a .zarr.

    Pictures of one page beside captures are none, but .tif; nor is what is hidden.
    """
    from bitlens.data.images import IMAGE_SUFFIXES, natural_key

    if folder.suffix.lower() == ".zarr":
        return None
    inside = sorted(visible(folder), key=natural_key)
    files = [path for path in inside if path.suffix.lower() in CAPTURE_SUFFIXES]
    paged = [path for path in inside if path.suffix.lower() in PAGED]
    if files or any(map(has_pages, paged)):
        files = sorted([*files, *paged], key=natural_key)
    elif any(path.suffix.lower() in IMAGE_SUFFIXES for path in inside):
        return None
    for path in inside:
        if path.is_dir() and path not in files:
            held = captures_in(path)
            files += [path] if held is None else held
    return files


def visible(folder: Path) -> list[Path]:
    """What is in a folder and not hidden."""
    return [path for path in folder.iterdir() if path.name[0] != "."]


def has_pages(path: Path) -> bool:
    """Whether a .tif has several pages; one that cannot be read has none."""
    from bitlens.data.tif import grey_pages

    try:
        return grey_pages(path)[0][0] > 1
    except (ValueError, OSError):
        return False
