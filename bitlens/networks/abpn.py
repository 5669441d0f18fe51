"""ABPN, a plain super-resolution network made for 8 bits and below: 3x3 convolutions, and the image itself as the skip.

[ABPN] Du, Liu, Tang, Wu: "Anchor-based Plain Net for Mobile Image Super-Resolution", CVPR Workshops 2021.

    image -> 3x3 convolution, ReLU, `depth` times -> 3x3 convolution, + anchor -> pixel shuffle

The anchor is the image, each channel scale^2 times: the shuffle makes nearest-neighbour enlargement of it, and the
convolutions learn what is missing. There are no features to be kept beside others and no attention over the image, so
that every tensor has one grid, and every layer runs in integers.

Differs: the paper has 28 channels and 6 layers for x3 on phones; widths and depths are free here. It clips in the
network, this one does not.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ABPN(nn.Module):
    """A plain network of any width and depth. It is trained with branches (`networks/branches.py`), which it has not.

    >>> sum(p.numel() for p in ABPN(3, 28, 6).parameters())
    43035

    Args:
        scale: how many times higher and wider the output is.
        dim: channels.
        depth: convolutions before the last.

    Call:
        `network(image)`: image (b, 3, h, w), RGB in [0, 1], any h and w, gives (b, 3, scale h, scale w), not clipped.
    """

    branches = True
    """Whether training gives its convolutions branches."""

    def __init__(self, scale: int, dim: int = 64, depth: int = 9):
        super().__init__()
        if min(scale, dim, depth) < 1:
            raise ValueError(f"scale={scale}, dim={dim}, depth={depth} came; wanted whole numbers from 1; correct them")
        self.config = dict(scale=scale, dim=dim, depth=depth)
        self.scale, self.depth = scale, depth
        layers: list[nn.Module] = []
        for channels in (3, *(depth - 1) * (dim,)):
            layers += [nn.Conv2d(channels, dim, 3, padding=1), nn.ReLU()]
        last = nn.Conv2d(dim, 3 * scale**2, 3, padding=1)
        nn.init.zeros_(last.weight)  # it starts as nearest-neighbour enlargement
        nn.init.zeros_(last.get_parameter("bias"))
        self.body = nn.Sequential(*layers, last)
        self.shuffle = nn.PixelShuffle(scale)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        anchor = torch.cat([image[:, i : i + 1] for i in range(3) for _ in range(self.scale**2)], dim=1)
        return self.shuffle(self.body(image) + anchor)

    @property
    def radius(self) -> int:
        """Pixels of the image around its own place that an output pixel depends on."""
        return self.depth + 1

    @property
    def alignment(self) -> int:
        """A cut that starts at a multiple of this is computed as it is within the whole image: any does."""
        return 1


SIZES = {"x2": 2, "x3": 3, "x4": 4}


def untrained(size: str, frames: int) -> ABPN:
    """A network to train from nothing, for a scale."""
    return ABPN(SIZES[size])


@torch.no_grad()
def rescaled(network: ABPN, scale: int) -> ABPN:
    """A float network that enlarges `scale` times: at first by its own result, each pixel at the nearest place.

    Raises:
        ValueError: fewer than 2 times, or the network has grids (rescale it before they are made).
    """
    if scale < 2 or not is_plain(network):
        what = f"{scale} times" if scale < 2 else "a network with grids"
        raise ValueError(f"{what} came; wanted a float network and 2 or more; rescale it before quantizing")
    found = ABPN(**{**network.config, "scale": scale})
    for index in range(0, 2 * network.depth, 2):
        found.body[index].load_state_dict(network.body[index].state_dict())
    nearest = torch.arange(scale) * network.scale // scale
    for name, values in network.body[-1].state_dict().items():  # (channel, row, column) of what is shuffled
        places = values.unflatten(0, (3, network.scale, network.scale))
        found.body[-1].get_parameter(name).copy_(places[:, nearest][:, :, nearest].flatten(0, 2))
    return found.train(network.training)


def is_plain(network: ABPN) -> bool:
    """Whether it has neither grids nor branches."""
    return all(isinstance(layer, nn.Conv2d | nn.ReLU) for layer in network.body)


@torch.no_grad()
def deepened(network: ABPN, layers: int) -> ABPN:
    """A float network with `layers` convolutions more that computes the same, with room to learn.

    Each of them starts as the identity, which the ReLU behind it leaves alone: what it reads was behind one already.

    Raises:
        ValueError: fewer than 1 more, or the network has grids (deepen it before they are made).
    """
    if layers < 1 or not is_plain(network):
        what = f"{layers} convolutions more" if layers < 1 else "a network with grids"
        raise ValueError(f"{what} came; wanted a float network and 1 or more; deepen it before quantizing")
    deep = ABPN(**{**network.config, "depth": network.depth + layers})
    for index in range(0, 2 * network.depth, 2):
        deep.body[index].load_state_dict(network.body[index].state_dict())
    for index in range(2 * network.depth, 2 * deep.depth, 2):
        nn.init.dirac_(deep.body[index].get_parameter("weight"))
        nn.init.zeros_(deep.body[index].get_parameter("bias"))
    deep.body[-1].load_state_dict(network.body[-1].state_dict())
    return deep.train(network.training)
