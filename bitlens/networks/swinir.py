"""SwinIR, the super-resolution transformer that 2DQuant quantizes, in its classical and its light form.

[SwinIR] Liang et al.: "SwinIR: Image Restoration Using Swin Transformer", ICCV workshops 2021.
[Swin] Liu et al.: "Swin Transformer", ICCV 2021: attention within windows, which move by half of one every second time.

    image -> conv_first -> (attention block x depth, convolution, skip) x units -> conv_after_body -> upsample

Parameter names are the official ones, so official checkpoints load through `bitlens.from_official`.
"""

from math import isqrt

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from bitlens.networks.parts import MatMul
from bitlens.networks.windows import mirror_pad, separation, to_windows, window_positions

SIZES = {
    "light": dict(dim=60, units=4, depth=6, heads=6, hidden=120),
    "classical": dict(dim=180, units=6, depth=6, heads=6, hidden=360, features=64),
}
"""The published sizes for scale 2: 0.88 and 11.70 million parameters beside their tables of position biases."""

MEAN = (0.4488, 0.4371, 0.4040)
"""Of the training images DIV2K, in R, G, B."""


def swinir(size: str, scale: int) -> "SwinIR":
    """Build one of the published sizes, `"light"` or `"classical"`, for one scale.

    >>> sum(p.numel() for name, p in swinir("light", 4).named_parameters() if "relative_position" not in name)
    897228

    Raises:
        ValueError: the size is not one of the two, or the scale is none of 2, 3, 4, 8.
    """
    if size not in SIZES:
        raise ValueError(f"SwinIR has no size {size!r}; the published ones are {', '.join(SIZES)}: choose one.")
    return SwinIR(scale=scale, **SIZES[size])


class SwinIR(nn.Module):
    """SwinIR of any width and depth.

    Differs: images that are no whole windows are padded with their mirror image below and to the right, as the official
    network pads; the official test script always adds a row and a column of windows, with the last pixel repeated.

    Args:
        scale: how many times higher and wider the output is: 2, 3, 4 or 8.
        dim: width c of the trunk.
        units: number of residual groups.
        depth: attention blocks of a group; the windows of every second one are shifted by half a window.
        heads: attention heads.
        window: height and width of a window.
        hidden: width of the feed-forward network between its two layers.
        features: channels of the pixel-shuffle stages of the classical network; 0: one stage, as in the light one.

    Call:
        `network(image)`: image (b, 3, h, w), RGB in [0, 1], any h and w, gives (b, 3, scale h, scale w), not clipped.
    """

    mean: Float[Tensor, "3 1 1"]

    def __init__(
        self,
        scale: int,
        dim: int = 60,
        units: int = 4,
        depth: int = 6,
        heads: int = 6,
        window: int = 8,
        hidden: int = 120,
        features: int = 0,
    ):
        super().__init__()
        self.config = dict(
            scale=scale,
            dim=dim,
            units=units,
            depth=depth,
            heads=heads,
            window=window,
            hidden=hidden,
            features=features,
        )
        self.scale, self.window = scale, window
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(3, dim, 3, padding=1)
        self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(dim)})
        self.layers = nn.ModuleList(ResidualGroup(dim, depth, heads, window, hidden) for _ in range(units))
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = nn.Conv2d(dim, dim, 3, padding=1)
        if features:
            self.conv_before_upsample = nn.Sequential(nn.Conv2d(dim, features, 3, padding=1), nn.LeakyReLU())
            self.conv_last = nn.Conv2d(features, 3, 3, padding=1)
        self.upsample = nn.Sequential(*upsampling(scale, features)) if features else nn.Sequential(
            nn.Conv2d(dim, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale)
        )  # fmt: skip

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        h, w = image.shape[-2:]
        shallow = self.conv_first(mirror_pad(image, self.window, edge=False) - self.mean)  # b c h' w'
        x = shallow + self.conv_after_body(self.extract_features(shallow))
        x = self.upsample(self.conv_before_upsample(x) if self.config["features"] else x)
        x = self.conv_last(x) if self.config["features"] else x
        return x[..., : h * self.scale, : w * self.scale] + self.mean

    def extract_features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The residual groups, between two normalizations."""
        shift, window = self.window // 2, self.window
        apart = separation(x.shape[2], x.shape[3], (window, window), (shift, shift), x.device)
        x = self.patch_embed["norm"](x.permute(0, 2, 3, 1))  # b h w c
        for group in self.layers:
            x = group(x, apart)
        return self.norm(x).permute(0, 3, 1, 2)

    @property
    def radius(self) -> int:
        """How far away, in pixels, an input pixel may lie that an output pixel depends on."""
        return self.config["units"] * (self.config["depth"] * (self.window - 1) + 1) + 5

    @property
    def alignment(self) -> int:
        """A cut that starts at a multiple of this has the windows of the whole picture."""
        return self.window


class ResidualGroup(nn.Module):
    """Attention blocks and a convolution, with a skip connection around them [SwinIR eq. 6]."""

    def __init__(self, dim: int, depth: int, heads: int, window: int, hidden: int):
        super().__init__()
        blocks = (Block(dim, heads, window, window // 2 if i % 2 else 0, hidden) for i in range(depth))
        self.residual_group = nn.ModuleDict({"blocks": nn.ModuleList(blocks)})
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Float[Tensor, "b h w c"], apart: Float[Tensor, "windows s s"]) -> Float[Tensor, "b h w c"]:
        y = x
        for block in self.residual_group["blocks"].children():
            y = block(y, apart)
        return self.conv(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) + x


class Block(nn.Module):
    """Attention within windows, then a feed-forward network, each after a normalization [SwinIR eq. 8]."""

    def __init__(self, dim: int, heads: int, window: int, offset: int, hidden: int):
        super().__init__()
        self.window, self.offset = window, offset
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, hidden)

    def forward(self, x: Float[Tensor, "b h w c"], apart: Float[Tensor, "windows s s"]) -> Float[Tensor, "b h w c"]:
        _, height, width, _ = x.shape
        back = (self.offset, self.offset)
        y = self.norm1(x)
        y = y.roll((-self.offset, -self.offset), (1, 2)) if self.offset else y
        y = self.attn(to_windows(y, self.window), apart if self.offset else None)  # windows s c
        sizes = dict(y=height // self.window, x=width // self.window, i=self.window)
        y = rearrange(y, "(b y x) (i j) c -> b (y i) (x j) c", **sizes)
        x = x + (y.roll(back, (1, 2)) if self.offset else y)
        return x + self.mlp(self.norm2(x))


class WindowAttention(nn.Module):
    """Self-attention among the pixels of each window [SwinIR eq. 7].

    attention = softmax(q k^T / sqrt(d) + bias),   output = proj(attention v)
    """

    relative_position_index: Int[Tensor, "s s"]

    def __init__(self, dim: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        self.factor = (dim // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", window_positions(window), persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.scores = MatMul()
        self.mix = MatMul()

    def forward(
        self, x: Float[Tensor, "windows s c"], apart: Float[Tensor, "some s s"] | None
    ) -> Float[Tensor, "windows s c"]:
        q, k, v = rearrange(self.qkv(x), "w s (three n d) -> three w n s d 1", three=3, n=self.heads)
        # The product is scaled, not q: the factor stays outside q's quantizer.
        scores = self.scores(q, k.transpose(2, 3)).squeeze(4) * self.factor  # w n s s
        scores = scores + self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if apart is not None:
            scores = (scores.unflatten(0, (-1, len(apart))) + apart.unsqueeze(1)).flatten(0, 1)
        mixed = self.mix(scores.softmax(dim=3).unsqueeze(4), v)  # w n s d 1
        return self.proj(rearrange(mixed, "w n s d 1 -> w s (n d)"))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "*batch c"]) -> Float[Tensor, "*batch c"]:
        return self.fc2(F.gelu(self.fc1(x)))


def untrained(size: str, frames: int) -> SwinIR:
    """Where training begins, for "light-x2", "light-x3" or "light-x4": a network that interpolates the image."""
    name, scale = size.split("-x")
    network = swinir(name, int(scale))
    begin_as_interpolation(network)
    return network


@torch.no_grad()
def begin_as_interpolation(network: SwinIR) -> None:
    """Set what is outside of the attention blocks so that a light network enlarges by quadratic interpolation.

    Three channels carry the image from the first convolution to the last, which takes for a pixel at u, -1/2 to 1/2,
    between its neighbours u (u - 1) / 2, 1 - u^2 and u (u + 1) / 2 of them along each axis; the convolution after the
    blocks starts at 0. No step is spent on learning to copy.
    """
    first, last, scale = network.conv_first, network.upsample[0], network.scale
    after = network.conv_after_body
    for parameter in (after.weight, after.get_parameter("bias"), last.get_parameter("bias")):
        parameter.zero_()
    places = (torch.arange(scale) + 0.5) / scale - 0.5  # u
    taps = torch.stack([places * (places - 1) / 2, 1 - places.square(), places * (places + 1) / 2], 1)  # u 3
    kernels = torch.einsum("ya,xb->yxab", taps, taps).flatten(0, 1)  # scale^2 3 3
    last.get_parameter("weight").zero_()
    for colour in range(3):
        first.weight[colour].zero_()
        first.weight[colour, colour, 1, 1] = 1
        first.get_parameter("bias")[colour] = 0
        last.get_parameter("weight")[colour * scale**2 : (colour + 1) * scale**2, colour] = kernels


def upsampling(scale: int, features: int) -> list[nn.Module]:
    """Convolutions and pixel shuffles that enlarge by 3, or by 2 as often as needed.

    Raises:
        ValueError: the scale is none of 2, 3, 4, 8.
    """
    if scale not in (2, 3, 4, 8):
        raise ValueError(f"scale {scale}; wanted 2, 3, 4 or 8: chain networks for larger ones.")
    stages = [3] if scale == 3 else [2] * (scale.bit_length() - 1)
    layers: list[nn.Module] = []
    for factor in stages:
        layers += [nn.Conv2d(features, features * factor**2, 3, padding=1), nn.PixelShuffle(factor)]
    return layers


def config_from_state_dict(state: dict[str, Tensor]) -> dict[str, int]:
    """Read scale, width, depth, heads, window and form off the shapes of a state dict.

    Raises:
        ValueError: the keys that decide the architecture are missing.
    """
    block = "layers.0.residual_group.blocks"
    try:
        table = state[f"{block}.0.attn.relative_position_bias_table"].shape
        features = state["conv_last.weight"].shape[1] if "conv_last.weight" in state else 0
        stages = [value.shape[0] // value.shape[1] for key, value in state.items() if is_upsampling(key)]
        return dict(
            scale=upscaling(stages) if features else isqrt(state["upsample.0.weight"].shape[0] // 3),
            dim=state["conv_first.weight"].shape[0],
            units=1 + max(int(key.split(".")[1]) for key in state if key.startswith("layers.")),
            depth=1 + max(int(key.split(".")[4]) for key in state if key.startswith(f"{block}.")),
            heads=table[1],
            window=(isqrt(table[0]) + 1) // 2,
            hidden=state[f"{block}.0.mlp.fc1.weight"].shape[0],
            features=features,
        )
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(
            "These weights are not SwinIR's for super-resolution: conv_first.weight, upsample.0.weight and the blocks "
            f"of {block} are wanted; give the whole state dict of a SwinIR checkpoint."
        ) from error


def is_upsampling(key: str) -> bool:
    """Whether a key is the weight of a stage before a pixel shuffle."""
    return key.startswith("upsample.") and key.endswith(".weight")


def upscaling(widening: list[int]) -> int:
    """The scale of pixel-shuffle stages that widen by these factors."""
    scale = 1
    for factor in widening:
        scale *= isqrt(factor)
    return scale
