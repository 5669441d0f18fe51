"""PSNR and SSIM against analytic values and a slow SSIM that is written pixel by pixel."""

import inspect
import math

import numpy as np
import pytest
import torch

from bitlens.metrics import PSNR_CAP, banding, flicker, psnr_rgb, psnr_sci, psnr_y, ssim_sci, ssim_y

RNG = np.random.default_rng(0)
SHAPE = (3, 16, 19)
REFERENCE = RNG.random(SHAPE)
VIDEO = REFERENCE + 0.1 * RNG.standard_normal(SHAPE)


def slow_ssim(a: np.ndarray, b: np.ndarray, peak: float) -> float:
    """SSIM of two pictures from its definition, with a window of 121 weights at every place where it fits."""
    weights = [[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2)) for j in range(11)] for i in range(11)]
    total = sum(map(sum, weights))
    values = []
    for row in range(a.shape[0] - 10):
        for column in range(a.shape[1] - 10):
            spots = [
                (weights[i][j] / total, float(a[row + i, column + j]), float(b[row + i, column + j]))
                for i in range(11)
                for j in range(11)
            ]
            mean_a = sum(w * x for w, x, _ in spots)
            mean_b = sum(w * y for w, _, y in spots)
            variance_a = sum(w * (x - mean_a) ** 2 for w, x, _ in spots)
            variance_b = sum(w * (y - mean_b) ** 2 for w, _, y in spots)
            covariance = sum(w * (x - mean_a) * (y - mean_b) for w, x, y in spots)
            c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
            values.append(
                (2 * mean_a * mean_b + c1)
                * (2 * covariance + c2)
                / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))
            )
    return sum(values) / len(values)


def test_psnr_sci_of_a_constant_error():
    assert psnr_sci(REFERENCE + 0.1, REFERENCE) == pytest.approx(20.0)
    assert psnr_sci(REFERENCE - 0.001, REFERENCE) == pytest.approx(60.0)


def test_psnr_sci_is_the_mean_of_frames_and_not_of_their_errors():
    video = REFERENCE[:2] + np.array([0.1, 0.001])[:, None, None]  # 20 dB and 60 dB
    assert psnr_sci(video, REFERENCE[:2]) == pytest.approx(40.0)


def test_psnr_sci_neither_rounds_nor_clips():
    white = np.ones((1, 4, 4))
    assert psnr_sci(white + 0.1, white) == pytest.approx(20.0)
    assert psnr_sci(white - 0.1 / 255, white) == pytest.approx(20 * math.log10(2550))


def test_equal_pictures_have_the_cap():
    assert psnr_sci(REFERENCE, REFERENCE) == PSNR_CAP == 100.0
    assert psnr_y(REFERENCE[:3], REFERENCE[:3], 2) == PSNR_CAP
    assert ssim_sci(REFERENCE, REFERENCE) == pytest.approx(1)
    assert ssim_y(REFERENCE, REFERENCE, 2) == pytest.approx(1)


def test_one_perfect_frame_leaves_the_average_finite():
    video = REFERENCE[:2] + np.array([0, 0.1])[:, None, None]
    assert psnr_sci(video, REFERENCE[:2]) == pytest.approx((PSNR_CAP + 20) / 2)


def test_ssim_sci_is_the_slow_one():
    expected = np.mean([slow_ssim(a, b, 1.0) for a, b in zip(VIDEO, REFERENCE, strict=True)])
    assert 0.3 < expected < 0.99
    assert ssim_sci(VIDEO, REFERENCE) == pytest.approx(expected, abs=1e-12)


def test_ssim_sci_of_two_constants_is_the_luminance_term():
    a, b = np.full((2, 12, 12), 0.3), np.full((2, 12, 12), 0.6)
    assert ssim_sci(a, b) == pytest.approx((2 * 0.18 + 1e-4) / (0.09 + 0.36 + 1e-4))


def test_ssim_is_near_minus_one_for_a_negative():
    stripes = np.tile(np.array([0.0, 1.0]), (1, 16, 8))
    assert ssim_sci(1 - stripes, stripes) < -0.98


@pytest.mark.parametrize("metric", [psnr_sci, ssim_sci])
def test_torch_and_numpy_agree(metric):
    video, reference = torch.tensor(VIDEO).float(), torch.tensor(REFERENCE).float()
    found = metric(video.requires_grad_(), reference)
    assert isinstance(found, float)
    assert found == metric(video.detach().numpy(), reference.numpy())
    assert found == pytest.approx(metric(VIDEO, REFERENCE), abs=1e-5)


def test_bfloat16_and_read_only_and_reversed_arrays():
    assert psnr_sci(torch.full((1, 4, 4), 0.5, dtype=torch.bfloat16), np.full((1, 4, 4), 0.25)) == pytest.approx(
        20 * math.log10(4)
    )
    frozen = VIDEO[:, ::-1]
    frozen.flags.writeable = False
    assert psnr_sci(frozen, REFERENCE[:, ::-1]) == pytest.approx(psnr_sci(VIDEO, REFERENCE))


def constant(red: float, green: float, blue: float) -> np.ndarray:
    return np.broadcast_to(np.array([red, green, blue], dtype=float)[:, None, None], (3, 20, 20)).copy()


@pytest.mark.parametrize(
    ("colour", "luma"),
    [((1, 1, 1), 235.0), ((1, 0, 0), 81.481), ((0, 1, 0), 144.553), ((0, 0, 1), 40.966)],
)
def test_luma_runs_from_16_to_235_and_its_peak_is_255(colour: tuple[int, int, int], luma: float):
    black = constant(0, 0, 0)
    expected = 20 * math.log10(255 / (luma - 16))
    assert psnr_y(constant(*colour), black, 0) == pytest.approx(expected)


def test_psnr_y_rounds_to_8_bits_and_clips():
    grey = constant(*[100 / 255] * 3)
    assert psnr_y(grey + 0.4 / 255, grey, 0) == PSNR_CAP
    one_code = 20 * math.log10(255 / (219 / 255))
    assert psnr_y(grey + 0.6 / 255, grey, 0) == pytest.approx(one_code)
    half = constant(*[0.5] * 3)  # 127.5: half to even
    assert psnr_y(half, constant(*[128 / 255] * 3), 0) == PSNR_CAP
    white = constant(1, 1, 1)
    assert psnr_y(white + 0.3, white, 0) == PSNR_CAP
    assert psnr_y(-white, constant(0, 0, 0), 0) == PSNR_CAP


def test_psnr_y_does_not_round_the_luma():
    """One code of blue is 0.098 of luma, which would round to nothing."""
    assert psnr_y(constant(0, 0, 1 / 255), constant(0, 0, 0), 0) == pytest.approx(20 * math.log10(255 / (24.966 / 255)))


def test_the_border_is_shaved_on_every_side():
    image, reference = constant(0.2, 0.4, 0.6), constant(0.2, 0.4, 0.6)
    image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1] = 1, 1, 1, 1
    assert psnr_y(image, reference, 0) < 30
    assert psnr_y(image, reference, 1) == PSNR_CAP
    assert ssim_y(image, reference, 1) == pytest.approx(1)
    image[:, 1:-1, 1:-1][:, 0, 0] = 1  # one pixel just inside
    assert psnr_y(image, reference, 1) < PSNR_CAP
    assert psnr_y(image, reference, 2) == PSNR_CAP


def test_ssim_y_is_the_slow_one_on_rounded_luma():
    image, reference = np.clip(VIDEO[:3], 0, 1), REFERENCE[:3]
    weight = np.array([65.481, 128.553, 24.966])
    a, b = (16 + np.tensordot(weight, np.round(x * 255) / 255, 1)[2:-2, 2:-2] for x in (image, reference))
    expected = slow_ssim(a, b, 255.0)
    assert 0.3 < expected < 0.99
    assert ssim_y(image, reference, 2) == pytest.approx(expected, abs=1e-12)
    mean_square = ((a - b) ** 2).mean()
    assert psnr_y(image, reference, 2) == pytest.approx(10 * math.log10(255**2 / mean_square))


@pytest.mark.parametrize("metric", [psnr_sci, ssim_sci])
def test_nan_is_not_hidden(metric):
    video = VIDEO.copy()
    video[0, 8, 8] = np.nan
    assert math.isnan(metric(video, REFERENCE))


@pytest.mark.parametrize("metric", [psnr_y, ssim_y])
def test_nan_is_not_hidden_in_luma(metric):
    image = VIDEO.copy()
    image[0, 8, 8] = np.nan
    assert math.isnan(metric(image, REFERENCE, 2))


@pytest.mark.parametrize("metric", [psnr_sci, ssim_sci, psnr_y, ssim_y])
def test_what_does_not_fit_is_refused(metric):
    """Without the shape check of the test run, which would be quicker."""
    plain, shave = inspect.unwrap(metric), (() if metric in (psnr_sci, ssim_sci) else (2,))
    with pytest.raises(ValueError, match=r"\(3, 16, 19\).*\(3, 16, 18\)"):
        plain(VIDEO, REFERENCE[:, :, :18], *shave)
    with pytest.raises(ValueError, match=r"\(16, 19\)"):
        plain(VIDEO[0], REFERENCE[0], *shave)
    with pytest.raises(TypeError, match="uint8; wanted floats"):
        plain(VIDEO.astype(np.uint8), REFERENCE, *shave)
    with pytest.raises(TypeError, match="int64; wanted floats"):
        plain(VIDEO, torch.ones(SHAPE, dtype=torch.int64), *shave)


@pytest.mark.parametrize("metric", [psnr_sci, ssim_sci])
def test_an_empty_video_is_refused(metric):
    with pytest.raises(ValueError, match=r"\(0, 16, 19\)"):
        metric(VIDEO[:0], REFERENCE[:0])


def test_ssim_needs_room_for_its_window():
    assert ssim_sci(VIDEO[:, :11, :11], REFERENCE[:, :11, :11]) < 1
    with pytest.raises(ValueError, match=r"10 x 19 pixels .*at least 11 x 11"):
        ssim_sci(VIDEO[:, :10], REFERENCE[:, :10])
    with pytest.raises(ValueError, match="10 x 13 pixels"):
        ssim_y(VIDEO, REFERENCE, 3)


@pytest.mark.parametrize("shave", [-1, 8])
def test_a_border_that_leaves_nothing_is_refused(shave: int):
    with pytest.raises(ValueError, match=f"border of {shave} pixels"):
        psnr_y(VIDEO, REFERENCE, shave)


def test_psnr_of_all_colours_rounds_first() -> None:
    """A third of a level is no error; one whole level in one channel of three is 10 log10(3 255^2) dB."""
    truth = np.full((3, 4, 5), 100 / 255, np.float32)
    assert psnr_rgb(truth + np.float32(0.3 / 255), truth) == PSNR_CAP
    other = truth.copy()
    other[1] += np.float32(1 / 255)
    assert psnr_rgb(other, truth) == pytest.approx(10 * np.log10(3 * 255**2))
    with pytest.raises(ValueError, match="wanted the same"):
        psnr_rgb(truth, truth[:, :3])


def test_flicker_is_of_changes_alone() -> None:
    random = np.random.default_rng(0)
    reference = random.random((5, 6, 7))
    assert flicker(reference + random.random((6, 7)), reference) == pytest.approx(0, abs=1e-12)  # an error that stays
    blinking = reference + 0.1 * np.array([1, -1, 1, -1, 1])[:, None, None]
    assert flicker(blinking, reference) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="of two frames or more"):
        flicker(reference[:1], reference[:1])


def test_banding_is_of_gradients_in_flat_places_alone() -> None:
    ramp = np.tile(np.linspace(0, 96 / 255, 97), (1, 40, 1))  # a level a pixel along, none down
    assert banding(ramp + 0.1, ramp) == pytest.approx(0, abs=1e-9)  # brighter: no edges
    stepped = np.floor(ramp * 255 / 4 + 1e-9) * 4 / 255  # bands of 4 pixels: three gradients of 0, one of 4
    # Along 97 pixels there are 96 gradients of 1 (72 of them become 0, 24 become 4) and the last place's 0, and down
    # there are none: half of all are of either kind.
    assert banding(stepped, ramp) == pytest.approx((72 * 1 + 24 * 3) / (2 * 97))
    edge = ramp.copy()
    edge[:, :, 50:] += 0.3
    spoilt = edge.copy()
    spoilt[:, :, 50] += 0.05  # at the edge, where nothing is flat
    assert banding(spoilt, edge) == pytest.approx(0, abs=1e-9)
    assert np.isnan(banding(VIDEO, REFERENCE))  # nothing is flat
    with pytest.raises(ValueError, match="of two pixels or more"):
        banding(ramp[:, :1], ramp[:, :1])
