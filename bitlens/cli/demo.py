"""`bitlens demo`: one coded picture in, a high-speed video out, by gap-tv and the shipped networks, in integers."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitlens.data.capture import Capture


@dataclass(frozen=True)
class Demo:
    """Take one coded picture of a made high-speed scene and rebuild the video with GAP-TV and the shipped networks.

    Prints quality, size and time side by side and writes an animation (.gif), a contact sheet (.png) and a page for the
    browser (.html), where any two videos meet under a slider. Every network runs on the fastest engine that knows it,
    low bits in integers. With --capture it does the same to a picture from a real camera, for which there is no truth
    to compare with.

    Example:
        bitlens demo
        bitlens demo --capture fan.mat --mask fan_mask.mat --out fan
    """

    out: Path = Path("demo")
    """Folder for the pictures."""
    model: tuple[str, ...] = ()
    """Checkpoints to compare, names or paths. Default: gap-tv and the default network from float to 2 bits."""
    seed: int = 0
    """Seed of the scene and of the mask."""
    frames: int = 8
    """Frames in the coded picture."""
    size: int = 256
    """Height and width of the scene in pixels."""
    capture: Path | None = None
    """A measurement from a real camera instead of the made scene: .mat .npz .npy .tif .png."""
    mask: Path | None = None
    """The camera's calibrated mask, with --capture. Default: the one inside the capture's file."""
    mask_key: str | None = None
    """Name of the mask in a .mat or .npz. Default: mask."""
    dark: Path | None = None
    """With --capture: pictures in the dark, whose mean is subtracted, as for bitlens reconstruct."""
    flat: Path | None = None
    """With --capture: pictures of an even white surface without a mask, whose shape is divided out."""
    bayer: str | None = None
    """With --capture: the colour mosaic of the sensor, RGGB and so on; the pictures show how bright its colours are."""

    def run(self) -> None:
        from bitlens import checkpoint
        from bitlens.cli import in_flags
        from bitlens.report import console

        out = console()
        capture = self._made() if self.capture is None else self._real()
        for note in capture.notes:
            out.print(in_flags(note), style="yellow" if note.startswith("warning:") else None)
        names = self.model or _default_models()
        networks = [(checkpoint.describe(name), checkpoint.load(name)) for name in names]
        count, height, width = capture.measurement.shape
        what = "a made scene" if self.capture is None else str(self.capture)
        out.print(
            f"{what}: {count} coded picture(s) of {height}x{width}, {len(capture.mask)} frames in each; "
            f"rebuilding with {len(networks)} method(s) ..."
        )
        self._compare(capture, networks, out)

    def _made(self) -> "Capture":
        """A measurement of the seeded scene with a seeded random mask."""
        from bitlens.cli.shared import check_seed
        from bitlens.data.capture import simulate
        from bitlens.data.masks import random_mask
        from bitlens.data.synthetic import high_speed_scene

        for name in ("mask", "mask_key", "dark", "flat", "bayer"):
            if (given := getattr(self, name)) is not None:
                flag = f"--{name.replace('_', '-')} {given}"
                raise ValueError(f"{flag} without --capture; wanted both; the made scene has a mask and needs no more")
        check_seed(self.seed)
        scene = high_speed_scene(self.seed, self.frames, self.size, self.size)
        return simulate(scene, random_mask(self.frames, self.size, self.size, self.seed))

    def _real(self) -> "Capture":
        from bitlens.data.capture import read_capture

        assert self.capture is not None
        return read_capture(
            self.capture, self.mask, mask_key=self.mask_key, dark=self.dark, flat=self.flat, bayer=self.bayer
        )

    def _compare(self, capture: "Capture", networks: list[tuple[Any, Any]], out: Any) -> None:
        """Reconstruct with every network, write the two pictures, print the table."""
        from statistics import fmean

        from bitlens.cli.shared import output_file
        from bitlens.data.bayer import demosaic, pattern_at
        from bitlens.data.levels import to_grey
        from bitlens.engine.registry import choose_engine
        from bitlens.inference.videos import for_mosaics, rebuilt, score
        from bitlens.report import Panel, exposed, table, write_contact_sheet, write_side_by_side
        from bitlens.report.page import FILM, Section, of_film, page, videos

        truth = capture.reference
        frames = len(capture.mask)
        animation, sheet, html = (self.out / name for name in ("side_by_side.gif", "contact_sheet.png", "demo.html"))
        rows, films, panels = [], [], []
        with output_file(animation) as animation_path, output_file(sheet) as sheet_path, output_file(html) as html_path:
            assert animation_path is not None and sheet_path is not None and html_path is not None
            for about, network in networks:
                running, how = choose_engine(network, "auto")
                if self.bayer is not None:
                    running = for_mosaics(running, None, about.name)
                rebuilt(running, capture.measurement[:1], capture.mask, f"{about.name}, first run")  # compiles
                video, seconds = rebuilt(running, capture.measurement, capture.mask, about.name)
                if self.bayer is not None:
                    video = to_grey(demosaic(video, pattern_at(self.bayer)))
                quality, film, caption = [], [], f"{about.bytes / 1e6:.2f} MB" if about.path else "no weights"
                if truth is not None:
                    scores = score(video[: len(truth)], truth, film=True)
                    quality = [f"{scores['psnr']:.2f}", f"{scores['ssim']:.3f}"]
                    film = of_film(scores)
                    caption = f"{quality[0]} dB, SSIM {quality[1]}{f', {caption}' if about.path else ''}"
                costs = [f"{about.bytes / 1e6:.2f}", f"{1e3 * fmean(seconds):,.0f}", engine_in_words(how)]
                rows.append([about.name, *quality, *costs])
                films.append(film)
                panels.append(Panel(about.name, caption, video))
            seen = exposed(capture.measurement, frames)
            measured = Panel("measurement", f"all the camera gives: {frames} frames in one picture", seen)
            true = None
            if truth is not None and len(truth) == len(seen):
                true = Panel("truth", "the scene that was coded", truth)
            every = [*panels, *([] if true is None else [true])]
            write_side_by_side(animation_path, [measured, *every])
            write_contact_sheet(sheet_path, measured, every)
            columns = ["method", *([] if truth is None else ["PSNR (dB)", "SSIM"]), "MB", "ms", "engine"]
            title = f"{len(capture.measurement)} coded picture(s) -> {len(seen)} frames"
            meet = "Choose two; drag over the picture to move where they meet."
            shown = videos(title, meet, panels, measured, true)
            more = [] if truth is None else ["flicker", "banding"]
            numbers = Section(
                "In numbers",
                FILM if more else "",
                columns=[*columns, *more],
                rows=[[*row, *film] for row, film in zip(rows, films, strict=True)],
            )  # fmt: skip
            html_path.write_text(page("bitlens demo", [shown, numbers]), encoding="utf-8")

        out.print(table(title, columns, rows))
        out.print(f"watch   {animation}\nlook at {sheet}\nor open {html} in a browser")
        out.print(self._closing(truth is not None, frames))

    def _closing(self, made: bool, frames: int) -> str:
        """What was seen, and what to try next."""
        tries = [
            ("bitlens demo --capture FILE --mask FILE", "the same for a picture from your own camera"),
            ("bitlens reconstruct --help", "write a reconstruction to a file"),
            ("bitlens info NAME", "the bits of every layer of a network, and what they cost"),
        ]
        lines = "\n".join(f"  {command:<41}{what}" for command, what in tries[0 if made else 1 :])
        return (
            f"\nEach method saw only the coded picture and the mask, and rebuilt its {frames} frames.\n"
            "MB: the weights on disk. ms: per coded picture on this machine, in the second run.\n"
            f"\nTry next:\n{lines}"
        )


def _default_models() -> tuple[str, ...]:
    """gap-tv, then the shipped networks of the default's kind: float first, then from many bits to few."""
    from bitlens import checkpoint

    chosen = checkpoint.describe(checkpoint.default("video-sci"))
    shipped = [checkpoint.describe(name) for name in checkpoint.shipped()]
    alike = [about for about in shipped if about.network == chosen.network]
    return ("gap-tv", *(about.name for about in sorted(alike, key=lambda about: -(about.bits[0] or 32))))


def engine_in_words(how: str) -> str:
    """`OpenVINO, int8 ...` in short: what comes before the details."""
    return how.partition(", ")[0].partition(" (")[0]
