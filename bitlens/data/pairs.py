"""Test pictures of super-resolution: named sets (`--data set5`) and folders of photographs, never for training."""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from bitlens.data.benchmarks import data_root
from bitlens.data.images import IMAGE_SUFFIXES, natural_key, read_image
from bitlens.data.levels import to_float, to_levels
from bitlens.operators import Downsample

__all__ = ["PICTURE_SETS", "Pair", "load_pairs", "picture_files", "read_picture"]

PICTURE_SETS: Mapping[str, str] = MappingProxyType(
    {
        "set5": "Set5",
        "set14": "Set14",
        "b100": "B100",
        "urban100": "Urban100",
        "manga109": "Manga109",
        "urban10": "Urban10",
    }
)
"""Name -> folder below `sr` of the data root: `HR`, and `LR_bicubic/X2` ... where there are stored small pictures."""


@dataclass(frozen=True)
class Pair:
    """One test picture, and the small one that a network starts from."""

    name: str
    high: Path
    """The picture itself, the truth."""
    low: Path | None
    """The stored small picture; None: it is made of the other by MATLAB's bicubic shrinking."""
    scale: int

    def read(self) -> tuple[Float32[np.ndarray, "3 h w"], Float32[np.ndarray, "3 h2 w2"]]:
        """The small picture and the truth, RGB in [0, 1] at 8 bits, the truth cropped to `scale` times the small one.

        Raises:
            ValueError: not an image, too small, or the stored small one is not 1/scale of the truth.
        """
        high = read_picture(self.high)
        height, width = (size // self.scale for size in high.shape[1:])
        high = high[:, : height * self.scale, : width * self.scale]
        if not high.size:
            raise ValueError(f"{self.high} is smaller than {self.scale} pixels; wanted a larger picture; remove it")
        if self.low is None:
            low = Downsample(self.scale).shrink_levels(torch.from_numpy(high)[None])[0].numpy()
        else:
            low = read_picture(self.low)
        if low.shape != (3, height, width):
            raise ValueError(
                f"{self.low} has {low.shape[1]}x{low.shape[2]} pixels; wanted {height}x{width}, 1/{self.scale} of "
                f"{self.high}; make it again, or remove its folder to have it made"
            )
        return to_float(low), to_float(high)


def load_pairs(name: str | os.PathLike[str], scale: int, root: str | os.PathLike[str] | None = None) -> list[Pair]:
    """The pictures of a named set, or of a folder (or one file) of photographs, naturally sorted.

    Stored small pictures, `LR_bicubic/X2/NAMEx2.png` beside a named set's `HR`, are used where they are.

    Raises:
        ValueError: unknown name (the nearest known one is named).
        FileNotFoundError: no data root, no set below it, no picture in the folder, or a stored small one is missing.
    """
    text = os.fspath(name)
    if text in PICTURE_SETS:
        folder = (data_root() if root is None else Path(root)) / "sr" / PICTURE_SETS[text]
        if not (folder / "HR").is_dir():
            raise FileNotFoundError(
                f"no folder {folder / 'HR'}; wanted the pictures of {text} there; copy them, or set BITLENS_DATA"
            )
        stored = folder / "LR_bicubic" / f"X{scale}"
        return [
            Pair(file.stem, file, small_picture(file, stored, scale) if stored.is_dir() else None, scale)
            for file in picture_files(folder / "HR")
        ]
    path = Path(name)
    if path.is_dir() or path.is_file():
        return [Pair(file.stem, file, None, scale) for file in picture_files(path)]
    near = difflib.get_close_matches(text, PICTURE_SETS, n=1, cutoff=0.3)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise ValueError(
        f"no test set '{text}' of pictures; {hint}wanted one of {', '.join(PICTURE_SETS)}, or the path of a folder of "
        "pictures; correct the name"
    )


def small_picture(file: Path, folder: Path, scale: int) -> Path:
    """The stored small version of a picture."""
    for name in (f"{file.stem}x{scale}", file.stem):
        for suffix in (file.suffix, *IMAGE_SUFFIXES):
            if (folder / f"{name}{suffix}").is_file():
                return folder / f"{name}{suffix}"
    raise FileNotFoundError(
        f"no picture {folder / file.stem}x{scale}{file.suffix}; wanted one for every picture in {file.parent}; "
        "restore it, or remove the folder to have all of them made"
    )


def picture_files(path: str | os.PathLike[str]) -> list[Path]:
    """The image files of a folder, naturally sorted, hidden ones left out; or the one file that the path names.

    Raises:
        FileNotFoundError: no such file or folder, or no image in it.
    """
    place = Path(path)
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise FileNotFoundError(f"no file or folder {place}; wanted an image or a folder of images; check the path")
    files = [file for file in place.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != "."]
    if not files:
        raise FileNotFoundError(
            f"folder {place} holds no images; wanted files {', '.join(IMAGE_SUFFIXES)}; check the path"
        )
    return sorted(files, key=natural_key)


def read_picture(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "3 h w"]:
    """An image file as RGB of 8 bits, channels first; grey ones three times, finer ones rounded.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an image, or damaged.
    """
    levels = read_image(path)
    if levels.dtype != np.uint8:
        levels = to_levels(to_float(levels))
    rgb = levels if levels.ndim == 3 else np.stack([levels] * 3, axis=2)
    return np.ascontiguousarray(rgb.transpose(2, 0, 1))
