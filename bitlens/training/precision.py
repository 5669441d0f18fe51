"""Which numbers a training step is computed in."""

from functools import cache

import torch

__all__ = ["autocast", "computes_bf16"]


def autocast(device: torch.device, bf16: bool) -> torch.autocast:
    """bfloat16 inside the block where it is wanted and the device computes in it, else what the tensors have."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16 and computes_bf16(device))


@cache
def computes_bf16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16 itself. Elsewhere torch imitates it, in four times float32's time."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
