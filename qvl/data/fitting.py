"""Samples into sequences that a pack has room for.

Knows: that pictures can be shown smaller, in proportion, until a sample fits. Does not know: packs, tasks, files.

Text is never cut and neither are pictures: half a picture has no meaning, and its placeholders would not match.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from qvl.data.records import Sample
from qvl.inputs.processor import ChatFormatName, Processor
from qvl.inputs.sequence import Sequence as Prepared
from qvl.text.messages import Image, Message, Part, Video

log = logging.getLogger(__name__)

_LEAST_TOKENS = 4
"""No picture is made smaller than this (the released models' own lower bound)."""
_TRIES = 6
_MARGIN = 0.97
"""Aim so much lower with every try."""


class TooLarge(ValueError):
    """A sample that no pack has room for."""


def prepare(sample: Sample, processor: Processor, chat_format: ChatFormatName) -> list[Prepared]:
    """The labelled sequences of one sample: one, or a shared beginning and its branches.

    Raises:
        ValueError, OSError: what is wrong, beginning with the sample's name.
    """
    try:
        if sample.independent:
            return processor.branches(sample.messages, labels=True, chat_format=chat_format, name=sample.name)
        return [processor.sequence(sample.messages, labels=True, chat_format=chat_format, name=sample.name)]
    except (ValueError, OSError) as error:
        if str(error).startswith(sample.name):
            raise
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{sample.name}: {error}") from error


def fit(sample: Sample, processor: Processor, chat_format: ChatFormatName, tokens: int, patches: int) -> list[Prepared]:
    """`prepare`, with all pictures and clips smaller in proportion where room for `tokens` and `patches` needs it.

    Raises:
        TooLarge: it cannot be made to fit; names the sample, its size and what to do.
        ValueError, OSError: as `prepare`.
    """
    prepared = prepare(sample, processor, chat_format)
    size, seen = _size(prepared)
    shown = sum(len(p.vision_rows_M) for p in prepared)
    smaller, now, margin = prepared, (size, seen), 1.0
    for _ in range(_TRIES):
        if now[0] <= tokens and now[1] <= patches:
            if smaller is not prepared:
                log.info("made the pictures of %s smaller: %d tokens, there is room for %d", sample.name, size, tokens)
            return smaller
        margin *= _MARGIN  # sides are rounded to whole tokens
        room = margin * min((tokens - size + shown) / max(1, shown), patches / max(1, seen))
        changed = None if processor.config.square else _smaller(sample, prepared, room, processor)
        if changed is None:
            break
        smaller = prepare(changed, processor, chat_format)
        now = _size(smaller)
    raise TooLarge(
        f"{sample.name}: {size} tokens ({size - shown} of them text) and {seen} patches, there is room for {tokens} "
        f"and {patches}; raise tokens_per_pack (or tokens_per_sample) or patches_per_pack, or split the conversation"
    )


def _size(prepared: list[Prepared]) -> tuple[int, int]:
    """Tokens and patches."""
    return sum(len(p.tokens_T) for p in prepared), sum(p.patch_count for p in prepared)


def _smaller(sample: Sample, prepared: list[Prepared], factor: float, processor: Processor) -> Sample | None:
    """The sample with `factor` times the pixels in its pictures together; None if that would leave next to nothing."""
    least = _LEAST_TOKENS * processor.config.geometry.factor**2
    visuals = [v for p in prepared for v in p.visuals]
    parts = [part for message in sample.messages for part in message.parts if isinstance(part, Image | Video)]
    if not visuals or any(part.resized_height is not None for part in parts):
        return None
    areas = [height * width for height, width in (v.resized_hw for v in visuals)]
    budgets = _share_out(areas, [v.grid[0] for v in visuals], factor, least)
    if budgets is None:
        return None
    own = iter(budgets)
    messages = tuple(
        Message(message.role, tuple(_within(part, own, least) for part in message.parts)) for message in sample.messages
    )
    return replace(sample, messages=messages)


def _within(part: Part, budgets: Iterator[int], least: int) -> Part:
    if not isinstance(part, Image | Video):
        return part
    most = next(budgets)
    return replace(part, min_pixels=min(part.min_pixels or least, most), max_pixels=most)


def _share_out(areas: Sequence[int], times: Sequence[int], factor: float, least: int) -> list[int] | None:
    """Areas that are `factor` of the given ones together, in proportion, but none under `least` (or under what it is).

    Three pictures of 1000, 1000 and 10 pixels, half of all, none under 10: 498, 498, 10.

    Args:
        times: how often each area counts (frames of a clip).
    """
    lower = [min(area, least) for area in areas]
    room = factor * sum(n * area for n, area in zip(times, areas, strict=True))
    free = set(range(len(areas)))
    while free:
        taken = sum(times[i] * lower[i] for i in range(len(areas)) if i not in free)
        share = (room - taken) / sum(times[i] * areas[i] for i in free)
        bound = {i for i in free if share * areas[i] < lower[i]}
        if not bound:
            return [math.floor(share * area) if i in free else lower[i] for i, area in enumerate(areas)]
        free -= bound
    return None
