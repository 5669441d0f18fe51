"""EfficientSCI, the video-SCI reconstruction network, with Q-SCI's additions and Q-ViT's normalization as options.

[EfficientSCI] Wang, Cao, Yuan: "EfficientSCI: Densely Connected Network with Space-time Factorization for
Large-scale Video Snapshot Compressive Imaging", CVPR 2023. [Q-SCI] Cao et al., ECCV 2024, sections 3.2-3.4.
[Q-ViT] Li et al., NeurIPS 2022.

    measurement, mask -> initial estimate -> fem -> ResDNet x units -> up_conv, PixelShuffle -> vrm -> video

Parameter names are the official ones, so official float checkpoints load as they are. Q-SCI's official low-bit
code names the same layers differently; `bitlens.from_official` maps those names onto these.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from bitlens.networks.memory import Memory
from bitlens.networks.parts import HeadNorm, HeadShift, MatMul, pixel_shuffle, start_shortcuts, with_shortcuts
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


def untrained(size: str, frames: int) -> "EfficientSCI":
    """Where training begins: a network of that size that returns its input estimate, for any number of frames."""
    network = efficientsci(size)
    initialize_identity(network)
    return network


class EfficientSCI(nn.Module):
    """EfficientSCI of any width and depth.

    Args:
        in_ch: width c of the first layer; the trunk is 4c wide at half the resolution.
        units: number of ResDNet blocks.
        group_num: channel groups of a ResDNet block, each with its own CFormer.
        color_ch: 1 for grey video, 3 for RGB video from a Bayer mosaic.
        shift: learn one shift per head on query and key before they are quantized [Q-SCI sec. 3.4].
        shortcuts: add the parallel 1x1x1 branches of Q-SCI's feature extraction and video reconstruction
            modules [Q-SCI sec. 3.2, 3.3]; "fem": of feature extraction alone [Q-SCI tab. 4].
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
        shortcuts: bool | Literal["fem"] = False,
        normalize: bool = False,
    ):
        super().__init__()
        if shortcuts not in (False, True, "fem"):
            raise ValueError(
                f"shortcuts={shortcuts!r} came; wanted False, True, or 'fem' for feature extraction alone; choose one"
            )
        c = in_ch
        self.config: dict[str, Any] = dict(
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
        if shortcuts is True:
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

    @property
    def radius(self) -> int:
        """How far away, in pixels, a measured pixel may lie that an output pixel depends on, odd rows the farthest.

        FEM sees 5 pixels around one of the trunk's, every CFormer of a block 3 of the trunk's, VRM 2.
        """
        trunk = 3 * self.config["group_num"] * self.config["units"]
        return 5 + 2 * trunk + 3

    @property
    def alignment(self) -> int:
        """A cut that starts at a multiple of this is computed as it is within the whole picture: FEM's stride."""
        return 2

    @property
    def memory(self) -> Memory:
        """What it takes while it runs: at its busiest, FEM or VRM, some maps of 2c channels in full resolution.

        Attention holds (t x t) scores for each pixel and head; of all channels of a group where OpenVINO expands them.
        """
        c = self.config["in_ch"]
        group = 4 * c // self.config["group_num"]
        needs = {
            "torch": (60.0 * c, 8.0),
            "low-bit": (70.0 * c, 24.0),
            "openvino": (32.0 * c, 1.0 * group),
            "onnxruntime": (
                270.0 * c,
                0.0,
            ),  # at 8 bits, sums of 32 bits beside; float: 63 c
            "native": (11.0 * c, 0.0),  # planned: at most 10.8 c (-B with shortcuts)
        }
        return Memory(needs, volumes=((c, 1), (2 * c, 1), (group, 2)))

    def with_options(self, **options: bool | str) -> "EfficientSCI":
        """A copy with other options (`shift`, `shortcuts`, `normalize`); those that are not named stay.

        With Q-SCI's additions it starts out computing almost what this network computes. Normalized queries and
        keys do not: nothing that Q-ViT adds can be the identity, and training has to find its way back.

        Shifts start at zero, shortcuts where `start_shortcuts` puts them.
        """
        network = EfficientSCI(**{**self.config, **options})  # type: ignore[arg-type]
        network.load_state_dict(self.state_dict(), strict=False)
        if network.config["shortcuts"] and not self.config["shortcuts"]:
            start_shortcuts(list(network.fem), network.fem_shortcut)
        if network.config["shortcuts"] is True and self.config["shortcuts"] is not True:
            start_shortcuts(list(network.vrm), network.vrm_shortcut)
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
        """The feature extraction module (FEM), with Q-SCI's shortcuts if asked for [Q-SCI sec. 3.2]."""
        return with_shortcuts([*self.fem], self.fem_shortcut, x) if self.config["shortcuts"] else self.fem(x)

    def reconstruct_video(self, x: Float[Tensor, "b c2 t h w"]) -> Float[Tensor, "b c t h w"]:
        """The video reconstruction module (VRM), with Q-SCI's shortcuts if asked for [Q-SCI sec. 3.3]."""
        return with_shortcuts([*self.vrm], self.vrm_shortcut, x) if self.config["shortcuts"] is True else self.vrm(x)


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


def initial_estimate(
    measurement: Float[Tensor, "b h w"], mask: Float[Tensor, "#b t h w"]
) -> Float[Tensor, "b 1 t h w"]:
    """What the network sees: e + mask * e with e = measurement / sum_t mask [EfficientSCI eq. 5]."""
    estimate = normalized_measurement(measurement, mask).unsqueeze(1)  # b 1 h w
    return (estimate + mask * estimate).unsqueeze(1)


def config_from_state_dict(state: dict[str, Tensor]) -> dict[str, int | bool | str]:
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
        shortcuts="vrm_shortcut.0.weight" in state or ("fem" if "fem_shortcut.0.weight" in state else False),
        normalize="resdnet_list.0.cformer_list.0.tsab.norm_q.weight" in state,
    )


def initialize_identity(network: EfficientSCI) -> None:
    """Start training from a network that returns its input estimate, instead of from noise.

    One path of delta kernels carries the input through FEM, up_conv and VRM (every 2x2 block of pixels rides in
    four trunk channels), and the last layer of every residual branch starts at zero. Everything else keeps its
    random initialization, so all layers learn from the first step.

    Differs: the official code trains from PyTorch's default initialization. This saves the first thousands of
    steps, in which the network only learns to copy; the function class is the same.
    """
    for module in network.modules():
        if isinstance(module, CFormer):
            for branch in (module.scb[2], module.ffn[2], module.tsab.proj):
                set_zero(branch)
        elif isinstance(module, ResDNet):
            set_zero(module.last_conv)
    set_delta(network.fem[0], 0, 0, (1, 3, 3))
    set_delta(network.fem[2], 0, 0, (1, 1, 1))
    for phase in range(4):
        i, j = divmod(phase, 2)
        set_delta(network.fem[4], phase, 0, (1, 1 + i, 1 + j))
        set_delta(network.up_conv, phase, phase, (0, 0, 0))
    set_delta(network.vrm[0], 0, 0, (1, 1, 1))
    set_delta(network.vrm[2], 0, 0, (0, 0, 0))
    for channel in range(network.config["color_ch"]):
        set_delta(network.vrm[4], channel, 0, (1, 1, 1), gain=1 / 1.5)  # e + mask * e is 1.5 e on average


@torch.no_grad()
def widened(network: EfficientSCI, factor: int, seed: int = 0) -> EfficientSCI:
    """A float network with `factor` times the channels that computes the same [Net2Net].

    Every channel becomes `factor` neighbours with the same values, whose weights further on add up to the old one.
    They do so in random shares, not in equal ones: copies that were alike in everything would be trained alike.

    Source: [Net2Net] Chen, Goodfellow, Shlens: "Net2Net: Accelerating Learning via Knowledge Transfer", ICLR 2016.

    Raises:
        ValueError: the network has Q-SCI's or Q-ViT's additions or grids (widen it before they are made).
    """
    wide = EfficientSCI(**{**network.config, "in_ch": factor * network.config["in_ch"]})
    generator = torch.Generator().manual_seed(seed)
    state = network.state_dict()
    added = [name for name in ("shift", "shortcuts", "normalize") if network.config[name]]
    added += ["grids"] if state.keys() != wide.state_dict().keys() else []
    if added:
        raise ValueError(f"the network has {' and '.join(added)}; wanted a plain one; widen it before quantizing")
    for name, new in wide.state_dict().items():
        old = state[name]
        if old.shape[0] != new.shape[0]:
            block = 4 if name.startswith("up_conv") else 1  # the four pixels that PixelShuffle makes of a channel
            old = old.unflatten(0, (-1, block)).repeat_interleave(factor, dim=0).flatten(0, 1)
        if old.ndim > 1 and old.shape[1] != new.shape[1]:
            shares = 1 / factor + torch.randn(*old.shape[:2], factor, generator=generator) * 0.5 / factor
            shares += (1 - shares.sum(2, keepdim=True)) / factor
            old = torch.einsum("oi...,oif->oif...", old, shares).flatten(1, 2)
        if name.endswith("qkv.weight"):  # scores are divided by the root of the head's width, which has grown
            old[: len(old) // 3] *= factor**-0.5
        new.copy_(old)
    return wide.train(network.training)


def set_zero(layer: nn.Module) -> None:
    """Make a layer return zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def set_delta(conv: nn.Module, output: int, source: int, tap: tuple[int, int, int], gain: float = 1.0) -> None:
    """Make one output channel of a convolution copy one input channel, `gain` times, at one tap."""
    weight, bias = conv.get_parameter("weight"), conv.get_parameter("bias")
    with torch.no_grad():
        weight[output] = 0.0
        weight[(output, source, *tap)] = gain
        bias[output] = 0.0
