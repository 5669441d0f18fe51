"""`bitlens export`: a checkpoint as a file that ONNX Runtime or OpenVINO loads without bitlens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True)
class Export:
    """Write a network for people who deploy elsewhere, nothing of bitlens needed.

    Measurement and mask in, video out; of super-resolution networks a picture in, a larger one out.

    Every layer is compared with integer arithmetic in plain torch before the file is written.

    Example:
        bitlens export efficientsci-t-qsci-w8a8 --format onnx --out network.onnx
    """

    model: tyro.conf.Positional[str]
    """A shipped checkpoint (see `bitlens models`), or the path of a .safetensors."""
    out: Path
    """The file: .onnx, or .xml for openvino (a .bin is written beside it)."""
    format: Literal["onnx", "openvino"] = "onnx"
    """onnx takes any size, wherever the network allows it, and says so; openvino has the size that is given here."""
    form: Literal["qdq", "integer"] = "qdq"
    """Of quantized layers in ONNX: qdq is what other tools read, integer what ONNX Runtime runs in integers, for
    EfficientSCI."""
    frames: int = 8
    """Frames per measurement, for openvino, and for onnx where it cannot be free."""
    height: int = 256
    """Height in pixels, likewise; even for EfficientSCI in openvino."""
    width: int = 256
    """Width in pixels, likewise."""

    def run(self) -> None:
        suffix = {"onnx": ".onnx", "openvino": ".xml"}[self.format]
        if self.out.suffix != suffix:
            raise ValueError(f"cannot write {self.out}; wanted a name that ends in {suffix}; change it")
        from bitlens import checkpoint
        from bitlens.engine.export import export_onnx, export_openvino, sizes_in
        from bitlens.report import console
        from bitlens.tasks import of

        out = console()
        network = checkpoint.load(self.model)
        task = of(network)
        size = tuple(getattr(self, axis) for axis in task.axes)
        with out.status(f"checking every layer of {self.model}"):
            if self.format == "onnx":
                found = export_onnx(network, self.out, self.form, size)
            else:
                found = {check.name: check.snr_f32 for check in export_openvino(network, self.out, *size)}
        sizes = sizes_in(self.out) if self.format == "onnx" else f"{'x'.join(map(str, size))}; batches of one"
        worst = min(found, key=found.__getitem__)
        files = [self.out] if self.format == "onnx" else [self.out, self.out.with_suffix(".bin")]
        megabytes = sum(file.stat().st_size for file in files) / 1e6
        out.print(f"{len(found)} layers agree with the reference; the furthest, {worst}, at {found[worst]:.0f} dB")
        out.print(f"{' and '.join(map(str, files))}: {megabytes:.2f} MB; {' and '.join(task.inputs)} -> {task.output}")
        out.print(f"sizes: {sizes}")
