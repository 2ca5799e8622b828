"""Another model's vocabulary with Qwen2-VL's special tokens behind it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qvl.text.adopted import Adopted, adopt_folder, adopt_pieces
from qvl.text.family import QWEN2_VL
from qvl.text.tokenizer import Tokenizer

TOKENS = ["<|endoftext|>", "<|im_start|>", "<repo_name>", "a", "b", "ab", "Ġ", "Ġab", "1"]
MERGES = ["a b", "Ġ ab"]


def adopted(words: str = "smollm") -> Adopted:
    return adopt_pieces(TOKENS, MERGES, [0, 1, 2], words)


def test_rows_follow_their_tokens() -> None:
    found = adopted()
    tokenizer, rows = found.tokenizer, found.rows
    assert len(rows) == tokenizer.vocab_size == 256 + 2 + len(QWEN2_VL.specials)  # "ab" and " ab" beside the bytes
    for text in ("a", "ab", " ab", "1"):
        (id_,) = tokenizer.encode(text)
        assert TOKENS[rows[id_]].replace("Ġ", " ") == text
    assert rows[tokenizer.special("<|im_start|>")] == 1
    assert rows[tokenizer.special("<|endoftext|>")] == 0
    assert rows[tokenizer.special("<|box_start|>")] == -1
    assert 2 not in rows, "a special token that Qwen2-VL does not have"


def test_any_text_can_be_told() -> None:
    tokenizer = adopted().tokenizer
    for text in ("ab ab 2024", "汉字\x01\x7fé", "<|im_start|>", "a\nb\r\n"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("11")) == 2, "digits stand alone"
    assert tokenizer.special("<|im_start|>") not in tokenizer.encode("<|im_start|>")


def test_saved_and_read_again(tmp_path: Path) -> None:
    tokenizer = adopted().tokenizer
    tokenizer.save(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    assert again.specials == tokenizer.specials
    assert again.encode("ab 1 ü") == tokenizer.encode("ab 1 ü")
    # Its specials lie behind the ordinary tokens, so the folder adopted anew keeps every row.
    twice = adopt_folder(tmp_path)
    assert twice.rows == tuple(range(tokenizer.vocab_size))


def test_words_cut_in_an_unknown_way() -> None:
    with pytest.raises(ValueError, match="words cut as 'deepseek' are not implemented"):
        adopted("deepseek")
    with pytest.raises(FileNotFoundError, match=r"no tokenizer.json in"):
        adopt_folder("nowhere")
