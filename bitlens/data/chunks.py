"""Zarr: arrays in a folder, in compressed chunks, read and written a few pictures at a time."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

__all__ = ["ZARR", "import_zarr", "open_zarr", "read_chunks", "zarr_writer"]

ZARR = ".zarr"

DAMAGE = (KeyError, OSError, RuntimeError, TypeError, ValueError)
"""What Zarr and its codecs raise for a damaged folder, according to where the damage is."""


def import_zarr(path: str | os.PathLike[str]) -> ModuleType:
    """Zarr, or how to get it."""
    try:
        import zarr
    except ImportError as error:
        raise ValueError(
            f"{path} is a Zarr and the library for it is not installed; wanted a reader and writer for it; "
            "run pip install 'bitlens[zarr]', or use .npz"
        ) from error
    return zarr


def open_zarr(path: str | os.PathLike[str], bare: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays of a .zarr by name, opened and not read, and its attributes; an array without a name is `bare`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: zarr is not installed, or what is there is no Zarr, or damaged.
    """
    zarr = import_zarr(path)
    if not Path(path).is_dir():
        raise FileNotFoundError(f"no folder {path}; wanted a {ZARR}; check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)  # of files that do not belong to it
            root = zarr.open(os.fspath(path), mode="r")
            arrays = {bare: root} if isinstance(root, zarr.Array) else dict(sorted(root.arrays()))
            return arrays, root.attrs.asdict()
    except DAMAGE as error:
        raise _damaged(path, error) from error


def read_chunks(array: Any, path: str | os.PathLike[str], axis: int = 0) -> Iterator[np.ndarray]:
    """A Zarr array in slabs along an axis, each as long as its chunks.

    Raises:
        ValueError: a chunk that was never written, was lost, or is damaged.
    """
    missing = array.nchunks - array.nchunks_initialized
    if missing > 0:
        raise ValueError(
            f"{path}: {missing} of {array.nchunks} chunks of {array.name} are not there; wanted all of them; copy it "
            "again, or, where it was written so (chunks of zeros left out), with write_empty_chunks"
        )
    step, before = array.chunks[axis], (slice(None),) * axis
    for start in range(0, array.shape[axis], step):
        try:
            slab = array[(*before, slice(start, start + step))]
        except DAMAGE as error:
            raise _damaged(path, error) from error
        yield slab


def _damaged(path: str | os.PathLike[str], error: Exception) -> ValueError:
    return ValueError(
        f"{path} cannot be read ({type(error).__name__}: {error}); wanted a complete {ZARR} folder; "
        "it is not one, or truncated or damaged: write or copy it again"
    )


@contextmanager
def zarr_writer(
    path: Path, frames: int, group: int, attributes: dict[str, Any]
) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield a function that appends frames (1, h, w) or (1, h, w, c); they become the array `video` of a .zarr.

    Args:
        path: an empty folder.
        frames: how many there will be.
        group: frames of a chunk.
        attributes: what the array says of itself.
    """
    zarr = import_zarr(path)
    root = zarr.open_group(os.fspath(path), mode="w", attributes=attributes)
    array: Any = None
    waiting: list[np.ndarray] = []
    done = 0

    def flush() -> None:
        nonlocal done
        if waiting and done < frames:  # more are refused in the end
            slab = np.concatenate(waiting)[: frames - done]
            array[done : done + len(slab)] = slab
            done += len(slab)
        waiting.clear()

    def append(frame: np.ndarray) -> None:
        nonlocal array
        if array is None:
            array = root.create_array(
                "video", shape=(frames, *frame.shape[1:]), chunks=(group, *frame.shape[1:]), dtype="float32",
                compressors=zarr.codecs.ZstdCodec(level=1, checksum=True), config={"write_empty_chunks": True},
            )  # fmt: skip
        waiting.append(frame.astype(np.float32, copy=True))
        if len(waiting) == group:
            flush()

    yield append
    flush()
