"""What the kernels' tests share: the package, where it is built, and random layers small enough for scalar loops."""

import dataclasses

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

from bitlens.engine.lower import IntegerLayer, Operand

try:
    import bitlens_kernels as bk

    LEVELS = bk.levels()
except ImportError:
    LEVELS = ()


@dataclasses.dataclass(frozen=True)
class Case:
    """A random convolution with its input."""

    weights: np.ndarray  # (o, kt, kh, kw, c) int8
    codes: np.ndarray  # (t, h, w, c) uint8
    stride: tuple[int, int, int]
    padding: tuple[int, int, int]
    zero: int
    largest: int

    def convolution(self, method: str, level: str):
        options = dict(stride=self.stride, padding=self.padding, zero=self.zero, largest=self.largest)
        return bk.Convolution(self.weights, method=method, level=level, **options)

    def layer(self, scale: float = 0.01) -> IntegerLayer:
        """The same as the reference knows it."""
        o, *kernel, c = self.weights.shape
        geometry = nn.Conv3d(c, o, tuple(kernel), stride=self.stride, padding=self.padding)
        bias = geometry.get_parameter("bias").detach()
        operand = Operand(torch.tensor(scale), torch.tensor(float(self.zero)), 0, self.largest)
        weight = torch.from_numpy(self.weights).permute(0, 4, 1, 2, 3).contiguous()
        weight_scale = 0.01 + 0.02 * torch.rand(o)
        return IntegerLayer(geometry, operand, weight, weight_scale, torch.zeros(o), bias, False)


BITS = {  # the most bits of weights and of activations that each method takes
    "direct": [(8, 8), (4, 4), (2, 8)],
    "winograd2": [(4, 4), (4, 6), (3, 3), (2, 2)],
    "winograd2wide": [(2, 2), (2, 3), (1, 1)],
    "winograd3": [(3, 3), (3, 5), (2, 2)],
    "lookup": [(2, 2), (2, 1)],
}


@st.composite
def cases(draw, method: str) -> Case:
    """Layers of any size that a method does, at the ends of its bit-widths and in between."""
    winograd = method.startswith("winograd")
    odd = st.integers(1, 70) | st.sampled_from([4, 16, 32, 48, 64])
    channels, outputs = draw(odd), draw(odd | st.just(96))
    kernel = [draw(st.integers(1, 3)) for _ in range(3)]
    stride = [1 if winograd else draw(st.integers(1, 2)) for _ in range(3)]
    if winograd:
        kernel = [3 if method == "winograd3" else kernel[0], 3, 3]
    padding = [draw(st.integers(0, 2)) for _ in range(3)]
    smallest = [max(1, k - 2 * p) for k, p in zip(kernel, padding, strict=True)]
    size = [draw(st.integers(low, low + more)) for low, more in zip(smallest, (3, 5, 20), strict=True)]
    weight_bits, bits = draw(st.sampled_from(BITS[method]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    half, largest = 2 ** (weight_bits - 1), 2**bits - 1
    extreme = draw(st.booleans())  # only the ends of the ranges: where sums are largest
    pick = (lambda low, high, shape: random.choice([low, high], shape)) if extreme else random.integers
    end = 0 if extreme else 1
    weights = pick(-half, half - 1 + end, (outputs, *kernel, channels)).astype(np.int8)
    codes = pick(0, largest + end, (*size, channels)).astype(np.uint8)
    return Case(weights, codes, tuple(stride), tuple(padding), draw(st.integers(0, largest)), largest)
