"""STFormer, the video-SCI reconstruction transformer, with Q-SCI's additions as options.

[STFormer] Wang, Cao, Zhong, Yuan: "Spatial-Temporal Transformer for Video Snapshot Compressive Imaging", TPAMI 2023.
[Q-SCI] Cao et al., ECCV 2024, sections 3.2-3.4, which reports gains on STFormer-S (tab. 3) without its code.

    measurement, mask -> initial estimate -> token_gen -> (STFormer block x 2) x units -> conv2 -> video

Parameter names are the official ones, so official checkpoints load through `bitlens.from_official`.
"""

from math import isqrt

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from bitlens.networks.memory import Memory
from bitlens.networks.parts import HeadShift, MatMul, start_shortcuts, with_shortcuts
from bitlens.networks.windows import relative_positions, separation, window_positions
from bitlens.operators import normalized_measurement

SIZES = {
    "s": dict(dim=16, units=4),
    "b": dict(dim=64, units=4),
    "l": dict(dim=64, units=8),
}
"""The published sizes; S and B have 1.22 and 19.48 million parameters (grey) beside their tables of position biases."""


def stformer(
    size: str, *, colour: bool = False, frames: int = 8, shift: bool = False, shortcuts: bool = False
) -> "STFormer":
    """Build one of the published sizes, `"s"`, `"b"` or `"l"`, for videos of up to `frames` frames.

    >>> sum(p.numel() for name, p in stformer("s").named_parameters() if "relative_position" not in name)
    1224609

    Raises:
        ValueError: the size is not one of the three.
    """
    if size not in SIZES:
        raise ValueError(f"STFormer has no size {size!r}; the published ones are {', '.join(SIZES)}: choose one.")
    return STFormer(**SIZES[size], color_channels=3 if colour else 1, frames=frames, shift=shift, shortcuts=shortcuts)


def untrained(size: str, frames: int) -> "STFormer":
    """Where training begins: a network of that size for videos of up to `frames` frames."""
    return stformer(size, frames=frames)


class STFormer(nn.Module):
    """STFormer of any width and depth.

    Differs: some official versions construct a convolution `conv_cat` in every block and never call it. It is left
    out, so that nothing is quantized, stored or counted that computes nothing; `bitlens.from_official` reports its
    weights as unused. The output is the same.

    Args:
        dim: width of the first layer; the trunk is 4 dim wide at half the resolution.
        units: number of layers, each of `depth` blocks.
        color_channels: 1 for grey video, 3 for RGB video from a Bayer mosaic.
        frames: longest video, in frames, that the table of temporal position biases covers.
        depth: blocks of a layer; the windows of every second one are shifted by half a window.
        heads: attention heads, in space and in time.
        window: height and width of the windows that attention in space stays within.
        shift: learn one shift per head on query and key of both attentions before they are quantized
            [Q-SCI sec. 3.4].
        shortcuts: add Q-SCI's parallel 1x1x1 branches to token generation and video reconstruction
            [Q-SCI sec. 3.2, 3.3].

    Call:
        `network(measurement, mask)`: measurement (b, h, w), the plain sum over time of mask * frame, and mask
        (1 or b, t, h, w) give the video (b, color_channels, t, h, w) in [0, 1] (not clipped). t is at most `frames`;
        odd h or w is padded by one mirrored row or column inside.
    """

    def __init__(
        self,
        dim: int = 64,
        units: int = 4,
        color_channels: int = 1,
        frames: int = 8,
        *,
        depth: int = 2,
        heads: int = 4,
        window: int = 7,
        shift: bool = False,
        shortcuts: bool = False,
    ):
        super().__init__()
        if shortcuts not in (False, True):
            raise ValueError(f"shortcuts={shortcuts!r} came; wanted False or True; choose one")
        if shortcuts not in (False, True):
            raise ValueError(f"shortcuts={shortcuts!r} came; wanted False or True; choose one")
        self.config = dict(
            dim=dim,
            units=units,
            color_channels=color_channels,
            frames=frames,
            depth=depth,
            heads=heads,
            window=window,
            shift=shift,
            shortcuts=shortcuts,
        )
        self.token_gen = nn.Sequential(
            nn.Conv3d(1, dim, 5, padding=2),
            nn.LeakyReLU(inplace=True),
            nn.Conv3d(dim, 2 * dim, 1),
            nn.LeakyReLU(inplace=True),
            nn.Conv3d(2 * dim, 2 * dim, 3, padding=1),
            nn.LeakyReLU(inplace=True),
            nn.Conv3d(2 * dim, 4 * dim, 3, stride=(1, 2, 2), padding=1),
            nn.LeakyReLU(inplace=True),
            nn.Conv3d(4 * dim, 4 * dim, 1),
            nn.LeakyReLU(inplace=True),
        )
        self.layers = nn.ModuleList(STFormerLayer(4 * dim, depth, heads, window, frames, shift) for _ in range(units))
        self.conv2 = nn.Sequential(
            nn.ConvTranspose3d(4 * dim, 2 * dim, (1, 3, 3), (1, 2, 2), padding=(0, 1, 1), output_padding=(0, 1, 1)),
            nn.LeakyReLU(inplace=True),
            nn.Conv3d(2 * dim, 2 * dim, 3, padding=1),
            nn.LeakyReLU(inplace=True),
            nn.Conv3d(2 * dim, dim, 1),
            nn.LeakyReLU(inplace=True),
            nn.Conv3d(dim, color_channels, 3, padding=1),
        )
        if shortcuts:
            widths = [(1, dim), (dim, 2 * dim), (2 * dim, 2 * dim), (8 * dim, 4 * dim), (4 * dim, 4 * dim)]
            self.token_gen_shortcut = nn.ModuleList(nn.Conv3d(i, o, 1) for i, o in widths)
            widths = [(2 * dim, 2 * dim), (2 * dim, dim), (dim, color_channels)]
            self.conv2_shortcut = nn.ModuleList(nn.Conv3d(i, o, 1) for i, o in widths)

    def forward(
        self, measurement: Float[Tensor, "b h w"], mask: Float[Tensor, "#b t h w"]
    ) -> Float[Tensor, "b c t h w"]:
        t, h, w = mask.shape[1], *measurement.shape[-2:]
        if mask.shape[-2:] != (h, w):
            raise ValueError(
                f"The measurement is {h}x{w} but the mask is {mask.shape[-2]}x{mask.shape[-1]}: "
                "give both at the same size, or crop both explicitly."
            )
        if t > self.config["frames"]:
            raise ValueError(
                f"The mask has {t} frames but this network's position biases end at {self.config['frames']}: "
                f"give at most {self.config['frames']}, or a network that was built and trained for frames={t}."
            )
        x = initial_estimate(measurement, mask)  # b 1 t h w
        if h % 2 or w % 2:
            x = F.pad(x.squeeze(1), (0, w % 2, 0, h % 2), mode="replicate").unsqueeze(1)
        x = self.generate_tokens(x)  # b 4c t h/2 w/2
        for layer in self.layers:
            x = layer(x)
        return self.reconstruct_video(x)[..., :h, :w]

    @property
    def radius(self) -> int:
        """How far away, in pixels, a measured pixel may lie that an output pixel depends on, odd rows the farthest.

        Token generation sees 4 pixels around one of the trunk's, a block of the trunk its window and 4 more, video
        reconstruction 3. So it is bounded, given that cuts keep to the grid of the windows (`alignment`).
        """
        blocks = self.config["units"] * self.config["depth"]
        return 4 + 2 * blocks * (self.config["window"] - 1 + 4) + 3

    @property
    def alignment(self) -> int:
        """A cut that starts at a multiple of this is computed as it is within the whole picture: a window's size."""
        return 2 * self.config["window"]

    @property
    def memory(self) -> Memory:
        """What it takes while it runs; the kernels plan 36 c, and torch copies between them."""
        c = self.config["dim"]
        needs = {"torch": (200.0 * c, 8.0), "low-bit": (240.0 * c, 24.0), "native": (100.0 * c, 24.0)}
        return Memory(needs, thread_mb=100.0)

    def with_options(self, *, shift: bool, shortcuts: bool) -> "STFormer":
        """A copy with Q-SCI's additions, which starts out computing almost what this network computes.

        Shifts start at zero, shortcuts as `start_shortcuts` says.
        """
        network = STFormer(**{**self.config, "shift": shift, "shortcuts": shortcuts})
        network.load_state_dict(self.state_dict(), strict=False)
        if shortcuts and not self.config["shortcuts"]:
            start_shortcuts(list(network.token_gen), network.token_gen_shortcut)
            start_shortcuts(list(network.conv2)[2:], network.conv2_shortcut)
        return network.train(self.training)

    def generate_tokens(self, x: Float[Tensor, "b 1 t h w"]) -> Float[Tensor, "b c4 t h2 w2"]:
        """Token generation, with Q-SCI's shortcuts if asked for [Q-SCI sec. 3.2]."""
        if not self.config["shortcuts"]:
            return self.token_gen(x)
        return with_shortcuts([*self.token_gen], self.token_gen_shortcut, x)

    def reconstruct_video(self, x: Float[Tensor, "b c4 t h2 w2"]) -> Float[Tensor, "b c t h w"]:
        """Video reconstruction, with Q-SCI's shortcuts if asked for [Q-SCI sec. 3.3].

        The transposed convolution that doubles the resolution has none, as EfficientSCI's `up_conv` has none.
        """
        if not self.config["shortcuts"]:
            return self.conv2(x)
        double, activation, *rest = self.conv2
        return with_shortcuts(rest, self.conv2_shortcut, activation(double(x)))


class STFormerLayer(nn.Module):
    """`depth` blocks; every second one attends within windows that are shifted by half a window."""

    def __init__(self, dim: int, depth: int, heads: int, window: int, frames: int, shift: bool = False):
        super().__init__()
        self.blocks = nn.ModuleList(
            STFormerBlock(dim, heads, window, window // 2 if i % 2 else 0, frames, shift) for i in range(depth)
        )

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        x = rearrange(x, "b c t h w -> b t h w c")
        for block in self.blocks:
            x = block(x)
        return rearrange(x, "b t h w c -> b c t h w")


class STFormerBlock(nn.Module):
    """Attention in space and in time in parallel, then a grouping residual feed-forward network.

    x = x + space(norm1(x)) + time(norm1(x)),   x = x + ff(norm2(x))
    """

    def __init__(self, dim: int, heads: int, window: int, offset: int, frames: int, shift: bool = False):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = SpaceAttention(dim, heads, window, offset, shift)
        self.time_attn = TimeAttention(dim, heads, frames, shift)
        self.norm2 = nn.LayerNorm(dim)
        self.ff = GroupingFeedForward(dim // 2)

    def forward(self, x: Float[Tensor, "b t h w c"]) -> Float[Tensor, "b t h w c"]:
        y = self.norm1(x)
        x = x + self.attn(y) + self.time_attn(y)
        y = self.ff(rearrange(self.norm2(x), "b t h w c -> b c t h w"))
        return x + rearrange(y, "b c t h w -> b t h w c")


class SpaceAttention(nn.Module):
    """Self-attention among the pixels of one window of one frame, as in Swin transformers.

        attention = softmax(q k^T / sqrt(d) + bias),   output = proj(attention v)

    Frames that are no multiple of the window are padded below and to the right with zeros, which take part as keys.
    With an offset the frame is rolled first, so that windows reach over the former borders; pixels that only the roll
    brought together do not see each other. A frame no larger than the window is one window, and is not rolled;
    its pixels read the biases of the first positions of a whole window, as the official network's do.

    Args:
        dim: channels.
        heads: attention heads.
        window: height and width of a window.
        offset: how far to roll the frame, up and to the left.
        shift: learn one shift per head on q and k [Q-SCI eq. 8].
    """

    relative_position_index: Int[Tensor, "n n"]

    def __init__(self, dim: int, heads: int, window: int, offset: int, shift: bool = False):
        super().__init__()
        self.heads, self.window, self.offset = heads, window, offset
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", window_positions(window), persistent=False)
        self.moveq = HeadShift(heads) if shift else nn.Identity()
        self.movek = HeadShift(heads) if shift else nn.Identity()
        self.scores = MatMul()
        self.mix = MatMul()

    def forward(self, x: Float[Tensor, "b t h w c"]) -> Float[Tensor, "b t h w c"]:
        b, t, h, w, _ = x.shape
        i, j = min(h, self.window), min(w, self.window)
        up, left = self.offset if h > i else 0, self.offset if w > j else 0
        x = F.pad(x, (0, 0, 0, -w % j, 0, -h % i)).roll((-up, -left), (2, 3))
        height, width = x.shape[2:4]
        q, k, v = rearrange(
            self.qkv(x), "b t (y i) (x j) (three n d) -> three (b t y x) n (i j) d 1", three=3, n=self.heads, i=i, j=j
        )
        # The product is scaled, not q: the scale stays outside q's quantizer.
        scores = self.scores(self.moveq(q), self.movek(k).transpose(2, 3)) * self.scale  # b' n s s 1
        scores = scores.squeeze(4) + self.bias(i * j)
        if up or left:
            apart = separation(height, width, (i, j), (up, left), x.device)  # windows s s
            scores = (scores.unflatten(0, (b * t, -1)) + apart.unsqueeze(1)).flatten(0, 1)
        mixed = self.mix(scores.softmax(dim=3).unsqueeze(4), v)  # b' n s d 1
        mixed = rearrange(mixed, "(b t y x) n (i j) d 1 -> b t (y i) (x j) (n d)", b=b, t=t, y=height // i, i=i)
        return self.proj(mixed).roll((up, left), (2, 3))[:, :, :h, :w]

    def bias(self, size: int) -> Float[Tensor, "n s s"]:
        """What each head adds to the score of two pixels, by their relative position."""
        return self.relative_position_bias_table[self.relative_position_index[:size, :size]].permute(2, 0, 1)


class TimeAttention(nn.Module):
    """Self-attention over the t frames of each pixel, in c/2 channels.

        attention = softmax(q k^T / sqrt(c/heads) + bias),   output = proj(attention v)

    The scale belongs to c/heads channels per head, though a head has half of them: so the official networks were
    trained. Pixels come last, as in EfficientSCI's attention in time.
    """

    relative_position_index: Int[Tensor, "t t"]

    def __init__(self, dim: int, heads: int, frames: int, shift: bool = False):
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * (dim // 2))
        self.proj = nn.Linear(dim // 2, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(2 * frames - 1, heads))
        self.register_buffer("relative_position_index", relative_positions(frames), persistent=False)
        self.moveq = HeadShift(heads) if shift else nn.Identity()
        self.movek = HeadShift(heads) if shift else nn.Identity()
        self.scores = MatMul()
        self.mix = MatMul()

    def forward(self, x: Float[Tensor, "b t h w c"]) -> Float[Tensor, "b t h w c"]:
        t, h, w = x.shape[1:4]
        q, k, v = rearrange(self.qkv(x), "b t h w (three n d) -> three b n t d (h w)", three=3, n=self.heads)
        scores = self.scores(self.moveq(q), self.movek(k).transpose(2, 3)) * self.scale  # b n t t p
        bias = self.relative_position_bias_table[self.relative_position_index[:t, :t]].permute(2, 0, 1)  # n t t
        mixed = self.mix((scores + bias.unsqueeze(3)).softmax(dim=3), v)  # b n t d p
        return self.proj(rearrange(mixed, "b n t d (h w) -> b t h w (n d)", h=h, w=w))


class GroupingFeedForward(nn.Module):
    """Two halves of the channels, each through residual convolutions, the second half with the first's result.

    y1 = x1 + part1(x1),   z = x2 + y1,   y2 = z + part2(z)
    """

    def __init__(self, width: int):
        super().__init__()
        self.part1, self.part2 = (
            nn.Sequential(
                nn.Conv3d(width, width, 3, padding=1),
                nn.LeakyReLU(inplace=True),
                nn.Conv3d(width, width, 3, padding=1),
            )
            for _ in range(2)
        )

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        first, second = x.chunk(2, dim=1)
        first = first + self.part1(first)
        second = second + first
        return torch.cat([first, second + self.part2(second)], dim=1)


def initial_estimate(
    measurement: Float[Tensor, "b h w"], mask: Float[Tensor, "#b t h w"]
) -> Float[Tensor, "b 1 t h w"]:
    """What the network sees: x + mask * (y - A x) / sum_t mask with x = mask * y, per pixel (official code).

    Where the mask is binary this is mask * y / sum_t mask. A Bayer mosaic needs nothing more: the colours meet
    nowhere in it.
    """
    y, mean = measurement, normalized_measurement(measurement, mask)  # b h w
    return (mask * (y + mean - mask.square().sum(1) * mean).unsqueeze(1)).unsqueeze(1)


def config_from_state_dict(state: dict[str, Tensor]) -> dict[str, int | bool]:
    """Read width, depth, heads, window, frames, colour and Q-SCI's options off the shapes of a state dict.

    Raises:
        ValueError: the keys that decide the architecture are missing.
    """
    block = "layers.0.blocks.0"
    try:
        space = state[f"{block}.attn.relative_position_bias_table"].shape
        return dict(
            dim=state["token_gen.0.weight"].shape[0],
            units=1 + max(int(key.split(".")[1]) for key in state if key.startswith("layers.")),
            color_channels=state["conv2.6.weight"].shape[0],
            frames=(state[f"{block}.time_attn.relative_position_bias_table"].shape[0] + 1) // 2,
            depth=1 + max(int(key.split(".")[3]) for key in state if key.startswith("layers.0.blocks.")),
            heads=space[1],
            window=(isqrt(space[0]) + 1) // 2,
            shift=f"{block}.attn.moveq.bias" in state,
            shortcuts="token_gen_shortcut.0.weight" in state,
        )
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(
            "These weights are not STFormer's: token_gen.0.weight, conv2.6.weight and the position biases of "
            f"{block} are wanted; give the whole state dict of an STFormer checkpoint."
        ) from error
