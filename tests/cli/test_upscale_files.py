"""Pictures and films as people have them, through `bitlens upscale`: the right way round, whole, or said in a line."""

import json
import signal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from bitlens import checkpoint
from bitlens.cli import main
from bitlens.cli.interrupts import Terminated
from bitlens.data.images import Picture, load_picture, read_image
from bitlens.data.levels import to_float, to_levels
from bitlens.data.pictures import write_picture
from bitlens.data.video import open_movie
from bitlens.inference import images
from bitlens.inference.images import band_window, strips, window_of, without_hidden
from bitlens.inference.plausible import Watch
from bitlens.inference.starting import Started
from bitlens.networks.pan import PAN

RNG = np.random.default_rng(0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return checkpoint.save(PAN(2, 8, 4, 2), tmp_path / "pan.safetensors")


def smooth(height: int = 24, width: int = 36, channels: int = 3) -> np.ndarray:
    """Values in [0, 1], none of whose sides is like another."""
    y, x, c = np.mgrid[0:height, 0:width, 0:channels]
    return (0.5 + 0.3 * np.sin(0.3 * x + 0.2 * y + c) + 0.2 * (y / height) * (x / width)).astype(np.float32)


def levels(dtype: type = np.uint8, **size: int) -> np.ndarray:
    return np.round(smooth(**size) * np.iinfo(dtype).max).astype(dtype)


def enlarged(model: Path, values: np.ndarray) -> np.ndarray:
    """What the network makes of values (h, w, 3) in [0, 1]: (2 h, 2 w, 3), not clipped."""
    with torch.no_grad():
        return checkpoint.load(model)(torch.from_numpy(values).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()


def run(source: Path, model: Path, out: str | Path, *flags: str) -> int:
    return main(["upscale", str(source), "--model", str(model), "--out", str(out), *flags])


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_photographs_are_turned(tmp_path: Path, model: Path, name: str) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(levels()).save(tmp_path / name, exif=exif)
    assert run(tmp_path / name, model, tmp_path / "large.png") == 0
    with Image.open(tmp_path / "large.png") as large:
        assert large.size == (48, 72) and large.getexif().get(274, 1) == 1
        values = to_float(np.rot90(levels(), -1).copy())
        found = np.asarray(large, np.float32) / 255
    assert np.abs(found - np.clip(enlarged(model, values), 0, 1)).mean() < 0.02


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_enlarged_and_hidden_noise_is_not_seen(tmp_path: Path, model: Path, mode: str) -> None:
    y, x = np.mgrid[0:24, 0:36]
    alpha = np.where((y - 12) ** 2 + (x - 18) ** 2 < 64, 255, 0).astype(np.uint8)
    noise = RNG.integers(0, 256, (24, 36, len(mode) - 1)).astype(np.uint8)
    plain = np.full_like(noise, 160)
    noisy = np.where(alpha[..., None] > 0, plain, noise)
    Image.fromarray(np.dstack([noisy, alpha]), mode).save(tmp_path / "noisy.png")
    Image.fromarray(np.dstack([plain, alpha]), mode).save(tmp_path / "plain.png")
    for name in ("noisy", "plain"):
        assert run(tmp_path / f"{name}.png", model, tmp_path / f"{name}-large.png") == 0
    large = load_picture(tmp_path / "noisy-large.png")
    with Image.open(tmp_path / "noisy-large.png") as image:
        assert image.mode == mode
    assert large.alpha is not None and 0.2 < (large.alpha > 127).mean() < 0.3
    np.testing.assert_array_equal(large.levels, load_picture(tmp_path / "plain-large.png").levels)
    assert not without_hidden(noise[..., 0], np.zeros_like(alpha)).any()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("kind", ["grey", "colour", "planes", "float"])
def test_16_bits_come_out_of_16_bits(tmp_path: Path, model: Path, suffix: str, kind: str) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile (bitlens[video]) is not installed")
    ramp = np.linspace(8000, 9002, 48)[None, :, None] * np.array([1.0, 3.0, 0.5]) + np.zeros((32, 1, 1))
    source = tmp_path / "a.tif"
    if kind == "float":
        tifffile.imwrite(source, (ramp / 65535).astype(np.float32), photometric="rgb")
    elif kind == "planes":
        planes = ramp.astype(np.uint16).transpose(2, 0, 1)
        tifffile.imwrite(source, planes, photometric="rgb", planarconfig="separate")
    else:
        write_picture(source, 32, 48, [ramp.astype(np.uint16)[..., : 1 if kind == "grey" else 3]])
    assert run(source, model, tmp_path / f"large{suffix}") == 0
    large = read_image(tmp_path / f"large{suffix}")
    wanted = ramp if kind != "grey" else np.repeat(ramp[..., :1], 3, 2)
    truth = np.clip(enlarged(model, (np.floor(wanted) / 65535).astype(np.float32)), 0, 1) * 65535
    truth = truth @ [0.299, 0.587, 0.114] if kind == "grey" else truth
    assert large.dtype == np.uint16 and large.shape == truth.shape
    assert np.abs(large - truth).max() <= 2 and len(np.unique(large)) > 500


def test_values_beyond_white_are_refused_or_scaled(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile (bitlens[video]) is not installed")
    tifffile.imwrite(tmp_path / "hdr.tif", 9 * smooth(), photometric="rgb")
    assert run(tmp_path / "hdr.tif", model, tmp_path / "large.png") == 2
    assert "wanted finite values in [0, 1]; pass --white ... (the value of white" in capsys.readouterr().err
    assert run(tmp_path / "hdr.tif", model, tmp_path / "large.png", "--white", "9") == 0
    wanted = np.clip(enlarged(model, smooth()), 0, 1)
    np.testing.assert_allclose(read_image(tmp_path / "large.png") / 65535, wanted, atol=1e-4)
    assert run(tmp_path / "hdr.tif", model, tmp_path / "l.png", "--white", "0") == 2
    tifffile.imwrite(tmp_path / "pages.tif", 9 * np.stack([smooth()[..., 0]] * 2), photometric="minisblack")
    assert run(tmp_path / "pages.tif", model, tmp_path / "large.tif") == 2
    assert run(tmp_path / "pages.tif", model, tmp_path / "large.tif", "--white", "9") == 0
    assert 0.3 < read_image(tmp_path / "large.tif").mean() / 65535 < 0.8
    not_a_number = smooth()
    not_a_number[3, 3] = np.nan
    tifffile.imwrite(tmp_path / "nan.tif", not_a_number, photometric="rgb")
    assert run(tmp_path / "nan.tif", model, tmp_path / "l.png") == 2 and not (tmp_path / "l.png").exists()


def test_12_bits_in_16_are_said(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray((smooth(channels=1)[..., 0] * 4095).astype(np.uint16)).save(tmp_path / "a.png")
    assert run(tmp_path / "a.png", model, tmp_path / "dark.png") == 0
    assert (
        "of 65535: the result is nearly black; wanted the value of white; pass --white ... (4095 if"
        in capsys.readouterr().out
    )
    assert run(tmp_path / "a.png", model, tmp_path / "right.png", "--white", "4095") == 0
    assert "note" not in capsys.readouterr().out
    assert read_image(tmp_path / "right.png").mean() > 8 * read_image(tmp_path / "dark.png").mean()


def test_a_result_that_leaves_its_range_is_said(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = PAN(2, 8, 4, 2)
    with torch.no_grad():
        network.conv_last.weight.normal_().mul_(1e5)
    wild = checkpoint.save(network, tmp_path / "wild.safetensors")
    Image.fromarray(levels()).save(tmp_path / "a.png")
    Image.fromarray(levels()).save(tmp_path / "a.gif")
    for source, out in (("a.png", "large.png"), ("a.gif", "large.gif")):
        assert run(tmp_path / source, wild, tmp_path / out) == 0
        said = capsys.readouterr().out
        assert said.count("the network's output spans [") == 1 and "far beyond [0, 1], and cannot be right" in said
        assert (tmp_path / out).exists()
        assert run(tmp_path / source, model, tmp_path / f"sound-{out}") == 0
        assert "cannot be right" not in capsys.readouterr().out


def test_a_flat_result_is_said(recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("bitlens.files.remark", said.append)
    for small, large in ((smooth(), 0 * smooth() + 0.4), (0 * smooth(), 0 * smooth()), (smooth(), smooth())):
        watch = Watch("a.png")
        watch.see(small, large)
        watch.remark()
    assert len(said) == 1 and "output is 0.4 everywhere, and cannot be right" in said[0]


def test_profiles_and_resolution_are_carried(tmp_path: Path, model: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(levels()).save(tmp_path / "a.jpg", icc_profile=profile, dpi=(300, 300))
    for suffix in (".png", ".tif"):
        if suffix == ".tif":
            pytest.importorskip("tifffile", reason="tifffile (bitlens[video]) is not installed")
        assert run(tmp_path / "a.jpg", model, tmp_path / f"large{suffix}") == 0
        with Image.open(tmp_path / f"large{suffix}") as large:
            assert large.info["icc_profile"] == profile and large.info["dpi"] == pytest.approx((300, 300), abs=0.01)


@pytest.mark.parametrize(("suffix", "out"), [(".webp", ".webp"), (".png", ".png"), (".tif", ".tif"), (".webp", ".gif")])
def test_all_frames_of_what_moves(tmp_path: Path, model: Path, suffix: str, out: str) -> None:
    frames = [Image.fromarray(np.roll(levels(), 5 * index, axis=1)) for index in range(4)]
    kept = {".tif": {}, ".webp": {"duration": [50, 100, 50, 200], "lossless": True}}
    more: dict[str, Any] = kept.get(suffix, {"duration": [50, 100, 50, 200]})
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:], **more)
    assert run(tmp_path / f"a{suffix}", model, tmp_path / f"large{out}") == 0
    movie = open_movie(tmp_path / f"large{out}")
    assert movie.frames == 4
    for index, frame in enumerate(movie):
        wanted = np.clip(enlarged(model, to_float(np.asarray(frames[index]))), 0, 1)
        assert np.abs(frame - wanted).mean() < (0.05 if out == ".gif" else 0.005)
    if suffix != ".tif":
        assert [round(1000 * time) for time in movie.about.times] == [0, 50, 150, 200, 400]


def test_pages_of_16_bits(tmp_path: Path, model: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile (bitlens[video]) is not installed")
    pages = np.stack([levels(np.uint16, channels=1)[..., 0] // (index + 1) for index in range(3)])
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="minisblack")
    assert run(tmp_path / "a.tif", model, tmp_path / "large.tif") == 0
    large = tifffile.imread(tmp_path / "large.tif")
    assert large.dtype == np.uint16 and large.shape[0] == 3 and large.shape[1:3] == (48, 72)
    assert run(tmp_path / "a.tif", model, f"{tmp_path}/frames/") == 0
    assert read_image(tmp_path / "frames" / "frame_0002.png").dtype == np.uint16


def test_a_folder_with_a_broken_picture(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The others are enlarged; the broken one is named, and the exit code says so."""
    folder = tmp_path / "in"
    (folder / "deep" / "deeper").mkdir(parents=True)
    (folder / "Ferien – Öland 日本.jpg").write_bytes(b"")
    for name in ("Ferien – Öland 日本.jpg", "b.webp", "c.gif", "deep/a.png", "deep/deeper/d.bmp"):
        Image.fromarray(levels()).save(folder / name)
    moving = [Image.fromarray(np.roll(levels(), index, axis=0)) for index in range(3)]
    moving[0].save(folder / "moving.gif", save_all=True, append_images=moving[1:], duration=50)
    (folder / "a-broken.png").write_bytes((folder / "deep" / "a.png").read_bytes()[:200])
    assert run(folder, model, tmp_path / "flat") == 2
    shown = capsys.readouterr()
    assert "1 of 5 pictures could not be enlarged (a-broken.png), the others are in" in shown.err
    assert shown.err.count("\n") == 1 and "a-broken.png is left out:" in shown.out
    assert "has folders, which are left out; wanted pictures; pass --recursive for theirs" in shown.out
    assert sorted(file.name for file in (tmp_path / "flat").iterdir()) == [
        ".bitlens", "Ferien – Öland 日本.png", "b.png", "c.png", "moving.gif",
    ]  # fmt: skip
    assert open_movie(tmp_path / "flat" / "moving.gif").frames == 3
    (folder / "a-broken.png").unlink()
    assert run(folder, model, tmp_path / "all", "--recursive") == 0
    assert (tmp_path / "all" / "deep" / "deeper" / "d.png").is_file() and "note:" not in capsys.readouterr().out
    assert len([file for file in (tmp_path / "all").rglob("*.*") if ".bitlens" not in file.parts]) == 6
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "all").rglob("*")}
    assert run(folder, model, tmp_path / "all", "--recursive") == 0
    assert "6 of 6 are there" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "all").rglob("*")} == times
    assert run(folder, model, tmp_path / "all", "--recursive", "--memory-mb", "3000") == 0
    assert "are there" not in capsys.readouterr().out  # other settings: made again


def test_what_is_read_is_not_written_over(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(levels()).save(tmp_path / "a.png")
    Image.fromarray(levels()).save(tmp_path / "a.gif")
    (tmp_path / "link.png").symlink_to("a.png")
    np.savez(tmp_path / "y.npz", video=smooth(16, 16, 16))
    for source, out in (("a.png", "a.png"), ("a.png", "link.png"), ("a.gif", "a.gif"), (".", ".")):
        before = {file: file.read_bytes() for file in tmp_path.iterdir()}
        assert run(tmp_path / source, model, tmp_path / out) == 2
        assert "which is read; wanted another place; choose another name" in capsys.readouterr().err
        assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert main(["measure", f"{tmp_path}/y.npz", "--mask", "random", "--out", f"{tmp_path}/y.npz"]) == 2
    assert "which is read" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["large.png", "large.gif"])
def test_terminated_without_a_trace(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    source = tmp_path / f"a{Path(out).suffix}"
    Image.fromarray(levels()).save(source)
    before = set(tmp_path.iterdir())

    def ended(*_: Any) -> None:
        raise Terminated(signal.SIGTERM)  # as its handler does: test_help.py has the signal itself

    monkeypatch.setattr("bitlens.inference.images.enlarge", ended)
    assert run(source, model, tmp_path / out) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "bitlens upscale: terminated\n" and set(tmp_path.iterdir()) == before


def test_strips_are_the_whole_picture(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = levels(height=200, width=90)
    Image.fromarray(values).save(tmp_path / "a.png")
    whole = to_levels(enlarged(model, to_float(values)).transpose(2, 0, 1)).transpose(1, 2, 0)
    monkeypatch.setattr(images, "band_window", lambda *_: (80, 72))
    assert run(tmp_path / "a.png", model, tmp_path / "large.png") == 0
    assert np.abs(read_image(tmp_path / "large.png").astype(int) - whole).max() <= 1
    network = checkpoint.load(model)
    pieces = list(strips(Started(None, network, network, ""), Picture(values), tmp_path / "a.png", 2000, None))
    assert max(len(piece) for piece in pieces) <= 64 and sum(len(piece) for piece in pieces) == 400


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
@pytest.mark.parametrize("radius", [2, None])
def test_tiles_that_differ_from_the_whole_are_said(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str,
    radius: int | None,
) -> None:  # fmt: skip
    """Of a network that adds something of the whole picture's mean: it sees everything, and says so or not."""
    frames = [Image.fromarray(np.roll(levels(height=200, width=90), shift, 0)) for shift in (0, 1)]
    frames[0].save(tmp_path / name, **({"save_all": True, "append_images": frames[1:]} if name == "a.gif" else {}))
    monkeypatch.setattr(images, "band_window", lambda *_: (80, 72))
    monkeypatch.setattr(images, "window_of", lambda *_: (80, 72))
    out, true = tmp_path / f"large{name[1:]}", PAN.forward
    assert run(tmp_path / name, model, out, "--engine", "torch") == 0
    assert "where they meet" not in capsys.readouterr().out
    monkeypatch.setattr(PAN, "radius", radius)
    monkeypatch.setattr(PAN, "forward", lambda self, x: true(self, x) + 0.3 * (60 * x.mean()).sin())
    assert run(tmp_path / name, model, out, "--engine", "torch") == 0
    shown = capsys.readouterr().out
    assert shown.count(f"note: {tmp_path / name}: neighbouring tiles differ by") == 1
    assert f"wanted {0.0039 if radius else 0.02} or less" in shown


@pytest.mark.parametrize("scale", [2, 4])
def test_a_photograph_of_12_megapixels_fits_the_default_memory(monkeypatch: pytest.MonkeyPatch, scale: int) -> None:
    """What is held is a band of the result, not all of it: 2.3 GB at x4."""
    monkeypatch.setattr("bitlens.inference.images.used_mb", lambda: 600.0)  # torch, and the picture
    network = PAN(scale)
    tall, wide = band_window(network, (3000, 4000), 2000, network)
    band_mb = 3 * 4 * tall * 4000 * scale**2 / 2**20
    assert band_mb < 1300 and tall * wide > 100 * 100
    if scale == 4:
        with pytest.raises(ValueError, match="do not hold the smallest tile"):
            window_of(network, (3000, 4000), 2000, network)


def test_a_vertical_film_of_a_phone(tmp_path: Path, model: Path) -> None:
    """Turned, with variable rate and sound."""
    av = pytest.importorskip("av", reason="PyAV (bitlens[video]) is not installed")
    times = (0, 40, 300, 340, 900, 940)
    with av.open(str(tmp_path / "phone.mp4"), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = 24, 36, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.max_b_frames = 0
        stream.set_display_matrix((0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30))
        tone: Any = container.add_stream("aac", rate=16000, layout="mono")
        for index, time in enumerate(times[:-1]):
            frame = av.VideoFrame.from_ndarray(np.roll(levels(), index, axis=1), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        for index in range(14):
            wave = np.sin(np.arange(1024) * 0.17 + index)[None].astype(np.float32)
            heard = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            heard.rate, heard.pts = 16000, 1024 * index
            container.mux(tone.encode(heard))
        container.mux(tone.encode())
    assert run(tmp_path / "phone.mp4", model, tmp_path / "large.mp4") == 0
    with av.open(str(tmp_path / "large.mp4")) as container:
        frames = list(container.decode(video=0))
        assert (frames[0].width, frames[0].height) == (48, 72)
        assert [round(1000 * frame.time) for frame in frames] == list(times[:-1])
        assert container.streams.audio[0].codec_context.name == "aac"
        found = frames[0].to_ndarray(format="rgb24")
    wanted = np.clip(enlarged(model, to_float(np.rot90(levels(), -1).copy())), 0, 1)
    assert np.abs(found / 255 - wanted).mean() < 0.03
    assert (
        main(["measure", f"{tmp_path}/phone.mp4", "--mask", "random", "--frames", "5", "--out", f"{tmp_path}/y.npz"])
        == 0
    )
    with np.load(tmp_path / "y.npz") as stored:
        assert stored["measurement"].shape[-2:] == (36, 24)


def test_wide_animations_are_refused_in_words(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("P", (40000, 2)).save(tmp_path / "wide.gif")
    assert run(tmp_path / "wide.gif", model, tmp_path / "large.gif") == 2
    assert "frames of 4x80000 pixels came; wanted at most 65535 in height and width" in capsys.readouterr().err
    assert not (tmp_path / "large.gif").exists()


def test_several_sources_and_what_is_there(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures and animations by name and by pattern; the table is JSON too."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for name in ("a.png", "b.jpg", "c.tif"):
        Image.fromarray(levels()).save(Path("in") / name)
    moving = [Image.fromarray(np.roll(levels(), index, axis=0)) for index in range(3)]
    moving[0].save("in/d.gif", save_all=True, append_images=moving[1:], duration=50)
    given = ["upscale", "in/[ab]*", "in/d.gif", "in/none.png", "--model", str(model), "--out", "out"]
    assert main([*given, "--json", "t.json"]) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and "1 of 4 pictures could not be enlarged (none.png), the others" in shown.err
    rows = {row["name"]: row for row in json.loads(Path("t.json").read_text())["results"]}
    assert {name: row["state"] for name, row in rows.items()} == {
        "a": "made", "b": "made", "d": "made", "none": "broken",
    }  # fmt: skip
    assert rows["d"]["facts"]["frames"] == 3 and Path(rows["d"]["out"]).name == "d.gif"
    given.remove("in/none.png")
    assert main(given) == 0 and "3 of 3 are there" in capsys.readouterr().out
    monkeypatch.setattr("bitlens.cli.clusters.CONNECT", 0.3)
    assert main([*given, "in/c.tif", "--cluster", "tcp://127.0.0.1:9"]) == 2
    assert main(["upscale", "in/a.png", "in/c.tif", "--model", str(model), "--out", "in/b.jpg"]) == 2
    assert "in/b.jpg is a file; wanted a folder for the results" in capsys.readouterr().err
