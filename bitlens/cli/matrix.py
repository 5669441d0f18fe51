"""`bitlens matrix`: every network on every engine at every number of bits: what it costs in dB, how fast it is."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import tyro

from bitlens.engine.registry import ENGINES

ENTERED = tuple(name for name in ENGINES if name not in ("torch", "reference"))
"""Engines that run integers, and are made to be fast."""
if TYPE_CHECKING:
    from torch import Tensor, nn

    Entered = str
else:
    Entered = Literal[ENTERED]

COLOUR = "efficientsci-t-colour"
"""Beside the families of the catalogue: a network that makes colours."""
CROP = 48
"""Height and width of what networks are calibrated on."""
EXACT = 200.0
"""dB of results that are the same."""


@dataclass(frozen=True)
class Matrix:
    """Run every network of the catalogue on every engine at 8, 4, 3 and 2 bits, beside its fastest float engine.

    Every layer of a network is quantized, by calibration alone. On an engine it is compared with its own fake
    quantization in torch, timed in turn with the float network on whichever engine is fastest in float32 (PyTorch as it
    comes, not compiled), and asked for the share of its time that is not in kernels which multiply integers.

    The file is written row by row, and the same command goes on where the last one stopped; what an engine refused is
    tried again. Close other programs first.

    Example:
        bitlens matrix results/matrix.json
        bitlens matrix a.json --networks stformer-s swinir-x2.safetensors --engines native --bits 8 4
    """

    json: tyro.conf.Positional[Path]
    """The file (.json)."""
    networks: tuple[str, ...] = ()
    """Float checkpoints, shipped names or paths, or families with a size (stformer-s, imdn, efficientsci-t-colour),
    which have random weights. Default: of each family what is shipped, else random weights; and one in colour."""
    engines: tuple[Entered, ...] = ENTERED
    """Engines for low bits."""
    bits: tuple[int, ...] = (8, 4, 3, 2)
    """Of weights and activations."""
    size: int = 96
    """Height and width in pixels of the measurement, and of the picture before it is enlarged."""
    frames: int = 8
    """Frames in the measurement."""
    threads: int = 2
    """Threads of every engine."""
    rounds: int = 5
    """Timed runs of each, in turn."""
    seed: int = 0
    """Of scenes, masks and random weights."""

    def run(self) -> None:
        import torch

        from bitlens.cli.shared import check_positive, check_seed
        from bitlens.inference.machine import keep_freed_memory

        for flag in ("size", "frames", "threads", "rounds"):
            check_positive(f"--{flag}", getattr(self, flag))
        check_seed(self.seed)
        if not self.bits or not all(1 <= bits <= 8 for bits in self.bits):
            raise ValueError(f"--bits {' '.join(map(str, self.bits))}; wanted whole numbers from 1 to 8; change them")
        names = self.networks or every_network()
        for name in names:  # what is unknown is refused before the work begins
            network_of(name, self.frames, self.seed)
        content = self.begun()
        keep_freed_memory()
        torch.set_num_threads(self.threads)
        for name in names:
            done = {(row["bits"], row["engine"]) for row in content["rows"]
                    if row["network"] == name and row["refused"] is None}  # fmt: skip
            left = [(bits, engine) for bits in self.bits for engine in self.engines if (bits, engine) not in done]
            for row in self.rows(name, left) if left else ():
                place = {key: row[key] for key in ("network", "bits", "engine")}.items()
                content["rows"] = [one for one in content["rows"] if not place <= one.items()] + [row]
                self.write(content)
                print(in_words(row), flush=True)
        print(f"{self.json}: {len(content['rows'])} rows")

    def begun(self) -> dict[str, Any]:
        """What the file holds already, or a start.

        Raises:
            ValueError: another kind of file, or measured with other settings.
        """
        from bitlens.bench import environment
        from bitlens.inference.machine import describe_run

        if self.json.suffix != ".json":
            raise ValueError(f"cannot write {self.json}; wanted a name that ends in .json; change it")
        settings = {name: getattr(self, name) for name in ("size", "frames", "threads", "rounds", "seed")}
        if not self.json.is_file():
            return {"settings": settings, "environment": environment(), "run": describe_run(), "rows": []}
        try:
            content = json.loads(self.json.read_text(encoding="utf-8"))
            found, _ = content["settings"], content["rows"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{self.json} is no file of `bitlens matrix` ({error!r}); wanted one to go on with; choose another name"
            ) from error
        if found != settings:
            other = ", ".join(f"{name} {value}" for name, value in found.items() if settings.get(name) != value)
            raise ValueError(f"{self.json} was measured with {other}; wanted these settings; choose another name")
        return content

    def write(self, content: dict[str, Any]) -> None:
        """The file as it is now."""
        from bitlens.files import atomic_path

        with atomic_path(self.json) as temporary:
            temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    def rows(self, name: str, places: Sequence[tuple[int, str]]) -> Iterator[dict[str, Any]]:
        """One network's rows, for pairs of bits and engine, one after the other."""
        import torch

        network, trained = network_of(name, self.frames, self.seed)
        inputs, quality = self.example(network, trained)
        other, _ = self.example(network, False, CROP, self.seed + 1)
        with torch.inference_mode():
            truth = network(*inputs)
        fastest = cache(lambda: self.fastest(network, inputs))
        low, simulated, made = network, truth, 0
        for bits, engine in places:
            row = {"network": name, "bits": bits, "engine": engine, "refused": None}
            try:
                if bits != made:
                    low, made = quantized(network, bits, other), bits
                    with torch.inference_mode():
                        simulated = low(*inputs)
                if (reason := ENGINES[engine].missing(low)) is not None:
                    raise TypeError(reason)
                found = self.measured(low, engine, inputs, fastest()[1], simulated, quality or decibels_to(truth))
                yield row | {"trained": trained, "float_engine": fastest()[0]} | found
            except Exception as error:  # whatever it is, the others go on, and the table says so
                yield row | {"refused": " ".join(str(error).split()) or type(error).__name__}

    def measured(
        self,
        low: "nn.Module",
        engine: str,
        inputs: "tuple[Tensor, ...]",
        fast: Callable[..., Any],
        simulated: "Tensor",
        quality: "Callable[[Tensor], float]",
    ) -> dict[str, Any]:
        """What a row says of a low-bit network on an engine.

        Raises:
            TypeError, ValueError: the engine refuses it.
        """
        entry = ENGINES[engine]
        running, how = entry.start(low, self.threads)
        result = running(*inputs)
        spent, beside = in_turn([lambda: running(*inputs), lambda: fast(*inputs)], self.rounds)
        return {
            "how": how,
            "seconds": spent,
            "float_seconds": beside,
            "outside": entry.outside(running, *inputs),
            "agreement_db": decibels_to(simulated)(result),
            "quality_db": quality(result),
            "simulated_db": quality(simulated),
        }

    def example(
        self, network: "nn.Module", scored: bool, size: int | None = None, seed: int | None = None
    ) -> "tuple[tuple[Tensor, ...], Callable[[Tensor], float] | None]":
        """Inputs of a network, and PSNR to the truth as results of such networks are scored; None: not `scored`."""
        import torch

        from bitlens.bench.contestants import alone
        from bitlens.bench.subjects import subject_of
        from bitlens.inference.images import scale_of

        side, drawn, scale = size or self.size, self.seed if seed is None else seed, scale_of(network)
        one = subject_of(scale, side, self.frames, drawn)
        inputs = tuple(torch.from_numpy(part) for part in one.inputs)
        return inputs, (lambda result: one.quality(alone(result.numpy()))) if scored else None

    def fastest(self, network: "nn.Module", inputs: "tuple[Tensor, ...]") -> tuple[str, Callable[..., Any]]:
        """The engine that runs a float network fastest in float32, and what runs it there."""
        found: dict[str, Callable[..., Any]] = {}
        for name, entry in ENGINES.items():
            if entry.float32 is not None and entry.missing(network) is None:
                try:
                    found[name] = entry.float32(network, self.threads)
                except (TypeError, ValueError):
                    continue  # the others are compared
        spent = in_turn([lambda one=one: one(*inputs) for one in found.values()], self.rounds)
        name = min(zip(spent, found, strict=True))[1]
        return name, found[name]


def every_network() -> list[str]:
    """Of each family of the catalogue the float checkpoints that are shipped, else a size with random weights."""
    from bitlens.checkpoint import describe, shipped
    from bitlens.networks.catalog import CATALOG, CLASSICAL

    floats = [about for about in map(describe, shipped()) if about.method is None]
    names = []
    for entry in CATALOG.values():
        if entry.name != CLASSICAL:
            own = [about.name for about in floats if about.network == entry.name]
            names += own or ["-".join([entry.name, *filter(None, entry.sizes[:1])])]
    return [*names, COLOUR]


def network_of(name: str, frames: int, seed: int) -> "tuple[nn.Module, bool]":
    """The float network of a checkpoint; or one with random weights, by family and size; and whether it is trained.

    Raises:
        ValueError, FileNotFoundError: neither, or a low-bit one.
    """
    import torch

    from bitlens import checkpoint
    from bitlens.networks.catalog import CATALOG, CLASSICAL

    family, *rest = name.split("-")
    colour = rest[-1:] == ["colour"]
    size = "-".join(rest[:-1] if colour else rest) or None
    entry = CATALOG.get(family)
    known = entry is not None and name not in checkpoint.shipped() and (size is None or size in entry.sizes)
    if entry is None or not known or entry.name == CLASSICAL:
        about = checkpoint.describe(name)
        if about.method is not None or about.path is None:
            raise ValueError(f"{name} is no float network with weights; wanted one to quantize; give another")
        return checkpoint.load(name).eval(), True
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = entry.random(size, frames)
        channels = next((key for key in getattr(network, "config", {}) if key.startswith("color")), None)
        if colour and channels is None:
            raise ValueError(f"{name} came, and {family} has one way with colours; wanted {family}; leave -colour out")
        return (entry.random(size, frames, **{str(channels): 3}) if colour else network).eval(), False


def quantized(network: "nn.Module", bits: int, inputs: "tuple[Tensor, ...]") -> "nn.Module":
    """A copy with every layer at the same bits, calibrated on one example.

    Ranges that hold all weights do at 8 bits, and are found at once; coarse ones would make everything zero, which all
    engines agree on, so below 8 bits they have the least squared error.
    """
    from bitlens.methods import quantize
    from bitlens.recipe import Bits, Recipe, Rule

    rules = (Rule("*", Bits(bits, bits)),)
    fine = Recipe(f"w{bits}a{bits}", rules, "direct", "minmax", "percentile")
    return quantize(network, fine if bits == 8 else Recipe(fine.name, rules, "direct", "mse", "mse"), [inputs])[0]


def in_turn(runs: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """Median seconds of each, which run one after the other, after a run of each that is not timed."""
    import torch

    from bitlens.bench import PAUSE

    spent: list[list[float]] = [[] for _ in runs]
    with torch.inference_mode():
        for index in range(rounds + 1):
            for run, own in zip(runs, spent, strict=True):
                time.sleep(PAUSE)  # the last one's threads fall asleep
                start = time.perf_counter()
                run()
                own.append(time.perf_counter() - start)
                if index == 0:
                    own.clear()
    return [median(own) for own in spent]


def decibels_to(wanted: "Tensor") -> "Callable[[Tensor], float]":
    """The variance of a result over the mean squared error to it, in dB: of outputs in any range."""
    import numpy as np

    target = wanted.double().numpy()

    def score(result: "Tensor") -> float:
        error = float(np.square(result.double().numpy() - target).mean())
        spread = float(target.var())
        if not np.isfinite(error) or spread == 0:
            raise ValueError("results are not finite, or all the same; wanted such as can be compared; give weights")
        return EXACT if error == 0 else min(EXACT, 10 * float(np.log10(spread / error)))

    return score


def in_words(row: dict[str, Any]) -> str:
    """A row as a line."""
    start = f"{row['network']}, {row['bits']} bits, {row['engine']}: "
    if row["refused"] is not None:
        return f"{start}{row['refused']}"
    outside = "" if row["outside"] is None else f", {row['outside']:.0%} outside of integers"
    apart = row["quality_db"] - row["simulated_db"]
    return (
        f"{start}{row['seconds']:.3f} s, {row['float_seconds'] / row['seconds']:.2f} x {row['float_engine']} in float32"
        f"{outside}; {apart:+.3f} dB apart"
    )
