"""Videos that are written a few frames at a time are those that are written at once, whole or not at all."""

from pathlib import Path

import numpy as np
import pytest

from bitlens.data.video import read_video, write_video
from bitlens.data.writers import video_writer

KINDS = [".gif", ".tif", ".npz", "/", ".mkv", ".mp4"]
VIDEO = np.random.default_rng(0).random((7, 16, 18)).astype(np.float32)


@pytest.fixture(params=KINDS)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param in (".mkv", ".mp4"):
        pytest.importorskip("av", reason="PyAV (bitlens[video]) is not installed")
    return f"{tmp_path}/deep/clip{request.param}"


@pytest.mark.parametrize("colour", [False, True])
def test_in_pieces_as_at_once(target: str, colour: bool) -> None:
    video = np.stack([VIDEO, 1 - VIDEO, VIDEO**2], axis=-1) if colour else VIDEO
    with video_writer(target, 7, 10) as write:
        write(video[:3])
        write(video[3:4])
        assert not Path(target).exists()
        write(video[4:])
    found = read_video(target, grey=not colour)
    other = target.replace("clip", "other")
    write_video(other, video, 10)
    np.testing.assert_array_equal(found, read_video(other, grey=not colour))
    assert found.shape == video.shape and np.abs(found - video).mean() < 0.3


def test_equal_frames_are_kept(target: str) -> None:
    write_video(target, np.full((4, 16, 18), 0.5, np.float32))
    assert len(read_video(target)) == 4


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interruption_leaves_nothing(target: str, tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error, match="now"), video_writer(target, 7) as write:
        write(VIDEO[:3])
        raise error("now")
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_refused(target: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"3 frames were written to .*; wanted 7"), video_writer(target, 7) as write:
        write(VIDEO[:3])
    with (
        pytest.raises(ValueError, match=r"frames of shape \(8, 18\) after \(16, 18\); wanted one size"),
        video_writer(target, 7) as write,
    ):
        write(VIDEO[:3])
        write(VIDEO[3:, :8])
    assert list(tmp_path.iterdir()) == []
