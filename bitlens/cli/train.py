"""`bitlens train`: a float network from clips or photographs, or a low-bit one by quantization-aware training (QAT)."""

import json
import os
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from bitlens.methods.catalog import in_words
from bitlens.networks.catalog import CATALOG
from bitlens.training.settings import Training

if TYPE_CHECKING:
    from torch import nn

    from bitlens.data.clips import Batch
    from bitlens.training.loop import Result, Sampler, Validation

CALIBRATION_BATCHES = 8
VALIDATION_BATCHES, VALIDATION_CROPS = 4, 16
"""Batches of films, and of photographs, whose crops are small."""
VALIDATION_SEED = 7
DAMAGES = ("noise-25", "jpeg-10", "jpeg-40")
"""What restoration is validated on."""
FAMILIES = {
    "-".join(filter(None, (entry.name, size))): (entry, size) for entry in CATALOG.values() for size in entry.sizes
}
"""What can be trained from nothing, by its name as --network."""


@dataclass(frozen=True)
class Train:
    """Train a network on clips, or on photographs. After Ctrl-C, a kill or --minutes the same command resumes from its
    --run folder.

    Without --start a float --network is trained. With --start CHECKPOINT training goes on from those weights. With
    --method and --bits too, that float network is quantized, calibrated on the clips and trained with its grids, and
    the float network may teach it (--distill-output, --distill-features).

    Networks that enlarge or restore images learn from --images: crops of photographs, and of the same made small, or
    noisy, or JPEGs. One photograph of twenty is held out for validation. With --clips frames of films are among them.

    Under `torchrun --nproc_per_node N -m -- bitlens train ...` N processes train together.

    Example:
        bitlens train --clips clips --run runs/t --out t.safetensors --network efficientsci-t --steps 5000 --compile
        bitlens train --clips clips --run runs/t4 --out t4.safetensors --start t.safetensors --method qsci --bits 4
        bitlens train --images photos --run runs/x2 --out x2.safetensors --network abpn-x2 --recipe recipes/abpn.toml
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    """Folder of the run: state, log and settings. An unfinished run in it is resumed."""
    out: Path
    """The checkpoint that is written when the run has finished (.safetensors)."""
    clips: Path | None = None
    """Folder of training videos (files or folders of frames); where a manifest.json splits them, the split train."""
    network: Annotated[str, tyro.conf.arg(metavar="{" + ",".join(FAMILIES) + "}")] = "dun"
    """Architecture and size for a run without --start."""
    start: str | None = None
    """Start from this checkpoint, a path or a shipped name; with --method a low-bit one may be lowered further."""
    widen: int = 1
    """Start from --start with this many times its channels (EfficientSCI): the same function, with room to learn."""
    deepen: int = 0
    """Start from --start with this many stages (DUN) or convolutions (ABPN) more: the same function, room to learn."""
    rescale: int | None = None
    """Start from --start for enlarging this many times (ABPN): what it has learned, and new last weights."""
    teacher: str | None = None
    """Float checkpoint that teaches. Default: --start, where that is float."""
    method: Annotated[
        str | None, tyro.conf.arg(help=f"Quantize by this published method before training, {in_words()}.")
    ] = None
    bits: int = 4
    """Bits for --method."""
    nested: tuple[int, ...] = ()
    """Fewer bits than --bits that the same file has too: their weights are rounded from its codes, and trained in turn
    with them. `NAME@4` is such a network with 4 bits."""
    grid: Literal["deployable", "official"] = "deployable"
    """Grids for --method: what integer kernels execute, or those of Q-SCI's official code."""
    recipe: Path | None = None
    """TOML file with any of these settings of the loop; flags that are given win over it."""
    mask: Path | None = None
    """Train for this fixed mask. Default: a fresh random mask for every sample."""
    crop: int = 64
    """Height and width of a training sample; of an image before it is enlarged."""
    batch: int = 4
    """Samples per step and process."""
    frames: int = 8
    """Frames per measurement."""
    cameras: bool = False
    """Train for any camera: a mixture of masks, noise and numbers of frames instead of fresh random binary masks."""
    images: Path | None = None
    """Folder of photographs: to enlarge or restore, or for synthetic motion."""
    synthetic: float = 0.0
    """Share of the samples that are made from --images."""
    device: str = "cpu"
    """cpu or cuda."""
    loop: Annotated[Training, tyro.conf.arg(name="")] = field(default_factory=Training)

    def run(self) -> int:
        from bitlens.cli.shared import output_file
        from bitlens.inference.machine import keep_freed_memory
        from bitlens.networks.branches import branch, collapse
        from bitlens.networks.catalog import SCI
        from bitlens.quant.layers import quantized_layers

        settings = self.settings()
        check_target(self.out)
        if self.network not in FAMILIES:
            near = get_close_matches(self.network, FAMILIES, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"--network {self.network}; {hint}wanted one of {', '.join(FAMILIES)}; change it")
        keep_freed_memory()
        task, scale = self.task()
        if task == SCI:
            sampler, data, validation = self.videos(settings.seed)
        else:
            sampler, data, validation = self.patches(scale, settings.seed)
        network, teacher = self.networks(sampler, settings.seed)
        if getattr(network, "branches", False) and not quantized_layers(network):
            branch(network, fresh=self.start is None)
        result = train_in_sight(network, sampler, settings, self.run_folder, validation, teacher, self.device)
        if result.reason != "finished":
            print(f"stopped at step {result.step} of {settings.steps} ({result.reason}); the same command goes on")
            return 130 if result.reason == "interrupted" else 0
        from bitlens.checkpoint import save

        collapse(network)
        if result.writes:
            save(network, self.out, provenance=self.provenance(data, settings, result))
            with output_file(self.run_folder / "record.json") as path:
                assert path is not None
                path.write_text(json.dumps(self.record(settings, result, validation), indent=1) + "\n")
            print(f"wrote {self.out} and {self.run_folder / 'record.json'}")
        return 0

    def task(self) -> tuple[str, int]:
        """What the network is for, and how many times it enlarges images (1: it does not)."""
        from bitlens import checkpoint

        if self.start is not None:
            about = checkpoint.describe(self.start)
            return about.task, self.rescale or about.config.get("scale", 1)
        entry, size = FAMILIES[self.network]
        return entry.task, getattr(entry.untrained(size, self.frames), "scale", 1)

    def patches(self, scale: int, seed: int) -> "tuple[Sampler, dict[str, Any], Validation | None]":
        """Crops of photographs, what the checkpoint says of them, and those that are held out."""
        from itertools import chain

        from bitlens.data.clips import load_clips
        from bitlens.data.crops import photographs
        from bitlens.data.damage import RestorationSampler
        from bitlens.data.patches import SIZES, PatchSampler, frames_of, held_out, in_sizes
        from bitlens.training.loop import validation_batches

        of_video = ("mask", "cameras", "synthetic")
        if given := [name for name in of_video if getattr(self, name) != getattr(Train, name)]:
            raise ValueError(f"--{given[0]} and a network for images came; wanted --images FOLDER; leave it out")
        if self.images is None:
            raise ValueError("no --images; wanted a folder of photographs; give it")
        files, validated = held_out(photographs(self.images))
        seen = in_sizes(files)
        if self.clips is not None:
            split = "train" if (self.clips / "manifest.json").is_file() else None
            seen = chain(seen, frames_of(load_clips(self.clips, split)))
        crop, batch = self.crop, self.batch
        if scale > 1:
            sampler: Sampler = PatchSampler(seen, scale, crop=crop, batch=batch, seed=seed)
            whole = in_sizes(validated, (1,))
            checked: dict[str, Sampler] = {}
            if validated:
                checked["photographs"] = PatchSampler(whole, scale, crop=crop, batch=batch, seed=VALIDATION_SEED)
        else:
            sampler = RestorationSampler(seen, crop=crop, batch=batch, seed=seed)
            whole = list(in_sizes(validated, (1,)))
            checked = {
                kind: RestorationSampler(whole, kind, crop=crop, batch=batch, seed=VALIDATION_SEED)
                for kind in DAMAGES
                if whole
            }
        validation = {kind: validation_batches(one, VALIDATION_CROPS) for kind, one in checked.items()}
        data = {"photographs": len(files), "in sizes": SIZES, "frames of films": self.clips is not None}
        data["made"] = f"Downsample({scale}).shrink_levels" if scale > 1 else "noise and JPEG"
        return sampler, {"data": data}, validation or None

    def videos(self, seed: int) -> "tuple[Sampler, dict[str, Any], Validation | None]":
        """Crops of clips behind masks, what the checkpoint says of them, and those of the validation split."""
        from bitlens.data.cameras import Cameras
        from bitlens.data.clips import ClipSampler, load_clips, load_mask

        if self.clips is None:
            raise ValueError("no --clips; wanted a folder of videos to train on; give it")
        split = "train" if (self.clips / "manifest.json").is_file() else None
        clips = load_clips(self.clips, split, self.frames)
        sampler = ClipSampler(
            clips,
            frames=self.frames,
            crop=self.crop,
            batch=self.batch,
            seed=seed,
            mask=load_mask(self.mask),
            images=read_images(self.images) if self.images else (),
            synthetic=self.synthetic,
            cameras=Cameras() if self.cameras else None,
        )
        validation = validation_crops(self.clips, self.frames, 2 * self.crop, self.cameras) if split else None
        data = {"clips": len(clips.videos), "identity": clips.identity(), "synthetic": self.synthetic}
        masks = "a mixture of cameras" if self.cameras else self.mask.name if self.mask else "random binary, fresh"
        return sampler, {"data": data, "masks": masks}, validation

    @property
    def samples(self) -> int:
        """Samples of a step, over all processes."""
        return self.batch * int(os.environ.get("WORLD_SIZE", "1"))

    def settings(self) -> Training:
        """The recipe's settings, with the flags that differ from the defaults on top."""
        if self.recipe is None:
            return self.loop
        default = Training()
        given = {f.name: getattr(self.loop, f.name) for f in fields(Training)}
        given = {name: value for name, value in given.items() if value != getattr(default, name)}
        return replace(read_settings(self.recipe), **given)

    def networks(self, sampler: "Sampler", seed: int) -> "tuple[nn.Module, nn.Module | None]":
        """The network to train and its float teacher."""
        import torch

        from bitlens.checkpoint import load

        torch.manual_seed(seed)
        if self.start is None:
            asked = {
                "--method": self.method is not None, "--widen": self.widen != 1, "--deepen": self.deepen != 0,
                "--nested": bool(self.nested), "--rescale": self.rescale is not None,
            }  # fmt: skip
            for flag, given in asked.items():
                if given:
                    raise ValueError(f"{flag} works on a trained network; wanted --start CHECKPOINT too; give it")
            entry, size = FAMILIES[self.network]
            return entry.untrained(size, self.frames), load(self.teacher) if self.teacher else None
        start = load(self.start).requires_grad_(True)
        module = sys.modules[type(start).__module__]
        if self.widen != 1:
            if self.widen < 1 or not hasattr(module, "widened"):
                raise ValueError(
                    f"--widen {self.widen} and network {type(start).__name__} came; wanted EfficientSCI and a whole "
                    "number from 1; leave --widen out to keep the width"
                )
            start = module.widened(start, self.widen, seed)
        if self.deepen:
            if not hasattr(module, "deepened"):
                raise ValueError(
                    f"--deepen {self.deepen} and network {type(start).__name__} came; wanted DUN or ABPN; leave it out"
                )
            start = module.deepened(start, self.deepen)
        if self.rescale is not None:
            if not hasattr(module, "rescaled"):
                raise ValueError(
                    f"--rescale {self.rescale} and network {type(start).__name__} came; wanted ABPN; leave it out"
                )
            start = module.rescaled(start, self.rescale)
        teacher = load(self.teacher) if self.teacher else None
        if self.method is None:
            if self.nested:
                raise ValueError("--nested without --method; wanted one whose grids are made now; give --method ends")
            return start, teacher
        from bitlens.methods import quantize
        from bitlens.quant.layers import quantized_layers
        from bitlens.quant.nested import nest
        from bitlens.quant.prepare import unprepare

        low = quantized_layers(start)
        if not low:
            teacher = teacher or start
        elif (fewest := min(layer.weight_bits for layer in low.values())) <= self.bits:
            raise ValueError(
                f"--start {self.start} has {fewest} bits and --bits {self.bits} came, which would choose its grids "
                "anew and lose what they learned; wanted fewer bits; to train it on, leave --method out"
            )
        unprepare(start)
        if self.nested and max(self.nested) >= self.bits:
            raise ValueError(f"--nested {max(self.nested)}, --bits {self.bits}; wanted fewer bits nested; change it")
        batches = [sampler.draw(step).inputs for step in range(CALIBRATION_BATCHES)]
        made = {
            bits: quantize(start, self.method, batches, bits=bits, grid=self.grid)[0]
            for bits in (self.bits, *self.nested)
        }
        return nest(made) if self.nested else made[self.bits], teacher

    def provenance(self, data: dict[str, Any], settings: Training, result: "Result") -> dict[str, Any]:
        """What the checkpoint will say about its origin."""
        from bitlens.inference.machine import describe_run

        size = f"{self.crop}x{self.crop}" if "photographs" in data["data"] else f"{self.frames}x{self.crop}x{self.crop}"
        return {
            "trained": f"{result.step} steps of {self.samples} samples of {size}",
            "start": self.start,
            "widened": self.widen,
            "deepened": self.deepen,
            **({} if self.rescale is None else {"rescaled": self.rescale}),
            "teacher": self.teacher,
            **data,
            "settings": asdict(settings),
            "validation_psnr": result.psnr,
            "run": describe_run(),
        }

    def record(self, settings: Training, result: "Result", validation: "Validation | None") -> dict[str, Any]:
        """The run in short: what it cost, its settings, and PSNR on validation clips over its steps."""
        crops = [len(batch.truth) for batches in (validation or {}).values() for batch in batches]
        lines = [json.loads(line) for line in (self.run_folder / "log.jsonl").read_text().splitlines()]
        times = [line["seconds"] for line in lines]  # of one call; a resumed run counts from 0 again
        ends = [time for time, following in pairwise([*times, 0.0]) if following < time]
        return {
            "name": self.out.stem,
            "steps": result.step,
            "samples": result.step * self.samples,
            "crops": sum(crops),
            "minutes": round(sum(ends) / 60, 1),
            "kinds": next((line["psnrs"] for line in reversed(lines) if "psnrs" in line), {}),
            "curve": [[line["step"], round(line["psnr"], 3)] for line in lines if "psnr" in line],
            "settings": asdict(settings),
        }


def validation_crops(clips: Path, frames: int, crop: int, cameras: bool = False) -> "Validation":
    """Fixed crops of the validation split of a folder of clips; with `cameras` measured by each kind of camera."""
    from bitlens.data.cameras import KINDS, Cameras
    from bitlens.data.clips import ClipSampler, load_clips
    from bitlens.training.loop import validation_batches

    videos = load_clips(clips, "val", frames)

    def measured(count: int, camera: Cameras | None, frames: int = frames) -> "list[Batch]":
        sampler = ClipSampler(videos, frames=frames, crop=crop, batch=4, seed=VALIDATION_SEED, cameras=camera)
        return validation_batches(sampler, count)

    def camera(kind: str, noisy: float = 0.0) -> Cameras:
        return Cameras({kind: 1.0}, usual=1.0, noisy=noisy, miscalibrated=noisy)

    if not cameras:
        return {"clips": measured(VALIDATION_BATCHES, None)}
    return {
        **{kind: measured(2 if kind == "binary" else 1, camera(kind)) for kind in KINDS},
        "binary, noise": measured(1, camera("binary", 1.0)),
        "plate, noise": measured(1, camera("plate", 1.0)),
        f"binary, {2 * frames} frames": measured(1, camera("binary"), min(2 * frames, *map(len, videos.videos))),
    }


def train_in_sight(
    network: "nn.Module",
    sampler: "Sampler",
    settings: Training,
    folder: Path,
    validation: "Validation | None" = None,
    teacher: "nn.Module | None" = None,
    device: str = "cpu",
    label: str = "",
) -> "Result":
    """The loop, with a progress bar on the terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Remaining

    from bitlens.report import console
    from bitlens.training.loop import train

    text = TextColumn("{task.description}")
    columns = TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), Remaining(), text
    trunk = ("resdnet_list", "layers")
    blocks = [name for name, _ in network.named_modules() if name.rpartition(".")[0] in trunk]
    with Progress(*columns[0 if label else 1 :], console=console()) as progress:
        task = progress.add_task("compiling" if settings.compile else "starting", total=settings.steps)

        def show(record: dict[str, Any]) -> None:
            quality = f"  {record['psnr']:.2f} dB on validation clips" if "psnr" in record else ""
            progress.update(task, description=f"loss {record['loss']:.4f}{quality}")

        return train(
            network,
            sampler,
            settings,
            folder,
            validation=validation,
            teacher=teacher,
            blocks=blocks,
            device=device,
            on_log=show,
            on_step=lambda step: progress.update(task, completed=step),
        )


def check_target(out: Path) -> None:
    """Refuse a place that cannot be written to now, not after hours."""
    from bitlens.cli.shared import output_file

    class Checked(Exception):
        pass

    try:
        with output_file(out, ".safetensors"):
            raise Checked
    except Checked:
        pass


def read_settings(path: Path) -> Training:
    """Settings of the loop from the table [training] of a TOML file; unknown keys are refused by name."""
    import tomllib

    from bitlens.recipe import check_keys

    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; wanted a recipe in TOML; check the path")
    try:
        table = tomllib.loads(path.read_text()).get("training", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML ({error}); wanted a recipe; correct the file") from error
    check_keys(Training, table, f"[training] of {path}")
    return Training(**table)


def read_images(folder: Path) -> list[Any]:
    """Grey photographs (h, w) in [0, 1] of a folder."""
    from bitlens.data.clips import IMAGE_SUFFIXES
    from bitlens.data.images import read_image
    from bitlens.data.levels import to_float, to_grey

    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != ".")
    if not paths:
        raise ValueError(
            f"{folder} holds no images; wanted photographs ({', '.join(sorted(IMAGE_SUFFIXES))}); check it"
        )
    return [to_grey(to_float(read_image(path))) for path in paths]
