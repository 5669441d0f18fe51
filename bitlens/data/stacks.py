"""Stacks of pictures that are read one after another, so that a long recording need not fit into memory."""

import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bitlens.data.arrays import ARRAY_SUFFIXES, BARE, DAMAGE, KEY_AXES, find_array, frames_first, read_arrays, read_npz
from bitlens.data.chunks import ZARR, open_zarr, read_chunks
from bitlens.data.images import TIF_SUFFIXES, folder_images, read_image, stack_frames
from bitlens.data.tif import grey_pages

__all__ = ["Stack", "array_stack", "folder_stack", "open_raw", "stored_stack", "tif_stack"]


@dataclass(frozen=True, eq=False)
class Stack:
    """n pictures of one size and dtype; every iteration reads them anew, one at a time.

    Raises:
        ValueError: when it is read, where fewer or more pictures come than were announced.
    """

    shape: tuple[int, ...]
    """(n, h, w), or (n, h, w, 3)."""
    dtype: np.dtype
    pictures: Callable[[], Iterator[np.ndarray]]
    """Starts at the first picture."""

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        came = 0
        for came, picture in enumerate(self.pictures(), 1):
            if came > len(self):
                break
            yield picture
        if came != len(self):
            more = "more" if came > len(self) else f"only {came}"
            raise ValueError(
                f"{len(self)} pictures were announced and {more} came; wanted as many; the file changed or is damaged: "
                "copy or record it again"
            )

    def map(self, change: Callable[[np.ndarray], np.ndarray]) -> "Stack":
        """The stack of changed pictures (all in the same way), each changed when it is read."""
        sample = change(np.zeros(self.shape[1:], self.dtype))
        return Stack((len(self), *sample.shape), sample.dtype, lambda: map(change, self))

    def first(self, count: int) -> "Stack":
        """The first `count` pictures."""
        return Stack((count, *self.shape[1:]), self.dtype, lambda: islice(self, count))

    def groups(self, size: int) -> Iterator[np.ndarray]:
        """(size, h, w) and so on: `size` pictures each; leftovers are dropped."""
        pictures = iter(self)
        for _ in range(len(self) // size):
            yield np.stack([next(pictures) for _ in range(size)])

    def read(self) -> np.ndarray:
        """All of it."""
        whole = np.empty(self.shape, self.dtype)
        for index, picture in enumerate(self):
            whole[index] = picture
        return whole


def array_stack(array: np.ndarray) -> Stack:
    """What is in memory, as it is."""
    return Stack(array.shape, array.dtype, lambda: iter(array))


def open_raw(
    path: str | os.PathLike[str],
    key: str | None = None,
    axes: str | None = None,
    names: Sequence[str] = ("measurement", "meas"),
) -> Stack:
    """Raw grey pictures (h, w) as a file or a folder stores them; of a .mat, .npz or .zarr the array `key`, or one
    of `names`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a suffix that no reader knows, colour, or what the reader of the file refuses.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if not path.exists():
        raise FileNotFoundError(f"no file {path}; wanted a {names[0]}; check the path")
    if suffix in ARRAY_SUFFIXES:
        return stored_stack(path, names, key, axes, grey=names[0])
    if path.is_dir():
        raw = folder_stack(path)
    elif suffix in TIF_SUFFIXES:
        raw = tif_stack(path)
    elif suffix == ".png":
        raw = array_stack(read_image(path)[None])  # h w -> 1 h w
    else:
        raise ValueError(
            f"{path} has suffix '{suffix}'; wanted raw values in "
            f"{', '.join((*ARRAY_SUFFIXES, *TIF_SUFFIXES, '.png'))} or a folder of images; "
            "convert it without loss"
        )
    if len(raw.shape) != 3:
        raise ValueError(f"{path} is colour {raw.shape}; wanted the raw grey {names[0]} (h, w); save it as one channel")
    return raw


def folder_stack(path: str | os.PathLike[str]) -> Stack:
    """The images of a folder, sorted naturally, as stored, each opened when its turn comes; of a .tif all its pages.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: a .tif that `grey_pages` refuses; when it is read: an image of another size or depth than the first.
    """
    files = folder_images(path)
    count = sum(grey_pages(file)[0][0] if file.suffix.lower() in TIF_SUFFIXES else 1 for file in files)

    def pages(file: Path) -> Iterator[np.ndarray]:
        if file.suffix.lower() in TIF_SUFFIXES:
            yield from grey_pages(file)[2]()
        else:
            yield read_image(file)

    first = next(pages(files[0]))

    def pictures() -> Iterator[np.ndarray]:
        for file in files:
            for picture in pages(file):
                stack_frames([first, picture], Path(path), [files[0].name, file.name])
                yield picture

    return Stack((count, *first.shape), first.dtype, pictures)


def tif_stack(path: str | os.PathLike[str]) -> Stack:
    """The grey pictures of a .tif, as stored, each read when its turn comes. Raises: as `grey_pages`."""
    return Stack(*grey_pages(path))


def stored_stack(
    path: str | os.PathLike[str],
    wanted: Sequence[str],
    key: str | None = None,
    axes: str | None = None,
    *,
    grey: str | None = None,
) -> Stack:
    """The array that `find_array` would find in a .mat, .npy, .npz or .zarr, frames first.

    Arrays of .npy and .npz, compressed or not, that hold one picture after the other are read so: order "thw", or
    "hwt" in column order. Those of a .zarr are read a chunk at a time. All else is held in memory, in the type in which
    it is stored. `grey` is what to call an array that must be (h, w), or several of them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: what `find_array` and `frames_first` refuse; when it is read: a file that is truncated or damaged.
    """
    path = Path(path)
    if path.suffix.lower() in (".npy", ".npz"):
        try:
            found = _stored_in_pieces(path, wanted, key, axes)
        except DAMAGE:  # let the careful readers below say what is wrong
            found = None
        if found is not None:
            return found
    if path.suffix.lower() == ZARR:
        found = _stored_in_chunks(path, wanted, key, axes)
        if found is not None:
            return found
    name, array, axes = find_array(path, wanted, key, axes)
    if grey and array.ndim not in (2, 3):
        raise ValueError(
            f"{path}: {grey} '{name}' has {array.ndim} dimensions {array.shape}; "
            "wanted (h, w), or several of them; store it so, or choose another array with key=..."
        )
    return array_stack(frames_first(array, name, path, axes))


def _stored_in_pieces(path: Path, wanted: Sequence[str], key: str | None, axes: str | None) -> Stack | None:
    """The array where its pictures lie one after the other in the file, else None."""
    if path.suffix.lower() == ".npy":
        entries = {BARE: ""}
    else:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.removesuffix(".npy"): entry for entry in archive.namelist()}
        stated = read_npz(path, ["axes"]).get("axes")
        if axes is None and stated is not None and stated.ndim == 0 and stated.dtype.kind == "U":
            axes = str(stated)
    candidates = [key] if key else [*wanted, BARE] if path.suffix.lower() == ".npy" else list(wanted)
    found = [name for name in candidates if name in entries]
    if len(found) != 1:
        return None
    name, entry = found[0], entries[found[0]]
    with _opened(path, entry) as file:
        shape, by_columns, dtype = _header(file)
    order = axes or KEY_AXES.get(name, "")
    if dtype.hasobject or len(shape) != 3 or 0 in shape or by_columns != (order == "hwt"):
        return None
    frames_first(np.broadcast_to(np.zeros((), dtype), shape), name, path, axes)  # refuses what it refuses
    shape = shape[::-1] if by_columns else shape  # as it lies in the file
    count = dtype.itemsize * shape[1] * shape[2]

    def pictures() -> Iterator[np.ndarray]:
        with _opened(path, entry) as file:
            try:
                _header(file)
            except DAMAGE as error:
                raise _damaged(path, f"{type(error).__name__}: {error}") from error
            for _ in range(shape[0]):
                picture = np.frombuffer(_exactly(file, count, path), dtype).reshape(shape[1:])
                yield picture.T if by_columns else picture
            if entry:
                _exactly(file, 0, path)  # at the end of a zip's entry its checksum is compared

    return Stack((shape[0], *(shape[:0:-1] if by_columns else shape[1:])), dtype, pictures)


def _stored_in_chunks(path: Path, wanted: Sequence[str], key: str | None, axes: str | None) -> Stack | None:
    """The array of a .zarr where it holds several pictures, else None."""
    arrays, _ = open_zarr(path, BARE)
    found = [name for name in ([key] if key else [*wanted, BARE]) if name in arrays]
    if len(found) != 1 or arrays[found[0]].ndim != 3:
        return None
    name, array = found[0], arrays[found[0]]
    stated = read_arrays(path, ["axes"]).get("axes")
    if axes is None and stated is not None and stated.ndim == 0 and stated.dtype.kind == "U":
        axes = str(stated)
    sample = np.broadcast_to(np.zeros((), array.dtype), array.shape)
    shape = frames_first(sample, name, path, axes).shape  # refuses what it refuses
    axis = 2 if (axes or KEY_AXES.get(name, "")) == "hwt" else 0

    def pictures() -> Iterator[np.ndarray]:
        for slab in read_chunks(array, path, axis):
            yield from np.moveaxis(slab, axis, 0)

    return Stack(shape, array.dtype, pictures)


@contextmanager
def _opened(path: Path, entry: str) -> Iterator[Any]:
    """The bytes of a .npy, or of one entry of a .npz."""
    if entry:
        with zipfile.ZipFile(path) as archive, archive.open(entry) as file:
            yield file
    else:
        with path.open("rb") as file:
            yield file


def _header(file: BufferedIOBase) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether columns come first, dtype) of the .npy that starts here; the values follow."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f".npy format {version}")


def _exactly(file: BufferedIOBase, count: int, path: Path) -> bytes:
    """The next `count` bytes; 0: make sure that there are no more."""
    try:
        data = file.read(count or 1)
    except DAMAGE as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    if len(data) != count:
        raise _damaged(path, "it ends too early" if count else "it goes on after its last picture")
    return data


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{path} cannot be read ({what}); wanted a complete {path.suffix} file; "
        "it is not one, or truncated or damaged: write or copy it again"
    )
