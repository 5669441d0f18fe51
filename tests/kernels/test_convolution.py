"""Every method at every level of this CPU against the scalar reference, and that against the reference: 0 wrong."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitlens.engine.reference import accumulate

from .conftest import BITS, LEVELS, Case, cases

bk = pytest.importorskip("bitlens_kernels")


@pytest.mark.parametrize("method", BITS)
@settings(max_examples=40)
@given(data=st.data())
def test_every_level_equals_the_scalar_twin(method: str, data):
    case = data.draw(cases(method))
    twin = case.convolution("direct", "scalar").totals(case.codes)
    for level in LEVELS:
        found = case.convolution(method, level).totals(case.codes, threads=data.draw(st.sampled_from([1, 1, 2])))
        assert np.array_equal(found, twin), f"{level}: {(found != twin).sum()} of {twin.size} wrong"


@pytest.mark.parametrize("method", BITS)
@settings(max_examples=15)
@given(data=st.data())
def test_the_twin_and_the_best_level_equal_the_reference(method: str, data):
    case = data.draw(cases(method))
    codes = torch.from_numpy(case.codes).int().permute(3, 0, 1, 2)[None]
    wanted = accumulate(case.layer(), codes)[0].permute(1, 2, 3, 0).numpy()
    for level in {"scalar", LEVELS[-1]}:
        assert np.array_equal(case.convolution(method, level).totals(case.codes), wanted)


@pytest.mark.parametrize("level", LEVELS)
def test_a_range_of_channels_is_read_and_nothing_else_is_written(level: str):
    random = np.random.default_rng(0)
    weights = random.integers(-8, 8, (20, 1, 3, 3, 12)).astype(np.int8)
    codes = random.integers(0, 16, (2, 7, 9, 31)).astype(np.uint8)
    totals = np.full((2, 7, 9, 50), -7, np.int32)
    for method in ("direct", "winograd2"):
        convolution = bk.Convolution(weights, padding=(0, 1, 1), zero=5, largest=15, method=method, level=level)
        convolution.run(codes[..., 4:16], bk.Output(totals=totals[..., 3:23]))
        assert np.array_equal(totals[..., 3:23], convolution.totals(np.ascontiguousarray(codes[..., 4:16])))
        assert (totals[..., :3] == -7).all() and (totals[..., 23:] == -7).all()


def test_saturation_of_16_bit_sums_does_not_happen():
    """255 * 127 * 2 exceeds 16 bits: where vpmaddubsw would saturate."""
    weights, codes = np.full((16, 1, 1, 1, 64), 127, np.int8), np.full((1, 1, 8, 64), 255, np.uint8)
    for level in LEVELS:
        assert (bk.Convolution(weights, level=level).totals(codes) == 255 * 127 * 64).all()


WIDTHS = [(w, a) for w, a in itertools.product(range(1, 9), repeat=2)]


@pytest.mark.parametrize("method", ["winograd2", "winograd2wide", "winograd3"])
def test_winograd_fits_exactly_where_its_transforms_stay_in_a_byte(method: str):
    """Against the transforms of every choice of sign, in integers: the largest that weights and codes can become."""
    g = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]])
    b = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
    if method == "winograd2wide":
        g = np.array([[1, 0, 0], [1, 1, 1], [1, -1, 1], [1, 2, 4], [0, 0, 1]])
        b = np.array([[2, -1, -2, 1, 0], [0, -2, -1, 1, 0], [0, 2, -3, 1, 0], [0, -1, 0, 1, 0], [0, 2, -1, -2, 1]])
    axes = 3 if method == "winograd3" else 2
    weight, code = g, b
    for _ in range(axes - 1):
        weight, code = np.kron(weight, g), np.kron(code, b)
    for weight_bits, bits in WIDTHS:
        low, high, largest = -(2 ** (weight_bits - 1)), 2 ** (weight_bits - 1) - 1, 2**bits - 1
        most = np.where(weight > 0, weight * high, weight * low).sum(1).max()
        least = np.where(weight > 0, weight * low, weight * high).sum(1).min()
        span = (np.abs(code).sum(1) * largest).max()
        wanted = bool(most <= 127 and least >= -128 and span <= 255)
        shape = (1, 3, 3, 3, 1)
        assert bk.fits(shape, low, high, zero=0, largest=largest, method=method) == wanted, (weight_bits, bits)


def test_the_pairs_of_bits_that_the_manual_names():
    def fits(method: str, weight_bits: int, bits: int) -> bool:
        half = 2 ** (weight_bits - 1)
        return bk.fits((1, 3, 3, 3, 1), -half, half - 1, zero=0, largest=2**bits - 1, method=method)

    assert [pair for pair in WIDTHS if fits("winograd2", *pair)] == [(w, a) for w in range(1, 5) for a in range(1, 7)]
    assert [pair for pair in WIDTHS if fits("winograd2wide", *pair)] == [(w, a) for w in (1, 2) for a in (1, 2, 3)]
    assert [pair for pair in WIDTHS if fits("winograd3", *pair)] == [(w, a) for w in range(1, 4) for a in range(1, 6)]
    assert [pair for pair in WIDTHS if fits("lookup", *pair)] == [(w, a) for w in (1, 2) for a in (1, 2)]


@pytest.mark.parametrize(
    ("method", "weight", "largest", "stride"),
    [
        ("winograd2", 100, 15, 1),
        ("winograd2", 1, 255, 1),
        ("winograd2wide", 3, 3, 1),
        ("winograd2wide", 1, 15, 1),
        ("winograd3", 7, 7, 1),
        ("lookup", 2, 3, 1),
        ("winograd2", 1, 3, 2),
    ],
)
def test_what_is_not_exact_is_refused(method: str, weight: int, largest: int, stride: int):
    weights = np.full((4, 3, 3, 3, 4), weight, np.int8)
    with pytest.raises(ValueError, match="not exact"):
        bk.Convolution(weights, largest=largest, method=method, stride=(1, stride, stride))


def test_a_zero_point_beyond_the_codes_counts_as_a_code():
    shape, options = (1, 3, 3, 3, 1), dict(largest=3, method="winograd3")
    assert bk.fits(shape, -2, 1, zero=3, **options) and not bk.fits(shape, -2, 1, zero=200, **options)


@pytest.mark.parametrize("method", BITS)
def test_scratch_memory_does_not_grow_with_the_height_of_a_picture(method: str):
    weights = np.zeros((64, 3, 3, 3, 64), np.int8)
    convolution = bk.Convolution(weights, padding=(1, 1, 1), largest=3, method=method)
    assert convolution.workspace((8, 256, 256), threads=2) == convolution.workspace((8, 8, 256), threads=2) < 2**20


def test_sums_beyond_32_bits_are_refused():
    with pytest.raises(ValueError, match="32 bits"):
        bk.Convolution(np.full((1, 1, 1, 1, 40_000), 127, np.int8))


def test_bad_arguments_are_refused():
    weights = np.zeros((4, 1, 1, 1, 4), np.int8)
    with pytest.raises(TypeError, match="int8"):
        bk.Convolution(weights.astype(np.float32))
    with pytest.raises(ValueError, match="method 'fft'"):
        bk.Convolution(weights, method="fft")
    convolution = bk.Convolution(weights)
    codes = np.zeros((1, 2, 2, 4), np.uint8)
    with pytest.raises(ValueError, match="codes"):
        convolution.totals(codes[..., :3])
    with pytest.raises(ValueError, match="strides"):
        convolution.totals(np.zeros((1, 2, 4, 2), np.uint8).transpose(0, 1, 3, 2))
    with pytest.raises(ValueError, match="totals"):
        convolution.run(codes, bk.Output(totals=np.zeros((1, 2, 2, 3), np.int32)))
    with pytest.raises(ValueError, match="workspace"):
        convolution.bind(codes, bk.Output(), workspace=np.zeros(1, np.uint8))
    with pytest.raises(ValueError, match="one pixel"):
        bk.Convolution(np.zeros((4, 1, 3, 3, 4), np.int8)).bind(codes, bk.Output())


def test_a_level_that_is_named_is_the_best_one(monkeypatch: pytest.MonkeyPatch):
    for level in LEVELS:
        monkeypatch.setenv("BITLENS_KERNELS_LEVEL", level)
        assert bk.best_level() == level and bk.levels() == LEVELS[: LEVELS.index(level) + 1]
    monkeypatch.setenv("BITLENS_KERNELS_LEVEL", "sse2")
    with pytest.raises(ValueError, match=f"'sse2'; wanted one of {', '.join(LEVELS)}"):
        bk.best_level()


def test_a_level_of_another_processor_is_refused():
    weights, has = np.zeros((4, 1, 1, 1, 4), np.int8), bk.library.functions().bk_has
    others = [level for place, level in enumerate(bk.LEVELS) if not has(place)]
    for level in others:
        with pytest.raises(ValueError, match="no such instruction set"):
            bk.Convolution(weights, level=level)
    assert others  # no processor has them all


def test_a_call_can_be_made_again():
    random = np.random.default_rng(0)
    case = Case(
        random.integers(-8, 8, (32, 1, 3, 3, 32)).astype(np.int8),
        random.integers(0, 16, (2, 6, 8, 32)).astype(np.uint8),
        *((1, 1, 1), (0, 1, 1), 3, 15),
    )
    convolution = case.convolution("winograd2", LEVELS[-1])
    totals, codes = np.zeros((2, 6, 8, 32), np.int32), case.codes.copy()
    call = convolution.bind(codes, bk.Output(totals=totals))
    for _ in range(2):
        codes[:] = random.integers(0, 16, codes.shape)
        call()
        assert np.array_equal(totals, convolution.totals(codes))
