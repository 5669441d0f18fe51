"""Training clips: a batch depends on (seed, step, rank) alone, and the folder, cache and split are as asked for."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bitlens.data.arrays import write_npz
from bitlens.data.clips import Batch, Clips, ClipSampler, cached, clip_paths, load_clips, load_mask
from bitlens.data.masks import random_mask
from bitlens.data.synthetic import high_speed_scene
from bitlens.data.video import write_video

REPOSITORY = Path(__file__).resolve().parents[2]


def clips(count: int = 2, frames: int = 20, height: int = 40, width: int = 48) -> Clips:
    random = np.random.default_rng(0)
    videos = [random.integers(0, 256, (frames, height, width), dtype=np.uint8) for _ in range(count)]
    return Clips(videos, [f"{i}.mp4" for i in range(count)])


def numbered() -> Clips:
    """A video whose pixels tell where they come from: frame, row and column."""
    t, y, x = np.meshgrid(np.arange(12), np.arange(24), np.arange(32), indexing="ij")
    return Clips([(t * 20 + 0 * y + 0 * x).astype(np.uint8)], ["numbered"])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bitlens" / "clips"


@pytest.fixture
def folder(tmp_path: Path, cache: Path) -> Path:
    """Two videos of arrays and one of frames, with 10, 12 and 4 frames."""
    root = tmp_path / "videos"
    for name, frames in (("b", 12), ("a", 10)):
        video = np.random.default_rng(frames).random((frames, 16, 20)).astype(np.float32)
        write_npz(root / f"{name}.npz", orig=video, axes="thw")
    (root / "frames").mkdir()
    for i in range(4):
        Image.fromarray(np.full((16, 20), 60 * i, np.uint8)).save(root / "frames" / f"{i}.png")
    (root / "notes.txt").write_text("not a video")
    return root


def draw(step: int = 0, rank: int = 0, **settings: Any) -> Batch:
    return ClipSampler(clips(), **{"crop": 16, "batch": 3, "seed": 5, **settings}).draw(step, rank)


def test_batches_are_a_function_of_seed_step_and_rank() -> None:
    sampler = ClipSampler(clips(), crop=16, batch=3, seed=5)
    videos, masks, _ = sampler.draw(7, 1)
    sampler.draw(0), sampler.draw(8, 0)
    np.random.default_rng().random()
    torch.manual_seed(99)
    for other in (sampler, ClipSampler(clips(), crop=16, batch=3, seed=5)):
        again = other.draw(7, 1)
        assert torch.equal(again[0], videos) and torch.equal(again[1], masks)
    for step, rank, seed in ((8, 1, 5), (7, 0, 5), (7, 1, 6), (1, 7, 5)):
        others = ClipSampler(clips(), crop=16, batch=3, seed=seed).draw(step, rank)
        assert not torch.equal(others[0], videos) and not torch.equal(others[1], masks)


@pytest.mark.parametrize(("frames", "crop", "batch"), [(8, 16, 3), (5, 24, 1), (1, 7, 2)])
def test_shapes_and_values(frames: int, crop: int, batch: int) -> None:
    videos, masks, _ = draw(frames=frames, crop=crop, batch=batch)
    assert videos.shape == masks.shape == (batch, frames, crop, crop)
    assert videos.dtype == masks.dtype == torch.float32 and videos.is_contiguous()
    assert float(videos.min()) >= 0 and float(videos.max()) <= 1
    assert set(masks.unique().tolist()) == {0.0, 1.0}


def test_masks_are_fresh_for_every_sample() -> None:
    _, masks, _ = draw(batch=4)
    for i in range(4):
        for j in range(i):
            assert 0.3 < float((masks[i] != masks[j]).float().mean()) < 0.7


def test_fixed_mask_is_cropped() -> None:
    mask = random_mask(8, 20, 24, 3)
    _, masks, _ = draw(batch=6, mask=mask)
    windows = np.lib.stride_tricks.sliding_window_view(mask, (16, 16), axis=(1, 2))  # t y x 16 16
    places = set()
    for sample in masks.numpy():
        found = np.argwhere((windows == sample[:, None, None]).all(axis=(0, 3, 4)))
        assert len(found) == 1
        places.add(tuple(found[0]))
    assert len(places) > 1
    same = draw(batch=2, mask=random_mask(8, 16, 16, 3))[1]
    assert torch.equal(same[0], same[1])


def test_frames_are_consecutive_forwards_or_backwards() -> None:
    sampler = ClipSampler(numbered(), frames=4, crop=16, batch=40, scale=(1.0, 1.0))
    videos, *_ = sampler.draw(0)
    steps = (videos[:, 1:] - videos[:, :-1]).flatten(1)
    assert bool((steps.abs().amax(1) - steps.abs().amin(1) < 1e-5).all())  # the same step all over a sample
    contrast = steps[:, 0].abs() * 255 / 20
    assert bool((contrast < 1.0001).all()) and 0.5 < float((contrast > 0.9999).float().mean()) < 0.95
    assert 0.25 < float((steps[:, 0] < 0).float().mean()) < 0.75
    starts = videos[contrast > 0.9999].amin(dim=(1, 2, 3)) * 255 / 20
    assert {round(float(start)) for start in starts} == set(range(9))


def test_windows_are_resized() -> None:
    """At scale 2 a window of 32 pixels becomes 16: noise averages out."""
    sharp = draw(scale=(1.0, 1.0), batch=8)[0].std()
    smooth = draw(scale=(2.0, 2.0), batch=8)[0].std()
    assert float(smooth) < 0.7 * float(sharp)
    small = ClipSampler(clips(1, 8, 10, 12), crop=16, batch=2)  # smaller than the crop: enlarged
    assert small.draw(0)[0].shape == (2, 8, 16, 16)


def test_longer_videos_are_drawn_more_often() -> None:
    made = Clips([np.zeros((8, 16, 16), np.uint8), np.full((38, 16, 16), 255, np.uint8)], ["short", "long"])
    sampler = ClipSampler(made, crop=16, batch=1)
    assert sampler.weights.tolist() == pytest.approx([1 / 32, 31 / 32])


def test_synthetic_samples() -> None:
    images = [np.random.default_rng(i).random((40, 40)).astype(np.float32) for i in range(2)]
    dark = Clips([np.zeros((8, 20, 20), np.uint8)], ["dark"])
    videos, *_ = ClipSampler(dark, crop=16, batch=12, images=images, synthetic=0.5).draw(0)
    made = (videos.amax(dim=(1, 2, 3)) - videos.amin(dim=(1, 2, 3)) > 0.01).sum()
    assert 2 <= int(made) <= 10
    assert ClipSampler(dark, images=[], synthetic=0.5, crop=16).synthetic == 0.0


@pytest.mark.parametrize("shape", [(7, 20, 20), (8, 15, 20), (8, 20, 15)])
def test_unfit_masks(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"the mask is .*; wanted 8 frames of at least 16x16"):
        ClipSampler(clips(), crop=16, mask=random_mask(*shape, 0))


@pytest.mark.parametrize(("frames", "crop"), [(21, 16), (8, 82)])
def test_unfit_videos(frames: int, crop: int) -> None:
    """They are refused at the start, not after an hour of training."""
    with pytest.raises(ValueError, match=rf"0\.mp4 is \(20, 40, 48\); wanted {frames} frames of at least"):
        ClipSampler(clips(), frames=frames, crop=crop)


def test_folder(folder: Path, cache: Path) -> None:
    found = load_clips(folder)
    assert found.names == ["a.npz", "b.npz"]  # the third has too few frames
    assert [video.shape for video in found.videos] == [(10, 16, 20), (12, 16, 20)]
    assert all(video.dtype == np.uint8 and isinstance(video, np.memmap) for video in found.videos)
    exact = np.random.default_rng(10).random((10, 16, 20)).astype(np.float32)
    assert np.abs(found.videos[0] / 255 - exact).max() <= 0.5 / 255 + 1e-6
    assert len(list(cache.iterdir())) == 3
    assert load_clips(folder, min_frames=4).names == ["a.npz", "b.npz", "frames"]


def test_cache_is_used_and_follows_changes(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "a.npz"
    first = cached(path)
    assert first.parent == cache
    import bitlens.data.clips as module

    def refuse(path: Path) -> np.ndarray:
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(module, "read_video", refuse)
        assert cached(path) == first
    write_npz(path, orig=np.zeros((9, 16, 20), np.float32), axes="thw")
    second = cached(path)
    assert second != first and np.load(second).shape == (9, 16, 20)


def test_the_cache_of_a_folder_follows_changes_in_place(folder: Path, cache: Path) -> None:
    frames = folder / "frames"
    first, state = cached(frames), os.stat(frames)
    changed = sorted(frames.iterdir())[0]
    Image.fromarray(np.full((16, 20), 255, np.uint8)).save(changed)
    os.utime(frames, ns=(state.st_atime_ns, state.st_mtime_ns))  # the folder itself looks as before
    second = cached(frames)
    assert second != first and np.load(second)[0].min() == 255
    assert cached(frames) == second


@pytest.mark.parametrize("content", ["", "{}", "[3]", '[{"name": "a.npz"}]', '[{"file": "a.npz"}]', "3"])
def test_a_manifest_of_another_form_is_named(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json is no list of videos .* wanted \[\{"):
        clip_paths(folder, "train")


def test_manifest(folder: Path) -> None:
    entries = [{"file": "a.npz", "split": "train"}, {"file": "b.npz", "split": "val"}]
    (folder / "manifest.json").write_text(json.dumps(entries))
    assert load_clips(folder, "train").names == ["a.npz"]
    assert load_clips(folder, "val").names == ["b.npz"]
    assert [path.name for path in clip_paths(folder, None)] == ["a.npz", "b.npz"]
    with pytest.raises(ValueError, match="no video of the split 'test' of 8 frames or more"):
        load_clips(folder, "test")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda root: (root / "none", None), FileNotFoundError, "no folder .*none; wanted training videos"),
        (lambda root: (root / "a.npz", None), FileNotFoundError, "no folder"),
        (lambda root: (root, "train"), ValueError, "has no manifest.json, so no split 'train'"),
        (lambda root: (root.parent / "cache", None), ValueError, "holds no video of 8 frames or more"),
    ],
)
def test_refusals(folder: Path, change: Callable[[Path], Any], error: type[Exception], message: str) -> None:
    (folder.parent / "cache").mkdir(exist_ok=True)
    where, split = change(folder)
    with pytest.raises(error, match=message):
        load_clips(where, split)


def test_identity() -> None:
    one, same = clips(), clips()
    assert one.identity() == same.identity() and len(one.identity()) == 16
    assert Clips(one.videos, ["x", "y"]).identity() != one.identity()
    assert clips(frames=21).identity() != one.identity()


def test_mask_files(tmp_path: Path) -> None:
    mask = random_mask(8, 16, 16, 0)
    write_npz(tmp_path / "mask.npz", mask=mask, axes="thw")
    loaded = load_mask(tmp_path / "mask.npz")
    assert loaded is not None and np.array_equal(loaded, mask) and load_mask(None) is None


@pytest.mark.parametrize("damage", ["cut", "longer", "empty", "zeros", "text", "of another kind", "pickled"])
def test_a_damaged_file_of_the_cache_is_made_anew(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "clips"
    folder.mkdir()
    write_video(folder / "a.npz", high_speed_scene(frames=8, height=32, width=32, oversample=1))
    file = cached(folder / "a.npz")
    whole = file.read_bytes()
    if damage in ("of another kind", "pickled"):
        np.save(file, np.array([{}]) if damage == "pickled" else np.zeros((8, 32, 32)), allow_pickle=True)
    else:
        content = {
            "cut": whole[:-9],
            "longer": whole + b"0",
            "empty": b"",
            "zeros": bytes(len(whole)),
            "text": b"hello",
        }
        file.write_bytes(content[damage])
    assert len(load_clips(folder).videos[0]) == 8
    assert file.read_bytes() == whole and len(list(file.parent.iterdir())) == 1


@pytest.mark.slow
def test_two_processes_fill_the_cache_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in "abcd":
        write_video(folder / f"{name}.npz", high_speed_scene(frames=8, height=64, width=64, oversample=1))
    code = f"from bitlens.data.clips import load_clips; print(len(load_clips({str(folder)!r}).videos))"
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY, text=True) for _ in range(2)]
    assert [process.communicate(timeout=120)[0] for process in both] == ["4\n", "4\n"]
    assert len(load_clips(folder).videos) == 4 and len(list((tmp_path / "cache").rglob("*.npy"))) == 4
