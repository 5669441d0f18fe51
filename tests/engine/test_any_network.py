"""A network that is new, for video or for pictures, is one entry of the catalogue: every verb and engine runs it.

Both networks here stand in no file of the project, and have what such networks are made of: 3-D convolutions, batch
normalization, an attention product, a pixel shuffle, padding.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from engine.test_traced import check_layers
from PIL import Image
from torch import Tensor, nn

from bitlens import checkpoint, tasks
from bitlens.cli import main
from bitlens.data.synthetic import high_speed_scene
from bitlens.data.video import write_video
from bitlens.engine import onnxruntime, openvino, registry, traced
from bitlens.engine.checks import compare_layers, example, snr
from bitlens.engine.export import export_onnx, export_openvino, sizes_in
from bitlens.engine.lower import IntegerLayer, Lowered, lower, runs_in_integers
from bitlens.engine.openvino import WRONG
from bitlens.engine.reference import accumulate, reference_network
from bitlens.methods import METHODS, quantize
from bitlens.metrics import psnr_sci
from bitlens.networks import catalog
from bitlens.networks.catalog import Entry
from bitlens.networks.efficientsci import EfficientSCI
from bitlens.networks.parts import MatMul
from bitlens.networks.stformer import STFormer
from bitlens.quant.layers import quantized_layers
from bitlens.recipe import Bits, Recipe, Rule
from bitlens.tiles import tiled


class ToyVideo(nn.Module):
    """Convolutions in space and time at half the size, attention over the frames of each pixel, a pixel shuffle."""

    radius, alignment = 8, 2

    def __init__(self, width: int = 8, heads: int = 2):
        super().__init__()
        self.config = {"width": width, "heads": heads}
        self.first = nn.Conv3d(2, width, 3, (1, 2, 2), padding=1)
        self.inner = nn.Conv3d(width, width, 3, padding=1)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.scores, self.mix = MatMul(), MatMul()
        self.last = nn.Conv3d(width, 4, (1, 3, 3), padding="same")

    def forward(self, measurement: Tensor, mask: Tensor) -> Tensor:
        h, w = measurement.shape[1:]
        mask = mask.expand(len(measurement), -1, -1, -1)
        start = mask * (measurement / mask.sum(1).clamp(min=1)).unsqueeze(1)  # b t h w
        x = F.pad(torch.stack([start, mask], dim=1), (0, w % 2, 0, h % 2, 0, 0), "replicate")  # b 2 t h w
        x = F.leaky_relu(self.first(x))
        x = x + F.leaky_relu(self.inner(x))
        x = x + self.attention(x)
        frames = F.pixel_shuffle(self.last(x).transpose(1, 2), 2)  # b t 1 h w
        return start.unsqueeze(1) + frames.transpose(1, 2)[..., :h, :w]

    def attention(self, x: Tensor) -> Tensor:
        h, w = x.shape[3:]
        qkv = self.qkv(rearrange(x, "b c t h w -> b t h w c"))
        heads = self.config["heads"]
        q, k, v = rearrange(qkv, "b t h w (three n d) -> three b n t d (h w)", three=3, n=heads)
        mixed = self.mix(self.scores(q, k.transpose(2, 3)).softmax(dim=3), v)
        return rearrange(self.proj(rearrange(mixed, "b n t d p -> b t p (n d)")), "b t (h w) c -> b c t h w", h=h, w=w)


class ToyPicture(nn.Module):
    """Convolutions, one in groups, with batch normalization, and a pixel shuffle."""

    scale, radius, alignment = 2, 4, 1

    def __init__(self, width: int = 8):
        super().__init__()
        self.config = {"width": width}
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.norm, self.act = nn.BatchNorm2d(width), nn.PReLU()
        self.inner = nn.Conv2d(width, width, 3, padding=1, groups=2)
        self.last = nn.Conv2d(width, 12, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.act(self.norm(self.first(image)))
        x = x + F.silu(self.inner(x))
        return F.pixel_shuffle(self.last(x), 2) + F.interpolate(image, scale_factor=2)


def clip(frames: int, height: int, width: int, batch: int = 1) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    mask = (torch.rand(1, frames, height, width, generator=generator) < 0.5).float()
    return (mask * torch.rand(batch, frames, height, width, generator=generator)).sum(1), mask


def photo(frames: int, height: int, width: int, batch: int = 1) -> tuple[Tensor, ...]:
    return (torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1)),)


KINDS: dict[str, tuple[type[nn.Module], str, Callable[..., tuple[Tensor, ...]]]] = {
    "toy-video": (ToyVideo, "video-sci", clip),
    "toy-picture": (ToyPicture, "super-resolution", photo),
}
WITHOUT = {"qsci": "shift", "qvit": "normalize"}
"""Methods that add to a network, and an option that it must have for them."""


@pytest.fixture(autouse=True)
def entries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The one line that each network costs."""
    for name, (kind, task, _) in KINDS.items():
        monkeypatch.setitem(catalog.CATALOG, name, Entry(name, task, kind))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@cache
def float_network(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = KINDS[name][0]().eval()
    if isinstance(network, ToyPicture):
        network.norm.running_mean, network.norm.running_var = torch.randn(8) / 9, 1 + torch.rand(8)
    return network


@cache
def low_network(name: str, bits: int) -> nn.Module:
    recipe = Recipe("all", (Rule("*", Bits(bits, bits)),), weight_range="lsq", activation_range="percentile")
    return quantize(float_network(name), recipe, [KINDS[name][2](4, 16, 16)])[0]


def check_totals(lowered: Lowered, heard: dict[str, tuple[list[Tensor], Tensor]]) -> None:
    """The integer layers' accumulators are the reference's, for what entered the layers, but for what ties reach."""
    for name, layer in lowered.layers.items():
        if isinstance(layer, IntegerLayer) and runs_in_integers(layer):
            [entered], value = heard[name]
            wanted = accumulate(layer, layer.input.codes(entered))
            column = -1 if isinstance(layer.geometry, nn.Linear) else (-1, *[1] * (value.ndim - 2))
            bias = torch.zeros(()) if layer.bias is None else layer.bias.reshape(column)
            found = ((value.double() - bias.double()) / layer.scale.reshape(column)).round()
            reached = layer.weight.numel() // layer.weight.shape[1]  # by one code
            assert int((found != wanted).sum()) <= 2 * reached + wanted.numel() / 1000, name


def hear_openvino(engine: openvino.Engine) -> dict[str, tuple[list[Tensor], Tensor]]:
    """What enters and leaves each layer, in float32."""
    size, entered = engine.entered(*example(engine.network))
    model, taps = engine.kind.build(engine.network, engine.lowered, *size)
    ends = [end for tap in taps.values() for end in (*tap.inputs, tap.output)]
    listening = openvino.openvino().Model(ends, model.get_parameters(), "check")
    compiled = engine.core.compile_model(listening, "CPU", {**engine.settings, "INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(list(entered))
    results = (torch.from_numpy(found[index]) for index in range(len(ends)))
    return {name: ([next(results) for _ in tap.inputs], next(results)) for name, tap in taps.items()}


def hear_onnxruntime(engine: onnxruntime.Engine) -> dict[str, tuple[list[Tensor], Tensor]]:
    """The same."""
    inputs = onnxruntime.check_arrays(engine.network)
    size = onnxruntime.size_of(inputs)
    model, taps = onnxruntime.model_of(engine.network, engine.lowered, engine.form, size, taps=True)
    session = onnxruntime.open_session(model.SerializeToString(), 1)
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, map(torch.from_numpy, session.run(names, inputs)), strict=True))
    return {name: ([found[end] for end in tap.inputs], found[tap.output]) for name, tap in taps.items()}


@torch.no_grad()
def computes_the_same(running: Any, name: str, low: nn.Module) -> None:
    """The whole network by PSNR, against a truth that is 34 dB from the float network; a batch, and another size."""
    data = KINDS[name][2](5, 19, 22, 2)
    truth, simulated, found = float_network(name)(*data), low(*data), running(*data)
    truth = truth + 0.02 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(2))
    wanted, result = [psnr_sci(one.flatten(0, -3), truth.flatten(0, -3)) for one in (simulated, found)]
    assert found.shape == simulated.shape and result == pytest.approx(wanted, abs=0.02)
    assert snr(found, simulated) > 20
    small = KINDS[name][2](2, 8, 12)
    assert snr(running(*small), low(*small)) > 20
    arrays = running(*(one.numpy() for one in small))
    assert isinstance(arrays, np.ndarray) and arrays.dtype == np.float32


@pytest.mark.parametrize("bits", [8, pytest.param(4, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("name", KINDS)
def test_openvino(name: str, bits: int, tmp_path: Path) -> None:
    low = low_network(name, bits)
    assert registry.ENGINES["openvino"].missing(low) is None
    engine = openvino.Engine(low, threads=1, cache=tmp_path)
    assert engine.precision == "f32"
    assert {check.name for check in engine.checks} == set(quantized_layers(low))
    assert all(check.snr_f32 > WRONG["f32"] for check in engine.checks)
    check_totals(engine.lowered, hear_openvino(engine))
    computes_the_same(engine, name, low)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("name", KINDS)
def test_onnxruntime(name: str, bits: int, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    low = low_network(name, bits)
    assert registry.ENGINES["onnxruntime"].missing(low) is None
    engine = onnxruntime.Engine(low, threads=1, cache=tmp_path)
    assert {check.name for check in engine.checks} == set(quantized_layers(low))
    heard = hear_onnxruntime(engine)
    assert min(compare_layers(low, engine.lowered, heard, -1).values()) > WRONG["f32"]
    check_totals(engine.lowered, heard)
    computes_the_same(engine, name, low)


@pytest.mark.kernels
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("name", KINDS)
def test_native_kernels(name: str, bits: int) -> None:
    low = low_network(name, bits)
    assert registry.native_module(low) is traced and traced.missing(low) is None
    engine = traced.Engine(low, threads=1)
    layers = check_layers(engine, *KINDS[name][2](5, 19, 22))
    assert len(layers) == engine.integer_layers[0] and layers > {"first"}
    computes_the_same(engine, name, low)


@pytest.mark.parametrize("name", KINDS)
def test_files_for_others(name: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    low, task = low_network(name, 4), tasks.TASKS[KINDS[name][1]]
    assert min(export_onnx(low, tmp_path / "net.onnx").values()) > WRONG["f32"]
    assert sizes_in(tmp_path / "net.onnx") == f"any {' and '.join(task.axes)}; batches of one"
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    size = (3, 14, 20)[-len(task.axes) :]
    assert min(check.snr_f32 for check in export_openvino(low, tmp_path / "net.xml", *size)) > WRONG["f32"]
    compiled = (
        openvino.openvino().Core().compile_model(tmp_path / "net.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    )
    for other in ((3, 14, 20), (6, 17, 13), (1, 32, 9)):
        data = KINDS[name][2](*other)
        with torch.no_grad():
            wanted = low(*data)
        named = dict(zip(task.inputs, (one.numpy() for one in data), strict=True))
        found = session.run([task.output], named)[0]
        assert found.shape == wanted.shape and snr(torch.from_numpy(found), wanted) > 20
        if other == (3, 14, 20):
            assert snr(torch.from_numpy(compiled(named)[task.output]), wanted) > 20


OTHERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "STFormer": (lambda: STFormer(8, 1, heads=2, frames=4), "frames 4 and height 15"),
    "EfficientSCI, normalized, colour": (
        lambda: EfficientSCI(8, 1, group_num=2, color_ch=3, normalize=True), "any frames and height and width; batches"
    ),
}  # fmt: skip

MORE = [("EfficientSCI, normalized, colour", 8), ("EfficientSCI, normalized, colour", 4), ("STFormer", 4)]


@pytest.mark.parametrize(
    ("name", "bits"),
    [("STFormer", 8), *(pytest.param(name, bits, marks=pytest.mark.slow) for name, bits in MORE)],
)
def test_networks_for_video_of_the_catalogue(name: str, bits: int, tmp_path: Path) -> None:
    build, sizes = OTHERS[name]
    torch.manual_seed(0)
    recipe = Recipe("all", (Rule("*", Bits(bits, bits)),), weight_range="lsq", activation_range="percentile")
    low, _ = quantize(build().eval(), recipe, [clip(4, 16, 16)])
    data = clip(4, 15, 17)
    with torch.no_grad():
        wanted = low(*data)
    engine = openvino.Engine(low, threads=1, cache=tmp_path)
    assert engine.precision == "f32" and all(check.snr_f32 > WRONG["f32"] for check in engine.checks)
    assert {check.name for check in engine.checks} == set(quantized_layers(low))
    assert snr(engine(*data), wanted) > 25
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    assert min(export_onnx(low, tmp_path / "net.onnx", size=(4, 15, 17)).values()) > WRONG["f32"]
    assert sizes in sizes_in(tmp_path / "net.onnx")
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(["video"], {"measurement": data[0].numpy(), "mask": data[1].numpy()})
    assert found.shape == wanted.shape and snr(torch.from_numpy(found), wanted) > 25


class Odds(nn.Module):
    """Layers and operations that no network of the catalogue has: borders of every kind, groups, dilation."""

    scale = 1

    def __init__(self) -> None:
        super().__init__()
        self.mirrored = nn.Conv2d(3, 8, 3, padding="same", padding_mode="reflect")
        self.uneven = nn.Conv2d(8, 8, (2, 3), padding="same")
        self.inside = nn.Conv2d(8, 8, 3, padding="valid")
        self.back = nn.ConvTranspose2d(8, 4, 3, groups=2)
        self.repeated = nn.Conv2d(4, 3, 3, padding=2, dilation=2, padding_mode="replicate")
        self.act = nn.PReLU(8)

    def forward(self, image: Tensor) -> Tensor:
        x = F.hardtanh(self.mirrored(image))
        x = self.act(self.uneven(x)).tanh()
        x = torch.maximum(x, -x.abs().clamp(0.1, 0.5)).clamp(max=0.9)
        x = self.back(1 - self.inside(x).exp() / 4)
        x = F.pad(x, (1, 2, 3, 0), "reflect")[:, :, 3:, 1:-2]
        return self.repeated(torch.minimum(x, x.square()))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("bits", [None, 8])
def test_what_no_network_of_the_catalogue_has(bits: int | None, tmp_path: Path) -> None:
    low, data = Odds().eval(), photo(1, 13, 17)
    if bits is not None:
        low, _ = quantize(low, "minmax", [photo(1, 16, 16)], bits=bits)
    with torch.no_grad():
        wanted = low(*data)
    least = 100 if bits is None else 30
    engine = openvino.Engine(low, precision="f32", threads=1, cache=tmp_path / "openvino")
    assert snr(engine(*data), wanted) > least
    if bits is not None and traced.missing(low) is None:
        assert snr(traced.Engine(low, threads=1)(*data), wanted) > least
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    assert snr(onnxruntime.Engine(low, threads=1, cache=tmp_path / "ort")(*data), wanted) > least


@pytest.mark.filterwarnings("ignore::bitlens.files.FileRemark")  # video networks get less of some methods
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", KINDS)
def test_every_method_that_fits(name: str, method: str, tmp_path: Path) -> None:
    network, data = float_network(name), KINDS[name][2](4, 16, 16)
    if method in WITHOUT:
        with pytest.raises(ValueError, match=f"{type(network).__name__} has no option .*{WITHOUT[method]}"):
            quantize(network, method, [data], bits=4)
        return
    if method == "shortcuts":
        with pytest.raises(ValueError, match=f"no layer of {type(network).__name__} hands its channels on"):
            quantize(network, method, [data], bits=4)
        return
    low, decisions = quantize(network, method, [data], bits=4)
    assert {decision.name for decision in decisions} >= set(quantized_layers(low)) >= {"first", "inner", "last"}
    loaded = checkpoint.load(checkpoint.save(low, tmp_path / "net.safetensors"))
    with torch.no_grad():
        assert torch.equal(loaded(*data), low(*data))
        assert snr(reference_network(low)(*data), low(*data)) > 20
    assert {outcome.name for outcome in lower(low).report} >= set(quantized_layers(low))


@pytest.mark.parametrize("name", KINDS)
def test_tiles_are_the_whole(name: str, tmp_path: Path) -> None:
    network, data = low_network(name, 8), KINDS[name][2](3, 40, 44)
    scale = getattr(network, "scale", 1)
    engine = openvino.Engine(network, threads=1, cache=tmp_path, check=False)
    for running in (network, engine):
        with torch.no_grad():
            cut = tiled(running, data, window=(32, 32), overlap=network.radius, multiple=network.alignment, scale=scale)  # type: ignore[arg-type]
            assert snr(cut, running(*data)) > 40


def test_verbs_for_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(checkpoint.save(low_network("toy-video", 8), tmp_path / "toy.safetensors"))
    scenes, out = tmp_path / "scenes", tmp_path / "result.json"
    scenes.mkdir()
    write_video(scenes / "one.npz", high_speed_scene(frames=4, height=32, width=36, oversample=1))
    assert main(["info", model]) == 0
    assert "toy-video" in capsys.readouterr().out
    command = ["evaluate", model, "--data", str(scenes), "--json", str(out), "--frames", "4", "--no-ssim"]
    assert main(command) == 0
    psnr = json.loads(out.read_text())["average"]["psnr"]
    for engine in ("openvino", "reference"):
        assert main([*command, "--engine", engine]) == 0
        assert json.loads(out.read_text())["average"]["psnr"] == pytest.approx(psnr, abs=0.02)


def test_verbs_for_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(checkpoint.save(low_network("toy-picture", 8), tmp_path / "toy.safetensors"))
    photos, out = tmp_path / "photos", tmp_path / "result.json"
    photos.mkdir()
    levels = np.random.default_rng(0).integers(0, 256, (24, 28, 3), np.uint8)
    Image.fromarray(levels).save(photos / "one.png")
    assert main(["info", model]) == 0
    assert "toy-picture" in capsys.readouterr().out
    command = ["evaluate", model, "--data", str(photos), "--json", str(out)]
    assert main(command) == 0
    psnr = json.loads(out.read_text())["average"]["psnr"]
    assert main([*command, "--engine", "onnxruntime"]) == 0
    assert json.loads(out.read_text())["average"]["psnr"] == pytest.approx(psnr, abs=0.02)
    large = tmp_path / "large.png"
    assert (
        main(["upscale", str(photos / "one.png"), "--model", model, "--out", str(large), "--engine", "openvino"]) == 0
    )
    with Image.open(large) as picture:
        assert picture.size == (56, 48)
