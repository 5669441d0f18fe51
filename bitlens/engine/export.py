"""Networks as files that other engines load without bitlens: ONNX, and OpenVINO's IR. Every layer is checked first."""

import os
from pathlib import Path

import torch
from torch import nn

from bitlens.engine.checks import CHECK_SIZE, Check, check_picture
from bitlens.engine.graph import build_camera
from bitlens.engine.lower import lower
from bitlens.engine.onnx import Form, build
from bitlens.engine.openvino import Engine, enlarges, reconstructs, unfolds
from bitlens.engine.refusals import GRAPHS, unknown
from bitlens.engine.runtime import openvino
from bitlens.files import atomic_path
from bitlens.networks.efficientsci import EfficientSCI

ONNX_CHECK = (24, 16)
"""Height and width of the picture on which ONNX is checked: multiples of 8, which SMFANet's pooling needs there."""


def export_onnx(
    network: nn.Module, path: str | os.PathLike[str], form: Form = "qdq", size: tuple[int, ...] | None = None
) -> dict[str, float]:
    """Write an EfficientSCI, a DUN or a network that enlarges pictures, fake-quantized or float, as ONNX.

    Files of networks for video have the inputs `measurement` (b, h, w) and `mask` (1 or b, t, h, w) and the output
    `video` (b, c, t, h, w). EfficientSCI's is for any batch, number of frames, height and width; odd sizes are padded
    inside, as the network does it. That of the others is for one size and batches of one; of networks that enlarge
    pictures it has the input `image` (1, 3, h, w) and the output `large` (1, 3, scale h, scale w). All are float32.

    Args:
        network: it is not changed.
        path: the file.
        form: of quantized layers, see `engine.onnx`; all but EfficientSCI have "qdq" only.
        size: height and width of the picture; frames, height and width of DUN's video.

    Returns:
        dB of each layer in ONNX Runtime against the integer reference.

    Raises:
        TypeError: there is no graph for the network.
        ValueError: `onnx` or `onnxruntime` is not installed, an unknown form, a grid without a range, or ONNX Runtime
            computes a layer wrongly.
        OSError: the file cannot be written.
    """
    from bitlens.engine.onnxruntime import check_arrays, check_file, check_layers
    from bitlens.engine.picture_onnx import build_traced

    if enlarges(network) or unfolds(network):
        what, wanted = ("pictures", "a") if enlarges(network) else ("measurements", "frames, a")
        if form != "qdq" or size is None:
            raise ValueError(f"form {form}, size {size} of {what}; wanted qdq and {wanted} height and width; give them")
        check_size(network, *size)
        example = {"image": check_picture(ONNX_CHECK).numpy()} if enlarges(network) else check_arrays()
        with atomic_path(path) as temporary:
            lowered = lower(network)
            listening = build_traced(network, lowered, *(ONNX_CHECK if enlarges(network) else CHECK_SIZE), taps=True)
            snrs = check_file(network, lowered, *listening, example, channels=-1)
            temporary.write_bytes(build_traced(network, lowered, *size)[0].SerializeToString())
        return snrs
    network = exportable(network)
    with atomic_path(path) as temporary, torch.no_grad():
        lowered = lower(network)
        snrs = check_layers(network, lowered, form)
        temporary.write_bytes(build(network, lowered, form)[0].SerializeToString())
    return snrs


def export_openvino(network: nn.Module, path: str | os.PathLike[str], *size: int) -> list[Check]:
    """Write a network as OpenVINO's IR, NAME.xml and NAME.bin, for one size and batches of one.

    The .xml, without which nothing can be read, is there only together with its own .bin.

    Inputs and output are those of `export_onnx`. The size is fixed: it is with known sizes that OpenVINO plans its int8
    kernels.

    Args:
        network: it is not changed.
        path: of the .xml.
        size: frames, height and width of a video, both even for EfficientSCI; height and width of a picture.

    Returns:
        How each layer fared in OpenVINO on this CPU.

    Raises:
        TypeError: there is no graph for the network.
        ValueError: the path does not end in .xml, a size is below 1 or, for EfficientSCI, odd, a grid without a range,
            or OpenVINO computes a layer wrongly.
        OSError: the files cannot be written.
    """
    path = Path(path)
    if not enlarges(network) and not unfolds(network):
        network = exportable(network)
    if path.suffix != ".xml":
        raise ValueError(
            f"cannot write {path}; wanted a name that ends in .xml (a .bin is written beside it); change it"
        )
    check_size(network, *size)
    with atomic_path(path) as xml, atomic_path(path.with_suffix(".bin")) as weights, torch.no_grad():
        engine = Engine(network)
        if isinstance(network, EfficientSCI):
            model = build_camera(network, engine.lowered, *size)
        else:
            model = engine.build(*size)
        beside = xml.with_suffix(".bin")
        try:
            openvino().save_model(model, str(xml), compress_to_fp16=False)
            os.replace(beside, weights)
        except RuntimeError as error:  # it does not say whether the disk is full
            raise OSError(
                f"OpenVINO cannot write {path} ({error}); wanted room for it; free some, or choose another place"
            ) from error
        finally:
            beside.unlink(missing_ok=True)
        path.unlink(missing_ok=True)  # an old one must not be read with the new weights, which come first
    return engine.checks


def check_size(network: nn.Module, *size: int) -> None:
    """Refuse sizes that a file cannot be made for."""
    text = "x".join(map(str, size))
    if enlarges(network):
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"pictures of {text}; wanted a height and a width of 1 or more")
    elif len(size) != 3 or min(size) < 1:
        raise ValueError(f"measurements of {text}; wanted 1 frame, 1 row and 1 column or more; change them")
    elif not unfolds(network) and (size[1] % 2 or size[2] % 2):
        raise ValueError(
            f"{size[0]} frames of {size[1]}x{size[2]}; wanted 1 frame or more, and an even height and width; "
            "pad the measurement and the mask by one row or column, or export ONNX, which does it inside"
        )


def exportable(network: nn.Module) -> EfficientSCI:
    """The network, if there is a graph for it."""
    if not reconstructs(network):
        raise TypeError(
            f"{unknown(network, GRAPHS)}, which have graphs; choose another checkpoint, or run this one in torch"
        )
    return network
