"""Networks as files that other engines load without bitlens: ONNX, and OpenVINO's IR. Every layer is checked first."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitlens.engine.checks import Check, made_for, snr
from bitlens.engine.graph import build_camera
from bitlens.engine.lower import Lowered, lower
from bitlens.engine.onnx import Form, build
from bitlens.engine.openvino import Engine, missing, reconstructs
from bitlens.engine.runtime import openvino
from bitlens.files import atomic_path
from bitlens.tasks import of

EXAMPLES = (
    ({"frames": 5, "height": 21, "width": 27}, [(4, 16, 16), (1, 9, 14)]),
    ({"frames": 5, "height": 48, "width": 80}, [(4, 16, 16), (1, 32, 48)]),
)
"""Sizes for which a network is read with symbols, and those at which the file is tried then: for networks that pad, and
for those that want multiples."""
ONE_SIZE = "something in the network is made for one size: a mask, a table of positions, pooling"


def export_onnx(
    network: nn.Module, path: str | os.PathLike[str], form: Form = "qdq", size: tuple[int, ...] | None = None
) -> dict[str, float]:
    """Write a network, fake-quantized or float, as ONNX.

    Files of networks for video have the inputs `measurement` (b, h, w) and `mask` (1 or b, t, h, w) and the output
    `video` (b, c, t, h, w); those of networks that enlarge pictures the input `image` (1, 3, h, w) and the output
    `large` (1, 3, scale h, scale w). All are float32. Frames, height and width are free wherever the network allows it,
    the batch is in EfficientSCI's alone; the file's metadata say it under "sizes" (`sizes_in`). Odd sizes are padded
    inside, as the network does it.

    Args:
        network: it is not changed.
        path: the file.
        form: of quantized layers, see `engine.onnx`; all but EfficientSCI have "qdq" only.
        size: (frames,) height and width, of those that cannot be free; None: all have to be.

    Returns:
        dB of each layer in ONNX Runtime against the integer reference.

    Raises:
        TypeError: there is no graph for the network.
        ValueError: `onnx` or `onnxruntime` is not installed, a form that the network does not have, a size that is
            missing, a grid without a range, or ONNX Runtime computes a layer wrongly.
        OSError: the file cannot be written.
    """
    from bitlens.engine.onnxruntime import check_layers, form_of

    refuse_missing(network)
    form = form_of(network, form)
    if size is not None and not reconstructs(network):
        check_size(network, *size)
    with atomic_path(path) as temporary, torch.no_grad():
        lowered = lower(network)
        snrs = check_layers(network, lowered, form)
        if reconstructs(network):
            model = about_sizes(build(network, lowered, form)[0], of(network).axes, {}, "any batch")
        else:
            model = free_model(network, lowered, size)
        temporary.write_bytes(model.SerializeToString())
    return snrs


def free_model(network: nn.Module, lowered: Lowered, size: tuple[int, ...] | None) -> Any:
    """The ONNX model that is read off a network, for any size where that is possible.

    Raises:
        ValueError: it is not, and no size is given.
    """
    from bitlens.engine.sizes import Sizes, SizesFixed
    from bitlens.engine.traced_onnx import build_traced

    axes = of(network).axes
    given = size or (0,) * len(axes)
    for examples, others in EXAMPLES:
        free = {axis for axis in axes if axis != "frames" or made_for(network) is None}
        while free:
            sizes = Sizes({axis: examples[axis] for axis in axes if axis in free})
            try:
                model, _ = build_traced(network, lowered, *given, sizes=sizes)
            except SizesFixed:
                free -= sizes.fixed
                continue
            except (RuntimeError, TypeError, ValueError):  # what torch, or the network, has no symbols for
                break
            fixed = {axis: n for axis, n in zip(axes, given, strict=True) if axis not in free}
            if (size is not None or not fixed) and agrees(network, lowered, model, fixed, others):
                return about_sizes(model, axes, fixed)
            break
    if size is None:
        raise ValueError(f"no size of {of(network).unit}s came, and {ONE_SIZE}; wanted {', '.join(axes)}; give them")
    return about_sizes(build_traced(network, lowered, *size)[0], axes, dict(zip(axes, size, strict=True)))


def agrees(
    network: nn.Module, lowered: Lowered, model: Any, fixed: Mapping[str, int], others: list[tuple[int, int, int]]
) -> bool:
    """Whether a model of free sizes computes at some of them what that of each size computes."""
    from bitlens.engine.onnxruntime import WRONG, check_arrays, failures, open_session
    from bitlens.engine.traced_onnx import build_traced

    task = of(network)
    for other in others:
        size = [fixed.get(axis, n) for axis, n in zip(task.axes, other[-len(task.axes) :], strict=True)]
        inputs, results = check_arrays(network, *size), []
        for one in (model, build_traced(network, lowered, *size)[0]):
            try:
                session = open_session(one.SerializeToString(), None, optimize=False, log_severity_level=4)
                results.append(torch.from_numpy(session.run(None, inputs)[0]))
            except failures():
                return False
        found, wanted = results
        if found.shape != wanted.shape or snr(found, wanted) < WRONG:
            return False
    return True


def about_sizes(model: Any, axes: Sequence[str], fixed: Mapping[str, int], batch: str = "batches of one") -> Any:
    """A model whose metadata say which sizes it takes."""
    free = [axis for axis in axes if axis not in fixed]
    parts = [f"any {' and '.join(free)}"] if free else []
    parts += [f"{' and '.join(f'{axis} {n}' for axis, n in fixed.items())} only ({ONE_SIZE})"] if fixed else []
    model.metadata_props.add(key="sizes", value="; ".join([*parts, batch]))
    return model


def sizes_in(path: str | os.PathLike[str]) -> str:
    """Which sizes an exported ONNX file takes, in words."""
    from bitlens.engine.onnx import onnx

    return next(entry.value for entry in onnx().load(path).metadata_props if entry.key == "sizes")


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
    refuse_missing(network)
    if path.suffix != ".xml":
        raise ValueError(
            f"cannot write {path}; wanted a name that ends in .xml (a .bin is written beside it); change it"
        )
    check_size(network, *size)
    with atomic_path(path) as xml, atomic_path(path.with_suffix(".bin")) as weights, torch.no_grad():
        engine = Engine(network)
        by_hand = reconstructs(network)
        model = build_camera(network, engine.lowered_at(*size), *size) if by_hand else engine.build(*size)
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
    """Refuse sizes that a file cannot be made for.

    Raises:
        ValueError: it is so.
    """
    task, text = of(network), "x".join(map(str, size))
    if len(size) != len(task.axes) or min(size) < 1:
        raise ValueError(f"{task.unit}s of {text}; wanted {', '.join(task.axes)}, each 1 or more; change them")
    if reconstructs(network) and (size[1] % 2 or size[2] % 2):
        raise ValueError(
            f"{size[0]} frames of {size[1]}x{size[2]}; wanted 1 frame or more, and an even height and width; "
            "pad the measurement and the mask by one row or column, or export ONNX, which does it inside"
        )


def refuse_missing(network: nn.Module) -> None:
    """Refuse networks that there is no graph for.

    Raises:
        TypeError: it is one.
    """
    if (reason := missing(network)) is not None:
        raise TypeError(f"{reason}; choose another checkpoint, or run this one in torch")
