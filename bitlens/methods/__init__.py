"""One published method a file, each a short composition of quant's parts; `quantize` applies one by name."""

from bitlens.methods.quantize import METHODS, quantize, recipe_of

__all__ = ["METHODS", "quantize", "recipe_of"]
