"""Qwen-VL's side of the processor: squares, slots, paths, branches, labels, and what is refused."""

from __future__ import annotations

import base64
import io
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qvl.batch import IGNORE
from qvl.inputs.processor import Processor, ProcessorConfig
from qvl.inputs.vision import path_slots
from qvl.text.tokenizer import Tokenizer

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)


def ask(*parts: Any, answer: str | None = None) -> list[dict]:
    content = [p if isinstance(p, dict) else {"type": "text", "text": p} for p in parts]
    turns = [{"role": "user", "content": content}]
    return turns if answer is None else [*turns, {"role": "assistant", "content": answer}]


def image(source: Any, **options: int) -> dict:
    return {"type": "image", "image": source, **options}


def slots(processor: Processor, source: Any) -> list[int]:
    batch = processor([ask(image(source), "a")], chat_format="raw")
    return batch.tokens_T[batch.vision_rows_M].tolist()


@pytest.fixture
def long_slots(v1: Processor) -> Processor:
    return Processor(v1.tokenizer, ProcessorConfig.qwen_vl(56, 256))


@pytest.fixture
def encoded() -> bytes:
    out = io.BytesIO()
    Image.fromarray(PIXELS).save(out, format="PNG")
    return out.getvalue()


def test_every_picture_costs_the_same(v1: Processor) -> None:
    small, wide = np.zeros((1, 1, 3), np.uint8), np.zeros((3, 900, 3), np.uint8)
    batch = v1([ask(image(PIXELS), image(small), image(wide), "a")])
    assert batch.grids == ((1, 4, 4),) * 3
    assert batch.segment_lens == (16, 16, 16)
    assert batch.patches_PC.shape == (48, 588)
    assert batch.vision_rows_M.shape == (12,)
    assert batch.positions_RT.tolist() == [[*range(len(batch.tokens_T))]]
    text = v1.tokenizer.decode(batch.tokens_T.tolist())
    assert "Picture 1: \nPicture 2: \nPicture 3: \na" in text


def test_text_alone(v1: Processor) -> None:
    batch = v1([ask("a")], generation_prompt=True)
    assert batch.patches_PC.shape == (0, 588)
    assert batch.grids == ()


def test_paths_are_spelled_in_byte_values(long_slots: Processor, encoded: bytes, tmp_path: Path) -> None:
    pad = long_slots.tokenizer.special("<imgpad>")
    file = tmp_path / "图e\u0301 1.png"
    file.write_bytes(encoded)
    letters = [*unicodedata.normalize("NFC", str(file)).encode()]
    assert max(letters) > 127  # no ids of text: bytes of a character are ids of their own
    for source in (file, str(file)):
        assert slots(long_slots, source) == [*letters, *[pad] * (256 - len(letters))]


def test_pictures_without_a_path_have_only_pads(long_slots: Processor, encoded: bytes) -> None:
    pad = long_slots.tokenizer.special("<imgpad>")
    uri = "data:image/png;base64," + base64.b64encode(encoded).decode()
    for source in (encoded, Image.fromarray(PIXELS), PIXELS, uri):
        assert slots(long_slots, source) == [pad] * 256


@pytest.mark.parametrize(("length", "spelled"), [(254, True), (255, True), (256, False), (300, False)])
def test_a_path_must_leave_room_for_its_end(length: int, spelled: bool) -> None:
    path = "/" + "x" * (length - 1)
    expected = (*path.encode(), *[9999] * (256 - length)) if spelled else (9999,) * 256
    assert path_slots(path, 256, 9999) == expected
    assert path_slots("ab", 2, 7) == (7, 7)
    assert path_slots("\udcff", 4, 7) == (255, 7, 7, 7)  # a file name that is not UTF-8


def test_a_long_path_is_opened_all_the_same(v1: Processor, encoded: bytes, tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 200) / ("e" * 200)
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(encoded)
    by_path = v1([ask(image(folder / "a.png"), "a")])
    by_bytes = v1([ask(image(encoded), "a")])
    assert torch.equal(by_path.tokens_T, by_bytes.tokens_T)
    assert torch.equal(by_path.patches_PC, by_bytes.patches_PC)


def test_pretraining_learns_the_answer_and_its_end(v1: Processor) -> None:
    """`<img>...</img>` + question are context; answer and `<|endoftext|>` are learned."""
    batch = v1([ask(image(PIXELS), "What is it?", answer=" a dog")], labels=True, chat_format="raw")
    rows = (batch.labels_T != IGNORE).nonzero().squeeze(1)
    learned = batch.labels_T[rows].tolist()
    assert learned == [*v1.tokenizer.encode(" a dog"), v1.tokenizer.special("<|endoftext|>")]
    assert torch.equal(batch.labels_T[rows], batch.tokens_T[rows + 1])


def test_plain_text_is_learned_whole(v1: Processor) -> None:
    """Autoregression on text: an answer without a question. (The first token has nothing before it to predict it.)"""
    batch = v1([[{"role": "assistant", "content": "A dog and a cat."}]], labels=True, chat_format="raw")
    assert batch.labels_T.tolist() == [*batch.tokens_T[1:].tolist(), IGNORE]


@pytest.mark.parametrize("chat_format", ["raw", "chatml"])
def test_branches_spell_the_same_as_separate_conversations(v1: Processor, chat_format: str) -> None:
    first, second = ask(image(PIXELS), "What is it?", answer="A dog"), ask("How many?", answer="3")
    sequences = v1.branches([*first, *second], labels=True, chat_format=chat_format)
    beginning = sequences[0]
    alone = [first, ask(image(PIXELS), "How many?", answer="3")]
    for number, (branch, conversation) in enumerate(zip(sequences[1:], alone, strict=True)):
        whole = v1.sequence(conversation, labels=True, chat_format=chat_format)
        assert np.array_equal(np.concatenate((beginning.tokens_T, branch.tokens_T)), whole.tokens_T)
        assert np.array_equal(np.concatenate((beginning.positions_RT, branch.positions_RT), axis=1), whole.positions_RT)
        assert np.array_equal(np.concatenate((beginning.labels_T, branch.labels_T)), whole.labels_T)
        assert branch.next_position == whole.next_position == len(whole.tokens_T)
        assert set(branch.turns_T.tolist()) == {number}
    assert v1.pack(sequences).parents == (-1, 0, 0)


def test_broken_answers_are_not_learned(v1: Processor) -> None:
    broken = ask(image(PIXELS), "?", answer="<box>(3,4),(1,2)</box>")
    v1([broken])  # read, not learned
    with pytest.raises(ValueError, match=r"x2 < x1"):
        v1([broken], labels=True)
    with pytest.raises(ValueError, match=r"sample 7: message 1 .*x2 < x1"):
        v1.sequence(broken, labels=True, name="sample 7")
    with pytest.raises(ValueError, match=r"x2 < x1"):
        v1.branches(broken, labels=True)


def test_what_qwen_vl_cannot_do(v1: Processor) -> None:
    with pytest.raises(ValueError, match=r"56 x 56 pixels: leave max_pixels=784 out"):
        v1([ask(image(PIXELS, max_pixels=784), "a")])
    with pytest.raises(ValueError, match="no videos"):
        v1([ask({"type": "video", "video": [PIXELS, PIXELS]}, "a")])


def test_settings_that_do_not_go_together(v1: Processor, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="side 100 is not a multiple of the patch of 14 pixels; the nearest is 98"):
        ProcessorConfig.qwen_vl(100)
    with pytest.raises(ValueError, match="slots=250 is not a square number"):
        ProcessorConfig.qwen_vl(slots=250)
    with pytest.raises(ValueError, match="merge 2, temporal 2 and 3"):
        ProcessorConfig(square=ProcessorConfig.qwen_vl().square)
    with pytest.raises(ValueError, match=r"one of qwen_vl, .* use ProcessorConfig\.qwen_vl"):
        Processor(v1.tokenizer, ProcessorConfig())
    with pytest.raises(ValueError, match=r"one of qwen2_vl, .* without `square`"):
        Processor(tokenizer, ProcessorConfig.qwen_vl())
    published = Processor(v1.tokenizer).config
    assert (published.square.side, published.square.slots, published.rope_axes) == (448, 256, 1)
    assert published.geometry.row == 588
