"""Reads named arrays from .npz, .npy, .mat and .zarr, never unpickling; writes .npz; settles the order of axes."""

import os
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bitlens.data.chunks import ZARR, open_zarr, read_chunks
from bitlens.data.mat import mat_names, read_mat
from bitlens.files import atomic_path

__all__ = [
    "ARRAY_SUFFIXES",
    "BARE",
    "NAMED_SUFFIXES",
    "array_names",
    "find_array",
    "frames_first",
    "read_arrays",
    "read_npy",
    "read_npz",
    "write_npz",
]

ARRAY_SUFFIXES = (".mat", ".npy", ".npz", ZARR)

NAMED_SUFFIXES = (".mat", ".npz", ZARR)
"""Files that can hold several arrays, each by its name."""

BARE = "array"
"""The name given to the only array of a .npy file, and of a .zarr that has no names."""

KEY_AXES = {"orig": "hwt", "meas": "hwt", "mask": "hwt", "video": "thw", "measurement": "thw", BARE: "thw"}
"""Order of axes by the name of the array: the field's files keep time last, ours keep it first.

A file that bitlens wrote also holds a text `axes` ("thw"), which goes before this table."""

DAMAGE = (
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    SyntaxError,
    ValueError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What reading a damaged file raises, according to where the damage is."""


def read_npz(path: str | os.PathLike[str], names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Read the arrays of a .npz (only `names`, where given and present); pickled objects are refused by name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a .npz, truncated or damaged, or an entry read is a pickled object.
    """
    path = _existing(path)
    found: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.namelist():
                name = entry.removesuffix(".npy")
                if names is None or name in names:
                    with archive.open(entry) as file:
                        found[name] = _read_npy_stream(file, f"{path}: entry '{name}'")
    except DAMAGE as error:
        if isinstance(error, PickleRefused):
            raise
        raise _unreadable(path, error) from error
    return found


def read_npy(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a .npy file, refusing pickled objects.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a .npy, truncated, or a pickled object.
    """
    path = _existing(path)
    try:
        with path.open("rb") as file:
            return _read_npy_stream(file, str(path))
    except DAMAGE as error:
        if isinstance(error, PickleRefused):
            raise
        raise _unreadable(path, error) from error


def write_npz(path: str | os.PathLike[str], **arrays: np.ndarray | float | int | str) -> None:
    """Write named arrays, numbers and texts to a compressed .npz, whole or not at all.

    Write `axes="thw"` beside arrays with frames first under the names `mask` or `orig`, whose order is
    otherwise read as the field's (h, w, t).

    Raises:
        ValueError: the suffix is not .npz, or there is nothing to write.
        TypeError: a value is not a plain array, number or text (an object would have to be pickled).
    """
    if Path(path).suffix != ".npz":
        raise ValueError(f"cannot write {path}; wanted a path that ends in .npz; change the suffix")
    if not arrays:
        raise ValueError(f"no arrays to write to {path}; wanted at least one name=array; pass one")
    values = {name: np.asarray(value) for name, value in arrays.items()}
    for name, value in values.items():
        if value.dtype.kind not in "biufcU":
            raise TypeError(
                f"'{name}' has dtype {value.dtype}; wanted numbers or text; convert it to a plain numeric array first"
            )
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **values)


def read_arrays(path: str | os.PathLike[str], names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Read `names` (None: everything) from a .mat, .npz, .npy or .zarr; the array of a .npy is called `array`.

    The attributes `axes` and `gain` of a .zarr stand beside its arrays.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".mat":
        return read_mat(path, names)
    if suffix == ".npz":
        return read_npz(path, names)
    if suffix == ".npy":
        return {BARE: read_npy(path)}
    if suffix == ZARR:
        return _read_zarr(path, names)
    raise ValueError(
        f"{path} has suffix '{suffix}'; wanted one of {', '.join(ARRAY_SUFFIXES)}; convert the file or fix its name"
    )


def array_names(path: str | os.PathLike[str]) -> list[str]:
    """The names of the arrays in a .mat, .npz, .npy or .zarr."""
    if Path(path).suffix.lower() == ".mat":
        return mat_names(path)
    if Path(path).suffix.lower() == ".npy":
        return [BARE]
    if Path(path).suffix.lower() == ZARR:
        arrays, attributes = open_zarr(path, BARE)
        return sorted({*arrays, *_stated(attributes)})
    try:
        with zipfile.ZipFile(path) as archive:
            return sorted(entry.removesuffix(".npy") for entry in archive.namelist())
    except DAMAGE as error:
        raise _unreadable(path, error) from error


def find_array(
    path: str | os.PathLike[str],
    wanted: Sequence[str],
    key: str | None = None,
    axes: str | None = None,
    argument: str = "key",
) -> tuple[str, np.ndarray, str | None]:
    """Find the array that a reader wants: `key` where given, else the one of `wanted` that the file holds.

    Messages call the key `argument`.

    Returns:
        (name, array, axes): `axes` as given, or as the file states them, or None.

    Raises:
        ValueError: the key is missing, none of `wanted` is there, or more than one is.
    """
    bare = Path(path).suffix.lower() in (".npy", ZARR)
    names = [key] if key else [*wanted, BARE] if bare else list(wanted)
    arrays = read_arrays(path, [*names, "axes"])
    found = [name for name in names if name in arrays]
    if not found:
        offered = ", ".join(array_names(path)) or "nothing"
        raise ValueError(
            f"{path} holds {offered}; wanted {' or '.join(names)}; name the array with {argument}=..., or store it so"
        )
    if len(found) > 1:
        raise ValueError(f"{path} holds {' and '.join(found)}; wanted one of them; choose with {argument}='{found[0]}'")
    stated = arrays.get("axes")
    if axes is None and stated is not None and stated.ndim == 0 and stated.dtype.kind == "U":
        axes = str(stated)
    return found[0], arrays[found[0]], axes


def frames_first(
    array: np.ndarray, name: str, path: str | os.PathLike[str], axes: str | None = None, argument: str = "axes"
) -> np.ndarray:
    """Bring (t, h, w), (h, w, t), (t, h, w, 3) or (h, w, 3, t) to frames first; (h, w) becomes one frame.

    The order is `axes` where given ("thw" or "hwt"; colour is understood: "thwc", "hwct"), else the one that
    belongs to `name` (`KEY_AXES`). Where the shape speaks clearly against the name, it is refused, not
    guessed. Messages call the order `argument`.

    Raises:
        ValueError: wrong number of dimensions, an empty array, unknown axes, or an order that cannot be
            settled.
    """
    if array.ndim not in (2, 3, 4) or 0 in array.shape:
        raise ValueError(
            f"{path}: '{name}' has shape {array.shape}; "
            "wanted (h, w) or three axes, frames among them, none empty; "
            "store it so, or choose another array with key=..."
        )
    if axes is not None and axes not in ("thw", "hwt", "thwc", "hwct"):
        raise ValueError(f"{argument}='{axes}' for {path}; wanted 'thw' or 'hwt'; pass the order that the file has")
    if array.ndim == 2:
        return array[None]  # h w -> 1 h w
    order = (axes or KEY_AXES.get(name, ""))[:3]
    if not order:
        raise ValueError(
            f"{path}: the order of axes of '{name}' {array.shape} is not known; "
            f"wanted {argument}='thw' or {argument}='hwt'; pass it"
        )
    time_last = order[0] == "h"
    if axes is None and _contradicts(array.shape, time_last):
        count = array.shape[-1] if time_last else array.shape[0]
        raise ValueError(
            f"{path}: '{name}' {array.shape} would be {count} frames in the order {tuple(order)} of that "
            f"name; wanted a shape that agrees with the name; pass {argument}='thw' or {argument}='hwt'"
        )
    if array.ndim == 4 and array.shape[2 if time_last else 3] != 3:
        wanted = "(h, w, 3, t)" if time_last else "(t, h, w, 3)"
        raise ValueError(
            f"{path}: '{name}' has shape {array.shape}; wanted {wanted}; reorder it or pass {argument}=..."
        )
    if not time_last:
        return array
    return np.moveaxis(array, -1, 0)  # h w t -> t h w, h w 3 t -> t h w 3


def _contradicts(shape: tuple[int, ...], time_last: bool) -> bool:
    """True where the other order's frame count is under a quarter of both other sizes: the name misleads."""
    if len(shape) != 3:
        return False
    other = shape[0] if time_last else shape[2]
    rest = shape[1:] if time_last else shape[:2]
    return 4 * other < min(rest)


def _read_zarr(path: str | os.PathLike[str], names: Collection[str] | None) -> dict[str, np.ndarray]:
    """Whole arrays of a .zarr, and what it states beside them."""
    arrays, attributes = open_zarr(path, BARE)
    found = _stated(attributes)
    for name, array in arrays.items():
        if names is None or name in names:
            found[name] = np.concatenate(list(read_chunks(array, path))) if array.ndim else np.asarray(array[()])
    return {name: value for name, value in found.items() if names is None or name in names}


def _stated(attributes: dict[str, Any]) -> dict[str, np.ndarray]:
    """The attributes of a .zarr that other files hold as arrays."""
    return {name: np.asarray(attributes[name]) for name in ("axes", "gain") if name in attributes}


class PickleRefused(ValueError):
    """A pickled object met on the way (kept apart from damage)."""


def _read_npy_stream(file: Any, label: str) -> np.ndarray:
    """One array in .npy format; a pickle is refused before anything of it is loaded."""
    pickled = file.read(1) == b"\x80"
    file.seek(0)
    if not pickled:
        try:
            return np.lib.format.read_array(file, allow_pickle=False)
        except ValueError as error:
            if "allow_pickle" not in str(error):
                raise
    raise PickleRefused(
        f"{label} is a pickled object; wanted a plain numeric array; pickles can run code: save it as numbers"
    )


def _unreadable(path: str | os.PathLike[str], error: Exception) -> ValueError:
    return ValueError(
        f"{path} cannot be read ({type(error).__name__}: {error}); wanted a complete {Path(path).suffix} file; "
        "it is not one, or truncated or damaged: write or copy it again"
    )


def _existing(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; wanted a {path.suffix} file; check the path")
    return path
