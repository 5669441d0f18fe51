"""Codes of 1 to 8 bits packed without gaps into bytes, and back."""

import numpy as np
import torch
from torch import Tensor


def pack(codes: Tensor, bits: int, qmin: int) -> Tensor:
    """Codes of any shape as a stream of `bits` bits each, highest bit first, in uint8; the last byte is padded.

    Raises:
        ValueError: a code does not lie in qmin .. qmin + 2^bits - 1.
    """
    offset = codes.flatten().to("cpu", torch.int16).numpy() - qmin
    if offset.size and (offset.min() < 0 or offset.max() >= 2**bits):
        raise ValueError(
            f"codes span {codes.min()}..{codes.max()}; wanted {bits} bits from {qmin}; quantize them first"
        )
    planes = np.unpackbits(offset.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :]
    return torch.from_numpy(np.packbits(planes.reshape(-1)))


def unpack(packed: Tensor, bits: int, qmin: int, count: int) -> Tensor:
    """The first `count` codes of a packed stream, as int16.

    Raises:
        ValueError: the stream is too short or too long for them.
    """
    wanted = (count * bits + 7) // 8
    if packed.dtype != torch.uint8 or packed.numel() != wanted:
        raise ValueError(
            f"{packed.numel()} bytes of codes; wanted {wanted} for {count} codes of {bits} bits; the file is damaged"
        )
    planes = np.unpackbits(packed.numpy())[: count * bits].reshape(count, bits)
    padded = np.concatenate([np.zeros((count, 8 - bits), np.uint8), planes], axis=1)
    return torch.from_numpy(np.packbits(padded, axis=1)[:, 0].astype(np.int16) + np.int16(qmin))
