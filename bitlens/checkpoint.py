"""Checkpoints: one safetensors file with codes at their true bit-width, scales, recipe, architecture, provenance.

    <layer>.layer.weight   packed codes (uint8) of a quantized layer; float values of any other
    everything else        float32 (or bfloat16 if asked for), by its name in the network

The header's metadata is JSON: what network to build, how it is quantized, where it comes from, what it claims.
No pickle is ever read here; official .pth files go through `bitlens.official`.
"""

import difflib
import hashlib
import json
import os
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


__all__ = [
    "Description", "Layer", "describe", "load", "save", "set_claims", "shipped", "stored_layers", "weights_sha256",
]  # fmt: skip

FORMAT = "bitlens-1"
WEIGHTS = Path(__file__).parent / "weights"
CLASSICAL = "gap-tv"
"""The reconstruction without weights; it can be named wherever a checkpoint can."""
MAX_HEADER = 100_000_000
METADATA: dict[str, Callable[[Any], bool]] = {
    "network": lambda x: isinstance(x, dict) and isinstance(x.get("name"), str) and isinstance(x.get("config"), dict),
    "recipe": lambda x: x is None or (isinstance(x, dict) and isinstance(x.get("method"), str)),
    "provenance": lambda x: isinstance(x, dict),
    "claims": lambda x: isinstance(x, dict),
    "layers": lambda x: isinstance(x, list) and all(isinstance(layer, list) and len(layer) == 6 for layer in x),
}
"""The shape of each part of the metadata."""


@dataclass(frozen=True)
class Layer:
    """One layer as the header tells of it."""

    name: str
    kind: str
    weights: int
    """Number of weights, without biases."""
    weight_bits: int
    """32: float."""
    activation_bits: int
    """32: float."""
    bytes: int
    """Bytes of the weights in the file."""


@dataclass(frozen=True)
class Description:
    """What a checkpoint's header says, without its weights."""

    name: str
    path: Path | None
    bytes: int
    network: str
    config: dict[str, Any]
    method: str | None
    recipe: dict[str, Any] | None
    provenance: dict[str, Any]
    claims: dict[str, Any]
    layers: list[Layer]


def shipped() -> dict[str, Path]:
    """The checkpoints that come with bitlens, by name."""
    return {path.stem: path for path in sorted(WEIGHTS.glob("*.safetensors"))}


def find(path_or_name: str | os.PathLike[str]) -> Path:
    """The file of a shipped name or a path.

    Raises:
        FileNotFoundError: neither.
    """
    text = os.fspath(path_or_name)
    known = shipped()
    if text in known:
        return known[text]
    path = Path(text)
    if path.is_file():
        return path
    near = difflib.get_close_matches(text, [*known, CLASSICAL], 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise FileNotFoundError(
        f"no checkpoint {text}; {hint}wanted a .safetensors file or one of {', '.join([*known, CLASSICAL])}; "
        "see `bitlens models`"
    )


def describe(path_or_name: str | os.PathLike[str]) -> Description:
    """Read a checkpoint's header only.

    Raises:
        FileNotFoundError: no such file or name. ValueError: not a bitlens checkpoint.
    """
    if os.fspath(path_or_name) == CLASSICAL:
        return Description(CLASSICAL, None, 0, CLASSICAL, {}, None, None, {"source": "GAP-TV, Yuan 2016"}, {}, [])
    path = find(path_or_name)
    meta = read_metadata(path)
    recipe = meta["recipe"]
    layers = [Layer(*fields) for fields in meta["layers"]]
    return Description(
        path.stem,
        path,
        path.stat().st_size,
        meta["network"]["name"],
        meta["network"]["config"],
        recipe["method"] if recipe else None,
        recipe,
        meta["provenance"],
        meta["claims"],
        layers,
    )


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a bitlens checkpoint, checked.

    Raises:
        ValueError: another kind of file, damaged, or of a newer format.
    """
    wanted = "wanted a bitlens checkpoint (.safetensors)"
    if path.suffix in {".pth", ".pt", ".ckpt", ".pkl", ".pickle", ".bin"}:
        raise ValueError(
            f"{path} is a {path.suffix} file, which may hold code; {wanted}; for official weights use "
            "bitlens.official.load_official, which reads numbers only"
        )
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, MAX_HEADER):
            raise ValueError(f"{path} ({size} bytes) is not a complete safetensors file; {wanted}; copy it again")
        text = file.read(length)
    try:
        header = json.loads(text)
        meta = header.get("__metadata__", {})
        kind = meta.get("format")
        end = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
        whole = bool(8 + length + end == size)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"{path} has a damaged header; {wanted}; copy it again") from error
    if not whole:
        raise ValueError(f"{path} is truncated or damaged ({size} bytes); {wanted}; copy it again")
    if kind != FORMAT:
        raise ValueError(
            f"{path} is a safetensors file of something else (format {kind!r}); {wanted}, format "
            f"{FORMAT!r}; save it with bitlens.save, or import official weights with bitlens.from_official"
        )
    try:
        parts = {key: json.loads(meta[key]) for key in ("network", "recipe", "provenance", "claims", "layers")}
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} lacks part of its metadata ({error}); {wanted}; copy or save it again") from error
    wrong = [key for key, good in METADATA.items() if not good(parts[key])]
    if wrong:
        raise ValueError(f"{path} has wrong metadata under {wrong[0]!r}; {wanted}; copy or save it again")
    return parts


def weights_sha256(path: Path) -> str:
    """SHA-256 of everything in a checkpoint but its header: the identity of its weights, whatever it claims."""
    data = path.read_bytes()
    return hashlib.sha256(data[8 + struct.unpack("<Q", data[:8])[0] :]).hexdigest()


def set_claims(path: str | os.PathLike[str], claims: dict[str, Any]) -> None:
    """Write measured quality into the header of a checkpoint; its weights stay the same bytes.

    Raises:
        ValueError: not a bitlens checkpoint, or damaged.
    """
    from bitlens.files import atomic_path

    file = Path(path)
    read_metadata(file)
    data = file.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end])
    header["__metadata__"]["claims"] = json.dumps(claims, separators=(",", ":"))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # safetensors aligns what follows
    with atomic_path(file) as temporary:
        temporary.write_bytes(struct.pack("<Q", len(text)) + text + data[end:])


def save(
    network: "nn.Module",
    path: str | os.PathLike[str],
    *,
    provenance: dict[str, Any] | None = None,
    claims: dict[str, Any] | None = None,
    dtype: str = "float32",
) -> Path:
    """Write a network, float or fake-quantized; quantized weights become packed codes.

    `load` gives a network with the same output, bit for bit (with dtype "float32").

    Args:
        network: a network that `load` can build, one of `architectures`, prepared by a recipe or not.
        path: where to, ending in .safetensors; written whole or not at all.
        provenance: where the weights come from: data identity, steps, seeds, versions.
        claims: measured quality, such as {"six-scenes": {"psnr": 27.1}}; `bitlens verify` recomputes it.
        dtype: of float weights that are not quantized: "float32" or "bfloat16".

    Raises:
        ValueError: wrong suffix or dtype, unknown network, weights that are not finite, or a grid without a range.
    """
    import torch
    from safetensors.torch import save as to_bytes

    from bitlens.files import atomic_path
    from bitlens.quant.layers import Quantized, quantized_layers
    from bitlens.quant.packing import pack

    target = Path(path)
    if target.suffix != ".safetensors":
        raise ValueError(f"cannot write {target}; wanted a name that ends in .safetensors; change it")
    name = network_name(network)
    layers = quantized_layers(network)
    packed: dict[str, Tensor] = {}
    for key, layer in layers.items():
        if not all(grid.ready for grid, _ in layer.calibration_groups().values()):
            raise ValueError(f"layer {key} has no range yet; wanted a calibrated network; calibrate it first")
        if isinstance(layer, Quantized):
            grid = layer.weight_grid
            packed[f"{key}.layer.weight"] = pack(grid.codes(layer.layer.get_parameter("weight")), grid.bits, grid.qmin)
    floats = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(dtype)
    if floats is None:
        raise ValueError(f"dtype {dtype!r}; wanted float32 or bfloat16; choose one")
    tensors = {}
    for key, value in network.state_dict().items():
        kept = floats if value.ndim > 1 and "_grid." not in key else torch.float32
        tensors[key] = packed[key] if key in packed else value.detach().to("cpu", kept).contiguous()
    bad = [key for key, value in network.state_dict().items() if not bool(value.isfinite().all())]
    if bad:
        raise ValueError(f"the network holds NaN or infinite values in {bad[0]}; wanted finite ones; train it again")
    recipe = getattr(network, "recipe", None)
    meta = {
        "network": {"name": name, "config": network.config},
        "recipe": recipe.to_dict() if recipe is not None else None,
        "provenance": provenance or {},
        "claims": claims or {},
        "layers": [list(asdict(layer).values()) for layer in layers_of(network, tensors)],
    }
    if layers and recipe is None:
        raise ValueError("the network is quantized but has no recipe; wanted one made by bitlens.quantize; set .recipe")
    texts = {
        "format": FORMAT,
        **{key: json.dumps(value, separators=(",", ":")) for key, value in meta.items()},
    }
    content = in_order(to_bytes(tensors, metadata=texts), texts)
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)
    return target


def in_order(content: bytes, texts: dict[str, str]) -> bytes:
    """A safetensors file with its metadata in the order given: the same network then gives the same bytes."""
    length = struct.unpack("<Q", content[:8])[0]
    header = {**json.loads(content[8 : 8 + length]), "__metadata__": texts}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors stay aligned
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def load(path_or_name: str | os.PathLike[str]) -> "nn.Module":
    """The network of a shipped name ("efficientsci-t-qsci-w4a4", "gap-tv") or of a checkpoint file, in eval mode.

    >>> load("gap-tv")(torch.rand(1, 32, 32), torch.ones(1, 8, 32, 32)).shape  # doctest: +SKIP
    torch.Size([1, 1, 8, 32, 32])

    Raises:
        FileNotFoundError: no such name or file.
        ValueError: not a bitlens checkpoint, damaged, or its tensors do not fit the network it names.
    """
    from bitlens.networks.classical import GapTV

    if os.fspath(path_or_name) == CLASSICAL:
        return GapTV().eval()
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from bitlens.quant.layers import Quantized, declare_ready, quantized_layers
    from bitlens.quant.packing import unpack
    from bitlens.quant.prepare import prepare
    from bitlens.recipe import Recipe

    path = find(path_or_name)
    meta = read_metadata(path)
    network = build(meta["network"], path)
    if meta["recipe"] is not None:
        try:
            recipe = Recipe.from_dict(meta["recipe"])
            prepare(network, recipe)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} has a recipe that fits no network ({error}); copy or save it again") from error
        network.recipe = recipe  # type: ignore[assignment]
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); wanted a bitlens checkpoint; copy it again") from error
    packed = {}
    for key, layer in quantized_layers(network).items():
        if isinstance(layer, Quantized):
            packed[f"{key}.layer.weight"] = layer
    codes: dict[str, tuple[Quantized, Tensor]] = {}
    for key, layer in packed.items():
        if key in tensors:
            grid, weight = layer.weight_grid, layer.layer.get_parameter("weight")
            flat = unpack(tensors.pop(key), grid.bits, grid.qmin, weight.numel())
            codes[key] = layer, flat.reshape(weight.shape)
    expected = network.state_dict()
    missing = sorted(set(expected) - set(tensors) - set(codes))
    unknown = sorted(set(tensors) - set(expected))
    wrong = sorted(key for key in set(tensors) & set(expected) if tensors[key].shape != expected[key].shape)
    if missing or unknown or wrong:
        raise ValueError(
            f"{path} does not fit the network it names: {len(missing)} tensors missing {missing[:3]}, {len(unknown)} "
            f"unknown {unknown[:3]}, {len(wrong)} of another shape {wrong[:3]}; copy or save it again"
        )
    bad = [key for key, value in tensors.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        raise ValueError(
            f"{path} holds NaN or infinite weights in {bad[0]}; wanted finite ones; copy or train it again"
        )
    network.load_state_dict(tensors, strict=False)
    declare_ready(network)
    with torch.no_grad():
        for layer, value in codes.values():
            layer.layer.get_parameter("weight").copy_(layer.weight_grid.values(value))
    return network.eval()


def stored_layers(path_or_name: str | os.PathLike[str]) -> list[Layer]:
    """The table of layers as the weights in the file give it; in a sound file it equals the header's.

    Raises:
        FileNotFoundError, ValueError: as `load`.
    """
    from safetensors.torch import load_file

    return layers_of(load(path_or_name), load_file(find(path_or_name)))


def architectures() -> "dict[str, type[nn.Module]]":
    """The networks that a header can name."""
    from bitlens.networks.edsr import EDSR
    from bitlens.networks.efficientsci import EfficientSCI
    from bitlens.networks.imdn import IMDN
    from bitlens.networks.ngswin import NGswin
    from bitlens.networks.pan import PAN
    from bitlens.networks.smfanet import SMFANet
    from bitlens.networks.stformer import STFormer
    from bitlens.networks.swinir import SwinIR

    kinds = (EfficientSCI, STFormer, SwinIR, NGswin, EDSR, IMDN, PAN, SMFANet)
    return {kind.__name__.lower(): kind for kind in kinds}


def network_name(network: "nn.Module") -> str:
    """The name under which `build` knows a network's class."""
    for name, kind in architectures().items():
        if isinstance(network, kind):
            return name
    wanted = ", ".join(kind.__name__ for kind in architectures().values())
    raise ValueError(f"{type(network).__name__} cannot be saved; wanted one of {wanted}; save its state dict yourself")


def build(network: dict[str, Any], path: Path) -> "nn.Module":
    """The empty network that a header names."""
    known, config = architectures(), network.get("config", {})
    lists = {key: value if isinstance(value, list) else [value] for key, value in config.items()}
    numbers = [x for key, values in lists.items() for x in values if (key, x) != ("shortcuts", "fem")]
    whole = all(isinstance(x, int) and 0 <= x <= 1024 for x in numbers) and all(map(len, lists.values()))
    if network.get("name") not in known or not whole:
        raise ValueError(
            f"{path} names the network {network}; wanted one of {', '.join(known)}; use the version that saved it"
        )
    side = max(config.get(key, 0) for key in ("in_ch", "dim", "window"))
    blocks = config.get("units", 0) * config.get("depth", 1) + sum(lists.get("depths", []))
    least = side**2 * blocks  # bytes, even at one bit
    if not 0 < least <= path.stat().st_size:
        raise ValueError(f"{path} cannot hold the network that it names, {config}; copy or save it again")
    try:
        return known[network["name"]](**config)
    except (TypeError, RuntimeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{path} has a configuration that builds nothing ({error}); copy it again") from error


def layers_of(network: "nn.Module", tensors: "dict[str, Tensor]") -> list[Layer]:
    """The table of layers for the header."""
    from bitlens.quant.layers import LAYERS, Quantized, QuantizedMatMul

    table = []
    inside: set[str] = set()
    for name, module in network.named_modules():
        if isinstance(module, Quantized | QuantizedMatMul):
            inside.add(f"{name}.layer")
            weights = sum(p.numel() for key, p in module.layer.named_parameters() if key == "weight")
            size = tensors[f"{name}.layer.weight"].nbytes if weights else 0
            kind = type(module.layer).__name__
            table.append(Layer(name, kind, weights, module.weight_bits, module.activation_bits, size))
        elif isinstance(module, LAYERS) and name not in inside:
            weight = tensors[f"{name}.weight"]
            table.append(
                Layer(name, type(module).__name__, weight.numel(), 8 * weight.element_size(), 32, weight.nbytes)
            )
    return table
