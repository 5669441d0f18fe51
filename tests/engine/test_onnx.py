"""ONNX files hold every layer as it was trained, take any size, and run where only numpy and onnxruntime are."""

import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from marks import some
from torch import Tensor

from bitlens.engine import onnx as onnx_module
from bitlens.engine import onnxruntime as runtime_module
from bitlens.engine.checks import snr
from bitlens.engine.export import export_onnx, export_openvino
from bitlens.engine.lower import IntegerLayer, lower
from bitlens.engine.onnx import OF_ONE_SIZE, Form, Graph, build, onnx
from bitlens.engine.onnxruntime import Engine, check_arrays, onnxruntime, open_session
from bitlens.engine.openvino import WRONG
from bitlens.engine.reference import accumulate
from bitlens.engine.runtime import openvino
from bitlens.methods import quantize, recipe_of
from bitlens.networks.classical import GapTV
from bitlens.networks.dun import DUN
from bitlens.networks.efficientsci import EfficientSCI
from bitlens.quant.layers import Quantized, quantized_layers
from bitlens.recipe import Bits, Recipe, Rule

CASES: dict[str, tuple[dict[str, Any], Recipe]] = {
    "8 bits, four groups, colour": (dict(group_num=4, color_ch=3), recipe_of("direct", 8)),
    "8 bits with shift": (dict(shift=True), recipe_of("qsci", 8)),
    "4 bits with shift and shortcuts": (dict(shift=True, shortcuts=True), recipe_of("qsci", 4)),
    "3 bits with shortcuts in fem": (dict(shift=True, shortcuts="fem"), recipe_of("qsci", 3)),
    "2 bits with shift and shortcuts": (dict(shift=True, shortcuts=True), recipe_of("qsci", 2)),
    "1 bit": ({}, recipe_of("direct", 1)),
    "symmetric activations": ({}, Recipe("s", (Rule("*", Bits(zero_point="none")),))),
    "weights with one scale": ({}, Recipe("t", (Rule("*", Bits(5, 6, "tensor")),))),
}


def capture(frames: int = 4, height: int = 16, width: int = 16, batch: int = 1) -> tuple[Tensor, Tensor]:
    mask = (torch.rand(1, frames, height, width) < 0.5).float()
    return (mask * torch.rand(batch, frames, height, width)).sum(1), mask


def quantized(recipe: Recipe, **config: Any) -> EfficientSCI:
    """A tiny network at the recipe's bits, with ranges that are found fast."""
    quick = replace(recipe, weight_range="lsq", activation_range="percentile")
    low, _ = quantize(EfficientSCI(8, 1, **{"group_num": 2, **config}).eval(), quick, [capture()])
    assert isinstance(low, EfficientSCI)
    return low


def network_of(name: str) -> EfficientSCI:
    config, recipe = CASES[name]
    return quantized(recipe, **config)


def run(file: Path, measurement: Tensor, mask: Tensor) -> Tensor:
    """The video of a file, by ONNX Runtime alone, without the settings of our engine."""
    session = onnxruntime().InferenceSession(file, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"measurement": measurement.numpy(), "mask": mask.numpy()})[0])


@pytest.mark.parametrize("form", ["qdq", "integer"])
@pytest.mark.parametrize(
    "name",
    some(
        CASES,
        "8 bits with shift",
        "4 bits with shift and shortcuts",
        "2 bits with shift and shortcuts",
        "1 bit",
        "symmetric activations",
    ),
)
def test_every_layer_computes_what_the_reference_computes(name: str, form: Form, tmp_path: Path) -> None:
    network = network_of(name)
    found = export_onnx(network, tmp_path / "a.onnx", form)
    assert set(found) == set(quantized_layers(network))
    assert all(value > WRONG["f32"] for value in found.values())
    assert sorted(found.values())[len(found) // 2] > 100  # but for single ties
    data = capture(5, 16, 18)
    with torch.no_grad():
        assert snr(run(tmp_path / "a.onnx", *data), network(*data)) > 10  # one tie can change a whole low-bit network


@pytest.mark.parametrize("name", ["8 bits with shift", "4 bits with shift and shortcuts", "1 bit"])
def test_accumulators_are_the_references(name: str) -> None:
    network = network_of(name)
    lowered = lower(network)
    model, taps = build(network, lowered, "integer", taps=True)
    layers = {key: layer for key, layer in lowered.layers.items() if isinstance(layer, IntegerLayer) and layer.is_exact}
    info = onnx().helper.make_tensor_value_info
    model.graph.output.extend(info(f"{key}/sum", onnx().TensorProto.INT32, None) for key in layers)
    session = open_session(model.SerializeToString(), 1)
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, check_arrays(network)), strict=True))
    assert len(layers) >= 21
    for key, layer in layers.items():
        x = torch.from_numpy(found[taps[key].inputs[0]])  # b c t h w
        linear = isinstance(layer.geometry, torch.nn.Linear)
        wanted = accumulate(layer, layer.input.codes(x.movedim(1, -1) if linear else x))
        total = torch.from_numpy(found[f"{key}/sum"])  # b t h w c
        wrong = total != (wanted if linear else wanted.movedim(1, -1))
        reached = layer.weight.numel() // layer.weight.shape[1]  # sums, by a tie of one code
        assert int(wrong.sum()) <= 2 * reached + wrong.numel() / 1000, key


@pytest.mark.parametrize("made", [lambda: EfficientSCI(8, 1, 2), lambda: DUN(1, (4, 4, 4), (1, 1, 1), 1)])
def test_a_mask_of_another_size_is_refused_by_name(made: Callable[[], torch.nn.Module], tmp_path: Path) -> None:
    export_onnx(made().eval(), tmp_path / "a.onnx")
    measurement, mask = capture(3, 16, 24)
    assert run(tmp_path / "a.onnx", measurement, mask).shape[-2:] == (16, 24)
    for wrong in (mask[..., :16], mask[..., :12, :], mask.mT, torch.rand(1, 3, 32, 48), torch.rand(1, 3, 8, 48)):
        with pytest.raises(Exception, match=OF_ONE_SIZE):
            run(tmp_path / "a.onnx", measurement, wrong)


@pytest.mark.parametrize("form", ["qdq", "integer"])
@pytest.mark.parametrize(
    "settings", [dict(activation_granularity="input_channel", zero_point="rounded"), dict(parametrization="bound")]
)
def test_what_is_not_direct_computes_in_float_what_was_trained(
    settings: dict[str, Any], form: Form, tmp_path: Path
) -> None:
    network = quantized(Recipe("float", (Rule("*.proj", None), Rule("*", Bits(4, 4, **settings)))))
    engine = Engine(network, form=form, threads=1, cache=tmp_path)
    assert {outcome.way for outcome in engine.lowered.report} <= {"folded", "corrected", "float", "direct"}
    assert all(check.snr > WRONG["f32"] for check in engine.checks)
    assert any("Conv" in check.kernel for check in engine.checks)


@pytest.mark.parametrize("options", [{}, dict(shift=True, shortcuts=True), dict(color_ch=3)])
def test_a_float_network_of_any_size(options: dict[str, Any], tmp_path: Path) -> None:
    network = EfficientSCI(8, 1, 2, **options).eval()
    export_onnx(network, tmp_path / "a.onnx")
    for size in ((5, 16, 16, 1), (3, 15, 18, 2), (1, 6, 7, 1)):
        data = capture(*size)
        with torch.no_grad():
            torch.testing.assert_close(run(tmp_path / "a.onnx", *data), network(*data), rtol=0, atol=1e-5)
    masks = (torch.rand(2, 3, 8, 8) < 0.5).float()  # one for each measurement
    measurement = torch.rand(2, 8, 8)
    with torch.no_grad():
        wanted = network(measurement, masks)
    torch.testing.assert_close(run(tmp_path / "a.onnx", measurement, masks), wanted, rtol=0, atol=1e-5)


def test_weights_of_4_bits_are_stored_in_4_bits(tmp_path: Path) -> None:
    kinds = onnx().TensorProto
    for bits, kind in ((8, kinds.INT8), (4, kinds.INT4), (2, kinds.INT4), (1, kinds.INT4)):
        network = quantized(recipe_of("direct", bits))
        model, _ = build(network, lower(network))
        node = next(node for node in model.graph.node if node.name == "resdnet_list.0.last_conv")
        weight = next(other for other in model.graph.node if node.input[1] in other.output)
        stored = next(constant for constant in model.graph.initializer if constant.name == weight.input[0])
        assert (weight.op_type, stored.data_type) == ("DequantizeLinear", kind)
        onnx().checker.check_model(model, full_check=True)


def test_a_layer_that_computes_wrongly_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, right = network_of("8 bits with shift"), Graph.product

    def wrong(self: Graph, name: str, layer: IntegerLayer, x: str) -> str:
        out = right(self, name, layer, x)
        return self.op("Mul", out, self.constant(1.1)) if name == "fem.2" else out

    monkeypatch.setattr(Graph, "product", wrong)
    with pytest.raises(ValueError, match=r"ONNX Runtime computes layer fem\.2 wrongly: .* run the network in torch"):
        export_onnx(network, tmp_path / "a.onnx", "integer")
    assert not list(tmp_path.iterdir())


def test_what_has_no_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="network GapTV has no layers; wanted one with convolutions or linear layers"):
        export_onnx(GapTV(), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_openvino_reads_both_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    network, data = network_of("4 bits with shift and shortcuts"), capture()
    export_openvino(network, tmp_path / "a.xml", 4, 16, 16)
    export_onnx(network, tmp_path / "b.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.xml", "b.onnx", "cache"]
    core, settings = openvino().Core(), {"INFERENCE_PRECISION_HINT": "f32"}
    for file in ("a.xml", "b.onnx"):
        compiled = core.compile_model(core.read_model(tmp_path / file), "CPU", settings)
        found = compiled({"measurement": data[0].numpy(), "mask": data[1].numpy()})["video"]
        with torch.no_grad():
            assert snr(torch.from_numpy(found), network(*data)) > 10
    with pytest.raises(ValueError, match=r"4 frames of 15x16; wanted .* an even height and width"):
        export_openvino(network, tmp_path / "c.xml", 4, 15, 16)
    with pytest.raises(ValueError, match=r"wanted a name that ends in \.xml"):
        export_openvino(network, tmp_path / "c.onnx", 4, 16, 16)
    assert not (tmp_path / "c.xml").exists()


@pytest.mark.slow
def test_the_file_runs_where_only_numpy_and_onnxruntime_are(tmp_path: Path) -> None:
    environment = tmp_path / "clean"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    versions = [f"{name}=={version(name)}" for name in ("numpy", "onnxruntime")]
    install = [python, "-m", "pip", "--disable-pip-version-check", "-q", "install", *versions]
    if (done := subprocess.run(install, capture_output=True, text=True)).returncode:
        pytest.skip(f"pip cannot install: {done.stderr.strip().splitlines()[-1]}")
    listed = subprocess.run([python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True).stdout
    assert "torch" not in listed and "bitlens" not in listed
    code = (
        "import sys, numpy as np, onnxruntime as ort\n"
        "data = np.load(sys.argv[2])\n"
        "session = ort.InferenceSession(sys.argv[1])\n"
        "np.save(sys.argv[3], session.run(['video'], dict(data))[0])\n"
    )
    network, data = network_of("4 bits with shift and shortcuts"), capture()
    np.savez(tmp_path / "y.npz", measurement=data[0].numpy(), mask=data[1].numpy())
    for form in ("qdq", "integer"):
        export_onnx(network, tmp_path / "a.onnx", form)
        files = [tmp_path / name for name in ("a.onnx", "y.npz", "v.npy")]
        ran = subprocess.run([python, "-I", "-c", code, *files], capture_output=True, text=True, cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
        with torch.no_grad():
            found, wanted = torch.from_numpy(np.load(tmp_path / "v.npy")), network(*data)
        assert found.shape == wanted.shape
        torch.testing.assert_close(found, run(tmp_path / "a.onnx", *data), rtol=0, atol=1e-6)
        assert snr(found, wanted) > 30


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_the_package_the_extra_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # importing it now fails
    find = onnx_module.onnx if package == "onnx" else runtime_module.onnxruntime
    find.cache_clear()
    with pytest.raises(ValueError, match=r"not installed; wanted .*; run pip install 'bitlens\[onnx\]'"):
        find()
    monkeypatch.undo()
    find()


def test_unknown_forms_are_refused() -> None:
    network = EfficientSCI(8, 1, 2)
    with pytest.raises((ValueError, TypeError), match="form"):
        build(network, lower(network), "int4")  # type: ignore[arg-type]


def test_the_quantized_layers_of_a_file_are_named() -> None:
    network = network_of("8 bits with shift")
    for form, kind in (("qdq", "Conv"), ("integer", "MatMulInteger")):
        model, _ = build(network, lower(network), form)  # type: ignore[arg-type]
        named = {node.name for node in model.graph.node if node.op_type == kind}
        assert named == {key for key, layer in quantized_layers(network).items() if isinstance(layer, Quantized)}
