"""Which frames of a video are kept and how large they become.

Knows: the video budget (what each limit limits), the frame-choice rule, the size rule, the hard token cap.
Does not know: containers and codecs (`clip.py`), patches' memory order, rotary positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from qvl.media.resize import Geometry, check_bounds, smart_resize, whole

TOKEN_PIXELS = 28 * 28
"""Pixels that one vision token stands for in each frame (Qwen2-VL's geometry)."""


@dataclass(frozen=True)
class VideoBudget:
    """Limits on one video. With T frames of h x w pixels, a video costs T / 2 * (h / 28) * (w / 28) tokens.

    ============  =========================================================================================
    fps           how many frames per second of the clip are wanted
    min_frames    a short clip gives at least so many frames (as far as it has them)
    max_frames    a long clip gives at most so many
    min_pixels    a frame smaller than this (h * w) is enlarged; yields to max_pixels and max_tokens
    max_pixels    a frame larger than this is shrunk: 768 tokens in a frame of its own
    total_pixels  SOFT cap on the whole video, in token pixels (T / 2 * h * w): lowers max_pixels when there are
                  many frames, but never below 1.05 * min_pixels, so 768 frames still cost about 46,000 tokens.
                  qwen-vl-utils' rule; 24,576 tokens is its value when Qwen2-VL came out (128,000 * 0.9 since 0.0.10)
    max_tokens    HARD cap on the whole video, kept after all rounding: the 16,384 tokens of the Qwen2-VL paper
                  (section 2.1), a training limit. qwen-vl-utils has no such cap; raise it to get its sizes
    ============  =========================================================================================

    Sources: qwen-vl-utils 0.0.8 (`smart_nframes`, `fetch_video`), arXiv 2409.12191 section 2.1.
    """

    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 768
    frame_factor: int = 2
    min_pixels: int = 128 * TOKEN_PIXELS
    max_pixels: int = 768 * TOKEN_PIXELS
    total_pixels: int = 24576 * TOKEN_PIXELS
    max_tokens: int = 16384

    def __post_init__(self) -> None:
        check_bounds(self.min_pixels, self.max_pixels)
        if not self.fps > 0:
            raise ValueError(f"fps must be above 0, got {self.fps}")
        if not 1 <= self.min_frames <= self.max_frames:
            raise ValueError(f"need 1 <= min_frames <= max_frames, got {self.min_frames} and {self.max_frames}")
        for name in ("frame_factor", "total_pixels", "max_tokens"):
            whole(name, getattr(self, name), 1)


def choose_frames(
    total: int,
    video_fps: float | Fraction,
    *,
    fps: float | None = None,
    nframes: float | None = None,
    min_frames: float | None = None,
    max_frames: float | None = None,
    budget: VideoBudget,
) -> tuple[int, ...]:
    """Indices of the frames to keep: evenly spaced from the first to the last, an even number of them.

    `nframes` is rounded to a multiple of `budget.frame_factor` (halves to the even multiple, as the reference does).
    Otherwise `total / video_fps * fps`, held between min_frames and max_frames (both made multiples, inwards) and
    never more than the clip has. A clip of a single frame gives it twice. Options left out come from `budget`.

    Examples (clip of 60 frames at 30 per second): default -> (0, 20, 39, 59); nframes=2 -> (0, 59).

    Raises:
        ValueError: fps and nframes together, nframes that rounds to 0 or exceeds the clip, min_frames > max_frames.
    """
    if total < 1 or not video_fps > 0:
        raise ValueError(
            f"a clip of {total} frames at {float(video_fps):g} frames per second has nothing to choose from"
        )
    factor = budget.frame_factor
    if nframes is not None:
        count = _explicit_count(total, nframes, factor, fps, min_frames, max_frames)
    else:
        count = _count_from_rate(total, video_fps, fps, min_frames, max_frames, budget)
    if total < factor:
        return tuple(min(i, total - 1) for i in range(factor))
    # round(i * (total - 1) / (count - 1)) in integers: with an even count there are no halves to argue about
    step = max(1, count - 1)
    return tuple((2 * i * (total - 1) + step) // (2 * step) for i in range(count))


def _explicit_count(
    total: int, nframes: float, factor: int, fps: float | None, min_frames: float | None, max_frames: float | None
) -> int:
    others = {"fps": fps, "min_frames": min_frames, "max_frames": max_frames}
    if clash := [name for name, value in others.items() if value is not None]:
        raise ValueError(f"nframes is given together with {', '.join(clash)}; give either nframes or the others")
    count = round(whole("nframes", nframes, 1) / factor) * factor
    if count < factor or count > max(total, factor):
        raise ValueError(
            f"nframes={nframes:g} rounds to {count} (a multiple of {factor}), but the clip has {total} frames; "
            f"choose nframes between {factor} and {max(total // factor, 1) * factor}"
        )
    return count


def _count_from_rate(
    total: int,
    video_fps: float | Fraction,
    fps: float | None,
    min_frames: float | None,
    max_frames: float | None,
    budget: VideoBudget,
) -> int:
    rate = budget.fps if fps is None else fps
    if not (rate > 0 and math.isfinite(rate)):
        raise ValueError(f"fps must be above 0, got {rate}")
    factor = budget.frame_factor
    most = whole("max_frames", max_frames, budget.max_frames)
    least = whole("min_frames", min_frames, min(budget.min_frames, most))
    if most < factor:
        raise ValueError(
            f"max_frames={most} leaves no frames: they come in multiples of {factor}; give at least {factor}"
        )
    if least > most:
        raise ValueError(f"min_frames={least} is larger than max_frames={most}; lower min_frames or raise max_frames")
    ceiling = max(factor, min(most, total) // factor * factor)
    floor = min(ceiling, math.ceil(least / factor) * factor)
    wanted = Fraction(total) / Fraction(video_fps) * Fraction(rate)
    return round(min(max(wanted, floor), ceiling) / factor) * factor


def video_hw(
    original_hw: tuple[int, int],
    frames: int,
    *,
    geometry: Geometry,
    budget: VideoBudget,
    min_pixels: float | None = None,
    max_pixels: float | None = None,
    total_pixels: float | None = None,
    resized_height: float | None = None,
    resized_width: float | None = None,
) -> tuple[int, int]:
    """(height, width) of every kept frame of a clip; `frames` is how many are kept.

    The video's own options come before the budget's; a default minimum yields to a smaller maximum that was asked
    for. `resized_height` and `resized_width` (both) overrule the pixel bounds, but not `budget.max_tokens`.

    Raises:
        ValueError: one resized_* without the other, min_pixels > max_pixels, an explicit size or a number of frames
            that `budget.max_tokens` has no room for, an aspect ratio above 200.
    """
    area = geometry.factor**2
    if (resized_height is None) != (resized_width is None):
        raise ValueError("resized_height and resized_width belong together; give both or neither")
    if resized_height is not None and resized_width is not None:
        side = geometry.factor
        height = max(side, round(whole("resized_height", resized_height, 1) / side) * side)
        width = max(side, round(whole("resized_width", resized_width, 1) / side) * side)
        steps, room = _frame_room(frames, geometry, budget)
        if height * width > room * area:
            raise ValueError(
                f"{frames} frames resized to {height} x {width} (height x width) are "
                f"{steps * height * width // area:,} tokens, more than max_tokens={budget.max_tokens:,}; "
                f"ask for fewer frames, a smaller size or a larger max_tokens"
            )
        return height, width
    least = whole("min_pixels", min_pixels, budget.min_pixels)
    share = whole("total_pixels", total_pixels, budget.total_pixels) * geometry.temporal // frames
    most = min(whole("max_pixels", max_pixels, budget.max_pixels), max(share, int(least * 1.05)))
    if min_pixels is None:
        least = min(least, most)
    return fit_tokens(original_hw, frames, geometry=geometry, budget=budget, min_pixels=least, max_pixels=most)


def fit_tokens(
    original_hw: tuple[int, int],
    frames: int,
    *,
    geometry: Geometry,
    budget: VideoBudget,
    min_pixels: int,
    max_pixels: int,
) -> tuple[int, int]:
    """`smart_resize` of a frame, then smaller until `frames` of them cost at most `budget.max_tokens` tokens.

    Raises:
        ValueError: as `smart_resize`; or more time steps than tokens, so that not even one token each is left.
    """
    check_bounds(min_pixels, max_pixels)
    side = geometry.factor
    _, room = _frame_room(frames, geometry, budget)
    least, most = min(min_pixels, room * side**2), min(max_pixels, room * side**2)
    height, width = smart_resize(*original_hw, side, least, most)
    high, wide = height // side, width // side
    # Only growing to the minimum (it rounds up) and very thin frames (no side below one token) can still exceed.
    while high * wide > room:
        if wide == 1 or (high > 1 and high * original_hw[1] > wide * original_hw[0]):
            high -= 1
        else:
            wide -= 1
    return high * side, wide * side


def _frame_room(frames: int, geometry: Geometry, budget: VideoBudget) -> tuple[int, int]:
    """Time steps of `frames` frames, and the tokens that one step may cost under the hard cap."""
    if frames < 1:
        raise ValueError("a video needs at least one frame")
    steps = -(-frames // geometry.temporal)
    if steps > budget.max_tokens:
        raise ValueError(
            f"{frames} frames are {steps:,} time steps, more than max_tokens={budget.max_tokens:,} leaves one token "
            f"each for; take at most {budget.max_tokens * geometry.temporal:,} frames or raise max_tokens"
        )
    return steps, budget.max_tokens // steps
