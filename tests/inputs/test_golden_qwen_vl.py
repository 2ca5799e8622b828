"""Prompts, pictures and fine-tuning labels against what the official Qwen-VL-Chat code computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qvl.batch import Batch
from qvl.inputs.processor import Processor
from qvl.media.patches import unpatchify
from qvl.text.official import parse_conversation, parse_prompt
from qvl.text.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "qwen_vl"
FIXTURE: dict[str, Any] = json.loads((GOLDEN / "fixture.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "expected.npz"))


@pytest.fixture(scope="module")
def official() -> Processor:
    return Processor(Tokenizer.qwen_vl())


@pytest.fixture(autouse=True)
def _beside_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in the prompts are relative, and their letters are ids."""
    monkeypatch.chdir(GOLDEN)


def content(query: str | list[dict[str, str]]) -> list[Any]:
    """A golden query as parts of a message: what `from_list_format` or the tokenizer made of it."""
    if isinstance(query, str):
        return list(parse_prompt(query))
    return [{"type": kind, kind: value} for element in query for kind, value in element.items()]


def prompt(processor: Processor, case: dict[str, Any]) -> Batch:
    listed = not isinstance(case["query"], str)
    conversation = [{"role": "user", "content": content(case["query"])}]
    return processor([conversation], chat_format="raw", generation_prompt=True, number_pictures=listed)


@pytest.mark.parametrize("number", range(len(FIXTURE["cases"])))
def test_ids(official: Processor, expected: dict[str, np.ndarray], number: int) -> None:
    case = FIXTURE["cases"][number]
    batch = prompt(official, case)
    assert batch.tokens_T.tolist() == expected[f"ids/{number}"].tolist()
    assert len(batch.tokens_T) == case["num_ids"]
    pictures = case["text"].count("<img>")
    assert batch.grids == ((1, 32, 32),) * pictures
    assert batch.segment_lens == (1024,) * pictures
    starts = (batch.tokens_T == 151857).nonzero().flatten().tolist()
    assert batch.vision_rows_M.tolist() == [row for at in starts for row in range(at + 1, at + 257)]
    assert batch.positions_RT.tolist() == [[*range(len(batch.tokens_T))]]


def test_the_same_prompt_from_a_string_and_from_parts(official: Processor) -> None:
    case = FIXTURE["cases"][1]
    listed = prompt(official, case)
    strung = official([[{"role": "user", "content": list(parse_prompt(case["text"]))}]], chat_format="raw")
    assert strung.tokens_T.tolist() == listed.tokens_T.tolist()


@pytest.mark.parametrize("name", ["a.png", "b.png"])
def test_pixels(official: Processor, expected: dict[str, np.ndarray], name: str) -> None:
    batch = official([[{"role": "user", "content": [{"type": "image", "image": name}]}]], chat_format="raw")
    rows_PC = batch.patches_PC.numpy()
    # raster order, (channel, y, x) within a patch: what a convolution with stride 14 reads
    picture = rows_PC.reshape(32, 32, 3, 14, 14).transpose(2, 0, 3, 1, 4).reshape(3, 448, 448)
    assert np.abs(picture[:, ::16, ::16] - expected[f"pixels/{name}"]).max() < 1e-6  # measured: 0
    assert unpatchify(batch.patches_PC, batch.grids[0], official.config.geometry).shape == (1, 448, 448, 3)
    assert batch.patch_hw_2P[:, :34].tolist() == [[0] * 32 + [1] * 2, [*range(32), 0, 1]]


def test_fast_pixels_are_close(official: Processor) -> None:
    fast = official.with_options(resize="fast")
    for name in ("a.png", "b.png"):
        conversation = [[{"role": "user", "content": [{"type": "image", "image": name}]}]]
        found = fast(conversation, chat_format="raw").patches_PC.numpy()
        exact = official(conversation, chat_format="raw").patches_PC.numpy()
        assert np.abs(found - exact).mean() < 1e-3  # of values about 1; one grey level is 0.015
        assert np.abs(found - exact).max() < 0.25  # measured: 0.175, where Pillow resizes the height first


@pytest.mark.parametrize("number", range(len(FIXTURE["conversations"])))
def test_fine_tuning_ids_and_labels(official: Processor, expected: dict[str, np.ndarray], number: int) -> None:
    messages = parse_conversation(FIXTURE["conversations"][number])
    batch = official([messages], labels=True, number_pictures=False)
    ids, labels = expected["sft/input_ids"][number].tolist(), expected["sft/labels"][number].tolist()
    tokens = batch.tokens_T.tolist()
    assert tokens == ids[: len(tokens)]
    assert set(ids[len(tokens) :]) == {151643}  # padding
    assert batch.labels_T is not None
    assert batch.labels_T.tolist() == labels[1 : len(tokens) + 1]  # ours say what comes next, theirs what stands there


def test_numbering_by_habit_writes_what_the_file_writes(official: Processor) -> None:
    """The fine-tuning file spells `Picture 1: ` out; messages without it get it from the chat form."""
    first = FIXTURE["conversations"][0][0]["value"]
    spelled = official([parse_conversation([{"from": "user", "value": first}])], number_pictures=False)
    parts = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What is this?"}]
    assert official([[{"role": "user", "content": parts}]]).tokens_T.tolist() == spelled.tokens_T.tolist()
