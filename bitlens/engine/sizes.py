"""Sizes that are not known yet: torch's symbolic integers, with which a network's own code computes.

What a network does with its height (`-height % 8`, `2 * height`) becomes an expression, which a file can hold. Where it
makes numbers of a size (a mask, a table that is cut), torch fixes the symbol; where it asks (`if height % 2`), the
answer is that of an example. So who traces with these must look at `fixed` afterwards, and try other sizes.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import config
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

__all__ = ["Sizes", "SizesFixed", "expression_of"]


class SizesFixed(ValueError):
    """A network makes numbers of some symbols."""


class Sizes:
    """Some symbols, and torch's mode in which shapes are computed with them.

    Args:
        examples: for each axis the size that decides where a network asks.
    """

    def __init__(self, examples: Mapping[str, int]):
        environment = ShapeEnv()
        self.mode = FakeTensorMode(shape_env=environment, allow_non_fake_inputs=True)
        self.mode.cache_enabled = False  # of shapes, whose keys take longer than shapes
        self.symbols: dict[str, torch.SymInt] = {}
        self.axes: dict[Any, str] = {}
        """Of each symbol in expressions."""
        for axis, size in examples.items():
            source = ConstantSource(axis)
            symbol = environment.create_symbol(size, source, DimDynamic.DYNAMIC)
            self.symbols[axis] = environment.create_symintnode(symbol, hint=size, source=source)  # type: ignore[assignment]
            self.axes[symbol] = axis

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A network is called with symbols inside the block.

        Types are not checked there: a symbol is no int. What torch has no shapes for is raised, and not logged too.
        """
        checked, log = not config.jaxtyping_disable, logging.getLogger("torch._subclasses.fake_tensor")
        config.update("jaxtyping_disable", True)
        silent, log.disabled = log.disabled, True
        try:
            yield
        finally:
            config.update("jaxtyping_disable", not checked)
            log.disabled = silent

    def check(self) -> None:
        """Refuse to go on where symbols are none any longer.

        Raises:
            SizesFixed: the network made numbers of them.
        """
        if fixed := self.fixed:
            raise SizesFixed(f"the network makes numbers of {' and '.join(sorted(fixed))}; wanted none; give its size")

    @property
    def fixed(self) -> set[str]:
        """The axes that are no longer symbols: the network made numbers of them."""
        return {axis for symbol, axis in self.axes.items() if expression_of(self.symbols[axis]) != symbol}

    def text(self, size: int | torch.SymInt) -> int | str:
        """A size for people: a number, or an expression in the names of the axes."""
        if isinstance(size, int):
            return size
        expression = expression_of(size)
        return str(expression.xreplace({symbol: type(symbol)(axis) for symbol, axis in self.axes.items()}))


def expression_of(size: torch.SymInt | torch.SymFloat) -> Any:
    """What a symbolic number is, as sympy's expression."""
    return size.node.expr
