"""The parts that networks share: products, shifts, shortcuts and pixel-shuffles."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bitlens.networks.parts import (
    HeadShift,
    MatMul,
    pixel_product,
    pixel_shuffle,
    pixel_unshuffle,
    start_shortcuts,
    with_shortcuts,
)


@pytest.mark.parametrize("pixels", [7, 1])
def test_products_agree(pixels: int) -> None:
    """The compact form for training, the form without large arrays, the matrix kernel, and the definition."""
    left, right = torch.randn(2, 3, 4, 5, pixels), torch.randn(2, 3, 5, 6, pixels)
    wanted = torch.einsum("bnikp,bnkjp->bnijp", left, right)
    layer = MatMul()
    torch.testing.assert_close(layer(left, right), wanted)
    with torch.no_grad():
        torch.testing.assert_close(layer(left, right), wanted)
        torch.testing.assert_close(pixel_product(left, right), wanted)


def test_shift_adds_one_number_per_head() -> None:
    shift = HeadShift(3)
    with torch.no_grad():
        shift.bias.copy_(torch.tensor([1.0, 2.0, 3.0])[None, :, None, None])
    x = torch.rand(2, 3, 4, 5, 6)
    with torch.no_grad():
        torch.testing.assert_close(shift(x) - x, torch.tensor([1.0, 2.0, 3.0])[None, :, None, None, None].expand_as(x))


def striding() -> tuple[nn.Sequential, nn.ModuleList]:
    """Convolution, LeakyReLU, striding convolution, LeakyReLU, convolution; and a shortcut for each."""
    convolutions = nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1),
        nn.LeakyReLU(inplace=True),
        nn.Conv3d(4, 6, 3, stride=(1, 2, 2), padding=1),
        nn.LeakyReLU(inplace=True),
        nn.Conv3d(6, 2, 3, padding=1),
    )
    return convolutions, nn.ModuleList([nn.Conv3d(1, 4, 1), nn.Conv3d(16, 6, 1), nn.Conv3d(6, 2, 1)])


def test_shortcuts() -> None:
    convolutions, shortcuts = striding()
    x = torch.rand(2, 1, 3, 6, 8)
    a = F.leaky_relu(convolutions[0](x)) + F.leaky_relu(shortcuts[0](x))
    b = F.leaky_relu(convolutions[2](a)) + F.leaky_relu(shortcuts[1](pixel_unshuffle(a)))
    torch.testing.assert_close(with_shortcuts([*convolutions], shortcuts, x), convolutions[4](b) + shortcuts[2](b))


def difference(convolutions: nn.Sequential, shortcuts: nn.ModuleList, x: torch.Tensor) -> float:
    """How far `start_shortcuts` moves the output, relative to it."""
    with torch.no_grad():
        wanted = convolutions(x)
        start_shortcuts(list(convolutions), shortcuts)
        found = with_shortcuts([*convolutions], shortcuts, x)
    return float((found - wanted).norm() / wanted.norm())


def test_shortcuts_start_small_and_the_last_one_exact() -> None:
    convolutions, shortcuts = striding()
    last = convolutions[4].get_parameter("weight").detach().clone()
    assert difference(convolutions, shortcuts, torch.rand(1, 1, 3, 8, 8)) < 0.05
    for shortcut in list(shortcuts)[:2]:
        weight = shortcut.get_parameter("weight")
        assert 0 < float(weight.detach().std()) * weight.shape[1] ** 0.5 < 0.02
        assert not shortcut.get_parameter("bias").any()
    assert torch.equal(shortcuts[2].get_parameter("weight").flatten(), last[:, :, 1, 1, 1].flatten())
    assert not convolutions[4].get_parameter("weight")[:, :, 1, 1, 1].any()


def test_shortcut_takes_all_of_a_convolution_like_itself() -> None:
    convolutions = nn.Sequential(nn.Conv3d(3, 4, 1), nn.LeakyReLU(inplace=True))
    shortcuts = nn.ModuleList([nn.Conv3d(3, 4, 1)])
    weight, bias = (p.detach().clone() for p in convolutions.parameters())
    assert difference(convolutions, shortcuts, torch.randn(1, 3, 2, 4, 4)) < 0.05
    assert torch.equal(shortcuts[0].get_parameter("weight"), weight)
    assert torch.equal(shortcuts[0].get_parameter("bias"), bias)


@pytest.mark.parametrize("rest", [0.02, -0.02])
def test_strong_weights_move_to_the_shortcut(rest: float) -> None:
    """A wire through the network: its strong taps go, and the function stays, whatever the sign of what is left."""
    convolutions, shortcuts = striding()
    with torch.no_grad():
        for conv in (convolutions[0], convolutions[2]):
            weight = conv.get_parameter("weight")
            weight[0] = rest if conv is convolutions[0] else 0.0
            weight[0, 0, 1, 1, 1] = 1.0
            conv.get_parameter("bias")[0] = 0.0
        for weak in (2, 3):  # the rows that may be given up
            convolutions[0].get_parameter("weight")[weak] *= 1e-4
            convolutions[0].get_parameter("bias")[weak] = 0.0
    assert difference(convolutions, shortcuts, torch.rand(1, 1, 3, 8, 8)) < 0.1
    assert float(shortcuts[0].get_parameter("weight")[0].detach()) == 1.0
    row = convolutions[0].get_parameter("weight")[0]
    assert not row[0, 1, 1, 1] and bool(row.any()) == (rest > 0)


def test_pixel_shuffle() -> None:
    x = torch.rand(2, 8, 3, 4, 6)
    frames = x.transpose(1, 2).flatten(0, 1)
    wanted = F.pixel_shuffle(frames, 2).unflatten(0, (2, 3)).transpose(1, 2)
    assert torch.equal(pixel_shuffle(x), wanted)
    assert torch.equal(F.pixel_unshuffle(frames, 2).unflatten(0, (2, 3)).transpose(1, 2), pixel_unshuffle(x))
    assert torch.equal(pixel_unshuffle(pixel_shuffle(x)), x)
