"""Networks as files that other engines load without bitlens: ONNX, and OpenVINO's IR. Every layer is checked first."""

import os
from pathlib import Path

import torch
from torch import nn

from bitlens.engine.checks import Check
from bitlens.engine.graph import build_camera
from bitlens.engine.lower import lower
from bitlens.engine.onnx import Form, build
from bitlens.engine.openvino import Engine, reconstructs
from bitlens.engine.runtime import openvino
from bitlens.files import atomic_path
from bitlens.networks.efficientsci import EfficientSCI


def export_onnx(network: nn.Module, path: str | os.PathLike[str], form: Form = "qdq") -> dict[str, float]:
    """Write an EfficientSCI, fake-quantized or float, as ONNX, for any batch, number of frames, height and width.

    The file has the inputs `measurement` (b, h, w) and `mask` (1 or b, t, h, w) and the output `video` (b, c, t, h, w),
    all float32. Odd sizes are padded inside, as the network does it.

    Args:
        form: of quantized layers, see `engine.onnx`.

    Returns:
        dB of each layer in ONNX Runtime against the integer reference.

    Raises:
        TypeError: there is no graph for the network.
        ValueError: `onnx` or `onnxruntime` is not installed, an unknown form, a grid without a range, or ONNX Runtime
            computes a layer wrongly.
        OSError: the file cannot be written.
    """
    from bitlens.engine.onnxruntime import check_layers

    network = exportable(network)
    with atomic_path(path) as temporary, torch.no_grad():
        lowered = lower(network)
        snrs = check_layers(network, lowered, form)
        temporary.write_bytes(build(network, lowered, form)[0].SerializeToString())
    return snrs


def export_openvino(
    network: nn.Module, path: str | os.PathLike[str], frames: int, height: int, width: int
) -> list[Check]:
    """Write an EfficientSCI as OpenVINO's IR, NAME.xml and NAME.bin, for one size of video and batches of one.

    Inputs and output are those of `export_onnx`. The size is fixed: it is with known sizes that OpenVINO plans its int8
    kernels.

    Returns:
        How each layer fared in OpenVINO on this CPU.

    Raises:
        TypeError: there is no graph for the network.
        ValueError: the path does not end in .xml, a size is odd or below 1, a grid without a range, or OpenVINO
            computes a layer wrongly.
        OSError: the files cannot be written.
    """
    network, path = exportable(network), Path(path)
    if path.suffix != ".xml":
        raise ValueError(
            f"cannot write {path}; wanted a name that ends in .xml (a .bin is written beside it); change it"
        )
    if frames < 1 or height < 2 or width < 2 or height % 2 or width % 2:
        raise ValueError(
            f"{frames} frames of {height}x{width}; wanted 1 frame or more, and an even height and width; pad the "
            "measurement and the mask by one row or column, or export ONNX, which does it inside"
        )
    with atomic_path(path) as xml, atomic_path(path.with_suffix(".bin")) as weights, torch.no_grad():
        checks = Engine(network).checks
        model = build_camera(network, lower(network), frames, height, width)
        openvino().save_model(model, str(xml), compress_to_fp16=False)
        os.replace(xml.with_suffix(".bin"), weights)
    return checks


def exportable(network: nn.Module) -> EfficientSCI:
    """The network, if there is a graph for it."""
    if not reconstructs(network):
        raise TypeError(
            f"a {type(network).__name__} came, for which there is no graph; wanted an EfficientSCI (no Q-ViT); "
            "choose another checkpoint, or run this one in torch"
        )
    return network
