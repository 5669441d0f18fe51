"""The processes that train together (torchrun), and the requests to stop that reach them."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

__all__ = ["Processes", "stop_requests"]


@dataclass
class Processes:
    """The processes that train together: one, or those that torchrun started."""

    rank: int
    world: int
    device: torch.device
    owns: bool = False

    @classmethod
    def start(cls, device: str | torch.device) -> "Processes":
        """Join torchrun's group where its variables are set."""
        chosen = torch.device(device)
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls(0, 1, chosen)
        rank = int(os.environ["RANK"])
        if chosen.type == "cuda":
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(chosen)
        owns = not dist.is_initialized()
        if owns:
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        return cls(rank, world, chosen, owns)

    def any(self, flag: bool) -> bool:
        """Whether any process raises the flag, so that all stop at the same step."""
        if self.world == 1:
            return flag
        tensor = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return bool(tensor.item())

    def stop(self) -> None:
        """Leave the group."""
        if self.owns:
            dist.destroy_process_group()


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collect SIGTERM and Ctrl-C in a list instead of dying, so that the loop can save and stop."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread, where signals cannot be caught
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
