"""NGswin, a light super-resolution transformer whose windows know their neighbours: a window's n-gram.

[NGswin] Choi, Lee, Yang: "N-Gram in Swin Transformers for Efficient Lightweight Image Super-Resolution", CVPR 2023.
[SwinV2] Liu et al.: "Swin Transformer V2", CVPR 2022: attention by the cosine of query and key, normalization last.

    image -> shallow_extract -> encoder layers at 1/1, 1/2, 1/4 -> bottleneck -> decoder layer -> to_target

Parameter names are the official ones, so official checkpoints load through `bitlens.from_official`.
"""

from math import isqrt, log

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from bitlens.networks.parts import MatMul
from bitlens.networks.swinir import FeedForward
from bitlens.networks.windows import mirror_pad, separation, to_windows, window_positions

MEAN = (0.4485, 0.4375, 0.4045)
"""Of the training images, in R, G, B."""

DEVIATION = {2: (0.2397, 0.2290, 0.2389), 3: (0.2373, 0.2265, 0.2367), 4: (0.2352, 0.2244, 0.2349)}
"""Standard deviation of the low-resolution training images in R, G, B, for each scale."""

NGRAM = 2
"""Windows that see each other, in height and in width [NGswin tab. 6: larger ones do not help]."""

MAX_FACTOR = 100.0
"""Cosines are multiplied with at most this [SwinV2 sec. 3.3]."""


def ngswin(scale: int) -> "NGswin":
    """Build the published network for scale 2, 3 or 4: 998,384 parameters for scale 2.

    >>> sum(p.numel() for p in ngswin(2).parameters())
    998384
    """
    return NGswin(scale)


class NGswin(nn.Module):
    """NGswin of any width, depth and heads.

    Differs: images are padded below and to the right to multiples of four windows with their mirror image, as the
    official test script does, where the official network alone pads zeros. A picture that is one window high or wide at
    the lowest resolution, which the official network cannot take, has that window for its own neighbour.

    Args:
        scale: how many times higher and wider the output is: 2, 3 or 4.
        dim: channels of every layer.
        depths: blocks of the three encoder layers and of the decoder layer.
        heads: attention heads of these four.
        window: height and width of a window.
        hidden: width of the feed-forward networks between their two layers.

    Call:
        `network(image)`: image (b, 3, h, w), RGB in [0, 1], any h and w, gives (b, 3, scale h, scale w), not clipped.

    Raises:
        ValueError: another scale.
    """

    mean: Float[Tensor, "3 1 1"]
    deviation: Float[Tensor, "3 1 1"]

    def __init__(
        self,
        scale: int,
        dim: int = 64,
        depths: tuple[int, ...] | list[int] = (6, 4, 4, 6),
        heads: tuple[int, ...] | list[int] = (6, 4, 4, 6),
        window: int = 8,
        hidden: int = 128,
    ):
        super().__init__()
        if scale not in DEVIATION:
            raise ValueError(f"scale {scale}; wanted 2, 3 or 4, for which NGswin is published: choose one.")
        self.config = dict(scale=scale, dim=dim, depths=[*depths], heads=[*heads], window=window, hidden=hidden)
        self.scale, self.window = scale, window
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION[scale]).view(3, 1, 1), persistent=False)
        self.shallow_extract = nn.ModuleDict({"conv1": nn.Conv2d(3, dim, 3, padding=1)})
        self.encoder_layer1, self.encoder_layer2, self.encoder_layer3, self.decoder_layer1 = (
            Layer(dim, depth, number, window, hidden, inputs, halves)
            for depth, number, inputs, halves in zip(
                depths, heads, (1, 2, 3, 1), (True, True, False, False), strict=True
            )
        )
        self.bottleneck = Bottleneck(dim)
        self.norm = nn.LayerNorm(dim)
        self.to_target = nn.Sequential()
        self.to_target.add_module("before_shuffle", nn.Conv2d(dim, 3 * scale**2, 3, padding=1))
        self.to_target.add_module("shuffler", nn.PixelShuffle(scale))
        self.to_target.add_module("to_origin", nn.Conv2d(3, 3, 3, padding=1))

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        h, w = image.shape[-2:]
        x = (mirror_pad(image, 4 * self.window, edge=True) - self.mean) / self.deviation
        shallow = self.shallow_extract["conv1"](x).permute(0, 2, 3, 1)  # b h' w' c
        masks = [self.mask(shallow.shape[1] >> i, shallow.shape[2] >> i, x.device) for i in range(3)]

        first, down = self.encoder_layer1(shallow, masks[0])
        cascade = torch.cat([max_pool(shallow), down], dim=3)  # b h'/2 w'/2 2c
        second, down = self.encoder_layer2(cascade, masks[1])
        third, _ = self.encoder_layer3(torch.cat([max_pool(cascade), down], dim=3), masks[2])  # b h'/4 w'/4 c
        x = self.bottleneck(shallow, [first, second, third])  # b h' w' c
        x, _ = self.decoder_layer1(x + first, masks[0])
        x = self.to_target((self.norm(x) + shallow).permute(0, 3, 1, 2))  # b 3 scale h' scale w'
        return x[..., : h * self.scale, : w * self.scale] * self.deviation + self.mean

    def mask(self, height: int, width: int, device: torch.device) -> Float[Tensor, "windows s s"]:
        """What keeps pixels of shifted windows apart, at one resolution."""
        shift = self.window // 2
        return separation(height, width, (self.window, self.window), (shift, shift), device)

    @property
    def radius(self) -> None:
        """None: through three resolutions an output pixel depends on hundreds of pixels around it."""
        return None

    @property
    def alignment(self) -> int:
        """A cut that starts at a multiple of this has the windows of the whole picture."""
        return 4 * self.window


class Layer(nn.Module):
    """Blocks at one resolution, each of which also sees what the one before it was given [NGswin sec. 3.2].

    Args:
        dim: channels.
        depth: blocks; the windows of every second one are shifted by half a window.
        heads: attention heads.
        window: height and width of a window.
        hidden: width of the feed-forward networks.
        inputs: the input is this many times `dim` wide; a linear layer merges it if that is more than once.
        halves: whether the resolution is halved for the next layer.
    """

    def __init__(self, dim: int, depth: int, heads: int, window: int, hidden: int, inputs: int, halves: bool):
        super().__init__()
        self.across_cascade_proj = nn.Linear(inputs * dim, dim) if inputs > 1 else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(dim, heads, window, window // 2 if i % 2 else 0, hidden) for i in range(depth)
        )
        self.downsample = PatchMerging(dim) if halves else None

    def forward(
        self, x: Float[Tensor, "b h w c"], apart: Float[Tensor, "windows s s"]
    ) -> tuple[Float[Tensor, "b h w d"], Float[Tensor, "b h2 w2 d"]]:
        x = self.across_cascade_proj(x)
        before = None
        for block in self.blocks:
            given = x if before is None else x + before
            x, before = block(given, apart), given
        return x, x if self.downsample is None or before is None else self.downsample(x + before)


class PatchMerging(nn.Module):
    """Half the resolution: the four pixels of each 2x2 block, normalized together, become one."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h2 w2 c"]:
        return self.reduction(self.norm(rearrange(x, "b (h i) (w j) c -> b h w (i j c)", i=2, j=2)))


class Block(nn.Module):
    """Attention within windows that know their neighbours, then a feed-forward network; normalized after each.

    x = x + norm1(attention(x + context)),   x = x + norm2(ffn(x))
    """

    def __init__(self, dim: int, heads: int, window: int, offset: int, hidden: int):
        super().__init__()
        self.window, self.offset = window, offset
        self.ngram_window_partition = nn.ModuleDict({"ngram_context": NGramContext(dim, heads, window)})
        self.attn = WindowAttention(dim, heads, window)
        self.norm1 = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, hidden)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "b h w c"], apart: Float[Tensor, "windows s s"]) -> Float[Tensor, "b h w c"]:
        context = self.ngram_window_partition["ngram_context"](x)  # b h/window w/window c
        sizes = dict(y=context.shape[1], x=context.shape[2], i=self.window, j=self.window)
        y = rearrange(x, "b (y i) (x j) c -> b y i x j c", i=self.window, j=self.window)
        y = rearrange(y + context[:, :, None, :, None], "b y i x j c -> b (y i) (x j) c")
        y = y.roll((-self.offset, -self.offset), (1, 2)) if self.offset else y
        y = self.attn(to_windows(y, self.window), apart if self.offset else None)  # windows s c
        y = rearrange(y, "(b y x) (i j) c -> b (y i) (x j) c", **sizes)
        y = y.roll((self.offset, self.offset), (1, 2)) if self.offset else y
        x = x + self.norm1(y)
        return x + self.norm2(self.ffn(x))


class CosineAttention(nn.Module):
    """What both attentions have [SwinV2 eq. 2].

    attention = softmax(factor cos(q, k) + bias),   output = proj(attention v)

    Args:
        dim: channels; the heads have dim // heads each, so that there may be fewer inside.
        heads: attention heads.
        window: height and width of a window.
    """

    relative_position_index: Int[Tensor, "s s"]

    def __init__(self, dim: int, heads: int, window: int):
        super().__init__()
        inside = dim // heads * heads
        self.heads = heads
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), log(10)))
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", window_positions(window), persistent=False)
        self.qkv = nn.Linear(dim, 3 * inside)
        self.proj = nn.Linear(inside, dim)
        self.scores = MatMul()
        self.mix = MatMul()

    def attention(self, q: Float[Tensor, "w n s d p"], k: Float[Tensor, "w n s d p"]) -> Float[Tensor, "w n s s p"]:
        """The scores before the softmax."""
        cosine = self.scores(F.normalize(q, dim=3), F.normalize(k, dim=3).transpose(2, 3))
        factor = self.logit_scale.clamp(max=log(MAX_FACTOR)).exp().unsqueeze(3)  # n 1 1 1
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)  # n s s
        return cosine * factor + bias.unsqueeze(3)


class WindowAttention(CosineAttention):
    """Self-attention among the pixels of each window."""

    def forward(
        self, x: Float[Tensor, "windows s c"], apart: Float[Tensor, "some s s"] | None
    ) -> Float[Tensor, "windows s c"]:
        q, k, v = rearrange(self.qkv(x), "w s (three n d) -> three w n s d 1", three=3, n=self.heads)
        scores = self.attention(q, k).squeeze(4)  # w n s s
        if apart is not None:
            scores = (scores.unflatten(0, (-1, len(apart))) + apart.unsqueeze(1)).flatten(0, 1)
        mixed = self.mix(scores.softmax(dim=3).unsqueeze(4), v)  # w n s d 1
        return self.proj(rearrange(mixed, "w n s d 1 -> w s (n d)"))


class NeighbourAttention(CosineAttention):
    """Self-attention among each 2x2 windows, of which the mean is kept; windows come last, as they are many."""

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h1 w1 c"]:
        qkv = self.qkv(x)  # b h w 3 n d
        h, w = x.shape[1] - 1, x.shape[2] - 1
        each = torch.stack([qkv[:, i : i + h, j : j + w] for i in range(NGRAM) for j in range(NGRAM)])  # s b h1 w1 3nd
        q, k, v = rearrange(each, "s b h w (three n d) -> three b n s d (h w)", three=3, n=self.heads)
        mixed = self.mix(self.attention(q, k).softmax(dim=3), v).mean(2)  # b n d p
        return self.proj(rearrange(mixed, "b n d (h w) -> b h w (n d)", h=h))  # as proj is linear, after the mean


class NGramContext(nn.Module):
    """What each window learns from its neighbours: below and to the right, above and to the left [NGswin fig. 3].

    Args:
        dim: channels.
        heads: attention heads.
        window: height and width of a window.
    """

    def __init__(self, dim: int, heads: int, window: int):
        super().__init__()
        self.unigram_embed = nn.Conv2d(dim, dim // 2, window, stride=window, groups=dim // 2)
        self.ngram_attn = NeighbourAttention(dim // 2, heads, NGRAM)
        self.merge = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b y x c"]:
        words = self.unigram_embed(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # b y x c/2
        height, width = words.shape[1:3]
        # The row and column beyond an edge mirror the last but one.
        below = torch.cat([words, words[:, max(height - 2, 0), None]], dim=1)
        below = torch.cat([below, below[:, :, max(width - 2, 0), None]], dim=2)
        above = torch.cat([words[:, min(1, height - 1), None], words], dim=1)
        above = torch.cat([above[:, :, min(1, width - 1), None], above], dim=2)
        context = self.ngram_attn(torch.cat([below, above]))  # 2b y x c/2
        context = torch.cat(context.chunk(2), dim=3)  # b y x c
        return self.merge(context.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Bottleneck(nn.Module):
    """The encoder's outputs, shuffled to full resolution and merged by a separable convolution [NGswin alg. 1]."""

    def __init__(self, dim: int):
        super().__init__()
        width = dim + dim // 4 + dim // 16
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.pointwise = nn.Linear(width, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, shallow: Float[Tensor, "b h w c"], outputs: list[Float[Tensor, "b _ _ c"]]
    ) -> Float[Tensor, "b h w c"]:
        merged = []
        for i, output in enumerate(outputs):
            shallow = max_pool(shallow) if i else shallow
            y = output + F.leaky_relu(shallow)
            merged.append(F.pixel_shuffle(y.permute(0, 3, 1, 2), 2**i))  # b c/4^i h w
        y = F.gelu(self.depthwise(torch.cat(merged, dim=1)))
        return self.norm(self.pointwise(y.permute(0, 2, 3, 1)))


def max_pool(x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h2 w2 c"]:
    """The largest of each 2x2 pixels."""
    return F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


def config_from_state_dict(state: dict[str, Tensor]) -> dict[str, int | list[int]]:
    """Read scale, width, depths, heads and window off the shapes of a state dict.

    Raises:
        ValueError: the keys that decide the architecture are missing.
    """
    layers = ("encoder_layer1", "encoder_layer2", "encoder_layer3", "decoder_layer1")
    try:
        tables = [state[f"{layer}.blocks.0.attn.relative_position_bias_table"].shape for layer in layers]
        blocks = [[key.split(".")[2] for key in state if key.startswith(f"{layer}.blocks.")] for layer in layers]
        return dict(
            scale=isqrt(state["to_target.before_shuffle.weight"].shape[0] // 3),
            dim=state["shallow_extract.conv1.weight"].shape[0],
            depths=[1 + max(int(number) for number in numbers) for numbers in blocks],
            heads=[table[1] for table in tables],
            window=(isqrt(tables[0][0]) + 1) // 2,
            hidden=state["encoder_layer1.blocks.0.ffn.fc1.weight"].shape[0],
        )
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(
            "These weights are not NGswin's: shallow_extract.conv1.weight, to_target.before_shuffle.weight and the "
            f"blocks of {', '.join(layers)} are wanted; give the whole state dict of an NGswin checkpoint."
        ) from error
