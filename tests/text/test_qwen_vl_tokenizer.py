"""Qwen-VL's vocabulary: official ids, its own folder files, a reduced one, and the reference's encoding as oracle."""

from __future__ import annotations

import hashlib
import json
import pickle
import unicodedata
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl.text.family import QWEN2_VL, QWEN_VL
from qvl.text.folder import has_tokenizer
from qvl.text.grounding import box, ref
from qvl.text.tokenizer import Tokenizer
from qvl.text.vocabulary import load_qwen_ranks

PATTERN = (
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"""
    r"""|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
MARKS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
TEXT = "框出图中击掌的位置 <ref>击掌</ref><box>(536,509),(588,602)</box> isn't\n\n  12 🙂"
PIECES = st.sampled_from([*MARKS, "<|im_start|>", "<img>", "<|box_start|>x", " the", "\n\n", "(176,106),", "。", "'ll"])
# a combining character right behind a mark is NFC's only chance to reach over it; the reference lets it, we do not
TEXTS = st.lists(st.one_of(st.text("ab cd'S\n\r 19<>/,()你好é🙂", max_size=12), PIECES), max_size=8).map("".join)


@pytest.fixture(scope="module")
def oracle() -> tiktoken.Encoding:
    """tokenization_qwen.py's encoding, its special tokens written out again."""
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
    names = [*control, *MARKS, "<img>", "</img>", "<imgpad>"]
    ranks = {token: i for i, token in enumerate(load_qwen_ranks())}
    specials = {name: len(ranks) + i for i, name in enumerate(names)}
    return tiktoken.Encoding("v1", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=specials)


def test_official_ids(v1: Tokenizer) -> None:
    assert v1.vocab_size == 151860
    assert [v1.special(f"<|{name}|>") for name in ("endoftext", "im_start", "im_end")] == [151643, 151644, 151645]
    assert (v1.special("<|extra_0|>"), v1.special("<|extra_204|>")) == (151646, 151850)
    assert [v1.special(mark) for mark in MARKS] == [*range(151851, 151857)]
    assert [v1.special(name) for name in ("<img>", "</img>", "<imgpad>")] == [151857, 151858, 151859]
    assert len(v1.encode("(176,106),(232,160)")) == 17
    with pytest.raises(ValueError, match=r"no special token '<\|image_pad\|>'.*<imgpad>") as error:
        v1.special("<|image_pad|>")
    assert len(str(error.value)) < 400  # the 205 unused tokens are not listed


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_equals_the_reference(v1: Tokenizer, oracle: tiktoken.Encoding, text: str) -> None:
    """`tokenizer.encode(text, allowed_special=IMAGE_ST)` without pictures, and plain text."""
    normal = unicodedata.normalize("NFC", text)
    own_spelling = text.replace("<|box_start|>", "")  # the spelling that samples carry is read as well: tested below
    assert v1.encode(own_spelling, markup=True) == oracle.encode(
        normal.replace("<|box_start|>", ""), allowed_special=set(MARKS), disallowed_special=()
    )
    assert v1.encode(text) == oracle.encode(normal, disallowed_special=())


def test_marks_of_samples_become_the_familys_own(v1: Tokenizer, full: Tokenizer) -> None:
    neutral = ref("the cat") + box((1, 2, 30, 40))
    own = ref("the cat", QWEN_VL.markup) + box((1, 2, 30, 40), QWEN_VL.markup)
    assert own == "<ref>the cat</ref><box>(1,2),(30,40)</box>"
    ids = v1.encode(neutral, markup=True)
    assert ids == v1.encode(own, markup=True)
    assert [i for i in ids if i >= 151643] == [151851, 151852, 151853, 151854]
    assert v1.decode(ids) == own
    assert v1.decode(ids, keep_markup=False) == "the cat(1,2),(30,40)"
    # not the other way round: for Qwen2-VL `<box>` is what a user typed
    assert max(full.encode(own, markup=True)) < 151643


def test_a_vocabulary_without_marks_keeps_them_as_text(full: Tokenizer) -> None:
    bare = Tokenizer(full._bpe, {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645})
    assert bare.decode(bare.encode("<|box_start|>(1,2)", markup=True)) == "<|box_start|>(1,2)"


def test_decode_leaves_out_pictures(v1: Tokenizer) -> None:
    picture = [151857, *b"a.png", *[151859] * 251, 151858]
    ids = [*v1.encode("Look: "), *picture, *v1.encode("a dog"), 151645]
    assert v1.decode(ids) == "Look: a dog"
    assert v1.decode([151857, *v1.encode("no end")]) == "no end"
    assert v1.decode([*v1.encode("no start"), 151858]) == "no start"


# ---------------------------------------------------------------------- reduced


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40))
def test_reduced_is_lossless(small_v1: Tokenizer, text: str) -> None:
    assert small_v1.decode(small_v1.encode(text)) == unicodedata.normalize("NFC", text)


@pytest.mark.slow
def test_reduced_has_qwen_vls_specials(small_v1: Tokenizer, v1: Tokenizer) -> None:
    ordinary = small_v1.vocab_size - 217
    assert ordinary < 600
    assert [small_v1.specials[name] for name in QWEN_VL.specials] == [*range(ordinary, ordinary + 217)]
    assert [*small_v1.ordinary_tokens()][:256] == [*v1.ordinary_tokens()][:256]  # ids for the letters of a path
    text = "数一数图中有几个圆"
    assert [*map(small_v1.token_bytes, small_v1.encode(text))] == [*map(v1.token_bytes, v1.encode(text))]
    assert Tokenizer.reduced(["x"], 0, QWEN2_VL).family is Tokenizer.reduced(["x"], 0).family is QWEN2_VL


# ---------------------------------------------------------------------- files


def same_ids(one: Tokenizer, two: Tokenizer) -> None:
    assert one.specials == two.specials
    assert one.family is two.family is QWEN_VL
    assert [*one.ordinary_tokens()] == [*two.ordinary_tokens()]
    assert one.encode(TEXT, markup=True) == two.encode(TEXT, markup=True)


@pytest.mark.slow
def test_folder_round_trip(v1: Tokenizer, small_v1: Tokenizer, tmp_path: Path) -> None:
    """The published file byte for byte; its class puts special tokens right behind, so a reduced one works as well."""
    v1.save(tmp_path / "full")
    small_v1.save(tmp_path / "small")
    content = (tmp_path / "full" / "qwen.tiktoken").read_bytes()
    assert hashlib.sha256(content).hexdigest().startswith("b2b1b8dfb5cc5f02")
    assert json.loads((tmp_path / "small" / "tokenizer_config.json").read_text())["tokenizer_class"] == "QWenTokenizer"
    assert has_tokenizer(tmp_path / "small")
    assert not has_tokenizer(tmp_path)
    same_ids(small_v1, Tokenizer.from_folder(tmp_path / "small"))
    (tmp_path / "small" / "qwen.tiktoken").write_bytes(content.replace(b"\n", b"\r\n"))  # one mirror has it so
    same_ids(v1, Tokenizer.from_folder(tmp_path / "small"))


def test_pickle_for_data_workers(small_v1: Tokenizer) -> None:
    same_ids(small_v1, pickle.loads(pickle.dumps(small_v1)))


def test_bad_folders_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json in .*no qwen\.tiktoken"):
        Tokenizer.from_folder(tmp_path)
    file = tmp_path / "qwen.tiktoken"
    for content, complaint in (
        (b"not a vocabulary", "lines"),
        (b"IQ== 1\n", "in order"),
        (b"\xff\xfe 0\n", "qwen"),
        (b"IQ== 0\n", "256 single bytes"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=complaint):
            Tokenizer.from_folder(tmp_path)
