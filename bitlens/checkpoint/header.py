"""What a checkpoint's header tells, read and written without torch: its description, its claims, its identity."""

import difflib
import hashlib
import json
import os
import re
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitlens.networks.catalog import CATALOG, CLASSICAL

FORMAT = "bitlens-1"
WEIGHTS = Path(__file__).parents[1] / "weights"
DEFAULTS = {"video-sci": "dun-w8a8", "super-resolution": "abpn-x2-w8a8", "restoration": "ffdnet-w8a8"}
"""The shipped network that a task's verbs take where none is named."""
MAX_HEADER = 100_000_000
METADATA: dict[str, Callable[[Any], bool]] = {
    "network": lambda x: isinstance(x, dict) and isinstance(x.get("name"), str) and isinstance(x.get("config"), dict),
    "recipe": lambda x: x is None or (isinstance(x, dict) and isinstance(x.get("method"), str)),
    "provenance": lambda x: isinstance(x, dict),
    "claims": lambda x: isinstance(x, dict),
    "layers": lambda x: isinstance(x, list) and all(isinstance(layer, list) and len(layer) == 6 for layer in x),
}
"""The shape of each part of the metadata."""
AT = re.compile(r"(.+)@([1-8])")
"""How one width of a nested checkpoint is named: abpn-x2-nested@4."""


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
    widths: tuple[int, ...] = ()
    """Of a nested checkpoint: the bits that it can have, `NAME@4`; the most of them where none is said."""

    @property
    def task(self) -> str:
        """What the network is for: a name of `bitlens.tasks`."""
        return CATALOG[self.network].task

    @property
    def bits(self) -> tuple[int | None, int | None]:
        """Bits of the most weights and of the activations that meet them; None for float."""
        counts: Counter[tuple[int, int]] = Counter()
        for layer in self.layers:
            counts[layer.weight_bits, layer.activation_bits] += max(layer.weights, 1)
        weight, activation = counts.most_common(1)[0][0] if counts else (32, 32)
        return (weight if weight <= 8 else None), (activation if activation <= 8 else None)


def shipped() -> dict[str, Path]:
    """The checkpoints that come with bitlens, by name."""
    return {path.stem: path for path in sorted(WEIGHTS.glob("[!.]*.safetensors"))}


def default(task: str, scale: int | None = None) -> str:
    """The name of what a task's verbs take where no model is named; for video gap-tv where its network is not shipped.

    Args:
        task: a name of `bitlens.tasks`.
        scale: of super-resolution: how many times it must enlarge, if not as the default does.

    Raises:
        ValueError: nothing is shipped for this task, or this scale.
    """
    name = DEFAULTS.get(task)
    if name in shipped() and scale in (None, describe(name).config.get("scale")):
        return name
    if scale is not None:
        found = [about for about in map(describe, shipped()) if about.task == task]
        fitting = [about for about in found if about.config.get("scale") == scale]
        if not fitting:
            known = ", ".join(sorted({str(about.config["scale"]) for about in found}))
            raise ValueError(
                f"no network that enlarges {scale} times is shipped; wanted one of --scale {known}; change it, or give "
                "a --model"
            )
        return min(fitting, key=lambda about: abs((about.bits[0] or 32) - 8)).name
    if CATALOG[CLASSICAL].task != task:
        raise ValueError(f"no network for {task} is shipped; wanted the name or path of one; give a model")
    return CLASSICAL


def split(path_or_name: str | os.PathLike[str]) -> tuple[str, int | None]:
    """A name or path, and the width of a nested checkpoint that it asks for.

    >>> split("abpn-x2-nested@4")
    ('abpn-x2-nested', 4)
    """
    text = os.fspath(path_or_name)
    found = None if Path(text).is_file() else AT.fullmatch(text)
    return (text, None) if found is None else (found[1], int(found[2]))


def absolute(path_or_name: str | os.PathLike[str]) -> str:
    """The same model for a process in another folder: a path from the root, a name as it is."""
    text, width = split(path_or_name)
    found = str(Path(text).absolute()) if Path(text).is_file() else text
    return found if width is None else f"{found}@{width}"


def find(path_or_name: str | os.PathLike[str]) -> Path:
    """The file of a shipped name or a path; of `NAME@4`, a width of it, that of NAME.

    Raises:
        FileNotFoundError: neither.
    """
    text = split(path_or_name)[0]
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
    width = split(path_or_name)[1]
    recipe, layers = at_width(meta, width, path)
    layers = [Layer(*fields) for fields in layers]
    widths = tuple(sorted(map(int, meta["nested"]), reverse=True))
    return Description(
        path.stem if width is None else f"{path.stem}@{width}",
        path,
        path.stat().st_size,
        meta["network"]["name"],
        meta["network"]["config"],
        recipe["method"] if recipe else None,
        recipe,
        meta["provenance"],
        meta["claims"] if width in (None, *widths[:1]) else {},
        layers,
        widths,
    )


def at_width(meta: dict[str, Any], width: int | None, path: Path) -> tuple[dict[str, Any] | None, list[list[Any]]]:
    """Recipe and layers of one width of a checkpoint; None: the widest, or the only one.

    Raises:
        ValueError: it has no such width.
    """
    nested = meta["nested"]
    if width is None:
        return meta["recipe"], meta["layers"]
    if str(width) not in nested:
        known = f"one of {', '.join(f'@{bits}' for bits in nested)}" if nested else "a nested checkpoint"
        raise ValueError(f"{path} has no width of {width} bits; wanted {known}; leave @{width} out, or change it")
    return nested[str(width)]["recipe"], nested[str(width)]["layers"]


def is_nested(content: Any) -> bool:
    """Whether a header's widths are such: recipe and layers of each."""
    return isinstance(content, dict) and all(
        AT.fullmatch(f"a@{width}") and isinstance(one, dict) and METADATA["recipe"](one.get("recipe"))
        and METADATA["layers"](one.get("layers"))
        for width, one in content.items()
    )  # fmt: skip


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a bitlens checkpoint, checked.

    Raises:
        ValueError: another kind of file, damaged, or of a newer format.
    """
    wanted = "wanted a bitlens checkpoint (.safetensors)"
    if path.suffix in {".pth", ".pt", ".ckpt", ".pkl", ".pickle", ".bin"}:
        raise ValueError(
            f"{path} is a {path.suffix} file, which may hold code; {wanted}; for official weights run "
            "bitlens convert, which reads numbers only"
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
            f"{FORMAT!r}; save it with bitlens.save, or import official weights with bitlens convert"
        )
    try:
        parts = {key: json.loads(meta[key]) for key in ("network", "recipe", "provenance", "claims", "layers")}
        parts["nested"] = json.loads(meta.get("nested", "{}"))
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} lacks part of its metadata ({error}); {wanted}; copy or save it again") from error
    wrong = [key for key, good in {**METADATA, "nested": is_nested}.items() if not good(parts[key])]
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


def in_order(content: bytes, texts: dict[str, str]) -> bytes:
    """A safetensors file with its metadata in the order given: the same network then gives the same bytes."""
    length = struct.unpack("<Q", content[:8])[0]
    header = {**json.loads(content[8 : 8 + length]), "__metadata__": texts}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors stay aligned
    return struct.pack("<Q", len(text)) + text + content[8 + length :]
