"""Pictures to calibrate super-resolution networks on: crops of photographs, shrunk as test pictures are."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bitlens.data.images import IMAGE_SUFFIXES, natural_key
from bitlens.data.levels import to_float
from bitlens.data.pairs import read_picture
from bitlens.operators import Downsample

__all__ = ["crops", "photographs"]


def photographs(folder: str | os.PathLike[str]) -> list[Path]:
    """The images of a folder and of the folders in it, naturally sorted, hidden ones left out.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}; wanted a folder of photographs to calibrate on; check the path")
    files = [file for file in root.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != "."]
    if not files:
        raise FileNotFoundError(
            f"folder {root} holds no images; wanted photographs ({', '.join(IMAGE_SUFFIXES)}); check the path"
        )
    return sorted(files, key=lambda file: (str(file.parent), natural_key(file)))


def crops(
    files: Sequence[Path], scale: int, count: int, batch: int, size: int = 48, seed: int = 0
) -> list[tuple[Float[Tensor, "b 3 h w"]]]:
    """Batches of crops of shrunken photographs, mirrored and turned at random; deterministic given the seed.

    Every photograph is shrunk as a whole, to 8 bits, by `Downsample`; photographs too small for a crop are left out.

    Args:
        files: photographs, of which each crop takes one at random.
        scale: how many times they are shrunk.
        count: batches. batch: crops of each. size: their height and width, after shrinking.

    Returns:
        What a network is called with, batch by batch: (image,), RGB in [0, 1].

    Raises:
        ValueError: no photograph is large enough.
    """
    generator = np.random.default_rng(seed)
    small: dict[int, np.ndarray | None] = {}
    shrink = Downsample(scale)
    made: list[Tensor] = []
    while len(made) < count * batch:
        index = int(generator.integers(len(files)))
        if index not in small:
            picture = read_picture(files[index])
            height, width = (length // scale * scale for length in picture.shape[1:])
            large = min(height, width) >= scale * size
            whole = torch.from_numpy(np.ascontiguousarray(picture[None, :, :height, :width]))
            small[index] = shrink.shrink_levels(whole)[0].numpy() if large else None
        picture = small[index]
        if picture is None:
            if len(small) == len(files) and not any(each is not None for each in small.values()):
                raise ValueError(
                    f"no photograph has {scale * size} pixels in height and width; wanted larger ones; give others, or "
                    "a smaller crop"
                )
            continue
        top, left = (int(generator.integers(length - size + 1)) for length in picture.shape[1:])
        piece = torch.from_numpy(to_float(picture[:, top : top + size, left : left + size]))
        piece = torch.rot90(piece, int(generator.integers(4)), (1, 2))
        made.append(piece.flip(2) if generator.integers(2) else piece)
    return [(torch.stack(made[i : i + batch]).contiguous(),) for i in range(0, len(made), batch)]
