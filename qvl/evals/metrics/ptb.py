"""Penn Treebank tokens of a caption, in pure Python.

The public caption scores (COCO, nocaps, Flickr30K) are computed on the tokens of Stanford's `PTBTokenizer` 3.4.1
(`-preserveLines -lowerCase`), with punctuation dropped, so the score depends on this lexer. The official evaluation
starts Java for it; this one does not. It was written against the behaviour of the Java program, not from its source:
`tests/golden/caption/` pins 8,256 real captions (no difference) and 162 hard cases (9 known differences).

Knows: how an English caption is cut. Does not know: scores.

Upstream habits that are kept because the published numbers have them:
- brackets become `-lrb-` ... *after* lower-casing, so the punctuation list (`-LRB-`) does not remove them;
- runs such as `!!` and `?!` stay, only the single mark is dropped; full-width marks (`。`) stay;
- Chinese is not cut: one run of characters is one token. Put spaces between characters first
  (`space_chinese`), as the papers' Chinese captions are scored.
"""

from __future__ import annotations

import re
import unicodedata

PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# Abbreviations whose full stop belongs to the word.
_ABBREVIATIONS = (
    "mr mrs ms dr prof st jr sr inc corp co ltd plc bros vs v etc al e.g i.e cf ft ave rd blvd mt lt col gen sgt "
    "capt rev hon gov sen rep jan feb mar apr jun jul aug sep sept oct nov dec mon tues wed thurs fri dept assn "
    "univ mfg intl natl ala ariz calif colo conn fla ga ind kan ky md mich minn mo mont neb nev tel bldg ste est "
    "adj adv esq messrs mme mlle drs wis wyo tenn tue ext vt va okla penn pp"
)
# A capitalised word after "C. " that makes the full stop end a sentence instead of belonging to the letter.
_STARTERS = (
    "A About According Additionally After An As At But He Her Here However If In It Last Many More Mr. Now Once One "
    "Other Our She Since So Some Such That The Their Then There These They This We What When While Yet You THE"
)

_L = r"[^\W\d_]"  # a letter of any script
_Q = "['’]"
_AUX = rf"{_Q}(?:[sdm]|ll|re|ve)(?!{_L})"
_ABBR = "|".join(sorted(map(re.escape, _ABBREVIATIONS.split()), key=len, reverse=True))
_STARTER = "|".join(map(re.escape, _STARTERS.split()))
_WORD = r"\w+(?:-\w+)*"

# The longest match wins, ties go to the earlier rule (as in a generated lexer). Group 1, where there is one, is the
# token; what follows it in the pattern is context that counts for the length but is read again.
_RULES: tuple[re.Pattern[str], ...] = tuple(
    re.compile(p, flags)
    for p, flags in (
        (r"</?[A-Za-z!?][^>\n]*>", 0),
        (r"(?:https?://|www\.)[^\s<>\"]*[^\s<>\".,;:!?()\[\]']", re.I),
        (r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*", 0),
        (rf"[#@]{_L}\w*", 0),
        (r"-[lr][rcs]b-", re.I),
        (rf"({_L}+?)n{_Q}t(?!{_L})", re.I),  # is|n't, ca|n't
        (rf"n{_Q}t(?!{_L})", re.I),
        (_AUX, re.I),
        (rf"(can)not(?!{_L})|(gon|wan)na(?!{_L})|(got)ta(?!{_L})|(lem|gim)me(?!{_L})", re.I),
        (rf"({_Q}t)(?:is|was)", re.I),
        (rf"(y{_Q})all(?!{_L})", re.I),
        (rf"[dlo]{_Q}{_L}{{2,}}", re.I),
        (rf"(?:ma{_Q}am|c{_Q}mon|ol{_Q}|e{_Q}er|o{_Q}er|ne{_Q}er|ev{_Q}ry|hallowe{_Q}en)(?!{_L})", re.I),
        (rf"{_Q}n{_Q}|{_Q}(?:em|til|till|cause|n)(?!{_L})", re.I),
        (rf"{_Q}\d\ds", re.I),
        (rf"(?:{_ABBR})\.(?!\w)", re.I),
        (r"no\.(?=\s*\d)", re.I),
        (rf"(?!I\.)[A-Za-z]\.(?!\w)(?!\s+(?:{_STARTER})\s)", 0),
        (r"[A-Za-z](?:\.[A-Za-z])+\.?(?!\w)", 0),
        (r"ph\.d\.", re.I),
        (r"[A-Z]+&[A-Z]+", 0),
        (rf"{_L}\w*(?:[.!?]{_L}\w*)+", 0),
        (rf"{_WORD}(?:/{_WORD})+", 0),
        (_WORD, 0),
        (r"[+-]?(?:[.,]?\d+)(?:[.,:/-]\d+)*", 0),
        (r"(?:us|a|c|hk)?\$", re.I),
        (r"C\+\+|[CF]#", re.I),
        (r"[:;=]-?[()\[\]DP](?!\w)", 0),
        (r"\*+|_+", 0),
        (r"\.\.\.+|…|\.(?: \.){2,}", 0),
        (r"[!?]+", 0),
        (r"--+|[–—―]", 0),
        (r"''|``|[\"“”„«»]", 0),
        (r"\S", 0),
    )
)
_REWRITES = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "…": "...",
    "–": "--", "—": "--", "―": "--", "’": "'", "‘": "`", '"': "''", "“": "``", "”": "''", "«": "``", "»": "''",
    "£": "#", "€": "$", "¢": "cents", "½": "1/2", "¼": "1/4", "¾": "3/4",
}  # fmt: skip
_ENTITIES = (("&amp;", "&"), ("&quot;", '"'), ("&lt;", "<"), ("&gt;", ">"), ("&apos;", "'"), ("&nbsp;", " "))


def ptb_tokens(text: str) -> list[str]:
    """Lower-cased PTB tokens of one caption, punctuation dropped.

    "A man's t-shirt, isn't it?" -> ["a", "man", "'s", "t-shirt", "is", "n't", "it"].
    Reference: pycocoevalcap `PTBTokenizer.tokenize` (which calls Stanford CoreNLP 3.4.1).
    """
    return [token for token in _lex(_clean(text)) if token not in PUNCTUATION]


def space_chinese(text: str) -> str:
    """Puts spaces around every Chinese character, the usual step before scoring Chinese captions.

    "两只cat。" -> "两 只 cat 。"; text without Chinese is returned unchanged.
    """
    if not any(_is_chinese(c) for c in text):
        return text
    return " ".join("".join(f" {c} " if _is_chinese(c) else c for c in text).split())


def _is_chinese(char: str) -> bool:
    code = ord(char)
    return 0x3400 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF or 0x3000 <= code <= 0x303F or 0xFF00 <= code <= 0xFFEF


def _clean(text: str) -> str:
    for entity, char in _ENTITIES:
        text = text.replace(entity, char)
    text = text.replace("\u00ad", "").replace("\u200b", " ")
    # The lexer has no rule for characters beyond the basic plane (emoji): they are deleted, and separate words.
    return "".join(" " if ord(c) > 0xFFFF else c for c in text)


def _lex(text: str) -> list[str]:
    tokens: list[str] = []
    at, end = 0, len(text)
    while at < end:
        if text[at].isspace() or unicodedata.category(text[at]) == "Cc":
            at += 1
            continue
        token = _longest(text, at)
        at += len(token)
        tokens.append(_normal(token))
    return tokens


def _longest(text: str, at: int) -> str:
    best, best_length = text[at], 0
    for rule in _RULES:
        found = rule.match(text, at)
        if found is not None and found.end() - at > best_length:
            best_length = found.end() - at
            best = next((g for g in found.groups() if g), found.group())
    return best


def _normal(token: str) -> str:
    if token in _REWRITES:
        return _REWRITES[token]
    if token.startswith("--") and not token.strip("-"):
        return "--"
    if token.startswith(("...", ". .")):
        return "..."
    return "".join(_REWRITES.get(c, c) for c in token).lower()
