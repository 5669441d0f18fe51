"""Named test sets are complete, unknown names are refused, and real captures pass the front door."""

from pathlib import Path

import numpy as np
import pytest

from bitlens.data import benchmarks
from bitlens.data.arrays import write_npz
from bitlens.data.benchmarks import BENCHMARKS, SIX_SCENES, benchmark_mask, load_scenes, six_scenes
from bitlens.data.capture import measure, read_capture
from bitlens.data.masks import read_mask
from bitlens.data.video import read_video, write_video

WITHOUT_MASK = [f"cr{ratio}/meas_{name}_cr_{ratio}.mat" for ratio in (10, 50) for name in (
    "duomino", "hand", "pendulumBall", "waterBalloon")]  # fmt: skip


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no test set 'six-scene'; did you mean 'six-scenes'\? wanted one of six-scenes, or"
    ):
        load_scenes("six-scene")
    with pytest.raises(ValueError, match=r"no test set '/nowhere/at/all'; wanted one of six-scenes"):
        load_scenes("/nowhere/at/all")
    with pytest.raises(FileNotFoundError, match=r"holds no scene; wanted files .npz, .mat"):
        load_scenes(tmp_path)


def test_missing_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITLENS_DATA", str(tmp_path / "absent"))
    with pytest.raises(
        FileNotFoundError, match=r"no data folder .*; wanted .*; set the environment variable BITLENS_DATA"
    ):
        benchmarks.data_root()
    monkeypatch.setenv("BITLENS_DATA", str(tmp_path))
    assert benchmarks.data_root() == tmp_path
    with pytest.raises(FileNotFoundError, match=r"kobe.npz; wanted the six scenes in .*; set .* BITLENS_DATA"):
        load_scenes("six-scenes")


def test_incomplete_scene(tmp_path: Path) -> None:
    folder = tmp_path / "sci" / "scenes"
    folder.mkdir(parents=True)
    np.savez(folder / "kobe.npz", orig=np.zeros((16, 16, 4), np.uint8))
    with pytest.raises(
        ValueError, match=r"holds \(4, 16, 16\); wanted \(32, 256, 256\), the benchmark's frames; restore"
    ):
        six_scenes(tmp_path)


def test_folder_as_test_set(tmp_path: Path) -> None:
    for name in ("scene10.npz", "scene2.npz"):
        write_video(tmp_path / name, np.full((4, 8, 8), 0.5, np.float32))
    write_npz(tmp_path / "scene1.npz", orig=np.zeros((8, 8, 4), np.uint8))
    (tmp_path / "readme.txt").write_text("no scene")
    scenes = load_scenes(tmp_path)
    assert [scene.name for scene in scenes] == ["scene1", "scene2", "scene10"]
    assert all(scene.video.shape == (4, 8, 8) for scene in scenes)
    assert [scene.name for scene in load_scenes(tmp_path / "scene2.npz")] == ["scene2"]


def test_six_scenes(data_root: Path) -> None:
    scenes = BENCHMARKS["six-scenes"](data_root)
    assert {scene.name: len(scene.video) for scene in scenes} == dict(SIX_SCENES)
    mask = benchmark_mask(data_root)
    assert mask.shape == (8, 256, 256) and set(np.unique(mask)) == {0.0, 1.0}
    assert sum(len(measure(scene.video, mask)) for scene in scenes) == 20
    for scene in scenes:
        assert scene.video.dtype == np.float32 and scene.video.min() >= 0 and 0.9 < scene.video.max() <= 1


def test_published_scene_file(data_root: Path) -> None:
    capture = read_capture(data_root / "sci" / "scenes" / "drop8_cacti.mat")
    assert capture.measurement.shape == (5, 256, 256) and capture.mask.shape == (8, 256, 256)
    assert capture.gain == pytest.approx(255, rel=1e-6) and capture.gain_source == "file"
    assert capture.reference is not None and len(capture.reference) == 8
    np.testing.assert_allclose(capture.measurement[:1], measure(capture.reference, capture.mask), atol=1e-5)
    drop = read_video(data_root / "sci" / "scenes" / "drop.npz")
    np.testing.assert_array_equal(capture.reference, drop)
    np.testing.assert_array_equal(capture.mask, benchmark_mask(data_root))


@pytest.mark.parametrize("name", ["efficientsci_mask.mat", "quantized_sci_mask.mat"])
def test_official_masks(data_root: Path, name: str) -> None:
    assert read_mask(data_root / "sci" / "masks" / name).shape == (8, 256, 256)


@pytest.mark.parametrize("name", ["4fan14_cacti.mat", "4hand14_cacti.mat"])
def test_real_captures(data_root: Path, name: str) -> None:
    path = data_root / "sci" / "real_with_mask" / name
    capture = read_capture(path)
    assert capture.measurement.shape == (1, 256, 256) and capture.mask.shape == (14, 256, 256)
    assert capture.mask.max() == 1 and capture.gain_source == "estimated"
    assert capture.exposure == pytest.approx(0.4, rel=1e-4)
    assert not any(note.startswith("warning") for note in capture.notes)
    other = read_capture(path, data_root / "sci" / "masks" / "efficientsci_mask.mat")
    assert any("do not belong together" in note for note in other.notes)


@pytest.mark.parametrize("name", WITHOUT_MASK)
def test_real_captures_without_mask(data_root: Path, name: str) -> None:
    path = data_root / "sci" / "real_without_mask" / name
    with pytest.raises(
        ValueError, match=r"measurement of size 512x512 needs the camera's calibrated mask, and none came"
    ):
        read_capture(path)
    with pytest.raises(ValueError, match=r"is 512x512, the mask .* is 256x256; wanted one size; pass the right mask"):
        read_capture(path, data_root / "sci" / "masks" / "benchmark.npz")


def test_training_clip(data_root: Path) -> None:
    clips = sorted((data_root / "train" / "clips").glob("*.avif"))
    if not clips:
        pytest.skip("no training clips in the data folder")
    clip = read_video(clips[0], max_frames=3)
    assert len(clip) == 3 and min(clip.shape[1:]) >= 256 and clip.std() > 0.02
