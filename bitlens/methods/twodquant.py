"""2DQuant: dual-stage low-bit quantization of super-resolution networks [Liu et al., NeurIPS 2024, arXiv 2406.06649].

1. DOBI: bounds by a search for the least squared error (`bitlens.quant.ranges.dobi`).
2. DQC: the bounds are trained against the float network (`bitlens.quant.distill.distill`).

Beside it, in the same form, what it is compared with and what goes further:

| name           | start                            | trained                                | source                |
|----------------|----------------------------------|----------------------------------------|-----------------------|
| `dbdc-pac`     | clipping by density              | bounds of activations, of weights      | Tu et al., CVPR 2023  |
| `dqc`          | minmax                           | bounds                                 | 2DQuant's stage 2     |
| `2dquant`      | DOBI                             | bounds                                 | 2DQuant               |
| `condiquant`   | DOBI, on conditioned weights     | bounds                                 | CondiQuant            |
| `balanced`     | balanced, least squared error    | bounds                                 | RepQ-ViT, SmoothQuant |
| `gptq`         | least squared error              | weights by GPTQ, bounds of activations | GPTQ, both factors    |
| `2dquant-plus` | balanced, with GPTQ              | bounds, and the weights between them   | here                  |
| `svdquant`     | as `2dquant-plus`, paths beside  | the same                               | SVDQuant, in integers |
| `brecq`        | as `2dquant-plus`                | the same, block by block first         | BRECQ, free weights   |

The first stage alone are the methods `minmax`, `percentile` and `dobi`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from bitlens.files import remark
from bitlens.methods.brecq import reconstruct
from bitlens.methods.condiquant import condition_weights
from bitlens.methods.direct import layer_bits
from bitlens.methods.gptq import fit_weights
from bitlens.methods.ptq import body_rules, of_images, two_bounds
from bitlens.quant.distill import Refined, Refinement, distill
from bitlens.recipe import Bits, Recipe, Rule

Range = Literal["minmax", "mse", "dobi"]

FITTED = 16
"""Batches that moments are taken from."""


@dataclass(frozen=True)
class TwoStage:
    """Ranges, then bounds that are trained."""

    name: str
    """Of the method."""
    weight_range: Range
    """First ranges of weights, with free bounds; those of deployable grids are searched by `mse` where this is dobi."""
    activation_range: Literal["minmax", "mse", "dobi", "dbdc"]
    """First ranges of activations, likewise."""
    stages: tuple[Refinement, ...]
    """Trainings one after the other; they share the steps and the time."""
    balanced: bool = False
    """Whether input channels of networks that enlarge pictures are balanced (`bitlens.quant.equalization`)."""
    rank: int = 0
    """Channels of a low-rank branch of 8 bits beside each layer of networks that enlarge pictures
    (`bitlens.quant.low_rank`)."""
    conditioned: bool = False
    """Whether weights are conditioned before (`bitlens.methods.condiquant`)."""
    fitted: bool = False
    """Whether weights are rounded by GPTQ before (`bitlens.methods.gptq`)."""
    blocks: Refinement | None = None
    """Whether every block is reconstructed before, for half of the time and with as many steps each
    (`bitlens.methods.brecq`)."""

    def recipe(self, bits: int, grid: str = "deployable") -> Recipe:
        """Every layer at `bits`."""
        return self.with_rules((Rule("*", self.layer(bits, grid)),), bits, grid)

    def recipe_for(self, network: nn.Module, bits: int, grid: str = "deployable") -> Recipe:
        """The layers that 2DQuant quantizes (`body_rules`).

        Args:
            network: float.
            bits: 1 to 8.
            grid: "official" (two free bounds for each tensor, of weights too), or "deployable" (a symmetric scale per
                output channel of the weights, one scale and an integer zero-point for activations).
        """
        rules = body_rules(network, self.layer(bits, grid))
        if of_images(network):
            rules = balanced(rules) if self.balanced else rules
            rules = tuple(replace(rule, bits=rule.bits and replace(rule.bits, rank=self.rank)) for rule in rules)
        elif self.balanced or self.rank:
            left = "balanced channels and low-rank branches" if self.rank else "balanced channels"
            remark(
                f"{self.name} gives {left} to networks for images, and {type(network).__name__} is none, so "
                "these are left out; wanted such a network; choose a method that is made for this one to have all of it"
            )
        return self.with_rules(rules, bits, grid)

    def layer(self, bits: int, grid: str) -> Bits:
        """The bits of one layer."""
        return two_bounds(bits) if grid == "official" else layer_bits(bits, grid)

    def with_rules(self, rules: tuple[Rule, ...], bits: int, grid: str) -> Recipe:
        """The recipe of these rules."""
        weight, activation = self.weight_range, self.activation_range
        if grid != "official":
            weight = "mse" if weight == "dobi" else weight
            activation = "mse" if activation == "dobi" else activation
        return Recipe(f"{self.name}-w{bits}a{bits}", rules, self.name, weight, activation)

    def refine(
        self,
        student: nn.Module,
        teacher: nn.Module,
        batches: Sequence[tuple[Any, ...]],
        *,
        steps: int | None = None,
        minutes: float | None = None,
        seed: int = 0,
        state: Path | None = None,
        on_step: Callable[[int, float], None] | None = None,
    ) -> list[Refined]:
        """The second stage, in place.

        Args:
            student: calibrated. teacher: the float network. batches: (image,) tuples.
            steps: of all stages together; None: the method's own.
            minutes: of all stages together.
            state: file to go on from; a second stage adds its number to the name.
            on_step: receives the number of finished steps of all stages, and the loss.
        """
        # These two also before it goes on: a state holds what is trained, and biases are not.
        if self.conditioned:
            weight_range: str = student.recipe.weight_range  # type: ignore[union-attr, assignment]
            condition_weights(student, teacher, batches[:FITTED], weight_range)
        if self.fitted:
            fit_weights(student, teacher, batches[:FITTED])
        done, results = 0, []
        share = 1 / len(self.stages)
        if self.blocks is not None:
            half = None if minutes is None else minutes / 2
            settings = replace(
                self.blocks, minutes=half, seed=seed, steps=self.blocks.steps if steps is None else steps
            )
            reconstruct(student, teacher, batches, settings, on_step)
            minutes = half
        rules: tuple[Rule, ...] = student.recipe.rules  # type: ignore[union-attr, assignment]
        free_bounds = any(rule.bits is not None and rule.bits.parametrization == "bound" for rule in rules)
        for number, stage in enumerate(self.stages):
            settings = replace(
                stage,
                steps=stage.steps if steps is None else max(1, round(steps * share)),
                minutes=None if minutes is None else minutes * share,
                unit=stage.unit if free_bounds else "range",
                seed=seed,
            )
            before = done

            def count(step: int, loss: float, before: int = before) -> None:
                if on_step:
                    on_step(before + step, loss)

            file = state.with_stem(f"{state.stem}-{number}") if state and number else state
            results.append(distill(student, teacher, batches, settings, state=file, on_step=count))
            done += results[-1].steps
        return results


UNBALANCED = ("*.proj", "*.fc2", "*.scores", "*.mix")
"""Patterns of a transformer's layers whose inputs keep one scale: the fused kernel of a Swin block holds them as codes,
and products have no weights to take factors back."""


def balanced(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The rules with balanced channels for all quantized layers but `UNBALANCED`."""
    return tuple(
        replace(rule, bits=replace(rule.bits, activation_granularity="balanced"))
        if rule.bits is not None and rule.pattern not in UNBALANCED
        else rule
        for rule in rules
    )


DBDC_PAC = TwoStage(
    "dbdc-pac",
    "minmax",
    "dbdc",
    (
        Refinement(250, learning_rate=5e-3, grids="activations"),
        Refinement(250, learning_rate=5e-6, grids="weights"),
    ),
)
"""Density-based dual clipping, pixel-aware calibration.

Differs: its rates fall to 0 along a cosine, where they end at 2/5 of their start in the official code; its features are
compared, where the official code cuts their gradient off by mistake.
"""

DQC = TwoStage("dqc", "minmax", "minmax", (Refinement(),))
TWODQUANT = TwoStage("2dquant", "dobi", "dobi", (Refinement(),))
CONDIQUANT = replace(TWODQUANT, name="condiquant", conditioned=True)
GPTQ = TwoStage("gptq", "mse", "mse", (Refinement(500, unit="range", grids="activations"),), fitted=True)
BALANCED = TwoStage("balanced", "mse", "mse", (Refinement(unit="range"),), balanced=True)
PLUS = TwoStage("2dquant-plus", "mse", "mse", (Refinement(unit="range", weights=3e-2),), balanced=True, fitted=True)

SVDQUANT = replace(PLUS, name="svdquant", rank=8)

BRECQ = replace(
    PLUS, name="brecq", blocks=Refinement(500, unit="range", learning_rate=3e-3, weights=3e-2, features=0.0)
)
