"""What a low-bit network is fitted to and checked on, for any task: a user's films or photographs, or made ones.

The two never share a photograph or a made scene; of films they take other crops, and other films where a manifest says
which are for validation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bitlens.data.cameras import Cameras
from bitlens.data.clips import Clips, ClipSampler, load_clips
from bitlens.data.crops import photographs
from bitlens.data.damage import RestorationSampler
from bitlens.data.patches import PatchSampler, in_sizes
from bitlens.data.synthetic import high_speed_scene, poster

if TYPE_CHECKING:
    from jaxtyping import UInt8

__all__ = ["Fitting", "fitting"]

MADE, MADE_FRAMES, MADE_SIZE = 4, 32, 256
"""Made scenes of each half, their frames, and pixels of height and width."""
HELD_OUT = 4
"""Every fourth photograph is checked on."""
CHECK_SEED = 1 << 20
"""Added to the seed, so that crops to check on are others."""


@dataclass(frozen=True)
class Fitting:
    """Where batches come from; each draws by (step), as for training."""

    fit: Any
    check: Any
    about: dict[str, Any]
    """What it is, for provenance."""


def fitting(
    scale: int | None,
    source: Path | None = None,
    *,
    frames: int = 8,
    crop: int = 64,
    batch: int = 2,
    cameras: bool = False,
    seed: int = 0,
) -> Fitting:
    """Samplers for a network.

    Args:
        scale: how many times it enlarges images; 1: it restores them; None: it reconstructs video.
        source: folder of films, or for images of photographs; None: made scenes.
        frames: of a measurement.
        crop: height and width of a sample, before it is enlarged.
        batch: samples of a batch.
        cameras: measure through many kinds of masks, not random binary ones alone.
        seed: decides everything.

    Raises:
        FileNotFoundError, ValueError: no such folder, or nothing in it that is large enough.
    """
    options: dict[str, Any] = dict(crop=crop, batch=batch)
    if scale is None:
        halves, about = films(source, frames, seed)
        options |= dict(frames=frames, cameras=Cameras() if cameras else None)
        fit, check = (
            ClipSampler(half, seed=own, **options) for half, own in zip(halves, (seed, seed + CHECK_SEED), strict=True)
        )
        return Fitting(fit, check, {**about, "masks": "a mixture of cameras" if cameras else "random binary, fresh"})
    shown, about = images(source, seed)
    samplers: list[Any] = []
    for half, own in zip(shown, (seed, seed + CHECK_SEED), strict=True):
        options["seed"] = own
        samplers.append(RestorationSampler(half, **options) if scale == 1 else PatchSampler(half, scale, **options))
    made = "noise and JPEG" if scale == 1 else f"Downsample({scale})"
    return Fitting(samplers[0], samplers[1], {**about, "made": made})


def films(source: Path | None, frames: int, seed: int) -> tuple[Sequence[Clips], dict[str, Any]]:
    """Films to fit to and to check on."""
    if source is None:
        made = made_scenes(seed)
        halves = [Clips(made[:MADE], ["made"] * MADE), Clips(made[MADE:], ["made"] * MADE)]
        return halves, {"data": "made scenes"}
    if (source / "manifest.json").is_file():
        halves = [load_clips(source, split, frames) for split in ("train", "val")]
    else:
        halves = [load_clips(source, None, frames)] * 2
    return halves, {"clips": len(halves[0].videos), "identity": halves[0].identity()}


def images(source: Path | None, seed: int) -> "tuple[Sequence[list[tuple[str, UInt8[np.ndarray, 'c h w']]]], dict]":
    """Images to fit to and to check on."""
    if source is None:
        made = [(f"made {i}", coloured(scene, seed + i)) for i, scene in enumerate(made_scenes(seed))]
        made += [(f"sheet {i}", coloured(sheet, seed + i)) for i, sheet in enumerate(made_sheets(seed))]
        return [made[::2], made[1::2]], {"data": "made scenes and sheets"}
    files = photographs(source)
    checked = files[HELD_OUT - 1 :: HELD_OUT] or files
    fitted = [file for file in files if file not in checked] or files
    halves = [list(in_sizes(half, (1,))) for half in (fitted, checked)]
    return halves, {"photographs": len(files), "checked on": len(checked)}


def made_scenes(seed: int) -> "list[UInt8[np.ndarray, 't h w']]":
    """Made scenes, each another one, for both halves."""
    scenes = (high_speed_scene(seed + i, MADE_FRAMES, MADE_SIZE, MADE_SIZE, 1) for i in range(2 * MADE))
    return [np.round(scene * 255).astype(np.uint8) for scene in scenes]


def made_sheets(seed: int) -> "list[UInt8[np.ndarray, 't h w']]":
    """Lettered sheets, three at a time, as made scenes are given."""
    sheets = ([poster(seed + 3 * i + k, MADE_SIZE, MADE_SIZE) for k in range(3)] for i in range(2 * MADE))
    return [np.round(np.stack(three) * 255).astype(np.uint8) for three in sheets]


def coloured(scene: "UInt8[np.ndarray, 't h w']", seed: int) -> "UInt8[np.ndarray, '3 h w']":
    """An image of which a grey frame is the brightness and two others, faintly, the tint."""
    random = np.random.default_rng(seed)
    frame, *tints = (scene[index].astype(np.float32) for index in random.choice(len(scene), 3, replace=False))
    channels = [frame + random.uniform(-0.5, 0.5) * (tint - tint.mean()) for tint in (*tints, tints[0] - tints[1])]
    return np.clip(np.round(channels), 0, 255).astype(np.uint8)
