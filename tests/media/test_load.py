"""Pictures to patch rows: the reference processor's bits, options, batches in one buffer."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qvl.media.load import image_file_grid, image_grid, load_image, load_images
from qvl.media.patches import patchify, unpatchify
from qvl.media.resize import Geometry, PixelBudget

G, B = Geometry(), PixelBudget()


@dataclass(frozen=True)
class Request:
    source: Any
    min_pixels: int | None = None
    max_pixels: int | None = None
    resized_height: int | None = None
    resized_width: int | None = None


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def reference():
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    return module.Qwen2VLImageProcessorPil


@pytest.mark.slow
def test_exact_rows_are_the_references_bits(reference):
    """Identical, not close: worst difference 0."""
    rng = np.random.default_rng(0)
    sizes = [(224, 224), (28, 300), (333, 500)] + [tuple(int(v) for v in rng.integers(28, 700, 2)) for _ in range(6)]
    pictures = [photo(*size, seed=i) for i, size in enumerate(sizes)]
    for least, most in ((3136, 12845056), (50_000, 100_000)):
        processor = reference(min_pixels=least, max_pixels=most)
        expected = processor(pictures, return_tensors="np")
        rows_PC, visuals = load_images([Request(p) for p in pictures], geometry=G, budget=PixelBudget(least, most))
        assert np.array_equal(rows_PC.numpy(), expected["pixel_values"])
        assert [list(v.grid) for v in visuals] == expected["image_grid_thw"].tolist()


@pytest.mark.parametrize("resize", ["exact", "fast"])
def test_a_batch_is_its_pictures_one_after_the_other(resize):
    requests = [Request(photo(100, 150)), Request(photo(60, 40), max_pixels=3136), Request(photo(90, 90), 80_000)]
    options = {"geometry": G, "budget": B, "resize": resize}
    alone = [
        load_image(r.source, min_pixels=r.min_pixels, max_pixels=r.max_pixels, **options).patches_PC for r in requests
    ]
    for threads in (1, 2):
        rows_PC, visuals = load_images(requests, threads=threads, **options)
        assert torch.equal(rows_PC, torch.cat(alone))
        start = 0
        for visual, rows in zip(visuals, alone, strict=True):
            assert torch.equal(visual.patches_PC, rows)
            assert visual.patches_PC.data_ptr() == rows_PC[start:].data_ptr()
            assert set(visual.ms) == {"decode", "resize", "patchify"}
            start += len(rows)


def test_no_pictures_make_an_empty_buffer():
    rows_PC, visuals = load_images([], geometry=G, budget=B)
    assert rows_PC.shape == (0, 1176)
    assert visuals == ()


def test_visual_says_what_happened():
    visual = load_image(photo(480, 640), geometry=G, budget=B)
    assert visual.original_hw == (480, 640)
    assert visual.resized_hw == (476, 644)
    assert visual.grid == (1, 34, 46) == image_grid((480, 640), geometry=G, budget=B)
    assert visual.patches_PC.shape == (34 * 46, 1176)
    assert visual.timestamps == ()
    assert set(visual.ms) == {"decode", "resize", "patchify"}
    assert min(visual.ms.values()) >= 0


def test_the_grid_of_a_file_needs_its_header_only():
    buffer = io.BytesIO()
    photo(300, 200).save(buffer, "PNG")
    data = buffer.getvalue()
    assert image_file_grid(data[:200], geometry=G, budget=B) == load_image(data, geometry=G, budget=B).grid
    assert image_file_grid(data, geometry=G, budget=B, max_pixels=3136) == (1, 4, 2)


def test_own_options_reach_the_size():
    options = {"geometry": G, "budget": B}
    assert load_image(photo(100, 100), min_pixels=200_000, **options).resized_hw == (448, 448)
    assert load_image(photo(400, 400), max_pixels=50_000, **options).resized_hw == (196, 196)
    assert load_image(photo(400, 400), resized_height=56, resized_width=141, **options).resized_hw == (56, 140)
    with pytest.raises(ValueError, match="resized_height is given without resized_width"):
        load_image(photo(40, 40), resized_height=56, **options)
    for huge in (1 << 60, 10**400, float("inf")):
        with pytest.raises(ValueError, match=r"resized_height must be a whole number .* at most 9007199254740992"):
            load_image(photo(40, 40), resized_height=huge, resized_width=huge, **options)
    with pytest.raises(ValueError, match="resize must be one of exact, fast, got 'slow'"):
        load_image(photo(40, 40), resize="slow", **options)


def test_rows_written_into_the_callers_memory():
    buffer = torch.full((20, 1176), float("nan"))
    visual = load_image(photo(56, 56), geometry=G, budget=B, out=buffer[2:18])
    assert torch.equal(buffer[2:18], visual.patches_PC)
    assert buffer[:2].isnan().all()
    assert buffer[18:].isnan().all()


def test_qwen_vl_geometry_gives_raster_rows_of_a_fixed_square():
    """448 x 448 squash and plain 14 x 14 patches: what Qwen-VL's convolution sees, row by row."""
    geometry = Geometry(merge=1, temporal=1)
    picture = photo(100, 300)
    visual = load_image(picture, resized_height=448, resized_width=448, geometry=geometry, budget=B)
    assert visual.grid == (1, 32, 32)
    assert visual.patches_PC.shape == (1024, 588)
    pixels = np.asarray(picture.resize((448, 448), Image.Resampling.BICUBIC))
    assert np.array_equal(unpatchify(visual.patches_PC, visual.grid, geometry)[0], pixels)
    unit = (torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255).reshape(3, 32, 14, 32, 14)
    normal = (unit - torch.tensor(G.mean).reshape(3, 1, 1, 1, 1)) / torch.tensor(G.std).reshape(3, 1, 1, 1, 1)
    assert torch.equal(visual.patches_PC, normal.permute(1, 3, 0, 2, 4).reshape(1024, 588))


def test_fast_and_exact_agree_to_a_grey_level_or_two():
    exact = load_image(photo(333, 500), geometry=G, budget=B)
    fast = load_image(photo(333, 500), geometry=G, budget=B, resize="fast")
    grey = [unpatchify(v.patches_PC, v.grid, G).astype(int) for v in (exact, fast)]
    assert np.abs(grey[0] - grey[1]).max() <= 2  # measured worst: 1
    assert torch.equal(patchify(grey[0][:1].astype(np.uint8), G)[0], exact.patches_PC)
