"""EfficientSCI on a CPU through the project's own kernels: every convolution, product and grid in integers.

The `bitlens_kernels` package is built from `kernels/` where there is a C++ compiler; without it, `missing` says so and
the other engines do all. Each convolution runs by the method that is exact for its bits and was fastest on this machine
(docs/kernels.md).
"""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitlens.engine.lower import IntegerLayer, IntegerProduct, Operand, lower
from bitlens.engine.plan import Epilogue, Grid, Part, Plan, Side, kernels
from bitlens.engine.refusals import VIDEO_NETWORKS, check_settings, unfit
from bitlens.engine.registry import own_graph
from bitlens.engine.selfcheck import check_attention, check_layers, codes_and_geometry
from bitlens.networks.efficientsci import TemporalAttention, initial_estimate
from bitlens.networks.parts import HeadShift

Array = TypeVar("Array", Tensor, np.ndarray)

LEAKY = 0.01
MEASURED_SIZE = (4, 48, 48)
"""Methods are compared on inputs of at most this size."""
INTEGERS = ("layer", "attention", "block")
"""Kinds of calls that multiply codes."""
BESIDE = "estimate and copies"
"""What of a run is no call of its plan."""


def missing(network: nn.Module) -> str | None:
    """Why the kernels cannot run a network; None: they can."""
    known = own_graph(network).module == "native" and not getattr(network, "config", {}).get("normalize")
    return unfit(network, known, VIDEO_NETWORKS)


def timed(call: Callable[[], None], spent: list[float]) -> Callable[[], None]:
    """The call, which appends its seconds to a list."""

    def run() -> None:
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)

    return run


class Packed:
    """The convolutions of a network on the kernels, each packed once for the method that is exact and was fastest.

    Args:
        integers: of the layers, by name.
        precision: of what is not integers, "f32" or "bf16".
        threads: CPU threads; None: as many as this process may use.
        level: instruction set, one of `bitlens_kernels.levels()`; None: the best.

    Raises:
        ValueError: unknown precision, or threads below 1.
    """

    def __init__(
        self,
        integers: dict[str, IntegerLayer | IntegerProduct],
        precision: str,
        threads: int | None,
        level: str | None,
    ):
        check_settings(threads, precision, "bf16", "f32")
        self.integers, self.precision = integers, precision
        self.threads = threads or len(os.sched_getaffinity(0))
        self.level = level or kernels().best_level()
        self.methods: dict[str, str] = {}
        self.costs: dict[tuple, dict[str, float]] = {}
        """Measured seconds of each method, by weight shape, codes and size."""
        self.plans: dict[Any, Any] = {}
        self.ready: dict[str, tuple[Any, np.ndarray, np.ndarray]] = {}

    def convolution(
        self, name: str, shape: tuple[int, ...], method: str | None = None
    ) -> tuple[Any, np.ndarray, np.ndarray]:
        """The kernel of a layer for inputs of a shape, by a method or the fastest one, and its scale and bias.

        It is packed once.
        """
        if name not in self.ready:
            layer = self.integers[name]
            assert isinstance(layer, IntegerLayer)
            codes, geometry = codes_and_geometry(layer)
            self.methods[name] = method = method or self.fastest(codes, geometry, shape)
            bias = torch.zeros(len(codes)) if layer.bias is None else layer.bias
            convolution = kernels().Convolution(codes, method=method, level=self.level, **geometry)
            self.ready[name] = convolution, layer.scale.float().numpy(), bias.numpy()
        return self.ready[name]

    def fastest(self, codes: np.ndarray, geometry: dict[str, Any], shape: tuple[int, ...]) -> str:
        """The method that is exact for a layer and took the least time on a small input."""
        bk, ends = kernels(), (int(codes.min()), int(codes.max()))
        exact = [method for method in bk.METHODS if bk.fits(codes.shape, *ends, method=method, **geometry)]
        if len(exact) == 1:
            return exact[0]
        size = tuple(min(n, most) for n, most in zip(shape[:3], MEASURED_SIZE, strict=True))
        key = (codes.shape, geometry["stride"], geometry["padding"], geometry["largest"], size, *exact)
        if key not in self.costs:
            random, limit = np.random.default_rng(0), geometry["largest"] + 1
            x = random.integers(0, limit, (*size, codes.shape[-1])).astype(np.uint8)
            packed = {method: bk.Convolution(codes, method=method, level=self.level, **geometry) for method in exact}
            self.costs[key] = {method: seconds(convolution, x) for method, convolution in packed.items()}
        return min(self.costs[key], key=self.costs[key].__getitem__)

    def shares(self, *inputs: Any, rounds: int = 3) -> dict[str, float]:
        """Which share of one run's time each kind of call takes (`Plan.kinds`), and `BESIDE` what is no call of a plan.

        The fastest of some rounds counts. Those in `INTEGERS` multiply codes, and write the next ones.
        """
        run: Any = self
        self.plans.clear()
        run(*inputs)  # plans it
        (planned,) = self.plans.values()
        plan: Plan = planned[0] if isinstance(planned, tuple) else planned.plan
        calls, spent, beside = plan.calls, [[] for _ in plan.calls], []
        plan.calls = [timed(*pair) for pair in zip(calls, spent, strict=True)]
        for _ in range(rounds):
            start = time.perf_counter()
            run(*inputs)
            beside.append(time.perf_counter() - start - sum(each[-1] for each in spent))
        plan.calls = calls
        found = dict.fromkeys([*plan.kinds, BESIDE], 0.0) | {BESIDE: max(0.0, min(beside))}
        for kind, each in zip(plan.kinds, spent, strict=True):
            found[kind] += min(each)
        return {kind: one / sum(found.values()) for kind, one in sorted(found.items(), key=lambda item: -item[1])}


class Engine(Packed):
    """A low-bit network on the native kernels; called like the network.

    Args:
        network: an EfficientSCI, fake-quantized, all of whose layers are direct; it is not changed.
        precision: of residual sums in memory, "f32" or "bf16"; everything else is integers, or float32 in registers.
        threads: CPU threads; None: as many as this process may use.
        level: instruction set, one of `bitlens_kernels.levels()`; None: the best.
        check: compare each kind of layer with its scalar reference first.

    Raises:
        TypeError: `missing` names a reason why the kernels cannot run the network.
        ValueError: unknown precision, threads below 1, or a grid without a range.
        ComputesWrongly: a kernel differs from its scalar reference on this machine.

    >>> engine = Engine(bitlens.load("efficientsci-t-qsci-w4a4"), threads=2)  # doctest: +SKIP
    >>> video = engine(measurement, mask)  # doctest: +SKIP
    >>> engine.methods["resdnet_list.0.cformer_list.0.ffn.0"]  # doctest: +SKIP
    'winograd2'
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
        super().__init__(shifted(network, reformed(lower(network).layers)), precision, threads, level)
        self.network: Any = network
        self.kind = np.uint16 if precision == "bf16" else np.float32
        self.plans: dict[tuple[int, ...], tuple[Plan, Part, Part]] = {}
        if check and self.level != "scalar":
            self.check()

    def check(self) -> None:
        """Refuse kernels that differ from their scalar references, by one layer of each kind.

        Raises:
            ComputesWrongly: one does.
        """
        check_layers(self.integers, self.level, self.kind)
        name, module = next((n, m) for n, m in self.network.named_modules() if isinstance(m, TemporalAttention))
        scores, mix = self.integers[f"{name}.scores"], self.integers[f"{name}.mix"]
        assert isinstance(scores, IntegerProduct) and isinstance(mix, IntegerProduct)
        depth = len(self.integers[f"{name}.qkv"].weight) // 3 // module.heads  # type: ignore[union-attr]
        check_attention(name, attention_constants(scores, mix, module.heads, module.scale), depth, self.level)

    @torch.no_grad()
    def __call__(self, measurement: Array, mask: Array) -> Array:
        """The video (b, c, t, h, w), float32, of measurement (b, h, w) and mask (1 or b, t, h, w).

        Arrays of numpy give an array, tensors a tensor. The first call for a size of video plans it.
        """
        estimate = initial_estimate(torch.as_tensor(measurement).float(), torch.as_tensor(mask).float())  # b 1 t h w
        h, w = estimate.shape[-2:]
        if h % 2 or w % 2:
            estimate = F.pad(estimate.squeeze(1), (0, w % 2, 0, h % 2), mode="replicate").unsqueeze(1)
        plan, source, result = self.plan(*estimate.shape[2:])
        videos = []
        for one in estimate:
            source.view(plan.block)[:] = one[0].unsqueeze(-1).numpy()
            plan.run()
            videos.append(np.moveaxis(result.view(plan.block), -1, 0)[..., :h, :w].copy())  # c t h w
        video = np.stack(videos)
        return video if isinstance(measurement, np.ndarray) else torch.from_numpy(video)  # type: ignore[return-value]

    def plan(self, frames: int, height: int, width: int) -> tuple[Plan, Part, Part]:
        """The calls for one size of video, with even height and width; its estimate and its video."""
        size = (frames, height, width)
        if size not in self.plans:
            plan = Plan(self)
            source, result = Network(plan, self.network, self.integers, self.kind).build(size)
            plan.place()
            self.plans[size] = plan, source, result
        return self.plans[size]


def seconds(convolution: Any, codes: np.ndarray) -> float:
    """The least processor time of a few runs on one thread: other processes do not count."""
    shape = (*convolution.output_size(codes.shape[:3]), convolution.layer.outputs)
    call = convolution.bind(codes, kernels().Output(totals=np.empty(shape, np.int32)))
    times = []
    for _ in range(4):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return min(times[1:])


def reformed(layers: dict[str, IntegerLayer | IntegerProduct]) -> dict[str, IntegerLayer | IntegerProduct]:
    """The layers beside a pixel shuffle in the form that does it on the way.

    PixelUnshuffle(2) and a 1x1x1 convolution are a convolution of 1x2x2 with that stride; PixelShuffle(2) is a copy
    where the four pixels of a place come one after the other: up_conv's outputs are put into that order.
    """
    layers = dict(layers)
    if isinstance(side := layers.get("fem_shortcut.2"), IntegerLayer):
        weight = side.weight.reshape(len(side.weight), -1, 1, 2, 2)
        geometry = nn.Conv3d(weight.shape[1], len(weight), (1, 2, 2), stride=(1, 2, 2))
        layers["fem_shortcut.2"] = replace(side, geometry=geometry, weight=weight)
    if isinstance(up := layers["up_conv"], IntegerLayer):
        order = torch.arange(len(up.weight)).reshape(-1, 4).t().flatten()
        bias = None if up.bias is None else up.bias[order]
        layers["up_conv"] = replace(up, weight=up.weight[order], weight_scale=up.weight_scale[order], bias=bias)
    return layers


def shifted(
    network: nn.Module, layers: dict[str, IntegerLayer | IntegerProduct]
) -> dict[str, IntegerLayer | IntegerProduct]:
    """The layers with Q-SCI's shifts of q and k as biases of qkv, which has none of its own."""
    layers = dict(layers)
    for name, module in network.named_modules():
        if isinstance(module, TemporalAttention) and isinstance(module.moveq, HeadShift):
            qkv = layers[f"{name}.qkv"]
            assert isinstance(qkv, IntegerLayer) and isinstance(module.movek, HeadShift) and qkv.bias is None
            depth = len(qkv.weight) // 3 // module.heads
            shifts = [shift.bias.detach().flatten().repeat_interleave(depth) for shift in (module.moveq, module.movek)]
            bias = torch.cat([*shifts, torch.zeros_like(shifts[0])])
            layers[f"{name}.qkv"] = replace(qkv, bias=bias)
    return layers


class Network:
    """The steps of networks/efficientsci.py as calls of a plan.

    Each layer's sums go straight to what comes next: LeakyReLU, the residual sum, and the codes of every grid that
    the result enters. A concatenation is one array of codes that several layers write parts of.
    """

    def __init__(self, plan: Plan, network: Any, layers: dict[str, IntegerLayer | IntegerProduct], kind: Any):
        self.plan, self.network, self.layers, self.kind = plan, network, layers, kind

    def build(self, size: tuple[int, int, int]) -> tuple[Part, Part]:
        """Append all calls for a video (t, h, w); returns the estimate (t, h, w, 1) and the video (t, h, w, c)."""
        frames, height, width = size
        half = (frames, height // 2, width // 2)
        c = self.network.config["in_ch"]
        estimate = self.plan.new(size, 1, np.float32)
        values, inputs = self.extract_features(estimate, size, half, c)
        blocks = len(self.network.resdnet_list)
        for i in range(blocks):
            values, inputs = self.resdnet(f"resdnet_list.{i}", values, inputs, half, last=i == blocks - 1)
        return estimate, self.reconstruct(inputs["up_conv"], size, half, c)

    def grid(self, name: str, codes: Part, begin: int = 0) -> Grid:
        """The grid of the input of a layer, for channels `begin` on."""
        layer = self.layers[name]
        assert isinstance(layer, IntegerLayer)
        return Grid(codes, layer.input, begin)

    def inputs(self, names: list[str], size: tuple[int, int, int], channels: int) -> tuple[dict[str, Part], list[Grid]]:
        """New arrays of codes for the inputs of several layers that see the same values, and their grids."""
        parts = {name: self.plan.new(size, channels) for name in names}
        return parts, [self.grid(name, part) for name, part in parts.items()]

    def stage(self, main: str, side: str | None, inputs: dict[str, Part], epilogue: Epilogue) -> None:
        """A layer, and where there is one, its shortcut, which is added; both through LeakyReLU if wanted."""
        if side is not None:
            epilogue = replace(epilogue, side=Side(side, inputs[side], epilogue.slope))
        self.plan.convolve(main, inputs[main], epilogue)

    def extract_features(
        self, estimate: Part, size: tuple[int, int, int], half: tuple[int, int, int], c: int
    ) -> tuple[Part, dict[str, Part]]:
        """FEM: values (t, h/2, w/2, 4c) and the codes that the first block wants of them."""
        sides = [f"fem_shortcut.{i}" if self.network.config["shortcuts"] else None for i in range(3)]
        inputs, grids = self.inputs([name for name in ("fem.0", sides[0]) if name], size, 1)
        self.plan.finish(estimate, Epilogue(grids=grids))
        for i in range(2):
            following, grids = self.inputs([n for n in (f"fem.{2 * i + 2}", sides[i + 1]) if n], size, (i + 1) * c)
            self.stage(f"fem.{2 * i}", sides[i], inputs, Epilogue(LEAKY, grids=grids))
            inputs = following
        values = self.plan.new(half, 4 * c, self.kind)
        following, grids = self.block_inputs("resdnet_list.0", half)
        self.stage("fem.4", sides[2], inputs, Epilogue(LEAKY, values=values, grids=grids))
        return values, following

    def block_inputs(self, block: str, size: tuple[int, int, int]) -> tuple[dict[str, Part], list[Grid]]:
        """Codes of a block's input: of its first group for the first CFormer, of the others for the merging layers."""
        groups, width = (
            self.network.config["group_num"],
            4 * self.network.config["in_ch"] // self.network.config["group_num"],
        )
        first = f"{block}.cformer_list.0"
        parts, grids = self.inputs([f"{first}.scb.0", f"{first}.tsab.qkv"], size, width)
        for i in range(1, groups):
            name = f"{block}.dense_conv.{i - 1}.0"
            parts[name] = self.plan.new(size, (i + 1) * width)
            grids.append(self.grid(name, parts[name][i * width : (i + 1) * width], i * width))
        return parts, grids

    def resdnet(
        self, block: str, values: Part, inputs: dict[str, Part], size: tuple[int, int, int], last: bool
    ) -> tuple[Part, dict[str, Part]]:
        """A block with dense connections; the next block's values and codes, or those of up_conv.

        A residual sum takes the place of what it was added to, where nothing else reads that.
        """
        groups, channels = self.network.config["group_num"], 4 * self.network.config["in_ch"]
        width = channels // groups
        final = f"{block}.last_conv"
        inputs[final] = self.plan.new(size, channels)
        group = values[0:width]
        for i in range(groups):
            former = f"{block}.cformer_list.{i}"
            if i:
                parts, grids = self.inputs([f"{former}.scb.0", f"{former}.tsab.qkv"], size, width)
                inputs |= parts
                group = self.plan.new(size, width, self.kind)
                merge = f"{block}.dense_conv.{i - 1}.0"
                self.plan.convolve(merge, inputs[merge], Epilogue(LEAKY, values=group, grids=grids))
            after = [final, *(f"{block}.dense_conv.{j - 1}.0" for j in range(i + 1, groups))]
            ends = [self.grid(name, inputs[name][i * width : (i + 1) * width]) for name in after]
            both = group if i else self.plan.new(size, width, self.kind)  # the first group is still needed
            self.cformer(former, group, both, inputs, size, width, ends)
        if last:
            following, grids = self.inputs(["up_conv"], size, channels)
            self.plan.convolve(final, inputs[final], Epilogue(add=[values], grids=grids))
            return values, following
        following, grids = self.block_inputs(f"resdnet_list.{int(block.split('.')[1]) + 1}", size)
        self.plan.convolve(final, inputs[final], Epilogue(add=[values], values=values, grids=grids))
        return values, following

    def cformer(
        self,
        name: str,
        x: Part,
        both: Part,
        inputs: dict[str, Part],
        size: tuple[int, int, int],
        width: int,
        ends: list[Grid],
    ) -> None:
        """Space branch + time branch + x in `both`, then a feed-forward network on it, whose result goes to `ends`."""
        time_branch = self.attention(f"{name}.tsab", inputs[f"{name}.tsab.qkv"], size, width)
        hidden, grids = self.inputs([f"{name}.scb.2"], size, width)
        self.plan.convolve(f"{name}.scb.0", inputs[f"{name}.scb.0"], Epilogue(LEAKY, grids=grids))
        entering, grids = self.inputs([f"{name}.ffn.0"], size, width)
        epilogue = Epilogue(side=time_branch, add=[x], values=both, grids=grids)
        self.plan.convolve(f"{name}.scb.2", hidden[f"{name}.scb.2"], epilogue)
        hidden, grids = self.inputs([f"{name}.ffn.2"], size, width)
        self.plan.convolve(f"{name}.ffn.0", entering[f"{name}.ffn.0"], Epilogue(LEAKY, grids=grids))
        self.plan.convolve(f"{name}.ffn.2", hidden[f"{name}.ffn.2"], Epilogue(add=[both], grids=ends))

    def attention(self, name: str, inputs: Part, size: tuple[int, int, int], width: int) -> Side:
        """Temporal attention; its projection is what is added."""
        module = self.network.get_submodule(name)
        scores, mix = self.layers[f"{name}.scores"], self.layers[f"{name}.mix"]
        assert isinstance(module, TemporalAttention)
        assert isinstance(scores, IntegerProduct) and isinstance(mix, IntegerProduct)
        heads, inner = module.heads, width // 2
        codes, mixed = self.plan.new(size, 3 * inner), self.plan.new(size, inner)
        operands = (scores.left, scores.right, mix.right)
        grids = [
            Grid(codes[i * inner : (i + 1) * inner], operand, i * inner, inner // heads)
            for i, operand in enumerate(operands)
        ]
        self.plan.convolve(f"{name}.qkv", inputs, Epilogue(grids=grids))
        constants = attention_constants(scores, mix, heads, module.scale)
        target = self.grid(f"{name}.proj", mixed)
        self.plan.attend(constants, codes, target)
        return Side(f"{name}.proj", mixed)

    def reconstruct(self, codes: Part, size: tuple[int, int, int], half: tuple[int, int, int], c: int) -> Part:
        """up_conv, PixelShuffle and VRM: the video (t, h, w, color_ch)."""
        sides = [f"vrm_shortcut.{i}" if self.network.config["shortcuts"] is True else None for i in range(3)]
        names = [name for name in ("vrm.0", sides[0]) if name]
        small, grids = self.inputs(names, half, 8 * c)
        self.plan.convolve("up_conv", codes, Epilogue(grids=grids))
        inputs, _ = self.inputs(names, size, 2 * c)
        for name in names:
            self.plan.shuffle(small[name], inputs[name])
        for i, channels in enumerate((2 * c, c)):
            following, grids = self.inputs([n for n in (f"vrm.{2 * i + 2}", sides[i + 1]) if n], size, channels)
            self.stage(f"vrm.{2 * i}", sides[i], inputs, Epilogue(LEAKY, grids=grids))
            inputs = following
        video = self.plan.new(size, self.network.config["color_ch"], np.float32)
        self.stage("vrm.4", sides[2], inputs, Epilogue(values=video))
        return video


def attention_constants(scores: IntegerProduct, mix: IntegerProduct, heads: int, scale: float) -> Any:
    """The constants of temporal attention, of each head, as the kernel wants them."""

    def each(numbers: Tensor) -> np.ndarray:
        return numbers.flatten().float().expand(heads).numpy()

    def zero(operand: Operand) -> np.ndarray:
        return each(operand.zero_point - operand.qmin)

    return kernels().Attention(
        heads=heads,
        zeros=np.stack([zero(operand) for operand in (scores.left, scores.right, mix.left, mix.right)]),
        score_unit=each(scores.left.scale * scores.right.scale * scale),
        weight_step=each(mix.left.scale),
        weight_low=mix.left.qmin,
        weight_high=mix.left.qmax,
        mixed_unit=each(mix.left.scale * mix.right.scale),
    )
