"""Zarr folders: read a chunk at a time as other arrays are, written whole or not at all, refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from bitlens.cli import main
from bitlens.data.correction import mean_picture
from bitlens.data.masks import random_mask, read_mask
from bitlens.data.recording import open_recording
from bitlens.data.stacks import stored_stack
from bitlens.data.synthetic import high_speed_scene
from bitlens.data.video import read_video
from bitlens.data.writers import About, video_writer

RNG = np.random.default_rng(0)
SCENE = high_speed_scene(frames=20, height=32, width=32, oversample=1)[..., :24]
MASK = random_mask(4, 32, 24, 0)
COUNTS = np.round(np.einsum("nthw,thw->nhw", SCENE.reshape(5, 4, 32, 24), MASK) * 1000).astype(np.uint16)  # 5 32 24


def stored(path: Path, attributes: dict[str, Any] | None = None, **arrays: np.ndarray) -> Path:
    """A .zarr of named arrays, in chunks of two pictures."""
    root = zarr.open_group(path, mode="w", attributes=attributes or {})
    for name, array in arrays.items():
        chunks = (2, *array.shape[1:]) if array.ndim > 1 else array.shape
        made = root.create_array(name, shape=array.shape, chunks=chunks, dtype=array.dtype)
        made[...] = array
    return path


def bare(path: Path, array: np.ndarray, **settings: Any) -> Path:
    """A .zarr that is one array."""
    made = zarr.create_array(path, shape=array.shape, dtype=array.dtype, **{"chunks": (1, 32, 24), **settings})
    made[...] = array
    return path


def test_a_recording_is_read_a_chunk_at_a_time(tmp_path: Path) -> None:
    states = {"axes": "thw", "gain": 1000.0}
    opened = open_recording(stored(tmp_path / "a.zarr", states, measurement=COUNTS, mask=MASK, orig=SCENE))
    assert (opened.gain, opened.gain_source) == (1000, "file")
    np.testing.assert_allclose(opened.measurement.read(), COUNTS / np.float32(1000), rtol=1e-6)
    np.testing.assert_array_equal(opened.mask, MASK)
    raw = stored_stack(tmp_path / "a.zarr", ("measurement",))
    assert raw.shape == COUNTS.shape and raw.dtype == np.uint16
    for (one, other), wanted in zip(zip(raw, raw, strict=True), COUNTS, strict=True):  # two readers do not meet
        np.testing.assert_array_equal(one, wanted)
        np.testing.assert_array_equal(other, wanted)


@pytest.mark.parametrize(
    "settings", [{"zarr_format": 2}, {"chunks": (1, 32, 24), "shards": (2, 32, 24)}, {"chunks": (3, 20, 24)}]
)
def test_every_layout(settings: dict[str, Any], tmp_path: Path) -> None:
    path = bare(tmp_path / "a.zarr", COUNTS, **settings)
    np.testing.assert_array_equal(stored_stack(path, ("measurement",)).read(), COUNTS)


def test_the_field_s_order_of_axes(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.zarr", meas=np.moveaxis(COUNTS, 0, -1), mask=np.moveaxis(MASK, 0, -1))
    np.testing.assert_array_equal(stored_stack(path, ("measurement", "meas")).read(), COUNTS)
    np.testing.assert_array_equal(read_mask(path), MASK)
    path = stored(tmp_path / "b.zarr", {"axes": "hwt"}, measurement=np.moveaxis(COUNTS, 0, -1))
    np.testing.assert_array_equal(stored_stack(path, ("measurement",)).read(), COUNTS)


def test_one_picture_and_dark_frames(tmp_path: Path) -> None:
    path = bare(tmp_path / "one.zarr", COUNTS[0], chunks=(32, 24))
    np.testing.assert_array_equal(stored_stack(path, ("measurement",)).read(), COUNTS[:1])
    path = stored(tmp_path / "dark.zarr", dark=COUNTS)
    (path / "notes.txt").write_text("of the person who recorded it")
    np.testing.assert_allclose(mean_picture(path, "dark"), COUNTS.mean(axis=0))


@pytest.mark.parametrize("colour", [False, True])
def test_a_video_in_groups_of_frames(colour: bool, tmp_path: Path) -> None:
    video = RNG.random((11, 6, 5, 3) if colour else (11, 6, 5)).astype(np.float32)
    with video_writer(tmp_path / "v.zarr", 11, 25, About(group=4)) as write:
        for start in range(0, 11, 4):
            write(video[start : start + 4])
    made: Any = zarr.open(tmp_path / "v.zarr", mode="r")
    assert made["video"].chunks == (4, *video.shape[1:]) and made.attrs["fps"] == 25
    np.testing.assert_array_equal(read_video(tmp_path / "v.zarr", grey=not colour), video)
    assert [path.name for path in tmp_path.iterdir()] == ["v.zarr"]


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="5 frames were written"), video_writer(tmp_path / "v.zarr", 6) as write:
        write(SCENE[:5])
    with pytest.raises(KeyboardInterrupt), video_writer(tmp_path / "v.zarr", 6) as write:
        write(SCENE[:5])
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def changed(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a chunk is gone": (lambda f: (f / "c/2/0/0").unlink(), "1 of 5 chunks of / are not there; wanted all"),
    "a chunk is half": (lambda f: changed(f / "c/2/0/0", half), "cannot be read .*; wanted a complete .zarr folder"),
    "a chunk is empty": (lambda f: changed(f / "c/2/0/0", lambda _: b""), "cannot be read"),
    "all chunks are gone": (lambda f: shutil.rmtree(f / "c"), "5 of 5 chunks"),
    "its description is half": (lambda f: changed(f / "zarr.json", half), "cannot be read"),
    "its description is empty": (lambda f: changed(f / "zarr.json", lambda _: b""), "cannot be read"),
    "its description says nothing": (
        lambda f: changed(f / "zarr.json", lambda _: b"{}"),
        "cannot be read|holds nothing",
    ),
    "its description lacks a part": (
        lambda f: changed(f / "zarr.json", lambda _: json.dumps({"zarr_format": 3, "node_type": "array"}).encode()),
        "cannot be read",
    ),
    "nothing is in it": (lambda f: (shutil.rmtree(f), f.mkdir()), "cannot be read"),
    "it is a file": (lambda f: (shutil.rmtree(f), f.write_bytes(b"1")), "no folder .*; wanted a .zarr"),
}


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("compressors", ["auto", None])
def test_a_damaged_one_is_refused(name: str, compressors: Any, tmp_path: Path) -> None:
    path = bare(tmp_path / "a.zarr", COUNTS, compressors=compressors)
    damage, said = DAMAGES[name]
    damage(path)
    with pytest.raises((ValueError, OSError), match=said):
        open_recording(path, stored(tmp_path / "m.zarr", {"axes": "thw"}, mask=MASK))


def test_what_is_no_measurement_is_refused(tmp_path: Path) -> None:
    mask = stored(tmp_path / "m.zarr", {"axes": "thw"}, mask=MASK)
    with pytest.raises(ValueError, match=r"holds axes, mask; wanted measurement or meas or array; name"):
        open_recording(mask, mask)
    with pytest.raises(ValueError, match=r"dtype complex64; wanted real numbers"):
        open_recording(bare(tmp_path / "c.zarr", COUNTS.astype(np.complex64)), mask)
    with pytest.raises(ValueError, match=r"4 dimensions \(5, 1, 1, 1\); wanted"):
        open_recording(bare(tmp_path / "d.zarr", COUNTS[:, :1, :1, None], chunks=(1, 1, 1, 1)), mask)
    with pytest.raises(FileNotFoundError, match=r"no file .*none.zarr"):
        open_recording(tmp_path / "none.zarr", mask)


def test_from_zarr_to_zarr_at_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = stored(tmp_path / "y.zarr", {"axes": "thw"}, measurement=COUNTS, mask=MASK)
    arguments = ["reconstruct", str(path), "--model", "gap-tv", "--gain", "1000", "--out"]
    assert main([*arguments, str(tmp_path / "v.zarr")]) == 0
    made: Any = zarr.open(tmp_path / "v.zarr", mode="r")
    assert made["video"].shape == (20, 32, 24) and made["video"].chunks == (4, 32, 24)
    np.savez(tmp_path / "y.npz", measurement=COUNTS, mask=MASK, axes="thw")
    arguments[1] = str(tmp_path / "y.npz")
    assert main([*arguments, str(tmp_path / "v.npz")]) == 0
    np.testing.assert_array_equal(made["video"][...], np.load(tmp_path / "v.npz")["video"])
    (path / "measurement" / "c" / "1" / "0" / "0").unlink()
    arguments[1] = str(path)
    capsys.readouterr()
    assert main([*arguments, str(tmp_path / "w.zarr")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "1 of 3 chunks of /measurement are not there" in said
    assert not (tmp_path / "w.zarr").exists() and not list(tmp_path.glob(".*"))
