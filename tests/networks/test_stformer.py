"""STFormer gives the official outputs from the official weights, for any size and every length that it covers."""

import inspect
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

import bitlens
from bitlens.networks.stformer import (
    SpaceAttention,
    STFormer,
    TimeAttention,
    config_from_state_dict,
    initial_estimate,
    relative_positions,
    separation,
    stformer,
)


def data(b: int = 1, t: int = 4, h: int = 16, w: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Measurement, mask and video."""
    video = torch.rand(b, t, h, w)
    mask = (torch.rand(b, t, h, w) < 0.5).float()
    mask[:, 0] = torch.maximum(mask[:, 0], (mask.sum(1) == 0).float())  # every pixel is measured
    return (mask * video).sum(1), mask, video


@pytest.mark.parametrize("name", ["stformer_gray", "stformer_color"])
def test_golden(golden_root: Path, name: str) -> None:
    """The recorded frames are padded to whole windows in height, and the second block's windows are shifted."""
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
    for key, index in network.named_buffers():  # computed here, recorded there
        assert torch.equal(index, weights[key])


@pytest.mark.parametrize(("size", "millions"), [("s", 1.22), ("b", 19.48)])
def test_published_parameter_counts(size: str, millions: float) -> None:
    """They come out without the tables of position biases and without the official, unused `conv_cat`."""
    with torch.device("meta"):
        network = stformer(size)
    numbers = {name: parameter.numel() for name, parameter in network.named_parameters()}
    tables = sum(number for name, number in numbers.items() if name.endswith("relative_position_bias_table"))
    assert round((sum(numbers.values()) - tables) / 1e6, 2) == millions
    assert round(sum(numbers.values()) / 1e6, 2) != millions
    trunk = 4 * network.config["dim"]
    unused = network.config["units"] * network.config["depth"] * (2 * trunk * trunk + trunk)
    assert round((sum(numbers.values()) - tables + unused) / 1e6, 2) != millions


def test_options_add_parameters() -> None:
    def count(**options: bool) -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in stformer("s", **options).parameters())

    plain, c = count(), 16
    assert count(shift=True) == plain + 4 * 2 * 2 * 2 * 4  # units, blocks, attentions, q and k, heads
    tokens = (c + c) + (2 * c * c + 2 * c) + (4 * c * c + 2 * c) + (32 * c * c + 4 * c) + (16 * c * c + 4 * c)
    video = (4 * c * c + 2 * c) + (2 * c * c + c) + (c + 1)
    assert count(shortcuts=True) == plain + tokens + video
    assert count(colour=True) == plain + 2 * (27 * c + 1)


@pytest.mark.parametrize(("t", "h", "w"), [(1, 16, 16), (5, 15, 18), (8, 13, 11), (3, 30, 2)])
@pytest.mark.parametrize("options", [{}, {"shift": True, "shortcuts": True}])
def test_any_size(t: int, h: int, w: int, options: dict[str, bool]) -> None:
    network = STFormer(4, 1, **options).eval()
    measurement, mask, _ = data(2, t, h, w)
    with torch.no_grad():
        output = network(measurement, mask)
        assert output.shape == (2, 1, t, h, w)
        one_mask = network(measurement, mask[:1])
        torch.testing.assert_close(one_mask[:1], network(measurement[:1], mask[:1]), atol=1e-6, rtol=0)


def test_odd_sizes_mirror_the_last_row_and_column() -> None:
    network = STFormer(4, 1).eval()
    measurement, mask, _ = data(1, 3, 15, 17)
    padded = (
        F.pad(measurement[:, None], (0, 1, 0, 1), mode="replicate")[:, 0],
        F.pad(mask, (0, 1, 0, 1), mode="replicate"),
    )
    with torch.no_grad():
        torch.testing.assert_close(network(measurement, mask), network(*padded)[..., :15, :17], atol=1e-6, rtol=0)


def test_refusals() -> None:
    network = STFormer(4, 1)
    plain = inspect.unwrap(STFormer.forward)  # the shape checks of tests would refuse first
    with pytest.raises(ValueError, match="measurement is 16x16 but the mask is 16x14"):
        plain(network, torch.rand(1, 16, 16), torch.ones(1, 4, 16, 14))
    with pytest.raises(ValueError, match=r"mask has 9 frames but .* end at 8: give at most 8, .* frames=9"):
        network(torch.rand(1, 16, 16), torch.ones(1, 9, 16, 16))
    with pytest.raises(ValueError, match=r"no size 't'; the published ones are s, b, l"):
        stformer("t")


def test_longer_videos_need_longer_tables() -> None:
    network = STFormer(4, 1, frames=10).eval()
    measurement, mask, _ = data(1, 10)
    with torch.no_grad():
        assert network(measurement, mask).shape == (1, 1, 10, 16, 16)


def test_estimate() -> None:
    """mask * y / sum_t mask for a binary mask; one step of back-projection of the residual for any other."""
    mask = torch.tensor([[[[1.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]]]])
    estimate = initial_estimate(torch.tensor([[[3.0, 0.5, 0.0]]]), mask)
    torch.testing.assert_close(estimate, torch.tensor([[[[[1.5, 0.5, 0.0]], [[1.5, 0.0, 0.0]]]]]))
    mask, y = torch.rand(2, 3, 4, 5) + 0.1, torch.rand(2, 4, 5)
    x = mask * y.unsqueeze(1)
    residual = (y - (mask * x).sum(1)) / mask.sum(1)
    torch.testing.assert_close(initial_estimate(y, mask), (x + mask * residual.unsqueeze(1)).unsqueeze(1))


def attention_by_pixel(layer: SpaceAttention, x: Tensor, i: int, j: int) -> Tensor:
    """What one pixel (i, j) of a frame (h, w, c) receives, from the definition."""
    h, w, c = x.shape
    side, offset = layer.window, layer.offset
    tall, wide = h + -h % side, w + -w % side
    padded = F.pad(x, (0, 0, 0, wide - w, 0, tall - h))
    q, k, v = layer.qkv(padded).reshape(tall, wide, 3, layer.heads, c // layer.heads).unbind(2)
    y, z = (i - offset) % tall, (j - offset) % wide  # where the roll put the pixel
    scores, values = [], []
    for m in range(y // side * side, y // side * side + side):
        for n in range(z // side * side, z // side * side + side):
            from_pixel = ((m + offset) % tall, (n + offset) % wide)
            together = (m >= tall - offset) == (y >= tall - offset) and (n >= wide - offset) == (z >= wide - offset)
            row = (y - m + side - 1) * (2 * side - 1) + z - n + side - 1
            score = (q[i, j] * k[from_pixel]).sum(1) * layer.scale + layer.relative_position_bias_table[row]
            scores.append(score if together else score - 100)
            values.append(v[from_pixel])
    weights = torch.stack(scores).softmax(0)  # s n
    return layer.proj((weights.unsqueeze(2) * torch.stack(values)).sum(0).reshape(c))


@pytest.mark.parametrize("offset", [0, 1])
def test_attention_in_space(offset: int) -> None:
    layer, x = SpaceAttention(4, 2, 3, offset), torch.randn(1, 2, 7, 4, 4)
    with torch.no_grad():
        layer.relative_position_bias_table.normal_()
        output = layer(x)
        for i, j in [(0, 0), (3, 2), (6, 3), (6, 0), (2, 3)]:
            torch.testing.assert_close(output[0, 1, i, j], attention_by_pixel(layer, x[0, 1], i, j))


def test_attention_in_time() -> None:
    layer, x = TimeAttention(8, 2, 5), torch.randn(2, 3, 2, 2, 8)
    with torch.no_grad():
        layer.relative_position_bias_table.normal_()
        q, k, v = layer.qkv(x[1, :, 0, 1]).reshape(3, 3, 2, 2).unbind(1)  # t n d
        scores = torch.einsum("tnd,snd->nts", q, k) * 4**-0.5
        for s in range(3):
            for t in range(3):
                scores[:, t, s] += layer.relative_position_bias_table[t - s + 4]
        wanted = layer.proj(torch.einsum("nts,snd->tnd", scores.softmax(2), v).flatten(1))
        torch.testing.assert_close(layer(x)[1, :, 0, 1], wanted)


def test_relative_positions() -> None:
    assert relative_positions(3).tolist() == [[2, 1, 0], [3, 2, 1], [4, 3, 2]]


def test_separation() -> None:
    """Only the windows of the last row and column hold pixels from both sides of the frame."""
    apart = separation(4, 4, (2, 2), (1, 0), torch.device("cpu"))
    assert not apart[:2].any()
    lower = torch.tensor([[0, 0, -100, -100], [0, 0, -100, -100], [-100, -100, 0, 0], [-100, -100, 0, 0.0]])
    assert torch.equal(apart[2], lower) and torch.equal(apart[3], lower)


def test_network_runs_alike_with_and_without_gradients() -> None:
    network = STFormer(4, 1, shift=True).eval()
    measurement, mask, _ = data()
    with torch.no_grad():
        without = network(measurement, mask)
    torch.testing.assert_close(network(measurement, mask).detach(), without, atol=1e-6, rtol=0)


def test_every_parameter_learns() -> None:
    """All of them decide the output, but for the shift of k, which the softmax over keys does not see."""
    network = STFormer(4, 1, shift=True, shortcuts=True).double()
    measurement, mask, video = (x.double() for x in data())
    (network(measurement, mask)[:, 0] - video).square().mean().backward()
    still = {name for name, p in network.named_parameters() if p.grad is None or float(p.grad.abs().max()) < 1e-15}
    assert {name.split(".")[-2] for name in still} <= {"movek"}


@pytest.mark.parametrize(
    "config",
    [
        dict(dim=4, units=1, color_channels=1, frames=8, depth=2, heads=4, window=7, shift=False, shortcuts=False),
        dict(dim=8, units=3, color_channels=3, frames=10, depth=1, heads=2, window=5, shift=True, shortcuts=True),
    ],
)
def test_configuration_is_read_off_the_weights(config: dict[str, int | bool]) -> None:
    network: nn.Module = STFormer(**config)  # type: ignore[arg-type]
    assert config_from_state_dict(network.state_dict()) == config


def test_weights_of_another_network() -> None:
    with pytest.raises(ValueError, match=r"not STFormer's: token_gen\.0\.weight"):
        config_from_state_dict({"token_gen.0.weight": torch.zeros(1)})
