"""Encoding in Python gives what the package gives, and gives way to it."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from test_tokenizer import SAMPLES, TEXTS

from qvl.text import bpe as module
from qvl.text.adopted import adopt_pieces
from qvl.text.bpe import Bpe, _Tables
from qvl.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def content(saved: Path) -> dict[str, Any]:
    return json.loads((saved / "tokenizer.json").read_text(encoding="utf-8")) | {"added_tokens": []}


@pytest.fixture(scope="module")
def tables(content: dict[str, Any]) -> _Tables:
    return _Tables(content)


@pytest.mark.parametrize("text", SAMPLES)
def test_samples(text: str, tables: _Tables, full: Tokenizer) -> None:
    ids = tables.encode(text)
    long = max(map(len, text.split(" ")), default=0) > 40 or " " * 64 in text
    assert ids == full.encode(text) or (ids is None and long)


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_any_text(text: str, tables: _Tables, full: Tokenizer) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return  # the tokenizer replaces halves of pairs before
    assert tables.encode(text) in (full.encode(text), None)


def test_small_vocabularies_and_other_spellings(small: Tokenizer, tmp_path: Path) -> None:
    small.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8")) | {"added_tokens": []}
    strings = [" ".join(pair) for pair in content["model"]["merges"]]
    for merges in (content["model"]["merges"], strings):
        tables = _Tables(content | {"model": content["model"] | {"merges": merges}})
        for text in ("the red circle is left of the blue square", "数一数图中有几个圆 12\n\n"):
            assert tables.encode(text) == small.encode(text)
            assert tables.backend().encode(text).ids == small.encode(text)


def test_words_that_are_whole_whatever_the_merges_say() -> None:
    """As Llama 3's vocabulary has it."""
    tokens, merges = ["a", "b", "c", "ab", "abc"], ["a b"]
    for words, wanted in (("llama-bpe", ["abc"]), ("qwen2", ["ab", "c"])):
        tokenizer = adopt_pieces(tokens, merges, [], words).tokenizer
        assert isinstance(tokenizer._bpe._made, _Tables)
        assert [tokenizer.token_bytes(i).decode() for i in tokenizer.encode("abc")] == wanted
        twin = Tokenizer(pickle.loads(pickle.dumps(tokenizer._bpe)), {})
        assert twin.encode("abc cab") == tokenizer.encode("abc cab")


@pytest.mark.slow
def test_after_a_while_the_package_takes_over(content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WORTH", 20)
    bpe = Bpe.of(content)
    first = bpe.encode("twelve chars")
    assert bpe.spelling(first[0]) == "tw"
    assert isinstance(bpe._made, _Tables)
    assert bpe.encode("twelve chars") == first
    assert not isinstance(bpe._made, _Tables)
    assert bpe.spelling(first[0]) == "tw"
    assert bpe.spelling(bpe.size) is None


@pytest.mark.slow
def test_a_long_word_goes_to_the_package(content: dict[str, Any], full: Tokenizer) -> None:
    bpe = Bpe.of(content)
    assert list(bpe.encode("a" * 3000)) == full.encode("a" * 3000)
    assert not isinstance(bpe._made, _Tables)


@pytest.mark.parametrize("unusual", [{"byte_fallback": True}, {"continuing_subword_prefix": "##"}, {"dropout": 0.1}])
def test_unusual_models_are_the_packages(unusual: dict[str, Any], content: dict[str, Any]) -> None:
    assert _Tables.can_be(content)
    assert not _Tables.can_be(content | {"model": content["model"] | unusual})
    vocab = {k: v for k, v in content["model"]["vocab"].items() if k != "!"}
    assert not _Tables.can_be(content | {"model": content["model"] | {"vocab": vocab}})


def test_a_question_is_asked_without_the_package(saved: Path) -> None:
    code = (
        "import sys\n"
        "from tokenizers import Tokenizer as Backend\n"
        "from qvl.text.tokenizer import Tokenizer\n"
        "t = Tokenizer.from_folder(sys.argv[1])\n"
        "assert t.decode(t.encode('Where is the cat?\\n')) == 'Where is the cat?\\n'\n"
        "print(type(t._bpe._made).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(saved)], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "_Tables"
