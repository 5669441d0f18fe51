"""The papers' experiments: what each variant quantizes, and the drift of query and key."""

from typing import Any

import pytest
import torch
from torch import Tensor

from bitlens.experiments import EXPERIMENTS, mean_drift
from bitlens.methods import qsci
from bitlens.networks.efficientsci import EfficientSCI, HeadShift
from bitlens.quant.layers import quantized_layers


def data() -> tuple[Tensor, Tensor]:
    mask = (torch.rand(1, 4, 16, 16) < 0.5).float()
    return (mask * torch.rand(1, 4, 16, 16)).sum(1), mask


@pytest.mark.parametrize(("name", "first"), [("FEM", "fem."), ("ResDNet", "resdnet_list."), ("VRM", "")])
def test_modules_alone(name: str, first: str) -> None:
    variant = next(v for v in EXPERIMENTS["qsci-modules"].variants if v.name == name)
    layers = quantized_layers(variant.build(EfficientSCI(8, 1, 2).eval(), [data()]))
    assert layers and all(layer.weight_bits == layer.activation_bits == 4 for layer in layers.values())
    assert all(layer.startswith(first or ("up_conv", "vrm.")) for layer in layers)


def test_ablation_adds_one_thing_after_the_other() -> None:
    built = [v.build(EfficientSCI(8, 1, 2).eval(), [data()]) for v in EXPERIMENTS["qsci-ablation"].variants]
    shifts = [sum(isinstance(m, HeadShift) for m in network.modules()) for network in built]
    beside = [sum("_shortcut." in name for name in quantized_layers(network)) for network in built]
    assert shifts == [0, 4, 4, 4] and beside == [0, 0, 3, 6]
    for network in built:
        bits = {name: layer.weight_bits for name, layer in quantized_layers(network).items()}
        assert all(b == (8 if "_shortcut." in name else 4) for name, b in bits.items())


def test_table_is_the_published_method() -> None:
    for bits, variant in zip((8, 4, 3, 2), EXPERIMENTS["qsci-table"].variants, strict=True):
        assert variant.recipe == qsci.recipe(bits) and variant.options == qsci.options(bits)


def test_baselines_differ_in_the_method_alone() -> None:
    """The same 4 bits everywhere but where a method says otherwise, and only methods of training are trained."""
    variants = {variant.name: variant for variant in EXPERIMENTS["qsci-baselines"].variants}
    assert [name for name, each in variants.items() if not each.trained] == ["MinMax", "Percentile", "DOBI"]
    plain = len(quantized_layers(variants["MinMax"].build(EfficientSCI(8, 1, 2).eval(), [data()])))
    for name, variant in variants.items():
        bits = {
            key: layer.weight_bits
            for key, layer in quantized_layers(variant.build(EfficientSCI(8, 1, 2).eval(), [data()])).items()
        }
        fine = [key for key, one in bits.items() if one == 8]
        assert len(bits) == plain + (6 if name == "Q-SCI" else 0) and set(bits.values()) <= {4, 8}
        assert len(fine) == {"Q-SCI": 6, "Q-ViT": 2}.get(name, 0)


def test_what_two_experiments_share_is_the_same_network() -> None:
    """Equal names of networks mean equal recipes, options and settings; within an experiment all names differ."""
    seen: dict[str, tuple[Any, ...]] = {}
    for experiment in EXPERIMENTS.values():
        assert len({variant.network for variant in experiment.variants}) == len(experiment.variants)
        for variant in experiment.variants:
            made = variant.recipe, variant.options, variant.trained, variant.settings
            assert seen.setdefault(variant.network, made) == made
    assert {"direct-w4a4", "qsci-w4a4-shift-shortcuts-fem", "qsci-w4a4-shift-shortcuts"} <= set(seen)


def test_drift_is_what_was_added_to_the_query() -> None:
    reference = EfficientSCI(8, 1, 2).eval()
    moved = reference.with_options(shift=True)
    batch = data()
    assert mean_drift(moved, reference, [batch])["query_max"] == 0.0
    with torch.no_grad():
        attention = moved.resdnet_list[0].cformer_list[1].tsab  # the last: what it changes reaches no other
        attention.get_submodule("moveq").get_parameter("bias")[0, 2] = 1.5
    drift = mean_drift(moved, reference, [batch])
    assert drift["query_max"] == pytest.approx(1.5, abs=1e-5)
    assert drift["query_mean"] == pytest.approx(1.5 / 8, abs=1e-5)  # one head of four, in one attention of two
    assert drift["key_max"] == drift["key_mean"] == 0.0
