"""What every kind of low-bit network for pictures must do: be saved, and run in integers in each engine."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bitlens import checkpoint
from bitlens.engine.export import export_onnx
from bitlens.engine.openvino import WRONG, Engine
from bitlens.networks.imdn import IMDN
from bitlens.networks.ngswin import NGswin
from bitlens.quant.layers import Quantized, quantized_layers

KINDS = {
    "IMDN": lambda: IMDN(2, 16, 1).eval(),
    "NGswin": lambda: NGswin(2, 16, (2, 1, 1, 2), (2, 2, 2, 2), 4, 16).eval(),
}


@torch.no_grad()
def runs_everywhere(low: nn.Module, images: Tensor, folder: Path) -> None:
    """Loaded again it computes the same; OpenVINO and ONNX Runtime agree with the reference, layer by layer.

    One code of a layer may fall to the other side of a rounding tie: hence the engine's own limit.
    """
    path = checkpoint.save(low, folder / "low.safetensors")
    assert torch.equal(checkpoint.load(path)(images), low(images))
    pytest.importorskip("openvino")
    engine = Engine(low, precision="f32", threads=1, cache=folder)
    checks = {check.name: check for check in engine.checks}
    for name, layer in quantized_layers(low).items():
        assert checks[name].snr > WRONG["f32"]
        if isinstance(layer, Quantized) and name in engine.lowered.layers:
            assert checks[name].kernel.upper().endswith("_I8"), checks[name]
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    assert min(export_onnx(low, folder / "net.onnx", size=(16, 24)).values()) > WRONG["f32"]
