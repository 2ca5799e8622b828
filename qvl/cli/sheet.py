"""A page of samples: what a model is shown, what it is asked, and what it is to say.

Knows: samples, their tokens, the HTML around them. Does not know: where the recipe comes from.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from string import Template
from typing import Any, Protocol

from qvl.cli.start import processor_of
from qvl.data.fitting import TooLarge, fit
from qvl.data.records import Sample
from qvl.data.user import UserSource
from qvl.data.world import World
from qvl.data.world.config import Split
from qvl.inputs.processor import Processor
from qvl.media.image import image_hw, open_image
from qvl.text.grounding import Coordinates, parse_grounding
from qvl.text.messages import Image, Text, Video
from qvl.text.tokenizer import Tokenizer
from qvl.train.build import sample_source
from qvl.train.config import StageConfig, TrainConfig
from qvl.viz.boxes import Drawn, boxes_svg
from qvl.viz.loss_mask import mask_html, mask_pieces
from qvl.viz.svg import escape

_LOOKED_AT = 100
"""Samples tried for a first look before it says that none can be used."""
_SHOWN_PX = 640
"""Longest side of an embedded picture."""

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Samples of $title</title><style>
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; }
article { display: flex; flex-wrap: wrap; gap: 1rem; border-top: 1px solid #8886; padding: 1rem 0; }
.media { display: flex; flex-wrap: wrap; gap: .5rem; align-content: start; } svg { height: 14rem; max-width: 100%; }
.masks { flex: 1 1 28rem; min-width: 0; } h3 { flex-basis: 100%; margin: 0; font-size: 1rem; }
.mask { margin: 0 0 .4rem; white-space: pre-wrap; overflow-wrap: anywhere; } .mask i { opacity: .75; }
mark { background: #3a84; color: inherit; }
</style></head><body><h1>Samples of $title</h1>
<p>What the model reads, token for token; highlighted tokens are learned, the others only read. Independent questions
share the picture and do not see each other. Boxes: in files, those written in the conversation (dotted in questions,
solid in answers); in the embedded world, those the last question is about, or else everything there is.</p>
$body</body></html>
""")


def write_sheet(config: TrainConfig, names: Sequence[str], split: Split, indices: Iterable[int], out: Path) -> Path:
    """Writes `out`/samples.html with the samples of the named stages and returns its path.

    Raises:
        ValueError: a held-out split of files, which have none.
    """
    if config.data.files and split != "train":
        raise ValueError(f"the recipe trains on files, which have no split {split!r}; leave out --split")
    processor = processor_of(config)
    wanted = list(indices)
    sections = []
    for stage in config.stages:
        if stage.name in names:
            source = sample_source(config, stage) if split == "train" else _HeldOut(stage, split)
            body = _articles(source, wanted, len(wanted), processor, stage, config.data.strict)
            sections.append(f"<h2>{escape(stage.name)} ({escape(split)})</h2>{body}")
    return _write(out / "samples.html", config, sections)


def write_first_look(config: TrainConfig, processor: Processor, file: Path, count: int = 10) -> Path:
    """Writes the first `count` samples of every stage that can be used, and why others cannot, and says where.

    Raises:
        ValueError, FileNotFoundError: no sample can be used, or (`data.strict`) one cannot.
    """
    sections = []
    for stage in config.stages:
        source = sample_source(config, stage)
        about, most = "", _LOOKED_AT
        if isinstance(source, UserSource):
            about, most = f"<p>{escape(source.description)}</p>", min(most, len(source))
        body = _articles(source, range(most), count, processor, stage, config.data.strict)
        sections.append(f"<h2>{escape(stage.name)}</h2>{about}{body}")
    _write(file, config, sections)
    print(f"First look at the data, before the first step: {file}")
    return file


def _write(file: Path, config: TrainConfig, sections: Sequence[str]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(_PAGE.substitute(title=escape(config.run), body="".join(sections)), encoding="utf-8")
    return file


def _articles(
    source: _Source, indices: Iterable[int], count: int, processor: Processor, stage: StageConfig, strict: bool
) -> str:
    """The first `count` of these samples that can be used; the others are named with what is wrong."""
    shown: list[str] = []
    wrong: list[str] = []
    for index in indices:
        try:
            shown.append(_article(source[index], processor, stage))
        except (ValueError, OSError) as error:
            if strict and not isinstance(error, TooLarge):  # training leaves these out all the same
                raise
            wrong.append(str(error))
        if len(shown) == count:
            break
    if not shown:
        raise ValueError(f"{stage.name}: none of {len(wrong)} samples can be used; the first: {wrong[0]}")
    left_out = f"<p>Left out:</p><ul>{''.join(f'<li>{escape(w)}</li>' for w in dict.fromkeys(wrong))}</ul>"
    return (left_out if wrong else "") + "".join(shown)


class _Source(Protocol):
    def __getitem__(self, index: int) -> Sample: ...


class _HeldOut:
    def __init__(self, stage: StageConfig, split: Split) -> None:
        self._world = World(stage.world)
        self._split: Split = split

    def __getitem__(self, index: int) -> Sample:
        return self._world.sample(self._split, index)


def _article(sample: Sample, processor: Processor, stage: StageConfig) -> str:
    prepared = fit(sample, processor, stage.chat_format, stage.tokens_per_pack, stage.patches_per_pack)
    batch = processor.pack(prepared)
    kind = "independent questions" if sample.independent else "one conversation"
    head = (
        f"{sample.name}: {sample.task}, {kind}; {len(batch.tokens_T)} tokens ({batch.target_count} learned), "
        f"{len(batch.patches_PC)} patches"
    )
    decode = partial(_spell, processor.tokenizer)
    masks = "".join(mask_html(mask_pieces(batch, i, decode)) for i in range(len(prepared)))
    media = f'<div class="media">{_media(sample)}</div>'
    return f'<article><h3>{escape(head)}</h3>{media}<div class="masks">{masks}</div></article>'


def _spell(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Text with every special token written out."""
    return b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", "replace")


def _media(sample: Sample) -> str:
    pictures = [p for m in sample.messages for p in m.parts if isinstance(p, Image)]
    clips = [p for m in sample.messages for p in m.parts if isinstance(p, Video)]
    boxes = _boxes(sample) if len(pictures) == 1 else []
    drawn = [_picture(p.source, boxes) for p in pictures]
    drawn += [_picture(frame, []) for clip in clips for frame in _frames(clip.source)]
    return "".join(drawn)


def _frames(source: Any) -> Sequence[Any]:
    return source if not isinstance(source, str | bytes | Path) else ()


def _boxes(sample: Sample) -> list[Drawn]:
    """Where the truth is known, that of the last question or of everything; else what the text says."""
    if "turns" not in sample.meta:
        return _said_boxes(sample)
    asked = sample.meta.get("answer_boxes_px") or []
    if asked:
        return [Drawn(tuple(box), "true") for box in asked]
    named = zip(sample.meta.get("names", ()), sample.meta.get("boxes_px", ()), strict=True)
    return [Drawn(tuple(box), "true", name) for name, box in named]


def _said_boxes(sample: Sample) -> list[Drawn]:
    """Boxes written in the conversation, through the coordinates that training and replies use."""
    (source,) = (p.source for m in sample.messages for p in m.parts if isinstance(p, Image))
    hw = image_hw(source)
    return [
        Drawn(
            Coordinates(hw, hw).box_1000_to_px(box), "true" if m.role == "assistant" else "asked", found.label.strip()
        )
        for m in sample.messages
        for part in m.parts
        if isinstance(part, Text)
        for found in parse_grounding(part.text)
        for box in found.boxes_1000
    ]


def _picture(source: Any, boxes: Sequence[Drawn]) -> str:
    """The picture with its boxes, in its own coordinates; a large one is embedded small."""
    picture = open_image(source)
    hw = (picture.height, picture.width)
    picture.thumbnail((_SHOWN_PX, _SHOWN_PX))
    file = io.BytesIO()
    picture.save(file, "PNG")
    uri = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return boxes_svg(boxes, hw, uri, "sample picture")
