"""Video files: an index of their frames without decoding, then only the wanted frames.

Knows: containers, keyframes, seeking, timestamps, rotation, the accepted container formats.
Does not know: which frames are wanted or how large they become (`video.py`), patches, the network.
"""

from __future__ import annotations

import io
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from qvl.media.image import MAX_SOURCE_PIXELS, local_path, read_source

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif"
"""Demuxers that may run. Not among them: playlists (hls, dash, concat), which would open further addresses."""

_DURATION_TAG = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)$")


@dataclass(frozen=True)
class Clip:
    """What is known of a video file before any frame is decoded."""

    source: str | bytes
    """Path, or the encoded bytes."""
    name: str
    """For messages."""
    stored_hw: tuple[int, int]
    """(height, width) of the coded frames, before the rotation that the file may ask for."""
    pts: tuple[int, ...]
    """Presentation time of every frame, increasing, in units of `time_base` seconds."""
    keyframes: tuple[int, ...]
    """Presentation times at which decoding can start, increasing."""
    time_base: Fraction
    fps: Fraction
    """Frames per second over the whole clip."""

    @property
    def seconds(self) -> tuple[float, ...]:
        """Time of every frame, counted from the first one."""
        return tuple(float((pts - self.pts[0]) * self.time_base) for pts in self.pts)

    def window(self, video_start: float | None = None, video_end: float | None = None) -> range:
        """Indices of the frames with video_start <= seconds <= video_end (None = open).

        Raises:
            ValueError: video_start < 0, video_end <= video_start, or no frame in between.
        """
        seconds, length = self.seconds, len(self.pts)
        low = 0.0 if video_start is None else float(video_start)
        high = float("inf") if video_end is None else float(video_end)
        if not low >= 0 or not high > low:
            raise ValueError(
                f"{self.name}: need 0 <= video_start < video_end, got {video_start} and {video_end} seconds"
            )
        tolerance = 0.01 / float(self.fps)  # a hundredth of a frame: times in files are rounded
        first = next((i for i in range(length) if seconds[i] >= low - tolerance), length)
        window = range(first, bisect_right(seconds, high + tolerance))
        if not window:
            raise ValueError(
                f"{self.name} has no frame between {low:g} and {high:g} s: its frames lie at 0 .. {seconds[-1]:.3f} s"
            )
        return window


def scan_clip(source: Any, *, max_source_pixels: int = MAX_SOURCE_PIXELS) -> Clip:
    """Reads the packets of a video (path, bytes or `data:` URI) without decoding one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a video, no video stream, no frames, frames above `max_source_pixels`, cut off before the
            end it announces.
        ImportError: PyAV is not installed.
    """
    if isinstance(source, bytes | bytearray | memoryview) or str(source)[:5].lower() == "data:":
        data, name = read_source(source, kind="video", media_type="video/")
    else:
        path = local_path(source, kind="video")
        data, name = str(path.absolute()), str(path)
        if path.stat().st_size == 0:
            raise ValueError(f"{name} is empty (0 bytes)")
    with _open(data, name) as container:
        stream = container.streams.video[0]
        hw = (stream.codec_context.height, stream.codec_context.width)
        if hw[0] * hw[1] > max_source_pixels:
            raise ValueError(
                f"{name} has frames of {hw[0]} x {hw[1]} = {hw[0] * hw[1]:,} pixels (height x width), more than "
                f"max_source_pixels={max_source_pixels:,}; scale the video down, or pass a larger max_source_pixels"
            )
        times, keyframes = _packet_times(container, stream, name)
        if not times or 0 in hw or stream.time_base is None:
            raise ValueError(f"{name} has a video stream but no frames")
        _refuse_truncated(container, stream, times, name)
        if container.format.name == "mpeg":
            # after a seek in an MPEG program stream (.mpg, .vob), frames carry their successor's time: never seek
            keyframes = times[:1]
        return Clip(data, name, hw, times, keyframes, stream.time_base, _frame_rate(stream, times))


class ClipReader:
    """Decodes chosen frames of a clip; seeks to the keyframe before a frame wherever one lies ahead.

    `frames_decoded` counts what the decoder gave out, wanted or not.
    """

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        self.frames_decoded = 0
        self._starts = frozenset(clip.keyframes)

    def read(self, indices: Sequence[int]) -> Iterator[tuple[float, np.ndarray]]:
        """Yields (seconds, uint8 [H, W, 3] upright) for each of the increasing `indices` into `clip.pts`.

        A frame that the decoder leaves out as damaged is replaced by the next good one, with that one's time.

        Raises:
            ValueError: the stream cannot be decoded as far as a wanted frame.
        """
        clip = self.clip
        with _open(clip.source, clip.name) as container:
            stream = container.streams.video[0]
            frame, frames = None, None
            for index in indices:
                target = clip.pts[index]
                if frame is None or frame.pts < target:
                    frames = self._from_keyframe(container, stream, target, frame, frames)
                    frame = self._advance(frames, target)
                if frame is None:
                    raise ValueError(f"{clip.name} cannot be decoded up to frame {index} of {len(clip.pts)}: cut off?")
                yield float((frame.pts - clip.pts[0]) * clip.time_base), _upright(frame)

    def _from_keyframe(self, container, stream, target: int, last, frames: Iterator | None) -> Iterator:
        """The iterator to go on with: the running one, or a new one after a seek when a keyframe lies ahead."""
        position = bisect_right(self.clip.keyframes, target)
        keyframe = self.clip.keyframes[position - 1] if position else self.clip.pts[0]
        if frames is not None and keyframe <= last.pts:
            return frames
        if frames is None and position <= 1:
            return self._decode(container)
        back = 1
        while position - back > 0:
            container.seek(self.clip.keyframes[position - back], stream=stream, backward=True)
            frames = self._decode(container)
            first = next(frames, None)
            if first is not None and first.pts in self._starts and first.pts <= target:
                return _chain(first, frames)
            back *= 2  # MPEG transport streams land late: aim earlier
        container.seek(self.clip.pts[0], stream=stream, backward=True)
        return self._decode(container)

    def _decode(self, container) -> Iterator:
        for frame in container.decode(video=0):
            if frame.pts is not None:
                self.frames_decoded += 1
                yield frame

    @staticmethod
    def _advance(frames: Iterator, target: int):
        return next((frame for frame in frames if frame.pts >= target), None)


def _chain(first, rest: Iterator) -> Iterator:
    yield first
    yield from rest


def _upright(frame) -> np.ndarray:
    pixels = frame.to_ndarray(format="rgb24")
    # counter-clockwise degrees; other angles than quarter turns are left as stored
    quarter, rest = divmod(int(frame.rotation), 90)
    return np.ascontiguousarray(np.rot90(pixels, quarter)) if quarter and not rest else pixels


def _packet_times(container, stream, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    times, keyframes = set(), set()
    for packet in container.demux(stream):
        time = packet.dts if packet.pts is None else packet.pts
        if packet.size == 0 or packet.is_discard:
            continue
        if time is None:
            raise ValueError(f"{name} has frames without timestamps; remux it, for example to mp4")
        times.add(time)
        if packet.is_keyframe:
            keyframes.add(time)
    return tuple(sorted(times)), tuple(sorted(keyframes))


def _frame_rate(stream, times: tuple[int, ...]) -> Fraction:
    """The rate the file states if its timestamps bear it out to 1 %, else what the timestamps say."""
    stated = stream.average_rate
    if len(times) < 2:
        return stated or Fraction(1)
    measured = Fraction(len(times) - 1) / ((times[-1] - times[0]) * stream.time_base)
    return stated if stated and abs(stated - measured) <= measured / 100 else measured


def _refuse_truncated(container, stream, times: tuple[int, ...], name: str) -> None:
    """Compares with what the file announces. A transport stream announces nothing: a short one is just short."""
    promised = stream.frames
    if promised > len(times) + 1 and promised * 0.99 > len(times):
        raise ValueError(f"{name} is truncated: it announces {promised} frames, {len(times)} are there")
    if promised:
        return
    announced, slack = _announced_seconds(container, stream)
    # Announced is the time of the end, which counts from 0 even where the first frame comes later (a clip cut out of a
    # recording with its times kept).
    there = float((times[-1] - min(0, times[0])) * stream.time_base)
    if len(times) > 1 and announced > there + slack:
        raise ValueError(f"{name} is truncated: it announces {announced:.1f} s, its frames end at {there:.1f} s")


def _announced_seconds(container, stream) -> tuple[float, float]:
    """Length that the header states (0 = none) and how far the last frame may lie before it."""
    if tag := _DURATION_TAG.match(stream.metadata.get("DURATION", "")):  # Matroska: of this very stream
        hours, minutes, seconds = (float(part) for part in tag.groups())
        return 3600 * hours + 60 * minutes + seconds, 0.5 + 2 / float(stream.average_rate or 25)
    if container.duration and not container.streams.audio:  # with sound, the sound may be what lasts longer
        seconds = container.duration / 1_000_000
        return seconds, 1.0 + 0.1 * seconds
    return 0.0, 0.0


@contextmanager
def _open(source: str | bytes, name: str):
    """An opened container with at least one video stream; every error of the library names the file."""
    av = _import_av()
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    target = io.BytesIO(source) if isinstance(source, bytes) else f"file:{source}"
    try:
        with av.open(target, options=options) as container:
            if not container.streams.video:
                raise ValueError(f"{name} has no video stream")
            if container.streams.video[0].codec_context is None:
                raise ValueError(f"{name} has a codec that FFmpeg has no decoder for (or is damaged); convert it")
            yield container
    except (av.error.FFmpegError, EOFError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ValueError(f"{name} cannot be read as a video: {reason} (truncated or not a video?)") from error


def _import_av():
    try:
        import av
    except ImportError as error:
        raise ImportError("videos need PyAV: pip install 'qvl[video]' (or give a list of frames)") from error
    return av
