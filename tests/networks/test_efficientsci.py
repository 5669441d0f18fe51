"""EfficientSCI gives the official outputs from the official weights, for any length and size of video."""

import inspect
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

import bitlens
from bitlens.methods import quantize
from bitlens.networks.efficientsci import (
    EfficientSCI,
    config_from_state_dict,
    efficientsci,
    initial_estimate,
    initialize_identity,
    widened,
)


def data(b: int = 1, t: int = 4, h: int = 16, w: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Measurement, mask and video."""
    video = torch.rand(b, t, h, w)
    mask = (torch.rand(b, t, h, w) < 0.5).float()
    mask[:, 0] = torch.maximum(mask[:, 0], (mask.sum(1) == 0).float())  # every pixel is measured
    return (mask * video).sum(1), mask, video


@pytest.mark.parametrize(("size", "count"), [("t", 947_457), ("s", 3_777_025), ("b", 8_824_321), ("l", 12_386_561)])
def test_published_parameter_counts(size: str, count: int) -> None:
    with torch.device("meta"):
        network = efficientsci(size)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_options_add_parameters() -> None:
    def count(**options: bool) -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in efficientsci("s", **options).parameters())

    plain = count()
    assert count(shift=True) == plain + 8 * 2 * 2 * 4  # units, groups, q and k, heads
    c = 32
    shortcuts = (c + c) + (2 * c * c + 2 * c) + (32 * c * c + 4 * c) + (4 * c * c + 2 * c) + (2 * c * c + c) + (c + 1)
    assert count(shortcuts=True) == plain + shortcuts
    assert count(colour=True) == plain + 2 * (27 * c + 1)


@pytest.mark.parametrize("name", ["efficientsci_gray", "efficientsci_gray_g4", "efficientsci_color"])
def test_golden(golden_root: Path, name: str) -> None:
    with safe_open(golden_root / f"{name}.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    weights = {key.removeprefix("weights/"): value for key, value in values.items() if key.startswith("weights/")}
    network = bitlens.from_official(weights)
    assert {key: network.config[key] for key in config} == config and not network.training
    with torch.no_grad():
        output = network(values["inputs/measurement"].squeeze(1), values["inputs/mask"])
    wanted = values["output"] if values["output"].ndim == 5 else values["output"].unsqueeze(1)
    assert output.shape == wanted.shape
    assert float((output - wanted).abs().max()) < 1e-5


@pytest.mark.parametrize(("t", "h", "w"), [(1, 16, 16), (5, 15, 18), (8, 13, 11), (8, 16, 12)])
@pytest.mark.parametrize("options", [{}, {"shift": True, "shortcuts": True}])
def test_any_length_and_size(t: int, h: int, w: int, options: dict[str, bool]) -> None:
    network = EfficientSCI(8, 1, 2, **options).eval()
    measurement, mask, _ = data(2, t, h, w)
    with torch.no_grad():
        output = network(measurement, mask)
        assert output.shape == (2, 1, t, h, w)
        one_mask = network(measurement, mask[:1])
        torch.testing.assert_close(one_mask[:1], network(measurement[:1], mask[:1]), atol=1e-6, rtol=0)


def test_odd_sizes_mirror_the_last_row_and_column() -> None:
    network = EfficientSCI(8, 1, 2).eval()
    measurement, mask, _ = data(1, 3, 15, 15)
    padded = (
        F.pad(measurement[:, None], (0, 1, 0, 1), mode="replicate")[:, 0],
        F.pad(mask, (0, 1, 0, 1), mode="replicate"),
    )
    with torch.no_grad():
        torch.testing.assert_close(network(measurement, mask), network(*padded)[..., :15, :15], atol=1e-6, rtol=0)


def test_colour() -> None:
    network = EfficientSCI(8, 1, 2, 3).eval()
    measurement, mask, _ = data()
    with torch.no_grad():
        assert network(measurement, mask).shape == (1, 3, 4, 16, 16)


def test_size_mismatch() -> None:
    network = EfficientSCI(8, 1, 2)
    plain = inspect.unwrap(EfficientSCI.forward)  # the shape checks of tests would refuse first
    with pytest.raises(ValueError, match="measurement is 16x16 but the mask is 16x14"):
        plain(network, torch.rand(1, 16, 16), torch.ones(1, 4, 16, 14))
    with pytest.raises(ValueError, match=r"no size 'x'; the published ones are t, s, b, l"):
        efficientsci("x")


def test_estimate() -> None:
    """e + mask * e, with e the measurement over the number of open frames; zero where no frame is open."""
    mask = torch.tensor([[[[1.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]]]])
    estimate = initial_estimate(torch.tensor([[[3.0, 0.5, 0.0]]]), mask)
    torch.testing.assert_close(estimate, torch.tensor([[[[[3.0, 1.0, 0.0]], [[3.0, 0.5, 0.0]]]]]))


def test_identity_initialization_returns_about_the_estimate() -> None:
    for colour in (1, 3):
        network = EfficientSCI(8, 2, 2, colour).eval()
        initialize_identity(network)
        measurement, mask, _ = data(1, 4, 18, 16)
        with torch.no_grad():
            output, wanted = network(measurement, mask), initial_estimate(measurement, mask) / 1.5
        for channel in range(colour):
            torch.testing.assert_close(output[:, channel : channel + 1], wanted, atol=1e-5, rtol=0)


def test_identity_initialization_lets_all_layers_learn() -> None:
    network = EfficientSCI(8, 1, 2, shift=True)
    initialize_identity(network)
    optimizer = torch.optim.SGD(network.parameters(), 1e-2)
    measurement, mask, video = data()
    for _ in range(3):  # behind each layer that starts at zero, gradients arrive one step later
        optimizer.zero_grad()
        (network(measurement, mask)[:, 0] - video).square().mean().backward()
        optimizer.step()
    still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


def test_network_runs_alike_with_and_without_gradients() -> None:
    network = EfficientSCI(8, 1, 2, shift=True).eval()
    measurement, mask, _ = data()
    with torch.no_grad():
        without = network(measurement, mask)
    torch.testing.assert_close(network(measurement, mask).detach(), without, atol=1e-6, rtol=0)


def test_gradients() -> None:
    """Along a random direction of all parameters, against a finite difference in float64."""
    network = EfficientSCI(8, 1, 2, shift=True, shortcuts=True).double()
    measurement, mask, video = (x.double() for x in data(1, 2, 8, 8))

    def loss() -> Tensor:
        return (network(measurement, mask)[:, 0] - video).square().sum()

    loss().backward()
    parameters = list(network.parameters())
    assert all(parameter.grad is not None for parameter in parameters)
    directions = [torch.randn_like(parameter) for parameter in parameters]
    slope = sum(float((p.grad * d).sum()) for p, d in zip(parameters, directions, strict=True) if p.grad is not None)
    ends, step = [], 1e-7
    with torch.no_grad():
        for sign in (1, -1):
            for p, d in zip(parameters, directions, strict=True):
                p.add_(d, alpha=sign * step)
            ends.append(float(loss()))
            for p, d in zip(parameters, directions, strict=True):
                p.sub_(d, alpha=sign * step)
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        dict(in_ch=8, units=1, group_num=2, color_ch=1, shift=False, shortcuts=False),
        dict(in_ch=16, units=3, group_num=4, color_ch=3, shift=True, shortcuts=False),
        dict(in_ch=8, units=2, group_num=1, color_ch=1, shift=False, shortcuts=True),
        dict(in_ch=8, units=1, group_num=1, color_ch=1, shift=True, shortcuts=False, normalize=True),
    ],
)
def test_configuration_is_read_off_the_weights(config: dict[str, int | bool]) -> None:
    network: nn.Module = EfficientSCI(**config)  # type: ignore[arg-type]
    assert config_from_state_dict(network.state_dict()) == {"normalize": False, **config}


def test_weights_of_another_network() -> None:
    with pytest.raises(ValueError, match=r"not EfficientSCI's: fem\.0\.weight"):
        config_from_state_dict({"conv.weight": torch.zeros(1)})


@pytest.mark.parametrize("options", [{}, {"color_ch": 3}])
@pytest.mark.parametrize("factor", [2, 3])
def test_widened_computes_the_same(factor: int, options: dict[str, int]) -> None:
    network = EfficientSCI(8, 2, 2, **options).eval()
    wide = widened(network, factor)
    assert wide.config == {**network.config, "in_ch": 8 * factor} and not wide.training
    measurement, mask, _ = data(1, 3, 10, 13)
    with torch.no_grad():
        torch.testing.assert_close(wide(measurement, mask), network(measurement, mask), atol=1e-5, rtol=1e-4)


def test_widened_copies_learn_apart() -> None:
    wide = widened(EfficientSCI(8, 1, 2), 2)
    measurement, mask, video = data()
    (wide(measurement, mask).squeeze(1) - video).square().mean().backward()
    for name in ("resdnet_list.0.cformer_list.0.scb.0.weight", "vrm.0.weight", "resdnet_list.0.last_conv.weight"):
        gradient = wide.get_parameter(name).grad
        assert gradient is not None
        copies = gradient.unflatten(0, (-1, 2))
        assert float((copies[:, 0] - copies[:, 1]).abs().mean()) > 0.05 * float(gradient.abs().mean())


def test_unknown_shortcuts_are_refused() -> None:
    with pytest.raises(ValueError, match="shortcuts='vrm' came; wanted False, True, or 'fem'"):
        EfficientSCI(8, 1, 2).with_options(shortcuts="vrm")


def test_widened_refuses_additions() -> None:
    with pytest.raises(ValueError, match="shift and shortcuts"):
        widened(EfficientSCI(8, 1, 2, shift=True, shortcuts=True), 2)


def test_widened_refuses_grids() -> None:
    measurement, mask, _ = data()
    low, _ = quantize(EfficientSCI(8, 1, 2).eval(), "direct", [(measurement, mask)], bits=8)
    assert isinstance(low, EfficientSCI)
    with pytest.raises(ValueError, match="the network has grids; wanted a plain one; widen it before quantizing"):
        widened(low, 2)
    shipped = bitlens.load("efficientsci-t-qsci-w8a8")
    assert isinstance(shipped, EfficientSCI)
    with pytest.raises(ValueError, match="shift and grids; wanted a plain one"):
        widened(shipped, 2)
