"""Block reconstruction: one block after the other learns to do with quantized inputs what the float one does.

[BRECQ] Li et al.: "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", ICLR 2021.

Differs: the paper learns for each weight whether it is rounded up or down (AdaRound) and weighs errors by the task's
gradient; here a weight may move by several steps of its grid, straight through its rounding, and errors weigh the same.
A step costs one block instead of the whole network.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bitlens.quant.distill import Refined, Refinement, blocks_of, distill


def reconstruct(
    student: nn.Module,
    teacher: nn.Module,
    batches: Sequence[tuple[Any, ...]],
    settings: Refinement,
    on_step: Callable[[int, float], None] | None = None,
) -> dict[str, Refined]:
    """Train the blocks of a calibrated network, in place, in the order of their names in it.

    Args:
        student: fake-quantized and calibrated. teacher: the float network.
        batches: what both are called with. The inputs of one block for all of them are kept in memory.
        settings: steps of each block; minutes of all of them together.
        on_step: receives the number of finished steps of a block, and its loss.

    Returns:
        How each block went.
    """
    names = blocks_of(student)
    minutes = None if settings.minutes is None else settings.minutes / max(1, len(names))
    results = {}
    for name in names:
        results[name] = distill(
            student.get_submodule(name),
            teacher.get_submodule(name),
            inputs_of(student, name, batches),
            replace(settings, minutes=minutes),
            targets=inputs_of(teacher, name, batches),
            on_step=on_step,
        )
    return results


def inputs_of(network: nn.Module, name: str, batches: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """What a block of a network is called with, for each batch; the network is run no further than there.

    Raises:
        ValueError: the block is not reached.
    """
    kept: list[tuple[Any, ...]] = []

    class Reached(Exception):
        pass

    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        kept.append(inputs)
        raise Reached

    handle = network.get_submodule(name).register_forward_pre_hook(keep)
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                try:
                    network(*batch)
                except Reached:
                    continue
                raise ValueError(f"no data reached the block {name}; wanted a block that runs; name others")
    finally:
        handle.remove()
        network.train(training)
    return kept
