"""Measure post-training 8 bits of other toolkits beside ours, on one float network; writes JSON.

python docs/measure_peers.py abpn-x2 results/peers/abpn-x2.json --data PHOTOGRAPHS --test set5
python docs/measure_peers.py dun results/peers/dun.json --data CLIPS --test six-scenes --method unfolding

pip install 'bitlens[onnx]' nncf onnxruntime torchao. Everyone is calibrated on the same samples and none is trained;
every file runs on the engine that its toolkit is made for, as it comes and with only its convolutions in integers.
Idle machines only: all rows take turns.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rendering import write_result

from bitlens import checkpoint
from bitlens.bench.contestants import engine_run, openvino_run
from bitlens.bench.subjects import Subject, subject_of
from bitlens.bench.turns import Contestant, environment, interleave
from bitlens.data.fitting import fitting
from bitlens.engine.export import export_onnx
from bitlens.engine.registry import ENGINES, choose_engine
from bitlens.inference.machine import keep_freed_memory
from bitlens.methods import quantize

SAMPLES, CROP = 32, 64
"""Calibration samples, and their height and width."""
SIZE = 240
"""Height and width of the image that is timed."""
Run = Callable[..., np.ndarray]


def openvino_file(file: str, threads: int, shapes: Sequence[Sequence[int]] | None = None) -> Run:
    """A model of OpenVINO's, or an ONNX file, on OpenVINO; for one size, where shapes are given."""
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    if shapes is not None:
        model.reshape(dict(zip(model.inputs, [list(shape) for shape in shapes], strict=True)))
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda *arrays: next(iter(request.infer(list(arrays)).values()))


def onnxruntime_file(file: str, threads: int, shapes: Sequence[Sequence[int]] | None = None) -> Run:
    """An ONNX file on ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0]


def torch_file(file: str, threads: int, shapes: Sequence[Sequence[int]] | None = None) -> Run:
    """A program of torch.export, compiled with its weights frozen."""
    import torchao.quantization.pt2e  # noqa: F401  # the operators in the file

    torch.set_num_threads(threads)
    torch._inductor.config.freezing = True  # type: ignore[attr-defined]
    program = torch.compile(torch.export.load(file).module())

    def run(*arrays: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return program(*map(torch.from_numpy, arrays)).numpy()

    return run


OPENED: dict[str, Callable[..., Run]] = {
    "OpenVINO": openvino_file, "ONNX Runtime": onnxruntime_file, "PyTorch compiled": torch_file,
}  # fmt: skip


def file_run(file: str, inputs: tuple[np.ndarray, ...], threads: int, engine: str) -> Callable[[], np.ndarray]:
    """What is timed of a peer's file."""
    keep_freed_memory()
    run = OPENED[engine](file, threads, [one.shape for one in inputs])
    return lambda: run(*inputs)


def by_nncf(network: Any, source: Path, samples: Sequence[Any], out: Path, all_layers: bool) -> Path:
    """NNCF's post-training quantization, for OpenVINO."""
    import nncf
    import openvino

    model = openvino.Core().read_model(source)
    kept = {"Add", "Subtract", "Multiply", "Divide", "ReduceSum", "ReduceMean", "Interpolate", "AvgPool", "MaxPool"}
    present = sorted(kept & {op.get_type_name() for op in model.get_ops()})
    scope = None if all_layers or not present else nncf.IgnoredScope(types=present)
    data = nncf.Dataset([list(sample) for sample in samples])
    found = nncf.quantize(model, data, subset_size=len(samples), **({} if scope is None else {"ignored_scope": scope}))
    openvino.save_model(found, out.with_suffix(".xml"), compress_to_fp16=False)
    return out.with_suffix(".xml")


def by_onnxruntime(network: Any, source: Path, samples: Sequence[Any], out: Path, all_layers: bool) -> Path:
    """ONNX Runtime's static quantization: 8-bit codes between QuantizeLinear and DequantizeLinear."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            import onnxruntime

            names = [one.name for one in onnxruntime.InferenceSession(str(source)).get_inputs()]
            self.held = iter([dict(zip(names, sample, strict=True)) for sample in samples])

        def get_next(self) -> Any:
            return next(self.held, None)

    prepared, target = out.with_suffix(".prepared.onnx"), out.with_suffix(".onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared), str(target), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        op_types_to_quantize=None if all_layers else ["Conv"],
    )  # fmt: skip
    return target


def by_torchao(network: Any, source: Path, samples: Sequence[Any], out: Path, all_layers: bool) -> Path:
    """torchao's quantization of exported programs, for the compiler's x86 kernels."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    if not all_layers:
        raise ValueError("no such setting is tried")
    example = tuple(map(torch.from_numpy, samples[0]))
    network = network.eval()
    free = tuple({2: torch.export.Dim("h", min=16), 3: torch.export.Dim("w", min=16)} for one in example)
    free = free if len(free) == 1 else (None,) * len(free)
    quantizer = X86InductorQuantizer()
    quantizer.set_global(get_default_x86_inductor_quantization_config())
    with torch.no_grad():
        exported = torch.export.export(network, example, dynamic_shapes=free if free[0] else None, strict=False)
        prepared = prepare_pt2e(exported.module(), quantizer)
        for sample in samples:
            prepared(*map(torch.from_numpy, sample))
        converted = convert_pt2e(prepared)
        program = torch.export.export(converted, example, dynamic_shapes=free if free[0] else None, strict=False)
    torch.export.save(program, out.with_suffix(".pt2"))
    return out.with_suffix(".pt2")


PEERS: dict[str, tuple[Callable[..., Path], str, bool]] = {
    "NNCF": (by_nncf, "OpenVINO", True),
    "NNCF, convolutions alone": (by_nncf, "OpenVINO", False),
    "ONNX Runtime static": (by_onnxruntime, "ONNX Runtime", True),
    "ONNX Runtime static, convolutions alone": (by_onnxruntime, "ONNX Runtime", False),
    "torchao PT2E": (by_torchao, "PyTorch compiled", True),
}
"""Who makes the file, what runs it, and whether all that the toolkit knows is quantized."""


def quality(run: Run, test: str, scale: int | None) -> float:
    """PSNR on a test set, as it is scored: images in luma, videos by frames."""
    if scale is not None:
        from bitlens.data.pairs import load_pairs
        from bitlens.metrics import psnr_y

        pairs = (pair.read() for pair in load_pairs(test, scale))
        return fmean(psnr_y(run(low[None])[0], high, shave=scale) for low, high in pairs)
    from bitlens.data.benchmarks import benchmark_mask, load_scenes
    from bitlens.data.capture import simulate
    from bitlens.metrics import psnr_sci

    found = []
    for scene in load_scenes(test):
        capture = simulate(scene.video, benchmark_mask())
        mask = np.ascontiguousarray(capture.mask[None], np.float32)
        parts = [run(one[None], mask).reshape(-1, *one.shape) for one in capture.measurement.astype(np.float32)]
        assert capture.reference is not None
        found.append(psnr_sci(np.concatenate(parts), capture.reference))
    return fmean(found)


def as_arrays(network: Any) -> Run:
    """What is called with tensors, called with arrays."""

    def run(*arrays: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(*map(torch.from_numpy, arrays)).float().numpy()

    return run


def size_of(file: Path) -> int:
    """Bytes of a model's file, with its weights beside it."""
    beside = file.with_suffix(".bin")
    return file.stat().st_size + (beside.stat().st_size if file.suffix == ".xml" else 0)


def installed(package: str) -> str | None:
    """The version of a package; None: it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def in_turns(contestants: Iterable[tuple[dict[str, Any], Contestant]], rounds: int, threads: int) -> None:
    """Time all rows against each other; what fails says why."""
    pairs = list(contestants)
    for (row, _), timing in zip(pairs, interleave([one for _, one in pairs], rounds, threads=threads), strict=True):
        row |= {"failure": timing.failure} if timing.failure else {"ms": 1e3 * timing.median, "peak_mb": timing.peak_mb}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("start")
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="to calibrate on: photographs, or clips")
    parser.add_argument("--test", required=True, help="set to measure dB on")
    parser.add_argument("--method", default="direct", help="ours")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", nargs="*", default=list(PEERS))
    given = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(given.threads)
    about, network = checkpoint.describe(given.start), checkpoint.load(given.start).eval().requires_grad_(False)
    scale = getattr(network, "scale", None)
    subject: Subject = subject_of(scale, None if scale is None else SIZE, 8, 0)
    video = scale is None
    drawn = fitting(scale, given.data, crop=subject.size[-1] if video else CROP, batch=1)
    batches = [drawn.fit.draw(step).inputs for step in range(SAMPLES)]
    samples = [tuple(np.ascontiguousarray(part.numpy(), np.float32) for part in batch) for batch in batches]
    rows: list[dict[str, Any]] = []
    timed: list[tuple[dict[str, Any], Contestant]] = []

    def add(name: str, engine: str, contestant: Any, *arguments: Any, **more: Any) -> None:
        rows.append({"name": name, "engine": engine, "failure": None, **more})
        timed.append((rows[-1], Contestant(f"{name}, {engine}", contestant, arguments)))
        print(json.dumps(rows[-1]), flush=True)

    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cache = str(folder / "cache")
        (folder / "cache").mkdir()
        source = folder / "float.onnx"
        export_onnx(network, source, size=tuple(subject.size))
        in_float = quality(as_arrays(network), given.test, scale)
        for engine, hint in (("OpenVINO", "f32"), ("OpenVINO, bf16", "bf16")):
            add(
                "float", engine, openvino_run, given.start, subject.inputs, given.threads, hint, cache,
                psnr=in_float, mb=about.bytes / 1e6,
            )  # fmt: skip
        ours, _ = quantize(network, given.method, batches, bits=8)
        low = folder / "ours.safetensors"
        checkpoint.save(ours, low, provenance={"start": about.name})
        for engine in ("native", "openvino"):
            running, _ = choose_engine(ours, engine)  # type: ignore[arg-type]
            add(
                f"bitlens {given.method}", ENGINES[engine].label, engine_run, str(low), subject.inputs, given.threads,
                engine, cache, psnr=quality(as_arrays(running), given.test, scale), mb=low.stat().st_size / 1e6,
            )  # fmt: skip
        for number, name in enumerate(given.peers):
            make, engine, all_layers = PEERS[name]
            try:
                file = make(network, source, samples, folder / f"peer-{number}", all_layers)
                psnr = quality(OPENED[engine](str(file), given.threads), given.test, scale)
            except Exception as error:  # a toolkit that does not know this network is a result
                why = " ".join(str(error).split())[:300] or type(error).__name__
                rows.append({"name": name, "engine": engine, "failure": why})
                print(json.dumps(rows[-1]), flush=True)
                continue
            add(
                name, engine, file_run, str(file), subject.inputs, given.threads, engine,
                psnr=psnr if math.isfinite(psnr) else None, mb=size_of(file) / 1e6,
            )  # fmt: skip
        in_turns(timed, given.rounds, given.threads)
    content = {
        "start": about.name,
        "data": drawn.about,
        "samples": {"count": SAMPLES, "size": list(samples[0][0].shape)},
        "test": given.test,
        "size": subject.size,
        "threads": given.threads,
        "rounds": given.rounds,
        "rows": rows,
        "packages": {name: installed(name) for name in ("nncf", "openvino", "onnxruntime", "torchao", "torch")},
        "environment": environment(),
    }
    write_result(given.out, content)


if __name__ == "__main__":
    main()
