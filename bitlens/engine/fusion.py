"""What the kernels do on their way, found in a graph of operations: rewrites between `picture_native.py` and a plan.

convolution -> LeakyReLU or ReLU -> + residual      one call, which also writes the codes of all grids that follow
convolution -> pixel shuffle                        its outputs in the order in which a row of pixels is one copy
"""

from collections.abc import Iterable
from dataclasses import replace

import torch

from bitlens.engine.lower import IntegerLayer
from bitlens.engine.picture_native import Codes, Layer, Op, View

__all__ = ["fused", "reached", "shuffled", "users_of"]

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
    """The ops with what follows a layer as part of it, where nothing else reads what is between."""
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
    return sorted(place, key=place.__getitem__), output


def followed(layer: Layer, users: Users) -> Layer | None:
    """A layer and the one op that reads it, as a layer; None: they stay two."""
    if len(users[layer]) != 1:
        return None
    [(user, index)] = users[layer]
    view = user.inputs[index]
    if not view.is_whole or not view.lies_as(user):
        return None
    merged = replace(layer, inputs=[layer.inputs[0]], size=user.size, stride=user.stride)
    if user.kind in ("leaky", "relu"):
        slope = user.slope if user.kind == "leaky" else 0.0
        return replace(merged, slope=slope) if layer.slope == 1 and len(layer.inputs) == 1 and 0 <= slope <= 1 else None
    if user.kind != "add" or len(layer.inputs) > MOST_ADDED:
        return None
    other = user.inputs[1 - index]
    if other.op is layer or not other.lies_as(view) or other.op.dtype != torch.float32:
        return None
    return replace(merged, inputs=[layer.inputs[0], other])


def shuffled(ops: list[Op], layers: dict[str, IntegerLayer]) -> dict[str, IntegerLayer]:
    """Layers with their outputs in another order, where all that reads them takes channels apart as (c, k).

    A pixel shuffle does: with channels in the order (k, c), it moves whole pixels. Ops and looks are changed with them.
    """
    users, changed = users_of(ops), {}
    for op in ops:
        if not isinstance(op, Layer) or len(op.inputs) > 1:
            continue
        after = [(user, i) for user, i in users[op] if not isinstance(user, Codes)]
        codes = [user for user, _ in users[op] if isinstance(user, Codes)]
        after += [one for user in codes for one in users[user]]
        channels, views = op.volume[-1], [user.inputs[i] for user, i in after]
        k = inner(views, channels)
        if k is None:
            continue
        c = channels // k
        for user, i in after:
            stride = [step if step >= channels else 1 if step == k else step * c for step in user.inputs[i].stride]
            user.inputs[i] = replace(user.inputs[i], stride=tuple(stride))
        layer, order = layers[op.name], torch.arange(channels).reshape(c, k).t().flatten()
        bias = None if layer.bias is None else layer.bias[order]
        scale, zero = layer.weight_scale[order], layer.weight_zero_point[order]
        op.name = f"{op.name} by {k}"
        changed[op.name] = replace(
            layer, weight=layer.weight[order], weight_scale=scale, weight_zero_point=zero, bias=bias
        )
    return changed


def inner(views: list[View], channels: int) -> int | None:
    """k, where all looks are whole and take apart the channels, which are innermost, as (channels / k, k)."""
    found = set()
    for view in views:
        steps = [(n, step) for n, step in view.steps if step < channels]
        outer = max(steps, key=lambda one: one[1], default=(1, 1))
        if not view.is_whole or outer[1] == 1 or outer[0] * outer[1] != channels:
            return None
        found.add(outer[1])
    return found.pop() if len(found) == 1 else None
