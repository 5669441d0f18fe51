"""`bitlens upscale` and `evaluate` on pictures: tiles equal the whole, claims are verified, bad input is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bitlens import checkpoint
from bitlens.cli import main
from bitlens.data.images import read_image
from bitlens.data.levels import to_float, to_levels
from bitlens.data.pairs import read_picture
from bitlens.data.video import open_movie, read_video
from bitlens.engine import speeds
from bitlens.engine.memory import HEADROOM, alive_per_pixel
from bitlens.engine.openvino import Engine
from bitlens.inference import images
from bitlens.inference.images import enlarge_tiled
from bitlens.methods import quantize, recipe_of
from bitlens.metrics import psnr_y
from bitlens.networks.efficientsci import EfficientSCI
from bitlens.networks.imdn import IMDN
from bitlens.networks.pan import PAN
from bitlens.networks.swinir import SwinIR
from bitlens.operators import Downsample


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photos" / "one.png"
    path.parent.mkdir()
    smooth = np.random.default_rng(0).random((9, 8, 3)) * 255
    Image.fromarray(smooth.astype(np.uint8)).resize((64, 72), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return checkpoint.save(PAN(2, 8, 4, 2), tmp_path / "pan.safetensors")


def test_a_picture_and_a_folder(photo: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["upscale", str(photo), "--model", str(model), "--out", str(tmp_path / "large.png")]) == 0
    with torch.no_grad():
        whole = checkpoint.load(model)(torch.from_numpy(to_float(read_picture(photo)))[None])[0]
    large = read_image(tmp_path / "large.png")
    assert large.shape == (144, 128, 3)
    wanted = to_levels(whole.numpy()).transpose(1, 2, 0)
    off = np.abs(large.astype(int) - wanted.astype(int))  # another engine: ties may round otherwise
    assert off.max() <= 1 and (off > 0).mean() < 1e-3
    assert main(["upscale", str(photo.parent), "--model", str(model), "--out", str(tmp_path / "all")]) == 0
    np.testing.assert_array_equal(read_image(tmp_path / "all" / "one.png"), large)
    assert "wrote 1 pictures to" in capsys.readouterr().out


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Five frames of 24 x 32 at 12.5 frames a second."""
    frames = [Image.new("RGB", (32, 24), (40 * i, 255 - 40 * i, 100)) for i in range(5)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:], duration=80, loop=0)
    return tmp_path / "film.gif"


def test_a_video_one_frame_at_a_time(
    film: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    windows: list[object] = []
    original = images.window_of
    monkeypatch.setattr(images, "window_of", lambda *given: windows.append(given) or original(*given))
    assert main(["upscale", str(film), "--model", str(model), "--out", str(tmp_path / "large.npz")]) == 0
    assert "wrote 5 frames to" in capsys.readouterr().out and len(windows) == 1
    with torch.no_grad():
        low = torch.from_numpy(read_video(film, grey=False)).permute(0, 3, 1, 2)
        wanted = checkpoint.load(model)(low).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    large = read_video(tmp_path / "large.npz", grey=False)
    assert large.shape == (5, 48, 64, 3)
    np.testing.assert_allclose(large, wanted, rtol=0, atol=1e-5)
    pytest.importorskip("av")
    assert main(["upscale", str(film), "--model", str(model), "--out", str(tmp_path / "large.mkv")]) == 0
    movie = open_movie(tmp_path / "large.mkv")
    assert (movie.frames, movie.fps) == (5, 12.5)
    np.testing.assert_allclose(np.stack(list(movie)), wanted, rtol=0, atol=1 / 255)
    assert main(["upscale", str(tmp_path / "large.mkv"), "--model", str(model), "--out", f"{tmp_path}/frames/"]) == 0
    assert [file.name for file in sorted((tmp_path / "frames").iterdir())] == [f"frame_{i:04d}.png" for i in range(5)]


def test_bad_videos(film: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = film.read_bytes()
    (tmp_path / "cut.gif").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "junk.mp4").write_bytes(b"no film" * 99)
    for source, out, message in (
        ("cut.gif", "large.gif", "cut.gif cannot be read"),
        ("junk.mp4", "large.gif", "junk.mp4 cannot be decoded"),
        ("absent.mp4", "large.gif", "no file"),
        ("film.gif", "large.jpg", "cannot write a video to"),
    ):
        if source == "junk.mp4":
            pytest.importorskip("av")
        given = ["upscale", str(tmp_path / source), "--model", str(model), "--out", str(tmp_path / out)]
        assert main(given) == 2
        shown = capsys.readouterr().err
        assert message in shown and shown.count("\n") == 1 and not (tmp_path / out).exists()


@pytest.mark.parametrize("network", [PAN(2, 8, 4, 2), SwinIR(2, 8, 1, 1, 2, window=4, hidden=8)], ids=["PAN", "SwinIR"])
def test_no_seams(network: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget that makes tiles necessary gives the picture that a larger one gives."""
    monkeypatch.setattr("bitlens.inference.images.used_mb", lambda: -float(images.LIBRARIES_MB))
    network.eval()
    picture, tiles = torch.rand(3, 300, 140).numpy(), []
    whole = enlarge_tiled(network, picture, 1000, lambda *counts: tiles.append(counts))
    assert tiles == [(1, 1)]
    need = alive_per_pixel(network) * HEADROOM["torch"] * 300 * 140 / 2**20
    cut = enlarge_tiled(network, picture, 2 + round(need / 3), lambda *counts: tiles.append(counts))
    assert tiles[-1][0] == tiles[-1][1] > 2
    np.testing.assert_allclose(cut, whole, rtol=1e-4, atol=2e-5)


def test_networks_that_see_everything_are_blended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitlens.inference.images.used_mb", lambda: -float(images.LIBRARIES_MB))
    network = IMDN(2, 16, 1).eval()
    picture = torch.rand(3, 256, 96).numpy()
    whole = enlarge_tiled(network, picture, 1000)
    cut = enlarge_tiled(network, picture, 13)
    assert 0 < np.abs(cut - whole).max() < 0.02  # the means of the channels differ from tile to tile
    assert np.abs(np.diff(cut - whole, axis=1)).max() < 0.01


def test_a_budget_that_holds_nothing(photo: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "large.png"
    assert main(["upscale", str(photo), "--model", str(model), "--out", str(out), "--memory-mb", "50"]) == 2
    shown = capsys.readouterr().err
    assert "50 MB of memory do not hold the smallest tile" in shown and "MB or more" in shown and not out.exists()


def test_bytes_per_pixel_of_a_known_network() -> None:
    """Two convolutions: the picture, 16 and 8 channels are never alive at once with more than the two neighbours."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 1), torch.nn.ReLU(inplace=True), torch.nn.Conv2d(16, 8, 1))
    assert alive_per_pixel(network) == 4 * (16 + 8)  # the picture itself is made outside


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.png", "--out", "x.png"], "no file or folder nowhere.png; wanted an image or a folder of images"),
        (["{photo}", "--out", "x.jpg"], "cannot write x.jpg; wanted a name that ends in .png"),
        (["{photo}", "--out", "x.png", "--memory-mb", "0"], "--memory-mb 0; wanted a finite number above 0"),
        (
            ["{photo}", "--out", "x.png", "--model", "gap-tv"],
            "gap-tv is a network for video-sci; wanted a super",
        ),
    ],
)
def test_bad_input(
    photo: Path, model: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.format(photo=photo) for word in arguments]
    given += [] if "--model" in given else ["--model", str(model)]
    assert main(["upscale", *given]) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1 and not Path("x.png").exists()


@pytest.fixture
def low_bit(tmp_path: Path) -> Path:
    low, _ = quantize(PAN(2, 8, 4, 2).eval(), "minmax", [(torch.rand(2, 3, 24, 24),)], bits=8)
    return checkpoint.save(low, tmp_path / "pan-w8a8.safetensors")


def test_low_bits_run_in_integers(
    photo: Path,
    low_bit: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    vnni: bool,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pictures = {}
    for engine in ("auto", "openvino", "torch"):
        out = tmp_path / f"{engine}.png"
        assert main(["upscale", str(photo), "--model", str(low_bit), "--out", str(out), "--engine", engine]) == 0
        pictures[engine] = to_float(read_picture(out))
        said = (
            "torch, float32, integers simulated" if engine == "torch" else f"OpenVINO, int8 in {18 * vnni} of 18 layers"
        )
        assert f"engine: {said}" in capsys.readouterr().out
    np.testing.assert_array_equal(pictures["auto"], pictures["openvino"])
    assert psnr_y(pictures["openvino"], pictures["torch"], shave=2) > 40


@pytest.mark.kernels
def test_a_swin_transformer_runs_on_the_native_kernels(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked for, and by "auto" where they were measured to be faster; as near to float as simulated bits are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    network = SwinIR(2, 18, 2, 2, 3, window=4, hidden=26).eval()
    low, _ = quantize(network, recipe_of("minmax", 8), [(torch.rand(2, 3, 24, 24),)])
    path = checkpoint.save(low, tmp_path / "swinir-w8a8.safetensors")
    speeds.remember(low, torch.get_num_threads(), {"native": 0.1, "openvino": 0.2})
    pictures = {}
    for engine in ("auto", "native", "torch"):
        out = tmp_path / f"{engine}.png"
        assert main(["upscale", str(photo), "--model", str(path), "--out", str(out), "--engine", engine]) == 0
        pictures[engine] = to_float(read_picture(out))
        said = "torch, float32, integers simulated" if engine == "torch" else "native kernels ("
        assert f"engine: {said}" in capsys.readouterr().out
    np.testing.assert_array_equal(pictures["auto"], pictures["native"])
    with torch.no_grad():
        truth = network(torch.from_numpy(to_float(read_picture(photo)))[None])[0].clamp(0, 1).numpy()
    native, simulated = (psnr_y(pictures[engine], truth, shave=2) for engine in ("native", "torch"))
    assert abs(native - simulated) < 0.1  # both are nearer to the float network than trained ones to a truth
    assert psnr_y(pictures["native"], pictures["torch"], shave=2) > simulated + 3  # ties count


def test_tiles_in_integers_are_the_whole(low_bit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitlens.inference.images.used_mb", lambda: -float(images.LIBRARIES_MB))
    network, tiles = checkpoint.load(low_bit), []
    engine = Engine(network, precision="f32", threads=1, cache=tmp_path, check=False)
    picture = np.random.default_rng(0).random((3, 200, 100), np.float32)
    need = alive_per_pixel(network) * HEADROOM["openvino"] * 200 * 100 / 2**20
    cut = enlarge_tiled(network, picture, 2 + round(need / 2), lambda *counts: tiles.append(counts), engine)
    assert tiles[-1][0] == tiles[-1][1] > 1
    np.testing.assert_allclose(cut, engine(picture[None])[0], rtol=0, atol=0.02)  # of single codes, at ties


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("native", "nothing of IMDN is quantized; wanted a low-bit network; choose another engine"),
        ("reference", "--engine reference, and the network is float; wanted a low-bit one"),
    ],
)
def test_engines_that_do_not_know_the_network(
    engine: str, message: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, model = tmp_path / "large.png", checkpoint.save(IMDN(2, 16, 1), tmp_path / "imdn.safetensors")
    assert main(["upscale", str(photo), "--model", str(model), "--out", str(out), "--engine", engine]) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1 and not out.exists()


def test_evaluate_and_verify(photo: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tmp_path / "result.json"
    assert main(["evaluate", str(model), "--data", str(photo.parent), "--json", str(result)]) == 0
    content = json.loads(result.read_text())
    high = read_picture(photo)
    low = to_float(Downsample(2).shrink_levels(torch.from_numpy(high)[None])[0].numpy())
    with torch.no_grad():
        large = checkpoint.load(model)(torch.from_numpy(low)[None])[0].numpy()
    assert content["scenes"]["one"]["psnr"] == pytest.approx(psnr_y(large, to_float(high), shave=2), abs=1e-9)
    assert content["average"]["psnr"] == content["scenes"]["one"]["psnr"]
    assert content["settings"]["scale"] == 2 and content["settings"]["low_resolution"].startswith("made by Downsample")
    checkpoint.set_claims(model, {"photos": {key: round(content["average"][key], 4) for key in ("psnr", "ssim")}})
    assert main(["verify", str(model), "--data", str(photo.parent)]) == 0
    assert "all 5 claims hold" in capsys.readouterr().out
    assert main(["info", str(model)]) == 0
    assert "in all, for one picture of 256x256" in capsys.readouterr().out


def test_networks_of_two_kinds(photo: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = checkpoint.save(EfficientSCI(8, 1, 2), tmp_path / "video.safetensors")
    assert main(["evaluate", str(model), str(video), "--data", str(photo.parent)]) == 2
    assert "; wanted one kind; evaluate them apart" in capsys.readouterr().err
    assert main(["evaluate", str(model), "--data", "six-scenes"]) == 2
    assert "no test set 'six-scenes' of pictures; wanted one of set5" in capsys.readouterr().err


def test_without_model_and_name(
    photo: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shipped network enlarges it, in integers, beside where one is."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["upscale", str(photo), "--scale", "2"]) == 0
    shown = capsys.readouterr().out
    assert "wrote " in shown and ("int8" in shown or "integers" in shown)
    small, large = read_image(photo), read_image(tmp_path / "here" / f"{photo.stem}-x2.png")
    assert large.shape == (2 * small.shape[0], 2 * small.shape[1], 3)
    assert main(["upscale", str(photo), "--scale", "3"]) == 2
    assert "no network that enlarges 3 times is shipped; wanted one of --scale 2" in capsys.readouterr().err
    assert main(["upscale", str(photo), str(photo)]) == 2
    assert "no --out; wanted a file for a film, or a folder for several results" in capsys.readouterr().err
    assert main(["upscale", "none.png"]) == 2 and "no file none.png; wanted an image" in capsys.readouterr().err
    assert len(list((tmp_path / "here").iterdir())) == 1
