"""A checkpoint gives back the same network bit for bit, at its true size, and anything else is refused."""

import dataclasses
import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import bitlens
from bitlens.checkpoint import default, describe, find, load, save, shipped
from bitlens.methods import qsci, quantize, recipe_of
from bitlens.networks.classical import GapTV
from bitlens.networks.efficientsci import EfficientSCI, efficientsci
from bitlens.networks.stformer import STFormer
from bitlens.quant.calibrate import calibrate
from bitlens.quant.grid import StepGrid
from bitlens.quant.layers import Quantized, quantized_layers, real_weight
from bitlens.quant.prepare import prepare
from bitlens.recipe import Bits, Recipe, Rule
from bitlens.tasks import TASKS


def data() -> tuple[Tensor, Tensor]:
    mask = (torch.rand(1, 4, 16, 16) < 0.5).float()
    return (mask * torch.rand(1, 4, 16, 16)).sum(1), mask


def quick(recipe: Recipe) -> Recipe:
    """The same bits with ranges that are found fast."""
    return dataclasses.replace(recipe, weight_range="minmax", activation_range="minmax")


def low_bit(recipe: Recipe, **options: bool) -> EfficientSCI:
    made, _ = quantize(EfficientSCI(8, 1, 2, **options), quick(recipe), [data()])
    assert isinstance(made, EfficientSCI)
    return made


def output(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    with torch.no_grad():
        return network(*batch)


@pytest.fixture
def float_file(tmp_path: Path) -> Path:
    return save(EfficientSCI(8, 1, 2), tmp_path / "float.safetensors")


@pytest.fixture
def packed_file(tmp_path: Path) -> Path:
    return save(low_bit(recipe_of("direct", 4)), tmp_path / "packed.safetensors")


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the header of a safetensors file; the tensors stay."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    changed = change(header)
    text = json.dumps(header if changed is None else changed).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


@pytest.mark.parametrize("options", [{}, {"shift": True}, {"shift": True, "shortcuts": True}])
def test_float_network_bit_for_bit(tmp_path: Path, options: dict[str, bool]) -> None:
    network, batch = EfficientSCI(8, 1, 2, **options).eval(), data()
    loaded = load(save(network, tmp_path / "net.safetensors"))
    assert isinstance(loaded, EfficientSCI) and loaded.config == network.config and not loaded.training
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    assert torch.equal(output(loaded, batch), output(network, batch))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bits", [None, 4])
def test_stformer(tmp_path: Path, bits: int | None, dtype: str) -> None:
    network, batch = STFormer(4, 1).eval(), data()
    if bits is not None:
        recipe = quick(recipe_of("qsci", bits))
        network, _ = quantize(network.with_options(shift=True, shortcuts=True), recipe, [batch])
    path = save(network, tmp_path / "net.safetensors", dtype=dtype)
    loaded = load(path)
    assert isinstance(loaded, STFormer) and loaded.config == network.config
    assert describe(path).network == "stformer"
    if dtype == "float32":
        assert torch.equal(output(loaded, batch), output(network, batch))
    assert torch.equal(output(load(save(loaded, tmp_path / "again.safetensors")), batch), output(loaded, batch))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": 1024, "depth": 1024}, "cannot hold the network"),
        ({"window": 1024}, "cannot hold the network"),
        ({"heads": 3}, "builds nothing|does not fit"),
        ({"frames": 9}, "2 of another shape"),
        ({"depth": 0}, "does not fit"),
    ],
)
def test_stformer_of_another_configuration(tmp_path: Path, changes: dict[str, int], message: str) -> None:
    path = save(STFormer(4, 1), tmp_path / "net.safetensors")
    rewrite(path, config(**changes))
    with pytest.raises(ValueError, match=message):
        load(path)


@pytest.mark.parametrize("grid", ["deployable", "official"])
@pytest.mark.parametrize("method", ["direct", "qsci"])
@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
def test_low_bit_network_bit_for_bit(tmp_path: Path, method: str, bits: int, grid: str) -> None:
    options = qsci.options(bits) if method == "qsci" else {}
    network, batch = low_bit(recipe_of(method, bits, grid), **options), data()
    generator = torch.Generator().manual_seed(bits)
    with torch.no_grad():  # a trained network: scales no longer where calibration put them
        for parameter in network.parameters():
            parameter.mul_(1 + 0.1 * torch.rand(parameter.shape, generator=generator))
    loaded = load(save(network, tmp_path / "net.safetensors"))
    assert isinstance(loaded, EfficientSCI)
    assert loaded.recipe == network.recipe
    layers = quantized_layers(loaded)
    for name, layer in quantized_layers(network).items():
        if isinstance(layer, Quantized):
            assert torch.equal(layers[name].layer.get_parameter("weight"), real_weight(layer)), name
    assert torch.equal(output(loaded, batch), output(network, batch))
    again = load(save(loaded, tmp_path / "again.safetensors"))
    assert torch.equal(output(again, batch), output(network, batch))
    first, second = (tmp_path / "net.safetensors").read_bytes(), (tmp_path / "again.safetensors").read_bytes()
    assert first == second


@pytest.mark.parametrize("bits", [Bits(3, 5, parametrization="bound"), Bits(5, 3, "tensor", zero_point="free")])
def test_other_grids_bit_for_bit(tmp_path: Path, bits: Bits) -> None:
    recipe = Recipe("other", (Rule("fem.0"), Rule("*", bits)))
    network, batch = low_bit(recipe), data()
    loaded = load(save(network, tmp_path / "net.safetensors"))
    assert torch.equal(output(loaded, batch), output(network, batch))
    assert "fem.0" not in quantized_layers(loaded)


def test_weights_half_way_between_codes(tmp_path: Path) -> None:
    """Training and checkpoint must round a tie alike, or the loaded network is another one."""
    network, batch = low_bit(recipe_of("direct", 8)), data()
    with torch.no_grad():
        for layer in quantized_layers(network).values():
            if isinstance(layer, Quantized):
                weight = layer.layer.get_parameter("weight")
                ties = torch.randint(-100, 100, weight.shape) + 0.5
                weight.copy_(ties * layer.weight_grid.get_parameter("scale"))
    loaded = load(save(network, tmp_path / "net.safetensors"))
    assert torch.equal(output(loaded, batch), output(network, batch))


def test_sign_of_official_grids_is_kept(tmp_path: Path) -> None:
    """Official checkpoints may have grids with signed codes."""
    network, batch = low_bit(recipe_of("direct", 4, "official")), data()
    grids = [module for module in network.modules() if isinstance(module, StepGrid) and module.kind == "rounded"]
    for grid in grids[::2]:
        grid.get_buffer("signed_codes").fill_(1.0)
        grid.declare_ready()
        assert (grid.qmin, grid.qmax) == (-8, 7)
    loaded = load(save(network, tmp_path / "net.safetensors"))
    assert torch.equal(output(loaded, batch), output(network, batch))


def test_bfloat16(tmp_path: Path, float_file: Path) -> None:
    network = load(float_file)
    small = save(network, tmp_path / "small.safetensors", dtype="bfloat16")
    assert small.stat().st_size < 0.6 * float_file.stat().st_size
    batch = data()
    loaded = load(small)
    assert all(value.dtype == torch.float32 for value in loaded.state_dict().values())
    difference = output(loaded, batch) - output(network, batch)
    assert 0 < float(difference.abs().max()) < 0.02
    packed = low_bit(recipe_of("direct", 4))  # no float weight is left: the option changes nothing
    assert torch.equal(
        output(load(save(packed, tmp_path / "p.safetensors", dtype="bfloat16")), batch), output(packed, batch)
    )


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_take_their_true_width(tmp_path: Path, bits: int) -> None:
    network = low_bit(recipe_of("direct", bits))
    path = save(network, tmp_path / "net.safetensors")
    for layer in describe(path).layers:
        assert layer.weight_bits == layer.activation_bits == bits
        assert layer.bytes == -(-layer.weights * bits // 8), layer.name


def test_small_network_with_qsci_at_4_bits_is_small(tmp_path: Path) -> None:
    network = efficientsci("s", **qsci.options(4))
    recipe = quick(recipe_of("qsci", 4))
    prepare(network, recipe)
    calibrate(network, [data()], recipe)
    network.recipe = recipe  # type: ignore[assignment]
    for dtype in ("float32", "bfloat16"):
        path = save(network, tmp_path / f"{dtype}.safetensors", dtype=dtype)
        assert path.stat().st_size <= 2.2e6
    weights = sum(layer.weights * layer.weight_bits for layer in describe(path).layers) / 8
    assert path.stat().st_size < 1.15 * weights


def test_description(packed_file: Path, tmp_path: Path) -> None:
    network = low_bit(recipe_of("qsci", 4), **qsci.options(4))
    claims, provenance = {"six-scenes": {"psnr": 27.1}}, {"data": "0123", "steps": 7}
    path = save(network, tmp_path / "name-qsci-w4a4.safetensors", claims=claims, provenance=provenance)
    told = describe(path)
    assert (told.name, told.path, told.bytes) == ("name-qsci-w4a4", path, path.stat().st_size)
    assert (told.network, told.config, told.method) == ("efficientsci", network.config, "qsci")
    assert told.claims == claims and told.provenance == provenance
    assert told.recipe is not None and Recipe.from_dict(told.recipe) == network.recipe
    table = {layer.name: layer for layer in told.layers}
    assert set(table) == set(quantized_layers(network))
    assert dataclasses.astuple(table["fem.0"]) == ("fem.0", "Conv3d", 8 * 147, 4, 4, 8 * 147 // 2)
    assert dataclasses.astuple(table["vrm_shortcut.2"]) == ("vrm_shortcut.2", "Conv3d", 8, 8, 8, 8)
    product = table["resdnet_list.0.cformer_list.0.tsab.scores"]
    assert (product.kind, product.weights, product.weight_bits, product.bytes) == ("MatMul", 0, 4, 0)


def test_description_of_a_float_network(float_file: Path) -> None:
    told = describe(float_file)
    assert told.method is None and told.recipe is None and told.claims == {} and told.provenance == {}
    assert {(layer.weight_bits, layer.activation_bits) for layer in told.layers} == {(32, 32)}
    assert sum(layer.bytes for layer in told.layers) < told.bytes


def test_description_reads_the_header_only_and_needs_no_torch(packed_file: Path) -> None:
    before = describe(packed_file)
    raw = packed_file.read_bytes()
    start = 8 + struct.unpack("<Q", raw[:8])[0]
    packed_file.write_bytes(raw[:start] + b"\xff" * (len(raw) - start))
    assert describe(packed_file) == before
    code = (
        "import sys; from bitlens.checkpoint import describe; print(describe(sys.argv[1]).method); "
        "assert not {'torch', 'numpy', 'safetensors'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(packed_file)], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("direct", "")


def test_names() -> None:
    told = describe("gap-tv")
    assert told.network == "gap-tv" and told.path is None and told.bytes == 0
    assert isinstance(load("gap-tv"), GapTV) and bitlens.load is load
    for name, path in shipped().items():
        assert find(name) == path and describe(name).name == name


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(describe(default(task)).task == task for task in TASKS)
    monkeypatch.setattr("bitlens.checkpoint.header.shipped", dict)
    assert default("video-sci") == "gap-tv"
    with pytest.raises(ValueError, match="no network for super-resolution is shipped; wanted the name or path of one"):
        default("super-resolution")


@pytest.mark.parametrize(
    ("name", "hint"), [("gap-tw", r"did you mean 'gap-tv'\?"), ("nowhere.safetensors", "wanted a .safetensors")]
)
@pytest.mark.parametrize("read", [load, describe])
def test_unknown_names(read: Callable[[str], Any], name: str, hint: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"no checkpoint {name}; .*{hint}"):
        read(name)


@pytest.mark.parametrize("read", [load, describe])
@pytest.mark.parametrize("share", [0.0, 1e-4, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999, "8 bytes", "last byte", "and more"])
def test_truncated(packed_file: Path, share: float | str, read: Callable[[Path], Any]) -> None:
    raw = packed_file.read_bytes()
    lengths = {"8 bytes": 8, "last byte": len(raw) - 1, "and more": len(raw)}
    length = lengths[share] if isinstance(share, str) else int(share * len(raw))
    packed_file.write_bytes(raw[:length] + (b"x" if share == "and more" else b""))
    with pytest.raises(ValueError, match=r"wanted a bitlens checkpoint \(\.safetensors\).*; copy it again"):
        read(packed_file)


@pytest.mark.parametrize("read", [load, describe])
def test_other_files(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(2)}, other, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"something else \(format 'pt'\)"):
        read(other)
    safetensors.torch.save_file({"x": torch.zeros(2)}, other)
    with pytest.raises(ValueError, match=r"something else \(format None\)"):
        read(other)
    for content in (b"PK\x03\x04" * 50, b"\x05\0\0\0\0\0\0\0[1,2]", b"\x02\0\0\0\0\0\0\0{}", b"\xff" * 99):
        other.write_bytes(content)
        with pytest.raises(ValueError, match="wanted a bitlens checkpoint"):
            read(other)


class Bomb:
    """Code in a pickle: it makes a file where it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("read", [load, describe])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".pkl", ".bin"])
def test_pickles_are_never_read(tmp_path: Path, suffix: str, read: Callable[[Path], Any]) -> None:
    path, mark = tmp_path / f"net{suffix}", tmp_path / "mark"
    path.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ValueError, match=rf"is a {suffix} file, which may hold code; .*bitlens convert"):
        read(path)
    renamed = path.rename(tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="wanted a bitlens checkpoint"):
        read(renamed)
    assert not mark.exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["fem.0.weight", "vrm.4.bias"])
def test_weights_that_are_not_finite(float_file: Path, place: str, bad: float) -> None:
    network = load(float_file)
    with torch.no_grad():
        network.get_parameter(place).flatten()[0] = bad
    with pytest.raises(ValueError, match=rf"network holds NaN or infinite values in {place}"):
        save(network, float_file.with_name("new.safetensors"))
    assert not float_file.with_name("new.safetensors").exists()
    with safetensors.safe_open(float_file, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        meta = file.metadata()
    tensors[place].flatten()[0] = bad
    safetensors.torch.save_file(tensors, float_file, metadata=meta)
    with pytest.raises(ValueError, match=rf"holds NaN or infinite weights in {place}"):
        load(float_file)


def meta(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Put another value into one part of the metadata."""

    def change(header: dict[str, Any]) -> None:
        header["__metadata__"][key] = value if isinstance(value, str) else json.dumps(value)

    return change


def config(**changes: Any) -> Callable[[dict[str, Any]], None]:
    """Change the configuration of the network."""

    def change(header: dict[str, Any]) -> None:
        network = json.loads(header["__metadata__"]["network"])
        network["config"].update(changes)
        header["__metadata__"]["network"] = json.dumps(network)

    return change


RULE = {"pattern": "*", "bits": {"weight": 4, "activation": 4}}
HEADER_ONLY = {
    "format": (meta("format", "bitlens-2"), "something else"),
    "not json": (meta("network", "{"), "lacks part of its metadata"),
    "missing part": (lambda header: header["__metadata__"].pop("claims"), "lacks part of its metadata"),
    "network a list": (meta("network", [1]), "wrong metadata under 'network'"),
    "no name": (meta("network", {"config": {}}), "wrong metadata under 'network'"),
    "config a list": (meta("network", {"name": "efficientsci", "config": [1]}), "wrong metadata under 'network'"),
    "recipe a string": (meta("recipe", '"x"'), "wrong metadata under 'recipe'"),
    "recipe without method": (meta("recipe", {"name": "x", "rules": [RULE]}), "wrong metadata under 'recipe'"),
    "layers": (meta("layers", [[1, 2]]), "wrong metadata under 'layers'"),
    "claims": (meta("claims", [1]), "wrong metadata under 'claims'"),
    "no metadata": (lambda header: header.pop("__metadata__"), "something else"),
    "metadata a list": (lambda header: header.update(__metadata__=[1]), "damaged header"),
    "offsets": (lambda header: header["vrm.4.layer.bias"].update(data_offsets=["a", "b"]), "damaged header"),
    "no offsets": (lambda header: header["vrm.4.layer.bias"].pop("data_offsets"), "damaged header"),
    "header a list": (lambda header: [header], "damaged header"),
}
LOADED = {
    "other network": (meta("network", {"name": "unet", "config": {}}), "wanted one of gap-tv, dun, efficientsci"),
    "unknown option": (config(depth=3), "builds nothing"),
    "wider": (config(in_ch=16), "bytes of codes; wanted"),
    "deeper": (config(units=2), "does not fit the network it names: 84 tensors missing"),
    "shortcuts": (config(shortcuts=True), "does not fit the network it names"),
    "nothing": (config(in_ch=0), "builds nothing"),
    "text": (config(in_ch="8"), "builds nothing"),
    "negative": (config(in_ch=-8), "wanted one of gap-tv, dun, efficientsci"),
    "huge": (config(in_ch=1024, units=1024), "cannot hold the network that it names"),
    "other bits": (meta("recipe", {"name": "x", "method": "direct", "rules": [{"pattern": "*", "bits": {}}]}), "bytes"),
    "bad bits": (
        meta("recipe", {"name": "x", "method": "direct", "rules": [{"pattern": "*", "bits": {"weight": 99}}]}),
        "recipe that fits no network .*from 1 to 8",
    ),
    "bad pattern": (
        meta("recipe", {"name": "x", "method": "direct", "rules": [{"pattern": 5, "bits": RULE["bits"]}]}),
        "recipe that fits no network",
    ),
    "bad rules": (meta("recipe", {"name": "x", "method": "direct", "rules": 3}), "recipe that fits no network"),
    "no layer": (
        meta("recipe", {"name": "x", "method": "direct", "rules": [{"pattern": "y", "bits": {}}]}),
        "recipe that fits no network .*no layer of the network",
    ),
    "float recipe": (meta("recipe", "null"), "does not fit the network it names"),
    "overlap": (lambda header: header["vrm.4.layer.bias"].update(data_offsets=[0, 4]), "is damaged"),
    "dtype": (lambda header: header["vrm.4.layer.bias"].update(dtype="F99"), "is damaged"),
    "renamed": (
        lambda header: header.update({"vrm.9.bias": header.pop("vrm.4.layer.bias")}),
        r"1 tensors missing \['vrm.4.layer.bias'\], 1 unknown \['vrm.9.bias'\]",
    ),
}


@pytest.mark.parametrize("read", [load, describe])
@pytest.mark.parametrize("case", HEADER_ONLY)
def test_tampered_header(packed_file: Path, case: str, read: Callable[[Path], Any]) -> None:
    change, message = HEADER_ONLY[case]
    rewrite(packed_file, lambda header: change(header) if case == "header a list" else void(change(header)))
    with pytest.raises(ValueError, match=message):
        read(packed_file)


def void(value: Any) -> None:
    """Drop what a change returns."""


@pytest.mark.parametrize("case", LOADED)
def test_tampered_network(packed_file: Path, case: str) -> None:
    change, message = LOADED[case]
    rewrite(packed_file, lambda header: void(change(header)))
    with pytest.raises(ValueError, match=message):
        load(packed_file)


def test_uncalibrated_networks_are_not_saved(tmp_path: Path) -> None:
    network = EfficientSCI(8, 1, 2)
    prepare(network, recipe_of("direct", 4))
    with pytest.raises(ValueError, match=r"layer fem\.0 has no range yet; wanted a calibrated network"):
        save(network, tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


def full_disk(path: Path, content: bytes) -> None:
    """Stands in for Path.write_bytes."""
    with path.open("wb") as file:
        file.write(content[:100])
    raise OSError("no space left on device")


def test_refused_saves_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, target = EfficientSCI(8, 1, 2), tmp_path / "new" / "net.safetensors"
    with pytest.raises(ValueError, match=r"wanted a name that ends in \.safetensors"):
        save(network, target.with_suffix(".pth"))
    with pytest.raises(ValueError, match=r"Linear cannot be saved; wanted one of .*efficientsci"):
        save(nn.Linear(2, 2), target)
    with pytest.raises(ValueError, match="dtype 'float16'; wanted float32 or bfloat16"):
        save(network, target, dtype="float16")
    with pytest.raises(TypeError, match="not JSON serializable"):
        save(network, target, provenance={"path": {1, 2}})
    no_recipe = low_bit(recipe_of("direct", 4))
    del no_recipe.recipe
    with pytest.raises(ValueError, match="quantized but has no recipe"):
        save(no_recipe, target)

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="no space"):
        save(network, target)
    assert not list(tmp_path.iterdir())


def test_failed_save_keeps_the_old_file(float_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = float_file.read_bytes()

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="no space"):
        save(EfficientSCI(8, 1, 2), float_file)
    assert float_file.read_bytes() == before and len(list(float_file.parent.iterdir())) == 1


def test_others_may_read_the_file(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        path = save(EfficientSCI(8, 1, 2), tmp_path / "net.safetensors")
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o644
