"""MATLAB files of both kinds come back in MATLAB's axis order; damaged and foreign ones are refused."""

import builtins
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bitlens.data.mat import mat_names, read_mat

MASK = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


def write_v73(path: Path) -> None:
    """A file as MATLAB's `save -v7.3` lays it out: axes reversed, class in an attribute, 512-byte header."""
    h5py = pytest.importorskip("h5py", reason="h5py (bitlens[mat73]) is not installed")
    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_dataset("mask", data=MASK.T).attrs["MATLAB_class"] = np.bytes_(b"uint8")
        file.create_dataset("open", data=(MASK.T % 2)).attrs["MATLAB_class"] = np.bytes_(b"logical")
        file.create_dataset("none", data=np.array([0, 3], np.uint64)).attrs["MATLAB_empty"] = np.uint8(1)
        text = file.create_dataset("name", data=np.array([[ord(letter)] for letter in "fan"], np.uint16))
        text.attrs["MATLAB_class"] = np.bytes_(b"char")
        file.create_group("camera")
        file.create_group("#refs#")
        cell = file.create_dataset("cell", (1,), dtype=h5py.ref_dtype)
        cell.attrs["MATLAB_class"] = np.bytes_(b"cell")
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")


def test_version_7_3_without_attributes_is_in_its_own_order(tmp_path: Path) -> None:
    """As h5py writes arrays: nothing is reversed."""
    h5py = pytest.importorskip("h5py", reason="h5py (bitlens[mat73]) is not installed")
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file["mask"] = MASK
    np.testing.assert_array_equal(read_mat(tmp_path / "a.mat")["mask"], MASK)


def test_version_5(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"mask": MASK, "note": "text"})
    found = read_mat(path)
    assert set(found) == {"mask", "note"} == set(mat_names(path))
    np.testing.assert_array_equal(found["mask"], MASK)
    assert found["mask"].dtype == np.uint8
    assert set(read_mat(path, ["mask", "absent"])) == {"mask"}


@given(
    arrays.arrays(
        st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", "c16", "?"]),
        arrays.array_shapes(min_dims=2, max_dims=4, max_side=5),
    ),
    st.booleans(),
)
def test_version_5_agrees_with_scipy(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, deflated: bool
) -> None:
    path = tmp_path_factory.mktemp("mat") / "a.mat"
    scipy.io.savemat(path, {"x": array, "letters": "añ", "long_name_of_a_variable": 3.0}, do_compression=deflated)
    found, wanted = read_mat(path), scipy.io.loadmat(path, mat_dtype=False)
    np.testing.assert_array_equal(found["x"], array)
    np.testing.assert_array_equal(found["x"], wanted["x"])
    assert found["letters"].tolist() == ["añ"] and found["long_name_of_a_variable"] == 3.0


def test_big_endian_and_short_storage(tmp_path: Path) -> None:
    """Written by hand from the format: a double array that MATLAB stored as bytes, in big-endian order."""
    name = struct.pack(">HH4s", 1, 1, b"x")
    sizes = struct.pack(">II3i4x", 5, 12, 1, 2, 3)
    values = struct.pack(">II6B2x", 2, 6, *range(1, 7))
    inside = struct.pack(">IIII", 6, 8, 6, 0) + sizes + name + values
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(">H2s", 0x0100, b"MI")
    (tmp_path / "a.mat").write_bytes(header + struct.pack(">II", 14, len(inside)) + inside)
    found = read_mat(tmp_path / "a.mat")["x"]
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, np.arange(1, 7).reshape((1, 2, 3), order="F"))


def test_damaged_bytes_never_crash(tmp_path: Path) -> None:
    """Random damage is either harmless or refused in one line."""
    random = np.random.default_rng(0)
    path = tmp_path / "a.mat"
    for deflated in (False, True):
        scipy.io.savemat(path, {"mask": MASK, "gain": 2.0}, do_compression=deflated)
        whole = path.read_bytes()
        for _ in range(300):
            damaged = bytearray(whole)
            for place in random.integers(0, len(whole), 3):
                damaged[place] = random.integers(256)
            path.write_bytes(damaged)
            try:
                read_mat(path)
            except ValueError as error:
                assert "; wanted " in str(error)


def test_version_73(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    write_v73(path)
    found = read_mat(path, ["mask", "open", "none", "name"])
    np.testing.assert_array_equal(found["mask"], MASK)
    np.testing.assert_array_equal(found["open"], MASK % 2 == 1)
    assert found["open"].dtype == bool and found["none"].shape == (0, 3) and found["name"][0] == "fan"
    assert mat_names(path) == ["camera", "cell", "mask", "name", "none", "open"]


@pytest.mark.parametrize("name", ["camera", "cell"])
def test_version_73_object_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.mat"
    write_v73(path)
    with pytest.raises(ValueError, match=f"variable '{name}' is a cell, struct or object array; wanted a plain"):
        read_mat(path, [name])


def test_version_73_without_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mat"
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(600))
    real = builtins.__import__

    def without(name: str, *rest, **named):
        if name == "h5py":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"h5py is not installed; wanted .*; run pip install 'bitlens\[mat73\]'"):
        read_mat(path)


@pytest.mark.parametrize("keep", [0, 20, 127, 128, 140, 200, 400, 1000])
@pytest.mark.parametrize("compress", [True, False])
def test_truncated_version_5(tmp_path: Path, keep: int, compress: bool) -> None:
    path = tmp_path / "a.mat"
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 8), np.uint8)
    scipy.io.savemat(path, {"mask": noise}, do_compression=compress)
    path.write_bytes(path.read_bytes()[:keep])
    try:
        assert "mask" not in read_mat(path)  # cut between two variables, the rest is a whole file
        assert keep == 128
    except ValueError as error:
        assert str(path) in str(error) and "; wanted" in str(error)


def test_truncated_version_73(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    write_v73(path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ValueError, match=r"cannot be read .*; wanted a complete MATLAB file"):
        read_mat(path)


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    with pytest.raises(FileNotFoundError, match=r"no file .*; wanted a MATLAB"):
        read_mat(path)
    path.write_bytes(b"\x89PNG not a mat file at all" * 20)
    with pytest.raises(ValueError, match=r"does not start like a MATLAB file; wanted version 5 or 7.3; check"):
        read_mat(path)


def test_objects_of_version_5(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    cell = np.empty((1, 2), object)
    cell[0, 0], cell[0, 1] = MASK, "x"
    scipy.io.savemat(path, {"mask": MASK, "cell": cell, "camera": {"gain": 1.0}, "thin": scipy.sparse.eye(3)})
    for name, kind in (("cell", "a cell, struct"), ("camera", "a cell, struct"), ("thin", "a sparse matrix")):
        with pytest.raises(ValueError, match=f"variable '{name}' is {kind}.*; wanted a plain numeric array; in MATLAB"):
            read_mat(path, [name])
    assert set(read_mat(path, ["mask"])) == {"mask"}  # others in the file do not matter
