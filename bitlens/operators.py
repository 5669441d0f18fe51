"""The physics: the camera of video snapshot compressive imaging, and the bicubic shrinking of super-resolution.

Video SCI takes one coded measurement of many frames:

    y = A x = sum_t mask_t * mosaic(x_t)           (all products per pixel)

The mosaic keeps one colour of each pixel of an RGB video and is the identity for a grey one. A measurement
pixel sees only its own column of the video, so A A^T is diagonal (`mask_energy`), and pseudo-inverse and
proximal operator have closed forms [GAP-TV, Yuan, ICIP 2016].

Super-resolution's low-resolution pictures are the high-resolution ones, shrunk by MATLAB's `imresize`:

    y = A x = R x C^T                              (R, C: weights of the rows and columns)
"""

import math
from functools import lru_cache

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

__all__ = ["Downsample", "VideoSCI", "normalized_measurement"]

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


class Downsample:
    """The operator A of super-resolution: image (b, c, h, w) -> (b, c, h/scale, w/scale), antialiased bicubic.

    Output pixel i lies at u = scale (i + 1/2) - 1/2 and is the mean of the pixels j around it with the weights
    k((u - j) / scale) of Keys's cubic [Keys, IEEE TASSP 1981, a = -1/2], normalized to sum 1. Beyond the borders the
    image is mirrored, the last pixel repeated. This is `imresize(image, 1/scale)` of MATLAB for floats; for pictures of
    8 bits, which it rounds after each axis, see `shrink_levels`. Device and dtype come from what a method is given.

    >>> Downsample(2).A(torch.ones(1, 1, 4, 6)).shape
    torch.Size([1, 1, 2, 3])

    Args:
        scale: how many times lower and narrower the output is; a whole number >= 1.

    Raises:
        ValueError: the scale is below 1.
    """

    def __init__(self, scale: int):
        if scale < 1:
            raise ValueError(f"scale {scale}; wanted a whole number >= 1: 2, 3 or 4 in the tables")
        self.scale = scale

    def __repr__(self) -> str:
        return f"Downsample({self.scale})"

    def A(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Shrink.

        Raises:
            TypeError: the image does not hold floats.
            ValueError: it is not (b, c, h, w) with h and w multiples of the scale.
        """
        self._check(image, self.scale)
        rows, columns = self._weights(image, image.shape[2], image.shape[3])
        return rows @ image @ columns.T

    def A_adjoint(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """A^T y, (b, c, h, w) -> (b, c, scale h, scale w): every pixel spread over those it is the mean of.

        Raises:
            TypeError: the image does not hold floats.
            ValueError: it is not (b, c, h, w).
        """
        self._check(image, 1)
        rows, columns = self._weights(image, image.shape[2] * self.scale, image.shape[3] * self.scale)
        return rows.T @ image @ columns

    def shrink_levels(self, picture: UInt8[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h2 w2"]:
        """Shrink a picture of 8 bits as MATLAB does, bit for bit: both axes in turn, rounded (halves up) and clipped.

        The published low-resolution test pictures were made so. They differ from rounding `A` once in every eighth
        pixel, by one grey level mostly and by up to 12 beside black or white, where values are clipped twice.

        Raises:
            ValueError: the picture is not (b, c, h, w) with h and w multiples of the scale.
        """
        values = picture.double()
        self._check(values, self.scale)
        rows, columns = self._weights(values, picture.shape[2], picture.shape[3])
        between = (rows @ values + 0.5).floor().clamp(0, 255)
        return (between @ columns.T + 0.5).floor().clamp(0, 255).to(torch.uint8)

    def _weights(self, image: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """The weights of rows (height/scale, height) and of columns (width/scale, width), like the image."""
        return tuple(bicubic_weights(size, self.scale).to(image) for size in (height, width))  # type: ignore

    def _check(self, image: Tensor, multiple: int) -> None:
        if not image.is_floating_point():
            raise TypeError(f"the image has dtype {image.dtype}; wanted floats: divide 8-bit pictures by 255 first")
        shape = tuple(image.shape)
        if image.ndim != 4 or 0 in shape or shape[2] % multiple or shape[3] % multiple:
            raise ValueError(
                f"the image has shape {shape}; wanted (b, c, h, w), h and w multiples of {multiple}: "
                "crop it at the bottom and on the right"
            )


@lru_cache(maxsize=32)
def bicubic_weights(size: int, scale: int) -> Float[Tensor, "out size"]:
    """What each of size / scale output pixels takes of the input pixels along one axis; float64, rows sum to 1."""
    centre = scale * (torch.arange(size // scale).double() + 0.5) - 0.5  # out
    taps = (centre - 2 * scale).floor().long().unsqueeze(1) + torch.arange(4 * scale + 2)  # out taps
    distance = ((centre.unsqueeze(1) - taps) / scale).abs()
    near = (1.5 * distance - 2.5) * distance.square() + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weight = torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))
    place = taps % (2 * size)
    place = torch.minimum(place, 2 * size - 1 - place)  # mirrored at the borders
    weights = torch.zeros(size // scale, size, dtype=torch.float64)
    return weights.scatter_add_(1, place, weight / weight.sum(1, keepdim=True))


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
    if mask.is_meta:  # a shape without values, by which operations are counted
        return
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
