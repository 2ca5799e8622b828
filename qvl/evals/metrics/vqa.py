"""VQA accuracy with the official answer normaliser, and the exact matches of GQA, OCR-VQA and AI2D.

Knows: answer strings. Does not know: questions, pictures.

The normaliser keeps three habits of the official script, because the published numbers have them:
- `(?!<=\\d)` was meant as a look-behind and is none, so a full stop is dropped unless a digit *follows*;
- `sub("", text, re.UNICODE)` passes the flag as the count, so at most 32 full stops are dropped;
- of the annotators' answers only the punctuation is normalised, and that only when they disagree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

_FULL_STOP = re.compile(r"(?!<=\d)(\.)(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"(\d)(,)(\d)")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = MappingProxyType(
    {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
    | {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}
)
_ARTICLES = frozenset(("a", "an", "the"))

# Right sides of the official table whose left side is the same word without (some of) its apostrophes.
_DROP_ALL = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's "
    "I'm I've isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't "
    "should've shouldn't somebody'll somebody's someone'll someone's something'll that's there're there's they'd "
    "they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've "
    "who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've"
)
_DROP_ONE = (
    "couldn't've hadn't've he'd've I'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've "
    "something'd've there'd've they'd've we'd've who'd've wouldn't've you'd've"
)
_ODD = MappingProxyType(
    {
        "let's": "let's",
        "she's": "she's",
        "ow's'at": "'ow's'at",
        "'ows'at": "'ow's'at",
        "'ow'sat": "'ow's'at",
        "somebody'd": "somebodyd",
        "someoned": "someone'd",
        "somethingd": "something'd",
        "thered": "there'd",
        "whod": "who'd",
        "yall'll": "y'all'll",
        "y'allll": "y'all'll",
        "yall'd've": "y'all'd've",
        "y'alld've": "y'all'd've",
        "y'all'dve": "y'all'd've",
    }
)


def _contractions() -> Mapping[str, str]:
    table = {word.replace("'", ""): word for word in _DROP_ALL.split()}
    for word in _DROP_ONE.split():
        first, second = word.index("'"), word.rindex("'")
        table[word[:first] + word[first + 1 :]] = word
        table[word[:second] + word[second + 1 :]] = word
    return MappingProxyType(table | _ODD)


CONTRACTIONS = _contractions()


def normalise_punctuation(text: str) -> str:
    """Official `processPunctuation`: "it's red, I think." -> "it's red I think"."""
    thousands = _COMMA_IN_NUMBER.search(text) is not None
    out = text
    for mark in _PUNCTUATION:
        at_an_edge = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if at_an_edge or thousands else " ")
    return _FULL_STOP.sub("", out, count=32)


def normalise_words(text: str) -> str:
    """Official `processDigitArticle`: "Two of the dogs dont" -> "2 of dogs don't"."""
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def normalise_answer(text: str) -> str:
    """What the official script does to a model's answer before comparing."""
    return normalise_words(normalise_punctuation(text.replace("\n", " ").replace("\t", " ").strip()))


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Official VQA accuracy of one prediction against the answers of (ten) annotators, in 0..1.

    Mean over annotators of min(matches among the *other* annotators / 3, 1): with 10 annotators 3 equal answers give
    0.9, 4 give 1.0, one gives 0.3. Reference: the VQA evaluation script as shipped in Qwen-VL's `eval_mm/vqa_eval.py`.

    Raises:
        ValueError: no answers.
    """
    if isinstance(answers, str) or not answers:
        raise ValueError(f"VQA accuracy needs a non-empty list of the annotators' answers, got {answers!r}")
    given = normalise_answer(prediction)
    truths = list(answers)
    if len(set(truths)) > 1:
        truths = [normalise_punctuation(t) for t in truths]
    matches = [t == given for t in truths]
    total = sum(matches)
    return sum(min(1.0, (total - mine) / 3) for mine in matches) / len(truths)


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Equal to one of the answers after lower-casing and stripping (AI2D, OCR-VQA, GQA after `gqa_answer`)."""
    if isinstance(answers, str):
        raise ValueError(f"answers must be a list of strings, got the string {answers!r}")
    return any(prediction.strip().lower() == a.strip().lower() for a in answers)


def gqa_answer(reply: str) -> str:
    """The short answer Qwen-VL's script reads out of a GQA reply: "It is a dog, I think." -> "dog".

    Cut at the first of `. , !`, then keep what stands between successive "is ", "are ", "a ", "an ", "the " and before
    " of". The cuts look at substrings, not words ("pizza slice" -> "slice"): upstream habit, kept for parity.
    """
    text = reply.strip().split(".")[0].split(",")[0].split("!")[0].lower()
    for mark in ("is ", "are ", "a ", "an ", "the "):
        if mark in text:
            text = text.split(mark)[1]
    return text.split(" of")[0].strip()
