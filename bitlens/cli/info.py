"""`bitlens info`: what a checkpoint holds, layer by layer, and what it costs under each counting rule."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import tyro


@dataclass(frozen=True)
class Info:
    """Show bits, weights, operations and bytes of every layer of a checkpoint, its provenance and its claims.

    MACs are multiply-accumulates for one measurement, or for one picture that is to be enlarged. Counting rules
    price them by bits: the paper's (1/4, 1/8, 1/16, 1/32 at 8, 4, 3, 2 bits), b/32, and weight bits times
    activation bits / 1024. None is a time.

    Example:
        bitlens info efficientsci-t-qsci-w4a4
    """

    model: tyro.conf.Positional[str]
    """A shipped checkpoint (see `bitlens models`), the path of a .safetensors, or gap-tv."""
    frames: int = 8
    """Frames per measurement to count for."""
    height: int = 256
    """Height in pixels to count for."""
    width: int = 256
    """Width in pixels to count for."""
    json: bool = False
    """Print JSON instead of tables."""

    def run(self) -> None:
        from bitlens import checkpoint
        from bitlens.count import RULES, count, operations

        about = checkpoint.describe(self.model)
        counts = count(checkpoint.load(self.model), self.frames, self.height, self.width)
        rules = {rule: operations(counts, rule) for rule in RULES}
        if self.json:
            content = asdict(about) | {
                "size": {"frames": self.frames, "height": self.height, "width": self.width},
                "macs": {layer.name: layer.macs for layer in counts},
                "operations": rules,
            }
            print(json.dumps(content, indent=2, default=str))
        else:
            self._show(about, counts, rules)

    def _show(self, about: Any, counts: list, rules: dict[str, float | None]) -> None:
        from bitlens import tasks
        from bitlens.report import console, table

        out = console()
        out.print(f"{about.name}: {about.network}, {about.method or 'float'}", style="bold")
        if about.path is not None:
            out.print(f"file {about.path}")
        if not about.layers:
            out.print("no weights: nothing is stored, and its operations are not counted")
            return
        out.print(f"bits of weights and activations: {bits_in_words(about)}")
        macs = {layer.name: layer.macs for layer in counts}
        rows = []
        for layer in about.layers:
            bits = [_bits(layer.weight_bits), _bits(layer.activation_bits)]
            work = f"{macs[layer.name] / 1e9:.3f}" if layer.name in macs else "-"
            rows.append([layer.name, layer.kind, *bits, f"{layer.weights:,}", work, f"{layer.bytes:,}"])
        columns = ["layer", "kind", "weight bits", "activation bits", "weights", "GMAC", "bytes"]
        out.print(table("layers", columns, rows, texts=2))

        weights = sum(layer.weights for layer in counts)  # biases too
        attention = sum(layer.macs for layer in counts if layer.kind == "MatMul")
        others = sum(layer.macs for layer in counts) - attention
        split = f"{others / 1e9:.2f} G in convolutions and linear layers, {attention / 1e9:.2f} G in attention"
        facts = [
            ["size", _beside(about.bytes / 1e6, 4 * weights / 1e6, "MB", "as float32")],
            ["weights and biases", f"{weights / 1e6:.3f} million"],
            ["MACs", split],
        ]
        for rule, value in rules.items():
            whole = others if rule == "paper" else others + attention
            price = "no price for these bits"
            if value is not None:
                price = _beside(value / 1e9, whole / 1e9, "G", "in float")
            facts.append([f"operations by the {rule} rule", price])
        facts += [[f"claims {key}", _plain(value)] for key, value in about.claims.items()]
        facts += [[f"provenance {key}", _plain(value)] for key, value in about.provenance.items()]
        size = f"{self.height}x{self.width}"
        task = tasks.of_family(about.network)
        frames = f"{self.frames} frames of " if "frames" in task.axes else ""
        out.print(table(f"in all, for one {task.unit} of {frames}{size}", ["", ""], facts, texts=2))


def bits_in_words(about: Any) -> str:
    """`4, 4 (some 8, 8)`: the bits of most weights and activations, then the others; `32, 32` for float."""
    weights: Counter[str] = Counter()
    for layer in about.layers:
        weights[f"{_bits(layer.weight_bits)}, {_bits(layer.activation_bits)}"] += max(layer.weights, 1)
    if not weights:
        return "no weights"
    first, *rest = (pair for pair, _ in weights.most_common())
    return f"{first} (some {'; '.join(rest)})" if rest else first


def claim_in_words(claims: dict[str, Any]) -> str:
    """The claimed average PSNR, with the test set's name: `33.52 dB (six-scenes)`."""
    for key, value in claims.items():
        average = value.get("average", value) if isinstance(value, dict) else None
        if isinstance(average, dict) and isinstance(average.get("psnr"), int | float):
            return f"{average['psnr']:.2f} dB ({key})"
        if key == "psnr" and isinstance(value, int | float):
            return f"{value:.2f} dB"
    return "-"


def _bits(bits: int | None) -> str:
    return "-" if bits is None else "float" if bits >= 32 else "bf16" if bits == 16 else str(bits)


def _beside(value: float, whole: float, unit: str, what: str) -> str:
    """`0.47 MB; 3.79 MB as float32, 8.0 times as much`; just the value where both are equal."""
    text = f"{value:.2f} {unit}"
    if abs(value - whole) < 0.02 * whole or value == 0:
        return text
    return f"{text}; {whole:.2f} {unit} {what}, {whole / value:.1f} times as much"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
