"""SwinIR on the native kernels: every grid's codes are fake quantization's, and so are the images."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitlens.data.images import read_image
from bitlens.data.levels import to_float
from bitlens.engine import plan, swin
from bitlens.engine.lower import lower
from bitlens.engine.swin import Engine, block_of, missing
from bitlens.methods import quantize, recipe_of
from bitlens.networks.efficientsci import EfficientSCI
from bitlens.networks.swinir import Block, SwinIR
from bitlens.networks.windows import separation, to_windows
from bitlens.recipe import Bits, Recipe, Rule

SMALL: dict[str, Any] = dict(dim=18, units=2, depth=2, heads=3, window=4, hidden=26)


@torch.no_grad()
def enlarger(scale: int, **config: int) -> SwinIR:
    """A network that repeats pixels, with an untrained network's texture on them: its images can be judged by PSNR."""
    network: Any = SwinIR(scale, **{**SMALL, **config}).eval()
    for name, parameter in network.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter += 0.2 * torch.randn_like(parameter)
    network.conv_after_body.weight *= 0.1
    network.get_parameter("conv_after_body.bias").zero_()
    network.conv_first.weight[:3] = 0
    network.conv_first.weight[range(3), range(3), 1, 1] = 1.0
    network.conv_first.bias[:3] = 0
    stages: list[Any] = [layer for layer in network.upsample if isinstance(layer, nn.Conv2d)]
    before, after = ([network.conv_before_upsample[0]], [network.conv_last]) if config.get("features") else ([], [])
    for layer in (*before, *stages, *after):
        factor = network.upsample[1].upscale_factor ** 2 if layer in stages else 1
        layer.weight *= 0.1
        for c in range(3):
            layer.weight[c * factor : (c + 1) * factor] = 0
            layer.weight[c * factor : (c + 1) * factor, c, 1, 1] = 1.0
        layer.bias.zero_()
    for layer in before:  # what is negative must pass LeakyReLU
        layer.bias += 2.0
    for layer in after:
        layer.bias -= 2.0
    return network


def smooth(height: int, width: int, batch: int = 1) -> Tensor:
    return F.interpolate(torch.rand(batch, 3, 4, 4), (height, width), mode="bicubic").clamp(0, 1)


def quantized(network: SwinIR, recipe: Recipe | str, bits: int = 8) -> SwinIR:
    low, _ = quantize(network, recipe, [(smooth(16, 24),)], bits=bits)
    assert isinstance(low, SwinIR)
    return low


def psnr(image: Tensor, truth: Tensor) -> float:
    return float(-10 * (image - truth).square().mean().log10())


def heard(block: Block, x: Tensor, apart: Tensor) -> dict[str, Tensor]:
    """The codes of every grid of a block, as fake quantization has them, in the order of the kernel's trace."""
    inputs: dict[str, tuple[Tensor, ...]] = {}
    layers = dict(block.named_modules())

    def hear(name: str) -> Any:
        return layers[name].register_forward_pre_hook(lambda _, given: inputs.__setitem__(name, given))

    hooks = [hear(name) for name in swin.INSIDE]
    with torch.no_grad():
        block(x, apart)
    for hook in hooks:
        hook.remove()
    grids: Any = layers
    found = dict(
        normed1=grids["attn.qkv"].input_grid.codes(grids["attn.qkv"].balanced(inputs["attn.qkv"][0])),
        q=grids["attn.scores"].left_grid.codes(inputs["attn.scores"][0]).squeeze(4).transpose(1, 2).flatten(2),
        k=grids["attn.scores"].right_grid.codes(inputs["attn.scores"][1]).squeeze(4).permute(0, 3, 1, 2).flatten(2),
        v=grids["attn.mix"].right_grid.codes(inputs["attn.mix"][1]).squeeze(4).transpose(1, 2).flatten(2),
        attention=grids["attn.mix"].left_grid.codes(inputs["attn.mix"][0]).squeeze(4),
        mixed=grids["attn.proj"].input_grid.codes(inputs["attn.proj"][0]),
    )
    for name, layer in (("normed2", "mlp.fc1"), ("hidden", "mlp.fc2")):
        codes = grids[layer].input_grid.codes(grids[layer].balanced(inputs[layer][0])).float()
        found[name] = to_windows(codes.roll((-block.offset, -block.offset), (1, 2)), block.window)
    return found


@pytest.mark.kernels
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("window", [8, 5])
@pytest.mark.parametrize("method", ["minmax", "balanced"])
def test_codes_of_a_block_are_fake_quantization_s_but_for_ties(method: str, bits: int, window: int) -> None:
    """What the scalar reference computes, from the same values; codes that differ are near a tie or follow from one."""
    network = quantized(enlarger(2, window=window, dim=30), method, bits)
    integers, random = lower(network).layers, np.random.default_rng(0)
    off = total = 0
    for name in ("layers.0.residual_group.blocks.0", "layers.1.residual_group.blocks.1"):
        block = network.get_submodule(name)
        assert isinstance(block, Block)
        values = random.normal(size=(1, 2 * window, 3 * window, 30)).astype(np.float32)
        apart = separation(2 * window, 3 * window, (window, window), (block.offset, block.offset), torch.device("cpu"))
        packed = block_of(block, name, integers, "scalar")
        trace = np.zeros(packed.trace_shape(values.shape), np.uint8)
        result = np.zeros_like(values)
        packed.bind(values, result, shift=block.offset, trace=trace)()
        x = torch.from_numpy(values)
        for stage, wanted in heard(block, x, apart).items():
            found = torch.from_numpy(packed.split_trace(trace)[stage]).int()
            assert found.shape == wanted.shape, stage
            differs = found != wanted.int()
            assert bits < 8 or int((found - wanted).abs().max()) <= 2, stage
            off, total = off + int(differs.sum()), total + differs.numel()
        with torch.no_grad():
            error = torch.from_numpy(result) - block(x, apart)
        assert error.square().mean() < 1e-4 * (torch.from_numpy(result) - x).square().mean()
    assert off < total / 200, f"{off} of {total}"  # ties, and what follows from them


CASES: dict[str, tuple[int, dict[str, int], Recipe | str, int]] = {
    "light x2, body at 8 bits": (2, {}, "minmax", 8),
    "light x4, body at 4 bits": (4, {}, "minmax", 4),
    "light x3, everything at 8 bits": (3, {}, recipe_of("minmax", 8), 8),
    "classical x4, everything at 8 bits": (4, dict(features=8), recipe_of("minmax", 8), 8),
    "classical x3, body at 8 bits": (3, dict(features=8), "percentile", 8),
    "light x2, everything at 4 bits": (2, {}, recipe_of("minmax", 4), 4),
    "light x2, balanced at 4 bits": (2, {}, "balanced", 4),
}


@pytest.mark.kernels
@pytest.mark.parametrize("name", CASES)
def test_images_are_as_good_as_fake_quantization_s(name: str) -> None:
    scale, config, recipe, bits = CASES[name]
    network = quantized(enlarger(scale, **config), recipe, bits)
    truth = smooth(scale * 22, scale * 17, batch=2)  # no whole windows
    image = F.avg_pool2d(truth, scale)
    engine = Engine(network, threads=2)
    large = engine(image)
    with torch.no_grad():
        wanted = network(image)
    assert large.shape == truth.shape
    assert psnr(wanted, truth) > 15  # it is an image
    assert abs(psnr(large, truth) - psnr(wanted, truth)) < 0.02
    assert psnr(large, wanted) > psnr(wanted, truth) + 10


@pytest.mark.kernels
def test_convolutions_that_are_quantized_run_in_integers() -> None:
    float_convolutions = Engine(quantized(enlarger(2), "minmax"), threads=1)
    float_convolutions(smooth(8, 8))
    assert not float_convolutions.methods
    network = quantized(enlarger(2), recipe_of("minmax", 4), 4)
    engine = Engine(network, threads=1)
    engine(smooth(8, 8))
    convolutions = {"conv_first", "layers.0.conv", "layers.1.conv", "conv_after_body", "upsample.0"}
    assert set(engine.methods) == convolutions
    assert set(engine.methods.values()) <= {"direct", "winograd2"}


@pytest.mark.kernels
def test_it_is_called_like_the_network() -> None:
    engine = Engine(quantized(enlarger(2), "minmax"), threads=1)
    image = smooth(7, 9, batch=2)
    large = engine(image)
    assert torch.equal(large, engine(image)) and torch.equal(large[1:], engine(image[1:]))
    array = engine(image.numpy())
    assert isinstance(array, np.ndarray) and np.array_equal(array, large.numpy())
    assert torch.equal(large, Engine(engine.network, threads=2, level=plan.kernels().levels()[0])(image))
    half = Engine(engine.network, threads=1, precision="bf16")(image)
    assert psnr(half, large) > 35


@pytest.mark.kernels
def test_what_it_cannot_run_is_refused() -> None:
    with pytest.raises(TypeError, match="network EfficientSCI came; wanted SwinIR; choose"):
        Engine(EfficientSCI(8, 1, 2))
    network = enlarger(2)
    with pytest.raises(TypeError, match=r"blocks\.0\.attn\.qkv first, float\) are not direct"):
        Engine(network)
    convolutions = Recipe("c", (Rule("*.attn.mix"), *recipe_of("minmax", 8).rules), weight_range="minmax")
    with pytest.raises(TypeError, match=r"attn\.mix first, float\) are not direct"):
        Engine(quantized(network, replace(convolutions, activation_range="minmax")))
    with pytest.raises(TypeError, match="not direct"):
        Engine(quantized(network, recipe_of("minmax", 8, "official")))
    everywhere = Recipe("b", (Rule("*.proj", Bits(activation_granularity="balanced")), Rule("*", Bits())))
    with pytest.raises(TypeError, match=r"attn\.proj first, balanced\) are not direct"):
        Engine(quantized(network, everywhere))
    low = quantized(network, "minmax")
    with pytest.raises(ValueError, match="precision"):
        Engine(low, precision="f16")
    with pytest.raises(ValueError, match="threads"):
        Engine(low, threads=0)


def test_without_the_package_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise ImportError("No module named 'bitlens_kernels'")

    monkeypatch.setattr(plan, "kernels", absent)
    assert "not built" in (missing(quantized(enlarger(2), "minmax")) or "")


@pytest.mark.kernels
@pytest.mark.parametrize("bits", [8, 4])
def test_a_photograph_comes_out_as_from_fake_quantization(data_root, bits: int) -> None:
    """Within 0.02 dB, by a network of the published light size, untrained but for its way around."""
    photograph = to_float(read_image(sorted((data_root / "train" / "images" / "BSDS200").iterdir())[0]))
    truth = torch.from_numpy(photograph)[:64, :96].permute(2, 0, 1)[None].float()
    network = enlarger(4, dim=60, units=4, depth=6, heads=6, window=8, hidden=120)
    low, _ = quantize(network, "minmax", [(F.avg_pool2d(truth, 4),)], bits=bits)
    image = F.avg_pool2d(truth, 4)
    with torch.no_grad():
        wanted = psnr(low(image), truth)
    assert abs(psnr(Engine(low, threads=1)(image), truth) - wanted) < 0.02
