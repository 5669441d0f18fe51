"""Stacks give what the whole array would, one picture at a time, and say when a file is damaged."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from bitlens.data import stacks
from bitlens.data.images import read_tif
from bitlens.data.masks import read_mask
from bitlens.data.stacks import Stack, array_stack, folder_stack, stored_stack, tif_stack

PICTURES = np.arange(7 * 12 * 10, dtype=np.uint16).reshape(7, 12, 10)


def write(path: Path) -> Path:
    """The pictures in the form that the name of the file asks for."""
    last = np.moveaxis(PICTURES, 0, -1)  # h w n, columns first
    match path.name:
        case "plain.npy":
            np.save(path, PICTURES)
        case "plain.npz":
            np.savez(path, measurement=PICTURES)
        case "packed.npz":
            np.savez_compressed(path, measurement=PICTURES, axes="thw")
        case "columns.npz":
            np.savez_compressed(path, meas=np.asfortranarray(last))
        case "rows.npz":
            np.savez(path, meas=np.ascontiguousarray(last))
        case "field.mat":
            scipy.io.savemat(path, {"meas": last})
    return path


@pytest.mark.parametrize("name", ["plain.npy", "plain.npz", "packed.npz", "columns.npz", "rows.npz", "field.mat"])
def test_every_file_gives_the_same_pictures(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / name)
    if name not in ("rows.npz", "field.mat"):
        monkeypatch.setattr(stacks, "find_array", None)  # what would read the whole
    stack = stored_stack(path, ("measurement", "meas"))
    assert stack.shape == (7, 12, 10) and stack.dtype == np.uint16 and len(stack) == 7
    np.testing.assert_array_equal(stack.read(), PICTURES)
    np.testing.assert_array_equal(list(stack), PICTURES)  # from the first again


def test_a_single_picture(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", PICTURES[0])
    np.testing.assert_array_equal(stored_stack(tmp_path / "one.npy", ()).read(), PICTURES[:1])


def test_folder(tmp_path: Path) -> None:
    for index, picture in enumerate(PICTURES):
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
    stack = folder_stack(tmp_path)
    np.testing.assert_array_equal(stack.read(), PICTURES)
    Image.fromarray(PICTURES[0, :5]).save(tmp_path / "7.png")
    with pytest.raises(ValueError, match=r"7.png is \(5, 10\) uint16, the first is \(12, 10\) uint16; wanted"):
        folder_stack(tmp_path).read()


def test_a_folder_of_tifs_gives_all_their_pages(tmp_path: Path) -> None:
    for index, (start, stop) in enumerate(((0, 1), (1, 5), (5, 7))):
        first, *others = (Image.fromarray(picture) for picture in PICTURES[start:stop])
        first.save(tmp_path / f"{index + 9}.tif", save_all=True, append_images=others)
    np.testing.assert_array_equal(folder_stack(tmp_path).read(), PICTURES)
    np.testing.assert_allclose(read_mask(tmp_path, max_closed=1), PICTURES / PICTURES.max(), atol=1e-6)


def test_changes_are_lazy() -> None:
    seen: list[int] = []

    def change(picture: np.ndarray) -> np.ndarray:
        seen.append(int(picture[0, 0]))
        return picture[:4].astype(np.float32) / 2

    stack = array_stack(PICTURES).map(change)
    seen.clear()
    assert stack.shape == (7, 4, 10) and stack.dtype == np.float32 and seen == []
    np.testing.assert_array_equal(next(iter(stack)), PICTURES[0, :4] / 2)
    assert seen == [0]
    np.testing.assert_array_equal(stack.first(3).read(), PICTURES[:3, :4] / 2)
    np.testing.assert_array_equal(list(array_stack(PICTURES).groups(3)), PICTURES[:6].reshape(2, 3, 12, 10))


@pytest.mark.parametrize("name", ["plain.npy", "plain.npz", "packed.npz"])
def test_damage_is_named(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name)
    stack, data = stored_stack(path, ("measurement",)), bytearray(path.read_bytes())
    middle = len(data) // 2
    if name == "plain.npy":
        path.write_bytes(data[:middle])
    else:
        data[middle] ^= 0xFF
        path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name} cannot be read \(.*\); wanted a complete .*; .* copy it again"):
        stack.read()


def test_pickles_and_wrong_shapes_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "object.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="pickled object; wanted a plain numeric array"):
        stored_stack(tmp_path / "object.npy", ())
    np.save(tmp_path / "four.npy", PICTURES[None])
    with pytest.raises(ValueError, match=r"film 'array' has 4 dimensions \(1, 7, 12, 10\); wanted \(h, w\)"):
        stored_stack(tmp_path / "four.npy", (), grey="film")


def test_a_stack_is_no_array() -> None:
    assert isinstance(array_stack(PICTURES), Stack) and not hasattr(array_stack(PICTURES), "max")


@pytest.mark.parametrize(
    ("values", "options"),
    [
        (PICTURES, {}),
        (PICTURES, {"compression": "zlib"}),
        ((PICTURES / 840).astype(np.float32), {"byteorder": ">"}),
        (PICTURES[:1], {}),
        (PICTURES.astype(np.uint8), {"imagej": True}),
    ],
)
def test_pages_of_a_tif_are_read_one_after_the_other(
    values: np.ndarray, options: dict[str, Any], tmp_path: Path
) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile (bitlens[video]) is not installed")
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, photometric="minisblack", **options)
    wanted = read_tif(path)
    stack = tif_stack(path)
    assert stack.shape == wanted.shape and stack.dtype == wanted.dtype
    for _ in range(2):
        np.testing.assert_array_equal(stack.read(), wanted)


def test_a_tif_that_is_damaged_later_says_so(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile (bitlens[video]) is not installed")
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PICTURES, photometric="minisblack", compression="zlib")
    stack = tif_stack(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"a\.tif cannot be read as an image"):
        stack.read()


@pytest.mark.parametrize("came", [2, 6])
def test_a_stack_of_another_length_than_announced_is_refused(came: int) -> None:
    short = Stack((4, 12, 10), PICTURES.dtype, lambda: iter(PICTURES[:came]))
    for use in (Stack.read, list, lambda stack: list(stack.map(np.negative))):
        with pytest.raises(ValueError, match=r"4 pictures were announced and (only 2|more) came; wanted as many; "):
            use(short)
    assert len(list(short.first(2))) == 2


def test_other_types_of_tif(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile (bitlens[video]) is not installed")
    for name, values in (("wide.tif", PICTURES.astype(np.int32)), ("bool.tif", PICTURES > 400)):
        tifffile.imwrite(tmp_path / name, values, photometric="minisblack")
        np.testing.assert_array_equal(tif_stack(tmp_path / name).read(), read_tif(tmp_path / name))
