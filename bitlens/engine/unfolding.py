"""Deep unfolding networks as OpenVINO graphs: physics and priors of all stages in one, for one size of video."""

from typing import Any

import numpy as np

from bitlens.engine.layout import Layout
from bitlens.engine.lower import Lowered
from bitlens.engine.picture import PictureGraph
from bitlens.engine.runtime import openvino
from bitlens.engine.steps import Tap
from bitlens.engine.trace import trace
from bitlens.networks.dun import DUN


def build_unfolding(network: DUN, lowered: Lowered, frames: int, height: int, width: int) -> tuple[Any, dict[str, Tap]]:
    """The model from measurement (1, h, w), mask and start (1, t, h, w) to video (1, t, h, w), and its layers' taps.

    Height and width are multiples of 8. The start is x_0: `DUN.start` computes it, outside of the model.
    """
    graph = PictureGraph(lowered)
    layout, inputs = Layout(graph), []
    for name in ("measurement", "mask", "start"):
        shape = [1, height, width] if name == "measurement" else [1, frames, height, width]
        inputs.append(graph.ops.parameter(shape, np.float32, name))
        inputs[-1].output(0).get_tensor().set_names({name})
    entered = [(layout.plain(node.output(0)), list(node.shape)) for node in inputs]
    video = layout.settled(trace(network, layout, *entered, method="unfold")[-1].op)
    video.get_tensor().set_names({"video"})
    taps = {
        name: Tap(tuple(map(layout.settled, tap.inputs)), layout.settled(tap.output))
        for name, tap in layout.taps.items()
    }
    return openvino().Model([video], inputs, "dun"), taps
