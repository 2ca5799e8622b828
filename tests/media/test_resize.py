"""The size rule against its golden values, and the two resizers against each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from qvl.media.resize import Geometry, PixelBudget, resize_exact, resize_fast, smart_resize, target_hw

G, B = Geometry(), PixelBudget()


@pytest.mark.parametrize(
    ("hw", "expected", "tokens"),
    [
        ((224, 224), (224, 224), 64),
        ((480, 640), (476, 644), 391),
        ((1080, 1920), (1092, 1932), 2691),
        ((1365, 2048), (1372, 2044), 3577),
        ((28, 28), (56, 56), 4),
        ((1, 1), (56, 56), 4),
        ((5000, 5000), (3556, 3556), 16129),
        ((20, 300), (28, 308), 11),
        ((70, 70), (56, 56), 4),  # 2.5 rounds to the even 2
        ((42, 42), (56, 56), 4),  # 1.5 rounds to the even 2
        ((42, 980), (56, 980), 70),
        ((3000, 4000), (2996, 4004), 15301),
    ],
)
def test_golden_sizes(hw, expected, tokens):
    assert smart_resize(*hw) == expected
    assert expected[0] * expected[1] // 784 == tokens
    assert smart_resize(*expected) == expected


def test_golden_size_with_a_smaller_budget():
    assert smart_resize(1080, 1920, max_pixels=1003520) == (728, 1316)


@pytest.mark.slow
def test_equals_the_reference_rule():
    reference = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl").smart_resize
    rng = np.random.default_rng(1)
    for _ in range(3000):
        height, width = (int(v) for v in np.exp(rng.uniform(np.log(28), np.log(6000), 2)))
        least = int(rng.integers(1, 300_000))
        most = least + int(rng.integers(1000, 2_000_000))
        if max(height, width) > 200 * min(height, width):
            continue
        expected = reference(height, width, 28, least, most)
        assert smart_resize(height, width, 28, least, most) == expected, (height, width, least, most)


def test_thin_pictures():
    assert smart_resize(10, 2000) == (28, 1988)
    with pytest.raises(ValueError, match=r"10 x 3000 .* 300\.0, more than 200"):
        smart_resize(10, 3000)
    with pytest.raises(ValueError, match="no pixels"):
        smart_resize(0, 10)
    assert smart_resize(100, 20000, max_pixels=3136) == (28, 784)  # a side stays at one factor, over the budget


def test_own_options_win_over_the_budget():
    size = {"geometry": G, "budget": B}
    assert target_hw((1080, 1920), max_pixels=1003520, **size) == (728, 1316)
    assert target_hw((28, 28), min_pixels=100_000, **size) == (336, 336)
    assert target_hw((1000, 50), resized_height=100, resized_width=205, **size) == (112, 196)
    assert target_hw((500, 500), resized_height=560, resized_width=560, max_pixels=784 * 100, **size) == (280, 280)
    assert target_hw((500, 500), max_pixels=784, **size) == (28, 28)  # the default minimum yields


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resized_height": 100}, "resized_height is given without resized_width"),
        ({"resized_width": 100}, "resized_width is given without resized_height"),
        ({"min_pixels": 2000, "max_pixels": 1000}, "min_pixels=2000 is larger than max_pixels=1000"),
        ({"min_pixels": 10**9}, "min_pixels=1000000000 is larger"),
        ({"max_pixels": 0}, "max_pixels must be a whole number"),
        ({"max_pixels": 1000.5}, "max_pixels must be a whole number"),
        ({"max_pixels": float("nan")}, "max_pixels must be a whole number"),
        ({"resized_height": -1, "resized_width": 3}, "resized_height must be a whole number"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        target_hw((500, 500), geometry=G, budget=B, **options)


def test_bad_configurations():
    with pytest.raises(ValueError, match="min_pixels=9 is larger than max_pixels=8"):
        PixelBudget(9, 8)
    with pytest.raises(ValueError, match="patch must be at least 1"):
        Geometry(patch=0)
    with pytest.raises(ValueError, match="positive stds"):
        Geometry(std=(1.0, 0.0, 1.0))


def photo(height: int, width: int) -> Image.Image:
    """Smooth shapes and some noise, like a photograph."""
    y, x = np.mgrid[:height, :width] / 40
    waves = np.stack([np.sin(x + y), np.cos(x * 0.7 - y), np.sin(x * y / 9)], -1) * 90 + 128
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    return Image.fromarray(np.clip(waves + noise, 0, 255).astype(np.uint8))


@pytest.mark.parametrize(("hw", "to"), [((300, 400), (140, 196)), ((100, 90), (252, 224)), ((333, 500), (336, 504))])
def test_fast_stays_near_exact(hw, to):
    picture = photo(*hw)
    exact, fast = resize_exact(picture, to), resize_fast(picture, to)
    assert exact.shape == fast.shape == (*to, 3)
    difference = np.abs(exact.astype(int) - fast.astype(int))
    # measured worst: mean 0.01, largest 1 grey level
    assert difference.max() <= 2
    assert difference.mean() < 0.05


def test_exact_is_pillows_bicubic():
    picture = photo(300, 400)
    expected = np.asarray(picture.resize((196, 140), Image.Resampling.BICUBIC))
    assert np.array_equal(resize_exact(picture, (140, 196)), expected)


@pytest.mark.parametrize("resizer", [resize_exact, resize_fast])
def test_a_picture_of_the_right_size_passes_unchanged(resizer, monkeypatch):
    monkeypatch.setattr(Image.Image, "resize", None)
    monkeypatch.setattr(torch.nn.functional, "interpolate", None)
    picture = photo(56, 84)
    assert np.array_equal(resizer(picture, (56, 84)), np.asarray(picture))
