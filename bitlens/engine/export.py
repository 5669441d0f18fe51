"""Networks as files that other engines load without bitlens: ONNX, and OpenVINO's IR. Every layer is checked first."""

import os
from pathlib import Path

import torch
from torch import nn

from bitlens.engine.checks import Check, check_picture
from bitlens.engine.graph import build_camera
from bitlens.engine.lower import lower
from bitlens.engine.onnx import Form, build
from bitlens.engine.openvino import Engine, enlarges, reconstructs
from bitlens.engine.picture import build_picture
from bitlens.engine.refusals import GRAPHS, unknown
from bitlens.engine.runtime import openvino
from bitlens.files import atomic_path
from bitlens.networks.efficientsci import EfficientSCI

ONNX_CHECK = (24, 16)
"""Height and width of the picture on which ONNX is checked: multiples of 8, which SMFANet's pooling needs there."""


def export_onnx(
    network: nn.Module, path: str | os.PathLike[str], form: Form = "qdq", size: tuple[int, int] | None = None
) -> dict[str, float]:
    """Write an EfficientSCI or a network that enlarges pictures, fake-quantized or float, as ONNX.

    EfficientSCI's file has the inputs `measurement` (b, h, w) and `mask` (1 or b, t, h, w) and the output `video`
    (b, c, t, h, w), for any batch, number of frames, height and width; odd sizes are padded inside, as the network does
    it. That of the others has the input `image` (1, 3, h, w) and the output `large` (1, 3, scale h, scale w), for one
    size. All are float32.

    Args:
        network: it is not changed.
        path: the file.
        form: of quantized layers, see `engine.onnx`; pictures have "qdq" only.
        size: height and width of the picture.

    Returns:
        dB of each layer in ONNX Runtime against the integer reference.

    Raises:
        TypeError: there is no graph for the network.
        ValueError: `onnx` or `onnxruntime` is not installed, an unknown form, a grid without a range, or ONNX Runtime
            computes a layer wrongly.
        OSError: the file cannot be written.
    """
    from bitlens.engine.onnxruntime import check_file, check_layers
    from bitlens.engine.picture_onnx import build_picture as build_picture_onnx

    if enlarges(network):
        if form != "qdq" or size is None:
            raise ValueError(f"form {form}, size {size} of a picture; wanted qdq and a height and width; give them")
        check_size("pictures", *size)
        with atomic_path(path) as temporary:
            lowered = lower(network)
            listening = build_picture_onnx(network, lowered, *ONNX_CHECK, taps=True)
            inputs = {"image": check_picture(ONNX_CHECK).numpy()}
            snrs = check_file(network, lowered, *listening, inputs, channels=-1)
            temporary.write_bytes(build_picture_onnx(network, lowered, *size)[0].SerializeToString())
        return snrs
    network = exportable(network)
    with atomic_path(path) as temporary, torch.no_grad():
        lowered = lower(network)
        snrs = check_layers(network, lowered, form)
        temporary.write_bytes(build(network, lowered, form)[0].SerializeToString())
    return snrs


def export_openvino(network: nn.Module, path: str | os.PathLike[str], *size: int) -> list[Check]:
    """Write a network as OpenVINO's IR, NAME.xml and NAME.bin, for one size and batches of one.

    Inputs and output are those of `export_onnx`. The size is fixed: it is with known sizes that OpenVINO plans its int8
    kernels.

    Args:
        network: it is not changed.
        path: of the .xml.
        size: frames, and even height and width, of a video; height and width of a picture.

    Returns:
        How each layer fared in OpenVINO on this CPU.

    Raises:
        TypeError: there is no graph for the network.
        ValueError: the path does not end in .xml, a size is odd or below 1, a grid without a range, or OpenVINO
            computes a layer wrongly.
        OSError: the files cannot be written.
    """
    path = Path(path)
    if not enlarges(network):
        network = exportable(network)
    if path.suffix != ".xml":
        raise ValueError(
            f"cannot write {path}; wanted a name that ends in .xml (a .bin is written beside it); change it"
        )
    check_size("pictures" if enlarges(network) else "measurements", *size)
    with atomic_path(path) as xml, atomic_path(path.with_suffix(".bin")) as weights, torch.no_grad():
        engine = Engine(network)
        if isinstance(network, EfficientSCI):
            model = build_camera(network, engine.lowered, *size)
        else:
            model, _ = build_picture(network, engine.lowered, *size)
        openvino().save_model(model, str(xml), compress_to_fp16=False)
        os.replace(xml.with_suffix(".bin"), weights)
    return engine.checks


def check_size(what: str, *size: int) -> None:
    """Refuse sizes that a file cannot be made for."""
    *frames, height, width = size
    if what == "pictures":
        if frames or height < 1 or width < 1:
            raise ValueError(f"pictures of {'x'.join(map(str, size))}; wanted a height and a width of 1 or more")
    elif len(frames) != 1 or frames[0] < 1 or height < 2 or width < 2 or height % 2 or width % 2:
        raise ValueError(
            f"{frames[0] if frames else 'no'} frames of {height}x{width}; wanted 1 frame or more, and an even height "
            "and width; pad the measurement and the mask by one row or column, or export ONNX, which does it inside"
        )


def exportable(network: nn.Module) -> EfficientSCI:
    """The network, if there is a graph for it."""
    if not reconstructs(network):
        raise TypeError(
            f"{unknown(network, GRAPHS)}, which have graphs; choose another checkpoint, or run this one in torch"
        )
    return network
