"""Measure ways to choose bits at the time that 4 bits everywhere take, on one network; writes JSON.

python docs/measure_tuning.py dun results/tuning/dun.json --method unfolding --folder DIR --data CLIPS
python docs/measure_tuning.py imdn-x2.safetensors results/tuning/imdn-x2.json --method ends --folder DIR --data PHOTOS

Rows: 4 bits everywhere; the bits that a published method sets by hand; the greedy choice; the exact one by each measure
of what bits spoil. All are calibrated in the same way (ranges by squared error, weights by GPTQ); `--steps` refines
4 bits everywhere and the exact choice, equally long. Errors are measured on samples that nothing was fitted to, `psnr`
on others that nothing was chosen by. Idle machines only: milliseconds are measured.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rendering import write_result

from bitlens.bench.turns import environment
from bitlens.inference.machine import keep_freed_memory
from bitlens.methods import METHODS
from bitlens.quant.allocate import exact, greedy
from bitlens.quant.sensitivity import MEASURES
from bitlens.tuning.measured import CHECKED, CHOICES, Measured, file_size, mean_psnr
from bitlens.tuning.search import FRESH, calibrated, milliseconds, refine, solution

UNIFORM = "w4a4"


def measured(subject: Measured, labels: Mapping[str, str], steps: int = 0) -> dict[str, Any]:
    """What a choice of bits comes to."""
    network, _ = calibrated(subject, labels, ("mse",))
    found: dict[str, Any] = {"steps": 0}
    if steps:
        found["steps"] = refine(subject, network, steps)
    fresh = [subject.data.check.draw(FRESH + step) for step in range(CHECKED)]
    return found | {
        "error": subject.error_of(network),
        "loss": subject.loss_of(network),
        "psnr": mean_psnr(network, fresh),
        "ms": milliseconds(subject, network),
        "MB": file_size(network),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("start")
    parser.add_argument("out", type=Path)
    parser.add_argument("--method", required=True, help="that sets bits by hand")
    parser.add_argument("--folder", type=Path, required=True, help="where measurements are kept")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--size", type=int)
    parser.add_argument("--steps", type=int, default=0)
    given = parser.parse_args()
    keep_freed_memory()
    subject = Measured(given.start, given.folder, CHOICES, "alone", given.data, given.size, 8, 2, 0)
    program = subject.program(timed=True)
    everywhere = dict.fromkeys(program.layers, UNIFORM)
    budgets = {"ms": subject.timing.whole[UNIFORM]}
    rows: list[dict[str, Any]] = []

    def add(way: str, labels: Mapping[str, str], steps: int = 0) -> dict[str, Any]:
        chosen = [program.choices.index(labels[name]) for name in program.layers]
        predicted = {name: program.of(np.array(chosen), name) for name in program.costs}
        rows.append({"way": way, "predicted": predicted, **measured(subject, labels, steps)})
        print(json.dumps(rows[-1]), flush=True)
        return rows[-1]

    uniform = add(f"{UNIFORM} everywhere", everywhere)
    method: Any = METHODS[given.method]
    recipe = method.recipe_for(subject.network, 4) if hasattr(method, "recipe_for") else method.recipe(4)
    add(f"by hand, {given.method}", {name: recipe.bits_of(name).label for name in program.layers})
    add("greedy, alone", program.labels(greedy(program, budgets)))
    best = program.labels(exact(program, budgets))
    for measure in MEASURES:
        subject.measure = measure
        add(f"exact, {measure}", program.labels(exact(subject.program(timed=True), budgets)))
    as_good = solution(program, {"error": uniform["error"]}, "ms")
    add("exact, least time for the error of " + UNIFORM, program.labels(as_good))
    if given.steps:
        add(f"{UNIFORM} everywhere", everywhere, given.steps)
        add("exact, alone", best, given.steps)
    fresh = [subject.data.check.draw(FRESH + step) for step in range(CHECKED)]
    content = {
        "start": subject.about.name,
        "data": subject.data.about,
        "size": list(subject.timed[-1].shape[1:]),
        "threads": 2,
        "budget_ms": budgets["ms"],
        "float": {"psnr": mean_psnr(subject.network, fresh)},
        "uniform_ms": subject.timing.whole,
        "rows": rows,
        "environment": environment(),
    }
    write_result(given.out, content)


if __name__ == "__main__":
    main()
