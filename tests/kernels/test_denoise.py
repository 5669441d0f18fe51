"""Total-variation denoising: every level equals the scalar reference bit for bit, that torch's to the last bits."""

import numpy as np
import pytest
import torch

from bitlens.networks.classical import denoise_tv

from .conftest import LEVELS

bk = pytest.importorskip("bitlens_kernels")

SHAPES = [(1, 1), (1, 7), (5, 1), (2, 3, 17, 33), (1, 2, 64), (3, 40, 16)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 4, 9])
def test_every_level_equals_the_scalar_twin_and_torch(shape: tuple[int, ...], steps: int):
    frames = np.random.default_rng(0).random(shape).astype(np.float32)
    results = []
    for level in LEVELS:
        results.append(np.full_like(frames, np.nan))
        bk.bind_denoise(frames, results[-1], 0.3, steps, level, threads=2)()
    assert all(np.array_equal(found, results[0]) for found in results)
    wanted = denoise_tv(torch.from_numpy(frames), 0.3, steps).numpy()
    np.testing.assert_allclose(results[0], wanted, rtol=0, atol=1e-6)


def test_bad_arrays_are_refused():
    frames = np.zeros((2, 8, 8), np.float32)
    for result, weight, steps in [
        (frames, 0.3, 4),
        (np.zeros((2, 8, 8)), 0.3, 4),
        (np.zeros((2, 8, 16), np.float32)[..., ::2], 0.3, 4),
        (np.zeros((2, 8, 8), np.float32), 0.0, 4),
        (np.zeros((2, 8, 8), np.float32), 0.3, 0),
    ]:
        with pytest.raises(ValueError, match="wanted float32 of one shape, contiguous and apart"):
            bk.bind_denoise(frames, result, weight, steps)
