"""From a source to patch rows, with the time each phase took.

Knows: the order open -> size -> resize -> patchify, for one picture, for many at once, and for a video.
Does not know: conversations, tokens, models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
from torch import Tensor

from qvl.media.clip import ClipReader, scan_clip
from qvl.media.clock import Clock
from qvl.media.frames import listed_frames, resize_frames
from qvl.media.image import MAX_SOURCE_PIXELS, image_hw, view_image
from qvl.media.patches import Grid, empty_rows, grid_of, patchify
from qvl.media.resize import Geometry, PixelBudget, resize_exact, resize_fast, target_hw
from qvl.media.video import VideoBudget, choose_frames, video_hw

Resize = Literal["exact", "fast"]


@dataclass(frozen=True)
class Visual:
    """One picture or video, ready for the vision tower."""

    patches_PC: Tensor
    """float32 [P, C] normalised rows in merge order."""
    grid: Grid
    """(t, h, w) in patches."""
    original_hw: tuple[int, int]
    """(height, width) in pixels as given (upright)."""
    resized_hw: tuple[int, int]
    """(height, width) in pixels that the model sees."""
    timestamps: tuple[float, ...] = ()
    """Video: seconds of each frame kept. Picture: ()."""
    ms: Mapping[str, float] = field(default_factory=dict)
    """Milliseconds per phase: decode, resize, patchify."""


class PictureRequest(Protocol):
    """What `load_images` reads of a picture (the conversation's image part has this shape)."""

    @property
    def source(self) -> Any: ...
    @property
    def min_pixels(self) -> int | None: ...
    @property
    def max_pixels(self) -> int | None: ...
    @property
    def resized_height(self) -> int | None: ...
    @property
    def resized_width(self) -> int | None: ...


def load_image(
    source: Any,
    *,
    min_pixels: float | None = None,
    max_pixels: float | None = None,
    resized_height: float | None = None,
    resized_width: float | None = None,
    geometry: Geometry,
    budget: PixelBudget,
    resize: Resize = "exact",
    max_source_pixels: int = MAX_SOURCE_PIXELS,
    out: Tensor | None = None,
) -> Visual:
    """Opens, resizes and cuts up one picture.

    `resize="exact"` gives the bits of transformers' image processor, `"fast"` trades a few grey levels for speed.
    `out`: float32 [P, C] rows to write into (`image_grid` says how many), a slice of a batch's buffer.

    Raises: FileNotFoundError, ValueError: see `view_image`, `target_hw`.
    """
    size = {
        "geometry": geometry,
        "budget": budget,
        "min_pixels": min_pixels,
        "max_pixels": max_pixels,
        "resized_height": resized_height,
        "resized_width": resized_width,
    }
    opened = _open_and_resize(source, partial(target_hw, **size), _resizer(resize), max_source_pixels)
    return _cut(opened, out, geometry=geometry)


def load_square(
    source: Any,
    *,
    side: int,
    geometry: Geometry,
    resize: Resize = "exact",
    max_source_pixels: int = MAX_SOURCE_PIXELS,
) -> Visual:
    """Opens one picture, squashes it to `side` x `side` pixels whatever its shape, and cuts it up (Qwen-VL).

    Reference: Resize((448, 448), BICUBIC), ToTensor, Normalize in visual.py; transparency is laid on white here, where
    the reference drops it. Raises: as `load_image`.
    """
    opened = _open_and_resize(source, lambda _: (side, side), _resizer(resize), max_source_pixels)
    return _cut(opened, geometry=geometry)


def load_images(
    requests: Sequence[PictureRequest],
    *,
    geometry: Geometry,
    budget: PixelBudget,
    resize: Resize = "exact",
    max_source_pixels: int = MAX_SOURCE_PIXELS,
    threads: int = 1,
) -> tuple[Tensor, tuple[Visual, ...]]:
    """Loads several pictures into one buffer: float32 [P, C] of all, and each picture's `Visual` as a view of it.

    The same numbers as `load_image` on each, without the copy that joining them would take. With `threads` > 1 the
    pictures are shared out among so many threads (decoding, resizing and cutting all run outside Python's lock).

    Raises: as `load_image`, for the first picture that is wrong.
    """
    resizer = _resizer(resize)

    def prepare(request: PictureRequest):
        size = {
            "geometry": geometry,
            "budget": budget,
            "min_pixels": request.min_pixels,
            "max_pixels": request.max_pixels,
            "resized_height": request.resized_height,
            "resized_width": request.resized_width,
        }
        return _open_and_resize(request.source, partial(target_hw, **size), resizer, max_source_pixels)

    with _mapper(threads, len(requests)) as run:
        prepared = list(run(prepare, requests))
        grids = [grid_of(1, pixels.shape[:2], geometry) for pixels, _, _ in prepared]
        counts = [h * w for _, h, w in grids]
        rows_PC = empty_rows(sum(counts), geometry)

        return rows_PC, tuple(run(partial(_cut, geometry=geometry), prepared, rows_PC.split(counts)))


def image_grid(
    hw: tuple[int, int],
    *,
    min_pixels: float | None = None,
    max_pixels: float | None = None,
    resized_height: float | None = None,
    resized_width: float | None = None,
    geometry: Geometry,
    budget: PixelBudget,
) -> Grid:
    """Grid (1, h, w) in patches of a picture of `hw` pixels, without touching pixels (planning)."""
    resized = target_hw(
        hw,
        geometry=geometry,
        budget=budget,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        resized_height=resized_height,
        resized_width=resized_width,
    )
    return grid_of(1, resized, geometry)


def image_file_grid(source: Any, **options: Any) -> Grid:
    """`image_grid` of a picture whose size is read from its header; options as in `image_grid`."""
    return image_grid(image_hw(source), **options)


def load_video(
    source: Any,
    *,
    fps: float | None = None,
    nframes: float | None = None,
    min_frames: float | None = None,
    max_frames: float | None = None,
    video_start: float | None = None,
    video_end: float | None = None,
    min_pixels: float | None = None,
    max_pixels: float | None = None,
    total_pixels: float | None = None,
    resized_height: float | None = None,
    resized_width: float | None = None,
    geometry: Geometry,
    budget: VideoBudget,
    frame_budget: PixelBudget = PixelBudget(),  # noqa: B008 (frozen)
    resize: Resize = "exact",
    max_source_pixels: int = MAX_SOURCE_PIXELS,
) -> Visual:
    """A clip (path, bytes, `data:` URI), or frames that are taken as already sampled.

    Of a clip, only the wanted frames are decoded. Frames (a list of pictures, or uint8 [F, H, W, 3]) all count; each
    has the limits of a picture (`frame_budget`), `fps` only dates them, and the options that choose frames are
    refused. `budget.max_tokens` holds for both. The last of an odd number of frames is repeated in its patch.

    Raises: FileNotFoundError, ValueError: see `scan_clip`, `choose_frames`, `video_hw`, `view_image`.
    """
    size = {"min_pixels": min_pixels, "max_pixels": max_pixels, "total_pixels": total_pixels}
    size |= {"resized_height": resized_height, "resized_width": resized_width}
    choice = {"nframes": nframes, "min_frames": min_frames, "max_frames": max_frames}
    span = {"video_start": video_start, "video_end": video_end}
    clock, resizer = Clock(), _resizer(resize)
    if isinstance(source, list | tuple | np.ndarray):
        if refused := [name for name, value in {**choice, **span}.items() if value is not None]:
            raise ValueError(f"{', '.join(refused)} choose frames of a clip; a list of frames is taken as sampled")
        count, budget = len(source), _frame_bounds(budget, frame_budget, len(source))
        frames = listed_frames(source, budget.fps if fps is None else fps, max_source_pixels)
    else:
        with clock.phase("decode"):
            clip = scan_clip(source, max_source_pixels=max_source_pixels)
            window = clip.window(**span)
            chosen = choose_frames(len(window), clip.fps, fps=fps, budget=budget, **choice)
        count, frames = len(chosen), ClipReader(clip).read([window[i] for i in chosen])
    size_for = partial(video_hw, frames=count, geometry=geometry, budget=budget, **size)
    pixels, original_hw, timestamps = resize_frames(frames, count, size_for, resizer, clock)
    with clock.phase("patchify"):
        patches_PC, grid = patchify(pixels, geometry)
    return Visual(patches_PC, grid, original_hw, pixels.shape[1:3], timestamps, clock.ms)


def _frame_bounds(budget: VideoBudget, frame_budget: PixelBudget, count: int) -> VideoBudget:
    """Each of `count` listed frames has a picture's bounds; only the hard cap bounds them together, unless
    total_pixels is asked for."""
    least, most = frame_budget.min_pixels, frame_budget.max_pixels
    return replace(budget, min_pixels=least, max_pixels=most, total_pixels=most * max(count, 1))


_Opened = tuple[np.ndarray, tuple[int, int], Clock]


def _open_and_resize(
    source: Any, size_for: Callable[[tuple[int, int]], tuple[int, int]], resizer: Callable, max_source_pixels: int
) -> _Opened:
    """uint8 [H, W, 3] at its final size, the original (height, width), and the clock that timed it."""
    clock = Clock()
    with clock.phase("decode"):
        picture = view_image(source, max_source_pixels=max_source_pixels)
    original_hw = (picture.height, picture.width)
    with clock.phase("resize"):
        pixels = resizer(picture, size_for(original_hw))
    return pixels, original_hw, clock


def _cut(opened: _Opened, out: Tensor | None = None, *, geometry: Geometry) -> Visual:
    pixels, original_hw, clock = opened
    with clock.phase("patchify"):
        patches_PC, grid = patchify(pixels[None], geometry, out)
    return Visual(patches_PC, grid, original_hw, pixels.shape[:2], (), clock.ms)


@contextmanager
def _mapper(threads: int, jobs: int):
    """`map`, or one that shares its jobs out among threads."""
    if threads <= 1 or jobs <= 1:
        yield map
    else:
        with ThreadPoolExecutor(min(threads, jobs), thread_name_prefix="qvl-media") as pool:
            yield pool.map


def _resizer(name: Resize):
    resizers = {"exact": resize_exact, "fast": resize_fast}
    if name not in resizers:
        raise ValueError(f"resize must be one of {', '.join(resizers)}, got {name!r}")
    return resizers[name]
