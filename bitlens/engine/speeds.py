"""What `bitlens benchmark` measured of engines on this machine, remembered: `--engine auto` goes by it.

A measurement holds for networks of one shape, with the same bits in every layer and the same number of threads, on the
same CPU, with the same code. It is kept in the user's cache, `bitlens/speeds`.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def remember(network: "nn.Module", threads: int, seconds: Mapping[str, float]) -> None:
    """Keep the seconds of a network on several engines, by name; fewer than two say nothing."""
    from bitlens.files import atomic_path

    if len(seconds) > 1:
        with atomic_path(file_of(network, threads)) as temporary:
            temporary.write_text(json.dumps(dict(seconds)), encoding="utf-8")


def recall(network: "nn.Module", threads: int) -> dict[str, float]:
    """What `remember` kept for such a network; empty where it was not measured."""
    file = file_of(network, threads)
    if not file.is_file():
        return {}
    try:
        return {str(name): float(spent) for name, spent in json.loads(file.read_text(encoding="utf-8")).items()}
    except (ValueError, TypeError, AttributeError):
        return {}  # damaged: as if it were not there


def file_of(network: "nn.Module", threads: int) -> Path:
    """Where the measurement of a network is kept."""
    from bitlens.engine.plan import kernels
    from bitlens.engine.registry import ENGINES
    from bitlens.engine.runtime import code_and_machine, user_cache
    from bitlens.quant.layers import quantized_layers

    bits = [(name, layer.weight_bits, layer.activation_bits) for name, layer in quantized_layers(network).items()]
    level = None if ENGINES["native"].missing(network) else kernels().best_level()
    facts = type(network).__name__, getattr(network, "config", None), bits, threads, level, code_and_machine()
    return user_cache("speeds") / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.json"
