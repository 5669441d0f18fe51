"""Before the native kernels run a network, each kind of layer runs once and must equal its scalar reference.

The references are plain C++ and define what is correct (docs/kernels.md). A compiler or a CPU that gets a vector kernel
wrong is found here, in a fraction of a second, on codes of the layer's own range.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from bitlens.engine.checks import ComputesWrongly
from bitlens.engine.lower import IntegerLayer, IntegerProduct
from bitlens.engine.plan import kernels

SIZE = (2, 4, 14)
"""Frames, height and width of the codes, so that vectors are filled and have a rest."""
OUTPUTS = 72
"""No more outputs are compared: a block of 64 and a rest."""


def codes_and_geometry(layer: IntegerLayer) -> tuple[np.ndarray, dict[str, Any]]:
    """The weights' codes (outputs, t, h, w, channels) of a layer, and what else its kernel has to know."""
    weight = layer.weight.reshape(*layer.weight.shape, *[1] * (5 - layer.weight.ndim))
    codes = np.ascontiguousarray(weight.permute(0, 2, 3, 4, 1).numpy())
    stride, padding = (1, 1, 1), (0, 0, 0)
    if isinstance(layer.geometry, nn.Conv3d):
        stride, padding = layer.geometry.stride, layer.geometry.padding
    zero, largest = int(layer.input.zero_point) - layer.input.qmin, layer.input.qmax - layer.input.qmin
    return codes, dict(stride=stride, padding=padding, zero=zero, largest=largest)


def check_layers(layers: Mapping[str, IntegerLayer | IntegerProduct], level: str, kind: Any) -> int:
    """Compare every method of each kind of convolution with its scalar reference; the number of kinds.

    Layers of one kind have weights of one shape and one geometry, but for the zero-point.

    Args:
        layers: by name, in the form in which they run.
        level: of the kernels.
        kind: of values in memory, float32 or uint16 (bfloat16).

    Raises:
        ComputesWrongly: a kernel differs from its scalar reference; it names the layer.
    """
    seen = set()
    for name, layer in layers.items():
        if isinstance(layer, IntegerLayer):
            codes, geometry = codes_and_geometry(layer)
            key = codes.shape, geometry["stride"], geometry["padding"], geometry["largest"]
            if key not in seen:
                seen.add(key)
                check_layer(name, codes[:OUTPUTS], geometry, layer.scale.float().numpy()[:OUTPUTS], level, kind)
    return len(seen)


def check_layer(
    name: str, weights: np.ndarray, geometry: dict[str, Any], scale: np.ndarray, level: str, kind: Any
) -> None:
    """Compare all that a convolution writes, by every method that is exact for it."""
    bk, ends = kernels(), (int(weights.min()), int(weights.max()))
    x = np.random.default_rng(0).integers(0, geometry["largest"] + 1, (*SIZE, weights.shape[-1])).astype(np.uint8)
    wanted = written(bk.Convolution(weights, method="direct", level="scalar", **geometry), x, scale, kind)
    for method in bk.METHODS:
        if bk.fits(weights.shape, *ends, method=method, **geometry):
            found = written(bk.Convolution(weights, method=method, level=level, **geometry), x, scale, kind)
            refuse_unless_equal(f"layer {name} ({method})", level, found, wanted)


def written(convolution: Any, x: np.ndarray, scale: np.ndarray, kind: Any) -> list[np.ndarray]:
    """Sums, values and codes of a convolution; half of the values lie outside of the codes' grid."""
    bk = kernels()
    shape = (*convolution.output_size(x.shape[:3]), convolution.layer.outputs)
    totals, values, codes = np.empty(shape, np.int32), np.empty(shape, kind), np.empty(shape, np.uint8)
    step = float(np.abs(scale).mean()) * 8 + 1e-12
    output = bk.Output(totals, scale=scale, slope=0.01, values=values, targets=[bk.Target(codes, step, 128.0, 0, 255)])
    convolution.bind(x, output)()
    return [totals, values, codes]


def check_attention(name: str, constants: Any, depth: int, level: str) -> None:
    """Compare temporal attention, of heads of `depth` channels, with its scalar reference.

    Raises:
        ComputesWrongly: the kernel differs.
    """
    bk, inner = kernels(), constants.heads * depth
    codes = np.random.default_rng(0).integers(0, 256, (*SIZE, 3 * inner)).astype(np.uint8)

    def run(at: str) -> list[np.ndarray]:
        result = np.empty((*SIZE, inner), np.uint8)
        step = float(np.abs(constants.mixed_unit).max()) * 64 + 1e-12
        bk.bind_attend(constants, codes, bk.Target(result, step, 128.0, 0, 255), level=at)()
        return [result]

    refuse_unless_equal(f"attention {name}", level, run(level), run("scalar"))


def refuse_unless_equal(what: str, level: str, found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    """Raise ComputesWrongly where results differ."""
    wrong = max(float((a != b).mean()) for a, b in zip(found, wanted, strict=True))
    if wrong:
        raise ComputesWrongly(
            f"the native kernels compute {what} wrongly at level {level}: {wrong:.1%} differ from the scalar "
            "reference; wanted equal; set BITLENS_KERNELS_LEVEL to an older level, or choose another engine"
        )
