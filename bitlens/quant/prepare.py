"""Replace the layers of any module tree by fake-quantized ones, by a Recipe's rules, and report every decision."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from bitlens.quant.layers import (
    LAYERS,
    QUANTIZED,
    Quantized,
    QuantizedMatMul,
    quantized_layers,
    real_weight,
    times_inputs,
)
from bitlens.quant.low_rank import LowRankBranch, has_room
from bitlens.quant.shortcut import ChannelShortcut, hands_on
from bitlens.recipe import Bits, Recipe


@dataclass(frozen=True)
class Decision:
    """What became of one layer."""

    name: str
    """Dotted name in the network."""
    kind: str
    """Class of the layer."""
    bits: Bits | None
    """None: it stayed float."""
    why: str
    """The rule that decided, or why none applied."""


def prepare(network: nn.Module, recipe: Recipe) -> list[Decision]:
    """Put `Quantized` layers into the network, in place; what they wrap keeps its parameters.

    A layer is a convolution, a linear layer, or a product of two activations (a module named MatMul that takes two
    tensors). Everything with parameters of its own that is none of these stays float and is reported so. A layer
    used under several names is replaced once, by the rule of the first.

    Returns:
        One decision per layer, in the order of the network.

    Raises:
        ValueError: the network is quantized already, is a single layer, or no rule matches any layer.
    """
    if any(isinstance(module, QUANTIZED) for module in network.modules()):
        raise ValueError("the network is quantized already; wanted a float one; load or build it anew")
    if isinstance(network, LAYERS) or is_product(network):
        raise ValueError(
            f"the network is a single {type(network).__name__}, which has no name to replace it by; wanted a network "
            "of layers; put it into nn.Sequential"
        )
    decisions: list[Decision] = []
    done: dict[int, nn.Module] = {}
    first: dict[int, Decision] = {}
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if id(module) in first:
            decision = first[id(module)]
            decisions.append(replace(decision, name=name, why=f"the same layer as {decision.name}"))
            if id(module) in done:
                put(network, name, done[id(module)])
            continue
        decision = decide(name, module, recipe)
        if decision is None:
            continue
        first[id(module)] = decision
        decisions.append(decision)
        if decision.bits is not None:
            done[id(module)] = wrap(network, name, module, decision.bits)
            put(network, name, done[id(module)])
    if not done:
        patterns = ", ".join(repr(rule.pattern) for rule in recipe.rules)
        raise ValueError(f"no layer of the network is quantized by the rules {patterns}; correct the patterns")
    return decisions


@torch.no_grad()
def unprepare(network: nn.Module) -> None:
    """Take the grids out of a network again, in place: weights keep the values that they were rounded to."""
    for wrapped in quantized_layers(network).values():
        if isinstance(wrapped, Quantized):
            weight = real_weight(wrapped)
            back = weight if wrapped.balance is None else times_inputs(wrapped.layer, weight, wrapped.balance)
            wrapped.layer.get_parameter("weight").copy_(back)
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if isinstance(module, LowRankBranch | ChannelShortcut):
            module.give_back()
            put(network, name, module.main)
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if isinstance(module, QUANTIZED):
            put(network, name, module.layer)


def decide(name: str, module: nn.Module, recipe: Recipe) -> Decision | None:
    """What becomes of a module; None where it holds no numbers of its own."""
    kind = type(module).__name__
    if not (isinstance(module, LAYERS) or is_product(module)):
        if not name or next(module.parameters(recurse=False), None) is None:
            return None
        return Decision(name, kind, None, "not a layer that bitlens quantizes")
    rule = recipe.rule_of(name)
    if rule is None:
        return Decision(name, kind, None, "no rule matches")
    if rule.bits is None:
        return Decision(name, kind, None, f"rule {rule.pattern!r} leaves it float")
    bits = replace(
        rule.bits,
        rank=rule.bits.rank if has_room(module, rule.bits.rank) else 0,
        shortcut=rule.bits.shortcut and hands_on(module),
    )
    return Decision(name, kind, bits, f"rule {rule.pattern!r}")


def put(network: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module into the place of a dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


def wrap(network: nn.Module, name: str, module: nn.Module, bits: Bits) -> nn.Module:
    """The fake-quantized stand-in of one layer."""
    if isinstance(module, LAYERS):
        kind = LowRankBranch if bits.rank else ChannelShortcut if bits.shortcut else Quantized
        return kind(module, bits)
    parent = network.get_submodule(name.rpartition(".")[0])
    return QuantizedMatMul(module, bits, getattr(parent, "heads", None))


def is_product(module: nn.Module) -> bool:
    """Whether a module multiplies two activations."""
    return type(module).__name__ == "MatMul"
