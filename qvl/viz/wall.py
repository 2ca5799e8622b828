"""The wall: held-out pictures with questions, answers and boxes.

Knows: rows of predictions.jsonl. Does not know: how they were scored. Everything a model said is escaped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from qvl.text.grounding import Coordinates, parse_grounding
from qvl.viz.boxes import Drawn, boxes_svg, data_uri
from qvl.viz.numbers import metric_name, show
from qvl.viz.svg import escape
from qvl.viz.words import said

Json = dict[str, Any]
Outcome = Literal["right", "partly", "wrong"]
PICTURES = 48

_LABELS: dict[Outcome, str] = {"right": "✓ right", "partly": "◐ partly right", "wrong": "✗ wrong"}
_WHOLE = ("exact", "accuracy", "acc@0.5", "grounded_f1", "anls")
_PART = ("f1", "grounded_f1", "anls", "iou")
_GRADED = ("cider", "f1", "iou", "grounded_f1", "anls")
"""Values worth a word under one answer; the others are right or wrong."""


def chosen(predictions: Sequence[Json], most: int = PICTURES) -> list[Json]:
    """Rows with a picture: in turn from every kind of question and language, in file order, whatever was answered."""
    queues: dict[tuple[str, str], list[Json]] = defaultdict(list)
    for row in predictions:
        if row.get("picture") and row.get("hw"):
            queues[row["kind"], row["lang"]].append(row)
    depth = max(map(len, queues.values()), default=0)
    rounds = [queue[i] for i in range(depth) for queue in queues.values() if i < len(queue)]
    return rounds[:most]


def outcome(row: Json) -> Outcome:
    """Right: the strictest value there is says so. Partly: not, but names, words or box agree in part."""
    values = row["values"]
    strict = next((values[key] for key in _WHOLE if key in values), 0.0)
    if strict >= 1.0:
        return "right"
    return "partly" if any(values.get(key, 0.0) >= 0.3 for key in _PART) else "wrong"


def wall(rows: Sequence[Json], folder: Path) -> str:
    """Cards of the rows; pictures are read from `folder` and embedded.

    Raises: FileNotFoundError when a picture that a row names is gone.
    """
    return f'<ul class="wall">{"".join(_card(row, folder) for row in rows)}</ul>'


def labelled_wall(cards: Sequence[tuple[str, Json, Path]]) -> str:
    """Cards of (who answered, row, folder that its picture lies in), in this order.

    Raises: as `wall`.
    """
    return f'<ul class="wall">{"".join(_card(row, folder, who) for who, row, folder in cards)}</ul>'


def _card(row: Json, folder: Path, who: str = "") -> str:
    height, width = row["hw"]
    found: Outcome = outcome(row)
    alt = "Scene with " + (", ".join(o["label"] for o in row["objects_px"]) or "text")
    overlay = boxes_svg(drawn_boxes(row), (height, width), data_uri(folder / row["picture"]), alt)
    lang = "zh" if row["lang"] == "zh" else "en"
    words = f'<p class="answer" lang="{lang}" dir="auto"><span class="sr">Answer: </span>{said(row["prediction"])}</p>'
    if found != "right":
        words += f'<p class="truth" lang="{lang}"><span>true:</span> {said(row["answer"])}</p>'
    values = " · ".join(f"{escape(metric_name(k))} {show(k, v)}" for k, v in row["values"].items() if k in _GRADED)
    said_by = f'<p class="run">{escape(who)}</p>' if who else ""
    return (
        f'<li class="{found}"><figure><div class="picture" style="aspect-ratio:{width}/{height}">{overlay}</div>'
        f'<figcaption>{said_by}<p class="asked" lang="{lang}">{said(row["question"].replace("<image>", ""))}</p>{words}'
        f'<p class="outcome"><b>{_LABELS[found]}</b> <span>{values}</span></p>'
        f"</figcaption></figure></li>"
    )


def drawn_boxes(row: Json) -> list[Drawn]:
    """True boxes of the answer, predicted boxes, and boxes that the question is about."""
    hw = tuple(row["hw"])
    asked = [
        Drawn(Coordinates(hw, hw).box_1000_to_px(box), "asked")
        for found in parse_grounding(row["question"])
        for box in found.boxes_1000
    ]
    true = [Drawn(box, "true") for box in row["answer_boxes_px"]]
    predicted = [Drawn(b["xyxy"], "predicted", b["label"].strip()) for b in row["boxes_px"]]
    return [*asked, *true, *predicted]
