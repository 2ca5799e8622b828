from __future__ import annotations

from itertools import pairwise

import pytest

from qvl.text.family import QWEN2_VL, QWEN_VL
from qvl.text.vocabulary import (
    BYTE_CHARACTERS,
    load_qwen_ranks,
    merge_parents,
    parse_ranks,
    spell,
    unspell,
    write_ranks,
)


@pytest.fixture(scope="module")
def ranks() -> list[bytes]:
    return load_qwen_ranks()


def bpe_halves(token: bytes, rank_of: dict[bytes, int]) -> tuple[int, ...]:
    """The slow twin of `merge_parents`: merge the token's bytes by rank until only its own rank is left."""
    own = rank_of[token]
    pieces = [token[i : i + 1] for i in range(len(token))]
    while True:
        merged = [rank_of.get(a + b, own) for a, b in pairwise(pieces)]
        at = min(range(len(merged)), key=merged.__getitem__)
        if merged[at] >= own:
            return tuple(rank_of[piece] for piece in pieces)
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]


def test_the_published_vocabulary_is_whole(ranks: list[bytes]) -> None:
    assert len(ranks) == len(set(ranks)) == 151643
    assert {len(token) for token in ranks[:256]} == {1}
    assert ranks[:3] == [b"!", b'"', b"#"]
    assert (len(QWEN2_VL.specials), len(QWEN_VL.specials)) == (14, 217)


@pytest.mark.slow
def test_merge_parents_equal_plain_bpe(ranks: list[bytes]) -> None:
    # every 16th token and all long ones, where several splits compete; all 151,387 were compared once, no difference
    rank_of = {token: i for i, token in enumerate(ranks)}
    parents = merge_parents(ranks)
    assert parents[:256] == [None] * 256
    chosen = {*range(256, len(ranks), 16), *(i for i, t in enumerate(ranks) if len(t) > 24)}
    assert {i: parents[i] for i in chosen} == {i: bpe_halves(ranks[i], rank_of) for i in chosen}


def test_repeated_characters_split_from_the_left() -> None:
    tokens = [b"a", b"aa", b"aaa", b"aaaa", b"aaaaaa"]
    assert merge_parents(tokens) == [None, (0, 0), (1, 0), (1, 1), (3, 1)]


def test_a_token_that_no_merge_makes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"b'abc' \(rank 3\)"):
        merge_parents([b"a", b"b", b"c", b"abc"])


def test_spelling_is_a_bijection_on_bytes() -> None:
    every = bytes(range(256))
    assert len(set(BYTE_CHARACTERS)) == 256
    assert unspell(spell(every)) == every
    assert spell(b" a\n") == "ĠaĊ"
    with pytest.raises(ValueError, match="not byte-level"):
        unspell("▁word")


def test_rank_file_line_ends_and_order() -> None:
    assert parse_ranks(b"IQ== 0\r\nIg== 1\r\n") == parse_ranks(b"IQ== 0\nIg== 1\n") == [b"!", b'"']
    assert write_ranks([b"!", b'"']) == b"IQ== 0\nIg== 1\n"
    with pytest.raises(ValueError, match=r"0\.\.1 in order"):
        parse_ranks(b"IQ== 1\nIg== 0\n")
    for broken in (b"", b"IQ== 0 Ig==", b"?? 0"):
        with pytest.raises(ValueError, match=r"in order|base64|padding"):
            parse_ranks(broken)
