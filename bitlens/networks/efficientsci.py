"""EfficientSCI, the video-SCI reconstruction network, with Q-SCI's additions and Q-ViT's normalization as options.

[EfficientSCI] Wang, Cao, Yuan: "EfficientSCI: Densely Connected Network with Space-time Factorization for
Large-scale Video Snapshot Compressive Imaging", CVPR 2023. [Q-SCI] Cao et al., ECCV 2024, sections 3.2-3.4.
[Q-ViT] Li et al., NeurIPS 2022.

    measurement, mask -> initial estimate -> fem -> ResDNet x units -> up_conv, PixelShuffle -> vrm -> video

Parameter names are the official ones, so official float checkpoints load as they are. Q-SCI's official low-bit
code names the same layers differently; `bitlens.from_official` maps those names onto these.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from bitlens.operators import normalized_measurement

SIZES = {
    "t": dict(in_ch=16, units=8, group_num=2),
    "s": dict(in_ch=32, units=8, group_num=2),
    "b": dict(in_ch=64, units=8, group_num=4),
    "l": dict(in_ch=64, units=12, group_num=4),
}
"""The four published sizes: 0.95, 3.78, 8.82 and 12.39 million parameters (grey)."""


def efficientsci(
    size: str, *, colour: bool = False, shift: bool = False, shortcuts: bool = False, normalize: bool = False
) -> "EfficientSCI":
    """Build one of the published sizes, `"t"`, `"s"`, `"b"` or `"l"`.

    >>> sum(p.numel() for p in efficientsci("t").parameters())
    947457

    Raises:
        ValueError: the size is not one of the four.
    """
    if size not in SIZES:
        raise ValueError(f"EfficientSCI has no size {size!r}; the published ones are {', '.join(SIZES)}: choose one.")
    options = dict(shift=shift, shortcuts=shortcuts, normalize=normalize)
    return EfficientSCI(**SIZES[size], color_ch=3 if colour else 1, **options)


class EfficientSCI(nn.Module):
    """EfficientSCI of any width and depth.

    Args:
        in_ch: width c of the first layer; the trunk is 4c wide at half the resolution.
        units: number of ResDNet blocks.
        group_num: channel groups of a ResDNet block, each with its own CFormer.
        color_ch: 1 for grey video, 3 for RGB video from a Bayer mosaic.
        shift: learn one shift per head on query and key before they are quantized [Q-SCI sec. 3.4].
        shortcuts: add the parallel 1x1x1 branches of Q-SCI's feature extraction and video reconstruction
            modules [Q-SCI sec. 3.2, 3.3].
        normalize: normalize query and key over the channels of each head before they are quantized [Q-ViT].

    Call:
        `network(measurement, mask)`: measurement (b, h, w), the plain sum over time of mask * frame, and mask
        (1 or b, t, h, w) give the video (b, color_ch, t, h, w) in [0, 1] (not clipped). Any t; odd h or w is
        padded by one mirrored row or column inside.
    """

    def __init__(
        self,
        in_ch: int = 64,
        units: int = 8,
        group_num: int = 4,
        color_ch: int = 1,
        *,
        shift: bool = False,
        shortcuts: bool = False,
        normalize: bool = False,
    ):
        super().__init__()
        c = in_ch
        self.config = dict(
            in_ch=in_ch,
            units=units,
            group_num=group_num,
            color_ch=color_ch,
            shift=shift,
            shortcuts=shortcuts,
            normalize=normalize,
        )
        self.fem = nn.Sequential(
            nn.Conv3d(1, c, (3, 7, 7), padding=(1, 3, 3)),
            nn.LeakyReLU(inplace=True),
            nn.Conv3d(c, 2 * c, 3, padding=1),
            nn.LeakyReLU(inplace=True),
            nn.Conv3d(2 * c, 4 * c, 3, stride=(1, 2, 2), padding=1),
            nn.LeakyReLU(inplace=True),
        )
        self.resdnet_list = nn.ModuleList(ResDNet(4 * c, group_num, shift, normalize) for _ in range(units))
        self.up_conv = nn.Conv3d(4 * c, 8 * c, 1)
        self.vrm = nn.Sequential(
            nn.Conv3d(2 * c, 2 * c, 3, padding=1),
            nn.LeakyReLU(inplace=True),
            nn.Conv3d(2 * c, c, 1),
            nn.LeakyReLU(inplace=True),
            nn.Conv3d(c, color_ch, 3, padding=1),
        )
        if shortcuts:
            self.fem_shortcut = nn.ModuleList([nn.Conv3d(1, c, 1), nn.Conv3d(c, 2 * c, 1), nn.Conv3d(8 * c, 4 * c, 1)])
            self.vrm_shortcut = nn.ModuleList(
                [nn.Conv3d(2 * c, 2 * c, 1), nn.Conv3d(2 * c, c, 1), nn.Conv3d(c, color_ch, 1)]
            )

    def forward(
        self, measurement: Float[Tensor, "b h w"], mask: Float[Tensor, "#b t h w"]
    ) -> Float[Tensor, "b c t h w"]:
        h, w = measurement.shape[-2:]
        if mask.shape[-2:] != (h, w):
            raise ValueError(
                f"The measurement is {h}x{w} but the mask is {mask.shape[-2]}x{mask.shape[-1]}: "
                "give both at the same size, or crop both explicitly."
            )
        x = initial_estimate(measurement, mask)  # b 1 t h w
        if h % 2 or w % 2:
            x = F.pad(x.squeeze(1), (0, w % 2, 0, h % 2), mode="replicate").unsqueeze(1)
        x = self.extract_features(x)  # b 4c t h/2 w/2
        for block in self.resdnet_list:
            x = block(x)
        x = pixel_shuffle(self.up_conv(x))  # b 2c t h w
        return self.reconstruct_video(x)[..., :h, :w]

    def with_options(self, **options: bool) -> "EfficientSCI":
        """A copy with other options (`shift`, `shortcuts`, `normalize`); those that are not named stay.

        With Q-SCI's additions it starts out computing almost what this network computes. Normalized queries and
        keys do not: nothing that Q-ViT adds can be the identity, and training has to find its way back.

        Shifts start at zero. Shortcuts start small, but for the last one: it takes over the centre tap of the last
        convolution, whose sum with it is linear, so that the strongest weights of the network are 8-bit ones.
        """
        network = EfficientSCI(**{**self.config, **options})  # type: ignore[arg-type]
        network.load_state_dict(self.state_dict(), strict=False)
        if network.config["shortcuts"] and not self.config["shortcuts"]:
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for shortcut in [*network.fem_shortcut, *list(network.vrm_shortcut)[:2]]:
                    weight, bias = shortcut.get_parameter("weight"), shortcut.get_parameter("bias")
                    spread = 0.1 / weight.shape[1] ** 0.5
                    weight.copy_(torch.randn(weight.shape, generator=generator) * spread)
                    bias.zero_()
                last, side = network.vrm[4].get_parameter("weight"), network.vrm_shortcut[2]
                side.get_parameter("weight").copy_(last[:, :, 1:2, 1:2, 1:2])
                side.get_parameter("bias").zero_()
                last[:, :, 1, 1, 1] = 0.0
        return network.train(self.training)

    def compile_parts(self) -> None:
        """Compile FEM, VRM and the blocks in place, channels last; the equal blocks share one compilation."""
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.extract_features = torch.compile(self.extract_features)
        self.reconstruct_video = torch.compile(self.reconstruct_video)
        for block in self.resdnet_list:
            block.compile()

    def extract_features(self, x: Float[Tensor, "b 1 t h w"]) -> Float[Tensor, "b c4 t h2 w2"]:
        """The feature extraction module (FEM), with Q-SCI's shortcut beside every convolution if asked for.

        [Q-SCI sec. 3.2] adds LeakyReLU(conv_1x1x1(x)) to LeakyReLU(conv(x)); where the main branch strides, the
        shortcut folds each 2x2 block of pixels into channels (pixel-unshuffle) instead.
        """
        if not self.config["shortcuts"]:
            return self.fem(x)
        for i, shortcut in enumerate(self.fem_shortcut):
            main = self.fem[2 * i + 1](self.fem[2 * i](x))
            side = shortcut(pixel_unshuffle(x) if i == 2 else x)
            x = main + F.leaky_relu(side)
        return x

    def reconstruct_video(self, x: Float[Tensor, "b c2 t h w"]) -> Float[Tensor, "b c t h w"]:
        """The video reconstruction module (VRM), with Q-SCI's shortcuts if asked for [Q-SCI sec. 3.3]."""
        if not self.config["shortcuts"]:
            return self.vrm(x)
        for i in range(2):
            main = self.vrm[2 * i + 1](self.vrm[2 * i](x))
            x = main + F.leaky_relu(self.vrm_shortcut[i](x))
        return self.vrm[4](x) + self.vrm_shortcut[2](x)


class ResDNet(nn.Module):
    """Residual block with dense connections between channel groups [EfficientSCI fig. 3].

    Group i enters its CFormer after a 1x1x1 convolution has merged it with the outputs of groups 0 .. i-1.
    """

    def __init__(self, dim: int, group_num: int, shift: bool = False, normalize: bool = False):
        super().__init__()
        width = dim // group_num
        self.cformer_list = nn.ModuleList(CFormer(width, shift, normalize) for _ in range(group_num))
        self.dense_conv = nn.ModuleList(
            nn.Sequential(nn.Conv3d(width * (i + 1), width, 1), nn.LeakyReLU(inplace=True)) for i in range(1, group_num)
        )
        self.last_conv = nn.Conv3d(dim, dim, 1)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        groups = torch.chunk(x, len(self.cformer_list), dim=1)
        done = [self.cformer_list[0](groups[0])]
        for group, cformer, dense in zip(groups[1:], list(self.cformer_list)[1:], self.dense_conv, strict=True):
            done.append(cformer(dense(torch.cat([*done, group], dim=1))))
        return self.last_conv(torch.cat(done, dim=1)) + x


class CFormer(nn.Module):
    """Space branch (convolutions) and time branch (attention) in parallel, then a feed-forward network."""

    def __init__(self, dim: int, shift: bool = False, normalize: bool = False):
        super().__init__()
        self.scb = nn.Sequential(
            nn.Conv3d(dim, dim, (1, 3, 3), padding=(0, 1, 1)),
            nn.LeakyReLU(inplace=True),
            nn.Conv3d(dim, dim, (1, 3, 3), padding=(0, 1, 1)),
        )
        self.tsab = TemporalAttention(dim, shift=shift, normalize=normalize)
        self.ffn = nn.Sequential(nn.Conv3d(dim, dim, 3, padding=1), nn.LeakyReLU(inplace=True), nn.Conv3d(dim, dim, 1))

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        x = self.scb(x) + self.tsab(x) + x
        return self.ffn(x) + x


class TemporalAttention(nn.Module):
    """Self-attention over the t frames of each pixel, in c/2 channels and four heads [EfficientSCI sec. 3.3].

        attention = softmax(q k^T / sqrt(d)),   output = proj(attention v)

    With `shift`, q and k become q + beta_q and k + beta_k, one learned scalar a head [Q-SCI eq. 8]; with
    `normalize`, they are normalized before that [Q-ViT].
    Pixels come last, where the processor's vector lanes are: a product over 8 frames and 4 or 8 channels is far
    too small for a matrix kernel.
    """

    def __init__(self, dim: int, heads: int = 4, shift: bool = False, normalize: bool = False):
        super().__init__()
        inner = dim // 2
        self.heads = heads
        self.scale = (inner // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * inner, bias=False)
        self.proj = nn.Linear(inner, dim)
        self.norm_q = HeadNorm(inner // heads) if normalize else nn.Identity()
        self.norm_k = HeadNorm(inner // heads) if normalize else nn.Identity()
        self.moveq = HeadShift(heads) if shift else nn.Identity()
        self.movek = HeadShift(heads) if shift else nn.Identity()
        self.scores = MatMul()
        self.mix = MatMul()

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        h, w = x.shape[-2:]
        qkv = self.qkv(rearrange(x, "b c t h w -> b t h w c"))
        q, k, v = rearrange(qkv, "b t h w (three n d) -> three b n t d (h w)", three=3, n=self.heads)
        q, k = self.moveq(self.norm_q(q)), self.movek(self.norm_k(k))
        # The product is scaled, not q: the scale stays outside q's quantizer.
        scores = self.scores(q, k.transpose(2, 3)) * self.scale  # b n t t p
        mixed = self.mix(scores.softmax(dim=3), v)  # b n t d p
        mixed = self.proj(rearrange(mixed, "b n t d (h w) -> b t h w (n d)", h=h, w=w))
        return rearrange(mixed, "b t h w c -> b c t h w")


class HeadShift(nn.Module):
    """Adds one learned scalar per head [Q-SCI eq. 8]; the official code calls the parameter `bias` too."""

    def __init__(self, heads: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, heads, 1, 1))

    def forward(self, x: Float[Tensor, "b n t d p"]) -> Float[Tensor, "b n t d p"]:
        return x + self.bias.unsqueeze(-1)


class HeadNorm(nn.Module):
    """Normalizes the d channels of a token in a head [Q-ViT, information rectification].

    gamma (x - mean(x)) / sqrt(var(x) + 1e-5) + beta        gamma, beta: one per channel, shared by the heads
    """

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "b n t d p"]) -> Float[Tensor, "b n t d p"]:
        return F.layer_norm(x.transpose(3, 4), self.weight.shape, self.weight, self.bias).transpose(3, 4)


class MatMul(nn.Module):
    """One small matrix product per pixel, out[i, j] = sum_k left[i, k] * right[k, j], pixels in the last axis.

    A module, so that it can be quantized, lowered and counted like every layer.
    """

    def forward(
        self, left: Float[Tensor, "b n i k p"], right: Float[Tensor, "b n k j p"]
    ) -> Float[Tensor, "b n i j p"]:
        if torch.is_grad_enabled():  # one expression: the compiler fuses it, and its gradients, into single loops
            return (left.unsqueeze(4) * right.unsqueeze(2)).sum(3)
        return pixel_product(left, right)


def pixel_product(left: Float[Tensor, "b n i k p"], right: Float[Tensor, "b n k j p"]) -> Float[Tensor, "b n i j p"]:
    """sum_k left[i, k] * right[k, j], accumulated term by term so that no (i, k, j) array is ever stored."""
    total = left[:, :, :, 0, None] * right[:, :, None, 0]
    for k in range(1, left.shape[3]):
        total = total + left[:, :, :, k, None] * right[:, :, None, k]
    return total


def initial_estimate(
    measurement: Float[Tensor, "b h w"], mask: Float[Tensor, "#b t h w"]
) -> Float[Tensor, "b 1 t h w"]:
    """What the network sees: e + mask * e with e = measurement / sum_t mask [EfficientSCI eq. 5]."""
    estimate = normalized_measurement(measurement, mask).unsqueeze(1)  # b 1 h w
    return (estimate + mask * estimate).unsqueeze(1)


def pixel_shuffle(x: Float[Tensor, "b c4 t h w"]) -> Float[Tensor, "b c t h2 w2"]:
    """PixelShuffle(2) of every frame."""
    return rearrange(x, "b (c i j) t h w -> b c t (h i) (w j)", i=2, j=2)


def pixel_unshuffle(x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c4 t h2 w2"]:
    """PixelUnshuffle(2) of every frame."""
    return rearrange(x, "b c t (h i) (w j) -> b (c i j) t h w", i=2, j=2)


def config_from_state_dict(state: dict[str, Tensor]) -> dict[str, int | bool]:
    """Read width, depth, groups, colour and options off the shapes of a state dict (bitlens names).

    Raises:
        ValueError: the keys that decide the architecture are missing.
    """
    try:
        in_ch = state["fem.0.weight"].shape[0]
        color_ch = state["vrm.4.weight"].shape[0]
        units = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("resdnet_list."))
        group_num = 1 + max(int(key.split(".")[3]) for key in state if key.startswith("resdnet_list.0.cformer_list."))
    except (KeyError, ValueError) as error:
        raise ValueError(
            "These weights are not EfficientSCI's: fem.0.weight, vrm.4.weight and resdnet_list.* are wanted; "
            "give the state dict of an EfficientSCI or Q-SCI checkpoint."
        ) from error
    return dict(
        in_ch=in_ch,
        units=units,
        group_num=group_num,
        color_ch=color_ch,
        shift="resdnet_list.0.cformer_list.0.tsab.moveq.bias" in state,
        shortcuts="fem_shortcut.0.weight" in state,
        normalize="resdnet_list.0.cformer_list.0.tsab.norm_q.weight" in state,
    )


def initialize_copy(
    network: EfficientSCI,
    measurement: Float[Tensor, "b h w"],
    mask: Float[Tensor, "#b t h w"],
    video: Float[Tensor, "b c t h w"],
) -> None:
    """Start training from a network that already returns a blurred video, instead of from noise.

    Residual blocks start as the identity. FEM, up_conv and VRM mix their channels at the central taps, with random
    weights and biases, so that every channel carries the scene in another way; the last convolution is the
    least-squares solution for the video. The scene then travels in all channels: a start that copies it through
    one channel trains to the same quality, but leaves the network with a single wire that 4 bits cut.

    Differs: the official code trains from PyTorch's default initialization. This saves the first thousand steps;
    the function class is the same.
    """
    fem, vrm = network.fem, network.vrm
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, ResDNet):
                for parameter in module.last_conv.parameters():
                    nn.init.zeros_(parameter)
        for conv in (fem[0], fem[2], fem[4], vrm[0]):
            conv.get_parameter("weight").mul_(0.3)
        first, bias = fem[0].get_parameter("weight"), fem[0].get_parameter("bias")
        sign = torch.where(torch.rand(len(first)) < 0.5, -1.0, 1.0) * (0.5 + torch.rand(len(first)))
        first[:, 0, 1, 3, 3] += sign
        bias.copy_(-2 * sign * torch.rand(len(first)))  # the estimate e + mask * e lies in [0, 2]
        for conv in (fem[2], vrm[0]):
            tap = conv.get_parameter("weight")[:, :, 1, 1, 1]
            tap += torch.randn_like(tap) / tap.shape[1] ** 0.5
        taps = fem[4].get_parameter("weight")[:, :, 1, 1:, 1:]
        taps += torch.randn_like(taps) / (4 * taps.shape[1]) ** 0.5
        for conv in (network.up_conv, vrm[2]):
            nn.init.normal_(conv.get_parameter("weight"), std=(2 / conv.get_parameter("weight").shape[1]) ** 0.5)
        x = pixel_shuffle(network.up_conv(fem(initial_estimate(measurement, mask))))
        fit_convolution(vrm[4], vrm[:4](x), video)


def fit_convolution(conv: nn.Module, inputs: Float[Tensor, "b c t h w"], target: Float[Tensor, "b o t h w"]) -> None:
    """Set a 3x3x3 convolution to the least-squares map from `inputs` to `target`."""
    weight, bias = conv.get_parameter("weight"), conv.get_parameter("bias")
    rows = F.pad(inputs, (1,) * 6).unfold(2, 3, 1).unfold(3, 3, 1).unfold(4, 3, 1)  # b c t h w 3 3 3
    rows = rearrange(rows, "b c t h w i j k -> (b t h w) (c i j k)").double()
    rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
    square = rows.T @ rows
    square += 1e-4 * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
    solution = torch.linalg.solve(square, rows.T @ rearrange(target, "b o t h w -> (b t h w) o").double())
    weight.copy_(solution[:-1].T.reshape(weight.shape))
    bias.copy_(solution[-1])
