"""The networks that bitlens knows, one entry each: plain data, read without torch.

A network that is new needs its own file beside this one and its entry here. Training, checkpoints, the import of
official weights and its task follow from these (docs/adding.md).
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["CATALOG", "CLASSICAL", "RESTORATION", "SCI", "SR", "Entry", "entry_of", "recognised", "task_of"]

CLASSICAL = "gap-tv"
"""The reconstruction without weights; it can be named wherever a checkpoint can."""
SCI, SR, RESTORATION = "video-sci", "super-resolution", "restoration"
"""Names of tasks, which `bitlens.tasks` describes."""


@dataclass(frozen=True)
class Entry:
    """One family of networks."""

    name: str
    """In headers of checkpoints."""
    task: str
    """What it is for: a name of `bitlens.tasks`."""
    where: "str | type[nn.Module]"
    """Its class, or `module:class`. Its arguments are kept in the attribute `config` of each network."""
    mark: str | None = None
    """A key that its official weights have and those of no other entry; None: there are no official ones."""
    idle: str | None = None
    """Pattern of official keys that it needs no value for: layers that are never called, and constants."""
    low: str | None = None
    """How keys end that only official low-bit weights have (Q-SCI's)."""
    sizes: tuple[str, ...] = ()
    """What its module's `untrained(size, frames)` knows: where training can begin without weights."""

    @property
    def kind(self) -> "type[nn.Module]":
        """The class; its module is imported now."""
        if not isinstance(self.where, str):
            return self.where
        module, _, name = self.where.partition(":")
        return getattr(import_module(module), name)

    def build(self, config: Mapping[str, Any], most: int) -> "nn.Module":
        """A network with these arguments, if it has no more than `most` parameters: it is given up as soon as it has.

        Raises:
            OverflowError: it has more. ValueError: a parameter is empty. Others: what the class raises.
        """
        with at_most(most):
            return self.kind(**config)

    def config(self, state: "dict[str, Tensor]") -> dict[str, Any]:
        """The class's arguments, read off the shapes of official weights by its module's `config_from_state_dict`."""
        return import_module(self.kind.__module__).config_from_state_dict(state)

    def translated(self, state: "dict[str, Tensor]") -> "dict[str, Tensor]":
        """Official weights as its layers here have them, where these are others: by its module's `translated`."""
        translate = getattr(import_module(self.kind.__module__), "translated", None)
        return state if translate is None else translate(state)

    def untrained(self, size: str, frames: int) -> "nn.Module":
        """A network to train from nothing, of one of the `sizes`, for about that many frames."""
        return import_module(self.kind.__module__).untrained(size, frames)

    def random(self, size: str | None = None, frames: int = 8, **options: Any) -> "nn.Module":
        """A network with random weights, to measure time and agreement on: of one of the `sizes`, or the first.

        One that enlarges pictures is as its paper has it, for twice their size. Other arguments of the class are
        `options`.
        """
        config: dict[str, Any] = {"scale": 2} if self.task == SR else {}
        if self.sizes:
            known: Any = self.untrained(self.sizes[0] if size is None else size, frames)
            config = known.config
        return self.kind(**config | options)

    def is_idle(self, key: str) -> bool:
        """Whether an official key is needed by no layer."""
        return self.idle is not None and re.search(self.idle, key) is not None


@contextmanager
def at_most(numbers: int) -> Iterator[None]:
    """Refuse to make modules with more parameters than that in all, as soon as there are, or with empty ones.

    Raises:
        OverflowError: there are more. ValueError: one is empty.
    """
    from torch.nn.modules.module import register_module_parameter_registration_hook

    left = numbers

    def count(_: Any, name: str, parameter: Any) -> None:
        nonlocal left
        if parameter is not None and parameter.numel() == 0:
            raise ValueError(f"{name} of shape {tuple(parameter.shape)}")
        left -= 0 if parameter is None else parameter.numel()
        if left < 0:
            raise OverflowError(f"more than {numbers} parameters")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


ENTRIES = [
    Entry(CLASSICAL, SCI, "bitlens.networks.classical:GapTV"),
    Entry("dun", SCI, "bitlens.networks.dun:DUN", sizes=("",)),
    Entry(
        "efficientsci", SCI, "bitlens.networks.efficientsci:EfficientSCI", mark="fem.0.weight", low=".alpha",
        sizes=("t", "s", "b", "l"),
    ),
    Entry(
        "stformer", SCI, "bitlens.networks.stformer:STFormer", mark="token_gen.0.weight",
        idle=r"^layers\..*\.conv_cat\.(weight|bias)$|\.relative_position_index$", sizes=("s", "b", "l"),
    ),
    Entry(
        "swinir", SR, "bitlens.networks.swinir:SwinIR", mark="layers.0.residual_group.blocks.0.attn.qkv.weight",
        idle=r"\.(relative_position_index|attn_mask)$", sizes=("light-x2", "light-x3", "light-x4"),
    ),
    Entry(
        "ngswin", SR, "bitlens.networks.ngswin:NGswin", mark="to_target.before_shuffle.weight",
        idle=r"\.(relative_position_index|attn_mask)$",
    ),
    Entry(
        "edsr", SR, "bitlens.networks.edsr:EDSR", mark="body.0.body.0.weight",
        idle=r"^(sub|add)_mean\.(weight|bias)$",
    ),
    Entry("abpn", SR, "bitlens.networks.abpn:ABPN", sizes=("x2", "x3", "x4")),
    Entry("ffdnet", RESTORATION, "bitlens.networks.ffdnet:FFDNet", mark="model.0.weight", sizes=("",)),
    Entry("imdn", SR, "bitlens.networks.imdn:IMDN", mark="IMDB1.c1.weight"),
    Entry("pan", SR, "bitlens.networks.pan:PAN", mark="SCPA_trunk.0.conv3.weight"),
    Entry("smfanet", SR, "bitlens.networks.smfanet:SMFANet", mark="to_feat.weight"),
]  # fmt: skip
CATALOG = {entry.name: entry for entry in ENTRIES}
"""Every family, by the name in headers."""


def entry_of(network: "nn.Module") -> Entry | None:
    """The entry of a network; None where it is of no family here."""
    kind = type(network)
    whose = (kind, f"{kind.__module__}:{kind.__name__}")
    return next((entry for entry in CATALOG.values() if entry.where in whose), None)


def recognised(state: "dict[str, Tensor]") -> Entry | None:
    """The entry whose mark is among these keys; None: there is none."""
    return next((entry for entry in CATALOG.values() if entry.mark is not None and entry.mark in state), None)


def task_of(network: "nn.Module") -> str:
    """What a network is for. One that is in no entry takes images where it has a whole `scale`, else it makes video."""
    entry = entry_of(network)
    if entry is not None:
        return entry.task
    scale = getattr(network, "scale", None)
    return SCI if not isinstance(scale, int) else SR if scale > 1 else RESTORATION
