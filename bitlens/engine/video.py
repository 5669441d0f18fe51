"""Networks for video as OpenVINO graphs, read off their code: measurement and mask in, video out, for one size."""

from typing import Any

import numpy as np
from torch import nn

from bitlens.engine.layout import Layout
from bitlens.engine.lower import Lowered
from bitlens.engine.picture import PictureGraph
from bitlens.engine.runtime import openvino
from bitlens.engine.steps import Tap
from bitlens.engine.trace import trace


def build_video(
    network: nn.Module, lowered: Lowered, frames: int, height: int, width: int
) -> tuple[Any, dict[str, Tap]]:
    """The model from measurement (1, h, w) and mask (1, t, h, w) to video (1, c, t, h, w), and its layers' taps.

    Raises:
        TypeError: the network does something that the graph has no op for.
    """
    graph = PictureGraph(lowered)
    layout, inputs = Layout(graph), []
    for name, shape in (("measurement", [1, height, width]), ("mask", [1, frames, height, width])):
        inputs.append(graph.ops.parameter(shape, np.float32, name))
        inputs[-1].output(0).get_tensor().set_names({name})
    entered = [(layout.plain(node.output(0)), list(node.shape)) for node in inputs]
    video = layout.settled(trace(network, layout, *entered).op)
    video.get_tensor().set_names({"video"})
    taps = {
        name: Tap(tuple(map(layout.settled, tap.inputs)), layout.settled(tap.output))
        for name, tap in layout.taps.items()
    }
    return openvino().Model([video], inputs, type(network).__name__.lower()), taps
