"""The fused Swin block: every level equals the scalar reference bit for bit, for any shape, grid and shift."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .conftest import LEVELS

pytest.importorskip("bitlens_kernels")
from bitlens_kernels.swin import Grid, Linear, Swin, SwinBlock


def random_block(random: np.random.Generator, heads: int, depth: int, hidden: int, window: int, bits: int) -> Swin:
    """A block of any size, its grids' zero-points anywhere."""
    c, tokens, largest, half = heads * depth, window**2, 2**bits - 1, 2 ** (bits - 1)

    def grid(reach: float, zero: int | None = None) -> Grid:
        zero = int(random.integers(0, largest + 1)) if zero is None else zero
        return Grid(reach * float(random.uniform(0.5, 1.5)) / largest, zero, largest)

    def floats(*shape: int, spread: float = 0.3, middle: float = 0.0) -> np.ndarray:
        return random.normal(middle, spread, shape).astype(np.float32)

    def linear(outputs: int, inputs: int) -> Linear:
        weights = random.integers(-half, half, (outputs, inputs)).astype(np.int8)
        grid_of_input = grid(4.0)
        scale = grid_of_input.step / half / inputs**0.5 * random.uniform(0.5, 1.5, outputs)
        return Linear(grid_of_input, weights, scale.astype(np.float32), floats(outputs))

    def of_heads(reach: float, zero: int | None = None) -> list[Grid]:
        return [grid(reach, zero) for _ in range(heads)]

    one_sided = 0 if random.random() < 0.5 else None
    return Swin(
        *(heads, window, (floats(c, middle=1.0), floats(c)), (floats(c, middle=1.0), floats(c))),
        *(linear(3 * c, c), linear(c, c), linear(hidden, c), linear(c, hidden)),
        *(of_heads(3.0), of_heads(3.0), of_heads(0.5, one_sided), of_heads(3.0)),
        *(depth**-0.5, floats(heads, tokens, tokens)),
    )


def run(swin: Swin, values: np.ndarray, level: str, **options) -> np.ndarray:
    result = np.zeros_like(values)
    SwinBlock(swin, level).bind(values, result, **options)()
    return result


@settings(max_examples=40)
@given(
    window=st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9]), heads=st.integers(1, 5), depth=st.integers(1, 13),
    hidden=st.integers(1, 40), bits=st.sampled_from([8, 4, 3, 2, 1]), windows=st.tuples(*[st.integers(1, 2)] * 3),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_every_level_equals_the_scalar_twin(window, heads, depth, hidden, bits, windows, seed):
    random = np.random.default_rng(seed)
    swin = random_block(random, heads, depth, hidden, window, bits)
    t, rows, columns = windows
    values = random.normal(size=(t, rows * window, columns * window, heads * depth)).astype(np.float32)
    shift = int(random.integers(0, window))
    twin = run(swin, values, "scalar", shift=shift)
    for level in LEVELS:
        found = run(swin, values, level, shift=shift, threads=2)
        assert np.array_equal(found.view(np.int32), twin.view(np.int32)), level


@pytest.mark.parametrize("level", LEVELS)
def test_the_network_s_own_size(level: str):
    random = np.random.default_rng(0)
    swin = random_block(random, 6, 10, 120, 8, 8)
    values = random.normal(size=(1, 16, 24, 60)).astype(np.float32)
    for shift in (0, 4):
        assert np.array_equal(run(swin, values, level, shift=shift), run(swin, values, "scalar", shift=shift))


@pytest.mark.parametrize("level", LEVELS)
def test_a_range_of_channels_may_be_written_over(level: str):
    random = np.random.default_rng(1)
    swin = random_block(random, 2, 5, 12, 4, 4)
    wide = random.normal(size=(1, 8, 8, 17)).astype(np.float32)
    before = wide.copy()
    wanted = run(swin, wide[..., 3:13].copy(), level, shift=2)
    SwinBlock(swin, level).bind(wide[..., 3:13], shift=2)()
    assert np.array_equal(wide[..., 3:13], wanted)
    assert np.array_equal(wide[..., :3], before[..., :3]) and np.array_equal(wide[..., 13:], before[..., 13:])


@pytest.mark.parametrize("level", LEVELS)
def test_the_ends_of_the_ranges(level: str):
    """Weights, codes and zero-points at their ends, where sums are largest, and values far outside of the grids."""
    random = np.random.default_rng(2)
    swin = random_block(random, 2, 8, 64, 8, 8)
    for zero in (0, 255):
        edges = [Grid(0.01, zero, 255)] * 2

        def end(layer: Linear, zero: int = zero) -> Linear:
            weights = np.full_like(layer.weights, -128)
            return dataclasses.replace(layer, weights=weights, input=dataclasses.replace(layer.input, zero=zero))

        layers = {name: end(getattr(swin, name)) for name in ("qkv", "proj", "fc1", "fc2")}
        extreme = dataclasses.replace(swin, q=edges, k=edges, v=edges, **layers)
        values = (1e4 * random.normal(size=(1, 8, 8, 16))).astype(np.float32)
        assert np.array_equal(run(extreme, values, level), run(extreme, values, "scalar"))


def test_bad_blocks_and_arrays_are_refused():
    random = np.random.default_rng(0)
    swin = random_block(random, 2, 4, 6, 4, 8)
    for wrong in (
        dict(q=swin.q[:1]),
        dict(k=[Grid(0.1, 256, 255)] * 2),
        dict(position=swin.position[:, 1:]),
        dict(norm1=(*swin.norm2[:1], np.zeros(7, np.float32))),
        dict(fc2=dataclasses.replace(swin.fc2, scale=np.zeros(3, np.float32))),
        dict(proj=dataclasses.replace(swin.proj, input=Grid(0.0, 0, 255))),
    ):
        with pytest.raises(ValueError, match="wanted"):
            SwinBlock(dataclasses.replace(swin, **wrong))
    with pytest.raises(TypeError, match="int8"):
        SwinBlock(dataclasses.replace(swin, fc1=dataclasses.replace(swin.fc1, weights=np.zeros((6, 8), np.int16))))
    block = SwinBlock(swin)
    values = np.zeros((1, 8, 8, 8), np.float32)
    wrong_arrays: list[tuple[np.ndarray, dict[str, Any]]] = [
        (values[:, :7], {}),
        (values[..., :7], {}),
        (values.astype(np.float64), {}),
        (values, dict(shift=4)),
        (values, dict(threads=0)),
        (values, dict(workspace=np.zeros(64, np.uint8))),
        (values, dict(trace=np.zeros((4, 3), np.uint8))),
    ]
    for array, options in wrong_arrays:
        with pytest.raises(ValueError, match="wanted"):
            block.bind(array, **options)
