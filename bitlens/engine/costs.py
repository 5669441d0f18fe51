"""What each layer costs at each bit-width on this machine, measured, and what an assignment of bits will then take.

    milliseconds(bits) = sum over layers of layer[bits of the layer] + what is between them

Networks that differ in nothing but their bits run on the native kernels in turn. Every call of the plan is timed where
it stands, with the caches and the memory that it has in the network, so that the sum is the time of the whole.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor, nn

from bitlens.engine.native import BESIDE, Engine
from bitlens.engine.plan import Plan
from bitlens.files import atomic_path
from bitlens.quant.layers import Quantized, quantized_layers

FORMAT = "bitlens-costs-1"
OUTSIDE = "estimate and copies"


@dataclass(frozen=True)
class CostModel:
    """Measured milliseconds of a network's layers, for one size of video."""

    layers: dict[str, dict[int, float]]
    """By dotted name, then by bits of weights and activations: the layer with its output stage.

    A layer that is computed beside another one has a share of their time."""
    methods: dict[str, dict[int, str]]
    """The kernel's method, by the same."""
    between: dict[str, float]
    """What no layer's bits change: attention, the initial estimate, copies."""
    whole: dict[int, float]
    """Of the network with all layers at the same bits, measured as a whole."""
    size: tuple[int, int, int]
    """Frames, height and width of the video."""
    threads: int
    level: str
    """Instruction set of the kernels."""
    about: dict[str, Any] = field(default_factory=dict)
    """The network, the machine, versions, date: for people and for comparisons."""

    def milliseconds(self, bits: Mapping[str, int]) -> float:
        """The predicted time of a network whose layers have these bits, by name; every layer has to be named.

        >>> costs = CostModel.read("costs.json")  # doctest: +SKIP
        >>> costs.milliseconds(dict.fromkeys(costs.layers, 8) | {"up_conv": 4})  # doctest: +SKIP
        602.3

        Raises:
            ValueError: a layer is missing or unknown, or bits were not measured.
        """
        if wrong := sorted(set(bits) ^ set(self.layers)):
            what = "without bits" if wrong[0] in self.layers else "that was not measured"
            raise ValueError(
                f"a layer {what}, {wrong[0]!r}, and {len(wrong) - 1} more; wanted the {len(self.layers)} layers of "
                "the cost file; measure this network"
            )
        total = sum(self.between.values())
        for name, chosen in bits.items():
            if chosen not in self.layers[name]:
                known = ", ".join(map(str, self.layers[name]))
                raise ValueError(f"{chosen} bits for layer {name!r}; measured were {known}; choose one of them")
            total += self.layers[name][chosen]
        return total

    def write(self, path: str | os.PathLike[str]) -> None:
        """As JSON."""
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps({"format": FORMAT} | asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "CostModel":
        """What `write` wrote.

        Raises:
            FileNotFoundError: no such file. ValueError: another kind of file, or a damaged one.
        """
        wanted = "wanted a file of `bitlens costs`; measure it again"
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content.pop("format") != FORMAT:
                raise ValueError("of another format")
            for table in ("layers", "methods"):
                content[table] = {name: in_bits(row) for name, row in content[table].items()}
            content |= {"whole": in_bits(content["whole"]), "size": tuple(content["size"])}
            return cls(**content)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is no cost file ({error!r}); {wanted}") from error


def in_bits(row: Mapping[str, Any]) -> dict[int, Any]:
    """Keys of JSON as the numbers they were."""
    return {int(bits): value for bits, value in row.items()}


def bits_of(network: nn.Module) -> dict[str, int]:
    """The bits of each layer of a fake-quantized network, the larger of weights and activations, by name.

    Attention products have none that cost anything: the kernels multiply their codes in float32 registers.
    """
    layers = quantized_layers(network).items()
    return {
        name: max(layer.weight_bits, layer.activation_bits) for name, layer in layers if isinstance(layer, Quantized)
    }


def measure(
    networks: Mapping[int, nn.Module],
    measurement: Tensor,
    mask: Tensor,
    *,
    threads: int = 1,
    rounds: int = 5,
    on_run: Callable[[], None] | None = None,
) -> CostModel:
    """The costs of networks of one shape, all of whose layers have the bits that the key says.

    Residual sums are float32 throughout, as they are wherever a layer has fewer than 8 bits. The networks take turns;
    the fastest of the rounds counts, as other processes only ever add to a time. One thread is timed by its processor
    time, for which they do not count at all; several by the clock.

    Args:
        networks: fake-quantized, one for each bit-width.
        measurement, mask: (1, h, w) and (1, t, h, w); their values do not matter.
        rounds: timed runs of each network, after one that is not timed.
        on_run: called after each run.

    Raises:
        TypeError: the kernels are not built, or cannot run a network.
        ValueError: no network, no rounds, threads below 1, or a network has other bits than its key.
    """
    if not networks or rounds < 1:
        raise ValueError(f"{len(networks)} networks, {rounds} rounds; wanted one or more of both; change them")
    for bits, network in networks.items():
        if other := sorted(name for name, own in bits_of(network).items() if own != bits):
            raise ValueError(f"layer {other[0]!r} has not {bits} bits; wanted all layers of equal bits; quantize it so")
    runs = {bits: Run(network, threads) for bits, network in networks.items()}
    for _ in range(rounds + 1):
        for run in runs.values():
            run(measurement, mask)
            if on_run is not None:
                on_run()
    layers: dict[str, dict[int, float]] = {}
    methods: dict[str, dict[int, str]] = {}
    between: dict[str, list[float]] = {}
    for bits, run in runs.items():
        for name, spent in run.layers().items():
            layers.setdefault(name, {})[bits] = spent
            methods.setdefault(name, {})[bits] = run.engine.methods[name]
        for name, spent in run.between().items():
            between.setdefault(name, []).append(spent)
    first = next(iter(runs.values())).engine
    return CostModel(
        layers,
        methods,
        {name: fmean(each) for name, each in between.items()},
        {bits: min(run.whole[1:]) for bits, run in runs.items()},
        (mask.shape[1], mask.shape[2], mask.shape[3]),
        threads,
        first.level,
    )


class Run:
    """A network on the native kernels, each of whose calls is timed, in milliseconds."""

    def __init__(self, network: nn.Module, threads: int):
        self.engine = Engine(network, precision="f32", threads=threads)
        self.clock = time.thread_time if threads == 1 else time.perf_counter
        self.whole: list[float] = []
        self.steps: list[list[float]] = []
        """Of each call of the plan, run by run."""
        self.plan: Plan | None = None

    def __call__(self, measurement: Tensor, mask: Tensor) -> None:
        """One run; the first prepares everything, and is not timed call by call."""
        start = self.clock()
        self.engine(measurement, mask)
        self.whole.append(1e3 * (self.clock() - start))
        if self.plan is None:
            [(self.plan, _, _)] = self.engine.plans.values()
            self.steps = [[] for _ in self.plan.calls]
            self.plan.calls = [self.timed(*pair) for pair in zip(self.plan.calls, self.steps, strict=True)]

    def layers(self) -> dict[str, float]:
        """The fastest time of each layer; two that one call computes share it by their number of weights."""
        assert self.plan is not None
        found = {}
        for index, (name, _, epilogue) in self.plan.layers.items():
            together = [name, *([epilogue.side.name] if epilogue.side else [])]
            weights = {one: self.engine.integers[one].weight.numel() for one in together}  # type: ignore[union-attr]
            found |= {one: min(self.steps[index]) * count / sum(weights.values()) for one, count in weights.items()}
        return found

    def between(self) -> dict[str, float]:
        """The fastest times of all else, together by what it is."""
        assert self.plan is not None
        outside = [whole - sum(spent) for whole, *spent in zip(self.whole[1:], *self.steps, strict=True)]
        found = {BESIDE: min(outside)}
        for index, (what, spent) in enumerate(zip(self.plan.kinds, self.steps, strict=True)):
            if index not in self.plan.layers:
                found[what] = found.get(what, 0.0) + min(spent)
        return found

    def timed(self, call: Callable[[], None], spent: list[float]) -> Callable[[], None]:
        """The call, which appends its milliseconds to a list."""

        def run() -> None:
            start = self.clock()
            call()
            spent.append(1e3 * (self.clock() - start))

        return run
