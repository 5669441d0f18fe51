"""What networks that attend within windows share: positions, masks of shifted windows, padding to whole windows."""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["mirror_pad", "relative_positions", "separation", "to_windows", "window_positions"]


LARGEST = 32
"""Pixels along a window: its table of positions has the fourth power of that many entries."""


def relative_positions(size: int) -> Int[Tensor, "n n"]:
    """i - j + size - 1 for positions i, j < size: from 0 to 2 size - 2."""
    position = torch.arange(size)
    return position[:, None] - position + size - 1


def window_positions(window: int) -> Int[Tensor, "n n"]:
    """The row of the table of position biases for each two pixels of a window: (2 window - 1) dy + dx.

    Raises:
        ValueError: the window is larger than `LARGEST`.
    """
    if window > LARGEST:
        raise ValueError(f"windows of {window}x{window} pixels; wanted at most {LARGEST}x{LARGEST}; choose less")
    distance = relative_positions(window)
    index = (2 * window - 1) * distance[:, None, :, None] + distance[None, :, None, :]  # i j k l
    return index.reshape(window**2, window**2)


def separation(
    height: int, width: int, window: tuple[int, int], rolled: tuple[int, int], device: torch.device
) -> Float[Tensor, "windows s s"]:
    """-100 for two pixels of a window that were apart before the frame was rolled up and to the left, 0 for others."""
    wrapped = torch.zeros(height, width, device=device)
    wrapped[height - rolled[0] :] += 1
    wrapped[:, width - rolled[1] :] += 2
    part = rearrange(wrapped, "(y i) (x j) -> (y x) (i j)", i=window[0], j=window[1])
    return -100.0 * (part.unsqueeze(1) != part.unsqueeze(2))


def to_windows(x: Float[Tensor, "b h w c"], window: int) -> Float[Tensor, "windows s c"]:
    """Cut into windows: all of the first image, row by row, then those of the next."""
    return rearrange(x, "b (y i) (x j) c -> (b y x) (i j) c", i=window, j=window)


def mirror_pad(image: Float[Tensor, "b c h w"], multiple: int, *, edge: bool) -> Float[Tensor, "b c h2 w2"]:
    """Pad below and to the right to multiples of a number with the mirrored image, however small it is.

    Args:
        image: (b, c, h, w).
        multiple: what height and width become multiples of; an image that fits is returned as it is.
        edge: whether the mirror repeats the last pixel (... y z z y ...) or not (... y z y ...).
    """
    h, w = image.shape[-2:]
    for axis, size in ((2, h), (3, w)):
        if size % multiple:
            whole = torch.arange(size + -size % multiple, device=image.device)
            period = max(2 * size if edge else 2 * size - 2, 1)
            back = period - edge - whole % period  # where the mirror image of a position lies
            image = image.index_select(axis, torch.minimum(whole % period, back % period))
    return image
