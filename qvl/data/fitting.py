"""Samples into sequences that a pack has room for.

Knows: that pictures can be shown smaller, in proportion, until a sample fits. Does not know: packs, tasks, files.

Text is never cut and neither are pictures: half a picture has no meaning, and its placeholders would not match.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace

from qvl.data.records import Sample
from qvl.inputs.processor import ChatFormatName, Processor
from qvl.inputs.sequence import Sequence as Prepared
from qvl.text.messages import Image, Message, Part, Video

log = logging.getLogger(__name__)

_LEAST_TOKENS = 4
"""No picture is made smaller than this (the released models' own lower bound)."""
_TRIES = 3
_MARGIN = 0.97
"""Sides are rounded to whole tokens; aim a little lower."""


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
    original = sample
    for _ in range(_TRIES):
        prepared = prepare(sample, processor, chat_format)
        size, seen = sum(len(p.tokens_T) for p in prepared), sum(p.patch_count for p in prepared)
        if size <= tokens and seen <= patches:
            if sample is not original:
                log.info("made the pictures of %s smaller: %d tokens, there is room for %d", sample.name, size, tokens)
            return prepared
        shown = sum(len(p.vision_rows_M) for p in prepared)
        room = min((tokens - size + shown) / max(1, shown), patches / max(1, seen))
        smaller = None if processor.config.square else _smaller(sample, prepared, room * _MARGIN, processor)
        if smaller is None:
            break
        sample = smaller
    raise TooLarge(
        f"{original.name}: {size} tokens ({size - shown} of them text) and {seen} patches, there is room for {tokens} "
        f"and {patches}; raise tokens_per_pack (or tokens_per_sample) or patches_per_pack, or split the conversation"
    )


def _smaller(sample: Sample, prepared: list[Prepared], factor: float, processor: Processor) -> Sample | None:
    """The sample with `factor` times the pixels in every picture; None if that would leave next to nothing."""
    least = _LEAST_TOKENS * processor.config.geometry.factor**2
    sizes = [v.resized_hw for p in prepared for v in p.visuals]
    areas = iter([math.floor(height * width * factor) for height, width in sizes])
    messages = []
    for message in sample.messages:
        parts: list[Part] = []
        for part in message.parts:
            if isinstance(part, Image | Video):
                area = next(areas)
                if area < least or part.resized_height is not None:
                    return None
                parts.append(replace(part, min_pixels=min(part.min_pixels or least, area), max_pixels=area))
            else:
                parts.append(part)
        messages.append(Message(message.role, tuple(parts)))
    return replace(sample, messages=tuple(messages)) if sizes else None
