"""A network into a checkpoint and out of one: its weights' codes, its grids, and the network that a header names."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitlens.checkpoint.header import (
    CLASSICAL,
    FORMAT,
    Layer,
    at_width,
    find,
    in_order,
    read_metadata,
    split,
)
from bitlens.networks.catalog import CATALOG, entry_of

if TYPE_CHECKING:
    from torch import Tensor, nn


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
        network: a network that `load` can build, one of `bitlens.networks.catalog`, prepared by a recipe or not; or
            several widths of one (`quant.nested`), which `load` gives by `NAME@4`.
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
    from bitlens.quant.nested import Nested
    from bitlens.quant.packing import pack

    target = Path(path)
    if target.suffix != ".safetensors":
        raise ValueError(f"cannot write {target}; wanted a name that ends in .safetensors; change it")
    narrower: dict[int, nn.Module] = {}
    if isinstance(network, Nested):
        narrower = {width: network.alone(width) for width in network.widths[1:]}
        widest, network = network.widths[0], network.widest
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
    if narrower:
        texts["nested"] = json.dumps(
            {str(widest): {"recipe": meta["recipe"], "layers": meta["layers"]}}
            | {str(width): keep_beside(tensors, width, one) for width, one in narrower.items()},
            separators=(",", ":"),
        )
    content = in_order(to_bytes(tensors, metadata=texts), texts)
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)
    return target


def keep_beside(tensors: "dict[str, Tensor]", width: int, network: "nn.Module") -> dict[str, Any]:
    """Enter what a narrower width of a nested checkpoint has of its own; gives its part of the header."""
    import torch

    from bitlens.quant.layers import Quantized, quantized_layers

    layers = quantized_layers(network).items()
    shared = {f"{name}.layer.weight" for name, layer in layers if isinstance(layer, Quantized)}
    for key, value in network.state_dict().items():
        kept = value.detach().to("cpu", torch.float32).contiguous()
        same = key in tensors and tensors[key].dtype == kept.dtype and torch.equal(tensors[key], kept)
        if key not in shared and not same:
            tensors[f"@{width}/{key}"] = kept
    recipe: Any = network.recipe
    table = layers_of(network, of_one_width(tensors, width))
    return {"recipe": recipe.to_dict(), "layers": [list(asdict(layer).values()) for layer in table]}


def of_one_width(tensors: "dict[str, Tensor]", width: int | None) -> "dict[str, Tensor]":
    """The tensors of one width of a nested checkpoint (None: the widest): its own in the place of the widest's."""
    prefix = f"@{width}/"
    own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return {key: value for key, value in tensors.items() if not key.startswith("@")} | own


def load(path_or_name: str | os.PathLike[str]) -> "nn.Module":
    """The network of a shipped name ("efficientsci-t-qsci-w4a4", "gap-tv") or of a checkpoint file, in eval mode.

    >>> load("gap-tv")(torch.rand(1, 32, 32), torch.ones(1, 8, 32, 32)).shape  # doctest: +SKIP
    torch.Size([1, 1, 8, 32, 32])

    Raises:
        FileNotFoundError: no such name or file.
        ValueError: not a bitlens checkpoint, damaged, or its tensors do not fit the network it names.
    """
    if os.fspath(path_or_name) == CLASSICAL:
        return CATALOG[CLASSICAL].kind().eval()
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from bitlens.quant.layers import Quantized, declare_ready, quantized_layers
    from bitlens.quant.nested import rounded_again
    from bitlens.quant.packing import unpack
    from bitlens.quant.prepare import prepare
    from bitlens.recipe import Recipe

    path, width = find(path_or_name), split(path_or_name)[1]
    meta = read_metadata(path)
    network = build(meta["network"], path)
    of_width, _ = at_width(meta, width, path)
    if of_width is not None:
        try:
            recipe = Recipe.from_dict(of_width)
            prepare(network, recipe)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} has a recipe that fits no network ({error}); copy or save it again") from error
        network.recipe = recipe  # type: ignore[assignment]
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); wanted a bitlens checkpoint; copy it again") from error
    whole, tensors = tensors, of_one_width(tensors, width)
    packed = {}
    for key, layer in quantized_layers(network).items():
        if isinstance(layer, Quantized):
            packed[f"{key}.layer.weight"] = layer
    stored = {f"{layer[0]}.layer.weight": layer[3] for layer in meta["layers"]} if width else {}
    codes: dict[str, tuple[Quantized, Tensor]] = {}
    for key, layer in packed.items():
        if key in tensors:
            grid, weight = layer.weight_grid, layer.layer.get_parameter("weight")
            bits, flat = stored.get(key, grid.bits), tensors.pop(key)
            if bits == grid.bits:
                codes[key] = layer, unpack(flat, bits, grid.qmin, weight.numel()).reshape(weight.shape)
                continue
            step = f"{key.removesuffix('layer.weight')}weight_grid.scale"
            if step not in whole or step not in tensors:
                raise ValueError(f"{path} lacks {step}; wanted the step of each width; copy or save it again")
            wide = unpack(flat, bits, -(2 ** (bits - 1)), weight.numel()).reshape(weight.shape).float()
            codes[key] = layer, rounded_again(wide, whole[step], tensors[step], grid.bits)
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

    tensors = of_one_width(load_file(find(path_or_name)), split(path_or_name)[1])
    return layers_of(load(path_or_name), tensors)


def network_name(network: "nn.Module") -> str:
    """The name under which `build` knows a network's class."""
    entry = entry_of(network)
    if entry is None:
        raise ValueError(
            f"{type(network).__name__} cannot be saved; wanted one of {', '.join(CATALOG)}; save its state dict "
            "yourself, or enter it in bitlens.networks.catalog"
        )
    return entry.name


def build(network: dict[str, Any], path: Path) -> "nn.Module":
    """The empty network that a header names, if the file can hold its weights."""
    config = network.get("config", {})
    if network.get("name") not in CATALOG or not all(map(is_argument, config.values())):
        raise ValueError(
            f"{path} names the network {network}; wanted one of {', '.join(CATALOG)}; use the version that saved it"
        )
    try:
        return CATALOG[network["name"]].build(config, 8 * path.stat().st_size)  # a damaged header asks for anything
    except OverflowError as error:
        raise ValueError(f"{path} cannot hold the network that it names, {config}; copy or save it again") from error
    except (TypeError, RuntimeError, ValueError, ZeroDivisionError) as error:
        what = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path} has a configuration that builds nothing ({what}); copy it again") from error


def is_argument(value: Any) -> bool:
    """Whether a value can be one of a network's arguments: a small number, a short word, nothing, or some of them."""
    if isinstance(value, list):
        return 0 < len(value) <= 1024 and all(map(is_argument, value))
    if isinstance(value, int | float):
        return 0 <= value <= 1024
    return value is None or (isinstance(value, str) and len(value) <= 32)


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
