"""Byte-pair encoding that is there at once: in Python for the first words, by the tokenizers package for more.

Knows: how pieces of a word are merged, when the package's encoder is worth the half second that making it of a large
vocabulary takes. Does not know: special tokens, files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, final

from tokenizers import Tokenizer as Backend

from qvl.text.vocabulary import BYTE_CHARACTERS

_WORTH = 16384
"""Characters that are encoded in Python at most, about 30 ms of work."""
_LONGEST = 64
"""Characters of the longest word that is: merging in Python takes the square of them."""
_UNUSUAL = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "fuse_unk")
"""Settings of a BPE model that `_Tables` does not know."""

_DAMAGED = "tokenizer.json is damaged (copy or download it again) or of a kind that is not read"


@final
class Bpe:
    """Ordinary text <-> ids."""

    def __init__(self, made: Backend | _Tables) -> None:
        """
        Args:
            made: byte-level BPE without added tokens.
        """
        self._made = made
        self._encoded = 0
        self._spellings: dict[int, str] | None = None

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Bpe:
        """From what a tokenizer.json without added tokens says.

        Raises:
            ValueError: nothing can be made of it.
        """
        ids = content["model"]["vocab"].values()
        if max(ids, default=-1) != len(ids) - 1:
            raise ValueError(f"{_DAMAGED}: its {len(ids)} ordinary tokens have ids up to {max(ids, default=-1)}")
        return cls(_Tables(content) if _Tables.can_be(content) else _backend_of(content))

    def __reduce__(self) -> tuple[type[Bpe], tuple[Backend]]:
        return Bpe, (self._backend(),)  # which pickles itself

    @property
    def size(self) -> int:
        """Number of ids."""
        made = self._made
        return len(made.vocab) if isinstance(made, _Tables) else made.get_vocab_size(with_added_tokens=False)

    def encode(self, text: str) -> Sequence[int]:
        made = self._made  # another thread may exchange it
        if isinstance(made, _Tables):
            self._encoded += len(text)
            ids = made.encode(text) if self._encoded <= _WORTH else None
            if ids is not None:
                return ids
            made = self._backend()
        return made.encode(text, add_special_tokens=False).ids

    def spelling(self, token_id: int) -> str | None:
        """The printable spelling of an id; None for one that there is not."""
        made = self._made
        if not isinstance(made, _Tables):
            return made.id_to_token(token_id)
        spellings = self._spellings
        if spellings is None:
            spellings = self._spellings = {i: spelling for spelling, i in made.vocab.items()}
        return spellings.get(token_id)

    def to_json(self) -> str:
        """A tokenizer.json's content, without added tokens."""
        return self._backend().to_str()

    def _backend(self) -> Backend:
        """The package's encoder, from now on in the place of the tables."""
        made = self._made
        if isinstance(made, _Tables):
            made = self._made = made.backend()
            self._spellings = None
        return made


@final
class _Tables:
    """The same as a `Backend`, slower by the word (its twin) and made in a tenth of the time."""

    @staticmethod
    def can_be(content: Mapping[str, Any]) -> bool:
        """Whether nothing is asked for but plain byte-level BPE."""
        model = content["model"]
        usual = not any(model.get(name) for name in _UNUSUAL)
        return usual and bool(content.get("pre_tokenizer")) and all(c in model["vocab"] for c in BYTE_CHARACTERS)

    def __init__(self, content: Mapping[str, Any]) -> None:
        model = content["model"]
        merges = model["merges"]
        self.vocab: dict[str, int] = model["vocab"]
        pairs = (tuple(m.split(" ")) for m in merges) if merges and isinstance(merges[0], str) else map(tuple, merges)
        try:
            self._ranks: dict[tuple[str, ...], int] = dict(zip(pairs, range(len(merges)), strict=True))
        except (AttributeError, TypeError) as error:
            raise ValueError(f"{_DAMAGED}: its merges are not pairs of tokens ({error})") from None
        self._whole_words = bool(model.get("ignore_merges"))
        self._frame = {**content, "model": {**model, "vocab": {}, "merges": []}}
        cutter = _backend_of(self._frame)
        self._normalizer, self._pre_tokenizer = cutter.normalizer, cutter.pre_tokenizer

    def encode(self, text: str) -> list[int] | None:
        """None for a text that only the package encodes in good time."""
        if self._normalizer is not None:
            text = self._normalizer.normalize_str(text)
        ids: list[int] = []
        for word, _ in self._pre_tokenizer.pre_tokenize_str(text):
            if len(word) > _LONGEST:
                return None
            pieces = [word] if self._whole_words and word in self.vocab else self._merged(word)
            try:
                ids += [self.vocab[piece] for piece in pieces]
            except KeyError as error:  # to look for such pieces when the file is read would take as long as reading it
                raise ValueError(f"{_DAMAGED}: its merges make {error}, which its vocabulary lacks") from None
        return ids

    def _merged(self, word: str) -> list[str]:
        """The pieces that are left when no two neighbours can be merged: earliest rule first, leftmost of equals."""
        pieces, never = list(word), len(self._ranks)
        while len(pieces) > 1:
            ranks = [self._ranks.get(pair, never) for pair in pairwise(pieces)]
            if (best := min(ranks)) == never:
                break
            at = ranks.index(best)
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        return pieces

    def backend(self) -> Backend:
        merges = [list(pair) for pair, _ in sorted(self._ranks.items(), key=lambda item: item[1])]
        return _backend_of({**self._frame, "model": {**self._frame["model"], "vocab": self.vocab, "merges": merges}})


def _backend_of(content: Mapping[str, Any]) -> Backend:
    try:
        return Backend.from_str(json.dumps(content))
    except Exception as error:  # the package raises nothing more precise
        raise ValueError(f"{_DAMAGED}: {error}") from error
