"""EfficientSCI step by step, for any graph that can be built op by op; `networks/efficientsci.py` is what it follows.

`graph.py` (OpenVINO) and `onnx.py` say how an op is written down; what is computed in which order is said here, once.
"""

from dataclasses import dataclass
from functools import reduce
from typing import Any

from torch import nn

from bitlens.engine.lower import Lowered
from bitlens.networks.efficientsci import CFormer, EfficientSCI, ResDNet, TemporalAttention


@dataclass(frozen=True)
class Tap:
    """Where a layer can be listened to."""

    inputs: tuple[Any, ...]
    """The graph's values that enter it, in the shapes of the torch layer (linear layers: of a convolution)."""
    output: Any


class Steps:
    """A graph under construction; its values (b, c, t, h, w) are whatever the subclass's ops return."""

    def __init__(self, network: EfficientSCI, lowered: Lowered):
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
        x = self.extract_features(network, x)  # b 4c t h/2 w/2
        for block in network.resdnet_list:
            x = self.resdnet(block, x)  # type: ignore[arg-type]
        x = self.pixel_shuffle(self.layer(network.up_conv, x))  # b 2c t h w
        return self.reconstruct_video(network, x)

    def extract_features(self, network: EfficientSCI, x: Any) -> Any:
        """FEM: (b, 1, t, h, w) to (b, 4c, t, h/2, w/2)."""
        for i in range(3):
            main = self.leaky(self.layer(network.fem[2 * i], x))
            if network.config["shortcuts"]:
                side = self.layer(network.fem_shortcut[i], self.pixel_unshuffle(x) if i == 2 else x)
                main = self.add(main, self.leaky(side))
            x = main
        return x

    def reconstruct_video(self, network: EfficientSCI, x: Any) -> Any:
        """VRM: (b, 2c, t, h, w) to (b, color_ch, t, h, w)."""
        shortcuts = network.config["shortcuts"] is True  # "fem" adds none here
        for i in range(2):
            main = self.leaky(self.layer(network.vrm[2 * i], x))
            x = self.add(main, self.leaky(self.layer(network.vrm_shortcut[i], x))) if shortcuts else main
        out = self.layer(network.vrm[4], x)
        return self.add(out, self.layer(network.vrm_shortcut[2], x)) if shortcuts else out

    def resdnet(self, block: ResDNet, x: Any) -> Any:
        """Residual block with dense connections between channel groups."""
        groups = self.split(x, 1, len(block.cformer_list))
        done: list[Any] = []
        for i, (group, former) in enumerate(zip(groups, block.cformer_list, strict=True)):
            if i:
                merge: Any = block.dense_conv[i - 1]
                group = self.leaky(self.layer(merge[0], self.concat([*done, group])))
            done.append(self.cformer(former, group))  # type: ignore[arg-type]
        return self.add(self.layer(block.last_conv, self.concat(done)), x)

    def cformer(self, former: CFormer, x: Any) -> Any:
        """Space and time branch in parallel, then a feed-forward network."""
        space = self.layer(former.scb[2], self.leaky(self.layer(former.scb[0], x)))
        x = self.add(space, self.attention(former.tsab, x), x)
        return self.add(self.layer(former.ffn[2], self.leaky(self.layer(former.ffn[0], x))), x)
