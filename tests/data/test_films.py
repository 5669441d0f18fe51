"""What a film says of itself is honoured when it is read, and kept when it is written: times, sound, colours, turns."""

import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bitlens.data.video import open_movie, read_video
from bitlens.data.whole import lacks_bytes
from bitlens.data.writers import About, video_writer
from bitlens.files import FileRemark

av = pytest.importorskip("av", reason="PyAV (bitlens[video]) is not installed")

UNEVEN = (0, 40, 80, 300, 340, 1000, 1040)
"""Milliseconds: six frames, and the end of the last."""

PATCHES = ((220, 30, 30), (30, 200, 40), (40, 50, 220))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What readers remark."""
    lines: list[str] = []
    monkeypatch.setattr("bitlens.data.video.remark", lines.append)
    return lines


def patches(height: int = 32, width: int = 48) -> np.ndarray:
    """Three colours beside each other, the first with a white corner, uint8."""
    frame = np.repeat(np.repeat(np.array([PATCHES], np.uint8), width // 3, 1), height, 0)
    frame[: height // 4, : width // 6] = 255
    return frame


def film(
    path: Path,
    frames: Sequence[np.ndarray] = (patches(),) * 6,
    times: Sequence[int] = tuple(range(0, 280, 40)),
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    aspect: Fraction = Fraction(1),
    matrix: Sequence[int] | None = None,
    tags: tuple[int, int] | None = None,
    sound: str | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """A film as cameras and phones write them; `times` in milliseconds, `tags` the colours' matrix and range."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        tick = Fraction(1, 25 if path.suffix == ".avi" else 1000)
        stream.time_base = stream.codec_context.time_base = tick
        ticks = [round(Fraction(time, 1000) / tick) for time in times]
        if codec == "libx264":
            stream.options = {"crf": "4"}
        stream.codec_context.sample_aspect_ratio = aspect
        if matrix is not None:
            stream.set_display_matrix(matrix)
        if tags is not None:
            stream.codec_context.colorspace, stream.codec_context.color_range = tags
        tone: Any = None if sound is None else container.add_stream(sound, rate=16000)
        if tone is not None:
            tone.layout = "mono"
        for index, levels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(levels, format="rgb24" if levels.dtype == np.uint8 else "rgb48le")
            if tags is not None:
                frame = frame.reformat(format=pixels, dst_colorspace=tags[0], dst_color_range=tags[1])
            frame.pts, frame.time_base = ticks[index], tick
            for packet in stream.encode(frame):
                packet.duration = ticks[ticks.index(packet.pts) + 1] - packet.pts
                container.mux(packet)
        for packet in stream.encode():
            packet.duration = ticks[ticks.index(packet.pts) + 1] - packet.pts
            container.mux(packet)
        if tone is not None:
            wave = np.sin(np.arange(16 * times[-1]) * 0.17)[None].astype(np.float32)
            heard = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            heard.rate, heard.pts = 16000, 0
            resampler = av.AudioResampler(format=tone.codec_context.format, layout="mono", rate=16000)
            for part in [*resampler.resample(heard), *resampler.resample(None)]:
                container.mux(tone.encode(part))
            container.mux(tone.encode())
    return path


def copied(source: Path, target: Path, **changes: Any) -> Path:
    """The film, read and written again."""
    movie = open_movie(source)
    with video_writer(target, movie.frames, movie.fps, movie.about) as write:
        for frame in movie:
            write(frame[None])
    return target


def shown(path: Path) -> tuple[list[float], Any, Any]:
    """Milliseconds at which frames begin, the first frame, and the stream's facts."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        facts = {"aspect": stream.sample_aspect_ratio, "seconds": container.duration / 1e6, "tags": stream.metadata}
    return [round(1000 * frame.time) for frame in frames], frames[0], facts


TURNS = {
    "90 degrees": ((0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30), lambda x: np.rot90(x, -1)),
    "180 degrees": ((-(1 << 16), 0, 0, 0, -(1 << 16), 0, 0, 0, 1 << 30), lambda x: np.rot90(x, 2)),
    "270 degrees": ((0, -(1 << 16), 0, 1 << 16, 0, 0, 0, 0, 1 << 30), lambda x: np.rot90(x, 1)),
    "mirrored": ((-(1 << 16), 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30), lambda x: x[:, ::-1]),
    "upside down": ((1 << 16, 0, 0, 0, -(1 << 16), 0, 0, 0, 1 << 30), lambda x: x[::-1]),
    "mirrored, 90 degrees": ((0, 1 << 16, 0, 1 << 16, 0, 0, 0, 0, 1 << 30), lambda x: x.swapaxes(0, 1)),
}


@pytest.mark.parametrize("turn", TURNS)
def test_the_display_matrix_is_applied(tmp_path: Path, turn: str) -> None:
    matrix, wanted = TURNS[turn]
    path = film(tmp_path / "a.mp4", matrix=matrix)
    truth = wanted(patches()) / 255
    colour = read_video(path, grey=False)
    assert colour.shape == (6, *truth.shape) and np.abs(colour - truth).mean() < 0.03
    assert read_video(path).shape == (6, *truth.shape[:2])
    np.testing.assert_array_equal(next(iter(open_movie(path))), colour[0])


def test_times_are_kept(tmp_path: Path) -> None:
    moving = [np.roll(patches(), 4 * index, axis=0) for index in range(6)]
    for source in (film(tmp_path / "a.mkv", moving, UNEVEN), film(tmp_path / "a.mp4", moving, UNEVEN)):
        movie = open_movie(source)
        assert [round(1000 * time) for time in movie.about.times] == list(UNEVEN)
        assert movie.fps == pytest.approx(6 / 1.04)
        for suffix in (".mp4", ".mkv"):
            times, _, facts = shown(copied(source, tmp_path / f"copy{suffix}"))
            assert times == list(UNEVEN[:-1]) and facts["seconds"] == pytest.approx(1.04, abs=1e-3)
        for suffix in (".gif", ".webp", ".png"):
            animation = open_movie(copied(source, tmp_path / f"copy{suffix}"))
            total = sum(animation.about.times[-1:]) or animation.frames / animation.fps
            assert float(total) == pytest.approx(1.04)
        with pytest.warns(FileRemark, match=r"\.avi holds frames at even times, and these are not; wanted \.mp4 or"):
            _, _, facts = shown(copied(source, tmp_path / "copy.avi"))
        assert facts["seconds"] == pytest.approx(1.04, abs=0.02)


def test_even_times_stay_even(tmp_path: Path) -> None:
    movie = open_movie(film(tmp_path / "a.mkv", times=[0, 33, 67, 100, 133, 167, 200]))  # 30 a second, as .mkv rounds
    assert movie.about.times == () or movie.about.times[-1] == Fraction(200, 1000)
    assert open_movie(film(tmp_path / "b.mp4")).about.times == ()


@pytest.mark.parametrize(("sound", "suffix"), [("aac", ".mp4"), ("aac", ".mkv"), ("flac", ".mkv")])
def test_sound_is_copied_as_it_is(tmp_path: Path, sound: str, suffix: str) -> None:
    source = film(tmp_path / f"a{suffix}", times=UNEVEN, sound=sound)
    target = copied(source, tmp_path / f"copy{suffix}")

    def heard(path: Path) -> tuple[str, list[bytes]]:
        with av.open(str(path)) as container:
            stream = container.streams.audio[0]
            packets = [(packet.pts, bytes(packet)) for packet in container.demux(stream) if packet.size]
            return stream.codec_context.name, [data for pts, data in packets if pts >= 0]

    assert heard(target) == heard(source) and len(heard(source)[1]) > 3
    assert shown(target)[0] == list(UNEVEN[:-1])
    with pytest.warns(FileRemark, match=r"\.gif holds no sound, which is left out; wanted \.mp4 or \.mkv"):
        copied(source, tmp_path / "copy.gif")


def test_sound_that_a_container_does_not_take(tmp_path: Path) -> None:
    source = film(tmp_path / "a.mkv", sound="libopus")
    with pytest.warns(FileRemark, match="avi does not take sound of opus, which is left out; wanted .mkv"):
        copied(source, tmp_path / "copy.avi")
    assert len(read_video(tmp_path / "copy.avi")) == 6


def test_films_in_avi_begin_at_0(tmp_path: Path) -> None:
    """FFmpeg reads them as late by the frames that were predicted ahead, and their sound without its layout."""
    source = film(tmp_path / "a.avi", sound="pcm_s16le")
    assert open_movie(source).about.times == ()
    for suffix in (".mp4", ".mkv", ".avi"):
        times, _, _ = shown(copied(source, tmp_path / f"copy{suffix}"))
        assert times == list(range(0, 240, 40))
        with av.open(str(tmp_path / f"copy{suffix}")) as container:
            assert container.streams.audio[0].codec_context.name == "pcm_s16le"


def test_the_shape_of_pixels_is_kept_or_said(tmp_path: Path) -> None:
    source = film(tmp_path / "a.mp4", aspect=Fraction(2))
    assert shown(copied(source, tmp_path / "copy.mp4"))[2]["aspect"] == 2
    turned = film(tmp_path / "t.mp4", aspect=Fraction(2), matrix=TURNS["90 degrees"][0])
    assert open_movie(turned).about.aspect == Fraction(1, 2)
    for suffix in (".mkv", ".gif", ".npz"):
        with pytest.warns(FileRemark, match="holds square pixels, and these are 2 as wide as high; wanted .mp4"):
            copied(source, tmp_path / f"copy{suffix}")
    with pytest.warns(FileRemark, match="pixels 2 as wide as high, which are taken as square"):
        assert read_video(source).shape == (6, 32, 48)


def test_more_than_8_bits_are_kept_or_said(tmp_path: Path) -> None:
    ramp = np.repeat(np.linspace(20000, 24000, 96).astype(np.uint16)[None, :, None], 3, 2).repeat(32, 0)
    source = film(tmp_path / "a.mp4", [ramp] * 6, pixels="yuv420p10le")
    assert open_movie(source).about.deep
    for suffix in (".mp4", ".mkv", ".tif", ""):
        target = copied(source, tmp_path / f"copy{suffix}")
        found = read_video(target, grey=False)[0]
        assert np.abs(found - ramp / 65535).max() < 0.004 and len(np.unique(found)) > 20  # 16 levels of 8 bits
    with pytest.warns(FileRemark, match=r"\.gif holds 8 bits, and these frames have more"):
        copied(source, tmp_path / "copy.gif")


@pytest.mark.parametrize("size", [(32, 48), (720, 48)], ids=["SD", "HD"])
@pytest.mark.parametrize("tags", [(1, 1), (5, 1), (1, 2), (5, 2), None], ids=str)
def test_colours_are_read_by_their_tags_and_written_with_them(
    tmp_path: Path, size: tuple[int, int], tags: tuple[int, int] | None
) -> None:
    if tags is None and size[0] >= 720:  # without a tag it is BT.709 that is meant
        frame = av.VideoFrame.from_ndarray(patches(*size), format="rgb24")
        yuv = frame.reformat(format="yuv420p", dst_colorspace=1, dst_color_range=1).to_ndarray()
        with av.open(str(tmp_path / "a.mp4"), "w") as container:
            stream: Any = container.add_stream("libx264", rate=25, options={"crf": "4"})
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
            for packet in [*stream.encode(av.VideoFrame.from_ndarray(yuv, format="yuv420p")), *stream.encode()]:
                container.mux(packet)
        source = tmp_path / "a.mp4"
    else:
        source = film(tmp_path / "a.mp4", [patches(*size)] * 2, tags=tags)
    places = [8, 24, 40]
    found = read_video(source, grey=False, max_frames=1)[0][size[0] // 2, places] * 255
    np.testing.assert_allclose(found, PATCHES, atol=4)
    _, first, _ = shown(copied(source, tmp_path / "copy.mp4"))
    assert (first.colorspace, first.color_range, first.color_primaries, first.color_trc) == (1, 1, 1, 1)
    written = first.to_ndarray(format="rgb24")[size[0] // 2, places]
    np.testing.assert_allclose(written, PATCHES, atol=6)


def test_primaries_of_the_source_are_kept(tmp_path: Path) -> None:
    with video_writer(tmp_path / "a.mp4", 1, 25, About(primaries=9, transfer=16)) as write:
        write(patches()[None].astype(np.float32) / 255)
    _, first, _ = shown(tmp_path / "a.mp4")
    assert (first.colorspace, first.color_primaries, first.color_trc) == (9, 9, 16)


CONTAINERS = {
    "a.mkv": {}, "a.webm": {"codec": "libvpx-vp9"}, "a.avi": {"codec": "mpeg4"}, "a.mp4": {},
    "fast.mp4": {"options": {"movflags": "faststart"}}, "a.mov": {"options": {"movflags": "faststart"}},
}  # fmt: skip


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("part", [0.97, 0.5])
def test_films_that_end_early_are_said_or_refused(tmp_path: Path, said: list[str], name: str, part: float) -> None:
    generator = np.random.default_rng(0)
    noise = [np.kron(generator.integers(0, 256, (4, 6, 3)), np.ones((8, 8, 1))).astype(np.uint8) for _ in range(24)]
    whole = film(tmp_path / name, noise, range(0, 1000, 40), **CONTAINERS[name])
    assert lacks_bytes(whole) == 0 and len(read_video(whole)) == 24
    content = whole.read_bytes()
    cut = tmp_path / f"cut_{name}"
    cut.write_bytes(content[: int(part * len(content))])
    for read in (read_video, open_movie):
        said.clear()
        try:
            read(cut)
        except ValueError as error:
            assert "cannot be decoded" in str(error) and "copy or encode it again" in str(error)
        else:
            assert len(said) >= 1 and "ends early" in said[0]


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_that_end_early_are_said_or_refused(tmp_path: Path, said: list[str], suffix: str) -> None:
    generator = np.random.default_rng(0)
    frames = [Image.fromarray(generator.integers(0, 256, (16, 16, 3)).astype(np.uint8)) for _ in range(6)]
    whole = tmp_path / f"a{suffix}"
    frames[0].save(whole, save_all=True, append_images=frames[1:], duration=50)
    assert lacks_bytes(whole) == 0
    content = whole.read_bytes()
    refused = 0
    for length in range(60, len(content), len(content) // 40):
        cut = tmp_path / f"cut{suffix}"
        cut.write_bytes(content[:length])
        assert lacks_bytes(cut) > 0
        said.clear()
        try:
            open_movie(cut)
        except ValueError as error:
            assert f"cut{suffix}" in str(error)
            refused += 1
        else:
            assert re.search(r"ends early: \d frames are read", said[0])
    assert refused


def test_codecs_that_no_decoder_knows(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zz9z"))
    for read in (read_video, open_movie):
        with pytest.raises(ValueError, match=r"a\.mp4 has a codec that no decoder here knows; wanted H\.264"):
            read(path)


def test_mutated_films_are_refused_in_words(tmp_path: Path, said: list[str]) -> None:
    content = film(tmp_path / "a.mp4", sound="aac").read_bytes()
    generator, path = np.random.default_rng(3), tmp_path / "b.mp4"
    for _ in range(25):
        changed = bytearray(content)
        for place in generator.integers(0, len(content), generator.integers(1, 8)):
            changed[place] = generator.integers(256)
        path.write_bytes(changed)
        for read in (read_video, open_movie):
            try:
                read(path)
            except ValueError as error:
                assert "b.mp4" in str(error)


@pytest.mark.parametrize("suffix", [".webp", ".png", ".gif"])
def test_animations_with_transparency(tmp_path: Path, suffix: str) -> None:
    """A disc that moves, on nothing."""
    y, x = np.mgrid[0:16, 0:24]
    frames = np.zeros((4, 16, 24, 4), np.float32)
    for index in range(4):
        frames[index][(y - 8) ** 2 + (x - 6 - 3 * index) ** 2 < 20] = (0.2, 0.6, 0.9, 1)
    times = tuple(Fraction(each, 1000) for each in (0, 50, 150, 200, 400))
    with video_writer(tmp_path / f"a{suffix}", 4, 10, About(times, loops=2)) as write:
        write(frames)
    movie = open_movie(tmp_path / f"a{suffix}")
    assert movie.about == About(times, loops=2) and movie.frames == 4
    for found, wanted in zip(movie, frames, strict=True):
        np.testing.assert_array_equal(found[..., 3], wanted[..., 3])
        assert np.abs(found[..., :3] - wanted[..., :3])[wanted[..., 3] > 0].max() < 0.01
    black = read_video(tmp_path / f"a{suffix}", grey=False)
    assert not black[frames[..., 3] == 0].any()
    with pytest.warns(FileRemark, match=r"\.mkv holds no transparency, which is laid on black"):
        copied(tmp_path / f"a{suffix}", tmp_path / "copy.mkv")


def test_sizes_that_a_format_cannot_hold(tmp_path: Path) -> None:
    wide = np.zeros((1, 2, 70000), np.float32)
    for suffix, most in ((".gif", 65535), (".webp", 16383)):
        with (
            pytest.raises(ValueError, match=rf"frames of 2x70000 pixels came; wanted at most {most}"),
            video_writer(tmp_path / f"a{suffix}", 1) as write,
        ):
            write(wide)
    assert list(tmp_path.iterdir()) == []
