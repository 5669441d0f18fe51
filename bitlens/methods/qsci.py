"""Q-SCI: low-bit quantization of video-SCI networks by QAT [Cao et al., ECCV 2024, arXiv 2407.21517].

The network changes first (options of EfficientSCI and STFormer), then every layer is quantized:

| bits    | shift on q and k (sec. 3.4) | 1x1x1 shortcuts in FEM and VRM (sec. 3.2, 3.3) |
|---------|-----------------------------|------------------------------------------------|
| 8       | yes                         | no                                             |
| 4, 3, 2 | yes                         | yes, at 8 bits                                 |
"""

from bitlens.methods.direct import layer_bits, starts
from bitlens.recipe import Recipe, Rule


def recipe(bits: int, grid: str = "deployable") -> Recipe:
    """Every layer at `bits`, Q-SCI's shortcuts at 8 bits.

    Differs: the official code has a scale and zero-point per input channel, which no integer kernel can execute;
    `grid="official"` is that. The default has one per layer.
    """
    rules = (Rule("*_shortcut.*", layer_bits(8, grid)), Rule("*", layer_bits(bits, grid)))
    return Recipe(f"qsci-w{bits}a{bits}", rules, "qsci", *starts(grid))


def options(bits: int) -> dict[str, bool]:
    """The options of the network at these bits."""
    return {"shift": True, "shortcuts": bits < 8}
