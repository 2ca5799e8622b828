"""Which frames are kept, and the limits of a video, with the reference's golden sizes."""

from __future__ import annotations

import numpy as np
import pytest

from qvl.media.resize import Geometry
from qvl.media.video import VideoBudget, choose_frames, video_hw

G, B = Geometry(), VideoBudget()
SOFT = VideoBudget(max_tokens=1_000_000)
"""qwen-vl-utils' limits alone: the hard cap out of the way."""


def tokens(hw: tuple[int, int], frames: int) -> int:
    return -(-frames // 2) * (hw[0] // 28) * (hw[1] // 28)


@pytest.mark.parametrize(
    ("total", "fps", "options", "expected"),
    [
        (60, 30, {}, (0, 20, 39, 59)),
        (60, 30, {"nframes": 2}, (0, 59)),
        (60, 30, {"nframes": 3}, (0, 20, 39, 59)),  # 1.5 pairs round to the even 2
        (60, 30, {"nframes": 5}, (0, 20, 39, 59)),  # so do 2.5
        (60, 30, {"fps": 3}, (0, 12, 24, 35, 47, 59)),
        (60, 30, {"fps": 0.1}, (0, 20, 39, 59)),  # min_frames
        (60, 30, {"fps": 0.1, "min_frames": 2}, (0, 59)),
        (60, 30, {"fps": 30, "max_frames": 3}, (0, 59)),
        (5, 30, {}, (0, 1, 3, 4)),
        (3, 30, {}, (0, 2)),
        (1, 30, {}, (0, 0)),
        (10, 1, {}, tuple(range(10))),  # never more than there are
    ],
)
def test_chosen_frames(total, fps, options, expected):
    assert choose_frames(total, fps, budget=B, **options) == expected


def test_chosen_frames_are_even_increasing_and_span_the_clip():
    for total in range(2, 2000, 37):
        for fps in (0.5, 2, 7.3, 29.97):
            chosen = choose_frames(total, 29.97, fps=fps, budget=B)
            assert len(chosen) % 2 == 0
            assert chosen[0] == 0
            assert chosen[-1] == total - 1
            assert len(set(chosen)) == len(chosen) <= B.max_frames
            assert list(chosen) == np.linspace(0, total - 1, len(chosen)).round().astype(int).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nframes": 2, "fps": 1.0}, "nframes is given together with fps"),
        ({"nframes": 2, "max_frames": 4}, "nframes is given together with max_frames"),
        ({"nframes": 1}, "nframes=1 rounds to 0"),
        ({"nframes": 99}, "nframes=99 rounds to 100 .* clip has 60 frames; choose nframes between 2 and 60"),
        ({"nframes": 2.5}, "nframes must be a whole number"),
        ({"fps": 0}, "fps must be above 0"),
        ({"fps": float("inf")}, "fps must be above 0"),
        ({"min_frames": 10, "max_frames": 4}, "min_frames=10 is larger than max_frames=4"),
        ({"max_frames": 1}, "max_frames=1 leaves no frames"),
    ],
)
def test_bad_choices(options, message):
    with pytest.raises(ValueError, match=message):
        choose_frames(60, 30, budget=B, **options)
    with pytest.raises(ValueError, match="0 frames"):
        choose_frames(0, 30, budget=B)


@pytest.mark.parametrize(
    ("hw", "frames", "budget", "expected", "cost"),
    [
        ((720, 1280), 768, SOFT, (224, 420), 46080),  # the soft cap of qwen-vl-utils
        ((720, 1280), 120, SOFT, (420, 728), 23400),
        ((720, 1280), 120, VideoBudget(total_pixels=16384 * 784), (336, 616), 15840),
        ((720, 1280), 4, B, (560, 1008), 1440),  # 768 tokens a frame
        ((28, 28), 4, B, (336, 336), 288),  # 128 tokens a frame
    ],
)
def test_golden_sizes(hw, frames, budget, expected, cost):
    assert video_hw(hw, frames, geometry=G, budget=budget) == expected
    assert tokens(expected, frames) == cost


def test_the_token_cap_is_hard():
    rng = np.random.default_rng(0)
    for _ in range(3000):
        hw = tuple(int(v) for v in np.exp(rng.uniform(0, np.log(4000), 2)))
        frames, cap = int(rng.integers(1, 800)), int(rng.choice([400, 1000, 16384]))
        if max(hw) > 200 * min(hw):
            continue
        size = video_hw(hw, frames, geometry=G, budget=VideoBudget(max_tokens=cap))
        assert min(size) >= 28
        assert size[0] % 28 == size[1] % 28 == 0
        assert tokens(size, frames) <= cap, (hw, frames, cap, size)
    assert tokens(video_hw((720, 1280), 768, geometry=G, budget=B), 768) == 12288  # 4 x 8 of the 42 there is room for
    with pytest.raises(ValueError, match="800 frames are 400 time steps, more than max_tokens=399"):
        video_hw((720, 1280), 800, geometry=G, budget=VideoBudget(max_tokens=399))


def test_own_options():
    size = {"geometry": G, "budget": B}
    assert video_hw((720, 1280), 4, max_pixels=50_176, **size) == (168, 280)  # the default minimum yields
    assert video_hw((720, 1280), 4, min_pixels=500_000, **size) == (560, 1008)
    assert video_hw((720, 1280), 4, total_pixels=2 * 784 * 200, **size) == (280, 504)  # 180 of 200 tokens
    assert video_hw((720, 1280), 4, resized_height=100, resized_width=150, **size) == (112, 140)
    with pytest.raises(ValueError, match="belong together"):
        video_hw((720, 1280), 4, resized_height=100, **size)
    with pytest.raises(ValueError, match="min_pixels=5000 is larger than max_pixels=4000"):
        video_hw((720, 1280), 4, min_pixels=5000, max_pixels=4000, **size)
    with pytest.raises(ValueError, match=r"100 frames resized to 1120 x 1120 .* 80,000 tokens.*max_tokens=16,384"):
        video_hw((720, 1280), 100, resized_height=1120, resized_width=1120, **size)


@pytest.mark.parametrize(
    "options", [{"fps": 0}, {"min_frames": 9, "max_frames": 8}, {"min_pixels": 9, "max_pixels": 8}, {"max_tokens": 0}]
)
def test_bad_budgets(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        VideoBudget(**options)
