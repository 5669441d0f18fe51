"""What the kernels do on their way, found in a graph of operations: rewrites between `traced_native.py` and a plan.

convolution -> + its shortcut -> [pixel shuffle] -> LeakyReLU or ReLU -> + residual -> grids of all layers that follow

becomes one call; with a pixel shuffle one for each pixel of a square, whose outputs are written spread. And where
values are only copied to be put on a grid, codes are copied, which are a quarter of them.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch

from bitlens.engine.views import Codes, Handed, Layer, Op, View, codes_of, shuffle_of

__all__ = ["codes_first", "fused", "reached", "users_of"]

MOST_ADDED = 2
"""Arrays that a kernel adds to its values."""

Users = dict[Op, list[tuple[Op, int]]]


def reached(ops: Iterable[Op], output: View) -> list[Op]:
    """The ops that an output depends on, in their order."""
    wanted, found = {output.op}, []
    for op in reversed(list(ops)):
        if op in wanted:
            found.append(op)
            wanted.update(view.op for view in op.inputs)
    return found[::-1]


def users_of(ops: Iterable[Op]) -> Users:
    """The ops that read each op, and as which of their inputs."""
    users: Users = {}
    for op in ops:
        users.setdefault(op, [])
        for place, view in enumerate(op.inputs):
            users.setdefault(view.op, []).append((op, place))
    return users


def fused(ops: list[Op], output: View) -> tuple[list[Op], View]:
    """The ops with what follows a layer as part of it, where nothing else reads what is between; and the output."""
    users, place = users_of(ops), {op: index for index, op in enumerate(ops)}
    for op in list(ops):
        while isinstance(op, Layer) and op is not output.op and (merged := followed(op, users)) is not None:
            [(last, _)] = users[op]
            merged.inputs[1:] = [*op.inputs[1:], *merged.inputs[1:]]
            place[merged] = place.pop(last)
            del place[op]
            users[merged] = users.pop(last)
            for user, index in users[merged]:
                user.inputs[index] = user.inputs[index].of(merged)
            for index, view in enumerate(merged.inputs):
                users[view.op] = [one for one in users[view.op] if one[0] not in (op, last)] + [(merged, index)]
            output = output.of(merged) if output.op is last else output
            op = merged
    return reached(sorted(place, key=place.__getitem__), output), output


def codes_first(ops: list[Op]) -> list[Op]:
    """The ops with codes copied instead of values, where nothing but one grid reads a copy."""
    users, found = users_of(ops), []
    for op in ops:
        readers = users[op]
        if op.kind != "copy" or len(readers) != 1 or not isinstance(codes := readers[0][0], Codes):
            found.append(op)
            continue
        assert codes.operand is not None
        moved = codes_of(op.inputs[0].op, codes.operand)
        copied = Op("copy", [op.inputs[0].of(moved)], op.size, op.stride, None, torch.uint8)
        for user, index in users[codes]:
            user.inputs[index] = user.inputs[index].of(copied)
        found += [moved, copied]
        users[codes] = []
    read = users_of(found)
    return [op for op in found if not isinstance(op, Codes) or read[op]]


def followed(layer: Layer, users: Users) -> Layer | None:
    """A layer and the one op that reads it, as a layer; None: they stay two."""
    if len(users[layer]) != 1:
        return None
    [(user, index)] = users[layer]
    view = user.inputs[index]
    if (square := shuffle_of(user)) and layer.spread == 1 and not layer.handed and not layer.added:
        t, h, w, c = layer.volume
        volume = t, h * square, w * square, c // square**2
        return replace(layer, size=user.size, stride=user.stride, volume=volume, spread=square)
    if not view.is_whole or not view.lies_as(user):
        return None
    merged = replace(layer, inputs=[layer.inputs[0]], size=user.size, stride=user.stride)
    if user.kind in ("leaky", "relu"):
        slope = user.slope if user.kind == "leaky" else 0.0
        return replace(merged, slope=slope) if layer.slope == 1 and not layer.added and 0 <= slope <= 1 else None
    if user.kind != "add" or len(layer.added) >= MOST_ADDED:
        return None
    other = user.inputs[1 - index]
    if isinstance(own := other.op, Handed) and not layer.handed and layer.spread == 1:
        [codes] = own.inputs
        if other.is_whole and other.lies_as(view) and codes.lies_as(own) and layer.slope == 1 and not layer.added:
            return replace(merged, inputs=[layer.inputs[0], codes], handed=own)
    if other.op is layer or not other.lies_as(view) or other.op.dtype != torch.float32:
        return None
    return replace(merged, inputs=[layer.inputs[0], other])
