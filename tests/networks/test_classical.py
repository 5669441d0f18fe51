"""GAP-TV on made scenes and against the published table; its denoiser against closed forms and optimality."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bitlens.metrics import psnr_sci, ssim_sci
from bitlens.networks.classical import GapTV, denoise_tv
from bitlens.operators import VideoSCI

PUBLISHED = {  # scene: frames used, PSNR in dB, SSIM of GAP-TV in the tables of video SCI
    "kobe": (32, 26.92, 0.838),
    "traffic": (48, 20.66, 0.691),
    "runner": (8, 29.81, 0.895),
    "drop": (8, 34.95, 0.966),
    "crash": (32, 24.48, 0.799),
    "aerial": (32, 24.81, 0.811),
}


def moving_discs(frames: int, height: int, width: int) -> Tensor:
    """A made scene (1, 1, t, h, w): two discs move over a slope of grey."""
    row = torch.arange(height).view(1, -1, 1)
    column = torch.arange(width).view(1, 1, -1)
    time = torch.arange(frames).view(-1, 1, 1)
    video = (0.2 + 0.3 * column / width).expand(frames, height, width).clone()  # t h w
    video[(row - height / 2) ** 2 + (column - width / 4 - time) ** 2 < (height / 5) ** 2] = 0.9
    video[(row - height / 4 - time) ** 2 + (column - 0.7 * width) ** 2 < (height / 6) ** 2] = 0.1
    return video[None, None]


def random_mask(kind: str, *shape: int) -> Tensor:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    match kind:
        case "binary":
            return (mask < 0.5).float()
        case "leaky":  # closed pixels let some light through, open ones differ
            return torch.where(mask < 0.5, 0.03, 0.7 + 0.3 * mask)
        case _:
            return mask


def psnr(found: Tensor, video: Tensor) -> float:
    return psnr_sci(found.flatten(0, 2), video.flatten(0, 2))


@pytest.mark.parametrize(
    ("kind", "frames", "height", "width", "gain"),
    [
        ("binary", 8, 56, 56, 12),
        ("leaky", 8, 56, 56, 12),
        ("real", 8, 56, 56, 9),
        ("binary", 3, 47, 61, 9),
        ("binary", 14, 33, 57, 10),
    ],
)
def test_gap_tv_is_far_better_than_the_pseudo_inverse(kind: str, frames: int, height: int, width: int, gain: float):
    video, mask = moving_discs(frames, height, width), random_mask(kind, 1, frames, height, width)
    camera = VideoSCI(mask)
    measurement = camera.A(video)
    found = GapTV()(measurement, mask)
    assert found.shape == video.shape
    assert psnr(found, video) > psnr(camera.A_dagger(measurement), video) + gain


def test_one_frame_that_is_fully_seen_comes_back():
    video, mask = moving_discs(1, 40, 40), 0.5 + random_mask("real", 1, 1, 40, 40)
    assert psnr(GapTV()(VideoSCI(mask).A(video), mask), video) > 30


def test_the_unit_of_the_mask_does_not_matter():
    video, mask = moving_discs(8, 32, 32), random_mask("leaky", 1, 8, 32, 32)
    measurement = VideoSCI(mask).A(video)
    expected = GapTV(iterations=5)(measurement, mask)
    torch.testing.assert_close(GapTV(iterations=5)(255 * measurement, 255 * mask), expected)


def test_batch_items_do_not_touch_each_other():
    video = torch.cat([moving_discs(4, 24, 24), 1 - moving_discs(4, 24, 24)])
    masks = torch.cat([random_mask("binary", 1, 4, 24, 24), random_mask("leaky", 1, 4, 24, 24)])
    measurement, network = VideoSCI(masks).A(video), GapTV(iterations=5)
    together = network(measurement, masks)
    alone = torch.cat([network(measurement[i : i + 1], masks[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone)
    one_mask = network(measurement, masks[:1])
    torch.testing.assert_close(one_mask[0], together[0])
    assert not torch.allclose(one_mask[1], together[1])


def test_it_has_no_weights_leaves_its_input_alone_and_follows_its_dtype():
    video, mask = moving_discs(4, 24, 24).double(), random_mask("binary", 1, 4, 24, 24)
    measurement = VideoSCI(mask).A(video).requires_grad_()
    before, mask_before = measurement.detach().clone(), mask.clone()
    network = GapTV(iterations=3)
    found = network(measurement, mask)
    assert not network.state_dict()
    assert found.dtype == torch.float64 and not found.requires_grad
    assert torch.equal(measurement, before) and torch.equal(mask, mask_before)
    assert torch.equal(found, network(measurement, mask))


@pytest.mark.parametrize("wrong", [{"iterations": 0}, {"tv_weight": 0.0}, {"dual_steps": 0}])
def test_settings_that_do_nothing_are_refused(wrong: dict):
    with pytest.raises(ValueError, match=r"wanted all of them > 0"):
        GapTV(**wrong)


def test_a_mask_of_another_size_is_refused():
    with pytest.raises((ValueError, TypeError)):  # TypeError: the shape check of the test run is quicker
        GapTV()(torch.ones(1, 8, 8), torch.ones(1, 4, 8, 9))


@pytest.mark.parametrize("upright", [False, True])
def test_denoise_tv_moves_the_two_sides_of_an_edge_by_weight_over_width(upright: bool):
    """An edge between two plateaus n pixels wide: each moves towards the other by weight / n."""
    edge = torch.cat([torch.zeros(5, 6), torch.ones(5, 6)], dim=1).double()
    expected = torch.cat([torch.full((5, 6), 0.05), torch.full((5, 6), 0.95)], dim=1).double()
    if upright:
        edge, expected = edge.T.contiguous(), expected.T.contiguous()
    torch.testing.assert_close(denoise_tv(edge, 0.3, 3000), expected, atol=2e-3, rtol=0)


def test_denoise_tv_reaches_the_minimum():
    """No small change of the result lowers 1/2 ||u - x||^2 + weight TV(u), and the start is far from it."""

    def objective(u: Tensor) -> float:
        down = torch.diff(u, dim=0, append=u[-1:])
        right = torch.diff(u, dim=1, append=u[:, -1:])
        return float(0.5 * (u - frame).square().sum() + weight * (down.square() + right.square()).sqrt().sum())

    generator, weight = torch.Generator().manual_seed(0), 0.2
    frame = torch.rand(9, 7, generator=generator).double()
    best = denoise_tv(frame, weight, 3000)
    assert objective(best) < 0.7 * objective(frame)
    for size in (0.1, 0.01):
        for _ in range(50):
            change = size * torch.randn(9, 7, generator=generator).double()
            assert objective(best) <= objective(best + change)
    for pull in (-0.02, 0.02):  # towards the frame, towards its mean
        assert objective(best) <= objective(best + pull * (frame - best)) + 1e-6
        assert objective(best) <= objective(best + pull * (best - best.mean())) + 1e-6


def test_denoise_tv_keeps_the_mean_and_what_is_flat_and_treats_frames_apart():
    frames = torch.rand(2, 3, 10, 12).double()
    found = denoise_tv(frames, 0.3, 4)
    torch.testing.assert_close(found.mean((-1, -2)), frames.mean((-1, -2)))
    torch.testing.assert_close(found[1, 2], denoise_tv(frames[1, 2], 0.3, 4))
    flat = torch.full((4, 5), 0.7)
    assert torch.equal(denoise_tv(flat, 0.3, 10), flat)


def scenes(data_root: Path) -> dict[str, Tensor]:
    """The six grey scenes as (n, 1, 8, h, w) in [0, 1]."""
    found = {}
    for scene, (frames, _, _) in PUBLISHED.items():
        file = data_root / "sci" / "scenes" / f"{scene}.npz"
        if not file.is_file():
            pytest.skip(f"no scene {scene} below {data_root}: set BITLENS_DATA to the folder that holds sci/scenes")
        stored = np.load(file)["orig"][:, :, :frames]  # h w t
        video = torch.from_numpy(stored).permute(2, 0, 1).float() / 255  # t h w
        found[scene] = video.unflatten(0, (-1, 8)).unsqueeze(1)  # n 1 8 h w
    return found


@pytest.mark.slow
def test_the_published_table(data_root: Path):
    mask_file = data_root / "sci" / "masks" / "benchmark.npz"
    if not mask_file.is_file():
        pytest.skip(f"no mask {mask_file}: set BITLENS_DATA to the folder that holds sci/masks")
    mask = torch.from_numpy(np.load(mask_file)["mask"]).permute(2, 0, 1).float().unsqueeze(0)  # 1 t h w
    camera, network, found = VideoSCI(mask), GapTV(), {}
    for scene, video in scenes(data_root).items():
        measurement = camera.A(video)  # n h w
        result = network(measurement, mask).flatten(0, 2)  # n*8 h w
        reference = video.flatten(0, 2)
        found[scene] = psnr_sci(result, reference), ssim_sci(result, reference)
    for scene, (_, decibel, similarity) in PUBLISHED.items():
        assert found[scene] == pytest.approx((decibel, similarity), abs=0.02), scene
    average = np.mean(list(found.values()), axis=0)
    assert average[0] == pytest.approx(26.94, abs=0.02)
    assert average[1] == pytest.approx(0.833, abs=0.002)
