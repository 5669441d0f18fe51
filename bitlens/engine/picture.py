"""Any network as an OpenVINO graph that its int8 kernels can execute, for one size of picture (or video: video.py).

What is computed is read off the network by `trace.py`; this file says how OpenVINO writes it down. As in `graph.py`,
activations pass a FakeQuantize of 256 levels in front of each quantized layer, grids below 8 bits are clamped first,
and weights are s8 codes times one scale per output channel. Both factors of an attention product pass their grids and
are multiplied in float.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitlens.engine.graph import PART
from bitlens.engine.lower import LARGEST_CODE, Lowered, Operand, folded_weight
from bitlens.engine.runtime import openvino
from bitlens.engine.steps import Tap
from bitlens.engine.trace import Value, Writer, trace
from bitlens.quant.layers import TRANSPOSED, Quantized

Window = tuple[int, int, int, int]
"""What a convolution does along an axis: size, stride, padding, dilation."""


class PictureGraph(Writer):
    """The ops of a network for one size; values are OpenVINO outputs."""

    def __init__(self, lowered: Lowered):
        super().__init__(lowered)
        self.ops = openvino().opset15
        self.constants: dict[Any, tuple[Any, Any]] = {}

    def constant(self, numbers: Any) -> Any:
        """Float32 numbers; those of one tensor once, however many views of it come."""
        if not isinstance(numbers, Tensor):
            return self.ops.constant(np.float32(numbers)).output(0)
        key = numbers.data_ptr(), numbers.shape, numbers.stride()
        if key not in self.constants:  # the tensor is kept: no other may come to lie where it lies
            op = self.ops.constant(np.ascontiguousarray(numbers.detach(), np.float32)).output(0)
            self.constants[key] = numbers, op
        return self.constants[key][1]

    def reshape(self, x: Any, shape: Sequence[int]) -> Any:
        """The elements of x, in their order, in another shape."""
        if list(x.get_shape()) == list(shape):
            return x
        return self.ops.reshape(x, np.array(shape, np.int64), False).output(0)

    def transpose(self, x: Any, axes: Sequence[int]) -> Any:
        """x with its axes in another order."""
        return self.ops.transpose(x, np.array(axes, np.int64)).output(0)

    def broadcast(self, x: Any, shape: Sequence[int]) -> Any:
        """x repeated along its axes of size 1."""
        return self.ops.broadcast(x, np.array(shape, np.int64)).output(0)

    def slice(self, x: Any, axis: int, start: int, stop: int) -> Any:
        """x[start:stop] along an axis."""
        return self.ops.slice(x, *(np.array([number], np.int64) for number in (start, stop, 1, axis))).output(0)

    def concat(self, values: Sequence[Any], axis: int) -> Any:
        """Several values as one."""
        return self.ops.concat(list(values), axis).output(0)

    def gather(self, x: Any, axis: int, positions: Sequence[int]) -> Any:
        """x at some positions of an axis."""
        return self.ops.gather(x, np.array(positions, np.int64), np.int64(axis)).output(0)

    def elementwise(self, kind: str, *values: Any) -> Any:
        """An operation on every element, with broadcasting."""
        if kind == "gelu":
            return self.ops.gelu(values[0], "erf").output(0)
        return getattr(self.ops, kind)(*values).output(0)

    def leaky(self, x: Any, slope: float) -> Any:
        """LeakyReLU."""
        return self.ops.prelu(x, np.array([slope], np.float32)).output(0)

    def mean(self, x: Any, axes: Sequence[int]) -> Any:
        """The mean over some axes, which stay with size 1."""
        return self.ops.reduce_mean(x, np.array(axes, np.int64), True).output(0)

    def total(self, x: Any, axes: Sequence[int]) -> Any:
        """The sum over some axes, which stay with size 1."""
        return self.ops.reduce_sum(x, np.array(axes, np.int64), True).output(0)

    def where(self, condition: Any, x: Any, other: Any) -> Any:
        """x where the condition holds, else the other one, with broadcasting."""
        return self.ops.select(condition, x, other).output(0)

    def most(self, x: Any, axes: Sequence[int]) -> Any:
        """The largest along some axes, which stay with size 1."""
        return self.ops.reduce_max(x, np.array(axes, np.int64), True).output(0)

    def length(self, x: Any, axes: Sequence[int]) -> Any:
        """The square root of the sum of squares over some axes, which stay with size 1."""
        return self.ops.reduce_l2(x, np.array(axes, np.int64), True).output(0)

    def softmax(self, x: Any, axis: int) -> Any:
        """Softmax along an axis."""
        return self.ops.softmax(x, axis).output(0)

    def standardize(self, x: Any, epsilon: float) -> Any:
        """(x - mean) / sqrt(variance + epsilon) along the last axis."""
        return self.ops.mvn(x, np.array([-1], np.int64), True, epsilon, "inside_sqrt").output(0)

    def largest(self, x: Value, height: int, width: int) -> Any:
        """Adaptive max pooling of x (b, c, h, w) to a height and width."""
        h, w = x.shape[2:]
        if h % height or w % width:
            return self.ops.adaptive_max_pool(x.op, np.array([height, width], np.int64), "i32").output(0)
        window = [h // height, w // width]
        return self.ops.max_pool(x.op, window, [1, 1], [0, 0], [0, 0], window).output(0)

    def resize(self, x: Any, height: int, width: int, mode: str) -> Any:
        """x (b, c, h, w) in another size."""
        places = "asymmetric" if mode == "nearest" else "half_pixel"
        return self.ops.interpolate(
            x,
            np.array([height, width], np.int64),
            "nearest" if mode == "nearest" else "linear_onnx",
            "sizes",
            coordinate_transformation_mode=places,
            nearest_mode="floor",
            axes=np.array([2, 3], np.int64),
        ).output(0)

    def layer(self, name: str, module: nn.Module, x: Value) -> Any:
        """A convolution or linear layer; its op has the layer's name, by which kernels and times are found."""
        geometry: Any = module.layer if isinstance(module, Quantized) else module
        inputs = self.enter(name, module, x)
        if not isinstance(geometry, nn.Linear):
            return self.convolution(name, module, inputs, windows_of(geometry))
        rows = self.reshape(inputs, (1, prod(x.shape[:-1]), x.shape[-1]))  # its bias is fused for rows of one axis
        node = self.ops.matmul(rows, self.weight(name, module), False, True)
        return self.reshape(self.named(name, node, self.bias(name, geometry)), (*x.shape[:-1], geometry.out_features))

    def convolution(self, name: str, module: nn.Module, inputs: Any, windows: Sequence[Window]) -> Any:
        """A convolution of inputs on their grid, with as many spatial axes as there are windows: those of the layer,
        and others of size 1."""
        geometry: Any = module.layer if isinstance(module, Quantized) else module
        sizes, strides, padding, dilations = zip(*windows, strict=True)
        weight, bias = self.weight(name, module, sizes), self.bias(name, geometry)
        ends = dict(pads_begin=padding, pads_end=padding, dilations=dilations)
        if isinstance(geometry, TRANSPOSED):
            back = self.ops.convolution_backprop_data
            convolution = back if geometry.groups == 1 else self.ops.group_convolution_backprop_data
            node = convolution(inputs, weight, strides, output_padding=geometry.output_padding, **ends)
        else:
            convolution = self.ops.convolution if geometry.groups == 1 else self.ops.group_convolution
            node = convolution(inputs, weight, strides, **ends)
        return self.named(name, node, None if bias is None else bias.reshape(-1, *[1] * len(windows)))

    def named(self, name: str, node: Any, bias: Tensor | None) -> Any:
        """The output of a layer's op, which gets the layer's name, plus its bias."""
        node.set_friendly_name(name)
        if bias is not None:
            node = self.ops.add(node, self.constant(bias))
            node.set_friendly_name(f"{name}{PART}bias")
        return node.output(0)

    def bias(self, name: str, geometry: nn.Module) -> Tensor | None:
        """A layer's bias; of a linear layer in integers with what the zero-point contributes (see `enter`)."""
        integers, bias = self.exact(name), geometry.bias
        if integers is None or not isinstance(geometry, nn.Linear):
            return bias  # type: ignore[return-value]
        zero = integers.input.zero_point.double() - integers.input.qmin
        shift = integers.scale * zero * integers.weight.long().sum(1)
        return (-shift if bias is None else geometry.get_parameter("bias").double() - shift).float()

    def enter(self, name: str, module: nn.Module, x: Value) -> Any:
        """The input of a layer on its grid.

        OpenVINO's linear layers subtract a zero-point in a pass of its own over their results. So theirs are given
        codes times the scale, and the bias makes up for it.
        """
        integers = self.exact(name)
        if integers is not None:
            linear = isinstance(integers.geometry, nn.Linear)
            return self.fake_quantize(integers.input, x, shifted=linear)
        return self.in_float(module, x)

    def fake_quantize(self, grid: Operand, x: Value, shifted: bool) -> Any:
        """The values of an input with one scale on its grid, as the u8 kernels want to see it; or codes times scale."""
        zero, scale, last = float(grid.zero_point) - grid.qmin, float(grid.scale), grid.qmax - grid.qmin
        low, high = -zero * scale, (LARGEST_CODE - zero) * scale
        inputs = self.ops.clamp(x.op, low, (last - zero) * scale) if last < LARGEST_CODE else x.op
        first = (0.0, LARGEST_CODE * scale) if shifted else (low, high)
        ends = [np.full([1] * x.ndim, end, np.float32) for end in (low, high, *first)]
        return self.ops.fake_quantize(inputs, *ends, LARGEST_CODE + 1).output(0)

    def weight(self, name: str, module: nn.Module, window: Sequence[int] = ()) -> Any:
        """A layer's weight: s8 codes times a scale per output channel where it runs in integers, else floats.

        Args:
            window: the sizes of a convolution's spatial axes.
        """
        integers = self.exact(name)
        geometry: Any = module.layer if isinstance(module, Quantized) else module
        groups = getattr(geometry, "groups", 1)
        if integers is None:
            values = folded_weight(module) if isinstance(module, Quantized) else geometry.weight
            return self.constant(by_group(values.reshape(*values.shape[:2], *window), groups).float())
        weight = integers.weight.reshape(*integers.weight.shape[:2], *window)
        codes = self.ops.convert(np.ascontiguousarray(by_group(weight, groups)), "f32")
        scale = integers.weight_scale.reshape(-1, *[1] * (weight.ndim - 1))
        scale = by_group(scale, groups)
        if isinstance(geometry, TRANSPOSED):  # whose outputs are the axis behind that of the inputs
            scale = scale.transpose(-weight.ndim, 1 - weight.ndim)
        return self.ops.multiply(codes, np.ascontiguousarray(scale)).output(0)

    def offsets(self, grid: Operand, x: Any, unit: Tensor | None = None) -> Any:
        """(code - zero_point) unit, computed in float; a zero-point that is a code is not even added."""
        place = self.elementwise("divide", x, self.constant(grid.scale))
        unit = torch.ones(()) if unit is None else unit
        if grid.fits:  # clamped last: what is multiplied last, OpenVINO moves to where rows are short
            whole = self.elementwise("multiply", self.rounded(place), self.constant(unit))
            low, high = (self.constant((end - grid.zero_point) * unit) for end in (grid.qmin, grid.qmax))
            return self.elementwise("minimum", self.elementwise("maximum", whole, low), high)
        zero_point = self.constant(grid.zero_point)
        place = self.ops.clamp(self.elementwise("add", place, zero_point), grid.qmin, grid.qmax)
        offset = self.elementwise("subtract", self.rounded(place), zero_point)
        return self.elementwise("multiply", offset, self.constant(unit))

    def rounded(self, x: Any) -> Any:
        """Half to even."""
        return self.ops.round(x, "half_to_even").output(0)

    def product(self, name: str, module: nn.Module, left: Value, right: Value) -> Any:
        """An attention product; the pixels, where there are several, become part of the batch.

        Factors are code - zero_point; the value of a unit of the product is multiplied into the second, the smaller.
        """
        grids, first, second = self.grids(name), left.op, right.op
        if grids is not None:
            first = self.factor(grids.left, left, torch.ones(()))
            second = self.factor(grids.right, right, grids.left.scale * grids.right.scale)
        node = self.ops.matmul(self.batched(first, left), self.batched(second, right), False, False)
        node.set_friendly_name(name)
        b, n, i, _, p = left.shape
        if p == 1:
            return self.reshape(node.output(0), (b, n, i, right.shape[3], 1))
        return self.transpose(node.output(0), (0, 1, 3, 4, 2))

    def factor(self, grid: Operand, x: Value, unit: Tensor) -> Any:
        """A factor's (code - zero_point) unit, as (b n, i k p): OpenVINO is slow with rows as short as a head's."""
        b, n, *rest = x.shape
        flat = self.reshape(x.op, (b * n, prod(rest)))
        scale, zero_point, unit = (self.rows(value, b) for value in (grid.scale, grid.zero_point, unit))
        return self.offsets(replace(grid, scale=scale, zero_point=zero_point), flat, unit)

    def rows(self, values: Tensor, b: int) -> Tensor:
        """One number, or that of the head of each row (b n, 1)."""
        flat = values.flatten()
        return flat[0] if bool((flat == flat[0]).all()) else flat.repeat(b).reshape(-1, 1)

    def batched(self, x: Any, value: Value) -> Any:
        """(b, n, i, k, p), or flat, as (b, n, i, k) of one pixel, or as (b, n, p, i, k)."""
        if value.shape[4] == 1:
            return self.reshape(x, value.shape[:4])
        return self.transpose(self.reshape(x, value.shape), (0, 1, 4, 2, 3))


def windows_of(geometry: Any) -> list[Window]:
    """What a convolution does along each of its spatial axes."""
    return list(zip(geometry.kernel_size, geometry.stride, geometry.padding, geometry.dilation, strict=True))


def by_group(weight: Tensor, groups: int) -> Tensor:
    """(out, in / groups, ...) as (groups, out / groups, in / groups, ...); as it is where there is one group.

    Transposed convolutions have their inputs first: (in, out / groups, ...) becomes (groups, in / groups, out / groups,
    ...).
    """
    return weight if groups == 1 else weight.reshape(groups, -1, *weight.shape[1:])


def build_picture(network: nn.Module, lowered: Lowered, height: int, width: int) -> tuple[Any, dict[str, Tap]]:
    """The model from image (1, 3, height, width) to image (1, 3, scale height, scale width), and its layers' taps."""
    g = PictureGraph(lowered)
    image = g.ops.parameter([1, 3, height, width], np.float32, "image")
    large = trace(network, g, (image.output(0), (1, 3, height, width))).op
    image.output(0).get_tensor().set_names({"image"})
    large.get_tensor().set_names({"large"})
    return openvino().Model([large], [image], type(network).__name__.lower()), g.taps
