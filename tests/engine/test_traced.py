"""Networks that are read off their code, on the native kernels: layers exact, networks as simulated."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitlens.engine.checks import snr
from bitlens.engine.lower import IntegerLayer
from bitlens.engine.reference import accumulate, values
from bitlens.engine.traced import Engine, Program, missing
from bitlens.engine.traced_native import known
from bitlens.engine.views import Codes, Layer, View
from bitlens.methods import quantize
from bitlens.metrics import psnr_sci
from bitlens.networks.dun import DUN
from bitlens.networks.edsr import EDSR
from bitlens.networks.efficientsci import EfficientSCI
from bitlens.networks.imdn import IMDN
from bitlens.networks.pan import PAN
from bitlens.networks.smfanet import SMFANet
from bitlens.networks.stformer import STFormer
from bitlens.quant.layers import quantized_layers
from bitlens.recipe import Bits, Recipe, Rule

pytestmark = pytest.mark.kernels


def unfolding() -> DUN:
    torch.manual_seed(0)
    network = DUN(2, (8, 12, 16), (1, 1, 1), 2).eval()
    network.steps.data = torch.tensor([1.3, 0.7])
    for prior in network.priors:
        nn.init.normal_(prior.tail.weight, std=0.02)  # type: ignore[union-attr]
    return network


def capture(frames: int, height: int, width: int, batch: int = 1, masks: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = (torch.rand(masks, frames, height, width, generator=generator) < 0.5).float()
    return (mask * torch.rand(batch, frames, height, width, generator=generator)).sum(1), mask


def quantized(network: nn.Module, bits: int, *inputs: Tensor) -> nn.Module:
    rules = Rule("*.head", Bits(8, 8)), Rule("*.tail", Bits(8, 8)), Rule("*", Bits(bits, bits))
    recipe = Recipe("all", rules, weight_range="lsq", activation_range="percentile")
    return quantize(network, recipe, [inputs])[0]


@torch.no_grad()
def check_layers(engine: Engine, *inputs: Tensor) -> set[str]:
    """Compare what each layer wrote with the reference, from the codes that it read; the names of the layers."""
    engine(*inputs)
    program = engine.program(*(tuple(one.shape[1:]) for one in inputs))
    block, off, total = program.plan.block, 0, 0
    for view, one in zip(program.inputs, inputs, strict=True):
        program.tensor(block, view).copy_(one[0])

    def seen(op: Any, offset: int = 0) -> Tensor:
        return torch.from_numpy(program.volume(block, op, layer.volume, offset).copy()).movedim(-1, 0)[None]

    for index, call in enumerate(program.plan.calls):
        if index not in program.layers:
            call()
            continue
        layer: Layer = program.layers[index]
        integers = engine.integers[layer.name]
        assert isinstance(integers, IntegerLayer)
        if isinstance(integers.geometry, nn.Linear):
            volume = nn.Conv3d(integers.weight.shape[1], len(integers.weight), 1)
            integers = replace(integers, geometry=volume, weight=integers.weight[..., None, None, None])
        codes = program.tensor(block, layer.inputs[0]).clone().movedim(-1, 0)[None].int() + integers.input.qmin
        wanted = values(integers, accumulate(integers, codes))
        if layer.spread > 1:
            wanted = F.pixel_shuffle(wanted[0].movedim(0, 1), layer.spread).movedim(0, 1)[None]
        wanted = F.leaky_relu(wanted, layer.slope) if layer.slope != 1 else wanted
        for view in layer.inputs[1:]:
            wanted = wanted + seen(view.op, view.offset)
        call()
        users = [user for user, _ in program.users[layer]]
        if any(not isinstance(user, Codes) for user in users):
            torch.testing.assert_close(seen(layer), wanted, rtol=1e-5, atol=1e-5)
        for user in users:
            if isinstance(user, Codes) and user.operand is not None:
                wrong = seen(user).int() + user.operand.qmin != user.operand.codes(wanted)
                assert wrong.sum() <= max(1, wrong.numel() / 500), layer.name
                off, total = off + int(wrong.sum()), total + wrong.numel()
    assert off <= total / 1000
    return {layer.name for layer in program.layers.values()}


@pytest.mark.parametrize("bits", [8, 3])
def test_an_unfolding_network_computes_what_fake_quantization_does(bits: int) -> None:
    network, data = unfolding(), capture(5, 19, 21)
    low = quantized(network, bits, *capture(4, 24, 24))
    engine = Engine(low, threads=1)
    assert check_layers(engine, *data) == set(quantized_layers(low))
    with torch.no_grad():
        truth, simulated = network(*data), low(*data)
    truth = truth + 0.02 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(2))  # as if 34 dB away
    found = engine(*data)
    assert psnr_sci(found[0, 0], truth[0, 0]) == pytest.approx(psnr_sci(simulated[0, 0], truth[0, 0]), abs=0.02)
    assert snr(found, simulated) > 30
    measurement, mask = capture(1, 8, 16, 2, masks=2)  # another size is planned by the same engine
    with torch.no_grad():
        wanted = low(measurement, mask)
    array = engine(measurement.numpy(), mask.numpy())
    assert isinstance(array, np.ndarray) and array.dtype == np.float32
    assert snr(torch.from_numpy(array), wanted) > 30


OTHERS: dict[str, tuple[Callable[[], nn.Module], int, tuple[Tensor, ...]]] = {
    "EDSR": (lambda: EDSR(2, 16, 1), 8, capture(1, 13, 18)),
    "IMDN": (lambda: IMDN(3, 16, 1), 4, capture(1, 13, 18)),
    "PAN": (lambda: PAN(4, 8, 4, 1), 3, capture(1, 13, 18)),
    "SMFANet": (lambda: SMFANet(3, 8, 1), 8, capture(1, 13, 18)),
    "STFormer": (lambda: STFormer(8, 1, heads=2, frames=4, shift=True, shortcuts=True), 4, capture(3, 15, 17)),
    "EfficientSCI, normalized": (lambda: EfficientSCI(8, 1, group_num=2, normalize=True), 4, capture(3, 16, 16)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_network_computes_what_fake_quantization_does(name: str) -> None:
    torch.manual_seed(0)
    build, bits, data = OTHERS[name]
    network = build().eval()
    data = (data[0].expand(1, 3, -1, -1) * torch.rand(2, 3, 1, 1),) if hasattr(network, "scale") else data
    low = quantized(network, bits, *data)
    engine = Engine(low, threads=1)
    assert missing(low) is None
    exact, count = engine.integer_layers
    assert exact == len(check_layers(engine, *data)) and count >= exact > count / 2
    with torch.no_grad():
        assert snr(engine(*data), low(*data)) > 30


def test_what_follows_a_layer_is_part_of_it() -> None:
    low = quantized(unfolding(), 4, *capture(4, 24, 24))
    program = Program(Engine(low, threads=1, check=False), ((16, 24), (4, 16, 24)))
    kinds = Counter(program.plan.kinds)
    assert kinds["layer"] == len(quantized_layers(low)) and kinds["leaky"] == 0
    blocks = [layer for layer in program.layers.values() if layer.name.endswith((".last", ".tail"))]
    assert all(len(layer.inputs) == 2 for layer in blocks)  # the residual stream is added on the way
    fuse = next(layer for layer in program.layers.values() if layer.name.endswith(".fuse"))
    assert fuse.inputs[0].op.inputs[0].op.kind == "layer"  # which writes them itself
    assert kinds["rounded"] == len(low.priors)  # type: ignore[arg-type]
    ups = [layer for layer in program.layers.values() if ".up." in layer.name]
    assert len(ups) == 4 and all(layer.spread == 2 and len(layer.inputs) == 2 for layer in ups)
    where = [View(op, op.size, op.stride) for op in program.memories]
    assert len({memory.offset for memory in program.memories.values()}) < len(where)  # memory is used again


def test_shares_of_the_time() -> None:
    low, data = quantized(unfolding(), 8, *capture(4, 24, 24)), capture(4, 16, 16)
    shares = Engine(low, threads=1, check=False).shares(*data)
    assert sum(shares.values()) == pytest.approx(1) and {"layer", "grids", "denoising"} <= set(shares)


def test_refusals() -> None:
    with pytest.raises(TypeError, match="nothing of DUN is quantized; wanted a low-bit network; choose another engine"):
        Engine(unfolding())
    low = quantized(unfolding(), 4, *capture(4, 24, 24))
    with pytest.raises(ValueError, match="precision 'bf16'; wanted f32"):
        Engine(low, precision="bf16")

    class Sorts(DUN):
        def forward(self, *data: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(*data).sort(dim=1)[0]  # type: ignore[union-attr]

    assert missing(low) is None
    low.__class__ = Sorts
    known.discard(low)
    assert missing(low) == "the network uses sort; wanted operations that a graph here has"
