"""bfloat16 is used where the device computes in it, and only there."""

import pytest
import torch

from bitlens.training.muon import orthogonalized
from bitlens.training.precision import autocast, computes_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize(("found", "wanted"), [("avx512_bf16", True), ("amx_bf16", True), ("avx2", False)])
def test_the_cpu_is_asked(monkeypatch: pytest.MonkeyPatch, found: str, wanted: bool):
    computes_bf16.cache_clear()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "amx_bf16": False, found: True})
    x = torch.eye(3)
    try:
        with autocast(CPU, True):
            assert (x @ x).dtype == (torch.bfloat16 if wanted else torch.float32)
        with autocast(CPU, False):
            assert (x @ x).dtype == torch.float32
        steps = orthogonalized(torch.diag(torch.tensor([3.0, 0.5, 1.0]))[None])
        assert steps.dtype == torch.float32 and torch.equal(steps, steps.bfloat16().float()) == wanted
        assert ((steps[0].diagonal() > 0.6) & (steps[0].diagonal() < 1.3)).all()
    finally:
        computes_bf16.cache_clear()
