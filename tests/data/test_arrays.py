"""Arrays go to .npz and back exactly, nothing is unpickled, and axes are put in order or refused."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bitlens.data.arrays import find_array, frames_first, read_arrays, read_npy, read_npz, write_npz

DTYPES = st.sampled_from([np.uint8, np.uint16, np.int64, np.float32, np.float64, np.bool_])


@given(arrays.arrays(DTYPES, arrays.array_shapes(min_dims=0, max_dims=4)))
def test_npz_round_trip(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    write_npz(path, video=array, axes="thw", gain=2.5)
    found = read_npz(path)
    np.testing.assert_array_equal(found["video"], array)
    assert found["video"].dtype == array.dtype and str(found["axes"]) == "thw" and found["gain"] == 2.5
    assert list(path.parent.iterdir()) == [path]


def test_npy_and_names(tmp_path: Path) -> None:
    fortran = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.save(tmp_path / "a.npy", fortran)
    np.testing.assert_array_equal(read_npy(tmp_path / "a.npy"), fortran)
    assert list(read_arrays(tmp_path / "a.npy")) == ["array"]
    np.savez(tmp_path / "b.npz", mask=fortran, other=np.array([object()]))
    assert list(read_npz(tmp_path / "b.npz", ["mask"])) == ["mask"]


def test_pickles_are_refused_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", mask=np.zeros(3), camera=np.array([{"gain": 1}], object))
    with pytest.raises(ValueError, match=r"a.npz: entry 'camera' is a pickled object; wanted .*; pickles can run code"):
        read_npz(tmp_path / "a.npz")
    np.save(tmp_path / "b.npy", np.array([{"gain": 1}], object))
    (tmp_path / "c.npy").write_bytes(pickle.dumps({"gain": 1}))
    for name in ("b.npy", "c.npy"):
        with pytest.raises(ValueError, match=rf"{name} is a pickled object; wanted a plain numeric array"):
            read_npy(tmp_path / name)
    with pytest.raises(TypeError, match=r"'camera' has dtype object; wanted numbers or text"):
        write_npz(tmp_path / "d.npz", camera=np.array([{}], object))
    assert not (tmp_path / "d.npz").exists()


def test_damaged(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", mask=np.random.default_rng(0).random((9, 9)))
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((9, 9)))
    for name in ("a.npz", "a.npy"):
        whole = (tmp_path / name).read_bytes()
        for keep in (0, 5, 40, len(whole) // 2, len(whole) - 30):
            (tmp_path / name).write_bytes(whole[:keep])
            with pytest.raises(ValueError, match=rf"{name} cannot be read .*; wanted a complete .np. file|.npz"):
                read_arrays(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"no file .*; wanted a .npz file; check"):
        read_npz(tmp_path / "absent.npz")
    with pytest.raises(ValueError, match=r"suffix '.bin'; wanted one of .mat, .npy, .npz, .zarr; convert"):
        read_arrays(tmp_path / "a.bin")


def test_writer_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"wanted a path that ends in .npz; change"):
        write_npz(tmp_path / "a.txt", mask=np.zeros(3))
    with pytest.raises(ValueError, match=r"no arrays to write .*; wanted at least one"):
        write_npz(tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "shape", "axes", "wanted"),
    [
        ("orig", (6, 7, 3), None, (3, 6, 7)),
        ("mask", (6, 7, 3), None, (3, 6, 7)),
        ("meas", (6, 7, 3), None, (3, 6, 7)),
        ("video", (3, 6, 7), None, (3, 6, 7)),
        ("array", (3, 6, 7), None, (3, 6, 7)),
        ("mask", (3, 6, 7), "thw", (3, 6, 7)),
        ("other", (6, 7, 3), "hwt", (3, 6, 7)),
        ("meas", (6, 7), None, (1, 6, 7)),
        ("orig", (6, 7, 3, 5), None, (5, 6, 7, 3)),
        ("video", (5, 6, 7, 3), None, (5, 6, 7, 3)),
        ("video", (40, 8, 8), None, (40, 8, 8)),  # long and small: the name decides
    ],
)
def test_frames_first(name: str, shape: tuple[int, ...], axes: str | None, wanted: tuple[int, ...]) -> None:
    assert frames_first(np.zeros(shape), name, "a.npz", axes).shape == wanted


@pytest.mark.parametrize(
    ("name", "shape", "axes", "match"),
    [
        ("mask", (8, 64, 64), None, "would be 64 frames .*; wanted a shape that agrees .*; pass axes='thw'"),
        ("video", (64, 64, 8), None, "would be 64 frames .*; wanted a shape that agrees .*; pass axes='thw'"),
        (
            "other",
            (8, 64, 64),
            None,
            "order of axes of 'other' .* not known; wanted axes='thw' or axes='hwt'; pass",
        ),
        ("video", (8, 64, 64), "twh", "axes='twh' .*; wanted 'thw' or 'hwt'; pass"),
        ("video", (64,), None, r"'video' has shape \(64,\); wanted .*; store it so"),
        ("video", (0, 6, 7), None, r"shape \(0, 6, 7\); wanted .*none empty; store"),
        ("video", (5, 6, 7, 4), None, r"shape \(5, 6, 7, 4\); wanted \(t, h, w, 3\); reorder"),
    ],
)
def test_frames_first_refuses(name: str, shape: tuple[int, ...], axes: str | None, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        frames_first(np.zeros(shape), name, "a.npz", axes)


def test_find_array(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_npz(path, orig=np.zeros((2, 3, 4)), video=np.zeros((2, 3, 4)), axes="thw")
    assert find_array(path, ("orig",))[::2] == ("orig", "thw")
    assert find_array(path, ("orig",), "video", "hwt")[::2] == ("video", "hwt")
    with pytest.raises(ValueError, match=r"holds orig and video; wanted one of them; choose with key='orig'"):
        find_array(path, ("orig", "video"))
    with pytest.raises(ValueError, match=r"holds axes, orig, video; wanted mask; name the array with key="):
        find_array(path, ("mask",))
