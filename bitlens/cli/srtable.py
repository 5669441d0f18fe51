"""`bitlens experiment sr-table`: every method of 2DQuant's table on one super-resolution network, at 4, 3 and 2 bits.

First all variants are calibrated and refined on photographs, a few of which are held out and measured on; the test sets
are opened when the last one is finished, and nothing is chosen by them.
"""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bitlens.cli.experiment import Experiment

CALIBRATION = dict(count=8, batch=4)
"""The paper's 32 crops: batches, and crops of each."""

HELD_OUT = 12
"""Every twelfth photograph is held out."""


def run_table(command: "Experiment") -> int:
    """Quantize, then evaluate, then show; the same command goes on where the last one stopped."""
    from bitlens import checkpoint
    from bitlens.cli.shared import PAGES, output_file
    from bitlens.experiments import SR_BUDGETS, SR_PAPER, SR_SETS
    from bitlens.inference.images import scale_of
    from bitlens.report.page import write_page

    about = checkpoint.describe(command.start)
    network = checkpoint.load(command.start).eval()
    scale = scale_of(network)
    if about.recipe is not None or scale is None:
        raise ValueError(
            f"--start {command.start} is no float super-resolution network; wanted one; give its checkpoint"
        )
    if command.calibration is None or command.clips is not None:
        raise ValueError("sr-table calibrates on photographs; wanted a folder of them; use --calibration FOLDER")
    sets = tuple(command.data.split(",")) if command.data else SR_SETS
    variants = [(*row, bits) for bits in chosen_bits(command.bits) for row in chosen_rows(command.methods)]
    with output_file(command.json, ".json") as json_path, output_file(command.page, *PAGES) as page_path:
        pictures = Pictures(command, scale)
        rows = []
        for label, method, grid, bits in variants:
            made = quantized(command, network, pictures, method, grid, bits, f"{label}, {bits} bits")
            paper = SR_PAPER.get((scale, label, bits), {})
            rows.append({"variant": label, "method": method, "grid": grid, "bits": bits, **made, "paper": paper})
        float_scores: dict[str, float] = {}
        for name in sets:  # one set after the other: what is stopped has whole columns
            float_scores[name] = score_of(command.run_folder / "float.json", command.start, name)
            for row in rows:
                weights = command.run_folder / row["checkpoint"]
                value = score_of(weights.with_suffix(".scores.json"), str(weights), name)
                row.setdefault("psnr", {})[name] = value
                row.setdefault("against_float", {})[name] = value - float_scores[name]
        content = {
            "experiment": "sr-table",
            "start": about.name,
            "scale": scale,
            "budget": asdict(SR_BUDGETS[command.budget]),
            "float": float_scores,
            "rows": rows,
        }
        if json_path is not None:
            json_path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        if page_path is not None:
            write_page(page_path, "2DQuant's table", [("sr-table", content)])
    show(content)
    return 0


def chosen_bits(text: str | None) -> tuple[int, ...]:
    """The bits of the table, or those named in `--bits`."""
    from bitlens.experiments import SR_BITS

    wanted = [str(bits) for bits in SR_BITS] if text is None else text.split(",")
    if unknown := [each for each in wanted if each not in map(str, SR_BITS)]:
        raise ValueError(f"--bits {unknown[0]}; wanted some of {', '.join(map(str, SR_BITS))}; for example --bits 4,3")
    return tuple(map(int, wanted))


def chosen_rows(text: str | None) -> list[tuple[str, str, str]]:
    """The rows of the table, or those named in `--methods`, in the table's order."""
    from bitlens.experiments import SR_METHODS

    names = [(method, f"{method}-{grid}") for _, method, grid in SR_METHODS]
    wanted = None if text is None else text.split(",")
    if unknown := [each for each in wanted or () if not any(each in pair for pair in names)]:
        known = ", ".join(pair[1] for pair in names)
        raise ValueError(f"--methods {unknown[0]}; wanted some of {known}; for example --methods dobi,2dquant-official")
    return [
        row for row, pair in zip(SR_METHODS, names, strict=True) if wanted is None or any(n in wanted for n in pair)
    ]


class Pictures:
    """What all variants are calibrated on, refined on and measured on before the test sets."""

    def __init__(self, command: "Experiment", scale: int):
        from bitlens.data.crops import crops, photographs
        from bitlens.experiments import SR_BUDGETS

        assert command.calibration is not None
        budget, files = SR_BUDGETS[command.budget], photographs(command.calibration)
        held = files[::HELD_OUT]
        kept = [file for file in files if file not in held] or files
        size = budget.crop
        self.calibration = crops(kept, scale, size=size, seed=command.seed, **CALIBRATION)
        self.pool = crops(kept, scale, budget.pool, budget.batch, size, command.seed + 1)
        self.held_out = crops(held, scale, 16, 1, size, command.seed + 2)
        self.identity = {"photographs": [file.name for file in files], "held_out": len(held), "seed": command.seed}


def quantized(
    command: "Experiment",
    network: "nn.Module",
    pictures: Pictures,
    method: str,
    grid: str,
    bits: int,
    label: str,
) -> dict[str, Any]:
    """A variant's checkpoint, times and fidelity on held-out crops: read where it is finished, else made."""
    from bitlens import checkpoint
    from bitlens.cli.shared import output_file
    from bitlens.experiments import SR_BUDGETS
    from bitlens.inference.machine import describe_run
    from bitlens.methods import METHODS, quantize

    stem = f"{method}-{grid}-w{bits}a{bits}"
    path = command.run_folder / f"{stem}.json"
    budget = SR_BUDGETS[command.budget]
    identity = {"start": command.start, "budget": asdict(budget), "pictures": pictures.identity}
    if path.is_file():
        found = json.loads(path.read_text())
        if found["identity"] != json.loads(json.dumps(identity)):
            raise ValueError(f"{path} was measured with other settings; wanted these; change --run-folder")
        return found["result"]
    start, cpu = time.perf_counter(), time.process_time()
    made, _ = quantize(network, method, pictures.calibration, bits=bits, grid=grid)
    calibrated, cpu_calibrated = time.perf_counter() - start, time.process_time() - cpu
    steps, refine = 0, getattr(METHODS[method], "refine", None)
    if refine is not None:
        state = command.run_folder / f"{stem}.state.pt"
        steps = sum(
            each.steps for each in in_sight(label, refine, made, network, pictures.pool, budget, state, command)
        )
    command.run_folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save(made, command.run_folder / f"{stem}.safetensors", provenance=identity)
    result = {
        "checkpoint": f"{stem}.safetensors",
        "calibration_seconds": calibrated,
        "refinement_seconds": time.perf_counter() - start - calibrated,
        "calibration_cpu_seconds": cpu_calibrated,
        "refinement_cpu_seconds": time.process_time() - cpu - cpu_calibrated,
        "steps": steps,
        "held_out": fidelity(made, network, pictures.held_out),
        "run": describe_run(),
    }
    with output_file(path) as temporary:
        assert temporary is not None
        temporary.write_text(json.dumps({"identity": identity, "result": result}, indent=1) + "\n")
    return result


def in_sight(
    label: str,
    refine: Any,
    student: "nn.Module",
    teacher: "nn.Module",
    pool: Any,
    budget: Any,
    state: Path,
    command: "Experiment",
) -> list[Any]:
    """Refine under a progress bar."""
    from bitlens.progress import progress

    with progress("steps at most") as bar:
        task = bar.add_task(label, total=budget.steps)

        def show_step(step: int, loss: float) -> None:
            bar.update(task, completed=step, description=f"{label}, loss {loss:.5f}")

        return refine(
            student, teacher, pool,
            steps=budget.steps, minutes=budget.minutes, seed=command.seed, state=state, on_step=show_step,
        )  # fmt: skip


def fidelity(student: "nn.Module", teacher: "nn.Module", batches: "list[tuple[Tensor]]") -> float:
    """PSNR in dB of the low-bit network's pictures against the float network's, mean over crops of one picture each."""
    import torch

    values = []
    with torch.no_grad():
        for batch in batches:
            error = (student(*batch).clamp(0, 1) - teacher(*batch).clamp(0, 1)).square().mean()
            values.append(float(-10 * error.clamp_min(1e-10).log10()))
    return sum(values) / len(values)


def score_of(path: Path, model: str, name: str) -> float:
    """PSNR in dB on a test set: read where it was measured, else measured."""
    from bitlens.cli.shared import output_file
    from bitlens.inference.evaluation import evaluate

    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if name not in found:
        found[name] = evaluate(model, name, ssim=False)[0].to_dict()
        with output_file(path) as temporary:
            assert temporary is not None
            temporary.write_text(json.dumps(found, indent=1) + "\n")
    return found[name]["average"]["psnr"]


def show(content: dict[str, Any]) -> None:
    """The table, beside what the papers say of SwinIR-light."""
    from bitlens.report import console, table

    sets = list(content["float"])
    told = [name for name in sets if any(name in row["paper"] for row in content["rows"])]
    columns = ["bits and method", "held out (dB)", *sets, *(f"{name} in paper" for name in told)]
    rows = [("float", "", *(f"{content['float'][name]:.2f}" for name in sets), *("" for _ in told))]
    for row in content["rows"]:
        scores = *decibels(row["against_float"], sets), *decibels(row["paper"], told)
        rows.append((f"{row['bits']}  {row['variant']}", f"{row['held_out']:.2f}", *scores))
    out = console()
    out.print(table(f"2DQuant's table on {content['start']}: dB against float [2DQuant tab. 3]", columns, rows))
    budget = content["budget"]
    limit = "" if budget["minutes"] is None else f"{budget['minutes']:g} minutes or "
    out.print(
        f"Refined for at most {limit}{budget['steps']:,} steps of {budget['batch']} crops of "
        f"{budget['crop']} x {budget['crop']}. Held out: PSNR against the float network's pictures of photographs that "
        "were not calibrated on. The papers' network is SwinIR-light."
    )


def decibels(values: dict[str, float], names: list[str]) -> list[str]:
    """Differences in dB by the names of test sets, empty where there is none."""
    return [f"{values[name]:+.2f}" if name in values else "" for name in names]
