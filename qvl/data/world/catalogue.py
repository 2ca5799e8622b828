"""The vendored concepts: their pictures, names and default order.

Knows: the shards beside this file and which of their entries are objects (animals, food, travel, activities, things).
Does not know: scenes, tasks.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from qvl.data.sources import TarSource
from qvl.data.world.names import NO_ARTICLE, PREFERRED, RENAMED

OBJECT_GROUPS = ("animals-nature", "food-drink", "travel-places", "activities", "objects")
ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Concept:
    """One thing that can stand in a scene. `key` is its code points, e.g. "1f415" for the dog."""

    key: str
    en: str
    zh: str
    group: str
    subgroup: str
    emoji: str
    label: str
    """The dictionary's English label."""
    shard: int

    @property
    def en_phrase(self) -> str:
        """With its article: "a dog", "an axe", "scissors"."""
        plural = self.en.endswith("s") and not self.en.endswith(("ss", "us", "is", "os")) and self.en.count(" ") < 2
        if plural or self.en in NO_ARTICLE:
            return self.en
        an = self.en[0] in "aeiou" and not self.en.startswith(("uni", "euro", "one"))
        an = an or self.en.startswith(("hour", "x-"))
        return f"{'an' if an else 'a'} {self.en}"

    def name(self, language: str) -> str:
        return self.zh if language == "zh" else self.en


class Catalogue:
    """All concepts of the shards in `folder`; pictures are decoded on demand.

    `objects` is the default order: first the hand-picked ones, then the other objects, round-robin over sub-groups,
    short names first. English and Chinese names are unique within `objects`.

    Raises:
        FileNotFoundError: no shard in the folder.
    """

    def __init__(self, folder: Path = ASSETS):
        paths = sorted(folder.glob("*.tar"))
        if not paths:
            raise FileNotFoundError(f"no picture shards (*.tar) in {folder}; build_assets makes them")
        self._shards = [TarSource(path) for path in paths]
        self.all: tuple[Concept, ...] = tuple(_read_concepts(self._shards))
        self.objects: tuple[Concept, ...] = tuple(_default_order(self.all))

    def rgba(self, concept: Concept) -> np.ndarray:
        """The picture: uint8 [256, 256, 4], straight (not premultiplied) alpha."""
        with Image.open(io.BytesIO(self._shards[concept.shard].read(concept.key, "webp")), formats=["WEBP"]) as im:
            return np.asarray(im.convert("RGBA"))


@cache
def default_catalogue() -> Catalogue:
    """The embedded catalogue, read once per process (about 0.1 s)."""
    return Catalogue()


def _read_concepts(shards: list[TarSource]) -> list[Concept]:
    concepts = []
    for number, shard in enumerate(shards):
        for key in shard:
            about = json.loads(shard.read(key, "json"))
            en, zh = RENAMED.get(about["en"], (_clean(about["en"]), about["zh"]))
            concepts.append(
                Concept(key, en, zh, about["group"], about["subgroup"], about["emoji"], about["en"], number)
            )
    return concepts


def _clean(label: str) -> str:
    """Lower case, plain apostrophes, nothing in brackets or after a colon."""
    return re.sub(r"\s*[:(].*$", "", label.replace("’", "'")).lower().strip()


def _default_order(concepts: tuple[Concept, ...]) -> list[Concept]:
    objects = [c for c in concepts if c.group in OBJECT_GROUPS]
    by_label = {c.label: c for c in objects}
    ranked = [by_label[label] for label in PREFERRED if label in by_label]
    plain = [c for c in objects if not _is_confusable(c)]
    ranked += _round_robin(plain) + _round_robin([c for c in objects if _is_confusable(c)])
    order, seen = [], set()
    for concept in ranked:
        if concept.en not in seen and concept.zh not in seen:
            order.append(concept)
            seen |= {concept.en, concept.zh}
    return order


def _round_robin(concepts: list[Concept]) -> list[Concept]:
    """One of each sub-group in turn, short names first."""
    queues: dict[str, list[Concept]] = {}
    for concept in sorted(concepts, key=lambda c: (len(c.en.split()), len(c.en))):
        queues.setdefault(concept.subgroup, []).append(concept)
    depth = max(map(len, queues.values()), default=0)
    return [queue[i] for i in range(depth) for queue in queues.values() if i < len(queue)]


def _is_confusable(concept: Concept) -> bool:
    """Long names and families of near-equal pictures (clock faces, moon phases, front views) come last."""
    clumsy = ("o'clock", "thirty", " face", "moon", "oncoming", "globe showing", "speaker", "mailbox with")
    return len(concept.en.split()) > 2 or any(word in concept.en for word in clumsy)
