"""Which layer gets which bits: the least error within budgets, as a program in whole numbers.

    minimise  sum_l error[l, c_l]     such that     rest_r + sum_l cost_r[l, c_l] <= budget_r     for each resource r

One choice c_l for each layer l. Errors are mean squared errors of the output, which add up where they are small and of
different origin; costs are milliseconds, megabytes or operations (MixDQ, Zhao et al., ECCV 2024, solves the same for
bytes). `exact` solves it; `greedy` is what MPTQ-ViT (Tai et al., 2024) does instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

__all__ = ["Infeasible", "Program", "exact", "greedy"]

ROUNDING = 1e-9
"""What a sum may be above a budget, relative to it."""


class Infeasible(ValueError):
    """No choice fits into the budgets."""


@dataclass(frozen=True)
class Program:
    """What is to be chosen, and what it costs. A choice that a layer does not have is infinite."""

    layers: tuple[str, ...]
    choices: tuple[str, ...]
    """What a layer can have, such as "w4a8"."""
    error: Float[np.ndarray, "layers choices"]
    """What each choice adds to the output's mean squared error."""
    costs: Mapping[str, Float[np.ndarray, "layers choices"]]
    """By resource."""
    rest: Mapping[str, float | int]
    """What is spent of a resource whatever is chosen."""

    def __post_init__(self) -> None:
        shape = len(self.layers), len(self.choices)
        for name, numbers in {"error": self.error, **self.costs}.items():
            if numbers.shape != shape or bool(np.isnan(numbers).any()):
                raise ValueError(f"{name} has shape {numbers.shape} or NaN; wanted {shape} numbers; measure them again")
        if not all(shape) or not self.allowed.any(1).all():
            raise ValueError("a layer without any choice; wanted one or more for each; add choices")

    @property
    def allowed(self) -> np.ndarray:
        """Which choices each layer has."""
        return np.isfinite(self.error) & np.all([np.isfinite(cost) for cost in self.costs.values()] or [True], axis=0)

    def of(self, chosen: Int[np.ndarray, " layers"], resource: str | None = None) -> float:
        """The error of one choice for each layer, or what it costs of a resource."""
        numbers = self.error if resource is None else self.costs[resource]
        rest = 0.0 if resource is None else self.rest.get(resource, 0.0)
        return float(numbers[np.arange(len(self.layers)), chosen].sum()) + rest

    def labels(self, chosen: Int[np.ndarray, " layers"]) -> dict[str, str]:
        """The choice of each layer, by name."""
        return {name: self.choices[index] for name, index in zip(self.layers, chosen.tolist(), strict=True)}

    def least(self, resource: str | None = None) -> Int[np.ndarray, " layers"]:
        """The choices with the least error, or that cost the least of a resource; of several the least error."""
        numbers = self.error if resource is None else self.costs[resource]
        order = np.lexsort((self.error, np.where(self.allowed, numbers, np.inf)), axis=1)
        return order[:, 0]

    def fits(self, chosen: Int[np.ndarray, " layers"], budgets: Mapping[str, float | int]) -> bool:
        """Whether choices stay within budgets."""
        return all(self.of(chosen, name) <= budget * (1 + ROUNDING) for name, budget in budgets.items())

    def check(self, budgets: Mapping[str, float | int]) -> None:
        """Refuse budgets of what was not measured, and any that is too small on its own.

        Raises:
            ValueError: an unknown resource. Infeasible: the least possible is more than a budget.
        """
        for name, budget in budgets.items():
            if name not in self.costs:
                known = ", ".join(self.costs)
                raise ValueError(f"a budget of {name}; wanted one of {known}, which were measured; change it")
            least = self.of(self.least(name), name)
            if least > budget * (1 + ROUNDING):
                raise Infeasible(f"a budget of {budget:g} {name}; the least possible is {least:.4g}; give that or more")


def exact(program: Program, budgets: Mapping[str, float | int]) -> Int[np.ndarray, " layers"]:
    """The choices with the least error within all budgets, by branch and bound (HiGHS); deterministic.

    Raises:
        ValueError: a budget of an unknown resource. Infeasible: no choice fits.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_matrix

    program.check(budgets)
    best = program.least()
    if program.fits(best, budgets):
        return best
    row, column = np.nonzero(program.allowed)
    one_each = coo_matrix((np.ones(len(row)), (row, np.arange(len(row)))), (len(program.layers), len(row)))
    constraints = [LinearConstraint(one_each.tocsr(), 1, 1)]
    for name, budget in budgets.items():
        spent, left = program.costs[name][row, column], budget - program.rest.get(name, 0.0)
        unit = max(abs(left), float(spent.max()), 1e-300)  # the solver's tolerances are absolute
        constraints.append(LinearConstraint(spent[None] / unit, -np.inf, left / unit))
    errors = program.error[row, column]
    unit = float(np.abs(errors).max()) or 1.0
    found = milp(
        errors / unit,
        integrality=np.ones(len(row)),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 0.0},
    )
    candidates = [] if (fallback := tightened(program, budgets)) is None else [fallback]
    if found.x is not None:
        solved = np.zeros(len(program.layers), int)
        solved[row[found.x > 0.5]] = column[found.x > 0.5]
        candidates.insert(0, solved)
    # What the solver takes for equal may be above a budget by its tolerance, or behind the greedy one.
    candidates = [one for one in candidates if program.fits(one, budgets)]
    if not candidates:
        wanted = " and ".join(f"{budget:g} {name}" for name, budget in budgets.items())
        raise Infeasible(f"budgets of {wanted}; each alone is possible, together they are not; raise one of them")
    return min(candidates, key=program.of)


def greedy(program: Program, budgets: Mapping[str, float | int]) -> Int[np.ndarray, " layers"]:
    """The choices that lowering one layer after the other comes to.

    From the least error on, again and again the layer is lowered whose error grows the least for what is saved, until
    all budgets are kept.

    Raises:
        ValueError: a budget of an unknown resource. Infeasible: a budget is too small, or this way does not lead there.
    """
    program.check(budgets)
    found = tightened(program, budgets)
    if found is None:
        raise Infeasible("the greedy choice ends above the budgets; raise them, or solve exactly")
    return found


def tightened(program: Program, budgets: Mapping[str, float | int]) -> Int[np.ndarray, " layers"] | None:
    """`greedy`, of budgets that were checked; None: its way ends before they are kept."""
    chosen, layers = program.least(), np.arange(len(program.layers))
    for _ in range(program.error.size):  # of several resources, one may be saved at the cost of another, and back
        if program.fits(chosen, budgets):
            return chosen
        saved = np.zeros(program.error.shape)
        for name, budget in budgets.items():
            if (over := program.of(chosen, name) - budget) > 0:
                cost = np.where(program.allowed, program.costs[name], np.inf)
                saved += (cost[layers, chosen][:, None] - cost) / over
        grown = program.error - program.error[layers, chosen][:, None]
        useful = program.allowed & (saved > 0)
        if not useful.any():
            return None
        price = np.where(useful, grown / np.where(useful, saved, 1.0), np.inf)
        layer, choice = np.unravel_index(int(price.argmin()), price.shape)
        chosen[layer] = choice
    return chosen if program.fits(chosen, budgets) else None
