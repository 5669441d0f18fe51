"""SwinIR on a CPU through the project's own kernels: each Swin block in one pass over its windows, in integers.

Convolutions that the network quantizes run in integers as well; those that it leaves float, as 2DQuant does with all of
them, run through torch, in float32 or bfloat16 (docs/kernels.md).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitlens.engine.lower import IntegerLayer, IntegerProduct, Operand, Outcome, lower
from bitlens.engine.native import LEAKY, Packed
from bitlens.engine.plan import Epilogue, Grid, Part, Plan, kernels
from bitlens.engine.refusals import unfit
from bitlens.engine.registry import own_graph
from bitlens.engine.selfcheck import check_layers, refuse_unless_equal
from bitlens.networks.swinir import Block
from bitlens.networks.windows import mirror_pad

Array = TypeVar("Array", Tensor, np.ndarray)

INSIDE = ("attn.qkv", "attn.proj", "attn.scores", "attn.mix", "mlp.fc1", "mlp.fc2")
"""The layers of a block."""

NORMALIZED = ("attn.qkv", "mlp.fc1")
"""Those that read a normalization, which takes the factors of balanced channels."""


def missing(network: nn.Module) -> str | None:
    """Why the kernels cannot run a network; None: they can."""
    return unfit(network, own_graph(network).module == "swin", "SwinIR", may_be)


def may_be(outcome: Outcome) -> bool:
    """Whether a layer that is not direct may be so: float outside of blocks, balanced after a normalization."""
    inside = outcome.name.endswith(INSIDE)
    return outcome.name.endswith(NORMALIZED) if outcome.way == "balanced" else outcome.way == "float" and not inside


class Engine(Packed):
    """A low-bit SwinIR on the native kernels; called like the network.

    Args:
        network: fake-quantized, every layer of its blocks direct, or balanced after a normalization; it is not changed.
        precision: of the convolutions that are not quantized, "f32" or "bf16"; between blocks all is float32.
        threads: CPU threads; None: as many as this process may use.
        level: instruction set, one of `bitlens_kernels.levels()`; None: the best.
        check: compare a block and each kind of layer with their scalar references first.

    Raises:
        TypeError: `missing` names a reason why the kernels cannot run the network.
        ValueError: unknown precision, threads below 1, or a grid without a range.
        ComputesWrongly: a kernel differs from its scalar reference on this machine.

    >>> engine = Engine(network, threads=2)  # doctest: +SKIP
    >>> large = engine(image)  # doctest: +SKIP
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        precision: str = "f32",
        threads: int | None = None,
        level: str | None = None,
        check: bool = True,
    ):
        if (reason := missing(network)) is not None:
            raise TypeError(f"{reason}; choose another engine")
        super().__init__(as_volumes(lower(network).layers), precision, threads, level)
        self.network: Any = network
        self.blocks = {
            name: block_of(module, name, self.integers, self.level)
            for name, module in network.named_modules()
            if isinstance(module, Block)
        }
        self.plans: dict[tuple[int, int], tuple[Plan, Part, Part]] = {}
        if check and self.level != "scalar":
            self.check()

    def check(self) -> None:
        """Refuse kernels that differ from their scalar references: of the convolutions, and of a block of each shift.

        Raises:
            ComputesWrongly: one does.
        """
        check_layers({n: x for n, x in self.integers.items() if not n.endswith(INSIDE)}, self.level, np.float32)
        window, dim = self.network.window, self.network.config["dim"]
        values = np.random.default_rng(0).normal(size=(1, window, 2 * window, dim)).astype(np.float32)
        modules = {
            module.offset: (name, module) for name, module in self.network.named_modules() if isinstance(module, Block)
        }
        for name, module in modules.values():
            twin, results = block_of(module, name, self.integers, "scalar"), []
            for block in (self.blocks[name], twin):
                results.append([np.empty_like(values)])
                block.bind(values, results[-1][0], shift=module.offset)()
            refuse_unless_equal(name, self.level, *results)

    @torch.no_grad()
    def __call__(self, image: Array) -> Array:
        """The image (b, 3, scale h, scale w), float32, not clipped, of image (b, 3, h, w) in [0, 1].

        An array of numpy gives an array, a tensor a tensor. The first call for a size of image plans it.
        """
        low = torch.as_tensor(image).float()
        h, w = (self.network.scale * n for n in low.shape[2:])
        padded = mirror_pad(low, self.network.window, edge=False) - self.network.mean
        plan, source, result = self.plan(padded.shape[2], padded.shape[3])
        large = []
        with torch_threads(self.threads):
            for one in padded:
                source.view(plan.block)[0] = one.permute(1, 2, 0).numpy()
                plan.run()
                large.append(torch.from_numpy(result.view(plan.block)[0, :h, :w].copy()).permute(2, 0, 1))
        out = torch.stack(large) + self.network.mean
        return out.numpy() if isinstance(image, np.ndarray) else out  # type: ignore[return-value]

    def plan(self, height: int, width: int) -> tuple[Plan, Part, Part]:
        """The calls for one size of padded image; its image (1, h, w, 3) and the large one, both minus the mean."""
        if (height, width) not in self.plans:
            plan = Plan(self)
            source, result = Network(plan, self).build(height, width)
            plan.place()
            self.plans[height, width] = plan, source, result
        return self.plans[height, width]


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use so many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def as_volumes(layers: dict[str, IntegerLayer | IntegerProduct]) -> dict[str, IntegerLayer | IntegerProduct]:
    """The layers with convolutions of pictures as convolutions of one frame."""
    layers = dict(layers)
    for name, layer in layers.items():
        if isinstance(layer, IntegerLayer) and isinstance(layer.geometry, nn.Conv2d):
            flat, weight = layer.geometry, layer.weight.unsqueeze(2)  # o c 1 h w
            (h, w), (down, right), (top, left) = flat.kernel_size, flat.stride, map(int, flat.padding)
            channels = flat.in_channels, flat.out_channels
            geometry = nn.Conv3d(*channels, (1, h, w), stride=(1, down, right), padding=(0, top, left))
            layers[name] = replace(layer, geometry=geometry, weight=weight)
    return layers


class Network:
    """The steps of networks/swinir.py as calls of a plan; arrays are (1, h, w, c)."""

    def __init__(self, plan: Plan, engine: Engine):
        self.plan, self.engine, self.network, self.layers = plan, engine, engine.network, engine.integers

    def build(self, height: int, width: int) -> tuple[Part, Part]:
        """Append all calls for an image in whole windows; returns it and the large one."""
        size, dim = (1, height, width), self.network.config["dim"]
        image = self.plan.new(size, 3, np.float32)
        shallow = self.convolve("conv_first", image)
        x = self.normalize("patch_embed.norm", shallow)
        for i, group in enumerate(self.network.layers):
            x = self.group(f"layers.{i}", group, x)
        deep = self.convolve("conv_after_body", self.normalize("norm", x), add=shallow)
        assert deep.memory.shape == (*size, dim)
        return image, self.upsample(deep)

    def new_like(self, x: Part, channels: int | None = None) -> Part:
        """A new array of values of the height and width of another."""
        return self.plan.new(x.memory.shape[:3], channels or x.memory.shape[3], np.float32)

    def group(self, name: str, group: nn.Module, x: Part) -> Part:
        """A residual group: the blocks, one after the other on the same array, and a convolution with a skip."""
        y, source = self.new_like(x), x
        for i, block in enumerate(group.get_submodule("residual_group.blocks").children()):
            assert isinstance(block, Block)
            self.block(f"{name}.residual_group.blocks.{i}", block.offset, source, y)
            source = y
        return self.convolve(f"{name}.conv", y, add=x)

    def block(self, name: str, shift: int, source: Part, result: Part) -> None:
        """A Swin block."""
        packed, threads = self.engine.blocks[name], self.engine.threads
        self.plan.workspace = max(self.plan.workspace, packed.workspace(threads))

        def bind(block: np.ndarray) -> Callable[[], None]:
            options = dict(shift=shift, workspace=block[: self.plan.workspace], threads=threads)
            return packed.bind(source.view(block), result.view(block), **options)

        self.plan.step(bind, [source, result], "block")

    def normalize(self, name: str, x: Part) -> Part:
        """A LayerNorm over the channels of each pixel."""
        norm, result = self.network.get_submodule(name), self.new_like(x)
        assert isinstance(norm, nn.LayerNorm)
        shape, weight, bias = list(norm.normalized_shape), norm.weight.detach(), norm.bias.detach()

        def bind(block: np.ndarray) -> Callable[[], None]:
            values, out = (torch.from_numpy(part.view(block)) for part in (x, result))

            def call() -> None:
                out.copy_(F.layer_norm(values, shape, weight, bias, norm.eps))

            return call

        self.plan.step(bind, [x, result], "normalization")
        return result

    def convolve(self, name: str, x: Part, add: Part | None = None, slope: float = 1.0) -> Part:
        """A convolution, in integers where the network quantizes it; then LeakyReLU or a sum."""
        layer, added = self.layers.get(name), [add] if add else []
        if not isinstance(layer, IntegerLayer):
            return self.convolve_floats(name, x, added, slope)
        result, codes = self.new_like(x, len(layer.weight)), self.plan.new(x.memory.shape[:3], x.memory.shape[3])
        self.plan.finish(x, Epilogue(grids=[Grid(codes, layer.input)]))
        self.plan.convolve(name, codes, Epilogue(slope, add=added, values=result))
        return result

    def convolve_floats(self, name: str, x: Part, added: Sequence[Part], slope: float) -> Part:
        """A convolution that is not quantized, by torch."""
        layer: Any = self.network.get_submodule(name)
        kind = torch.bfloat16 if self.engine.precision == "bf16" else torch.float32
        weight = layer.weight.detach().to(kind, memory_format=torch.channels_last)
        bias, result = layer.bias.detach().to(kind), self.new_like(x, len(layer.weight))

        def bind(block: np.ndarray) -> Callable[[], None]:
            values, out, *rest = (
                torch.from_numpy(part.view(block)).permute(0, 3, 1, 2) for part in (x, result, *added)
            )  # 1 c h w, channels last

            def call() -> None:
                found = F.conv2d(values.to(kind), weight, bias, layer.stride, layer.padding)
                found = F.leaky_relu(found, slope) if slope != 1 else found
                torch.add(found, rest[0], out=out) if rest else out.copy_(found)

            return call

        self.plan.step(bind, [x, result, *added], "float layer")
        return result

    def shuffle(self, x: Part, factor: int) -> Part:
        """PixelShuffle: (1, h, w, c f f) to (1, f h, f w, c)."""
        _, h, w, channels = x.memory.shape
        c = channels // factor**2
        result = self.plan.new((1, factor * h, factor * w), c, np.float32)

        def bind(block: np.ndarray) -> Callable[[], None]:
            source = x.view(block).reshape(h, w, c, factor, factor).transpose(0, 3, 1, 4, 2)
            target = result.view(block).reshape(h, factor, w, factor, c)
            return lambda: np.copyto(target, source)

        self.plan.step(bind, [x, result], "shuffle")
        return result

    def upsample(self, x: Part) -> Part:
        """The stages of convolution and pixel shuffle, and in the classical network the convolutions around them."""
        classical = bool(self.network.config["features"])
        x = self.convolve("conv_before_upsample.0", x, slope=LEAKY) if classical else x
        for i, stage in enumerate(self.network.upsample):
            if isinstance(stage, nn.PixelShuffle):
                x = self.shuffle(x, stage.upscale_factor)
            else:
                x = self.convolve(f"upsample.{i}", x)
        return self.convolve("conv_last", x) if classical else x


def block_of(module: Block, name: str, integers: dict[str, IntegerLayer | IntegerProduct], level: str) -> Any:
    """The kernel of a Swin block."""
    swin = kernels("swin")
    attention, heads = module.attn, module.attn.heads

    def grid(operand: Operand, head: int = 0) -> Any:
        scale, zero = (numbers.flatten() for numbers in (operand.scale, operand.zero_point))
        at = head if scale.numel() > 1 else 0
        return swin.Grid(float(scale[at]), int(zero[at]) - operand.qmin, operand.qmax - operand.qmin)

    def grids(operand: Operand) -> list[Any]:
        return [grid(operand, head) for head in range(heads)]

    def linear(part: str) -> Any:
        layer = integers[f"{name}.{part}"]
        assert isinstance(layer, IntegerLayer)
        bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias
        return swin.Linear(grid(layer.input), layer.weight.numpy(), layer.scale.float().numpy(), bias.float().numpy())

    def norm(layer: nn.LayerNorm, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Factor and offset, times what the next layer's channels are balanced by."""
        following = integers[f"{name}.{part}"]
        assert isinstance(following, IntegerLayer)
        balance = torch.ones(()) if following.balance is None else following.balance
        return (layer.weight.detach() * balance).numpy(), (layer.bias.detach() * balance).numpy()

    scores, mix = integers[f"{name}.attn.scores"], integers[f"{name}.attn.mix"]
    assert isinstance(scores, IntegerProduct) and isinstance(mix, IntegerProduct)
    position = attention.relative_position_bias_table.detach()[attention.relative_position_index]  # s s heads
    return swin.SwinBlock(
        swin.Swin(
            heads=heads,
            window=module.window,
            norm1=norm(module.norm1, "attn.qkv"),
            norm2=norm(module.norm2, "mlp.fc1"),
            qkv=linear("attn.qkv"),
            proj=linear("attn.proj"),
            fc1=linear("mlp.fc1"),
            fc2=linear("mlp.fc2"),
            q=grids(scores.left),
            k=grids(scores.right),
            attention=grids(mix.left),
            v=grids(mix.right),
            factor=attention.factor,
            position=position.permute(2, 0, 1).numpy(),
            epsilon=module.norm1.eps,
        ),
        level,
    )
