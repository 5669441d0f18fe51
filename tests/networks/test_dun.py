"""DUN: its start, its physics, any mask and size, and how far a pixel's influence reaches."""

from typing import Any

import pytest
import torch
from torch import Tensor

from bitlens.networks.classical import GapTV
from bitlens.networks.dun import DUN, deepened
from bitlens.operators import VideoSCI

SMALL: dict[str, Any] = dict(stages=2, widths=(8, 12, 16), blocks=(1, 1, 1), iterations=3)


def small(**changes: Any) -> DUN:
    """A seeded network whose last layers, which start at 0, do something."""
    torch.manual_seed(0)
    network = DUN(**{**SMALL, **changes}).eval()
    for prior in network.priors:
        torch.nn.init.normal_(prior.tail.weight, std=0.05)  # type: ignore[union-attr]
    return network


def camera(frames: int = 4, height: int = 16, width: int = 24, batch: int = 1) -> tuple[Tensor, Tensor]:
    """A measurement (b, h, w) of noise and its masks (b, t, h, w)."""
    source = torch.Generator().manual_seed(1)
    mask = (torch.rand(batch, frames, height, width, generator=source) < 0.5).float()
    return VideoSCI(mask).A(torch.rand(batch, 1, frames, height, width, generator=source)), mask


@torch.no_grad()
def test_before_training_it_is_the_projected_start() -> None:
    """The last layer of each prior starts at 0, so x_K explains the measurement and is near GAP-TV's video."""
    network = DUN(**SMALL).eval()
    measurement, mask = camera()
    start = GapTV(3)(measurement, mask)
    operator = VideoSCI(mask)
    projected = start + operator.A_dagger(measurement - operator.A(start))
    assert torch.allclose(network(measurement, mask), projected, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("frames", "height", "width"), [(2, 8, 8), (4, 16, 24), (5, 13, 18), (1, 9, 30), (24, 8, 16)])
def test_any_number_of_frames_and_any_size(frames: int, height: int, width: int) -> None:
    measurement, mask = camera(frames, height, width, batch=2)
    video = small()(measurement, mask)
    assert video.shape == (2, 1, frames, height, width) and bool(video.isfinite().all())


@torch.no_grad()
def test_samples_of_a_batch_do_not_meet() -> None:
    network = small()
    measurement, mask = camera(batch=3)
    together = network(measurement, mask)
    apart = torch.cat([network(measurement[i : i + 1], mask[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, apart, atol=1e-5)
    shared = network(measurement, mask[:1])
    assert torch.allclose(shared[:1], apart[:1], atol=1e-5)


@torch.no_grad()
def test_videos_of_every_stage() -> None:
    network = small()
    measurement, mask = camera()
    stages = network(measurement, mask, True)
    assert len(stages) == 2 and torch.equal(stages[-1], network(measurement, mask))
    assert not torch.allclose(stages[0], stages[1])


@torch.no_grad()
def test_pixels_that_no_frame_opens() -> None:
    measurement, mask = camera()
    mask[..., :3, :5] = 0
    measurement[..., :3, :5] = 0
    assert bool(small()(measurement, mask).isfinite().all())


@torch.no_grad()
def test_pixels_that_hardly_any_light_reaches_count_as_closed() -> None:
    """Their noise, divided by next to nothing, would be thousands of times the light of a scene."""
    network = small()
    measurement, mask = camera()
    weak, closed = mask.clone(), mask.clone()
    weak[..., :3, :5], closed[..., :3, :5] = 1e-4, 0
    dark = measurement.clone()
    dark[..., :3, :5] = 0
    measurement[..., :3, :5] = 0.3
    assert torch.allclose(network(measurement, weak), network(dark, closed))


@torch.no_grad()
def test_masks_of_real_values_and_of_another_unit() -> None:
    """The physics holds for any mask: what a stage without a prior returns explains the measurement."""
    network = DUN(**SMALL).double().eval()
    source = torch.Generator().manual_seed(2)
    mask = torch.rand(1, 6, 16, 16, generator=source, dtype=torch.float64)
    measurement = VideoSCI(mask).A(torch.rand(1, 1, 6, 16, 16, generator=source, dtype=torch.float64))
    video = network(measurement, mask)
    assert torch.allclose(VideoSCI(mask).A(video), measurement)


@torch.no_grad()
def test_radius() -> None:
    """No farther than `radius` does a measured pixel matter, and a cut at `alignment` is the whole picture's."""
    network = small(stages=1, iterations=1).double()
    reach, size = network.radius, 160
    measurement, mask = camera(2, 8, size)
    measurement, mask = measurement.double(), mask.double()
    before = network(measurement, mask)
    measurement[0, 4, 0] += 0.5
    changed = (network(measurement, mask) - before).abs().amax(dim=(0, 1, 2, 3)) > 0
    farthest = int(changed.nonzero().max())
    assert reach / 2 < farthest <= reach
    inside = network(measurement[..., 8 * 4 :], mask[..., 8 * 4 :])
    whole = network(measurement, mask)[..., 8 * 4 :]
    assert torch.allclose(inside[..., reach:], whole[..., reach:], atol=1e-9)


@torch.no_grad()
def test_time_runs_both_ways() -> None:
    """A frame sees its neighbours before and after: a change of the last frame's mask reaches the first."""
    network = small(stages=2)
    measurement, mask = camera(3)
    changed = mask.clone()
    changed[:, -1] = 1 - changed[:, -1]
    assert not torch.allclose(network(measurement, mask)[:, :, 0], network(measurement, changed)[:, :, 0])


@pytest.mark.parametrize("wrong", [{"stages": 0}, {"widths": (8, 8)}, {"blocks": (1, 0, 1)}, {"iterations": 0}])
def test_wrong_arguments(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="wanted numbers from 1"):
        DUN(**{**SMALL, **wrong})


@torch.no_grad()
@pytest.mark.parametrize("stages", [1, 2])
def test_deepened_computes_the_same(stages: int) -> None:
    network, data = small(stages=stages), camera()
    deep = deepened(network, 2)
    assert deep.config["stages"] == stages + 2
    assert torch.equal(deep(*data), network(*data))
    for value in deep(*data, True)[stages:]:
        assert torch.equal(value, network(*data))


def test_all_of_a_deepened_network_learns() -> None:
    deep = deepened(small(), 1).train()
    videos = deep(*camera(), True)
    assert isinstance(videos, list)
    sum(video.square().sum() for video in videos).backward()  # type: ignore[union-attr]
    last = deep.priors[2].tail.weight.grad  # type: ignore[union-attr]
    assert last.abs().max() > 0 and deep.steps.grad[2] != 0  # type: ignore[union-attr,index]


def test_deepened_refuses_grids() -> None:
    from bitlens.methods import quantize

    low, _ = quantize(small(), "unfolding", [camera()], bits=4)
    with pytest.raises(ValueError, match="a network with grids came"):
        deepened(low, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 stages more came"):
        deepened(small(), 0)


@torch.no_grad()
def test_another_mask_gain_computes_the_same() -> None:
    network, data = small(), camera()
    dim = network.with_mask_gain(0.25)
    assert dim.config["mask_gain"] == 0.25 and "mask_gain" not in network.config
    assert torch.allclose(dim(*data), network(*data), atol=1e-6)
    assert not torch.equal(dim.priors[0].head.weight, network.priors[0].head.weight)  # type: ignore[union-attr]
    again = dim.with_mask_gain(1)
    assert again.config == network.config and torch.equal(again(*data), network(*data))
    with pytest.raises(ValueError, match="mask_gain=0 came"):
        network.with_mask_gain(0)
