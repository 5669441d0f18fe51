"""The native engine: every layer computes what the reference computes, and a network what fake quantization does."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import bitlens
from bitlens.data import benchmarks
from bitlens.engine import native, plan
from bitlens.engine.lower import IntegerLayer, lower
from bitlens.engine.native import Engine, missing
from bitlens.engine.reference import accumulate, values
from bitlens.methods import quantize, recipe_of
from bitlens.networks.efficientsci import EfficientSCI, TemporalAttention
from bitlens.networks.parts import HeadShift
from bitlens.recipe import Bits, Recipe, Rule

CASES: dict[str, tuple[dict[str, Any], Recipe]] = {
    "8 bits, four groups, colour": (dict(group_num=4, color_ch=3), recipe_of("direct", 8)),
    "4 bits with shift and shortcuts": (dict(shift=True, shortcuts=True), recipe_of("qsci", 4)),
    "3 bits with shortcuts in FEM": (dict(shift=True, shortcuts="fem"), recipe_of("qsci", 3)),
    "2 bits with shift and shortcuts": (dict(shift=True, shortcuts=True), recipe_of("qsci", 2)),
    "symmetric activations": ({}, Recipe("s", (Rule("*", Bits(zero_point="none")),))),
}


def capture(frames: int = 4, height: int = 16, width: int = 16, batch: int = 1) -> tuple[Tensor, Tensor]:
    mask = (torch.rand(1, frames, height, width) < 0.5).float()
    return (mask * torch.rand(batch, frames, height, width)).sum(1), mask


def network_of(name: str) -> EfficientSCI:
    """One of the cases, quantized, with ranges that are found fast."""
    config, recipe = CASES[name]
    quick = replace(recipe, weight_range="lsq", activation_range="percentile")
    low, _ = quantize(EfficientSCI(8, 1, **{"group_num": 2, **config}).eval(), quick, [capture()])
    assert isinstance(low, EfficientSCI)
    return low


def channels_first(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.copy()).movedim(-1, 0)[None]


def layer_values(engine: Engine, name: str, codes: plan.Part, slope: float, block: np.ndarray) -> Tensor:
    """What the reference computes of the codes that a layer read."""
    layer = engine.integers[name]
    assert isinstance(layer, IntegerLayer)
    volume = replace(layer, weight=layer.weight.reshape(*layer.weight.shape, *[1] * (5 - layer.weight.ndim)))
    if isinstance(layer.geometry, torch.nn.Linear):
        volume = replace(volume, geometry=torch.nn.Conv3d(layer.weight.shape[1], len(layer.weight), 1))
    out = values(volume, accumulate(volume, channels_first(codes.view(block)).int() + layer.input.qmin))
    return F.leaky_relu(out, slope) if slope != 1 else out


def check_layer(
    engine: Engine, step: tuple[str, plan.Part, plan.Epilogue], block: np.ndarray, added: list[Tensor]
) -> tuple[int, int]:
    """Compare what a layer's call wrote with the reference, from the codes it read; (codes off, all codes).

    `added` are the sums' other terms as they were before.
    """
    name, codes, wanted = step
    out = layer_values(engine, name, codes, wanted.slope, block)
    if side := wanted.side:
        out = out + layer_values(engine, side.name, side.codes, side.slope, block)
    for term in added:
        out = out + term
    if wanted.values is not None:
        torch.testing.assert_close(channels_first(wanted.values.view(block)), out, rtol=1e-5, atol=1e-5)
    off = total = 0
    for grid in wanted.grids:
        found = channels_first(grid.codes.view(block)).int() + grid.operand.qmin
        part = out[:, grid.begin : grid.begin + found.shape[1]]
        step_size, zero = (
            torch.as_tensor(x).expand(found.shape[1]).reshape(1, -1, 1, 1, 1) for x in plan.per_channel(grid)
        )
        exact = replace(grid.operand, scale=step_size.float(), zero_point=zero.float()).codes(part)
        off, total = off + int((found != exact).sum()), total + found.numel()
    return off, total


@pytest.mark.kernels
@pytest.mark.parametrize("name", CASES)
def test_every_layer_computes_what_the_reference_computes(name: str) -> None:
    network, data = network_of(name), capture()
    engine = Engine(network, threads=1)
    video = engine(*data)
    made, source, _ = engine.plan(4, 16, 16)
    source.view(made.block)[:] = bitlens.networks.efficientsci.initial_estimate(*data)[0, 0, ..., None].numpy()
    off = total = 0
    for index, call in enumerate(made.calls):
        if index not in made.layers:
            call()
            continue
        added = [channels_first(part.view(made.block)) for part in made.layers[index][2].add]
        call()
        wrong, count = check_layer(engine, made.layers[index], made.block, added)
        assert wrong <= max(1, count / 500), made.layers[index][0]
        off, total = off + wrong, total + count
    assert off < total / 1000
    with torch.no_grad():
        wanted = network(*data)
    assert video.shape == wanted.shape
    assert 10 * torch.log10(wanted.square().mean() / (video - wanted).square().mean()) > 10  # one tie can change all


@pytest.mark.kernels
def test_methods_follow_the_bits() -> None:
    for name, possible in {
        "8 bits, four groups, colour": {"direct"},
        "4 bits with shift and shortcuts": {"direct", "winograd2", "winograd3"},  # of 3-bit weights, should all be such
    }.items():
        engine = Engine(network_of(name), threads=1)
        engine(*capture())
        assert set(engine.methods.values()) <= possible
        assert set(engine.methods) == {k for k, v in engine.integers.items() if isinstance(v, IntegerLayer)}


@pytest.mark.kernels
def test_the_fastest_method_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"direct": 3.0, "winograd2": 1.0, "winograd3": 2.0}
    monkeypatch.setattr(native, "seconds", lambda convolution, codes: times[convolution.method])
    engine = Engine(network_of("4 bits with shift and shortcuts"), threads=1, check=False)
    engine(*capture())
    assert engine.methods["resdnet_list.0.cformer_list.0.ffn.0"] == "winograd2"
    assert "winograd3" not in engine.methods.values()  # wherever that is exact, winograd2 is


def test_shifts_of_q_and_k_become_biases_of_qkv() -> None:
    network = network_of("4 bits with shift and shortcuts")
    name, module = next((n, m) for n, m in network.named_modules() if isinstance(m, TemporalAttention))
    assert isinstance(module.moveq, HeadShift) and isinstance(module.movek, HeadShift)
    torch.nn.init.normal_(module.moveq.bias)
    torch.nn.init.normal_(module.movek.bias)
    layer = native.shifted(network, lower(network).layers)[f"{name}.qkv"]
    assert isinstance(layer, IntegerLayer)
    nothing = torch.zeros(1, module.heads, 1, len(layer.weight) // 3 // module.heads, 1)
    with torch.no_grad():
        wanted = [move(nothing).flatten() for move in (module.moveq, module.movek, torch.nn.Identity())]
    assert layer.bias is not None and torch.equal(layer.bias, torch.cat(wanted))


@pytest.mark.kernels
def test_it_is_called_like_the_network() -> None:
    network = network_of("8 bits, four groups, colour")
    engine = Engine(network, threads=1)
    measurement, mask = capture(3, 15, 13, batch=2)
    video = engine(measurement, mask)
    assert video.shape == network(measurement, mask).shape and torch.equal(video, engine(measurement, mask))
    array = engine(measurement.numpy(), mask.numpy())
    assert isinstance(array, np.ndarray) and np.array_equal(array, video.numpy())
    half = Engine(network, threads=1, precision="bf16")(measurement, mask)
    assert (half - video).square().mean() < 0.05 * video.square().mean()


@pytest.mark.kernels
def test_arrays_that_are_in_use_together_do_not_overlap() -> None:
    engine = Engine(network_of("4 bits with shift and shortcuts"), threads=1)
    made, _, _ = engine.plan(2, 8, 8)
    for index in range(len(made.steps)):
        alive = sorted((m for m in made.memories if min(m.uses) <= index <= max(m.uses)), key=lambda m: m.offset)
        assert alive[0].offset >= made.workspace
        assert all(a.offset + a.bytes <= b.offset for a, b in pairwise(alive))
    assert made.block.nbytes - made.workspace < sum(m.bytes for m in made.memories) / 2


@pytest.mark.kernels
def test_what_it_cannot_run_is_refused() -> None:
    with pytest.raises(TypeError, match="not direct"):
        Engine(EfficientSCI(8, 1, 2))
    with pytest.raises(TypeError, match="network Conv3d came; wanted EfficientSCI without Q-ViT's"):
        Engine(torch.nn.Conv3d(1, 1, 1))
    network = network_of("2 bits with shift and shortcuts")
    with pytest.raises(ValueError, match="precision"):
        Engine(network, precision="f16")
    with pytest.raises(ValueError, match="threads"):
        Engine(network, threads=0)


def test_without_the_package_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of("8 bits, four groups, colour")

    def absent() -> None:
        raise ImportError("No module named 'bitlens_kernels'")

    monkeypatch.setattr(plan, "kernels", absent)
    assert "not built" in (missing(network) or "")
    with pytest.raises(TypeError, match="not built"):
        Engine(network)


@pytest.mark.slow
@pytest.mark.kernels
def test_a_scene_comes_out_as_from_fake_quantization(data_root) -> None:
    """Within 0.02 dB on the first measurement of a scene, with the 4-bit network that is shipped."""
    scene = benchmarks.six_scenes(data_root)[0]
    frames = torch.from_numpy(scene.video[:8]).float()
    mask = torch.from_numpy(benchmarks.benchmark_mask(data_root)).float()[None]
    network = bitlens.load("efficientsci-t-qsci-w4a4")
    measurement = (mask * frames).sum(1)

    def psnr(video: Tensor) -> float:
        return float((-10 * (video[0, 0] - frames).square().mean((1, 2)).log10()).mean())

    with torch.no_grad():
        wanted = psnr(network(measurement, mask))
    assert abs(psnr(Engine(network)(measurement, mask)) - wanted) < 0.02
