"""Reads MATLAB files, numeric arrays and text only: version 5 here, version 7.3 (HDF5) through h5py.

Version 5 follows MathWorks' "MAT-File Format" (level 5): a 128-byte header, then tagged elements, each
variable one element, possibly deflated. It is read here, with every length checked, because scipy's compiled
reader can crash the process on a damaged file; scipy is what the tests compare with.
"""

import os
import struct
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["mat_names", "read_mat"]

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"

_MATRIX, _DEFLATED = 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXT = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_CHAR, _SPARSE, _OPAQUE = 4, 5, 17
_NUMERIC = {
    6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8",
}  # fmt: skip


def read_mat(path: str | os.PathLike[str], names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Read the variables of a MATLAB file, in MATLAB's own axis order.

    Version 7.3 stores axes reversed. Arrays in such a file without MATLAB's attribute were written by h5py or the like,
    as they are: they are read in the order in which they are stored.

    Args:
        path: a version 5 (`save -v6`, `-v7`, scipy, Octave) or version 7.3 (`save -v7.3`, HDF5) file.
        names: read only these variables; those that the file lacks are left out of the answer. None: all.

    Returns:
        name -> numeric, logical (bool or uint8) or text array.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a MATLAB file, truncated or damaged, or a variable read is a cell, struct, function,
            object or sparse matrix; or the file is version 7.3 and h5py is missing.
    """
    path = Path(path)
    found = (_read_hdf5 if _is_hdf5(path) else _read_version5)(path, names)
    for name, value in found.items():
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "biufcSU":
            kind = "a sparse matrix" if isinstance(value, str) else "a cell, struct or object array"
            raise ValueError(
                f"{path}: variable '{name}' is {kind}; wanted a plain numeric array; "
                "in MATLAB save it as a full numeric array (for a cell: cat or cell2mat first)"
            )
    return found


def mat_names(path: str | os.PathLike[str]) -> list[str]:
    """The variable names in a MATLAB file, sorted, without reading their values."""
    path = Path(path)
    if _is_hdf5(path):
        h5py = _import_h5py(path)
        with _damage_named(path), h5py.File(path, "r") as file:
            return sorted(name for name in file if not name.startswith("#"))
    return sorted(name for name, _, _ in _version5_variables(path))


def _is_hdf5(path: Path) -> bool:
    """Tell version 7.3 (True) from version 5 (False) by the first bytes; refuse everything else."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; wanted a MATLAB .mat file; check the path")
    with path.open("rb") as file:
        head = file.read(128)
    if head.startswith((b"MATLAB 7.3", _HDF5_SIGNATURE)):
        return True
    if head.startswith(b"MATLAB 5.0") and len(head) == 128:
        return False
    raise ValueError(
        f"{path} ({path.stat().st_size} bytes) does not start like a MATLAB file; wanted version 5 or 7.3; "
        "check the file is complete, or save it again from MATLAB with 'save -v7'"
    )


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} cannot be read ({type(error).__name__}: {error}); wanted a complete MATLAB file; "
        "it is truncated or damaged: copy or save it again"
    )


def _read_version5(path: Path, names: Collection[str] | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, order, packed in _version5_variables(path):
        if names is None or name in names:
            try:
                found[name] = _version5_value(_inflate(packed, order), order)
            except (ValueError, struct.error, zlib.error, OverflowError, MemoryError) as error:
                raise _damaged(path, error) from error
    return found


def _version5_variables(path: Path) -> list[tuple[str, str, tuple[int, memoryview]]]:
    """(name, byte order, top-level element) of each variable; values are neither inflated nor copied."""
    data = memoryview(path.read_bytes())
    order = "<" if data[126:128] == b"IM" else ">"
    at, found = 128, []
    try:
        while at < len(data):
            kind, payload, at = _element(data, at, order)
            if kind in (_MATRIX, _DEFLATED):
                name = _version5_header(_inflate((kind, payload), order, most=4096), order)[2]
                if name:  # MATLAB's own workspace has none
                    found.append((name, order, (kind, payload)))
    except (ValueError, struct.error, zlib.error) as error:
        raise _damaged(path, error) from error
    return found


def _element(data: memoryview, at: int, order: str) -> tuple[int, memoryview, int]:
    """(type, payload, where the next one starts) of the element at `at`; short ones live in their tag."""
    kind, size = struct.unpack_from(order + "II", data, at)
    if kind >> 16:
        kind, size, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
    else:
        start = at + 8
        end = start + size if kind == _DEFLATED else start + size + -size % 8
    if start + size > len(data) or (end == at + 8 and size > 4):
        raise ValueError(f"an element of {size} bytes at {at} goes past the end")
    return kind, data[start : start + size], end


def _inflate(packed: tuple[int, memoryview], order: str, most: int | None = None) -> memoryview:
    """The inside of a variable's element, inflated where it is deflated (at most `most` bytes then)."""
    kind, payload = packed
    if kind == _MATRIX:
        return payload
    stream = zlib.decompressobj()
    tag = stream.decompress(payload, 8)
    inner, size = struct.unpack(order + "II", tag)
    if inner != _MATRIX:
        raise ValueError(f"a deflated element of type {inner}, not a variable")
    wanted = size if most is None else min(size, most)
    inside = stream.decompress(stream.unconsumed_tail, wanted) if wanted else b""
    if len(inside) < wanted:
        raise ValueError(f"a variable of {size} bytes ends after {len(inside)}")
    return memoryview(inside)


def _version5_header(matrix: memoryview, order: str) -> tuple[int, tuple[int, ...], str, int]:
    """(flags, dimensions, name, where the values start) of a variable."""
    _, words, at = _element(matrix, 0, order)
    flags = struct.unpack_from(order + "I", words)[0]
    shape: tuple[int, ...] = ()
    if flags & 0xFF != _OPAQUE:
        _, sizes, at = _element(matrix, at, order)
        shape = tuple(int(size) for size in np.frombuffer(sizes, order + "i4"))
    _, name, at = _element(matrix, at, order)
    return flags, shape, bytes(name).decode("latin-1"), at


def _version5_value(matrix: memoryview, order: str) -> Any:
    """The value of a variable; None where it is not a plain array."""
    flags, shape, _, at = _version5_header(matrix, order)
    kind = flags & 0xFF
    if kind == _SPARSE:
        return "sparse"
    if kind != _CHAR and kind not in _NUMERIC:
        return None
    if min(shape, default=-1) < 0:
        raise ValueError(f"dimensions {shape}")
    if 0 in shape:
        return np.zeros(shape, "U1" if kind == _CHAR else _NUMERIC[kind])
    stored, payload, at = _element(matrix, at, order)
    if kind == _CHAR:
        if stored not in _TEXT:
            raise ValueError(f"text of type {stored}")
        coding = _TEXT[stored]
        coding += {"<": "-le", ">": "-be"}[order] if coding in ("utf-16", "utf-32") else ""
        letters = np.array(list(bytes(payload).decode(coding))).reshape(shape, order="F")
        return np.array(["".join(row) for row in letters.reshape(shape[0], -1)])
    value = _version5_numbers(stored, payload, order, shape).astype(_NUMERIC[kind])
    if flags & 0x0800:  # complex
        stored, payload, _ = _element(matrix, at, order)
        pair = np.empty(value.shape, np.result_type(value.dtype, np.complex64), order="F")
        pair.real, pair.imag = value, _version5_numbers(stored, payload, order, shape)  # 1j * inf would be NaN
        value = pair
    return value.astype(bool) if flags & 0x0200 else value


def _version5_numbers(stored: int, payload: memoryview, order: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of the stored type, which may be smaller than the variable's, in MATLAB's column order."""
    if stored not in _STORED:
        raise ValueError(f"numbers of type {stored}")
    return np.frombuffer(payload, order + _STORED[stored]).reshape(shape, order="F")


def _read_hdf5(path: Path, names: Collection[str] | None) -> dict[str, Any]:
    h5py = _import_h5py(path)
    found: dict[str, Any] = {}
    with _damage_named(path), h5py.File(path, "r") as file:
        for name in file:
            if name.startswith("#") or (names is not None and name not in names):
                continue
            found[name] = _hdf5_value(h5py, file[name])
    return found


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """What h5py raises for a file that is truncated or damaged, or for a dangling link, as one message."""
    try:
        yield
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, MemoryError) as error:
        raise _damaged(path, error) from error


def _hdf5_value(h5py: Any, item: Any) -> Any:
    """One variable in MATLAB's axis order (MATLAB stores it reversed); None where it is not a plain array."""
    if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "biuf":
        return None
    if item.attrs.get("MATLAB_empty", 0):
        return np.zeros(tuple(int(size) for size in item[()]))
    kind = item.attrs.get("MATLAB_class")
    if kind is None:
        return item[()]
    value = np.ascontiguousarray(item[()].T)
    if kind == b"char":
        return np.array(["".join(map(chr, row)) for row in np.atleast_2d(value)])
    return value.astype(bool) if kind == b"logical" else value


def _import_h5py(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ValueError(
            f"{path} is a MATLAB 7.3 (HDF5) file and h5py is not installed; wanted a reader for it; "
            "run pip install 'bitlens[mat73]', or save the file again with 'save -v7'"
        ) from error
    return h5py
