"""Every kind of video comes in as float32 in [0, 1], lossless kinds exactly; refusals are one clear line."""

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from bitlens.data.images import natural_key, read_image, read_tif, write_png
from bitlens.data.levels import to_grey, to_levels
from bitlens.data.video import read_video, write_video
from bitlens.files import FileRemark

LEVELS = arrays.arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 19), st.integers(1, 21)))
LUMA = (0.299, 0.587, 0.114)


def smooth(frames: int = 5, height: int = 32, width: int = 48) -> np.ndarray:
    t, y, x = np.mgrid[0:frames, 0:height, 0:width].astype(np.float32)
    return (0.5 + 0.45 * np.sin(0.2 * x + 0.1 * y + 0.5 * t)).astype(np.float32)


def hide(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    """Make `import hidden` fail as if it were not installed."""
    real = builtins.__import__

    def without(name: str, *rest, **named):
        if name == hidden:
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)


@given(LEVELS)
@settings(max_examples=25)
@pytest.mark.parametrize("suffix", [".npz", ".tif", ".mkv", ".avi", "/"])
def test_lossless_round_trip(tmp_path_factory: pytest.TempPathFactory, suffix: str, levels: np.ndarray) -> None:
    if suffix in (".mkv", ".avi"):
        pytest.importorskip("av", reason="PyAV (bitlens[video]) is not installed")
        assume(levels.shape[2] > 1)  # FFV1 takes no picture one pixel wide
    folder = tmp_path_factory.mktemp("video")
    video = levels.astype(np.float32) / np.float32(255)
    write_video(f"{folder}/clip{suffix}", video)
    np.testing.assert_array_equal(read_video(f"{folder}/clip{suffix}"), video)
    assert len(list(folder.iterdir())) == 1


@given(arrays.arrays(np.float32, (2, 3, 4), elements=st.floats(0, 1, width=32)))
def test_npz_keeps_floats(tmp_path_factory: pytest.TempPathFactory, video: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("video") / "a.npz"
    write_video(path, video)
    np.testing.assert_array_equal(read_video(path), video)


def test_a_film_with_a_cover(tmp_path: Path) -> None:
    """The film is read, and a word says that there is more."""
    av = pytest.importorskip("av", reason="PyAV (bitlens[video]) is not installed")
    film = smooth()
    with av.open(str(tmp_path / "film.mp4"), "w") as container:
        streams: list[Any] = [container.add_stream(codec, rate=25) for codec in ("mjpeg", "libx264")]
        streams[0].disposition = av.stream.Disposition.attached_pic
        shown = film[:1, :16, :16], film
        for stream, frames, form in zip(streams, shown, ("yuvj420p", "yuv420p"), strict=True):
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:], form
        for stream, frames in zip(streams, shown, strict=True):
            for image in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(to_levels(image), format="gray")))
            container.mux(stream.encode())
    with pytest.warns(FileRemark, match=r"has 2 streams of video, of which the one of 48x32 is read"):
        found = read_video(tmp_path / "film.mp4")
    assert found.shape == film.shape and np.abs(found - film).mean() < 0.03


@pytest.mark.parametrize("size", [(32, 48), (33, 47)])
def test_mp4(tmp_path: Path, size: tuple[int, int]) -> None:
    pytest.importorskip("av", reason="PyAV (bitlens[video]) is not installed")
    video = smooth(5, *size)
    write_video(tmp_path / "a.mp4", video)
    found = read_video(tmp_path / "a.mp4")
    assert found.shape == (5, 2 * ((size[0] + 1) // 2), 2 * ((size[1] + 1) // 2))
    assert np.abs(found[:, : size[0], : size[1]] - video).mean() < 0.01
    colour = np.stack([video, 1 - video, 0.5 * video], axis=-1)
    write_video(tmp_path / "c.mp4", colour)
    found = read_video(tmp_path / "c.mp4", grey=False)[:, : size[0], : size[1]]
    assert found.shape == (5, *size, 3) and np.abs(found - colour).mean() < 0.03
    assert np.abs(read_video(tmp_path / "c.mp4")[:, : size[0], : size[1]] - colour @ LUMA).mean() < 0.02


def test_gif(tmp_path: Path) -> None:
    levels = np.round(smooth() * 255) / 255
    write_video(tmp_path / "a.gif", levels.astype(np.float32))
    np.testing.assert_allclose(read_video(tmp_path / "a.gif"), levels, atol=1e-6)
    assert read_video(tmp_path / "a.gif", grey=False).shape == (5, 32, 48, 3)


def test_avif(tmp_path: Path) -> None:
    frames = [Image.fromarray(frame) for frame in np.round(smooth() * 255).astype(np.uint8)]
    frames[0].save(tmp_path / "a.avif", save_all=True, append_images=frames[1:], quality=90)
    found = read_video(tmp_path / "a.avif", max_frames=3, start=1)
    assert found.shape == (3, 32, 48) and np.abs(found - smooth()[1:4]).mean() < 0.01


@pytest.mark.parametrize("suffix", [".mkv", ".gif", ".tif", ".npz", "/"])
def test_start_and_max_frames(tmp_path: Path, suffix: str) -> None:
    if suffix == ".mkv":
        pytest.importorskip("av", reason="PyAV (bitlens[video]) is not installed")
    path = f"{tmp_path}/clip{suffix}"
    write_video(path, smooth())
    np.testing.assert_allclose(read_video(path, max_frames=2, start=2), smooth()[2:4], atol=0.003)
    assert len(read_video(path, max_frames=99)) == 5
    with pytest.raises(ValueError, match=r"no frame from number 5 on; wanted at least one; lower start"):
        read_video(path, start=5)
    with pytest.raises(ValueError, match=r"start=-1, max_frames=0; wanted"):
        read_video(path, max_frames=0, start=-1)


@pytest.mark.parametrize("suffix", [".tif", ".mkv", "/", ".npz"])
def test_colour(tmp_path: Path, suffix: str) -> None:
    if suffix == ".mkv":
        pytest.importorskip("av", reason="PyAV (bitlens[video]) is not installed")
    colour = np.random.default_rng(0).integers(0, 256, (3, 8, 10, 3)).astype(np.float32) / np.float32(255)
    write_video(f"{tmp_path}/clip{suffix}", colour)
    np.testing.assert_array_equal(read_video(f"{tmp_path}/clip{suffix}", grey=False), colour)
    np.testing.assert_allclose(read_video(f"{tmp_path}/clip{suffix}"), colour @ LUMA, atol=0.01)


def test_array_files(tmp_path: Path) -> None:
    levels = np.round(smooth() * 255).astype(np.uint8)
    field = np.moveaxis(levels, 0, -1)  # h w t
    np.save(tmp_path / "a.npy", smooth())
    np.savez(tmp_path / "a.npz", orig=field)
    scipy.io.savemat(tmp_path / "a.mat", {"orig": field.astype(np.float64), "camera": {"gain": 1.0}})
    scipy.io.savemat(tmp_path / "b.mat", {"film": field})
    np.testing.assert_array_equal(read_video(tmp_path / "a.npy"), smooth())
    for name, named in (("a.npz", {}), ("a.mat", {}), ("b.mat", {"key": "film", "axes": "hwt"})):
        np.testing.assert_allclose(read_video(tmp_path / name, **named), levels / 255, atol=1e-6)
    np.save(tmp_path / "c.npy", levels.astype(np.int32))
    np.testing.assert_allclose(read_video(tmp_path / "c.npy", white=255), levels / 255, atol=1e-6)
    with pytest.raises(ValueError, match=r"dtype int32, whose white is not known; wanted .*; pass white=255"):
        read_video(tmp_path / "c.npy")
    with pytest.raises(ValueError, match=r"holds film; wanted orig or video; name the array with key="):
        read_video(tmp_path / "b.mat")
    with pytest.raises(ValueError, match=r"white=-1; wanted the positive value"):
        read_video(tmp_path / "a.npy", white=-1)


@pytest.mark.parametrize(
    ("video", "match"),
    [
        (np.full((2, 4, 4), np.nan), "holds NaN or infinite values; wanted finite numbers; find"),
        (np.full((2, 4, 4), 200.0), r"spans \[200, 200\]; wanted \[0, 1\]; divide by the value of white"),
        (np.full((2, 4, 4), -0.1), r"spans \[-0.1, -0.1\]; wanted \[0, 1\]"),
        (np.zeros((2, 4, 4), complex), "dtype complex128; wanted real numbers; convert"),
    ],
)
def test_values_refused(tmp_path: Path, video: np.ndarray, match: str) -> None:
    np.save(tmp_path / "a.npy", video)
    with pytest.raises(ValueError, match=match):
        read_video(tmp_path / "a.npy")


def test_folder(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        write_png(tmp_path / f"frame{number}.png", np.full((4, 5), number / 255))
    (tmp_path / "notes.txt").write_text("no frame")
    np.testing.assert_allclose(read_video(tmp_path)[:, 0, 0] * 255, [1, 9, 10], atol=1e-4)
    write_png(tmp_path / "frame11.png", np.zeros((4, 6)))
    with pytest.raises(
        ValueError, match=r"frame11.png is \(4, 6\) uint8, the first is \(4, 5\) uint8; wanted frames of one"
    ):
        read_video(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no images; wanted frames"):
        read_video(tmp_path / "empty")
    assert natural_key(Path("f2.png")) < natural_key(Path("f10.png")) < natural_key(Path("g1.png"))


def test_image_depths(tmp_path: Path) -> None:
    deep = np.arange(20, dtype=np.uint16).reshape(4, 5) * 3000
    Image.fromarray(deep).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), deep)
    clear = Image.fromarray((deep // 300).astype(np.uint8)).convert("LA")
    clear.save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), deep // 300)
    Image.new("P", (5, 4)).save(tmp_path / "c.png")
    assert read_image(tmp_path / "c.png").shape == (4, 5, 3)
    Image.fromarray((deep // 300).astype(np.uint8)).save(tmp_path / "d.jpg")
    assert read_video(tmp_path / "d.jpg").shape == (1, 4, 5)
    assert to_grey(np.ones((2, 2, 3), np.float32)).max() == 1


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")  # Pillow, before it refuses a cut file
@pytest.mark.parametrize("library", ["tifffile", "Pillow"])
def test_tif(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    if library == "Pillow":
        hide(monkeypatch, "tifffile")
    else:
        pytest.importorskip("tifffile", reason="tifffile (bitlens[video]) is not installed")
    deep = np.random.default_rng(0).integers(0, 65536, (3, 6, 7)).astype(np.uint16)
    pages = [Image.fromarray(page) for page in deep]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(read_tif(tmp_path / "a.tif"), deep)
    np.testing.assert_array_equal(read_tif(tmp_path / "a.tif", 1, 2), deep[1:2])
    floats = [Image.fromarray(page.astype(np.float32) / 65535) for page in deep]
    floats[0].save(tmp_path / "f.tif", save_all=True, append_images=floats[1:])
    np.testing.assert_allclose(read_video(tmp_path / "f.tif"), deep / 65535, atol=1e-6)
    (tmp_path / "broken.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:60])
    (tmp_path / "text.tif").write_text("no picture at all")
    for name in ("broken.tif", "text.tif"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read .*; wanted"):
            read_tif(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_tif(tmp_path / "absent.tif")


def test_imagej_stack_needs_tifffile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile (bitlens[video]) is not installed")
    levels = np.random.default_rng(0).integers(0, 255, (3, 6, 7)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", levels[:1], description="ImageJ=1.11a\nimages=3\n", metadata=None)
    hide(monkeypatch, "tifffile")
    with pytest.raises(ValueError, match=r"ImageJ stack of 3 images in 1 page.*; run pip install 'bitlens\[video\]'"):
        read_tif(tmp_path / "a.tif")


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*; wanted a video; check the path"):
        read_video(tmp_path / "absent.mp4")
    (tmp_path / "a.xyz").write_text("x")
    with pytest.raises(ValueError, match=r"suffix '.xyz'; wanted a folder of frames or one of .*; convert"):
        read_video(tmp_path / "a.xyz")
    for suffix in (".gif", ".png", ".avif", ".mp4", ".mkv"):
        if suffix in (".mp4", ".mkv"):
            pytest.importorskip("av", reason="PyAV (bitlens[video]) is not installed")
        (tmp_path / f"bad{suffix}").write_bytes(b"not what the name says" * 20)
        with pytest.raises(ValueError, match=r"cannot be (read|decoded).*; wanted a complete"):
            read_video(tmp_path / f"bad{suffix}")
    hide(monkeypatch, "av")
    for action in (
        lambda: read_video(tmp_path / "bad.mp4"),
        lambda: write_video(tmp_path / "n.mp4", smooth()),
    ):
        with pytest.raises(ValueError, match=r"PyAV is not installed; wanted .*; run pip install 'bitlens\[video\]'"):
            action()


@pytest.mark.parametrize(
    ("name", "video", "error", "match"),
    [
        ("a.mov", smooth(), ValueError, r"cannot write a video to .*; wanted .mp4, .*; change the suffix"),
        ("a.npz", smooth()[0], ValueError, r"shape \(32, 48\); wanted \(t, h, w\)"),
        ("a.npz", smooth() * np.nan, ValueError, "holds NaN or infinite values"),
        ("a.npz", np.zeros((2, 4, 4), np.uint8), TypeError, "is uint8; wanted a float numpy array"),
        ("a.npz", np.zeros((0, 4, 4), np.float32), ValueError, "not empty"),
    ],
)
def test_writer_refuses(tmp_path: Path, name: str, video: np.ndarray, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        write_video(tmp_path / name, video)
    assert list(tmp_path.iterdir()) == []


def test_codec_refuses(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV (bitlens[video]) is not installed")
    with pytest.raises(ValueError, match=r"a video of 4x1 at 25 .* cannot be encoded .*; wanted .*; write .npz"):
        write_video(tmp_path / "a.mkv", np.zeros((2, 4, 1), np.float32))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.mkv", "a.gif", "a.tif", "a.npz", "a/"])
def test_writer_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A failure half-way leaves nothing behind."""
    if name == "a.mkv":
        pytest.importorskip("av", reason="PyAV (bitlens[video]) is not installed")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("bitlens.files.os.replace", fail)
    with pytest.raises(OSError, match=r"disk full"):
        write_video(f"{tmp_path}/deep/{name}", smooth())
    assert list(tmp_path.iterdir()) == []


def test_overshoot_is_clipped(tmp_path: Path) -> None:
    write_video(tmp_path / "a.tif", np.array([[[-0.2, 0.5], [1.3, 1.0]]], np.float32))
    np.testing.assert_allclose(read_video(tmp_path / "a.tif"), [[[0, 0.5], [1, 1]]], atol=1e-5)
