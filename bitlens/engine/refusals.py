"""What engines refuse before they begin: networks of another kind, layers that are not integers, unknown settings."""

from collections.abc import Callable

from torch import nn

from bitlens.engine import plan
from bitlens.engine.lower import Outcome, lower
from bitlens.quant.layers import Quantized, quantized_layers
from bitlens.quant.low_rank import LowRankBranch
from bitlens.quant.shortcut import ChannelShortcut

VIDEO_NETWORKS = "EfficientSCI without Q-ViT's normalization"
"""The network whose graph is written by hand, in words."""


def unknown(network: nn.Module, wanted: str) -> str:
    """What came and what is wanted, where an engine does not know a network's kind."""
    return f"network {type(network).__name__} came; wanted {wanted}"


def unfit(
    network: nn.Module, known: bool, wanted: str, allowed: Callable[[Outcome], bool] = lambda outcome: False
) -> str | None:
    """Why the native kernels cannot run a network; None: they can.

    Args:
        known: whether it is of the kind `wanted`.
        allowed: whether a layer that is not direct may be so.
    """
    if not known:
        return unknown(network, wanted)
    if sides := sides_of(network):
        return f"{len(sides)} layers ({sides[0]} first) have a branch or a shortcut beside them; wanted none"
    others = [outcome for outcome in lower(network).report if outcome.way != "direct" and not allowed(outcome)]
    if others:
        return f"{len(others)} layers ({others[0].name} first, {others[0].way}) are not direct; wanted integers only"
    try:
        plan.kernels().best_level()
    except ImportError as error:
        return f"the native kernels are not built ({error})"
    return None


def sides_of(network: nn.Module) -> list[str]:
    """The layers that have a low-rank branch or a shortcut beside them."""
    beside = LowRankBranch | ChannelShortcut
    return [name for name, module in network.named_modules() if isinstance(module, beside)]


def additions(network: nn.Module) -> str | None:
    """What a graph that is written by hand does not know: paths beside layers, balanced channels; None: it has none."""
    if sides := sides_of(network):
        return f"{len(sides)} layers ({sides[0]} first) have a branch or a shortcut beside them"
    layers = quantized_layers(network).items()
    balanced = [name for name, layer in layers if isinstance(layer, Quantized) and layer.balance is not None]
    return f"{len(balanced)} layers ({balanced[0]} first) have balanced input channels" if balanced else None


def refuse_additions(network: nn.Module) -> None:
    """Refuse what a graph that is written by hand does not know.

    Raises:
        TypeError: there is such an addition.
    """
    if (reason := additions(network)) is not None:
        raise TypeError(f"{reason}; wanted none in a graph that is written by hand; run it in torch")


def check_settings(threads: int | None, precision: str = "f32", *known: str) -> None:
    """Refuse fewer threads than 1, and a precision that is not `known`.

    Raises:
        ValueError: it is so.
    """
    if known and precision not in known:
        *others, last = known
        raise ValueError(f"precision {precision!r}; wanted {', '.join(others)} or {last}; choose one")
    if threads is not None and threads < 1:
        raise ValueError(f"{threads} threads; wanted 1 or more; change it, or leave it out")
