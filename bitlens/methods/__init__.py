"""One published method a file, each a short composition of quant's parts; `quantize` applies one by name.

The names are in `catalog`, which is read without torch; what needs it is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitlens.methods.applied import METHODS, quantize, recipe_of

__all__ = ["METHODS", "quantize", "recipe_of"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its names are {', '.join(__all__)}")
    value = getattr(import_module(f"{__name__}.applied"), name)
    globals()[name] = value  # the next access does not come here
    return value
