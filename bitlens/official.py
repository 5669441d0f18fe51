"""Official weights: their names mapped onto bitlens's, with a key-by-key report.

EfficientSCI, Q-SCI and STFormer reconstruct video; SwinIR, NGswin, EDSR, IMDN, PAN and SMFANet enlarge images.

Q-SCI's official code names layers differently at 8 and at 4/3/2 bits, which made its own loader skip the feature
extraction and reconstruction modules silently; here every key must find its place, or the import fails with a list.
"""

import os
import pickle
import re
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitlens.methods import recipe_of
from bitlens.networks.catalog import CATALOG, Entry, recognised
from bitlens.quant.layers import declare_ready, quantized_layers
from bitlens.quant.prepare import prepare

__all__ = ["KeyReport", "from_official", "load_official", "read_official"]

PRODUCTS = {
    "q_act": "scores.left_grid",
    "k_act": "scores.right_grid",
    "attn_act": "mix.left_grid",
    "v_act": "mix.right_grid",
}
"""Official names of the grids of attention's factors."""

DAMAGE = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError,
    AssertionError, OSError, MemoryError, struct.error,
)  # fmt: skip
"""What torch raises for a .pth that is none, according to where the damage is."""


@dataclass(frozen=True)
class KeyReport:
    """Where every official key went."""

    mapped: dict[str, str]
    """Official key -> name in the bitlens network."""
    flags: list[str]
    """Keys that only say whether an official quantizer was initialized."""
    idle: list[str]
    """Keys that change no output: STFormer's `conv_cat`, which is never called, and what follows from sizes (indices,
    masks) or is the same for all weights (EDSR's mean colour)."""


def from_official(state_dict: dict[str, Tensor], bits: int | None = None) -> Any:
    """Build the network that an official state dict belongs to; scale, sizes and options are read off its shapes.

    PAN's weights for scales 2 and 3 have the same shapes; they are taken for scale 2.

    Args:
        state_dict: of EfficientSCI or STFormer (grey or colour, any size), or of Q-SCI's low-bit networks; of SwinIR
            (classical or light), NGswin, EDSR, IMDN, PAN or SMFANet, any size and scale; of FFDNet.
        bits: 8, 4, 3 or 2 for a low-bit state dict (it does not say); None for a float one.

    Returns:
        The network in eval mode; its attribute `key_report` says where every key went. Low-bit networks have the
        official per-input-channel grids.

    Raises:
        ValueError: unknown or missing keys (all are listed), wrong shapes, or bits missing or out of place.
    """
    state = {re.sub(r"^module\.", "", key): value for key, value in state_dict.items()}
    renamed = {bitlens_name(key): key for key in state}
    named = {name: state[key] for name, key in renamed.items()}
    entry = recognised(named)
    if entry is None:
        known = ", ".join(entry.name for entry in CATALOG.values() if entry.mark is not None)
        raise ValueError(
            f"these {len(state)} keys are of no network known here; wanted official weights of {known}; give their "
            "state dict"
        )
    low_bit = entry.low is not None and any(key.endswith(entry.low) for key in state)
    if low_bit and bits is None:
        raise ValueError(
            "these are low-bit Q-SCI weights, which do not say their bits; wanted bits=8, 4, 3 or 2; pass it"
        )
    if bits is not None and not low_bit:
        raise ValueError(
            f"bits={bits} was given with float weights; wanted none; import first, then use bitlens.quantize"
        )
    named = entry.translated(named)
    renamed = {name: key for name, key in renamed.items() if name in named} | {
        name: name for name in named if name not in renamed
    }
    network = built(entry, entry.config(named), named)
    if low_bit and bits is not None:
        recipe = recipe_of("qsci", bits, "official")
        prepare(network, recipe)
        network.recipe = recipe  # type: ignore[assignment]
    values, mapped, flags, idle = {}, {}, [], []
    for name, key in renamed.items():
        place = quantized_name(name, network) if low_bit else name
        if entry.is_idle(name):
            idle.append(key)
        elif place is None:
            flags.append(key)
        else:
            values[place], mapped[key] = named[name], place
    place_all(network, values, mapped)
    network.key_report = KeyReport(mapped, flags, idle)  # type: ignore[assignment]
    return network.eval()


def built(entry: Entry, config: dict[str, Any], state: dict[str, Tensor]) -> Any:
    """The network of an entry and its arguments, if they may be true: damaged weights ask for any size.

    Raises:
        ValueError: no network has such arguments, or it has many times the weights that came.
    """
    what = f"{entry.kind.__name__} with {', '.join(f'{name} {value}' for name, value in config.items())}"
    todo = "wanted the sizes of one network; give the whole official state dict"
    values = [one for value in config.values() for one in (value if isinstance(value, list) else [value])]
    most = max((len(state), *(size for value in state.values() for size in value.shape)))
    if any(isinstance(value, int) and not 0 <= value <= most for value in values):
        raise ValueError(f"the weights are those of {what}, which has more layers than came; {todo}")
    try:
        return entry.build(config, 2 * sum(value.numel() for value in state.values()))
    except (ValueError, RuntimeError, TypeError, LookupError, ArithmeticError, AssertionError) as error:
        raise ValueError(f"the weights look like {what}, which cannot be built ({error}); {todo}") from error


def bitlens_name(key: str) -> str:
    """The name of a layer in bitlens: Q-SCI's `fem_conv2_1.0` is `fem.2`, its `fem_conv2_2.0` `fem_shortcut.1`."""

    def layer(match: re.Match[str]) -> str:
        module, number, branch = match[1], int(match[2]), match[3]
        return f"{module}.{2 * (number - 1)}" if branch == "1" else f"{module}_shortcut.{number - 1}"

    key = re.sub(r"^intermediate_dncnn\.itermediate_dncnn\.", "model.", key)  # FFDNet's, misspelt as published
    return re.sub(r"^(fem|vrm)_conv([123])_([12])(?:\.0(?=\.))?", layer, key)


def quantized_name(name: str, network: nn.Module) -> str | None:
    """The name inside the fake-quantized network of a key whose layer is renamed already; None: not needed."""
    layer, _, leaf = name.rpartition(".")
    if leaf == "init_state":
        return None
    leaf = {"alpha": "scale", "signed": "signed_codes"}.get(leaf, leaf)
    if leaf in {"scale", "zero_point", "signed_codes"}:
        owner, _, act = layer.rpartition(".")
        if act in PRODUCTS:
            return f"{owner}.{PRODUCTS[act]}.{leaf}"
        return f"{owner}.input_grid.{leaf}" if act == "act" else f"{layer}.weight_grid.{leaf}"
    return f"{layer}.layer.{leaf}" if layer in quantized_layers(network) else name


def place_all(network: nn.Module, values: dict[str, Tensor], mapped: dict[str, str]) -> None:
    """Copy every value to its place; anything left over or left out is an error that lists it."""
    places = dict(network.state_dict(keep_vars=True))
    origin = {place: key for key, place in mapped.items()}
    unknown = sorted(origin[place] for place in set(values) - set(places))
    missing = sorted(set(places) - set(values))
    shapes = []
    with torch.no_grad():
        for place, value in values.items():
            if place not in places:
                continue
            target = places[place]
            if target.numel() != value.numel() or ("_grid." not in place and target.shape != value.shape):
                shapes.append(f"{origin[place]} {tuple(value.shape)} instead of {tuple(target.shape)}")
                continue
            target.copy_(value.reshape(target.shape).float())
    if unknown or missing or shapes:
        parts = [
            f"{what}: {', '.join(keys)}"
            for what, keys in (("unknown keys", unknown), ("missing keys", missing), ("wrong shapes", shapes))
            if keys
        ]
        raise ValueError(
            f"the state dict does not fit {type(network).__name__}; {'; '.join(parts)}; give the whole official one"
        )
    declare_ready(network)


def read_official(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state dict in an official file, read as numbers only: .safetensors, or .pth by `weights_only=True`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds anything but tensors (it is not executed), is damaged, or has no state dict.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}; wanted official weights (.pth); check the path")
    loaded: Any = read_safetensors(file) if file.suffix == ".safetensors" else read_pickled(file)
    for key in ("state_dict", "model_state_dict", "params_ema", "params"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    items = loaded.items() if isinstance(loaded, dict) else ()
    if not items or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in items):
        raise ValueError(f"{file} holds no state dict of tensors; wanted official weights; save model.state_dict()")
    for key, value in items:
        if value.layout != torch.strided or value.is_complex() or value.is_quantized or not is_stored(value):
            raise ValueError(
                f"{file}: {key!r} of shape {tuple(value.shape)} is no tensor of plain numbers, all of which are in the "
                "file; wanted such; it is damaged: copy it again, or save model.state_dict()"
            )
    return loaded


def is_stored(value: Tensor) -> bool:
    """Whether every number of a tensor lies in memory, and is not one of a few, repeated."""
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors that is no checkpoint of bitlens.

    Raises:
        ValueError: damaged, or a checkpoint already.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            about = opened.metadata() or {}
            loaded = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}); wanted official weights; copy it again") from error
    if str(about.get("format")).startswith("bitlens"):
        raise ValueError(f"{file} is a bitlens checkpoint already; wanted official weights; use it as it is")
    return loaded


def read_pickled(file: Path) -> Any:
    """What a .pth holds, of which no code is run.

    Raises:
        ValueError: it holds anything but numbers, or is damaged.
    """
    try:
        with warnings.catch_warnings():  # the refusal below says it in one line
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        blocked = re.search(r"(?:Unsupported global:(?: GLOBAL)?|Unsupported class|GLOBAL) ([\w.]+)", str(error))
        first = next(iter(str(error).splitlines()), "it ends too early")
        if "Weights only load failed" in first:  # torch goes on to recommend what would run code
            first = "it is damaged, or none of torch's files"
        what = f"it holds {blocked[1]}, which is code" if blocked else first
        raise ValueError(f"{file} was refused: {what}; wanted a .pth of tensors; save its state dict alone") from error


def load_official(path: str | os.PathLike[str], bits: int | None = None) -> Any:
    """`from_official` of a file."""
    return from_official(read_official(path), bits)
