"""Checkpoints: one safetensors file with codes at their true bit-width, scales, recipe, architecture, provenance.

    <layer>.layer.weight   packed codes (uint8) of a quantized layer; float values of any other
    @4/...                 of nested checkpoints (`quant.nested`): what 4 bits have of their own, loaded by NAME@4
    everything else        float32 (or bfloat16 if asked for), by its name in the network

The header's metadata is JSON: what network to build, how it is quantized, where it comes from, what it claims.
No pickle is ever read here; official .pth files go through `bitlens.official`.
"""

from bitlens.checkpoint.header import (
    CLASSICAL,
    Description,
    Layer,
    absolute,
    default,
    describe,
    find,
    set_claims,
    shipped,
    weights_sha256,
)
from bitlens.checkpoint.network import load, save, stored_layers

__all__ = [
    "CLASSICAL", "Description", "Layer", "absolute", "default", "describe", "find", "load", "save", "set_claims",
    "shipped", "stored_layers", "weights_sha256",
]  # fmt: skip
