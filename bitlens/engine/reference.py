"""Integer arithmetic of lowered layers in plain torch: the definition of correct for every engine.

    total = sum (x - z_x) w = sum x w - z_x sum w      padded with the code z_x of zero; 32 bits where they suffice
    value = float32(float64(total) * s_x s_w + bias)
    code  = clamp(round(value / s + z), qmin, qmax)    the next layer's, by quant/grid.py: rounded half to even

Slow on purpose: plain products of integers, in the order of the formulas.
"""

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from bitlens.engine.lower import IntegerLayer, IntegerProduct, Operand, lower
from bitlens.quant.layers import TRANSPOSED

FUNCTIONS = {
    nn.Linear: F.linear,
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
    nn.ConvTranspose1d: F.conv_transpose1d,
    nn.ConvTranspose2d: F.conv_transpose2d,
    nn.ConvTranspose3d: F.conv_transpose3d,
}


class ReferenceLayer(nn.Module):
    """Takes the place of a fake-quantized convolution or linear layer; values in, values out."""

    def __init__(self, layer: IntegerLayer):
        super().__init__()
        self.layer = layer

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        codes = self.layer.input.codes(x if self.layer.balance is None else x * self.layer.balance)
        total = accumulate if self.layer.is_exact else corrected_sum
        return values(self.layer, total(self.layer, codes))

    def rounded(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """As `Quantized.rounded`."""
        grid = self.layer.input
        if self.layer.balance is not None or grid.scale.numel() > 1:
            return x
        low, high = ((end - grid.zero_point) * grid.scale for end in (grid.qmin, grid.qmax))
        return x + ((grid.codes(x) - grid.zero_point) * grid.scale - x.clamp(low, high))


class ReferenceProduct(nn.Module):
    """Takes the place of a fake-quantized attention product."""

    def __init__(self, product: IntegerProduct):
        super().__init__()
        self.product = product

    def forward(
        self, left: Float[Tensor, "b n i k p"], right: Float[Tensor, "b n k j p"]
    ) -> Float[Tensor, "b n i j p"]:
        first, second = self.product.left, self.product.right
        total = accumulate_product(self.product, first.codes(left), second.codes(right))
        return (total.double() * first.scale.double() * second.scale.double()).float()


def reference_network(network: nn.Module) -> nn.Module:
    """A copy of a fake-quantized network whose lowered layers compute in integers.

    Folded layers use their folded weights; what `lower` leaves float stays as it is.
    """
    twin = copy.deepcopy(network)
    for name, layer in lower(network).layers.items():
        parent, _, child = name.rpartition(".")
        module = ReferenceLayer(layer) if isinstance(layer, IntegerLayer) else ReferenceProduct(layer)
        setattr(twin.get_submodule(parent), child, module)
    return twin.eval()


def accumulate(layer: IntegerLayer, codes: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """sum (x - z) w as integer kernels form it: the product of codes, minus z sum w.

    Convolutions pad with the code z of zero. Transposed ones have no padding but gaps, so there z sum w depends on
    the position.

    Returns:
        int32 or int64 (see `accumulator`).

    Raises:
        ValueError: an offset of the layer is not a code; `corrected_sum` takes those.
    """
    if not layer.is_exact:
        raise ValueError("the layer has offsets that are no codes; wanted integer zero-points; use corrected_sum")
    geometry, kind = layer.geometry, accumulator(layer)
    codes, weight, zero = codes.to(kind), layer.weight.to(kind), layer.input.zero_point.to(kind)
    if isinstance(geometry, (nn.Linear, *TRANSPOSED)):
        return product(geometry, codes, weight) - product(geometry, zero.expand_as(codes), weight)
    pads: list[int] = geometry._reversed_padding_repeated_twice  # type: ignore[assignment]
    padded = F.pad(codes - zero, pads) + zero
    return product(geometry, padded, weight, 0) - product(geometry, zero.expand_as(padded), weight, 0)


def corrected_sum(layer: IntegerLayer, codes: Int[Tensor, "..."]) -> Float64[Tensor, "..."]:
    """sum (x - z_x) (w - z_w) for offsets z that are any numbers, over the taps inside the input.

    The product of codes is one of integers; the offsets multiply the sums of w, of x and of ones [rank-one terms].
    """
    geometry, kind = layer.geometry, accumulator(layer)
    codes, weight = codes.to(kind), layer.weight.to(kind)
    zero, ones = layer.input.zero_point.double().expand_as(codes), torch.ones_like(weight)
    sum_xw, sum_x = product(geometry, codes, weight).double(), product(geometry, codes, ones).double()
    sum_zw, sum_z = product(geometry, zero, weight.double()), product(geometry, zero, ones.double())
    return sum_xw - sum_zw - per_channel(geometry, layer.weight_zero_point.double(), sum_x) * (sum_x - sum_z)


def accumulate_product(
    factors: IntegerProduct, left: Int[Tensor, "b n i k p"], right: Int[Tensor, "b n k j p"]
) -> Tensor:
    """sum_k (left[i, k] - z_l) (right[k, j] - z_r) = sum l r - z_r sum l - z_l sum r + z_l z_r k.

    Returns:
        (b, n, i, j, p) int32, or float64 where an offset is not a code.
    """
    kind = torch.int32 if factors.left.fits and factors.right.fits else torch.float64
    z_left, z_right = factors.left.zero_point.to(kind), factors.right.zero_point.to(kind)
    sum_l, sum_r = left.sum(3, keepdim=True, dtype=torch.int32), right.sum(2, keepdim=True, dtype=torch.int32)
    sum_lr = torch.stack([left[:, :, :, k, None] * right[:, :, None, k] for k in range(left.shape[3])]).sum(0)
    return sum_lr.to(kind) - z_right * sum_l - z_left * sum_r + z_left * z_right * left.shape[3]


def values(layer: IntegerLayer, total: Tensor) -> Float[Tensor, "..."]:
    """The outputs of a layer from its sums: scaled and biased in float64, rounded once to float32."""
    out = total.double() * per_channel(layer.geometry, layer.scale, total)
    if layer.bias is not None:
        out = out + per_channel(layer.geometry, layer.bias.double(), total)
    return out.float()


def requantize(layer: IntegerLayer, total: Tensor, target: Operand) -> Int[Tensor, "..."]:
    """The codes of a layer's outputs in the next layer's grid, straight from its sums: rounded half to even."""
    return target.codes(values(layer, total))


def accumulator(layer: IntegerLayer) -> torch.dtype:
    """int32 where the layer's bound fits and torch has the kernel (not for transposed convolutions), or int64."""
    return torch.int32 if layer.bound < 2**31 and not isinstance(layer.geometry, TRANSPOSED) else torch.int64


def product(geometry: nn.Module, x: Tensor, weight: Tensor, padding: int | None = None) -> Tensor:
    """The layer's product of inputs and weights of any number type, without bias; `padding` replaces the layer's."""
    function = FUNCTIONS[type(geometry)]
    if isinstance(geometry, nn.Linear):
        return function(x, weight)
    settings = {name: getattr(geometry, name) for name in ("stride", "padding", "groups")}
    if isinstance(geometry, TRANSPOSED):
        settings["output_padding"] = geometry.output_padding
    if padding is not None:
        settings["padding"] = padding
    return function(x, weight, **settings)


def per_channel(geometry: nn.Module, numbers: Float64[Tensor, "out"], total: Tensor) -> Float64[Tensor, "..."]:
    """Numbers of output channels, shaped to broadcast against sums."""
    return numbers if isinstance(geometry, nn.Linear) else numbers.reshape(-1, *[1] * (total.ndim - 2))
