"""Bits chosen exactly: as good as trying everything, never worse than layer by layer; what is impossible is said."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitlens.quant.allocate import Infeasible, Program, exact, greedy


def program_of(seed: int, layers: int, choices: int, resources: int = 1) -> Program:
    """Random errors and costs over many orders of magnitude; some choices are missing."""
    random = np.random.default_rng(seed)
    error = 10 ** random.uniform(-9, -3, (layers, choices))
    costs = {f"r{i}": 10 ** random.uniform(-3, 2, (layers, choices)) for i in range(resources)}
    missing = random.random((layers, choices)) < 0.15
    missing[np.arange(layers), random.integers(choices, size=layers)] = False
    error[missing] = np.inf
    names = tuple(f"layer {i}" for i in range(layers)), tuple(f"w{8 - i}a8" for i in range(choices))
    return Program(*names, error, costs, {name: float(random.uniform(0, 5)) for name in costs})


def budgets_of(program: Program, share: float) -> dict[str, float]:
    """Between the least of each resource and what the least error takes."""
    found = {}
    for name in program.costs:
        least, most = program.of(program.least(name), name), program.of(program.least(), name)
        found[name] = least + share * (most - least)
    return found


def best_of_all(program: Program, budgets: dict[str, float]) -> float:
    """The least error, by trying everything."""
    errors = [np.inf]
    for chosen in product(range(len(program.choices)), repeat=len(program.layers)):
        one = np.array(chosen)
        if program.allowed[np.arange(len(one)), one].all() and program.fits(one, budgets):
            errors.append(program.of(one))
    return min(errors)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), resources=st.integers(1, 2), share=st.floats(0, 1.2))
def test_it_is_as_good_as_trying_everything(seed: int, resources: int, share: float) -> None:
    program = program_of(seed, 4, 4, resources)
    budgets = budgets_of(program, share)
    best = best_of_all(program, budgets)
    if np.isinf(best):
        with pytest.raises(Infeasible, match="together they are not"):
            exact(program, budgets)
    else:
        chosen = exact(program, budgets)
        assert program.fits(chosen, budgets) and program.of(chosen) <= best * (1 + 1e-6)


@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0, 1))
def test_it_is_never_worse_than_the_greedy_choice(seed: int, share: float) -> None:
    program = program_of(seed, 20, 6)
    budgets = budgets_of(program, share)
    try:
        other = greedy(program, budgets)
    except Infeasible:
        return
    chosen = exact(program, budgets)
    assert program.fits(other, budgets) and program.fits(chosen, budgets)
    assert program.of(chosen) <= program.of(other)
    assert exact(program, budgets).tolist() == chosen.tolist()


def test_the_greedy_choice_is_worse_where_it_must_be() -> None:
    """The layer that saves the most for its error does not save enough, and is lowered for nothing."""
    error = np.array([[0.0, 1.0], [0.0, 3.0]])
    costs = {"ms": np.array([[6.0, 1.0], [9.0, 0.0]])}
    program = Program(("a", "b"), ("w8a8", "w4a4"), error, costs, {"ms": 0.5})
    assert exact(program, {"ms": 7.5}).tolist() == [0, 1]
    assert greedy(program, {"ms": 7.5}).tolist() == [1, 1]


def test_what_is_possible_is_said() -> None:
    error, cost = np.array([[0.0, 1.0]]), np.array([[3.0, 2.0]])
    program = Program(("a",), ("w8a8", "w4a4"), error, {"ms": cost, "MB": cost}, {"ms": 10.0})
    with pytest.raises(Infeasible, match=r"a budget of 11 ms; the least possible is 12; give that or more"):
        exact(program, {"ms": 11})
    with pytest.raises(ValueError, match="a budget of s; wanted one of ms, MB"):
        greedy(program, {"s": 11})
    assert exact(program, {"ms": 12}).tolist() == [1] and exact(program, {"ms": 13}).tolist() == [0]


@pytest.mark.parametrize("error", [np.zeros((1, 3)), np.array([[0.0, np.nan]]), np.array([[np.inf, np.inf]])])
def test_a_program_is_checked(error: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"measure them again|add choices"):
        Program(("a",), ("w8a8", "w4a4"), error, {}, {})
