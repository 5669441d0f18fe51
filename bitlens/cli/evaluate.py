"""`bitlens evaluate`: PSNR and SSIM of networks on a test set, scene by scene, as a table and as JSON."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from bitlens.engine.registry import Name

if TYPE_CHECKING:
    from bitlens.inference.evaluation import Evaluation


@dataclass(frozen=True)
class Evaluate:
    """Measure the scenes of a test set with one mask, reconstruct them, and compare with the truth.

    PSNR and SSIM are video SCI's: grey floats, neither rounded nor clipped, mean over the frames of a scene,
    then mean over the scenes. Numbers are comparable only with the same mask.

    Super-resolution networks enlarge the pictures of a test set, made small by bicubic interpolation. PSNR and SSIM are
    then super-resolution's: luma of pictures rounded to 8 bits, a border as wide as the scale left out. Networks for
    restoration get the pictures of a test set with noise or as JPEGs: set14+noise-25, set14+jpeg-10.

    Example:
        bitlens evaluate gap-tv efficientsci-t-qsci-w4a4 --data six-scenes --json results.json
    """

    models: tyro.conf.Positional[tuple[str, ...]]
    """One or more checkpoints: shipped names (see `bitlens models`), paths of .safetensors, or gap-tv."""
    data: str = "six-scenes"
    """A named test set (six-scenes), or a folder or file of scenes (.npz .mat .mp4 .avi .mkv .gif .avif); for
    super-resolution set5, set14, b100, urban100, manga109 or urban10, or a folder of large pictures; for restoration
    such a set with its damage."""
    json: Path | None = None
    """Write scenes, average and settings to this file: one object, or for several models a list of them."""
    page: Path | None = None
    """Also write a page for the browser to this file (.html), as `bitlens report` does."""
    mask: Path | None = None
    """The mask to measure with. Default: the benchmark's for six-scenes, else a random one from --seed."""
    frames: int = 8
    """Frames per measurement of a random mask."""
    seed: int = 0
    """Seed of a random mask."""
    ssim: bool = True
    """Compute SSIM too, which takes longer."""
    engine: Name = "torch"
    """What computes, as for `bitlens reconstruct`. Claims of checkpoints are of torch."""
    stages: bool = False
    """Of unfolding networks: also the PSNR of the video after each stage, in torch."""
    faithful: bool = False
    """Of restored JPEGs: hold them to what their files say, as `bitlens restore --faithful` does."""

    def run(self) -> None:
        from bitlens.cli.shared import PAGES, output_file
        from bitlens.report import console
        from bitlens.report.page import write_page

        with output_file(self.json) as json_path, output_file(self.page, *PAGES) as page_path:
            results = self.results()
            if page_path is not None:
                write_page(page_path, self.data, ((result.model, result.to_dict()) for result in results))
            if json_path is not None:
                several = [{"model": result.model, **result.to_dict()} for result in results]
                content = results[0].to_dict() if len(results) == 1 else several
                json_path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        out = console()
        out.print(self._table(results))
        for result in results:
            if result.stages is not None:
                reached = ", ".join(f"{psnr:.2f}" for psnr in result.stages)
                out.print(f"{result.model}: {reached} dB after each stage")
            out.print(speed_in_words(result.settings))
        if self.json:
            out.print(f"settings and scores: {self.json}")
        if self.page:
            out.print(f"page: {self.page}")

    def results(self) -> "list[Evaluation]":
        """The evaluation of each model.

        Raises:
            FileNotFoundError, ValueError: as `evaluate`.
        """
        from bitlens.cli.shared import check_seed
        from bitlens.inference.evaluation import evaluate

        return evaluate(
            self.models, self.data, mask=self.mask, frames=self.frames, seed=check_seed(self.seed), ssim=self.ssim,
            engine=self.engine, stages=self.stages, faithful=self.faithful,
        )  # fmt: skip

    def _table(self, results: "list[Evaluation]") -> Any:
        from bitlens.report import table

        columns = ["scene"]
        for result in results:
            columns += [f"{result.model}\nPSNR (dB)", *(["\nSSIM"] if self.ssim else [])]
        rows = []
        for name in [*results[0].scenes, "average"]:
            row = [name]
            for result in results:
                one = result.average if name == "average" else result.scenes[name]
                row += [f"{one.psnr:.2f}", *([] if one.ssim is None else [f"{one.ssim:.4f}"])]
            rows.append(row)
        return table(f"{self.data}", columns, rows)


def speed_in_words(settings: dict[str, Any]) -> str:
    """How long one model took, and on what."""
    if "seconds_per_megapixel" in settings:
        more = f"; small pictures {settings['low_resolution']}" if "scale" in settings else f"; {settings['damage']}"
        return (
            f"{settings['model']}: {settings['seconds_per_megapixel']:.1f} s per million pixels of what it is given, "
            f"{settings['threads']} threads, {settings['engine']}{more}"
        )
    return (
        f"{settings['model']}: {settings['seconds_per_measurement']:.2f} s per measurement of "
        f"{settings['frames_per_measurement']} frames, {settings['threads']} threads, {settings['engine']}; "
        f"{settings['mask']}"
    )
