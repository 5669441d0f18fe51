"""A low-bit network whose ranges were chosen for another camera explains the new one's measurements better."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bitlens.data.masks import random_mask, real_valued_mask
from bitlens.data.synthetic import high_speed_scene
from bitlens.methods import quantize
from bitlens.networks.efficientsci import EfficientSCI, initialize_identity
from bitlens.operators import VideoSCI
from bitlens.quant.layers import Quantized, quantized_layers
from bitlens.training.adapt import adapt, measured_again, windows
from bitlens.training.losses import data_residual, rmse

SIZE, FRAMES = 32, 4


def scenes(seed: int) -> Tensor:
    """Two made videos (b, t, h, w)."""
    video = high_speed_scene(seed, frames=2 * FRAMES, height=SIZE, width=SIZE, oversample=1)
    return torch.from_numpy(video).reshape(2, FRAMES, SIZE, SIZE)


def network() -> EfficientSCI:
    """A float network that returns its input estimate, roughly."""
    made = EfficientSCI(8, 1, 2)
    initialize_identity(made)
    return made.eval()


def low_bit(method: str = "direct", bits: int = 8) -> tuple[EfficientSCI, EfficientSCI]:
    """The float network and a low-bit one, calibrated with a binary mask in the dark."""
    original = network()
    mask = torch.from_numpy(random_mask(FRAMES, SIZE, SIZE, 0))[None]
    dark = 0.2 * scenes(1)
    batches = [(VideoSCI(mask).A(one[None, None]), mask) for one in dark]
    made, _ = quantize(original, method, batches, bits=bits)
    assert isinstance(made, EfficientSCI)
    return original, made


def camera() -> tuple[Tensor, Tensor]:
    """Measurements (2, h, w) of bright scenes through a real-valued mask (t, h, w)."""
    mask = torch.from_numpy(real_valued_mask(random_mask(FRAMES, SIZE, SIZE, 3), 4))
    return VideoSCI(mask).A(scenes(2).unsqueeze(1)), mask


def residual(made: nn.Module, measurements: Tensor, mask: Tensor) -> float:
    with torch.no_grad():
        values = [float(data_residual(made(y[None], mask[None]), y[None], mask[None])) for y in measurements]
    return sum(values) / len(values)


def codes(made: nn.Module) -> dict[str, Tensor]:
    layers = {name: layer for name, layer in quantized_layers(made).items() if isinstance(layer, Quantized)}
    return {name: layer.weight_grid.codes(layer.layer.get_parameter("weight")) for name, layer in layers.items()}


def test_residual_by_hand() -> None:
    video = torch.tensor([[[[[1.0, 0.5]], [[1.0, 0.5]]]]])  # 1 1 2 1 2
    mask = torch.tensor([[[[1.0, 0.0]], [[1.0, 1.0]]]])  # A x = (2, 0.5)
    assert float(data_residual(video, torch.tensor([[[2.0, 0.5]]]), mask)) < 1e-3
    assert float(data_residual(video, torch.tensor([[[2.0, 3.5]]]), mask)) == pytest.approx(3 / (4 + 3.5**2) ** 0.5)


@pytest.mark.parametrize(("method", "share"), [("direct", 0.8), ("pams", 1.0)])
def test_new_ranges_explain_the_measurements_better(method: str, share: float) -> None:
    torch.manual_seed(0)
    _, made = low_bit(method)
    measurements, mask = camera()
    before, weights = residual(made, measurements, mask), codes(made)
    result = adapt(made, measurements, mask)
    assert result.kept and result.before == pytest.approx(before)
    assert result.after == result.ranges == pytest.approx(residual(made, measurements, mask))
    assert result.after < share * before
    assert all(torch.equal(value, weights[name]) for name, value in codes(made).items())
    assert result.observed == "the network itself, without its grids"


def test_steps_explain_them_better_still() -> None:
    torch.manual_seed(0)
    _, made = low_bit(bits=4)
    measurements, mask = camera()
    weights, seen = codes(made), []
    result = adapt(made, measurements, mask, steps=25, learning_rate=2e-3, window=16, on_step=seen.append)
    assert result.after < 0.97 * result.ranges and seen == list(range(1, 26))
    assert all(torch.equal(value, weights[name]) for name, value in codes(made).items())


def test_teacher() -> None:
    """Its activations decide the ranges, as if the network had been calibrated so; its videos pull the steps."""
    torch.manual_seed(0)
    original, made = low_bit()
    measurements, mask = camera()
    result = adapt(made, measurements, mask, teacher=original)
    assert result.observed == "the teacher" and result.after < result.before
    fresh, _ = quantize(original, "direct", [(y[None], mask[None]) for y in measurements], bits=8)
    for name, value in fresh.state_dict().items():
        assert torch.equal(made.state_dict()[name], value), name

    def distance(student: nn.Module) -> float:
        with torch.no_grad():
            masks = mask[None].expand(2, -1, -1, -1)
            return float((student(measurements, masks) - original(measurements, masks)).square().mean())

    torch.manual_seed(0)
    original, alone = low_bit(bits=4)
    taught = copy.deepcopy(alone)
    steps: dict[str, Any] = dict(steps=25, learning_rate=2e-3, window=16)
    adapt(alone, measurements, mask, **steps)
    adapt(taught, measurements, mask, teacher=original, distill=10.0, **steps)
    assert distance(taught) < distance(alone)


def test_teacher_without_the_layers() -> None:
    """Q-SCI's shortcuts are not in the float network: it is said whose activations were used."""
    torch.manual_seed(0)
    original, made = low_bit("qsci", bits=4)
    result = adapt(made, *camera(), teacher=original)
    assert result.observed == "the network itself, without its grids (the teacher has no fem_shortcut.0)"


def test_worse_ranges_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fits each layer alone may leave the whole network worse off; then nothing is changed."""
    _, made = low_bit()
    before = {name: value.clone() for name, value in made.state_dict().items()}

    def too_coarse(network: nn.Module, *_: Any) -> None:
        for layer in quantized_layers(network).values():
            for grid, _ in layer.calibration_groups().values():
                scale = grid.get_parameter("scale")
                grid.set_range(torch.full_like(scale, -5e3), torch.full_like(scale, 5e3))

    monkeypatch.setattr("bitlens.training.adapt.calibrate_activations", too_coarse)
    result = adapt(made, *camera())
    assert not result.kept and result.ranges > result.before == result.after
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_windows_show_the_same_place_of_measurement_and_mask() -> None:
    mask = torch.arange(2 * 6 * 5.0).reshape(1, 2, 6, 5)
    measurements = torch.stack([mask[0].sum(0), 2 * mask[0].sum(0)])
    y, masks = windows(measurements, mask, 3, 8, torch.Generator().manual_seed(0))
    assert y.shape == (8, 3, 3) and masks.shape == (8, 2, 3, 3)
    for one, own in zip(y, masks, strict=True):
        assert torch.equal(one, own.sum(0)) or torch.equal(one, 2 * own.sum(0))
    assert windows(measurements, mask, 64, 1, torch.Generator())[1].shape == (1, 2, 6, 5)
    assert torch.equal(windows(measurements, mask, 3, 8, torch.Generator().manual_seed(0))[0], y)
    both = torch.cat([mask, 2 * mask])
    for one, own in zip(*windows(measurements, both, 3, 8, torch.Generator().manual_seed(0)), strict=True):
        assert torch.equal(one, own.sum(0))


def test_measurements_with_masks_in_turn() -> None:
    """As the four sites of a mosaic have them."""
    torch.manual_seed(0)
    _, made = low_bit()
    measurements, mask = camera()
    other = mask.flip(-1)
    turned = VideoSCI(other[None]).A(scenes(3)[:1].unsqueeze(1))
    wanted = (residual(made, measurements[:1], mask) + residual(made, turned, other)) / 2
    result = adapt(made, torch.cat([measurements[:1], turned]), torch.stack([mask, other]))
    assert result.before == pytest.approx(wanted)


def test_pairs_are_measurements_of_known_videos() -> None:
    videos, masks = scenes(2), torch.from_numpy(random_mask(FRAMES, SIZE, SIZE, 3))[None]
    y, seen, known = measured_again(videos, masks, 8, 40, np.random.default_rng(0))
    assert y.shape == (40, 8, 8) and seen.shape == known.shape == (40, FRAMES, 8, 8)
    off = ((seen * known).sum(1) - y).square().mean((1, 2)).sqrt()
    assert 8 < int((off == 0).sum()) < 32 and 0 < float(off.max()) < 0.2  # half of them have noise
    places = videos.unfold(2, 8, 1).unfold(3, 8, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, FRAMES, 8, 8)
    mirrored = (known[0].flip(axes) for axes in ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)))
    assert any((places == one).flatten(1).all(1).any() for one in mirrored)
    again = measured_again(videos, masks, 8, 40, np.random.default_rng(0))
    assert all(torch.equal(one, other) for one, other in zip((y, seen, known), again, strict=True))
    assert measured_again(videos, masks, 64, 1, np.random.default_rng(0))[0].shape == (1, SIZE, SIZE)


def test_pairs_make_better_videos() -> None:
    """Of the measurements, though nothing but videos rebuilt from them was known; the same for the same seed."""

    def distance(made: nn.Module) -> float:
        with torch.no_grad():
            return float(rmse(made(measurements, mask.expand(2, -1, -1, -1)), scenes(2).unsqueeze(1)))

    torch.manual_seed(0)
    original, made = low_bit(bits=4)
    measurements, mask = camera()
    adapt(made, measurements, mask)
    states = []
    for _ in range(2):
        trained = copy.deepcopy(made)
        result = adapt(
            trained, measurements, mask, teacher=original, pairs=True, steps=25, learning_rate=2e-3, window=16
        )
        states.append(trained.state_dict())
    assert result.after < result.ranges and distance(trained) < 0.97 * distance(made)
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert all(torch.equal(value, codes(made)[name]) for name, value in codes(trained).items())


def test_refusals() -> None:
    measurements, mask = camera()
    with pytest.raises(ValueError, match="EfficientSCI has no quantized layers; wanted a low-bit network"):
        adapt(EfficientSCI(8, 1, 2), measurements, mask)
    _, made = low_bit()
    with pytest.raises(ValueError, match="no measurements came; wanted one or more"):
        adapt(made, measurements[:0], mask)
    with torch.no_grad():
        made.vrm[4].get_submodule("layer").get_parameter("bias").fill_(float("nan"))
    with pytest.raises(ValueError, match=r"not finite at step 0; .* lower the learning rate"):
        adapt(made, measurements, mask, steps=1)
