"""What each layer costs at each choice of bits on this machine, measured, and what an assignment of them will take.

    milliseconds(choices) = sum over layers of layer[choice of the layer] + what is between them

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

from bitlens.engine.native import BESIDE
from bitlens.engine.plan import Plan
from bitlens.engine.registry import native_module
from bitlens.files import atomic_path
from bitlens.quant.layers import Quantized, quantized_layers

FORMAT = "bitlens-costs-2"


@dataclass(frozen=True)
class CostModel:
    """Measured milliseconds of a network's layers, for one size of its inputs."""

    layers: dict[str, dict[str, float]]
    """By dotted name, then by choice, such as "w4a8": the layer with its output stage.

    A layer that is computed beside another one has a share of their time."""
    methods: dict[str, dict[str, str]]
    """The kernel's method, by the same."""
    between: dict[str, float]
    """What no layer's bits change: attention, the initial estimate, copies."""
    whole: dict[str, float]
    """Of the network with all layers at the same choice, measured as a whole."""
    size: tuple[int, ...]
    """Frames, height and width of a video, or height and width of an image."""
    threads: int
    level: str
    """Instruction set of the kernels."""
    about: dict[str, Any] = field(default_factory=dict)
    """The network, the machine, versions, date: for people and for comparisons."""

    @property
    def rest(self) -> float:
        """What is spent whatever is chosen: what the layers leave of the whole, the mean over the choices."""
        return fmean(whole - sum(row[choice] for row in self.layers.values()) for choice, whole in self.whole.items())

    def milliseconds(self, choices: Mapping[str, str]) -> float:
        """The predicted time of a network whose layers have these choices, by name; every layer has to be named.

        >>> costs = CostModel.read("costs.json")  # doctest: +SKIP
        >>> costs.milliseconds(dict.fromkeys(costs.layers, "w8a8") | {"up_conv": "w4a6"})  # doctest: +SKIP
        602.3

        Raises:
            ValueError: a layer is missing or unknown, or a choice was not measured.
        """
        if wrong := sorted(set(choices) ^ set(self.layers)):
            what = "without bits" if wrong[0] in self.layers else "that was not measured"
            raise ValueError(
                f"a layer {what}, {wrong[0]!r}, and {len(wrong) - 1} more; wanted the {len(self.layers)} layers of "
                "the cost file; measure this network"
            )
        total = self.rest
        for name, chosen in choices.items():
            if chosen not in self.layers[name]:
                known = ", ".join(self.layers[name])
                raise ValueError(f"{chosen} for layer {name!r}; measured were {known}; choose one of them")
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
            return cls(**content | {"size": tuple(content["size"])})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is no cost file ({error!r}); {wanted}") from error


def choices_of(network: nn.Module) -> dict[str, str]:
    """The choice of each layer of a fake-quantized network, by name.

    Attention products have none that cost anything: the kernels multiply their codes in float32 registers.
    """
    layers = quantized_layers(network).items()
    return {name: layer.bits.label for name, layer in layers if isinstance(layer, Quantized)}


def measure(
    networks: Mapping[str, nn.Module],
    *inputs: Tensor,
    threads: int = 1,
    rounds: int = 5,
    on_run: Callable[[], None] | None = None,
) -> CostModel:
    """The costs of networks of one shape, all of whose layers have the choice that the key says.

    Residual sums are float32 throughout, as they are wherever a layer has fewer than 8 bits. The networks take turns;
    the fastest of the rounds counts, as other processes only ever add to a time. One thread is timed by its processor
    time, for which they do not count at all; several by the clock.

    Args:
        networks: fake-quantized, one for each choice.
        inputs: what they are called with, a batch of one: (1, h, w) and (1, t, h, w), or (1, 3, h, w); their values do
            not matter.
        rounds: timed runs of each network, after one that is not timed.
        on_run: called after each run.

    Raises:
        TypeError: the kernels are not built, or cannot run a network.
        ValueError: no network, no rounds, threads below 1, or a network has other bits than its key.
    """
    if not networks or rounds < 1:
        raise ValueError(f"{len(networks)} networks, {rounds} rounds; wanted one or more of both; change them")
    for choice, network in networks.items():
        if other := sorted(name for name, own in choices_of(network).items() if own != choice):
            raise ValueError(f"layer {other[0]!r} is not {choice}; wanted all layers of equal bits; quantize it so")
    runs = {choice: Run(network, threads) for choice, network in networks.items()}
    for _ in range(rounds + 1):
        for run in runs.values():
            run(*inputs)
            if on_run is not None:
                on_run()
    layers: dict[str, dict[str, float]] = {}
    methods: dict[str, dict[str, str]] = {}
    between: dict[str, list[float]] = {}
    for choice, run in runs.items():
        for name, spent in run.layers().items():
            layers.setdefault(name, {})[choice] = spent
            methods.setdefault(name, {})[choice] = run.engine.methods.get(name, "")
        for name, spent in run.between().items():
            between.setdefault(name, []).append(spent)
    first = next(iter(runs.values())).engine
    return CostModel(
        layers,
        methods,
        {name: fmean(each) for name, each in between.items()},
        {choice: min(run.whole[1:]) for choice, run in runs.items()},
        tuple(inputs[-1].shape[-3 if len(inputs) == 2 else -2 :]),
        threads,
        first.level,
    )


class Run:
    """A network on the native kernels, each of whose calls is timed, in milliseconds."""

    def __init__(self, network: nn.Module, threads: int):
        module = native_module(network)
        self.engine = module.Engine(network, precision="f32", threads=threads)
        if (reason := untimed(self.engine)) is not None:
            raise TypeError(f"{reason}; choose another network, or budgets that are no milliseconds")
        self.clock = time.thread_time if threads == 1 else time.perf_counter
        self.whole: list[float] = []
        self.steps: list[list[float]] = []
        """Of each call of the plan, run by run."""
        self.plan: Plan | None = None
        self.names: dict[int, list[str]] = {}
        """The layers of each call that is one, or two at once."""

    def __call__(self, *inputs: Tensor) -> None:
        """One run; the first prepares everything, and is not timed call by call."""
        start = self.clock()
        self.engine(*inputs)
        self.whole.append(1e3 * (self.clock() - start))
        if self.plan is None:
            planned: Any
            [planned] = self.engine.plans.values()
            own = isinstance(planned, tuple)  # a graph of its own, not read off the network's code
            plan: Plan = planned[0] if own else planned.plan
            self.plan = plan
            if own:
                for index, (name, _, epilogue) in plan.layers.items():
                    self.names[index] = [name, *([epilogue.side.name] if epilogue.side else [])]
            else:
                self.names = {index: [layer.name] for index, layer in planned.layers.items()}
            self.steps = [[] for _ in plan.calls]
            plan.calls = [self.timed(*pair) for pair in zip(plan.calls, self.steps, strict=True)]

    def layers(self) -> dict[str, float]:
        """The fastest time of each layer, all its calls; two that one call computes share it by their weights."""
        found: dict[str, float] = {}
        for index, names in self.names.items():
            weights = {one: self.engine.integers[one].weight.numel() for one in names}
            for one, count in weights.items():
                found[one] = found.get(one, 0.0) + min(self.steps[index]) * count / sum(weights.values())
        return found

    def between(self) -> dict[str, float]:
        """The fastest times of all else, together by what it is."""
        assert self.plan is not None
        outside = [whole - sum(spent) for whole, *spent in zip(self.whole[1:], *self.steps, strict=True)]
        found = {BESIDE: min(outside)}
        for index, (what, spent) in enumerate(zip(self.plan.kinds, self.steps, strict=True)):
            if index not in self.names:
                found[what] = found.get(what, 0.0) + min(spent)
        return found

    def timed(self, call: Callable[[], None], spent: list[float]) -> Callable[[], None]:
        """The call, which appends its milliseconds to a list."""

        def run() -> None:
            start = self.clock()
            call()
            spent.append(1e3 * (self.clock() - start))

        return run


def untimed(engine: Any) -> str | None:
    """Why the layers of a network that an engine runs cannot be timed one by one; None: they can."""
    layers = [name for name, layer in quantized_layers(engine.network).items() if isinstance(layer, Quantized)]
    alone = getattr(engine, "exact", None if hasattr(engine, "blocks") else layers)
    if alone is None:
        return f"{type(engine.network).__name__} runs in kernels of whole blocks"
    if beside := sorted(set(layers) - set(alone)):
        return f"layer {beside[0]} of {type(engine.network).__name__} is not on the native kernels"
    return None
