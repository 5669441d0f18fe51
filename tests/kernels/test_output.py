"""The output stage: every level equals the scalar one bit for bit; both equal the reference but for counted ties."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitlens.engine.lower import Operand
from bitlens.engine.reference import accumulate, requantize, values

from .conftest import BITS, LEVELS, Case, cases

bk = pytest.importorskip("bitlens_kernels")


def beside(shape: tuple[int, ...], level: str, random: np.random.Generator) -> "bk.Side":
    """A convolution of a few channels with a kernel of 1 or 3, whose values are added at every output of a shape."""
    channels, taps, zero = int(random.integers(1, 70)), int(random.choice([1, 3])), int(random.integers(0, 256))
    weights = random.integers(-128, 128, (shape[-1], 1, taps, taps, channels)).astype(np.int8)
    codes = random.integers(0, 256, (*shape[:3], channels)).astype(np.uint8)
    padding = (0, taps // 2, taps // 2)
    convolution = bk.Convolution(weights, method="direct", level=level, padding=padding, zero=zero, largest=255)
    scale = random.uniform(1e-5, 1e-4, shape[-1]).astype(np.float32)
    bias = random.normal(size=shape[-1]).astype(np.float32)
    return bk.Side(convolution, codes, scale, bias, slope=float(random.choice([0.01, 1.0])))


def outcome(
    case: Case,
    level: str,
    half: bool,
    seed: int,
    method: str = "direct",
    side: bool = False,
    inside: bool = False,
    handed: bool = False,
) -> list[np.ndarray]:
    """All that the output stage can write at once, of one convolution; `inside`: values over what is added."""
    random = np.random.default_rng(seed)
    convolution = case.convolution(method, level)
    shape = (*convolution.output_size(case.codes.shape[:3]), len(case.weights))
    outputs, first = shape[-1], random.integers(0, shape[-1])
    add = [random.normal(size=shape).astype(np.float32) for _ in range(2)]
    if half:
        add = [(part.view(np.uint32) >> 16).astype(np.uint16) for part in add]
    out = add[1] if inside else np.zeros(shape, np.uint16 if half else np.float32)
    totals, all_codes = np.zeros(shape, np.int32), np.zeros(shape, np.uint8)
    some = np.zeros((*shape[:3], outputs + 5), np.uint8)
    step = random.uniform(0.05, 0.2, outputs - first).astype(np.float32)
    targets = [
        bk.Target(all_codes, 0.07, 3.0, 0, 15),
        bk.Target(some[..., 2 : 2 + outputs - first], step, 1.0, -128, 127, begin=first),
    ]
    scale = random.uniform(1e-4, 1e-3, outputs).astype(np.float32)
    bias = random.normal(size=outputs).astype(np.float32)
    output = bk.Output(totals=totals, scale=scale, bias=bias, slope=0.01, add=add, values=out, targets=targets)
    if side:
        output = replace(output, side=beside(shape, level, random))
    if handed:
        wide = random.integers(0, 256, (*shape[:3], outputs + 3)).astype(np.uint8)
        weight = random.normal(scale=0.1, size=outputs).astype(np.float32)
        output = replace(output, handed=bk.Handed(wide[..., 1 : 1 + outputs], weight))
    convolution.run(case.codes, output)
    return [totals, out, all_codes, some]


@settings(max_examples=60)
@given(data=st.data())
def test_every_level_equals_the_scalar_twin(data):
    method = data.draw(st.sampled_from(list(BITS)))
    case, half, seed = data.draw(cases(method)), data.draw(st.booleans()), data.draw(st.integers(0, 1000))
    side, inside, handed = (data.draw(st.booleans()) for _ in range(3))
    twin = outcome(case, "scalar", half, seed, side=side, handed=handed)
    for level in LEVELS:
        for found, wanted in zip(outcome(case, level, half, seed, method, side, inside, handed), twin, strict=True):
            assert np.array_equal(found, wanted), level


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("half", [False, True])
def test_a_side_is_the_values_that_it_would_have_alone(level: str, half: bool):
    """Added in registers, it changes nothing: in float32 its values alone, then added, are the same to the last bit."""
    random = np.random.default_rng(3)
    weights = random.integers(-8, 8, (48, 1, 3, 3, 32)).astype(np.int8)
    case = Case(weights, random.integers(0, 16, (2, 9, 13, 32)).astype(np.uint8), (1, 1, 1), (0, 1, 1), 3, 15)
    main, side = case.convolution("direct", level), beside((2, 9, 13, 48), level, random)
    own = dict(scale=np.full(48, 1e-3, np.float32), bias=random.normal(size=48).astype(np.float32))
    together = np.zeros((2, 9, 13, 48), np.uint16 if half else np.float32)
    alone, apart = np.zeros((2, 2, 9, 13, 48), np.float32)
    main.run(case.codes, bk.Output(**own, values=together, side=side))
    side.convolution.run(side.codes, bk.Output(scale=side.scale, bias=side.bias, slope=side.slope, values=alone))
    main.run(case.codes, bk.Output(**own, values=apart, add=[alone]))
    if half:
        found = (together.astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_allclose(found, apart, rtol=2**-8, atol=1e-6)
    else:
        assert np.array_equal(together, apart)


@pytest.mark.parametrize("level", ["scalar", *LEVELS])
def test_codes_that_are_handed_on_are_added_before_the_slope(level: str):
    random = np.random.default_rng(5)
    weights = random.integers(-8, 8, (37, 1, 3, 3, 37)).astype(np.int8)
    case = Case(weights, random.integers(0, 16, (1, 6, 7, 37)).astype(np.uint8), (1, 1, 1), (0, 1, 1), 3, 15)
    scale, bias, weight = (random.normal(size=37).astype(np.float32) for _ in range(3))
    codes = random.integers(0, 256, (1, 6, 7, 37)).astype(np.uint8)
    alone, found = np.zeros((2, 1, 6, 7, 37), np.float32)
    convolution = case.convolution("direct", level)
    convolution.run(case.codes, bk.Output(scale=scale, bias=bias, values=alone))
    handed = bk.Handed(codes, weight)
    convolution.run(case.codes, bk.Output(scale=scale, bias=bias, slope=0.25, values=found, handed=handed))
    wanted = alone + codes * weight
    np.testing.assert_allclose(found, np.where(wanted > 0, wanted, wanted / 4), rtol=1e-5, atol=1e-4)
    for wrong in (bk.Handed(codes[..., :36], weight), bk.Handed(codes, weight[:36])):
        with pytest.raises(ValueError, match="handed on"):
            convolution.run(case.codes, bk.Output(scale=scale, bias=bias, values=found, handed=wrong))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("method", "kernel"), [("direct", 1), ("direct", 3), ("winograd2", 3)])
def test_pixels_that_are_spread_are_those_side_by_side(level: str, method: str, kernel: int):
    """s x s convolutions write a pixel shuffle: values over what is added, codes into a range of channels."""
    random, s = np.random.default_rng(4), 2
    weights = random.integers(-8, 8, (20, 1, kernel, kernel, 48)).astype(np.int8)
    codes = random.integers(0, 16, (3, 5, 9, 48)).astype(np.uint8)
    case = Case(weights, codes, (1, 1, 1), (0, kernel // 2, kernel // 2), 3, 15)
    convolution, scale = case.convolution(method, level), np.full(20, 1e-2, np.float32)
    added = random.normal(size=(3, 5 * s, 9 * s, 20)).astype(np.float32)
    values, found = added.copy(), np.zeros((3, 5 * s, 9 * s, 28), np.uint8)
    for i in range(s):
        for j in range(s):
            at = np.s_[:, i::s, j::s]
            targets = [bk.Target(found[..., 4:24][at], 0.1, 8.0, 0, 15)]
            inside = values[at]
            wide = bk.Output(scale=scale, slope=0.1, add=[inside], values=inside, targets=targets, spread=s)
            convolution.run(codes, wide, threads=2)
            alone = np.zeros((3, 5, 9, 20), np.float32), np.zeros((3, 5, 9, 20), np.uint8)
            near = [np.ascontiguousarray(added[at])]
            targets = [bk.Target(alone[1], 0.1, 8.0, 0, 15)]
            convolution.run(codes, bk.Output(scale=scale, slope=0.1, add=near, values=alone[0], targets=targets))
            assert np.array_equal(values[at], alone[0]) and np.array_equal(found[..., 4:24][at], alone[1])
    assert not found[..., :4].any() and not found[..., 24:].any()


@pytest.mark.parametrize("level", LEVELS)
def test_codes_equal_the_reference_but_for_ties(level: str):
    random, wrong, count = np.random.default_rng(0), 0, 0
    for zero, largest in ((0, 15), (7, 15), (100, 255), (1, 3)):
        weights = random.integers(-8, 8, (48, 1, 3, 3, 32)).astype(np.int8)
        codes = random.integers(0, largest + 1, (2, 12, 14, 32)).astype(np.uint8)
        case = Case(weights, codes, (1, 1, 1), (0, 1, 1), zero, largest)
        layer, target = case.layer(), Operand(torch.tensor(0.037), torch.tensor(float(zero)), 0, largest)
        total = accumulate(layer, torch.from_numpy(codes).int().permute(3, 0, 1, 2)[None])
        wanted = requantize(layer, total, target)[0].permute(1, 2, 3, 0).numpy()
        exact = values(layer, total)[0].permute(1, 2, 3, 0).numpy()
        found, floats = np.zeros(wanted.shape, np.uint8), np.zeros(wanted.shape, np.float32)
        grid = bk.Target(found, 0.037, float(zero), 0, largest)
        scale, bias = layer.scale.float().numpy(), layer.bias.numpy()
        case.convolution("direct", level).run(codes, bk.Output(scale=scale, bias=bias, values=floats, targets=[grid]))
        np.testing.assert_allclose(floats, exact, rtol=1e-6, atol=1e-6)
        off = found != wanted
        place = exact / np.float32(0.037) + zero
        assert (np.abs(np.abs(place - np.floor(place)) - 0.5)[off] < 1e-3).all()
        wrong, count = wrong + int(off.sum()), count + off.size
    assert wrong < count / 1000


@pytest.mark.parametrize("level", LEVELS)
def test_ties_round_half_to_even_as_the_grid_does(level: str):
    """Values on every tie of grids whose step is no power of two: where 1 / step alone would go wrong."""
    for step, zero, low, high in ((0.1, 0.0, 0, 255), (0.3, 7.0, 0, 15), (0.7, 0.0, -128, 127), (1 / 3, 3.0, 0, 7)):
        ties = (np.arange(2 * low - 20, 2 * high + 20) / 2 - zero).astype(np.float32) * np.float32(step)
        near = np.concatenate([ties, np.nextafter(ties, np.float32(1e9)), np.nextafter(ties, np.float32(-1e9))])
        x = np.ascontiguousarray(near.reshape(1, 1, 1, -1))
        operand = Operand(torch.tensor(step, dtype=torch.float32), torch.tensor(zero), low, high)
        found = np.zeros(x.shape, np.uint8)
        target = bk.Target(found, step, zero, low, high)
        steps = np.full(x.shape[-1], step, np.float32)
        steps[-1] *= 2  # one other step, so that each channel's own is used
        each = np.zeros(x.shape, np.uint8)
        others = bk.Target(each, steps, zero, low, high)
        bk.bind_finish(x, bk.Output(targets=[target, others]), level=level)()
        wanted = operand.codes(torch.from_numpy(x)).numpy()
        assert np.array_equal(found.astype(int) + low, wanted)
        assert np.array_equal(each[..., :-1].astype(int) + low, wanted[..., :-1])


@pytest.mark.parametrize("level", LEVELS)
def test_values_far_beyond_a_grid_get_its_ends(level: str):
    """Places that do not fit in 32 bits, on grids whose ends are not those of a byte."""
    x = np.tile(np.array([-3e38, -1e12, -1e5, 1e5, 1e12, 3e38], np.float32), 12).reshape(1, 1, 1, -1)
    found = np.zeros(x.shape, np.uint8)
    bk.bind_finish(x, bk.Output(targets=[bk.Target(found, 0.3, 2.0, 0, 15)]), level=level)()
    assert np.array_equal(found, np.where(x > 0, 15, 0))


@pytest.mark.parametrize("level", LEVELS)
def test_targets_cut_the_channels_anywhere(level: str):
    """Eight targets that begin and end within vectors, each on its own grid."""
    random = np.random.default_rng(1)
    x = random.normal(size=(1, 3, 7, 150)).astype(np.float32)
    ends = [(0, 150), (0, 64), (5, 69), (16, 32), (31, 33), (64, 150), (149, 150), (70, 134)]
    grids = [(0.05 + 0.01 * i, float(i), 0, 15 + 16 * i) for i in range(8)]
    whole = [np.full((1, 3, 7, 160), 77, np.uint8) for _ in ends]
    targets = [
        bk.Target(codes[..., 3 : 3 + end - begin], *grid, begin=begin)
        for (begin, end), grid, codes in zip(ends, grids, whole, strict=True)
    ]
    bk.bind_finish(x, bk.Output(targets=targets), level=level)()
    for (begin, end), (step, zero, low, high), codes in zip(ends, grids, whole, strict=True):
        operand = Operand(torch.tensor(step, dtype=torch.float32), torch.tensor(zero), low, high)
        wanted = operand.codes(torch.from_numpy(x[..., begin:end].copy())).numpy()
        assert np.array_equal(codes[..., 3 : 3 + end - begin], wanted)
        assert (codes[..., :3] == 77).all() and (codes[..., 3 + end - begin :] == 77).all()


@pytest.mark.parametrize("level", LEVELS)
def test_the_stage_alone_adds_and_writes(level: str):
    random = np.random.default_rng(0)
    x, more = (random.normal(size=(2, 3, 5, 21)).astype(np.float32) for _ in range(2))
    out = np.zeros_like(x)
    bk.bind_finish(x, bk.Output(slope=0.01, add=[more], values=out), level=level, threads=2)()
    assert np.array_equal(out, np.where(x > 0, x, x * np.float32(0.01)) + more)


def test_bad_outputs_are_refused():
    convolution = bk.Convolution(np.zeros((4, 1, 1, 1, 4), np.int8))
    codes = np.zeros((1, 2, 2, 4), np.uint8)
    for output in (
        bk.Output(slope=2.0),
        bk.Output(targets=[bk.Target(np.zeros((1, 2, 2, 3), np.uint8), 1.0, 0.0, 0, 15, begin=2)]),
        bk.Output(values=np.zeros((1, 2, 2, 4), np.float64)),
    ):
        with pytest.raises(ValueError, match="wanted"):
            convolution.run(codes, output)
