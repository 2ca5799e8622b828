"""Video files made here with PyAV: the right frames, few decoded, damage named, golden patches."""

from __future__ import annotations

import base64
import io
import json
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qvl.media.clip import ClipReader, scan_clip
from qvl.media.load import load_video
from qvl.media.patches import patchify, unpatchify
from qvl.media.resize import Geometry, PixelBudget
from qvl.media.video import VideoBudget

av = pytest.importorskip("av")

G, B = Geometry(), VideoBudget()
GOLDEN = Path(__file__).parents[1] / "golden" / "qwen2_vl_video"
CODECS = {"mp4": "libx264", "matroska": "libx264", "avi": "mpeg4", "webm": "libvpx-vp9", "mpegts": "libx264",
          "mpeg": "mpeg1video"}  # fmt: skip


def grey_clip(
    format: str = "mp4", frames: int = 60, rate: int = 30, codec: str | None = None, gop: int = 12, first: int = 0
) -> bytes:
    """Frame i is of grey level 4 i with a bright square at the top left: content tells index and orientation."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format) as container:
        stream = container.add_stream(codec or CODECS[format], rate=rate)
        stream.width, stream.height, stream.pix_fmt = 112, 84, "yuv420p"
        stream.codec_context.gop_size, stream.bit_rate = gop, 4_000_000
        for index in range(frames):
            pixels = np.full((84, 112, 3), 4 * index % 240, np.uint8)
            pixels[:28, :28] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = first + index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def clips() -> dict[str, bytes]:
    return {format: grey_clip(format) for format in CODECS}


def shown(pixels: np.ndarray) -> int:
    """The frame index that a decoded frame's grey level tells."""
    return round(float(pixels[40:, 40:].mean()) / 4)


@pytest.mark.parametrize("format", list(CODECS))
def test_the_wanted_frames_come_out(clips, format):
    clip = scan_clip(clips[format])
    assert len(clip.pts) == 60
    assert clip.fps == 30
    assert clip.stored_hw == (84, 112)
    everything = [pixels for _, pixels in ClipReader(clip).read(range(60))]
    for wanted in ([0, 20, 39, 59], [59], [13], [0, 0], [11, 12, 13], [24, 47]):
        for index, (seconds, pixels) in zip(wanted, ClipReader(clip).read(wanted), strict=True):
            assert shown(pixels) == index
            assert seconds == pytest.approx(index / 30, abs=0.001)
            assert np.array_equal(pixels, everything[index])


@pytest.mark.parametrize("format", ["mp4", "matroska", "avi", "webm"])
def test_only_the_needed_frames_are_decoded(format):
    clip = scan_clip(grey_clip(format, frames=240))
    reader = ClipReader(clip)
    list(reader.read([0, 130, 235]))
    assert reader.frames_decoded <= 3 * 13  # a group of pictures each, of 240 frames
    reader = ClipReader(clip)
    list(reader.read([30, 31, 32, 33]))
    assert reader.frames_decoded <= 12 + 4  # one run, no seek in between


def test_load_video_of_a_clip(clips, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(clips["mp4"])
    uri = "data:video/mp4;base64," + base64.b64encode(clips["mp4"]).decode()
    visual = load_video(path, geometry=G, budget=B)
    assert visual.timestamps == pytest.approx((0, 20 / 30, 39 / 30, 59 / 30))
    assert visual.original_hw == (84, 112)
    assert visual.resized_hw == (280, 392)  # at least 128 tokens
    assert visual.grid == (2, 20, 28)
    assert set(visual.ms) == {"decode", "resize", "patchify"}
    frames = unpatchify(visual.patches_PC, visual.grid, G)
    assert [shown(frame[100:, 100:]) for frame in frames] == [0, 20, 39, 59]
    for source in (str(path), clips["mp4"], uri):
        assert (load_video(source, geometry=G, budget=B).patches_PC == visual.patches_PC).all()
    fast = load_video(path, geometry=G, budget=B, resize="fast")
    difference = unpatchify(fast.patches_PC, fast.grid, G).astype(int) - frames.astype(int)
    assert np.abs(difference).max() <= 2  # measured worst: 1


def test_a_part_of_a_clip(clips):
    visual = load_video(clips["mp4"], video_start=0.5, video_end=1.0, nframes=4, geometry=G, budget=B)
    assert visual.timestamps == pytest.approx((0.5, 20 / 30, 25 / 30, 1.0))
    clip = scan_clip(clips["mp4"])
    assert clip.window(None, 0.1) == range(4)
    assert clip.window(1.9, 100) == range(57, 60)
    for start, end in ((-1, None), (1, 1), (2, 1)):
        with pytest.raises(ValueError, match="0 <= video_start < video_end"):
            clip.window(start, end)
    with pytest.raises(ValueError, match="no frame between 5 and inf s"):
        clip.window(5, None)


def test_uneven_timestamps_are_kept():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 112, 84, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for pts in (0, 100, 150, 900, 1000, 2000):
            frame = av.VideoFrame.from_ndarray(np.zeros((84, 112, 3), np.uint8), format="rgb24")
            frame.pts = pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    visual = load_video(buffer.getvalue(), nframes=6, geometry=G, budget=B)
    assert visual.timestamps == pytest.approx((0, 0.1, 0.15, 0.9, 1.0, 2.0))


def test_a_clip_that_begins_late_is_whole():
    """Cut out of a recording with its times kept: Matroska's header tells when the last frame ends, not how long it
    takes from the first."""
    late = grey_clip("matroska", first=900)
    clip = scan_clip(late)
    assert len(clip.pts) == 60
    assert clip.seconds[-1] == pytest.approx(59 / 30, abs=2e-3)
    with pytest.raises(ValueError, match=r"truncated: it announces 32\.0 s"):
        scan_clip(late[: len(late) // 2])


@pytest.mark.parametrize(("turns", "corner"), [(0, (0, 0)), (1, (0, -1)), (2, (-1, -1)), (3, (-1, 0))])
def test_rotation_metadata(clips, turns, corner):
    """A phone's clip says in its track header how many quarter turns clockwise it has to be shown."""
    data = bytearray(clips["mp4"])
    cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[turns]
    matrix = data.index(b"tkhd") + 4 + 40
    assert data[matrix : matrix + 4] == struct.pack(">i", 0x10000)
    data[matrix : matrix + 36] = struct.pack(">9i", cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 0x40000000)
    clip = scan_clip(bytes(data))
    _, pixels = next(ClipReader(clip).read([3]))
    assert pixels.shape == ((84, 112, 3) if turns % 2 == 0 else (112, 84, 3))
    corners = {at: pixels[at].mean() for at in ((0, 0), (0, -1), (-1, -1), (-1, 0))}
    assert max(corners, key=corners.get) == corner
    assert load_video(bytes(data), geometry=G, budget=B).original_hw == pixels.shape[:2]


def test_one_frame_clip():
    visual = load_video(grey_clip(frames=1), geometry=G, budget=B)
    assert visual.grid[0] == 1
    assert visual.timestamps == (0.0, 0.0)


def faststart(data: bytes, path: Path) -> bytes:
    """The same mp4 with its index at the front, so that a cut leaves it readable."""
    with av.open(io.BytesIO(data)) as old, av.open(path, "w", options={"movflags": "faststart"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    return path.read_bytes()


def test_truncated_clips(clips, tmp_path):
    fast = faststart(clips["mp4"], tmp_path / "whole.mp4")
    assert len(scan_clip(fast).pts) == 60
    whole = {"clip.mp4": clips["mp4"], "fast.mp4": fast, "clip.avi": clips["avi"], "clip.mkv": clips["matroska"]}
    for name, data in whole.items():
        path = tmp_path / name
        path.write_bytes(data[: len(data) * 6 // 10])
        with pytest.raises(ValueError, match=rf"{name}.*truncated"):
            load_video(path, geometry=G, budget=B)


def test_things_that_are_not_videos(tmp_path):
    def refused(data: bytes, message: str) -> None:
        path = tmp_path / "thing.mp4"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"thing\.mp4.*{message}"):
            load_video(path, geometry=G, budget=B)

    refused(b"hello world\n" * 50, "cannot be read as a video")
    refused(b"", "0 bytes")
    refused(b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/passwd\n#EXT-X-ENDLIST\n", "cannot be read")
    sound = io.BytesIO()
    with av.open(sound, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    refused(sound.getvalue(), "has no video stream")
    refused(grey_clip("mp4", frames=4).replace(b"avc1", b"zzzz"), "no decoder")
    for address in ("http://x.org/a.mp4", "file:///a.mp4"):
        with pytest.raises(ValueError, match="only local files"):
            load_video(address, geometry=G, budget=B)
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4"):
        load_video(tmp_path / "gone.mp4", geometry=G, budget=B)
    with pytest.raises(ValueError, match="cannot open a video from int"):
        load_video(3, geometry=G, budget=B)


def test_frames_above_the_cap_are_not_decoded(clips):
    with pytest.raises(ValueError, match=r"84 x 112 = 9,408 pixels.*max_source_pixels=9,000"):
        load_video(clips["mp4"], geometry=G, budget=B, max_source_pixels=9000)


def test_golden_patches_of_listed_frames():
    """The values of transformers 4.57.1, to the last bit."""
    expected = np.load(GOLDEN / "expected.npz")
    frames = sorted(GOLDEN.glob("frame*.png"))
    visual = load_video(frames, geometry=G, budget=B)
    assert list(visual.grid) == expected["video_grid"].tolist()
    assert np.array_equal(visual.patches_PC[::7].numpy(), expected["video_patches"])
    assert json.loads((GOLDEN / "fixture.json").read_text())["config"]["vision_config"]["patch_size"] == G.patch


def test_listed_frames_are_taken_as_sampled():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (5, 56, 84, 3), dtype=np.uint8)
    visual = load_video(frames, geometry=G, budget=B)
    assert visual.grid == (3, 4, 6)
    assert visual.resized_hw == (56, 84)
    assert visual.timestamps == (0.0, 0.5, 1.0, 1.5, 2.0)
    assert (visual.patches_PC == patchify(frames, G)[0]).all()
    as_pictures = load_video([Image.fromarray(f) for f in frames], fps=10, geometry=G, budget=B)
    assert (as_pictures.patches_PC == visual.patches_PC).all()
    assert as_pictures.timestamps == pytest.approx((0, 0.1, 0.2, 0.3, 0.4))


def test_limits_reach_listed_frames():
    frames = [np.zeros((560, 560, 3), np.uint8)] * 6
    assert load_video(frames[:2], geometry=G, budget=B).resized_hw == (560, 560)
    assert load_video(frames[:2], max_pixels=50_000, geometry=G, budget=B).resized_hw == (196, 196)
    small = PixelBudget(max_pixels=50_000)
    assert load_video(frames[:2], geometry=G, budget=B, frame_budget=small).resized_hw == (196, 196)
    assert load_video(frames[:4], total_pixels=100_000, geometry=G, budget=B).resized_hw == (196, 196)
    tight = VideoBudget(max_tokens=50)
    assert load_video(frames, geometry=G, budget=tight).resized_hw == (112, 112)  # 3 x 16 tokens


def test_bad_lists_of_frames():
    frames = [np.zeros((56, 84, 3), np.uint8), np.zeros((56, 56, 3), np.uint8)]
    with pytest.raises(ValueError, match="frame 1 is 56 x 56 but frame 0 is 56 x 84"):
        load_video(frames, geometry=G, budget=B)
    with pytest.raises(ValueError, match="empty list"):
        load_video([], geometry=G, budget=B)
    with pytest.raises(ValueError, match="nframes, video_start choose frames of a clip"):
        load_video(frames, nframes=2, video_start=0, geometry=G, budget=B)
    with pytest.raises(ValueError, match="fps must be above 0"):
        load_video(frames, fps=0, geometry=G, budget=B)
