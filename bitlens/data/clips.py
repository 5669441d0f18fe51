"""Training clips: videos decoded once into a cache, and seeded random crops of them with fresh masks.

Every batch is a pure function of (seed, step, rank), so a resumed run sees exactly the data that an
uninterrupted one would have seen, and every process of a distributed run sees its own.
[Q-SCI sec. 4.1; its official code for the augmentations].
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from bitlens.data.arrays import DAMAGE
from bitlens.data.cameras import Cameras
from bitlens.data.masks import random_mask, read_mask
from bitlens.data.synthetic import moving_layers, poster
from bitlens.data.video import read_video
from bitlens.files import atomic_path

__all__ = ["Batch", "ClipSampler", "Clips", "load_clips", "load_mask", "measurements"]

VIDEO_SUFFIXES = {".avif", ".mp4", ".avi", ".mkv", ".mov", ".gif", ".tif", ".npz"}
SPEEDS = (0.7, 0.2, 0.1)
"""How often a mixture of cameras sees a video one, two and three times as fast."""
POSTERS, MADE_SPEEDS = 0.4, (0.5, 5.0)
"""With a mixture of cameras: how often a layer of a made video is a `poster`; typical speeds in pixels per frame."""
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp"}


@dataclass(frozen=True)
class Clips:
    """Videos for training or validation: uint8 grey arrays (t, h, w), memory-mapped, with their names."""

    videos: list[np.ndarray]
    names: list[str]

    def identity(self) -> str:
        """A short hash of names and sizes, written into checkpoints as the identity of the training data."""
        text = json.dumps([[name, *video.shape] for name, video in zip(self.names, self.videos, strict=True)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_clips(folder: str | os.PathLike[str], split: str | None = None, min_frames: int = 8) -> Clips:
    """Decode every video of a folder (files, or subfolders of frames) into the cache and map it into memory.

    Args:
        folder: where the videos are. A `manifest.json` there may list `file` and `split` of each.
        split: take only the files of this split of the manifest, such as "train" or "val".
        min_frames: leave out shorter videos.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no video of that split and length in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}; wanted training videos; check the path")
    videos, names = [], []
    for path in clip_paths(root, split):
        video = mapped(cached(path))
        if video is None:
            raise OSError(f"{path} is gone from the cache again; wanted its frames there; free some room, start again")
        if len(video) >= min_frames:
            videos.append(video)
            names.append(path.name)
    if not videos:
        what = f"of the split {split!r} " if split else ""
        raise ValueError(f"{root} holds no video {what}of {min_frames} frames or more; give another folder or split")
    return Clips(videos, names)


def clip_paths(root: Path, split: str | None) -> list[Path]:
    """The videos of a folder, sorted by name; a manifest decides where there is one."""
    manifest = root / "manifest.json"
    if manifest.is_file():
        try:
            entries = json.loads(manifest.read_text(encoding="utf-8"))
            if not isinstance(entries, list):
                raise TypeError(f"a {type(entries).__name__}")
            chosen = [str(e["file"]) for e in entries if split is None or e["split"] == split]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{manifest} is no list of videos ({error!r}); wanted "
                '[{"file": "a.mp4", "split": "train"}, ...]; correct it, or remove it'
            ) from error
        return sorted(root / name for name in chosen)
    if split is not None:
        raise ValueError(f"{root} has no manifest.json, so no split {split!r}; leave the split out")
    seen = (path for path in root.iterdir() if path.name[0] != ".")
    return sorted(path for path in seen if path.suffix.lower() in VIDEO_SUFFIXES or path.is_dir())


def cached(path: Path) -> Path:
    """The decoded video as .npy in the user's cache; decoded now if it is not there yet, or damaged."""
    key = hashlib.sha256(f"{path.resolve()}|{state_of(path)}".encode()).hexdigest()[:12]
    base = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "bitlens" / "clips"
    target = base / f"{path.stem}-{key}.npy"
    if mapped(target) is None:
        frames = np.round(read_video(path) * 255).astype(np.uint8)
        with atomic_path(target) as temporary:
            np.save(temporary, frames)
    return target


def mapped(file: Path) -> np.ndarray | None:
    """The frames (t, h, w) of a file of the cache, mapped into memory; None: there is none, or it is damaged."""
    try:
        video = np.load(file, mmap_mode="r")
    except DAMAGE:
        return None
    whole = isinstance(video, np.memmap) and video.dtype == np.uint8 and video.ndim == 3
    return video if whole and video.offset + video.nbytes == file.stat().st_size else None


def state_of(path: Path) -> str:
    """What changes when a file, or a file of a folder, does: sizes and times; of files in folders their names too."""
    stat = path.stat()
    if not path.is_dir():
        return f"{stat.st_size}|{stat.st_mtime_ns}"
    files = sorted((file.name, file.stat()) for file in path.iterdir() if file.is_file())
    return repr([(name, own.st_size, own.st_mtime_ns) for name, own in files])


class Batch(NamedTuple):
    """What a step is trained on."""

    videos: Float[Tensor, "b t h w"]
    """The truth, in [0, 1]."""
    masks: Float[Tensor, "b t h w"]
    """The mask of each sample, as it was calibrated."""
    measurements: Float[Tensor, "b h w"]
    """What each camera measured."""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What a network is called with."""
        return self.measurements, self.masks

    @property
    def truth(self) -> Tensor:
        """What it should give, (b, 1, t, h, w)."""
        return self.videos.unsqueeze(1)

    @property
    def error_axes(self) -> tuple[int, ...]:
        """Over which squared errors are averaged for one PSNR: a frame."""
        return (-2, -1)


class ClipSampler:
    """Random crops of videos with masks, as batches that depend only on (seed, step, rank).

    Augmentation: a window of `crop * s` pixels with s uniform in `scale` is resized to `crop`, then flipped in
    x, y and time and transposed, each with probability 1/2, and its contrast may be lowered.

    Differs: the official code resizes by 0.8 to 1.2 and draws one mask per process. A wider range of scales
    makes 640 x 360 videos as sharp as the 256 x 256 benchmark, and a new mask for every sample keeps the
    network from learning one mask by heart.

    Args:
        clips: the videos.
        frames: frames per sample.
        crop: height and width of a sample.
        batch: samples per batch.
        seed: what decides everything.
        mask: None for fresh random binary masks, or a fixed mask (t, h, w) that is cropped at random places.
        scale: range of the window's size relative to the crop.
        images: still photographs (h, w) in [0, 1]; a share `synthetic` of the samples is made of them by
            pans, zooms, turns and layered objects.
        synthetic: share of samples made from `images`.
        cameras: a mixture of cameras instead of fresh random binary masks without noise. It draws the number of
            frames of a step, and `batch` samples then become as many as hold the same number of frames in all. Real
            videos are played one to three times as fast, to and fro where they are too short.
    """

    def __init__(
        self,
        clips: Clips,
        *,
        frames: int = 8,
        crop: int = 64,
        batch: int = 4,
        seed: int = 0,
        mask: np.ndarray | None = None,
        scale: tuple[float, float] = (1.0, 2.0),
        images: Sequence[np.ndarray] = (),
        synthetic: float = 0.0,
        cameras: Cameras | None = None,
    ):
        if mask is not None and cameras is not None:
            raise ValueError("a fixed mask and a mixture of cameras came; wanted one of them; leave the other out")
        if mask is not None and (len(mask) != frames or min(mask.shape[1:]) < crop):
            raise ValueError(
                f"the mask is {mask.shape}; wanted {frames} frames of at least {crop}x{crop}; give another mask or crop"
            )
        for name, video in zip(clips.names, clips.videos, strict=True):
            if len(video) < frames or min(video.shape[1:]) < crop // 2:
                raise ValueError(
                    f"{name} is {video.shape}; wanted {frames} frames of at least {crop // 2}x{crop // 2} for crops of "
                    f"{crop}x{crop}; leave it out or choose a smaller crop"
                )
        self.clips, self.images = clips, list(images)
        self.frames, self.crop, self.batch, self.seed = frames, crop, batch, seed
        self.mask, self.scale, self.cameras = mask, scale, cameras
        self.synthetic = synthetic if self.images else 0.0
        lengths = np.array([len(video) - frames + 1 for video in clips.videos], dtype=np.float64)
        self.weights = lengths / lengths.sum()

    def identity(self) -> dict[str, object]:
        """What decides the batches, so that a run is only resumed on the same data."""
        mask = None if self.mask is None else hashlib.sha256(np.ascontiguousarray(self.mask).tobytes()).hexdigest()[:16]
        return {
            "clips": self.clips.identity(),
            "frames": self.frames,
            "crop": self.crop,
            "batch": self.batch,
            "data_seed": self.seed,
            "scale": list(self.scale),
            "mask": mask,
            "images": len(self.images),
            "synthetic": self.synthetic,
            "cameras": None if self.cameras is None else json.loads(json.dumps(asdict(self.cameras))),
        }

    def draw(self, step: int, rank: int = 0) -> Batch:
        """Videos, masks and measurements of one step; all ranks have the same number of frames."""
        random = np.random.default_rng([self.seed, step, rank])
        frames, batch = self.frames, self.batch
        if self.cameras is not None:
            frames = self.cameras.draw_frames(frames, np.random.default_rng([self.seed, step]))
            batch = max(1, round(batch * self.frames / frames))
        samples = [self.sample(random, frames) for _ in range(batch)]
        return Batch(*(torch.stack(part) for part in zip(*samples, strict=True)))

    def sample(self, random: np.random.Generator, frames: int) -> tuple[Tensor, Tensor, Tensor]:
        """One video (t, h, w) in [0, 1], its mask and its measurement (h, w)."""
        made = self.synthetic and random.random() < self.synthetic
        video = self.made_video(random, frames) if made else self.real_video(random, frames)
        for axis in (0, 1, 2):
            if random.random() < 0.5:
                video = video.flip(axis)
        if random.random() < 0.5:
            video = video.transpose(1, 2)
        if random.random() < 0.25:
            low, high = sorted(random.uniform(0, 1, 2))
            if high - low > 0.3:
                video = low + (high - low) * video
        video = video.contiguous()
        if self.cameras is not None:
            return video, *self.cameras.draw(video, random)
        mask = torch.from_numpy(self.draw_mask(random))
        return video, mask, (mask * video).sum(0)

    def real_video(self, random: np.random.Generator, frames: int) -> Tensor:
        """A random window in space and time of a random video."""
        video = self.clips.videos[random.choice(len(self.weights), p=self.weights)]
        speed = 1 if self.cameras is None else int(random.choice(len(SPEEDS), p=SPEEDS)) + 1
        start = int(random.integers(max(1, len(video) - speed * (frames - 1))))
        size = round(self.crop * random.uniform(*self.scale))
        size = max(self.crop // 2, min(size, *video.shape[1:]))
        top = int(random.integers(video.shape[1] - size + 1))
        left = int(random.integers(video.shape[2] - size + 1))
        window = np.array(video[to_and_fro(start, speed, frames, len(video)), top : top + size, left : left + size])
        values = torch.from_numpy(window).float().div_(255)
        if size == self.crop:
            return values
        shape = (self.crop, self.crop)
        resized = F.interpolate(values[None], shape, mode="bilinear", antialias=True, align_corners=False)
        return resized[0].clamp_(0, 1)

    def made_video(self, random: np.random.Generator, frames: int) -> Tensor:
        """Layers of still photographs in motion."""
        count = int(random.integers(1, 4))
        chosen = [self.images[i] for i in random.integers(len(self.images), size=count)]
        speed = 2.0
        if self.cameras is not None:
            speed = random.uniform(*MADE_SPEEDS)
            chosen = [poster(int(random.integers(2**31))) if random.random() < POSTERS else one for one in chosen]
        made = moving_layers(chosen, frames, self.crop, self.crop, int(random.integers(2**31)), speed)
        return torch.from_numpy(made)

    def draw_mask(self, random: np.random.Generator) -> np.ndarray:
        """A fresh random binary mask, or a random window of the fixed one."""
        if self.mask is None:
            return random_mask(self.frames, self.crop, self.crop, int(random.integers(2**31)))
        top = int(random.integers(self.mask.shape[1] - self.crop + 1))
        left = int(random.integers(self.mask.shape[2] - self.crop + 1))
        return np.ascontiguousarray(self.mask[:, top : top + self.crop, left : left + self.crop])


def measurements(sampler: ClipSampler, count: int) -> list[tuple[Tensor, Tensor]]:
    """(measurement, mask) of the first `count` batches: what a network is calibrated with."""
    batches = (sampler.draw(step) for step in range(count))
    return [(batch.measurements, batch.masks) for batch in batches]


def to_and_fro(start: int, speed: int, frames: int, length: int) -> list[int]:
    """The frames that are seen from `start` on, every `speed`-th; at the ends of a video it turns back."""
    period = max(1, 2 * (length - 1))
    places = ((start + speed * index) % period for index in range(frames))
    return [min(place, period - place) if length > 1 else 0 for place in places]


def load_mask(path: str | os.PathLike[str] | None) -> np.ndarray | None:
    """A fixed mask for training, or None for fresh random ones."""
    return None if path is None else read_mask(path)
