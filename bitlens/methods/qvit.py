"""Q-ViT: low-bit vision transformers by QAT [Li et al., NeurIPS 2022, arXiv 2210.06707], as Q-SCI compares with it.

1. Information rectification (IRM): query and key are normalized per head, with learned gamma and beta, before their
   grids, so that their codes carry more information. An option of the network: `normalize`.
2. Distribution guided distillation (DGD): the token similarities of query and key follow the float network's. A term
   of the loss: `bitlens.training.losses.similarity_distance`, switched on by `distill_similarity`.
3. LSQ grids; the first and the last layer have 8 bits.

It needs training: a network that was just given its normalization computes something else than the float one.
"""

from bitlens.methods.direct import layer_bits, starts
from bitlens.recipe import Recipe, Rule

ENDS = ("fem.0", "vrm.4")
"""First and last layer, in the names of EfficientSCI."""


def recipe(bits: int, grid: str = "deployable") -> Recipe:
    """Every layer at `bits`, the first and the last at 8.

    Differs: the official code has a scale and zero-point per input channel, which no integer kernel can execute;
    `grid="official"` is that. The default has one per layer.
    """
    ends = tuple(Rule(name, layer_bits(8, grid)) for name in ENDS)
    return Recipe(f"qvit-w{bits}a{bits}", (*ends, Rule("*", layer_bits(bits, grid))), "qvit", *starts(grid))


def options(bits: int) -> dict[str, bool]:
    """The options of the network: the same at all bits."""
    return {"normalize": True}
