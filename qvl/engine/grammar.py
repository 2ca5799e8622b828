"""JSON that fits a schema, alone or after given words: which tokens may come next.

Knows: schemas, the bytes of every token, llguidance, which follows the grammar. Does not know: models, requests.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from torch import Tensor

from qvl.engine.api import Beginning, Sampling
from qvl.text.tokenizer import Tokenizer

_OPTIONS = {"whitespace_pattern": r"\n?[ ]{0,12}"}
"""Between JSON's parts: indented or on one line, but no endless white space."""


@final
class _Vocabulary:
    """What llguidance reads of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Sequence[int]) -> None:
        self.eos_token_id = stop_ids[0]
        self.bos_token_id = None
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = list(tokenizer.specials.values())
        self._tokenizer = tokenizer

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)


@final
class Grammars:
    """Makes grammars over one vocabulary, whose table is built when the first is asked for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._built: dict[tuple[int, ...], LLTokenizer] = {}
        self._lock = threading.Lock()

    def of(self, sampling: Sampling, stop_ids: tuple[int, ...]) -> Grammar | None:
        """The grammar that a reply has to follow, ended by one of `stop_ids`; None if it may say what it likes.

        Raises:
            ValueError: no schema, or one that says something that cannot be followed.
        """
        if sampling.beginning is not None:
            return self._made(LLMatcher.grammar_from_lark(_lark(sampling.beginning)), stop_ids, "the schema of a call")
        return None if sampling.json_schema is None else self.json(sampling.json_schema, stop_ids)

    def json(self, schema: str, stop_ids: tuple[int, ...]) -> Grammar:
        """The grammar of JSON texts that fit `schema`. Raises: as `of`."""
        anything = json.loads(schema) == {}
        wanted = '{"type": "object"}' if anything else schema
        try:
            grammar = LLMatcher.grammar_from_json_schema(wanted, overrides=_OPTIONS)
        except ValueError as error:
            raise ValueError(f"json_schema cannot be followed: {error}") from error
        return self._made(grammar, stop_ids, "json_schema")

    def _made(self, grammar: str, stop_ids: tuple[int, ...], what: str) -> Grammar:
        vocabulary = self._vocabulary(stop_ids)
        if problem := LLMatcher.validate_grammar(grammar, vocabulary):
            raise ValueError(f"{what} cannot be followed: {_last_line(problem)}")
        matcher = LLMatcher(vocabulary, grammar, log_level=0)
        matcher.compute_bitmask()  # some schemas, such as {"$ref": "#"}, turn out to allow nothing only here
        if matcher.is_error():
            raise ValueError(f"{what} cannot be followed: {_first_line(matcher)}")
        return Grammar(matcher)

    def _vocabulary(self, stop_ids: tuple[int, ...]) -> LLTokenizer:
        with self._lock:
            if stop_ids not in self._built:
                wrapper = TokenizerWrapper(_Vocabulary(self._tokenizer, stop_ids))
                slices = LLTokenizer.json_slices()
                self._built[stop_ids] = LLTokenizer(wrapper, eos_token=list(stop_ids), slices=slices)
            return self._built[stop_ids]


def _lark(beginning: Beginning) -> str:
    """In llguidance's spelling of Lark: `start: (c0 | c1) rest`, `c0: " crop: " %json {"type": "object", ...}` ..."""
    options = {"x-guidance": _OPTIONS | {"lenient": True}}
    rules = [
        f"c{i}: {json.dumps(text, ensure_ascii=False)} %json {json.dumps(json.loads(schema) | options)}"
        for i, (text, schema) in enumerate(beginning.choices)
    ]
    one = " | ".join(f"c{i}" for i in range(len(rules)))
    start = [f"start: {one}"] if beginning.whole else [f"start: ({one}) rest", r"rest: /(.|\n)*/"]
    return "\n".join([*start, *rules])


@final
class Grammar:
    """Follows one reply."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def complete(self) -> bool:
        """Nothing but the end may follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def allowed(self, size: int) -> Tensor:
        """bool [size] on the CPU: the ids that may come next; ids past the vocabulary never may.

        Raises:
            ValueError: the grammar became too large to be followed.
        """
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        self._check()
        allowed_V = np.zeros(size, bool)
        allowed_V[: min(size, len(bits))] = bits[:size]
        return torch.from_numpy(allowed_V)

    def push(self, token_id: int) -> None:
        """Tells the grammar that an allowed token was chosen.

        Raises:
            ValueError: as `allowed`.
        """
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        """A matcher that met an error calls itself stopped, as one whose text is whole does."""
        if self._matcher.is_error():
            raise ValueError(f"json_schema can be followed no further: {_first_line(self._matcher)}")


def _last_line(problem: str) -> str:
    """What is wrong with a grammar, without its listing."""
    said = re.split(r"\n +\d+ \| ", problem.strip())[0].splitlines()[-1]
    return said.partition("JSON schema: ")[2] or said


def _first_line(matcher: LLMatcher) -> str:
    """What went wrong, without the dump of the matcher's state."""
    return matcher.get_error().strip().partition("\n")[0]
