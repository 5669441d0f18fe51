"""Networks that enlarge pictures: official outputs, published sizes, any picture size, and how far they see."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

import bitlens
from bitlens.count import count
from bitlens.networks.edsr import EDSR, edsr
from bitlens.networks.imdn import IMDN, ContrastAttention
from bitlens.networks.ngswin import NGramContext, NGswin, ngswin
from bitlens.networks.pan import PAN
from bitlens.networks.smfanet import SMFANet, smfanet
from bitlens.networks.swinir import SwinIR, config_from_state_dict, swinir, untrained
from bitlens.networks.windows import mirror_pad, separation, window_positions
from bitlens.quant.calibrate import calibrate
from bitlens.quant.layers import quantized_layers
from bitlens.quant.prepare import prepare
from bitlens.recipe import Bits, Recipe, Rule
from bitlens.tiles import tiled

SMALL: dict[str, Callable[[int], nn.Module]] = {
    "SwinIR light": lambda scale: SwinIR(scale, 8, 1, 2, 2, window=4, hidden=16),
    "SwinIR classical": lambda scale: SwinIR(scale, 8, 1, 2, 2, window=4, hidden=16, features=6),
    "NGswin": lambda scale: NGswin(scale, 16, (2, 1, 1, 1), (3, 2, 2, 3), window=4, hidden=16),
    "EDSR": lambda scale: EDSR(scale, 4, 2),
    "IMDN": lambda scale: IMDN(scale, 16, 2),
    "PAN": lambda scale: PAN(scale, 8, 4, 2),
    "SMFANet": lambda scale: SMFANet(scale, 8, 2),
}
every_network = pytest.mark.parametrize("name", SMALL)


def small(name: str, scale: int = 2) -> Any:
    """A network with weights that are no accident of initialization: all paths carry something."""
    network = SMALL[name](scale).eval()
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return network.requires_grad_(False)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_golden_swinir(golden_root: Path, scale: int) -> None:
    with safe_open(golden_root / f"swinir_x{scale}.safetensors", "pt") as file:
        values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    weights = {key.removeprefix("weights/"): value for key, value in values.items() if key.startswith("weights/")}
    network = bitlens.from_official(weights)
    assert isinstance(network, SwinIR) and network.scale == scale and not network.training
    assert (network.config["dim"], network.config["window"]) == (config["embed_dim"], config["window_size"])
    with torch.no_grad():
        output = network(values["inputs/image"])
    assert float((output - values["output"]).abs().max()) < 1e-5
    for name, index in network.named_buffers():  # computed here, recorded there
        assert name == "mean" or torch.equal(index, weights[name])
    height, width = values["inputs/image"].shape[2:]
    recorded = weights["layers.0.residual_group.blocks.1.attn_mask"]  # of a picture of 24 x 24
    assert torch.equal(separation(24, 24, (8, 8), (4, 4), torch.device("cpu")), recorded) and (height, width) == (
        24,
        16,
    )


def test_official_names_and_shapes(golden_root: Path) -> None:
    shapes = json.loads((golden_root / "swinir_light_x4_keys.json").read_text())
    config = config_from_state_dict({key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
    with torch.device("meta"):
        assert config == swinir("light", 4).config
        named = {key: list(value.shape) for key, value in SwinIR(**config).state_dict().items()}
    constants = {key for key in shapes if key.endswith(("relative_position_index", "attn_mask"))}
    assert named == {key: shape for key, shape in shapes.items() if key not in constants}


@pytest.mark.parametrize(
    ("build", "thousands"),
    [
        (lambda: swinir("light", 2), 878),
        (lambda: swinir("light", 3), 886),
        (lambda: swinir("light", 4), 897),
        (lambda: ngswin(2), 998),
        (lambda: edsr("baseline", 2), 1370),
        (lambda: edsr("baseline", 4), 1518),
        (lambda: edsr("large", 2), 40730),
        (lambda: IMDN(2), 694),
        (lambda: IMDN(4), 715),
        (lambda: PAN(2), 261),
        (lambda: PAN(4), 272),
        (lambda: smfanet("s", 4), 197),
        (lambda: smfanet("plus", 4), 496),
    ],
)
def test_published_parameter_counts(build: Callable[[], nn.Module], thousands: int) -> None:
    """SwinIR's come out without its tables of position biases, NGswin's with them."""
    with torch.device("meta"):
        network = build()
    skipped = "position_bias" if isinstance(network, SwinIR) else "nothing"
    total = sum(value.numel() for name, value in network.named_parameters() if skipped not in name)
    assert round(total / 1e3) == thousands


@every_network
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 5)])
def test_any_size(name: str, scale: int, size: tuple[int, int]) -> None:
    output = small(name, scale)(torch.rand(2, 3, *size))
    assert output.shape == (2, 3, scale * size[0], scale * size[1])
    assert bool(output.isfinite().all())


@every_network
def test_pictures_of_a_batch_do_not_mix(name: str) -> None:
    network, images = small(name), torch.rand(3, 3, 9, 10)
    alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(network(images), alone, rtol=1e-4, atol=1e-5)


@every_network
def test_counts_are_of_every_layer(name: str) -> None:
    layers = {layer.name: layer.macs for layer in count(small(name), height=32, width=32)}
    linear = {key for key, module in small(name).named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert linear <= set(layers) and min(layers.values()) > 0
    assert any(key.endswith("scores") for key in layers) == (name.startswith(("SwinIR", "NGswin")))


@every_network
def test_quantizing_and_saving(name: str, tmp_path: Path) -> None:
    """Products are quantized like layers, and the packed network gives the same picture."""
    network = small(name)
    recipe = Recipe("test", (Rule("*", Bits(4, 4)),), weight_range="minmax", activation_range="minmax")
    decisions = prepare(network, recipe)
    network.recipe = recipe  # type: ignore[assignment]
    assert all(decision.bits for decision in decisions if decision.kind in {"Conv2d", "Linear", "MatMul"})
    image = torch.rand(1, 3, 16, 12)
    calibrate(network, [(image,)], recipe)
    loaded = bitlens.load(bitlens.save(network, tmp_path / "net.safetensors"))
    assert set(quantized_layers(loaded)) == set(quantized_layers(network))
    with torch.no_grad():
        assert float((loaded(image) - network(image)).abs().max()) < 1e-4


@every_network
def test_float_checkpoint(name: str, tmp_path: Path) -> None:
    network, image = small(name, 3), torch.rand(1, 3, 8, 8)
    loaded = bitlens.load(bitlens.save(network, tmp_path / "net.safetensors"))
    assert loaded.config == network.config
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in network.state_dict().items())
    with torch.no_grad():  # sums can depend on how memory is aligned
        torch.testing.assert_close(loaded(image), network(image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in SMALL if small(name).radius is not None])
def test_tiles_of_bounded_networks_equal_the_whole(name: str) -> None:
    network, image = small(name).double(), torch.rand(1, 3, 60, 44).double()
    window = 2 * (network.radius + network.alignment)
    cut: dict[str, Any] = dict(window=(window, window), overlap=network.radius, multiple=network.alignment, scale=2)
    torch.testing.assert_close(tiled(network, [image], **cut), network(image), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("edge", [False, True])
def test_mirror_pad(edge: bool) -> None:
    image = torch.arange(4.0).reshape(1, 1, 1, 4)
    row = mirror_pad(image.expand(1, 1, 2, 4), 11, edge=edge)[0, 0, 0].tolist()
    assert row == ([0, 1, 2, 3, 3, 2, 1, 0, 0, 1, 2] if edge else [0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2])
    larger = torch.rand(1, 2, 13, 11)
    if not edge:
        assert torch.equal(mirror_pad(larger, 8, edge=edge), F.pad(larger, (0, 5, 0, 3), mode="reflect"))
    assert mirror_pad(larger[..., :8, :8], 8, edge=edge).shape == (1, 2, 8, 8)
    assert mirror_pad(larger[..., :1, :1], 4, edge=edge).unique().numel() == 2


def test_window_positions_tell_every_distance_apart() -> None:
    index = window_positions(3)
    assert index.shape == (9, 9) and index.unique().numel() == 25 and index[4, 4] == 12


def context_by_hand(module: NGramContext, words: Tensor) -> Tensor:
    """The context of each window of one picture (y, x, c), one window after the other."""
    height, width, _ = words.shape

    def beyond(i: int, size: int) -> int:
        return min(max(2 * (size - 1) - i if i >= size else abs(i), 0), size - 1)

    def seen(y: int, x: int) -> Tensor:
        attend = module.ngram_attn
        tokens = torch.stack([words[beyond(y + i, height), beyond(x + j, width)] for i in (0, 1) for j in (0, 1)])
        q, k, v = (one.unflatten(1, (attend.heads, -1)).transpose(0, 1) for one in attend.qkv(tokens).chunk(3, dim=1))
        cosine = F.cosine_similarity(q[:, :, None], k[:, None], dim=3) * attend.logit_scale.exp()
        cosine = cosine + attend.relative_position_bias_table[attend.relative_position_index].permute(2, 0, 1)
        return attend.proj((cosine.softmax(2) @ v).transpose(0, 1).flatten(1)).mean(0)

    both = [[torch.cat([seen(y, x), seen(y - 1, x - 1)]) for x in range(width)] for y in range(height)]
    return module.merge(torch.stack([torch.stack(row) for row in both]).permute(2, 0, 1)[None])[0].permute(1, 2, 0)


@pytest.mark.parametrize("windows", [(3, 4), (1, 2), (1, 1)])
def test_ngram_context_is_its_definition(windows: tuple[int, int]) -> None:
    module = NGramContext(16, 2, 4).requires_grad_(False)
    image = torch.rand(1, 4 * windows[0], 4 * windows[1], 16)
    words = module.unigram_embed(image.permute(0, 3, 1, 2))[0].permute(1, 2, 0)
    torch.testing.assert_close(module(image)[0], context_by_hand(module, words), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [lambda: swinir("huge", 2), lambda: edsr("tiny", 2), lambda: smfanet("m", 2)])
def test_unknown_sizes(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"has no size '.*'; the published ones are .*: choose one"):
        build()


@pytest.mark.parametrize("build", [lambda: PAN(5), lambda: ngswin(8), lambda: edsr("baseline", 6)])
def test_unknown_scales(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"scale [568]; wanted 2, 3"):
        build()


def test_a_channel_that_does_not_vary_has_a_gradient() -> None:
    """At 2 and 3 bits whole channels become constant; the root of their variance made training end in NaN."""
    x = torch.rand(1, 16, 8, 8)
    x[:, 3] = 0.0
    ContrastAttention(16)(x.requires_grad_(True)).sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_light_swinir_begins_as_interpolation(scale: int) -> None:
    """A quadratic surface, away from the borders, is enlarged as it is."""
    network = untrained(f"light-x{scale}", 8)

    def surface(size: int, factor: int) -> torch.Tensor:
        at = (torch.arange(size * factor) + 0.5) / factor / size
        return torch.stack([at[:, None] ** 2 + c * at for c in (0.5, 1.0, -0.5)])[None] / 2

    with torch.no_grad():
        large = network(surface(16, 1))
    inner = (..., slice(3 * scale, -3 * scale), slice(3 * scale, -3 * scale))
    torch.testing.assert_close(large[inner], surface(16, scale)[inner], rtol=0, atol=1e-5)
