"""A picture that is read and written again is the same, with all that its file says of it; kinds of odd files."""

import struct
import sys
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from bitlens.data.images import Picture, count_frames, load_picture, read_image, read_tif
from bitlens.data.levels import to_levels
from bitlens.data.metadata import turned
from bitlens.data.pictures import write_picture
from bitlens.files import FileRemark

RNG = np.random.default_rng(0)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def levels_of(channels: int, dtype: type, height: int = 9, width: int = 13) -> np.ndarray:
    top = np.iinfo(dtype).max
    some = RNG.integers(0, top + 1, (height, width, channels)).astype(dtype)
    return some[..., 0] if channels == 1 else some


def png(path: Path, levels: np.ndarray, *chunks: tuple[bytes, bytes]) -> Path:
    """A .png with the plainest filter, as any writer may write it."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[levels.shape[2] if levels.ndim == 3 else 1]
    lines = b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in levels)
    head = struct.pack(">IIBBBBB", levels.shape[1], levels.shape[0], 8 * levels.dtype.itemsize, kind, 0, 0, 0)
    all_chunks = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    packed = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in all_chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_as_viewers_turn(orientation: int) -> None:
    levels = levels_of(3, np.uint8)
    image = Image.fromarray(levels)
    image.getexif()[274] = orientation
    np.testing.assert_array_equal(turned(levels, orientation), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured_in_every_format(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274], exif[0x010F] = orientation, "maker"
    image = Image.fromarray(np.kron(levels_of(3, np.uint8, 4, 6), np.ones((8, 8, 1), np.uint8)))
    image.save(tmp_path / name, exif=exif, **({"quality": 95} if name == "a.jpg" else {}))
    with Image.open(tmp_path / name) as stored:
        shown = ImageOps.exif_transpose(stored).convert("RGB")
    picture = load_picture(tmp_path / name)
    np.testing.assert_array_equal(picture.levels, np.asarray(shown))
    if name != "a.tif":
        kept = Image.Exif()
        kept.load(picture.exif or b"")
        assert kept.get(274) is None and kept[0x010F] == "maker"


@pytest.mark.parametrize("orientation", [1, 6])
def test_deep_tifs_are_turned_too(tmp_path: Path, orientation: int) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile (bitlens[video]) is not installed")
    levels = levels_of(3, np.uint16)
    tag = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", levels, photometric="rgb", extratags=tag)
    tifffile.imwrite(tmp_path / "g.tif", levels[..., 0], photometric="minisblack", extratags=tag)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), turned(levels, orientation))
    np.testing.assert_array_equal(read_tif(tmp_path / "a.tif"), turned(levels, orientation)[None])
    np.testing.assert_array_equal(read_tif(tmp_path / "g.tif"), turned(levels[..., 0], orientation)[None])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_written_pictures_are_read_back(tmp_path: Path, suffix: str, dtype: type, channels: int) -> None:
    if suffix == ".tif":
        pytest.importorskip("tifffile", reason="tifffile (bitlens[video]) is not installed")
    if dtype is np.uint16 and channels != 1:
        pytest.importorskip("av", reason="PyAV (bitlens[video]) is not installed")
    levels = levels_of(channels, dtype, height=150)
    about = Picture(levels, profile=None if channels < 3 else SRGB, dpi=(300.0, 150.0), gamma=0.5)
    path = tmp_path / f"a{suffix}"
    write_picture(path, 150, 13, (levels[first : first + 50] for first in range(0, 150, 50)), about)
    picture = load_picture(path)
    colours = levels if channels in (1, 3) else levels[..., 0] if channels == 2 else levels[..., :3]
    np.testing.assert_array_equal(picture.levels, colours)
    assert picture.levels.dtype == dtype and picture.profile == about.profile
    assert picture.gamma == (0.5 if suffix == ".png" else None)
    assert picture.dpi == pytest.approx((300, 150), abs=0.02)
    if channels in (2, 4):
        np.testing.assert_array_equal(picture.alpha, levels[..., -1])
    else:
        assert picture.alpha is None
    if (suffix, dtype, channels) == (".tif", np.uint16, 2):
        return  # which Pillow does not know
    with Image.open(path) as image:  # as others read it
        assert image.size == (13, 150)
        image.load()


def test_a_png_is_as_small_as_pillows(tmp_path: Path) -> None:
    y, x = np.mgrid[0:128, 0:96]
    smooth = np.stack([x + y, 2 * x, 200 - y], axis=2) + RNG.integers(0, 3, (128, 96, 3))
    levels = smooth.astype(np.uint8)
    write_picture(tmp_path / "ours.png", 128, 96, [levels])
    Image.fromarray(levels).save(tmp_path / "theirs.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "ours.png")), levels)
    assert (tmp_path / "ours.png").stat().st_size < 1.1 * (tmp_path / "theirs.png").stat().st_size


def test_rows_that_do_not_fit_leave_no_file(tmp_path: Path) -> None:
    levels = levels_of(3, np.uint8)
    for rows, said in (
        ([levels[:5]], "5 rows came; wanted 9"),
        ([levels, levels], "18 rows came; wanted 9"),
        ([levels[:, :5]], r"wanted uint8 or uint16 \(n, 13"),
        ([levels.astype(np.float32)], "rows of float32"),
    ):
        with pytest.raises(ValueError, match=said):
            write_picture(tmp_path / "a.png", 9, 13, rows)
    with pytest.raises(ValueError, match=r"cannot write .*a\.jpg; wanted a name that ends in \.png"):
        write_picture(tmp_path / "a.jpg", 9, 13, [levels])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette", "colour key", "grey key", "grey 16 key", "webp", "gif"])
def test_transparency_of_every_kind(tmp_path: Path, kind: str) -> None:
    """A disc on transparent ground, under which lies something else."""
    y, x = np.mgrid[0:16, 0:16]
    disc = (y - 8) ** 2 + (x - 8) ** 2 < 30
    alpha = np.where(disc, 255, 0).astype(np.uint8)
    grey = np.where(disc, 180, 7).astype(np.uint8)
    colours = np.where(disc[..., None], (40, 160, 240), (255, 0, 255)).astype(np.uint8)
    path = tmp_path / {"webp": "a.webp", "gif": "a.gif"}.get(kind, "a.png")
    if kind in ("RGBA", "webp"):
        Image.fromarray(np.dstack([colours, alpha])).save(path, **({"lossless": True} if kind == "webp" else {}))
    elif kind == "LA":
        Image.fromarray(np.dstack([grey, alpha])).save(path)
    elif kind in ("palette", "gif"):
        image = Image.frombytes("P", (16, 16), disc.astype(np.uint8).tobytes())
        image.putpalette([255, 0, 255, 40, 160, 240])
        image.save(path, transparency=0)
    elif kind == "colour key":
        Image.fromarray(colours).save(path, transparency=(255, 0, 255))
    elif kind == "grey key":
        Image.fromarray(grey).save(path, transparency=7)
    else:
        png(path, grey.astype(np.uint16) * 257, (b"tRNS", struct.pack(">H", 7 * 257)))
    picture = load_picture(path)
    assert picture.alpha is not None
    np.testing.assert_array_equal(picture.alpha > 0, disc)
    shown = read_image(path)
    assert not shown[~disc].any()
    wanted = np.array(180 if "grey" in kind or kind == "LA" else (40, 160, 240))
    np.testing.assert_array_equal(shown[8, 8], wanted * (257 if kind == "grey 16 key" else 1))


@pytest.mark.parametrize("layout", ["interleaved", "planes", "deflated", "big-endian", "white is 0"])
def test_tifs_of_16_bits_keep_them(tmp_path: Path, layout: str) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile (bitlens[video]) is not installed")
    levels, path = levels_of(3, np.uint16), tmp_path / "a.tif"
    if layout == "planes":
        tifffile.imwrite(path, levels.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
        with pytest.raises(ValueError, match=r"has axes 'SYX' .*; wanted grey or interleaved colour pages"):
            read_tif(path)  # a stack of three pages is often stored so, by mistake
    elif layout == "white is 0":
        tifffile.imwrite(path, 65535 - levels[..., 0], photometric="miniswhite")
        levels = levels[..., 0]
    else:
        more = {"deflated": {"compression": "zlib"}, "big-endian": {"byteorder": ">"}}.get(layout, {})
        tifffile.imwrite(path, levels, photometric="rgb", **more)
    np.testing.assert_array_equal(read_image(path), levels)


def test_pages_that_were_written_one_by_one(tmp_path: Path) -> None:
    """Each is a series of its own to tifffile; all of one size and kind are read, and others are said."""
    tifffile = pytest.importorskip("tifffile", reason="tifffile (bitlens[video]) is not installed")
    pages = RNG.integers(0, 65536, (5, 8, 9)).astype(np.uint16)
    for name, more in (("a.tif", {}), ("b.tif", {"metadata": None})):
        for page in pages:
            tifffile.imwrite(tmp_path / name, page, append=True, **more)
        assert count_frames(tmp_path / name) == 5
        np.testing.assert_array_equal(read_tif(tmp_path / name), pages)
        np.testing.assert_array_equal(read_tif(tmp_path / name, 1, 3), pages[1:3])
    tifffile.imwrite(tmp_path / "a.tif", pages[0, ::2, ::2], append=True)
    assert count_frames(tmp_path / "a.tif") == 5
    with pytest.warns(FileRemark, match=r"a\.tif has 1 page\(s\) of another size or kind, which are left out"):
        np.testing.assert_array_equal(read_tif(tmp_path / "a.tif"), pages)


def test_stacks_that_only_pillow_unpacks(tmp_path: Path) -> None:
    pytest.importorskip("tifffile", reason="tifffile (bitlens[video]) is not installed")
    pages = RNG.integers(0, 65536, (3, 8, 9)).astype(np.uint16)
    images = [Image.fromarray(page) for page in pages]
    images[0].save(tmp_path / "a.tif", save_all=True, append_images=images[1:], compression="tiff_lzw")
    np.testing.assert_array_equal(read_tif(tmp_path / "a.tif"), pages)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), pages[0])


def test_floats_in_colour_and_alpha_that_was_multiplied(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile (bitlens[video]) is not installed")
    floats = RNG.random((6, 7, 3)).astype(np.float32)
    tifffile.imwrite(tmp_path / "f.tif", floats, photometric="rgb")
    np.testing.assert_array_equal(read_image(tmp_path / "f.tif"), floats)
    alpha = np.linspace(0.2, 1, 42, dtype=np.float32).reshape(6, 7, 1)
    stored = to_levels(np.concatenate([floats * alpha, alpha], axis=2), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extrasamples=["assocalpha"])
    picture = load_picture(tmp_path / "a.tif")
    np.testing.assert_allclose(picture.levels / 65535, floats, atol=1e-4)
    np.testing.assert_array_equal(picture.alpha, stored[..., 3])


@pytest.mark.parametrize(("channels", "left"), [(3, 2), (5, 4), (6, 2)])
def test_channels_that_are_left_out_are_said(tmp_path: Path, channels: int, left: int) -> None:
    """Of a microscope's grey picture, or beside colours and transparency."""
    tifffile = pytest.importorskip("tifffile", reason="tifffile (bitlens[video]) is not installed")
    stored = RNG.integers(0, 65536, (channels, 7, 9)).astype(np.uint16)
    kind: dict[str, Any] = dict(photometric="rgb", extrasamples=["unassalpha", 0, 0]) if channels == 6 else {}
    kind = kind or dict(photometric="minisblack")
    tifffile.imwrite(tmp_path / "a.tif", stored, planarconfig="separate", **kind)
    with pytest.warns(FileRemark, match=rf"a\.tif has {left} more channel\(s\) than .*, which are left out"):
        picture = load_picture(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.levels, stored[:3].transpose(1, 2, 0) if channels == 6 else stored[0])
    assert (picture.alpha is not None) == (channels == 6)


def test_colours_of_16_bits_without_their_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 bits and a word; noise never."""
    tifffile = pytest.importorskip("tifffile", reason="tifffile (bitlens[video]) is not installed")
    levels = levels_of(3, np.uint16)
    png(tmp_path / "a.png", levels)
    tifffile.imwrite(tmp_path / "a.tif", levels, photometric="rgb")
    tifffile.imwrite(tmp_path / "p.tif", levels.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    for name in ("a.png", "a.tif"):
        with pytest.warns(FileRemark, match="has colours of 16 bits, of which 8 are read; wanted PyAV"):
            found = read_image(tmp_path / name)
        assert found.dtype == np.uint8 and abs(found.astype(int) - levels / 257).max() <= 1
    with pytest.raises(ValueError, match=r"p\.tif has colours of 16 bits in separate planes; wanted tifffile"):
        read_image(tmp_path / "p.tif")


def test_profiles_are_kept_where_they_fit(tmp_path: Path) -> None:
    image = Image.fromarray(levels_of(3, np.uint8))
    for name in ("a.png", "a.jpg", "a.tif"):
        image.save(tmp_path / name, icc_profile=SRGB, dpi=(300, 300))
        picture = load_picture(tmp_path / name)
        assert picture.profile == SRGB and picture.dpi == pytest.approx((300, 300), abs=0.01)
    image.convert("L").save(tmp_path / "g.png", icc_profile=SRGB)
    with pytest.warns(FileRemark, match=r"g\.png has a colour profile that does not fit its levels"):
        assert load_picture(tmp_path / "g.png").profile is None
    cmyk = SRGB[:16] + b"CMYK" + SRGB[20:]
    image.convert("CMYK").save(tmp_path / "c.jpg", icc_profile=cmyk, quality=95)
    with pytest.warns(FileRemark, match="CMYK profile that cannot be used"):
        assert load_picture(tmp_path / "c.jpg").profile is None
    image.convert("CMYK").save(tmp_path / "c.tif")
    np.testing.assert_allclose(read_image(tmp_path / "c.tif"), np.asarray(image), atol=1)


@pytest.mark.filterwarnings("ignore::bitlens.files.FileRemark")
@pytest.mark.parametrize("suffix", [".png", ".gif", ".bmp", ".jpg", ".tif", ".webp"])
def test_mutated_pictures_are_refused_in_words(tmp_path: Path, suffix: str) -> None:
    """Whatever bytes change: an image, or a ValueError that names the file."""
    plain = BytesIO()
    kind = {".jpg": "JPEG", ".tif": "TIFF"}.get(suffix, suffix[1:].upper())
    frames = [Image.fromarray(levels_of(3, np.uint8, 12, 16)) for _ in range(3)]
    many = {"save_all": True, "append_images": frames[1:]} if suffix in (".gif", ".tif", ".webp") else {}
    frames[0].save(plain, format=kind, **many)
    generator, path = np.random.default_rng(1), tmp_path / f"a{suffix}"
    for _ in range(60):
        content = bytearray(plain.getvalue())
        for place in generator.integers(0, min(len(content), 400), generator.integers(1, 6)):
            content[place] = generator.integers(256)
        if generator.random() < 0.2:
            content = content[: generator.integers(len(content))]
        path.write_bytes(content)
        for read in (read_image, count_frames):
            try:
                read(path)
            except MemoryError:
                pass
            except ValueError as error:
                assert f"a{suffix}" in str(error) or "dtype" in str(error)


def test_pictures_too_large_are_refused_in_words(tmp_path: Path) -> None:
    Image.new("1", (16384, 12288)).save(tmp_path / "large.png")
    with pytest.raises(
        ValueError, match=r"large\.png cannot be read: Image size \(201326592 pixels\).*megapixels; cut"
    ):
        read_image(tmp_path / "large.png")
    Image.new("1", (10240, 10240)).save(tmp_path / "less.png")
    assert count_frames(tmp_path / "less.png") == 1  # without a warning
