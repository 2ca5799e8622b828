"""The vocabulary of a pretrained language model as that of a Qwen2-VL.

Knows: how another byte-level BPE becomes ours: its ordinary tokens first and in their order, then Qwen2-VL's special
tokens; which row of the language model's embedding each token had.
Does not know: embeddings, files other than tokenizer.json.

    SmolLM2:  0 <|endoftext|>  1 <|im_start|>  ...  16 <empty_output>  17 !  18 "  ...  49151 ectable
    ours:     0 !  1 "  ...  49134 ectable  ...  <|endoftext|>  <|im_start|>  ...  <|video_pad|>
    rows:     17   18   ...  49151          -1   0              1             ...  -1

A special token that both have keeps its row; other special tokens of the language model go. Bytes that the vocabulary
lacks (SmolLM2 has 235 of 256) come behind the ordinary tokens, so that any text can be told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from qvl.text.bpe import Bpe
from qvl.text.family import QWEN2_VL
from qvl.text.folder import TOKENIZER_FILE, read_folder
from qvl.text.tokenizer import PRETOKEN_PATTERN, Tokenizer
from qvl.text.vocabulary import BYTE_CHARACTERS

_LLAMA3_PATTERN = PRETOKEN_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_DIGITS = {"type": "Digits", "individual_digits": True}


def _split(pattern: str) -> list[dict[str, Any]]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [split, {**_BYTES, "use_regex": False}]


_WORDS: dict[str, list[dict[str, Any]]] = {
    "smollm": [_DIGITS, {**_BYTES, "use_regex": True}],
    "gpt-2": [{**_BYTES, "use_regex": True}],
    "qwen2": _split(PRETOKEN_PATTERN),
    "llama-bpe": _split(_LLAMA3_PATTERN),
}
"""GGUF's names of ways to cut text into words (`tokenizer.ggml.pre`)."""


@final
@dataclass(frozen=True)
class Adopted:
    tokenizer: Tokenizer
    rows: tuple[int, ...]
    """Of each id, the row of the language model's embedding; -1 = a token that it does not have."""


def adopt_pieces(tokens: Sequence[str], merges: Sequence[str], specials: Sequence[int], words: str) -> Adopted:
    """From the lists that a GGUF file holds.

    Args:
        tokens: spelling of each id, in the printable alphabet of byte-level BPE.
        merges: `left right`, in order.
        specials: ids of special tokens.
        words: how text is cut into words, by llama.cpp's name for it.

    Raises:
        ValueError: words are cut in a way that is not implemented.
    """
    if words not in _WORDS:
        raise ValueError(f"words cut as {words!r} are not implemented (tokenizer.ggml.pre); known: {', '.join(_WORDS)}")
    marked = set(specials)
    content = {
        "version": "1.0",
        "normalizer": {"type": "NFC"} if words == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _WORDS[words]},
        "decoder": {**_BYTES, "use_regex": False},
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens) if i not in marked},
            "merges": list(merges),
            "ignore_merges": words == "llama-bpe",
        },
        "added_tokens": [],
    }
    return _adopt(content, {tokens[i]: i for i in marked})


def adopt_folder(path: str | Path) -> Adopted:
    """From the tokenizer.json of a folder.

    Raises:
        FileNotFoundError: the folder or its tokenizer.json is missing.
        ValueError: the file is damaged or not byte-level BPE.
    """
    if not (Path(path) / TOKENIZER_FILE).is_file():
        raise FileNotFoundError(f"no {TOKENIZER_FILE} in {path}: the language model's vocabulary is needed too")
    return _adopt(*read_folder(path))


def _adopt(content: dict[str, Any], specials: dict[str, int]) -> Adopted:
    """`content`: a tokenizer.json without added tokens."""
    old = content["model"]["vocab"]
    ordinary = sorted(old, key=old.__getitem__)
    rows = [old[token] for token in ordinary]
    missing = [c for c in BYTE_CHARACTERS if c not in old]
    rows += [-1] * len(missing)
    content["model"]["vocab"] = {token: i for i, token in enumerate([*ordinary, *missing])}
    names = QWEN2_VL.specials
    tokenizer = Tokenizer(Bpe.of(content), {name: len(rows) + i for i, name in enumerate(names)})
    return Adopted(tokenizer, (*rows, *(specials.get(name, -1) for name in names)))
