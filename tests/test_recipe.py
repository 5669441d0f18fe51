"""Recipes survive TOML and JSON, the first rule that matches decides, and what is wrong in one is named."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitlens.recipe import Bits, Recipe, Rule

NAMES = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=20)
WIDTHS = st.integers(1, 8)
BITS = st.fixed_dictionaries(
    {},
    optional={
        "weight": WIDTHS,
        "activation": WIDTHS,
        "weight_granularity": st.sampled_from(["tensor", "channel"]),
        "activation_granularity": st.sampled_from(["tensor", "input_channel", "balanced"]),
        "product_granularity": st.sampled_from(["tensor", "head"]),
        "zero_point": st.sampled_from(["none", "integer", "rounded", "free"]),
        "parametrization": st.sampled_from(["step", "bound"]),
        "rank": st.integers(0, 1024),
        "shortcut": st.booleans(),
    },
).filter(lambda bits: not (bits.get("rank") and bits.get("shortcut")))
RULES = st.fixed_dictionaries({"pattern": NAMES}, optional={"bits": st.none() | BITS})
RECIPES = st.fixed_dictionaries(
    {"name": NAMES, "rules": st.lists(RULES, min_size=1, max_size=4)},
    optional={
        "method": st.sampled_from(["direct", "qsci"]),
        "weight_range": st.sampled_from(["minmax", "percentile", "mse", "lsq"]),
        "activation_range": st.sampled_from(["minmax", "percentile", "mse", "lsq"]),
    },
)


def unchecked(kind: type, **settings: Any) -> None:
    """Run the dataclass's own checks alone: in tests, the type checker would refuse first."""
    made = object.__new__(kind)
    for field in dataclasses.fields(kind):
        object.__setattr__(made, field.name, settings.get(field.name, field.default))
    made.__post_init__()


@given(data=RECIPES)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any]) -> None:
    recipe = Recipe.from_dict(data)
    for wanted, rule in zip(data["rules"], recipe.rules, strict=True):
        assert rule.pattern == wanted["pattern"]
        if wanted.get("bits") is not None:
            assert {key: getattr(rule.bits, key) for key in wanted["bits"]} == wanted["bits"]
    file = tmp_path_factory.getbasetemp() / "recipe.toml"
    file.write_text(recipe.to_toml())
    assert Recipe.from_toml(file) == recipe
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize("text", ['a "b" \\c', "tab\tand\nlines\r\n", "\x00\x1f\x7f", "Größe 大 \u2028"])
def test_any_text_is_toml(tmp_path: Path, text: str) -> None:
    recipe = Recipe(text, (Rule(text),))
    (tmp_path / "recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
    assert Recipe.from_toml(tmp_path / "recipe.toml") == recipe


def test_example_of_the_module(tmp_path: Path) -> None:
    import bitlens.recipe as module

    example = "\n".join(line[4:] for line in str(module.__doc__).splitlines() if line.startswith("    "))
    file = tmp_path / "recipe.toml"
    file.write_text(example)
    recipe = Recipe.from_toml(file)
    assert recipe.name == "qsci-w4a4"
    assert recipe.bits_of("fem_shortcut.0") == Bits(8, 8)
    assert recipe.bits_of("fem.0") == Bits(4, 4)


def test_first_match_wins() -> None:
    rules = (Rule("fem.0"), Rule("fem.*", Bits(2, 3)), Rule("*.tsab.qkv", Bits(4, 4)))
    recipe = Recipe("mixed", rules)
    assert recipe.rule_of("fem.0") == rules[0] and recipe.bits_of("fem.0") is None
    assert recipe.bits_of("fem.2") == Bits(2, 3)
    assert recipe.bits_of("block.tsab.qkv") == Bits(4, 4)
    assert recipe.rule_of("vrm.0") is None and recipe.bits_of("vrm.0") is None
    assert recipe.rule_of("FEM.2") is None  # names are compared with their case


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Bits().weight = 4  # type: ignore[misc]


@pytest.mark.parametrize("field", ["weight", "activation"])
@pytest.mark.parametrize("bits", [0, 9, -1, 32, 4.0, "4", None])
def test_bits_out_of_range(field: str, bits: Any) -> None:
    with pytest.raises(ValueError, match=rf"{field} = .* from 1 to 8"):
        unchecked(Bits, **{field: bits})


@pytest.mark.parametrize("bits", range(1, 9))
def test_bits_in_range(bits: int) -> None:
    assert Bits(bits, bits).weight == bits


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weight_granularity", "head"),
        ("activation_granularity", "channel"),
        ("product_granularity", "channel"),
        ("zero_point", "integers"),
        ("parametrization", "steps"),
    ],
)
def test_bad_choices_of_bits(field: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{field} = '{value}'; wanted one of "):
        unchecked(Bits, **{field: value})


@pytest.mark.parametrize("field", ["weight_range", "activation_range"])
def test_bad_choices_of_recipe(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} = 'kl'; wanted one of minmax, percentile, mse, dobi, "):
        unchecked(Recipe, name="x", rules=(Rule("*"),), **{field: "kl"})


GOOD_RULE = {"pattern": "*", "bits": {"weight": 4}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "x", "rules": [GOOD_RULE], "methods": "qsci"}, "unknown key 'methods'; did you mean 'method'"),
        ({"name": "x", "rules": [{"patern": "*"}]}, "rule 0 has an unknown key 'patern'; did you mean 'pattern'"),
        (
            {"name": "x", "rules": [GOOD_RULE, {"pattern": "*", "bits": {"weigth": 4}}]},
            "bits of rule 1 has an unknown key 'weigth'; did you mean 'weight'",
        ),
        ({"name": "x", "rules": [GOOD_RULE], "zzz": 1}, "unknown key 'zzz'; it takes name, rules, method"),
        ({"name": "x", "rules": [{"bits": {"weight": 4}}]}, "rule 0 has no pattern"),
        ({"name": "x", "rules": [{"pattern": "*", "bits": 4}]}, "bits of rule 0 is 4; wanted a table"),
        ({"name": "x", "rules": ["*"]}, "rule 0 is .*wanted a table"),
        ({"name": "x", "rules": {"pattern": "*"}}, "rule 0 is 'pattern'; wanted a table"),
        ({"name": "x", "rules": []}, "has no rules"),
        ({"name": "x"}, "has no rules"),
        ({"rules": [GOOD_RULE]}, "the recipe has no name"),
    ],
)
def test_refusals(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.from_dict(data)


def test_refused_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.toml"):
        Recipe.from_toml(tmp_path / "none.toml")
    for name, content in (("text.toml", b"name = qsci"), ("binary.toml", b"\xff\xfe\x00")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is not TOML"):
            Recipe.from_toml(tmp_path / name)
