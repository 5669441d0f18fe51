"""A recording gives what `read_capture` gives, one measurement at a time."""

from pathlib import Path

import numpy as np
import pytest

from bitlens.cli import in_flags
from bitlens.data.arrays import write_npz
from bitlens.data.capture import read_capture, simulate, write_capture
from bitlens.data.masks import random_mask
from bitlens.data.recording import open_recording
from bitlens.data.stacks import Stack
from bitlens.data.synthetic import high_speed_scene

SCENE = high_speed_scene(frames=19, height=32, width=32, oversample=1)
MASK = random_mask(4, 32, 32, 0)


@pytest.mark.parametrize("crop", [None, (4, 2, 20, 16)])
def test_a_recording_is_the_capture(crop: tuple[int, int, int, int] | None, tmp_path: Path) -> None:
    write_capture(tmp_path / "a.npz", simulate(SCENE, MASK))
    opened, read = (open_(tmp_path / "a.npz", crop=crop) for open_ in (open_recording, read_capture))
    assert isinstance(opened.measurement, Stack) and isinstance(opened.reference, Stack)
    np.testing.assert_array_equal(list(opened.measurement), read.measurement)
    np.testing.assert_array_equal(list(opened.reference), read.reference)
    assert opened.notes == read.notes and opened.gain == read.gain and opened.exposure == read.exposure
    assert len(opened.reference) == 16 and opened.measurement.dtype == np.float32


def test_a_reference_of_bytes(tmp_path: Path) -> None:
    levels = np.round(SCENE[:16] * 255).astype(np.uint8)
    measured = simulate(levels.astype(np.float32) / np.float32(255), MASK)
    write_npz(tmp_path / "a.npz", measurement=measured.measurement * 300, mask=MASK, orig=levels, axes="thw")
    opened = open_recording(tmp_path / "a.npz")
    assert opened.gain == pytest.approx(300, rel=1e-4) and opened.gain_source == "file"
    assert opened.reference is not None
    np.testing.assert_allclose(opened.reference.read(), levels / 255, atol=1e-6)


def test_a_mask_of_another_name(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", measurement=simulate(SCENE, MASK).measurement, Phi=MASK, axes="thw")
    np.testing.assert_array_equal(open_recording(tmp_path / "a.npz", mask_key="Phi").mask, MASK)
    write_npz(tmp_path / "m.npz", Phi=MASK, axes="thw")
    opened = open_recording(tmp_path / "a.npz", tmp_path / "m.npz", mask_key="Phi")
    np.testing.assert_array_equal(opened.mask, MASK)
    with pytest.raises(
        ValueError, match=r"holds Phi, axes; wanted mask; name the array with mask_key=\.\.\., or store"
    ):
        open_recording(tmp_path / "a.npz", tmp_path / "m.npz")


def test_the_order_of_a_mask_s_axes_is_asked_for(tmp_path: Path) -> None:
    """Its size fits in the other order only: the message says so, in the words of the command line too."""
    cube = random_mask(8, 32, 32, 1)  # saved frames first under the field's name
    write_npz(tmp_path / "a.npz", measurement=simulate(SCENE, MASK).measurement, axes="thw")
    np.savez(tmp_path / "m.npz", mask=cube)
    with pytest.raises(
        ValueError, match=r"the mask .*m.npz is 8x32; wanted one size; name the order .* mask_axes=\.\.\."
    ):
        open_recording(tmp_path / "a.npz", tmp_path / "m.npz")
    assert in_flags("pass mask_axes='thw', or mask_key=...") == "pass --mask-axes thw, or --mask-key ..."
