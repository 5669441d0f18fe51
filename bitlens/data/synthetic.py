"""Makes videos that need no files: a seeded high-speed scene for demos, moving layers and posters for training."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

if TYPE_CHECKING:
    import torch

__all__ = ["high_speed_scene", "moving_layers", "poster"]

BANNER = "ONE SHOT  -  MANY FRAMES  -  "


def high_speed_scene(
    seed: int = 0, frames: int = 8, height: int = 256, width: int = 256, oversample: int = 2
) -> Float32[np.ndarray, "t h w"]:
    """A made scene: a lettered wheel spins, a ball flies, a pendulum swings, a banner runs, the wall pans.

    Drawn at `oversample` times the size and averaged down, so edges are smooth; the motion goes on for any
    number of frames. The same arguments give the same video. Grey, in [0, 1].

    Example:
        >>> high_speed_scene(frames=8).shape
        (8, 256, 256)
    """
    if frames < 1 or min(height, width) < 32 or oversample < 1:
        raise ValueError(
            f"frames={frames}, height={height}, width={width}, oversample={oversample}; "
            "wanted at least 1 frame of 32x32 and oversample >= 1; change the numbers"
        )
    from PIL import Image

    random = np.random.default_rng(seed)
    turn, swing, fly = random.uniform(0, 360), random.uniform(-0.5, 0.5), random.uniform(0.32, 0.4)
    tall, wide = height * oversample, width * oversample
    unit = min(tall, wide) / 256  # one pixel of a 256x256 picture
    wall, light = _wall(tall, wide, unit, random)
    wheel = _wheel(round(58 * unit))
    banner = _banner(round(26 * unit), round(15 * unit))
    video = np.empty((frames, height, width), np.float32)
    for index in range(frames):
        picture = np.roll(wall, -round(index * 0.8 * unit), axis=1) * light
        turned = wheel.rotate(turn + 6.0 * index, resample=Image.Resampling.BICUBIC)
        _paste(picture, turned, 0.33 * wide, 0.40 * tall)
        _draw_pendulum(picture, 0.76 * wide, 0.0, 105 * unit, 0.42 * math.sin(0.25 * index + swing), unit)
        _draw_ball(picture, fly + 0.035 * index, 0.3 * index, unit)
        _draw_banner(picture, banner, round(3.0 * index * unit))
        video[index] = picture.reshape(height, oversample, width, oversample).mean(axis=(1, 3))
    return np.clip(video, 0.0, 1.0)


def moving_layers(
    images: Sequence[np.ndarray],
    frames: int,
    height: int,
    width: int,
    generator: "torch.Generator | int",
    speed: float | int = 3.0,
) -> Float32[np.ndarray, "t h w"]:
    """A training video from photographs: the first moves as background, the others as cut-outs before it.

    Every layer pans, zooms and turns on its own smooth path (position, zoom and angle are quadratic in time,
    so it accelerates); cut-outs are soft-edged blobs. Borders are mirrored.

    Args:
        images: one or more grey photographs (h, w) in [0, 1], of any size.
        frames, height, width: size of the video.
        generator: torch.Generator or seed; the same one gives the same video.
        speed: typical speed of a layer in pixels per frame.

    Raises:
        ValueError: no image, or one that is not (h, w) floats in [0, 1].
    """
    import torch

    if not images:
        raise ValueError("no images; wanted at least one grey photograph (h, w) in [0, 1]; pass some")
    for index, image in enumerate(images):
        if image.ndim != 2 or image.dtype.kind != "f" or not (image.min() >= 0 and image.max() <= 1):
            raise ValueError(
                f"image {index} is {image.shape} {image.dtype}; wanted grey (h, w) floats in [0, 1]; convert it first"
            )
    source = torch.Generator().manual_seed(generator) if isinstance(generator, int) else generator
    time = torch.linspace(-1, 1, frames) if frames > 1 else torch.zeros(1)
    video = torch.zeros(frames, 1, height, width)
    for index, image in enumerate(images):
        whole = index == 0
        grid = _path(time, height, width, speed, source, 0.25 if whole else 0.5)  # t h w 2, in picture widths
        video = _over(video, _sample(image, grid, height, width), None if whole else _blob(grid, source))
    return video[:, 0].clamp(0, 1).numpy()  # t 1 h w -> t h w


def poster(seed: int, height: int = 160, width: int = 160) -> Float32[np.ndarray, "h w"]:
    """A printed sheet for training: lines of random letters, bars and discs, on a ground of another grey; in [0, 1].

    What high-speed cameras film is often lettered, and photographs hardly ever are.
    """
    from PIL import Image, ImageDraw, ImageFont

    random = np.random.default_rng(seed)
    ground = random.uniform(0, 1)
    far = ground + random.uniform(0.35, 1) * (1 if ground < 0.5 else -1)
    ink, paper = round(255 * float(np.clip(far, 0, 1))), round(255 * ground)
    image = Image.new("L", (width, height), paper)
    draw = ImageDraw.Draw(image)
    letters = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-+.:/&"))
    top = float(random.uniform(-4, 8))
    while top < height:
        size = float(random.choice([7, 9, 11, 14, 18, 24, 32]) * random.uniform(0.9, 1.1))
        kind = random.random()
        if kind < 0.75:
            font: Any = ImageFont.load_default(size=size)
            words = ("".join(random.choice(letters, int(random.integers(2, 9)))) for _ in range(12))
            draw.text((float(random.uniform(-10, 10)), top), " ".join(words), ink, font=font)
        elif kind < 0.9:
            for left in np.arange(0, width, size):
                draw.rectangle([left, top, left + size * 0.5, top + size * 0.8], fill=ink)
        else:
            for left in np.arange(0, width, 1.5 * size):
                draw.ellipse([left, top, left + size, top + size], fill=ink)
        top += size * float(random.uniform(1.1, 1.6))
    return np.asarray(image, np.float32) / 255


def _uniform(source: "torch.Generator", low: float | int, high: float | int) -> float:
    import torch

    return low + (high - low) * float(torch.rand((), generator=source))


def _path(
    time: "torch.Tensor",
    height: int,
    width: int,
    speed: float | int,
    source: "torch.Generator",
    wander: float,
) -> "torch.Tensor":
    """Where each pixel of each frame looks in its layer: (t, h, w, 2), x and y in longer sides."""
    import torch

    longer = max(height, width)
    angle = _uniform(source, 0, 2 * math.pi)
    travel = speed * _uniform(source, 0.2, 1.8) * len(time) / 2 / longer
    bend = travel * _uniform(source, -0.5, 0.5)
    east = travel * math.cos(angle) * time - bend * math.sin(angle) * time**2 + _uniform(source, -wander, wander)
    south = travel * math.sin(angle) * time + bend * math.cos(angle) * time**2 + _uniform(source, -wander, wander)
    turning = speed * len(time) / longer  # the rim turns about as fast as the layer pans
    spin = _uniform(source, -0.5, 0.5) + turning * _uniform(source, -0.6, 0.6) * time
    zoom = torch.exp(_uniform(source, -0.2, 0.2) + turning * _uniform(source, -0.4, 0.4) * time)
    y, x = torch.meshgrid(
        (torch.arange(height) - (height - 1) / 2) / longer,
        (torch.arange(width) - (width - 1) / 2) / longer,
        indexing="ij",
    )
    cos, sin = (torch.cos(spin) * zoom)[:, None, None], (torch.sin(spin) * zoom)[:, None, None]
    return torch.stack(
        (cos * x - sin * y - east[:, None, None], sin * x + cos * y - south[:, None, None]), dim=-1
    )  # t h w 2


def _sample(image: np.ndarray, grid: "torch.Tensor", height: int, width: int) -> "torch.Tensor":
    """The photograph seen through the path, at its own resolution or coarser: (t, 1, h, w)."""
    import torch

    rows, columns = image.shape
    photo = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None, None]
    scale = max(1.0, min(rows / height, columns / width) / 1.5)  # of a large photo show more than a crop of it
    if scale > 1:
        photo = torch.nn.functional.interpolate(
            photo, size=(round(rows / scale), round(columns / scale)), mode="bilinear", antialias=True
        )
    rows, columns = photo.shape[-2:]
    longer = max(height, width)
    looking = grid * torch.tensor([2 * longer / columns, 2 * longer / rows])  # -1..1 is the photo
    return torch.nn.functional.grid_sample(
        photo.expand(len(grid), -1, -1, -1),
        looking,
        mode="bicubic",
        padding_mode="reflection",
        align_corners=False,
    )


def _blob(grid: "torch.Tensor", source: "torch.Generator") -> "torch.Tensor":
    """Soft-edged outline that moves with its layer: r < radius (1 + lobes), as (t, 1, h, w) in [0, 1]."""
    import torch

    x, y = grid[..., 0], grid[..., 1]
    angle, radius = torch.atan2(y, x), torch.sqrt(x * x + y * y)
    edge = torch.full_like(angle, _uniform(source, 0.1, 0.28))
    for lobes in (2, 3, 5):
        edge = edge * (1 + _uniform(source, 0, 0.25) * torch.cos(lobes * angle + _uniform(source, 0, 6.28)))
    sharpness = grid.shape[2] / 1.5
    return torch.clamp(0.5 + (edge - radius) * sharpness, 0, 1)[:, None]


def _over(below: "torch.Tensor", above: "torch.Tensor", alpha: "torch.Tensor | None") -> "torch.Tensor":
    return above if alpha is None else below + alpha * (above - below)


def _wall(tall: int, wide: int, unit: float, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Bricks with mortar under band-limited noise, periodic in x; and the light that falls on it."""
    y, x = np.mgrid[0:tall, 0:wide].astype(np.float32)
    count = max(1, round(wide / (36 * unit)))
    high, long = 16 * unit, wide / count
    row = np.floor(y / high).astype(int)
    along = x / long + 0.5 * (row % 2)
    brick = np.floor(along).astype(int)
    shade = random.uniform(0.38, 0.62, (row.max() + 1, count))[row, brick % count]
    gap = np.minimum((y / high - row) * high, (along - brick) * long) / unit  # distance to the mortar line
    spectrum = np.fft.rfft2(random.standard_normal((tall, wide)))
    pitch = np.hypot(np.fft.fftfreq(tall)[:, None], np.fft.rfftfreq(wide)[None]) * unit * 256
    noise = np.fft.irfft2(spectrum * np.exp(-((pitch / 45) ** 2)), s=(tall, wide))
    wall = np.where(gap < 1.8, 0.74, shade) + 0.045 * noise / noise.std()
    light = (1.0 - 0.35 * x / wide) * (1.05 - 0.35 * y / tall)
    return wall.astype(np.float32), light


def _wheel(radius: int) -> Any:
    """The wheel as a Pillow image (grey, alpha), drawn once: rim, ticks, spokes, hub and letters."""
    from PIL import Image, ImageDraw, ImageFont

    size, r = 2 * radius + 5, float(radius)
    image = Image.new("LA", (size, size), (0, 0))
    draw = ImageDraw.Draw(image)

    def disc(part: float, grey: int) -> None:
        draw.ellipse([size / 2 - part * r, size / 2 - part * r, size / 2 + part * r, size / 2 + part * r], (grey, 255))

    def at(angle: float, part: float) -> tuple[float, float]:
        return size / 2 + part * r * math.cos(angle), size / 2 + part * r * math.sin(angle)

    disc(1.0, 25)
    disc(0.93, 232)
    for tick in range(48):
        angle, inner = tick * math.pi / 24, 0.84 if tick % 4 == 0 else 0.88
        draw.line([at(angle, inner), at(angle, 0.94)], (25, 255), max(1, round(0.022 * r)))
    font: Any = ImageFont.load_default(size=0.26 * r)
    for index, letter in enumerate("BITLENS8"):
        label = Image.new("L", (round(0.36 * r), round(0.36 * r)), 0)
        ImageDraw.Draw(label).text((0.18 * r, 0.18 * r), letter, 255, font=font, anchor="mm", stroke_width=1)
        angle = index * math.pi / 4 + math.pi / 8
        label = label.rotate(-math.degrees(angle) - 90, resample=Image.Resampling.BICUBIC)
        x, y = at(angle, 0.68)
        image.paste((20, 255), (round(x - label.width / 2), round(y - label.height / 2)), label)
    disc(0.5, 60)
    disc(0.45, 205)
    for spoke in range(8):
        draw.line([at(spoke * math.pi / 4, 0.1), at(spoke * math.pi / 4, 0.48)], (45, 255), max(1, round(0.06 * r)))
    draw.pieslice(
        [size / 2 - 0.45 * r, size / 2 - 0.45 * r, size / 2 + 0.45 * r, size / 2 + 0.45 * r], 0, 45, (45, 255)
    )
    disc(0.16, 30)
    disc(0.07, 240)
    return image


def _banner(tall: int, letter: int) -> np.ndarray:
    """One period of the running text as values in [0, 1], (tall, period)."""
    from PIL import Image, ImageDraw, ImageFont

    font: Any = ImageFont.load_default(size=letter)
    image = Image.new("L", (round(font.getlength(BANNER)), tall), 18)
    ImageDraw.Draw(image).text((0, tall / 2), BANNER, 245, font=font, anchor="lm")
    return np.asarray(image, np.float32) / 255


def _draw_banner(picture: np.ndarray, banner: np.ndarray, shift: int) -> None:
    """The banner over the bottom of the picture, moved left by `shift` and repeated."""
    columns = (np.arange(picture.shape[1]) + shift) % banner.shape[1]
    picture[-len(banner) :] = banner[:, columns]


def _paste(picture: np.ndarray, image: Any, x: float, y: float) -> None:
    """Put a Pillow (grey, alpha) image centred at (x, y), with a shadow of its outline to the lower right."""
    values = np.asarray(image, np.float32) / 255
    for offset, strength in ((values.shape[0] // 24, 0.45), (0, 1.0)):
        top, left = round(y - values.shape[0] / 2) + offset, round(x - values.shape[1] / 2) + offset
        first_row, first_column = max(0, -top), max(0, -left)
        window = picture[max(0, top) : top + values.shape[0], max(0, left) : left + values.shape[1]]
        part = values[first_row : first_row + window.shape[0], first_column : first_column + window.shape[1]]
        grey = part[..., 0] if offset == 0 else np.float32(0)
        window += strength * part[..., 1] * (grey - window)


def _draw_pendulum(picture: np.ndarray, x: float, y: float, length: float, angle: float, unit: float) -> None:
    """A rod from (x, y) and a ringed bob, at `angle` from the vertical."""
    rows, columns = np.mgrid[0 : picture.shape[0], 0 : picture.shape[1]].astype(np.float32)
    east, south = columns - x, rows - y
    along = east * math.sin(angle) + south * math.cos(angle)
    across = np.abs(east * math.cos(angle) - south * math.sin(angle))
    _blend(picture, np.maximum(across - 1.6 * unit, np.maximum(-along, along - length)), 0.08)
    distance = np.hypot(east - length * math.sin(angle), south - length * math.cos(angle))
    for radius, grey in ((17, 0.06), (14.5, 0.92), (9.5, 0.12), (5, 0.85)):
        _blend(picture, distance - radius * unit, grey)


def _draw_ball(picture: np.ndarray, progress: float, spin: float, unit: float) -> None:
    """A shaded beach ball that crosses the picture on a hopping path and comes back; it rolls as it flies."""
    tall, wide = picture.shape
    there = abs((progress + 1) % 2 - 1)  # 0 -> 1 -> 0 ...
    radius = 21 * unit
    x = radius + there * (wide - 2 * radius)
    y = 0.78 * tall - 0.25 * tall * abs(math.cos(1.5 * math.pi * there))  # lowest under the wheel
    rows, columns = np.mgrid[0:tall, 0:wide].astype(np.float32)
    east, south = (columns - x) / radius, (rows - y) / radius
    depth = np.sqrt(np.maximum(0, 1 - east**2 - south**2))
    turned = np.arctan2(south * math.cos(spin) + east * math.sin(spin), depth)  # stripes run over the sphere
    panel = np.tanh(6 * np.sin(5 * np.arctan2(east * math.cos(spin) - south * math.sin(spin), depth)))
    light = 0.45 + 0.55 * np.clip(0.75 * depth - 0.45 * east - 0.45 * south, 0, 1)
    grey = np.clip((0.52 + 0.4 * panel * np.sign(np.cos(2 * turned))) * light, 0, 1)
    _blend(picture, (np.hypot(east, south) - 1) * radius, grey.astype(np.float32))


def _blend(picture: np.ndarray, distance: np.ndarray, grey: float | np.ndarray) -> None:
    """Paint `grey` where the signed distance in pixels is negative, with a one-pixel soft edge."""
    alpha = np.clip(0.5 - distance, 0, 1).astype(np.float32)
    picture += alpha * (grey - picture)
