"""Codes of any width survive packing, take exactly their bits, and streams of another length are refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitlens.quant.grid import code_range
from bitlens.quant.packing import pack, unpack


@given(bits=st.integers(1, 8), signed=st.booleans(), count=st.integers(0, 70), seed=st.integers(0, 1000))
def test_round_trip(bits: int, signed: bool, count: int, seed: int) -> None:
    qmin, qmax = code_range(bits, signed)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(qmin, qmax + 1, (count,), generator=generator).to(torch.int16)
    packed = pack(codes, bits, qmin)
    assert packed.dtype == torch.uint8 and packed.numel() == -(-count * bits // 8)
    back = unpack(packed, bits, qmin, count)
    assert back.dtype == torch.int16 and torch.equal(back, codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_code(bits: int) -> None:
    for signed in (False, True):
        qmin, qmax = code_range(bits, signed)
        codes = torch.arange(qmin, qmax + 1)
        packed = pack(codes.reshape(2, -1), bits, qmin)  # any shape
        assert unpack(packed, bits, qmin, len(codes)).tolist() == codes.tolist()


def test_layout() -> None:
    """Highest bit first, the last byte padded with zeros."""
    assert pack(torch.tensor([1, 2, 3]), 4, 0).tolist() == [0x12, 0x30]
    assert pack(torch.tensor([-4, 3, 0]), 3, -4).tolist() == [0b00011110, 0b00000000]
    assert pack(torch.tensor([1, 0, 1]), 1, 0).tolist() == [0b10100000]


@pytest.mark.parametrize(("codes", "bits", "qmin"), [([16], 4, 0), ([-1], 4, 0), ([8], 4, -8), ([-9, 0], 4, -8)])
def test_codes_out_of_range(codes: list[int], bits: int, qmin: int) -> None:
    with pytest.raises(ValueError, match=f"wanted {bits} bits from {qmin}"):
        pack(torch.tensor(codes), bits, qmin)


def test_wrong_streams() -> None:
    packed = pack(torch.arange(10), 4, 0)
    for stream in (packed[:-1], torch.cat([packed, packed[:1]]), packed.to(torch.int16), packed[:0]):
        with pytest.raises(ValueError, match="wanted 5 for 10 codes of 4 bits; the file is damaged"):
            unpack(stream, 4, 0, 10)
