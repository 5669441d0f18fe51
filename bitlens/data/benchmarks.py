"""Named test sets (`--data six-scenes`), and any folder of scene files as one; never for training."""

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Float32

from bitlens.data.arrays import ARRAY_SUFFIXES
from bitlens.data.images import natural_key
from bitlens.data.masks import read_mask
from bitlens.data.video import ANIMATION_SUFFIXES, MOVIE_SUFFIXES, read_video

__all__ = ["BENCHMARKS", "SIX_SCENES", "Scene", "benchmark_mask", "data_root", "load_scenes", "six_scenes"]

SIX_SCENES: Mapping[str, int] = MappingProxyType(
    {"kobe": 32, "traffic": 48, "runner": 8, "drop": 8, "crash": 32, "aerial": 32}
)
"""The grey video-SCI benchmark, 256x256: name -> frames; 20 measurements of 8 frames."""

SCENE_SUFFIXES = (".npz", ".mat", *MOVIE_SUFFIXES, *ANIMATION_SUFFIXES)


@dataclass(frozen=True, eq=False)
class Scene:
    """One test video."""

    name: str
    video: Float32[np.ndarray, "t h w"]
    """Grey, in [0, 1]."""
    source: Path
    """The file it was read from."""


def data_root() -> Path:
    """The folder of the large data: BITLENS_DATA, or else `../shared/data` beside the repository.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    stated = os.environ.get("BITLENS_DATA")
    root = Path(stated) if stated else Path(__file__).resolve().parents[3] / "shared" / "data"
    if not root.is_dir():
        raise FileNotFoundError(
            f"no data folder {root}; wanted the folder with sci/scenes and sci/masks; "
            "set the environment variable BITLENS_DATA to it"
        )
    return root


def six_scenes(root: str | os.PathLike[str] | None = None) -> list[Scene]:
    """The six scenes kobe, traffic, runner, drop, crash, aerial: 160 grey frames of 256x256.

    Raises:
        FileNotFoundError: a scene is missing.
        ValueError: a scene does not have the benchmark's frames and size.
    """
    folder = (data_root() if root is None else Path(root)) / "sci" / "scenes"
    scenes = []
    for name, frames in SIX_SCENES.items():
        path = folder / f"{name}.npz"
        if not path.is_file():
            raise FileNotFoundError(
                f"no file {path}; wanted the six scenes in {folder}; set the environment variable BITLENS_DATA"
            )
        video = read_video(path, key="orig")
        if video.shape != (frames, 256, 256):
            raise ValueError(
                f"{path} holds {video.shape}; wanted ({frames}, 256, 256), the benchmark's frames; restore the file"
            )
        scenes.append(Scene(name, video, path))
    return scenes


def benchmark_mask(root: str | os.PathLike[str] | None = None) -> Float32[np.ndarray, "t h w"]:
    """The binary 8-frame mask stored with the six scenes, (8, 256, 256)."""
    return read_mask((data_root() if root is None else Path(root)) / "sci" / "masks" / "benchmark.npz")


BENCHMARKS: Mapping[str, Callable[[str | os.PathLike[str] | None], list[Scene]]] = MappingProxyType(
    {"six-scenes": six_scenes}
)
"""Name -> loader; a loader takes the data root, or None for `data_root()`."""


def load_scenes(name: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> list[Scene]:
    """The test set of that name, or the scenes of a folder or file given by path, naturally sorted.

    In a folder, every .npz, .mat, .mp4, .avi, .mkv, .gif and .avif is one scene; a subfolder is not looked
    into.

    Raises:
        ValueError: unknown name (the nearest known one is named), or a file that is no video.
        FileNotFoundError: the folder holds no scene, or the data root is missing.

    Example:
        >>> [scene.name for scene in load_scenes("six-scenes")]  # doctest: +SKIP
        ['kobe', 'traffic', 'runner', 'drop', 'crash', 'aerial']
    """
    if os.fspath(name) in BENCHMARKS:
        return BENCHMARKS[os.fspath(name)](root)
    path = Path(name)
    if path.is_file():
        return [Scene(path.stem, read_video(path), path)]
    if path.is_dir():
        scenes = (file for file in path.iterdir() if file.suffix.lower() in SCENE_SUFFIXES and file.name[0] != ".")
        files = sorted(scenes, key=natural_key)
        if not files:
            raise FileNotFoundError(
                f"folder {path} holds no scene; wanted files {', '.join(SCENE_SUFFIXES)}; check the path"
            )
        return [Scene(file.stem, read_video(file), file) for file in files]
    near = difflib.get_close_matches(str(name), BENCHMARKS, n=1, cutoff=0.3)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise ValueError(
        f"no test set '{name}'; {hint}wanted one of {', '.join(BENCHMARKS)}, or the path of a folder or file "
        f"of scenes ({', '.join((*SCENE_SUFFIXES, *ARRAY_SUFFIXES[1:2]))}); correct the name"
    )
