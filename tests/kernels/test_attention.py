"""Temporal attention: exact sums, every level equal to the scalar reference, and both near what torch computes."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bitlens.engine.lower import IntegerProduct, Operand
from bitlens.engine.reference import accumulate_product

from .conftest import LEVELS

bk = pytest.importorskip("bitlens_kernels")


def grids(random: np.random.Generator, heads: int, bits: int):
    """Attention's constants as the kernel wants them."""
    largest = 2**bits - 1
    zeros = random.integers(0, largest + 1, (4, heads)).astype(np.float32)
    zeros[2] = random.integers(0, 2, heads)
    unit = random.uniform(0.2, 1, (3, heads)).astype(np.float32) / largest
    return bk.Attention(heads, zeros, unit[0], 1.2 * unit[1], 0, largest, unit[2])


def attend(attention, codes, level, target_zero, largest, threads=1):
    t, h, w, c = codes.shape
    depth = c // 3 // attention.heads
    scores = np.zeros((h * w, attention.heads, t, t), np.int32)
    mixed = np.zeros((h * w, attention.heads, t, depth), np.int32)
    out = np.zeros((t, h, w, c // 3), np.uint8)
    target = bk.Target(out, 0.05, target_zero, 0, largest)
    bk.bind_attend(attention, codes, target, scores=scores, mixed=mixed, level=level, threads=threads)()
    return scores, mixed, out


@settings(max_examples=40)
@given(
    t=st.integers(1, 9), heads=st.integers(1, 5), depth=st.integers(1, 9), pixels=st.integers(1, 40),
    bits=st.sampled_from([8, 4, 3, 2]), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@example(t=8, heads=4, depth=8, pixels=37, bits=4, seed=0)  # the sizes that are compiled on their own
@example(t=8, heads=4, depth=4, pixels=200, bits=8, seed=1)
@example(t=8, heads=2, depth=8, pixels=500, bits=8, seed=2)
def test_every_level_equals_the_scalar_twin(t, heads, depth, pixels, bits, seed):
    random = np.random.default_rng(seed)
    codes = random.integers(0, 2**bits, (t, 1, pixels, 3 * heads * depth)).astype(np.uint8)
    attention = grids(random, heads, bits)
    twin = attend(attention, codes, "scalar", 3.0, 2**bits - 1)
    for level in LEVELS:
        found = attend(attention, codes, level, 3.0, 2**bits - 1, threads=2)
        for name, a, b in zip(("scores", "mixed", "codes"), found, twin, strict=True):
            assert np.array_equal(a, b), f"{level}: {name}"


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_sums_equal_the_reference_and_codes_torch(bits: int):
    random, (t, heads, depth, pixels) = np.random.default_rng(bits), (8, 4, 8, 37)
    largest = 2**bits - 1
    codes = random.integers(0, largest + 1, (t, 1, pixels, 3 * heads * depth)).astype(np.uint8)
    attention = grids(random, heads, bits)
    scores, mixed, out = attend(attention, codes, LEVELS[-1], 3.0, largest)

    zeros = torch.from_numpy(attention.zeros)
    column = (1, heads, 1, 1, 1)
    one = torch.ones(column)
    operands = [Operand(one, z.reshape(column), 0, largest) for z in zeros]
    q, k, v = (
        torch.from_numpy(codes).int().reshape(t, pixels, 3, heads, depth).permute(2, 3, 0, 4, 1)[:, None]
    )  # 1 n t d p
    wanted = accumulate_product(IntegerProduct(operands[0], operands[1]), q, k.transpose(2, 3))  # 1 n t t p
    assert np.array_equal(scores, wanted[0].permute(3, 0, 1, 2).numpy())

    weights = (wanted * torch.from_numpy(attention.score_unit).reshape(column)).softmax(3)
    step = torch.from_numpy(attention.weight_step).reshape(column)
    weight_codes = Operand(step, zeros[2].reshape(column), 0, largest).codes(weights)
    total = accumulate_product(IntegerProduct(operands[2], operands[3]), weight_codes, v)
    differ = mixed != total[0].permute(3, 0, 1, 2).numpy()
    assert differ.mean() < 1e-3  # a weight on a tie, in exp's last bits
    values = total * torch.from_numpy(attention.mixed_unit).reshape(column)
    found = Operand(torch.tensor(0.05), torch.tensor(3.0), 0, largest).codes(values)[0]  # n t d p
    assert (out != found.permute(1, 3, 0, 2).reshape(t, 1, pixels, -1).numpy()).mean() < 1e-3


def test_bad_shapes_are_refused():
    attention = grids(np.random.default_rng(0), 4, 4)
    with pytest.raises(ValueError, match="heads"):
        bk.bind_attend(
            attention, np.zeros((2, 1, 4, 25), np.uint8), bk.Target(np.zeros((2, 1, 4, 8), np.uint8), 1, 0, 0, 15)
        )
