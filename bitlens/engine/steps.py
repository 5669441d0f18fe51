"""EfficientSCI step by step, for any graph that can be built op by op; `networks/efficientsci.py` is what it follows.

`graph.py` (OpenVINO) and `onnx.py` say how an op is written down; what is computed in which order is said here, once.
"""

from dataclasses import dataclass
from functools import reduce
from typing import Any

from torch import nn

from bitlens.engine.lower import Lowered
from bitlens.engine.refusals import refuse_additions
from bitlens.networks.efficientsci import CFormer, EfficientSCI, ResDNet, TemporalAttention


@dataclass(frozen=True)
class Tap:
    """Where a layer can be listened to."""

    inputs: tuple[Any, ...]
    """The graph's values that enter it, in the shapes of the torch layer (EfficientSCI's linear layers: of a
    convolution)."""
    output: Any


class Steps:
    """A graph under construction; its values (b, c, t, h, w) are whatever the subclass's ops return."""

    def __init__(self, network: EfficientSCI, lowered: Lowered):
        refuse_additions(network)
        self.names = {id(module): name for name, module in network.named_modules()}
        self.integers = lowered.layers
        self.taps: dict[str, Tap] = {}

    def layer(self, module: nn.Module, x: Any) -> Any:
        """A convolution, or a linear layer as one, quantized or not."""
        raise NotImplementedError

    def plus(self, a: Any, b: Any) -> Any:
        """a + b, element by element."""
        raise NotImplementedError

    def leaky(self, x: Any) -> Any:
        """LeakyReLU with torch's slope."""
        raise NotImplementedError

    def layers(self, module: nn.Module, x: Any, parts: int) -> list[Any]:
        """What `layer` gives, its channels in equal parts."""
        return self.split(self.layer(module, x), 1, parts)

    def shuffled_layer(self, module: nn.Module, x: Any) -> Any:
        """A layer of the shuffled pixels."""
        return self.layer(module, self.pixel_shuffle(x))

    def concat(self, values: list[Any]) -> Any:
        """Several values as one, along the channels."""
        raise NotImplementedError

    def split(self, x: Any, axis: int, parts: int) -> list[Any]:
        """Equal parts along an axis."""
        raise NotImplementedError

    def pixel_shuffle(self, x: Any) -> Any:
        """PixelShuffle(2) of every frame."""
        raise NotImplementedError

    def pixel_unshuffle(self, x: Any) -> Any:
        """PixelUnshuffle(2) of every frame."""
        raise NotImplementedError

    def attention(self, module: TemporalAttention, x: Any) -> Any:
        """Temporal attention."""
        raise NotImplementedError

    def add(self, *values: Any) -> Any:
        """The sum, in order."""
        return reduce(self.plus, values)

    def reconstruct(self, network: EfficientSCI, x: Any) -> Any:
        """The whole network: initial estimate (b, 1, t, h, w), h and w even, to video (b, color_ch, t, h, w)."""
        groups = self.extract_features(network, x)
        for block in network.resdnet_list:
            groups = self.resdnet(block, groups)  # type: ignore[arg-type]
        return self.reconstruct_video(network, self.layer(network.up_conv, self.concat(groups)))

    def extract_features(self, network: EfficientSCI, x: Any) -> list[Any]:
        """FEM: (b, 1, t, h, w) to (b, 4c, t, h/2, w/2), in the channel groups of the blocks."""
        shortcuts, parts = network.config["shortcuts"], network.config["group_num"]
        values = [x]
        for i in range(3):
            count = parts if i == 2 else 1
            values = [self.leaky(main) for main in self.layers(network.fem[2 * i], x, count)]
            if shortcuts:
                sides = self.layers(network.fem_shortcut[i], self.pixel_unshuffle(x) if i == 2 else x, count)
                values = [self.add(main, self.leaky(side)) for main, side in zip(values, sides, strict=True)]
            x = values[0]
        return values

    def reconstruct_video(self, network: EfficientSCI, x: Any) -> Any:
        """Pixel shuffle and VRM: (b, 8c, t, h/2, w/2) to (b, color_ch, t, h, w)."""
        shortcuts = network.config["shortcuts"] is True  # "fem" adds none here
        for i in range(3):
            layer = self.shuffled_layer if i == 0 else self.layer
            main = layer(network.vrm[2 * i], x)
            main = self.leaky(main) if i < 2 else main
            if shortcuts:
                side = layer(network.vrm_shortcut[i], x)
                main = self.add(main, self.leaky(side) if i < 2 else side)
            x = main
        return x

    def resdnet(self, block: ResDNet, groups: list[Any]) -> list[Any]:
        """Residual block with dense connections between channel groups."""
        done: list[Any] = []
        for i, (group, former) in enumerate(zip(groups, block.cformer_list, strict=True)):
            if i:
                merge: Any = block.dense_conv[i - 1]
                group = self.leaky(self.layer(merge[0], self.concat([*done, group])))
            done.append(self.cformer(former, group))  # type: ignore[arg-type]
        sums = self.layers(block.last_conv, self.concat(done), len(groups))
        return [self.add(value, group) for value, group in zip(sums, groups, strict=True)]

    def cformer(self, former: CFormer, x: Any) -> Any:
        """Space and time branch in parallel, then a feed-forward network."""
        space = self.layer(former.scb[2], self.leaky(self.layer(former.scb[0], x)))
        x = self.add(space, self.attention(former.tsab, x), x)
        return self.add(self.layer(former.ffn[2], self.leaky(self.layer(former.ffn[0], x))), x)
