"""From conversations to a packed batch: placeholders, labels, positions, branches, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qvl.batch import IGNORE
from qvl.inputs.processor import Processor
from qvl.text.messages import Image, Message, Text, WordPicture


def picture(height: int = 56, width: int = 84, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ask(*parts: object, answer: str | None = None) -> list[dict]:
    content = [p if isinstance(p, dict) else {"type": "text", "text": p} for p in parts]
    turns = [{"role": "user", "content": content}]
    return turns if answer is None else [*turns, {"role": "assistant", "content": answer}]


def image(array: np.ndarray, **budget: int) -> dict:
    return {"type": "image", "image": array, **budget}


def test_a_224_picture_costs_66_tokens(processor: Processor) -> None:
    with_picture = processor([ask(image(picture(224, 224)), "What is it?")])
    without = processor([ask("What is it?")])
    assert with_picture.tokens_T.shape[0] - without.tokens_T.shape[0] == 66
    assert with_picture.grids == ((1, 16, 16),)
    assert with_picture.patches_PC.shape == (256, 1176)


def test_placeholders_are_the_rows_vision_fills(processor: Processor) -> None:
    pad = processor.tokenizer.special("<|image_pad|>")
    batch = processor([ask(image(picture()), "a", image(picture(84, 56, 1))), ask("cat"), ask("a", image(picture()))])
    assert torch.equal(batch.vision_rows_M, (batch.tokens_T == pad).nonzero().squeeze(1))
    assert batch.vision_rows_M.shape[0] == batch.patches_PC.shape[0] // 4
    assert batch.segment_lens == (24, 24, 24)


def test_typed_placeholder_stays_text(processor: Processor) -> None:
    batch = processor([ask("a <|image_pad|> <|im_start|>")])
    assert batch.vision_rows_M.shape[0] == 0
    text = processor.tokenizer.decode(batch.tokens_T.tolist())
    assert "<|image_pad|> <|im_start|>" in text


def test_labels_are_the_next_supervised_token(processor: Processor) -> None:
    batch = processor([ask(image(picture()), "What is it?", answer="A dog")], labels=True)
    rows = (batch.labels_T != IGNORE).nonzero().squeeze(1)
    assert torch.equal(batch.labels_T[rows], batch.tokens_T[rows + 1])
    tokenizer = processor.tokenizer
    assert tokenizer.decode(batch.labels_T[rows].tolist()) == "A dog"
    assert batch.labels_T[rows[-1]] == tokenizer.special("<|im_end|>")


def test_labels_never_cross_sequences(processor: Processor) -> None:
    batch = processor([ask("a", answer="dog"), ask("a", answer="cat")], labels=True)
    for end in batch.seq_offsets[1:]:
        assert batch.labels_T[end - 1] == IGNORE


def test_a_batch_is_its_sequences_end_to_end(processor: Processor) -> None:
    conversations = [ask(image(picture()), "a"), ask("cat"), ask(image(picture(112, 56, 2)), image(picture()), "dog")]
    together = processor(conversations, generation_prompt=True)
    alone = [processor([c], generation_prompt=True) for c in conversations]
    assert torch.equal(together.tokens_T, torch.cat([b.tokens_T for b in alone]))
    assert torch.equal(together.positions_RT, torch.cat([b.positions_RT for b in alone], dim=1))
    assert torch.equal(together.patches_PC, torch.cat([b.patches_PC for b in alone]))
    assert torch.equal(together.patch_hw_2P, torch.cat([b.patch_hw_2P for b in alone], dim=1))


@pytest.mark.parametrize("chat_format", ["raw", "chatml"])
def test_branches_spell_the_same_as_separate_conversations(processor: Processor, chat_format: str) -> None:
    first = ask(image(picture()), "What is it?", answer="A dog")
    second = ask("How many?", answer="3")
    sequences = processor.branches([*first, *second], labels=True, chat_format=chat_format)
    assert [s.branch for s in sequences] == [False, True, True]
    beginning = sequences[0]
    alone = [first, ask(image(picture()), "How many?", answer="3")]
    for branch, conversation in zip(sequences[1:], alone, strict=True):
        whole = processor.sequence(conversation, labels=True, chat_format=chat_format)
        assert np.array_equal(np.concatenate((beginning.tokens_T, branch.tokens_T)), whole.tokens_T)
        joined = np.concatenate((beginning.positions_RT, branch.positions_RT), axis=1)
        assert np.array_equal(joined, whole.positions_RT)
        assert np.array_equal(np.concatenate((beginning.labels_T, branch.labels_T)), whole.labels_T)
        assert branch.next_position == whole.next_position
    assert processor.pack(sequences).parents == (-1, 0, 0)


def test_branches_without_a_picture_are_one_conversation(processor: Processor) -> None:
    turns = [*ask("a", answer="dog"), *ask("a", answer="cat")]
    (only,) = processor.branches(turns, labels=True)
    assert np.array_equal(only.tokens_T, processor.sequence(turns, labels=True).tokens_T)


def test_one_conversation_without_a_list_is_refused(processor: Processor) -> None:
    with pytest.raises(ValueError, match="wrap it in a list"):
        processor(ask("a"))
    with pytest.raises(ValueError, match="wrap it in a list"):
        processor(ask("a")[0])


def test_pack_refuses_mixed_labels_and_nothing(processor: Processor) -> None:
    with_labels = processor.sequence(ask("a", answer="dog"), labels=True)
    without = processor.sequence(ask("a"))
    with pytest.raises(ValueError, match="1 of 2 sequences have labels"):
        processor.pack([with_labels, without])
    with pytest.raises(ValueError, match="empty list"):
        processor.pack([])


def test_numbered_pictures(processor: Processor) -> None:
    conversation = ask(image(picture()), image(picture(seed=1)), "a")
    batch = processor([conversation], number_pictures=True)
    text = processor.tokenizer.decode(batch.tokens_T.tolist())
    assert "Picture 1: " in text
    assert "Picture 2: " in text


def test_budget_of_one_picture(processor: Processor) -> None:
    batch = processor([ask(image(picture(280, 280), max_pixels=112 * 112), image(picture(280, 280)), "a")])
    assert batch.grids == ((1, 8, 8), (1, 20, 20))


def test_messages_may_come_parsed(processor: Processor) -> None:
    from qvl.text.messages import parse_messages

    parsed = parse_messages(ask("a"))
    assert isinstance(parsed[0], Message)
    assert torch.equal(processor([parsed]).tokens_T, processor([ask("a")]).tokens_T)


def test_a_picture_told_in_words_stands_where_a_picture_would(processor: Processor) -> None:
    words = WordPicture((("dog", "cat", "cat"), ("dog", "keys", "keys")))
    told = processor.sequence([Message("user", (words, Text("What is it?")))], chat_format="raw")
    shown = processor.sequence(
        [Message("user", (Image(np.zeros((56, 84, 3), np.uint8)), Text("What is it?")))], chat_format="raw"
    )
    assert (told.positions_RT == shown.positions_RT).all()
    assert told.next_position == shown.next_position
    cells = shown.vision_rows_M
    assert (told.vision_rows_M == cells).all()
    assert told.visuals == ()
    encode = processor.tokenizer.encode
    dog, cat, keys = encode(" dog"), encode(" cat"), encode(" keys")
    expected = [(w, y + x) for y, row in enumerate((("d", "c", "c"), ("d", "k", "k"))) for x, w in enumerate(row)]
    pieces = {"d": dog, "c": cat, "k": keys}
    assert told.tokens_T[cells].tolist() == [pieces[w][n % len(pieces[w])] for w, n in expected]
    rest = np.setdiff1d(np.arange(len(shown.tokens_T)), cells)
    assert (told.tokens_T[rest] == shown.tokens_T[rest]).all()


def test_a_told_digit_is_one_token(processor: Processor) -> None:
    words = WordPicture((("4", "4", "dog"), ("dog", "2", "2")))
    told = processor.sequence([Message("user", (words, Text("What does the text say?")))], chat_format="raw")
    ids = told.tokens_T[told.vision_rows_M].tolist()
    four, two = processor.tokenizer.encode("4"), processor.tokenizer.encode("2")
    assert ids[:2] == four * 2
    assert ids[4:] == two * 2


def test_questions_about_a_told_picture_branch(processor: Processor) -> None:
    words = WordPicture((("dog", "cat"),))
    messages = [
        Message("user", (words, Text("What is it?"))),
        Message("assistant", (Text(" A dog"),)),
        Message("user", (Text("What is a cat?"),)),
        Message("assistant", (Text(" a dog"),)),
    ]
    root, *branches = processor.branches(messages, labels=True, chat_format="raw")
    assert [b.branch for b in branches] == [True, True]
    assert not root.branch
    assert len(root.tokens_T) == 4  # <|vision_start|>, two words, <|vision_end|>


def test_the_cost_is_told_before_anything_is_decoded(processor: Processor, v1: Processor, monkeypatch) -> None:
    """What `admit` hears is exactly what the sequence has; it can stop before a pixel is touched."""
    from qvl.media import load

    frames = {"type": "video", "video": [picture(seed=i) for i in range(4)]}
    asked = ask(image(picture(400, 300)), image(picture(), min_pixels=50_000), "What is it?")
    for made, messages, calls in ((processor, asked, 1), (processor, [*asked, *ask(frames, "and?")], 2)):
        heard: list[tuple[int, int]] = []
        sequence = made.sequence(messages, admit=lambda *counts, heard=heard: heard.append(counts))
        assert heard[-1] == (len(sequence.tokens_T), len(sequence.vision_rows_M))
        assert len(heard) == calls
        assert heard[0][0] <= heard[-1][0]
    heard = []
    sequence = v1.sequence(ask({"type": "image", "image": picture()}, "What?"), admit=lambda *c: heard.append(c))
    assert heard == [(len(sequence.tokens_T), len(sequence.vision_rows_M))]

    def refuse(tokens: int, vision: int) -> None:
        raise ValueError(f"{tokens} tokens are too many")

    monkeypatch.setattr(load, "view_image", lambda *a, **k: pytest.fail("a picture was decoded"))
    for made in (processor, v1):
        with pytest.raises(ValueError, match=r"\d+ tokens are too many"):
            made.sequence(ask({"type": "image", "image": picture(3000, 4000)}, "What?"), admit=refuse)
