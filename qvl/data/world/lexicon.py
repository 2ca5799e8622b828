"""All that a world can say, for building a tokenizer that has whole pieces for it.

Knows: templates, names, places, colours, digits.
Does not know: tokens.
"""

from __future__ import annotations

import string

from qvl.data.world.catalogue import Concept
from qvl.data.world.phrases import EN, NUMBERS_ZH, PLACES, PLACES_ZH, ZH, at_place
from qvl.data.world.scene import COLOURS


def lexicon(concepts: tuple[Concept, ...]) -> list[str]:
    """Phrases, without markup; every name also as it stands after a word, because byte-level pieces hold the space."""
    phrases: dict[str, None] = {}

    def add(*texts: str) -> None:
        phrases.update(dict.fromkeys(texts))

    for concept in concepts:
        add(concept.en, f" {concept.en}", f" {concept.en_phrase}", concept.en_phrase, f"the {concept.en}", concept.zh)
    for template in (*EN.values(), *ZH.values()):
        add(*_fixed_parts(template))
    for word in (*PLACES, *COLOURS, "yes", "no", "left", "right", "above", "below"):
        add(word, f" {word}")
    for cell in range(9):
        add(f" {at_place('en', cell)}", PLACES_ZH[cell], f"{PLACES_ZH[cell]}的物体")
    add(*(zh for zh, _ in COLOURS.values()), *NUMBERS_ZH)
    add(*string.digits, *(f" {d}" for d in string.digits), "(", ")", ",", "),(", ".", "?", ":", "。", "，", "？", "：")
    return list(phrases)


def _fixed_parts(template: str) -> list[str]:
    """The template's own words as they are pieced when names stand in its holes: "Is ", " above ", "?"."""
    parts = [literal for literal, _, _, _ in string.Formatter().parse(template) if literal]
    return [template.format_map(_Holes()), *parts]


class _Holes(dict):
    """Fills every hole with a Chinese-and-English-neutral digit, so that word borders stay where they are."""

    def __missing__(self, key: str) -> str:
        return "0"
