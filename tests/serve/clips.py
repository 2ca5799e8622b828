"""Clips made here, so that no file has to travel with the tests."""

from __future__ import annotations

import io

import av
import numpy as np

_CODECS = {"mp4": "libx264", "webm": "libvpx"}


def clip_file(frames: int = 8, height: int = 60, width: int = 80, rate: int = 4, container: str = "mp4") -> bytes:
    """A bright square that wanders from left to right over a dark ground. Every browser plays "webm"."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(_CODECS[container], rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            pixels = np.full((height, width, 3), 40, np.uint8)
            left = (width - 20) * number // max(1, frames - 1)
            pixels[20:40, left : left + 20] = (240, 200, 40)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return file.getvalue()
