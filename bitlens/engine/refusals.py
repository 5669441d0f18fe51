"""What engines refuse before they begin: networks of another kind, layers that are not integers, unknown settings."""

from collections.abc import Callable

from torch import nn

from bitlens.engine import plan
from bitlens.engine.lower import lower

VIDEO_NETWORKS = "EfficientSCI without Q-ViT's normalization"
GRAPHS = f"{VIDEO_NETWORKS}, or one that enlarges pictures"
"""The networks that there are graphs of, in words."""


def unknown(network: nn.Module, wanted: str) -> str:
    """What came and what is wanted, where an engine does not know a network's kind."""
    return f"network {type(network).__name__} came; wanted {wanted}"


def unfit(
    network: nn.Module, known: bool, wanted: str, may_be_float: Callable[[str], bool] = lambda name: False
) -> str | None:
    """Why the native kernels cannot run a network; None: they can.

    Args:
        known: whether it is of the kind `wanted`.
        may_be_float: whether a layer, by its name, need not be quantized.
    """
    if not known:
        return unknown(network, wanted)
    others = [
        outcome
        for outcome in lower(network).report
        if outcome.way != "direct" and not (outcome.way == "float" and may_be_float(outcome.name))
    ]
    if others:
        return f"{len(others)} layers ({others[0].name} first, {others[0].way}) are not direct; wanted integers only"
    try:
        plan.kernels().best_level()
    except ImportError as error:
        return f"the native kernels are not built ({error})"
    return None


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
