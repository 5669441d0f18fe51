"""Tiles: every pixel once, one size, within the window; tiled equals whole where the context covers what is seen."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bitlens.tiles import bands, cuts, tiled, window_for

Sizes = st.tuples(st.integers(1, 60), st.integers(1, 60))


def stack(multiple: int, scale: int) -> tuple[Callable[[Tensor], Tensor], int]:
    """Convolutions in integers of float64, so that sums are exact in any order; and how far they see."""
    layers: list[nn.Module] = [nn.Conv2d(1, 3, 3, padding=1), nn.ReLU()]
    if multiple == 2:
        layers += [nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 12, 3, padding=1), nn.PixelShuffle(2)]
    layers += [nn.Conv2d(3, scale**2, 3, padding=1), nn.PixelShuffle(scale)]
    network = nn.Sequential(*layers).double()
    for parameter in network.parameters():
        parameter.data = torch.randint(-3, 4, parameter.shape).double()

    def run(x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        padded = F.pad(x, (0, -w % multiple, 0, -h % multiple), mode="replicate")
        return network(padded)[..., : scale * h, : scale * w]

    return run, 2 if multiple == 1 else 7


@settings(max_examples=150)
@given(
    st.integers(1, 400), st.integers(1, 100), st.integers(0, 40), st.integers(1, 8),
)  # fmt: skip
def test_cuts(size: int, window: int, overlap: int, multiple: int) -> None:
    try:
        found = cuts(size, window, overlap, multiple)
    except ValueError:
        wide = -(-overlap // multiple) * multiple
        assert size > window and window // multiple * multiple <= 2 * wide
        return
    assert [cut.kept[0] for cut in found] == [0, *(cut.kept[1] for cut in found[:-1])] and found[-1].kept[1] == size
    assert found[0].start == 0 and found[-1].stop == size
    assert len({cut.stop - cut.start for cut in found[:-1]}) <= 1
    padded = -(-(found[-1].stop - found[-1].start) // multiple) * multiple
    assert len(found) == 1 or padded == found[0].stop - found[0].start
    for i, cut in enumerate(found):
        assert cut.kept[0] < cut.kept[1] and cut.start % multiple == 0 and cut.stop - cut.start <= window
        assert i == 0 or cut.kept[0] - cut.start >= overlap
        assert i == len(found) - 1 or cut.stop - cut.kept[1] >= overlap
        assert cut.kept[0] - cut.fade[0] >= cut.start and cut.kept[1] + cut.fade[1] <= cut.stop
        assert cut.fade[0] + cut.fade[1] <= cut.kept[1] - cut.kept[0]
        assert i == 0 or cut.fade[0] == found[i - 1].fade[1]


@settings(max_examples=80)
@given(Sizes, Sizes, st.integers(0, 4), st.sampled_from([1, 2]), st.sampled_from([1, 2, 3]))
def test_tiled_equals_whole(size: tuple[int, int], room: tuple[int, int], more: int, multiple: int, scale: int) -> None:
    torch.manual_seed(0)
    run, radius = stack(multiple, scale)
    overlap = radius + more
    least = 2 * -(-overlap // multiple) * multiple + multiple - 1
    window = (least + room[0], least + room[1])
    image, sizes, steps, seams = torch.randint(0, 256, (1, 1, *size)).double(), set(), [], []

    def one(x: Tensor) -> Tensor:
        sizes.add(tuple(-(-side // multiple) for side in x.shape[-2:]))
        assert x.shape[-2] <= window[0] and x.shape[-1] <= window[1]
        return run(x)

    found = tiled(
        one, [image], window=window, overlap=overlap, multiple=multiple, scale=scale,
        on_tile=lambda done, count: steps.append((done, count)), on_seam=lambda *pair: seams.append(pair),
    )  # fmt: skip
    assert torch.equal(found, run(image))
    rows, columns = (len(cuts(side, most, overlap, multiple)) for side, most in zip(size, window, strict=True))
    assert len(seams) == (rows * (columns - 1) if columns > 1 else rows - 1)
    assert more == 0 or all(one.numel() and torch.equal(one, other) for one, other in seams)
    assert len(sizes) == 1, "one size, but for what the function pads itself"
    assert steps == [(i + 1, len(steps)) for i in range(len(steps))]


@settings(max_examples=40)
@given(Sizes, st.integers(0, 6), st.integers(1, 20), st.sampled_from([1, 2]), st.booleans())
def test_every_pixel_is_covered_once(size: tuple[int, int], overlap: int, room: int, scale: int, blend: bool) -> None:
    ones = np.ones((2, 3, *size), np.float32)

    def enlarge(x: np.ndarray) -> np.ndarray:
        return x.repeat(scale, -2).repeat(scale, -1)

    window = (2 * overlap + room, 2 * overlap + room)
    found = tiled(enlarge, [ones], window=window, overlap=overlap, scale=scale, blend=blend)
    assert isinstance(found, np.ndarray) and found.dtype == np.float32
    np.testing.assert_allclose(found, np.ones((2, 3, scale * size[0], scale * size[1])), atol=1e-6)


@settings(max_examples=60)
@given(
    Sizes, st.integers(0, 12), st.tuples(st.integers(1, 30), st.integers(1, 30)), st.sampled_from([1, 3]), st.booleans()
)
def test_bands_are_the_whole_in_pieces(
    size: tuple[int, int], overlap: int, room: tuple[int, int], scale: int, blend: bool
) -> None:
    image = torch.rand(2, *size)
    how: dict = dict(window=(2 * overlap + room[0], 2 * overlap + room[1]), overlap=overlap, scale=scale, blend=blend)

    def enlarge(x: Tensor) -> Tensor:
        return (x - 0.1 * x.mean()).repeat_interleave(scale, 1).repeat_interleave(scale, 2)

    counts: list[tuple[int, int]] = []
    seams: list[list[tuple[Tensor, Tensor]]] = [[], []]
    report: dict = dict(on_tile=lambda *count: counts.append(count), on_seam=lambda *pair: seams[0].append(pair))
    pieces = list(bands(enlarge, [image], **how, **report))
    whole = tiled(enlarge, [image], **how, on_seam=lambda *pair: seams[1].append(pair))
    torch.testing.assert_close(torch.cat(pieces, 1), whole)
    torch.testing.assert_close(*seams)
    assert counts[-1][0] == counts[-1][1] == len(counts) and len(pieces) == len(
        cuts(size[0], how["window"][0], overlap)
    )


def test_blending_leaves_no_step() -> None:
    """Where no context is enough (each tile's own mean is subtracted), the error changes gently instead of at once."""
    image = torch.linspace(0, 1, 128).expand(1, 1, 48, 128)

    def errors(blend: bool) -> Tensor:
        found = tiled(lambda x: x - x.mean(), [image], window=(48, 80), overlap=24, blend=blend)
        return found - image

    cut, mixed = (float(errors(blend).diff(dim=-1).abs().max()) for blend in (False, True))
    assert mixed < cut / 6


def test_several_inputs_are_cut_alike() -> None:
    image, mask = torch.rand(1, 20, 30), torch.rand(1, 5, 20, 30)
    found = tiled(lambda y, m: y.unsqueeze(1) * m, [image, mask], window=(8, 7), overlap=1)
    assert torch.equal(found, image.unsqueeze(1) * mask)


@settings(max_examples=150)
@given(
    st.tuples(st.integers(1, 300), st.integers(1, 300)), st.integers(0, 30), st.integers(1, 4), st.floats(100, 200000)
)
def test_the_window_keeps_within_the_budget(size: tuple[int, int], overlap: int, multiple: int, area: float) -> None:
    per_pixel, base = 1000.0, 10.0
    memory = base + area * per_pixel / 2**20
    try:
        height, width = window_for(memory, per_pixel, base, size=size, overlap=overlap, multiple=multiple)
    except ValueError as error:
        wide = -(-overlap // multiple) * multiple
        padded = [-(-one // multiple) * multiple for one in size]
        assert area < 1.01 * min(padded[0], 2 * wide + multiple) * min(padded[1], 2 * wide + multiple), error
        return
    assert height * width <= area * 1.0001
    plan = [cuts(size[0], height, overlap, multiple), cuts(size[1], width, overlap, multiple)]
    if size[0] * size[1] <= 0.9 * area and multiple == 1:
        assert [len(axis) for axis in plan] == [1, 1]


def test_the_window_costs_least() -> None:
    """More rows than columns of tiles, or the other way round, whatever computes fewer pixels."""
    height, width = window_for(100 + 300_000 * 4000 / 2**20, 4000, 100, size=(1080, 1920), overlap=104, multiple=2)

    def work(tall: int, wide: int) -> int:
        return sum(
            (row.stop - row.start) * (column.stop - column.start)
            for row in cuts(1080, tall, 104, 2)
            for column in cuts(1920, wide, 104, 2)
        )

    others = [(tall, 300_000 // tall // 2 * 2) for tall in range(210, 1081, 2)]
    assert work(height, width) == min(work(*other) for other in others if other[1] > 208)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: tiled(lambda x, _: x, [torch.ones(3, 4), torch.ones(4, 4)], window=(2, 2), overlap=0),
            r"\(3, 4\), \(",
        ),
        (lambda: tiled(lambda x: x, [torch.ones(9, 9)], window=(4, 4), overlap=2), "window of 4 pixels has no room"),
        (lambda: tiled(lambda x: x, [torch.ones(9, 9)], window=(4, 4), overlap=0, scale=2), r"wanted \(6, 6\)"),
        (lambda: tiled(lambda x: x, [torch.ones(9, 9)], window=(4, 4), overlap=-1), "overlap -1"),
        (lambda: tiled(lambda: None, [], window=(4, 4), overlap=0), "wanted one or more of one height"),
        (lambda: window_for(50, 1000, 40, size=(500, 500), overlap=104), "50 MB .* wanted 83 MB or more; give more"),
        (lambda: window_for(30, 1000, 40, size=(500, 500), overlap=0), "wanted 41 MB or more"),
    ],
)
def test_refusals(call: Callable[[], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()
