"""How much memory a network needs for each pixel of its input: its tensors are followed on torch's meta device."""

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from bitlens.quant.layers import float_mode

__all__ = ["bytes_per_pixel"]

SIDE = 64
"""Pixels along the sides of the picture that is followed through the network."""


class Following(TorchDispatchMode):
    """Adds up the storages of all tensors that are alive, and remembers the most."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self.follow(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return result

    def follow(self, storage: torch.UntypedStorage) -> None:
        """Count a storage, if it is new, until it is freed."""
        key = storage._cdata
        if key not in self.alive:
            self.alive[key] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self.leave, key)

    def leave(self, key: int) -> None:
        """Forget a storage that was freed."""
        self.now -= self.alive.pop(key)


def bytes_per_pixel(network: nn.Module, channels: int = 3) -> float:
    """Bytes of tensors that are alive at once, for each pixel of an image (1, channels, h, w), in inference.

    Nothing is computed: a copy of the network runs on torch's meta device, where tensors have sizes and no values.
    What the operators need inside themselves, a copy of their input at times, is not seen, nor what grids need.
    """
    copied = copy.deepcopy(network).to("meta").eval()
    image, following = torch.ones(1, channels, SIDE, SIDE, device="meta"), Following()
    with torch.no_grad(), float_mode(copied), following:
        copied(image)
    return following.peak / SIDE**2
