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
from typing import Any

from qvl.data.packing import prepare
from qvl.data.records import Sample
from qvl.data.world import World
from qvl.data.world.config import Split
from qvl.inputs.processor import ChatFormatName, Processor
from qvl.media.image import open_image
from qvl.text.messages import Image, Video
from qvl.text.tokenizer import Tokenizer
from qvl.train.build import build, stage_source
from qvl.train.config import StageConfig, TrainConfig
from qvl.viz.boxes import Drawn, boxes_svg
from qvl.viz.loss_mask import mask_html, mask_pieces
from qvl.viz.svg import escape

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
share the picture and do not see each other. Boxes: those the last question is about, or else everything there is.</p>
$body</body></html>
""")


def write_sheet(config: TrainConfig, names: Sequence[str], split: Split, indices: Iterable[int], out: Path) -> Path:
    """Writes `out`/samples.html with the samples of the named stages and returns its path."""
    processor = build(config).processor
    sections = []
    for stage in config.stages:
        if stage.name not in names:
            continue
        source = stage_source(config, stage) if split == "train" else _HeldOut(stage, split)
        articles = [_article(source[i], processor, stage.chat_format) for i in indices]
        sections.append(f"<h2>{escape(stage.name)} ({escape(split)})</h2>{''.join(articles)}")
    out.mkdir(parents=True, exist_ok=True)
    path = out / "samples.html"
    path.write_text(_PAGE.substitute(title=escape(config.run), body="".join(sections)), encoding="utf-8")
    return path


class _HeldOut:
    def __init__(self, stage: StageConfig, split: Split) -> None:
        self._world = World(stage.world)
        self._split: Split = split

    def __getitem__(self, index: int) -> Sample:
        return self._world.sample(self._split, index)


def _article(sample: Sample, processor: Processor, chat_format: ChatFormatName) -> str:
    prepared = prepare(sample, processor, chat_format)
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
    asked = sample.meta.get("answer_boxes_px") or []
    if asked:
        return [Drawn(tuple(box), "true") for box in asked]
    named = zip(sample.meta.get("names", ()), sample.meta.get("boxes_px", ()), strict=True)
    return [Drawn(tuple(box), "true", name) for name, box in named]


def _picture(source: Any, boxes: Sequence[Drawn]) -> str:
    picture = open_image(source)
    file = io.BytesIO()
    picture.save(file, "PNG")
    uri = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return boxes_svg(boxes, (picture.height, picture.width), uri, "sample picture")
