"""What is quantized, and how: Bits for one layer, Rules from layer names to Bits, and the Recipe that holds them.

A recipe is a frozen dataclass and a TOML file; unknown keys are refused by name.

    name = "qsci-w4a4"
    [[rules]]
    pattern = "*_shortcut.*"
    bits = {weight = 8, activation = 8}
    [[rules]]
    pattern = "*"
    bits = {weight = 4, activation = 4}
"""

import difflib
import fnmatch
import json
import os
import re
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

__all__ = ["Bits", "Recipe", "Rule"]


@dataclass(frozen=True)
class Bits:
    """How one layer is quantized. The defaults are what integer kernels execute."""

    weight: int = 8
    """Bits of the weights, 1 to 8."""
    activation: int = 8
    """Bits of the layer's input (of both factors of a product), 1 to 8."""
    weight_granularity: Literal["tensor", "channel"] = "channel"
    """One scale for the tensor, or one per output channel."""
    activation_granularity: Literal["tensor", "input_channel", "balanced"] = "tensor"
    """One scale for the input, one per input channel (Q-SCI's official code; no integer kernel can run it), or one
    after each channel was multiplied by a factor of its own, which the weights take back
    (`bitlens.quant.equalization`)."""
    product_granularity: Literal["tensor", "head"] = "head"
    """For attention products: one scale per factor, or one per head of each factor."""
    zero_point: Literal["none", "integer", "rounded", "free"] = "integer"
    """Of activations: none (symmetric), an integer code, rounded but anywhere (Q-SCI's code), or any number."""
    parametrization: Literal["step", "bound", "truncation"] = "step"
    """Train step and zero-point (LSQ+), the two bounds (2DQuant), or one bound of activations on both sides (PAMS)."""
    rank: int = 0
    """Channels of a low-rank branch of 8 bits beside the layer, which takes the strongest part of its weights over
    (`bitlens.quant.low_rank`); 0: none. Layers too small for it, grouped convolutions and products have none."""
    shortcut: bool = False
    """An 8-bit shortcut for each channel beside the layer, which takes over what the channel hands on to itself
    (`bitlens.quant.shortcut`). Layers that change size or number of channels have none."""

    def __post_init__(self):
        for name in ("weight", "activation"):
            bits = getattr(self, name)
            if not isinstance(bits, int) or not 1 <= bits <= 8:
                raise ValueError(
                    f"{name} = {bits!r} bits; wanted a whole number from 1 to 8; to leave a layer float, give its rule "
                    "no bits"
                )
        if not isinstance(self.rank, int) or not 0 <= self.rank <= 1024:
            raise ValueError(f"rank = {self.rank!r} channels; wanted a whole number from 0 to 1024; correct it")
        if not isinstance(self.shortcut, bool):
            raise ValueError(f"shortcut = {self.shortcut!r}; wanted true or false; correct it")
        if self.shortcut and self.rank:
            raise ValueError(f"a shortcut and a low-rank branch, rank = {self.rank}; wanted one of both; correct it")
        check_choices(self)

    @property
    def label(self) -> str:
        """w4a8; w4a8 +8 with a low-rank branch of eight channels; w4a8 +own with a shortcut for each channel."""
        beside = f" +{self.rank}" if self.rank else " +own" if self.shortcut else ""
        return f"w{self.weight}a{self.activation}{beside}"

    @classmethod
    def read(cls, label: str) -> "Bits":
        """What a label says, without a branch; all else as by default.

        >>> Bits.read("w4a6").activation
        6

        Raises:
            ValueError: it is none.
        """
        found = re.fullmatch(r"w([1-8])a([1-8])", label)
        if found is None:
            raise ValueError(f"no bits {label!r}; wanted those of weights and activations, 1 to 8; for example w4a6")
        return cls(int(found[1]), int(found[2]))


@dataclass(frozen=True)
class Rule:
    """The layers whose dotted name matches `pattern` get `bits`; None leaves them float."""

    pattern: str
    """Shell-style pattern of dotted names, such as "fem.*" or "*.tsab.qkv"."""
    bits: Bits | None = None
    """None: stay float."""


@dataclass(frozen=True)
class Recipe:
    """Rules in order of precedence (the first match decides) and how ranges are chosen at the start."""

    name: str
    """Name of the recipe, such as "qsci-w4a4"."""
    rules: tuple[Rule, ...]
    """The first rule that matches a layer's name decides; a layer that none matches stays float."""
    method: str = "direct"
    """The published method whose composition this is."""
    weight_range: Literal["minmax", "percentile", "mse", "dobi", "lsq"] = "mse"
    """How the first scales of weights are chosen (bitlens.quant.ranges)."""
    activation_range: Literal["minmax", "percentile", "mse", "dobi", "dbdc", "lsq", "ema"] = "mse"
    """How the first ranges of activations are chosen from calibration data."""

    def __post_init__(self):
        check_choices(self)
        if not self.rules:
            raise ValueError(f"recipe {self.name!r} has no rules; wanted at least one; add [[rules]] with a pattern")

    def bits_of(self, layer: str) -> Bits | None:
        """Bits of the layer of this dotted name; None: it stays float."""
        rule = self.rule_of(layer)
        return rule.bits if rule else None

    def rule_of(self, layer: str) -> Rule | None:
        """The first rule that matches a dotted name."""
        return next((rule for rule in self.rules if fnmatch.fnmatchcase(layer, rule.pattern)), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON and TOML; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Recipe":
        """Read plain data.

        Raises:
            ValueError: an unknown key (the nearest known one is named), or a value out of range.
        """
        check_keys(cls, data, "the recipe")
        rules = []
        for number, rule in enumerate(data.get("rules", ())):
            check_keys(Rule, rule, f"rule {number}")
            bits = rule.get("bits")
            if bits is not None:
                check_keys(Bits, bits, f"the bits of rule {number}")
            if "pattern" not in rule:
                raise ValueError(f'rule {number} has no pattern; wanted one such as pattern = "fem.*"; add it')
            rules.append(Rule(rule["pattern"], None if bits is None else Bits(**bits)))
        if "name" not in data:
            raise ValueError('the recipe has no name; wanted one such as name = "mine-w4a4"; add it')
        return cls(**{**data, "rules": tuple(rules)})

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> "Recipe":
        """Read a TOML file.

        Raises:
            FileNotFoundError: no such file. ValueError: not TOML, or not a recipe.
        """
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"no file {file}; wanted a recipe in TOML; check the path")
        try:
            data = tomllib.loads(file.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} is not TOML ({error}); wanted a recipe; correct the file") from error
        return cls.from_dict(data)

    def to_toml(self) -> str:
        """The recipe as TOML text."""
        lines = [f"{f.name} = {toml_value(getattr(self, f.name))}" for f in fields(self) if f.name != "rules"]
        for rule in self.rules:
            lines += ["", "[[rules]]", f"pattern = {toml_value(rule.pattern)}"]
            if rule.bits is not None:
                inside = ", ".join(f"{key} = {toml_value(value)}" for key, value in asdict(rule.bits).items())
                lines.append(f"bits = {{{inside}}}")
        return "\n".join(lines) + "\n"


def toml_value(value: str | int | bool) -> str:
    """A string, whole number or truth value as TOML, which are those of JSON, but for the character DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def check_keys(kind: type, data: Any, what: str) -> None:
    """Refuse keys that the dataclass does not have, naming the nearest one that it has."""
    if not isinstance(data, dict):
        raise ValueError(f"{what} is {data!r}; wanted a table of settings; correct it")
    known = [f.name for f in fields(kind)]
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known)}"
            raise ValueError(f"{what} has an unknown key {key!r}; {hint}; correct or remove it")


def check_choices(settings: Any) -> None:
    """Refuse a value that is not among the choices that a field's Literal type lists."""
    for field in fields(settings):
        choices = getattr(field.type, "__args__", ())
        value = getattr(settings, field.name)
        if choices and all(isinstance(choice, str) for choice in choices) and value not in choices:
            raise ValueError(f"{field.name} = {value!r}; wanted one of {', '.join(choices)}; choose one")
