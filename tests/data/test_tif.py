"""Every kind of grey .tif gives all of its pages, or one line that says why not."""

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bitlens.data.masks import read_mask
from bitlens.data.stacks import tif_stack
from bitlens.data.tif import grey_pages, read_grey_tif

COUNTS = np.random.default_rng(0).integers(0, 4096, (5, 24, 21)).astype(np.uint16)
"""12 bits; rows of an odd width do not end with a byte where they are packed."""


@pytest.fixture(params=["tifffile", "Pillow"])
def library(request: pytest.FixtureRequest) -> str:
    """Which library reads; `without` takes tifffile away once the file is written."""
    pytest.importorskip("tifffile", reason="tifffile (bitlens[video]) is not installed")
    return request.param


def without(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if library == "Pillow":
        monkeypatch.setitem(sys.modules, "tifffile", None)


def write(path: Path, values: np.ndarray = COUNTS, **options: Any) -> Path:
    import tifffile

    tifffile.imwrite(path, values, **({"photometric": "minisblack"} | options))
    return path


def write_with_pillow(path: Path, **options: Any) -> Path:
    first, *others = (Image.fromarray(page) for page in COUNTS)
    first.save(path, save_all=True, append_images=others, **options)
    return path


def write_one_by_one(path: Path, **options: Any) -> Path:
    """Each picture as a write of its own, as programs do that record for hours."""
    for page in COUNTS:
        write(path, page, append=path.exists(), **options)
    return path


def write_packed(path: Path, bits: int, values: np.ndarray = COUNTS) -> Path:
    """Pages of `bits` packed bits, rows padded to whole bytes, by the letter of [TIFF, section 8]."""
    data, at = bytearray(b"II*\0\0\0\0\0"), 4
    for page in values.astype(np.uint16):
        digits = page[..., None] >> np.arange(bits - 1, -1, -1).astype(np.uint16) & 1
        strip = np.packbits(digits.reshape(len(page), -1).astype(np.uint8), axis=1).tobytes()
        start = len(data)
        data += strip + b"\0" * (len(strip) % 2)
        data[at : at + 4] = struct.pack("<I", len(data))
        tags = {256: page.shape[1], 257: page.shape[0], 258: bits, 259: 1, 262: 1, 273: start, 277: 1, 278: len(page)}
        tags[279] = len(strip)
        data += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in tags)
        at = len(data)
        data += b"\0\0\0\0"
    path.write_bytes(data)
    return path


WHOLE = {
    "pages": lambda path: write(path),
    "Pillow": write_with_pillow,
    "ImageJ's pages": lambda path: write(path, imagej=True),
    "ImageJ's slices": lambda path: write(path, imagej=True, metadata={"axes": "ZYX"}),
    "OME": lambda path: write(path, ome=True, metadata={"axes": "TYX"}),
    "no description": lambda path: write(path, metadata=None),
    "BigTIFF": lambda path: write(path, bigtiff=True),
    "another byte order": lambda path: write(path, byteorder=">"),
    "separate writes": write_one_by_one,
    "separate writes with descriptions": lambda path: write_one_by_one(path, metadata={"n": 1}),
    "separate writes without": lambda path: write_one_by_one(path, metadata=None),
    "deflate": lambda path: write_with_pillow(path, compression="tiff_adobe_deflate"),
    "LZW": lambda path: write_with_pillow(path, compression="tiff_lzw"),
    "PackBits": lambda path: write_with_pillow(path, compression="packbits"),
    "12 bits, packed": lambda path: write_packed(path, 12),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_all_pages_come(kind: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = WHOLE[kind](tmp_path / "a.tif")
    without(library, monkeypatch)
    np.testing.assert_array_equal(read_grey_tif(path), COUNTS)
    np.testing.assert_array_equal(tif_stack(path).read(), COUNTS)


@pytest.mark.parametrize(
    "text", ["ImageJ=1.11a\nimages=5\nframes=5\nhyperstack=true\n", '{"shape": [5, 24, 21], "truncated": true}']
)
def test_a_stack_behind_one_directory(text: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it by tifffile; by Pillow, which sees one page, a refusal. Never one page for five."""
    path = write(tmp_path / "a.tif", COUNTS[:1], description=text, metadata=None)
    with path.open("ab") as file:
        file.write(COUNTS[1:].tobytes())
    without(library, monkeypatch)
    if library == "tifffile":
        np.testing.assert_array_equal(read_grey_tif(path), COUNTS)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ValueError, match=r"ends early .*states 5 pictures"):
            grey_pages(path)
    else:
        with pytest.raises(ValueError, match=r"stack of 5 images in 1 page.*; run pip install 'bitlens\[video\]'"):
            grey_pages(path)


@pytest.mark.parametrize("bits", [1, 10, 12, 14])
def test_packed_bits(bits: int, tmp_path: Path) -> None:
    pytest.importorskip("tifffile", reason="tifffile (bitlens[video]) is not installed")
    values = COUNTS % 2**bits
    found = read_grey_tif(write_packed(tmp_path / "a.tif", bits, values))
    np.testing.assert_array_equal(found, values * (255 if bits == 1 else 1))


def test_packed_bits_that_nothing_reads_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without("Pillow", monkeypatch)
    with pytest.raises(ValueError, match="Pillow does not read here; wanted grey pages of 8, 16 or 32 bits; run pip"):
        grey_pages(write_packed(tmp_path / "a.tif", 10, COUNTS % 1024))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("share", [0.3, 0.8, 0.999])
def test_a_file_that_ends_early_is_refused(
    kind: str, share: float, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = WHOLE[kind](tmp_path / "a.tif")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    without(library, monkeypatch)
    try:
        read = tif_stack(path).read()
    except ValueError as error:
        assert "; wanted" in str(error) and "\n" not in str(error)
    else:
        np.testing.assert_array_equal(read, COUNTS)  # what was cut was not needed


def test_fewer_pages_than_stated_are_refused(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.tif", COUNTS[:3], description="ImageJ=1.11a\nimages=5\nslices=5\n", metadata=None)
    without(library, monkeypatch)
    with pytest.raises(ValueError, match=r"ends early \(it states 5 pictures and holds 3\); wanted all"):
        grey_pages(path)


REFUSED = {
    "channels": (
        lambda path: write(path, np.stack([COUNTS] * 2, 1), imagej=True, metadata={"axes": "TCYX"}),
        "channels",
    ),
    "colour": (lambda path: write(path, np.stack([COUNTS[0]] * 3, -1), photometric="rgb"), "is colour"),
    "planes": (lambda path: write(path, COUNTS[:3], photometric="rgb", planarconfig="separate"), "is colour"),
    "white is 0": (lambda path: write(path, photometric="miniswhite"), "says that 0 is white"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_stack_of_grey_pages_is_refused(
    kind: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, match = REFUSED[kind]
    path = make(tmp_path / "a.tif")
    without(library, monkeypatch)
    with pytest.raises(ValueError, match=match):
        grey_pages(path)


def test_small_versions_are_left_out(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tifffile

    for name, kind in (("a.tif", 1), ("b.tif", 0)):
        with tifffile.TiffWriter(tmp_path / name) as file:
            for page in COUNTS:
                file.write(page, photometric="minisblack", metadata=None)
            file.write(COUNTS[0, ::3, ::3], photometric="minisblack", metadata=None, subfiletype=kind)
    without(library, monkeypatch)
    np.testing.assert_array_equal(read_grey_tif(tmp_path / "a.tif"), COUNTS)
    with pytest.raises(ValueError, match=r"has a page of \(8, 7\) uint16 among pages of \(24, 21\) uint16; wanted"):
        tif_stack(tmp_path / "b.tif").read()


def test_a_mask_of_pages(tmp_path: Path) -> None:
    pytest.importorskip("tifffile", reason="tifffile (bitlens[video]) is not installed")
    mask = COUNTS % 2
    np.testing.assert_array_equal(read_mask(write_packed(tmp_path / "a.tif", 1, mask)), mask)
    first, *others = (Image.fromarray(page.astype(bool)) for page in mask)
    first.save(tmp_path / "b.tif", save_all=True, append_images=others)
    np.testing.assert_array_equal(read_mask(tmp_path / "b.tif"), mask)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damage_gives_one_line(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes changed at random, mostly in header and directories: whatever a decoder makes of them."""
    random = np.random.default_rng(1)
    kinds = ("pages", "Pillow", "ImageJ's slices", "deflate", "BigTIFF")
    whole = [WHOLE[kind](tmp_path / f"{kind}.tif").read_bytes() for kind in kinds]
    without(library, monkeypatch)
    path = tmp_path / "a.tif"
    for index in range(50):
        data = bytearray(whole[index % len(whole)])
        for _ in range(1 + index % 9):
            at = random.integers(len(data) if random.random() < 0.3 else 300)
            data[-int(at) if random.random() < 0.5 else int(at)] = int(random.integers(256))
        path.write_bytes(data)
        try:
            tif_stack(path).read()
        except ValueError as error:
            assert "; wanted" in str(error)
