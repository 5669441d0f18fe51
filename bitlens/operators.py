"""The camera of video snapshot compressive imaging (video SCI): one coded measurement of many frames.

    y = A x = sum_t mask_t * mosaic(x_t)           (all products per pixel)

The mosaic keeps one colour of each pixel of an RGB video and is the identity for a grey one. A measurement
pixel sees only its own column of the video, so A A^T is diagonal (`mask_energy`), and pseudo-inverse and
proximal operator have closed forms [GAP-TV, Yuan, ICIP 2016].
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["VideoSCI", "normalized_measurement"]

BAYER = {
    "rggb": ((0, 1), (1, 2)),
    "bggr": ((2, 1), (1, 0)),
    "grbg": ((1, 0), (2, 1)),
    "gbrg": ((1, 2), (0, 1)),
}
"""Colour channel (0 red, 1 green, 2 blue) at each pixel of the 2x2 corner that repeats over the sensor."""


class VideoSCI:
    """The operator A of one mask: video (b, c, t, h, w) -> measurement (b, h, w), the plain sum over time.

    Device and dtype come from what a method is given; the mask follows.

    >>> camera = VideoSCI(torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]]))  # 2 frames of 1 x 2 pixels
    >>> camera.A(torch.ones(1, 1, 2, 1, 2))
    tensor([[[2., 1.]]])

    Args:
        mask: (t, h, w), or (b, t, h, w) with one mask per item of the batch; any real values >= 0.
        bayer: None for a grey sensor (c = 1), or the mosaic of a colour sensor (c = 3, in the order R, G, B):
            "rggb", "bggr", "grbg" or "gbrg", the four letters of its upper left 2x2 pixels, row by row.

    Raises:
        TypeError: the mask does not hold floats.
        ValueError: the mask is not (t, h, w) or (b, t, h, w), is empty, holds NaN, infinity or negative
            values, or has a frame that opens no pixel; the mosaic is not one of the four.
    """

    def __init__(self, mask: Float[Tensor, "*batch t h w"], bayer: str | None = None):
        _check_mask(mask)
        if bayer is not None and bayer not in BAYER:
            raise ValueError(
                f"the mosaic is {bayer!r}; wanted one of {', '.join(BAYER)}, or None for a grey sensor: "
                "name the colours of the upper left 2x2 pixels, row by row"
            )
        self.bayer = bayer
        self._mask = mask if mask.ndim == 4 else mask.unsqueeze(0)  # (1 or b) t h w
        self._colour = None if bayer is None else _mosaic(bayer, self.height, self.width).to(mask.device)

    def __repr__(self) -> str:
        mosaic = "" if self.bayer is None else f", bayer={self.bayer!r}"
        return f"VideoSCI(mask of {self.frames} frames, {self.height} x {self.width}{mosaic})"

    @property
    def mask(self) -> Float[Tensor, "m t h w"]:
        """The mask (m, t, h, w) as it was given; m is 1 where one mask serves the whole batch."""
        return self._mask

    @property
    def frames(self) -> int:
        """t, the number of frames that one measurement holds."""
        return self._mask.shape[1]

    @property
    def height(self) -> int:
        """h, in pixels."""
        return self._mask.shape[2]

    @property
    def width(self) -> int:
        """w, in pixels."""
        return self._mask.shape[3]

    @property
    def channels(self) -> int:
        """c, the colour channels of the video: 1 (grey) or 3 (Bayer)."""
        return 1 if self._colour is None else 3

    @property
    def mask_sum(self) -> Float[Tensor, "m h w"]:
        """sum_t mask_t, (m, h, w): what the measurement of an all-white video would be."""
        return self._mask.sum(1)

    @property
    def mask_energy(self) -> Float[Tensor, "m h w"]:
        """sum_t mask_t^2, (m, h, w): the diagonal of A A^T. 0 where no frame opens the pixel."""
        return self._mask.square().sum(1)

    def A(self, video: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b h w"]:
        """Measure: y = sum_t mask_t * mosaic(x_t).

        Raises:
            TypeError: the video does not hold floats.
            ValueError: channels, frames, height or width are not the operator's, or there are several masks
                and not as many videos.
        """
        self._check("video", video, (self.channels, self.frames, self.height, self.width))
        seen = video if self._colour is None else video * self._colour.to(video)  # b c t h w
        return (self._mask.to(video) * seen.sum(1)).sum(1)  # b h w

    def A_adjoint(self, measurement: Float[Tensor, "b h w"]) -> Float[Tensor, "b c t h w"]:
        """A^T y: every frame and channel is mask_t * y where the mosaic has that channel, 0 elsewhere.

        Raises:
            TypeError: the measurement does not hold floats.
            ValueError: its height or width, or the number of masks, does not fit.
        """
        self._check("measurement", measurement, (self.height, self.width))
        video = (self._mask.to(measurement) * measurement.unsqueeze(1)).unsqueeze(1)  # b 1 t h w
        return video if self._colour is None else video * self._colour.to(measurement)  # b c t h w

    def A_dagger(self, measurement: Float[Tensor, "b h w"]) -> Float[Tensor, "b c t h w"]:
        """A^+ y = A^T (A A^T)^+ y, the smallest video that explains the measurement (pseudo-inverse).

        Pixels that no frame opens give 0. Raises as `A_adjoint`.
        """
        self._check("measurement", measurement, (self.height, self.width))
        return self.A_adjoint(measurement / _zero_to_one(self._energy_like(measurement)))

    def prox_l2(
        self,
        video: Float[Tensor, "b c t h w"],
        measurement: Float[Tensor, "b h w"],
        gamma: float,
    ) -> Float[Tensor, "b c t h w"]:
        """The video near the given one that explains the measurement better (the data step of ADMM and GAP).

            argmin_x gamma/2 ||A x - y||^2 + 1/2 ||x - v||^2
                = v + A^T (gamma (y - A v) / (1 + gamma diag(A A^T)))

        Args:
            video: v, (b, c, t, h, w).
            measurement: y, (b, h, w).
            gamma: weight of the measurement, >= 0; 0 returns the video, large values project onto A x = y.

        Raises:
            TypeError: video or measurement do not hold floats.
            ValueError: a shape does not fit the operator, the batches differ, or gamma is negative or not
                finite.
        """
        if not 0 <= gamma < math.inf:
            raise ValueError(
                f"gamma is {gamma}; wanted a finite number >= 0: "
                "for the limit of a hard constraint use video + A_dagger(measurement - A(video))"
            )
        self._check("measurement", measurement, (self.height, self.width))
        if len(video) != len(measurement):
            raise ValueError(
                f"videos of shape {tuple(video.shape)} came with measurements of shape "
                f"{tuple(measurement.shape)}; wanted one measurement per video: give both the same batch"
            )
        residual = measurement - self.A(video)  # b h w
        return video + self.A_adjoint(gamma * residual / (1 + gamma * self._energy_like(measurement)))

    def _energy_like(self, tensor: Tensor) -> Float[Tensor, "m h w"]:
        """`mask_energy` in the tensor's dtype: squared there, so that A A^+ = 1 holds to that precision."""
        return self._mask.to(tensor).square().sum(1)

    def _check(self, what: str, tensor: Tensor, wanted: tuple[int, ...]) -> None:
        """Refuse a tensor whose shape is not (b, *wanted), or whose batch has not the number of masks."""
        if not tensor.is_floating_point():
            raise TypeError(
                f"the {what} has dtype {tensor.dtype}; wanted floats: convert it with .float(), "
                "and divide 8-bit frames by 255"
            )
        axes = "b, h, w" if len(wanted) == 2 else "b, c, t, h, w"
        shape = tuple(tensor.shape)
        if shape[1:] != wanted or tensor.ndim != len(wanted) + 1:
            sizes = ", ".join(map(str, wanted))
            raise ValueError(
                f"the {what} has shape {shape}; with this mask of shape {tuple(self._mask.shape)} it must be "
                f"({axes}) = (any, {sizes}): crop or regroup the {what}, or cut the mask to fit"
            )
        if len(self._mask) not in (1, shape[0]):
            raise ValueError(
                f"the {what} has shape {shape}, a batch of {shape[0]}, but the mask of shape "
                f"{tuple(self._mask.shape)} is {len(self._mask)} masks; wanted one mask, or one per item: "
                "give both the same batch"
            )


def normalized_measurement(
    measurement: Float[Tensor, "b h w"], mask: Float[Tensor, "#b t h w"]
) -> Float[Tensor, "b h w"]:
    """The mean of the frames that each pixel saw: y / sum_t mask_t, where a sum of 0 counts as 1.

    For frames in [0, 1] a picture y' in [0, 1]; EfficientSCI starts from x = y' + mask * y'. Nothing is
    checked here, as networks are traced and exported through it.

    Args:
        measurement: y, (b, h, w), the plain sum over time.
        mask: (1 or b, t, h, w).
    """
    return measurement / _zero_to_one(mask.sum(1))


def _zero_to_one(divisor: Tensor) -> Tensor:
    """The divisor with 1 in place of 0."""
    return torch.where(divisor == 0, torch.ones_like(divisor), divisor)


def _mosaic(bayer: str, height: int, width: int) -> Float[Tensor, "3 1 h w"]:
    """1 where the sensor has this channel's filter, 0 elsewhere."""
    corner = torch.tensor(BAYER[bayer])  # 2 2
    channel = corner.repeat((height + 1) // 2, (width + 1) // 2)[:height, :width]  # h w
    return (channel == torch.arange(3).view(3, 1, 1)).float().unsqueeze(1)  # 3 1 h w


def _check_mask(mask: Tensor) -> None:
    """Refuse a mask that no camera can have."""
    if not mask.is_floating_point():
        raise TypeError(
            f"the mask has dtype {mask.dtype}; wanted floats: convert it with .float(), "
            "and divide by 255 if it was stored as an 8-bit picture"
        )
    shape = tuple(mask.shape)
    if mask.ndim not in (3, 4) or mask.numel() == 0:
        raise ValueError(
            f"the mask has shape {shape}; wanted (t, h, w) or (b, t, h, w), none of them 0: "
            "put time before height and width"
        )
    bad = int((~mask.isfinite()).sum())
    if bad:
        raise ValueError(
            f"{bad} value(s) of the mask of shape {shape} are NaN or infinite; wanted finite numbers: "
            "repair them, for example with torch.nan_to_num"
        )
    if mask.min() < 0:
        raise ValueError(
            f"the mask of shape {shape} goes down to {mask.min():g}; wanted values >= 0 (0 closed): "
            "subtract the camera's dark level and clip at 0"
        )
    closed = (mask.flatten(-2).amax(-1) == 0).nonzero().tolist()
    if len(closed) == math.prod(shape[:-2]):
        raise ValueError(
            f"the mask of shape {shape} is zero everywhere; wanted values > 0 where it lets light through: "
            "check the file it came from"
        )
    if closed:
        frames = ", ".join(str(tuple(index) if len(index) > 1 else index[0]) for index in closed[:8])
        raise ValueError(
            f"{len(closed)} frame(s) of the mask of shape {shape} are zero everywhere: {frames}; "
            "wanted every frame to open some pixel, as an unseen one cannot be restored: drop those frames"
        )
