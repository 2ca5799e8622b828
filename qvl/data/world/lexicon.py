"""All that a world can say, for building a tokenizer that has whole pieces for it.

Knows: templates, names, places, colours, digits.
Does not know: tokens.

Byte-level pieces of English end at word borders, so each word once with and once without its leading space is enough.
Chinese has no such borders, pieces may join characters of two words: every template is filled with every name.
"""

from __future__ import annotations

import string

from qvl.data.world.catalogue import Concept
from qvl.data.world.phrases import EN, NUMBERS_ZH, PLACES, PLACES_ZH, ZH, at_place
from qvl.data.world.scene import COLOURS

_NAMED = ("a", "b", "the", "thing", "things")


def lexicon(concepts: tuple[Concept, ...]) -> list[str]:
    """Phrases without markup, each once."""
    phrases: dict[str, None] = {}

    def add(*texts: str) -> None:
        phrases.update(dict.fromkeys(texts))

    for concept in concepts:
        add(concept.en, f" {concept.en}", concept.en_phrase, f" {concept.en_phrase}", f"the {concept.en}", concept.zh)
    for template in EN.values():
        for part in _fixed_parts(template):
            add(part, f" {part.strip()}")
    for word in (*PLACES, *COLOURS):
        add(word, f" {word}")
    for cell in range(9):
        add(f" {at_place('en', cell)}", PLACES_ZH[cell])
    for template in ZH.values():
        add(*_filled(template, concepts))
    add(*(zh for zh, _ in COLOURS.values()), *NUMBERS_ZH)
    add(*string.digits, *(f" {d}" for d in string.digits), "(", ")", ",", "),(", ".", "?", ":", "。", "，", "？", "：")
    return list(phrases)


def _fixed_parts(template: str) -> list[str]:
    """The template's own words: "Is ", " above ", "?"."""
    return [literal for literal, _, _, _ in string.Formatter().parse(template) if literal]


def _filled(template: str, concepts: tuple[Concept, ...]) -> list[str]:
    """The template with every name, place and colour in its holes."""
    holes = {hole for _, hole, _, _ in string.Formatter().parse(template) if hole}
    places = PLACES_ZH if "place" in holes else ("",)
    colours = [zh for zh, _ in COLOURS.values()] if "colour" in holes else [""]
    names = [c.zh for c in concepts] if holes & set(_NAMED) else [""]
    return [
        template.format(
            **dict.fromkeys(_NAMED, name), place=place, colour=colour, word=colour, question="", box="", preface=""
        )
        for name in names
        for place in places
        for colour in colours
    ]
