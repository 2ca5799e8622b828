"""Qwen-VL against values that the official code computed; weights come as `pytorch_model-*.bin` shards."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from parity.handmade_qwen_vl import batch_from_ids, square_patches
from parity.paged_rows import Held, PagedRows
from qvl.batch import IGNORE, Batch
from qvl.checkpoint.folder import load_model
from qvl.layers.attention import PackedContext
from qvl.layers.places import sine_table
from qvl.models.vlm import VisionLanguageModel

pytestmark = pytest.mark.slow  # the vocabulary is the whole one: 310 MB of weights are made

GOLDEN = Path(__file__).parents[1] / "golden" / "qwen_vl"
PICTURES = {0: ["a.png"], 1: ["a.png", "b.png"]}
CLOSE = 1e-4
"""Absolute. Measured worst cases: vision vectors 7.1e-6, logits 7.2e-6 (of 5.6 at most), pixels and loss 0. For scale:
without the slower angles the long prompt's logits are 5.4 off, without the longer queries 0.36."""


def weight(name: str, shape: list[int]) -> torch.Tensor:
    """The rule of the golden folder's readme."""
    if name.endswith("attn_pool.pos_embed"):
        return sine_table(math.isqrt(shape[0]), shape[1])
    w = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    if name.endswith("ln_f.weight") or (".ln_" in name and name.endswith(".weight")):
        return torch.from_numpy(1 + np.float32(0.1) * w)
    if len(shape) == 1:
        return torch.from_numpy(np.float32(0.05) * w)
    for ending, factor in (("wte.weight", 0.5), ("positional_embedding", 0.3), ("query", 0.3)):
        if name.endswith(ending):
            return torch.from_numpy(np.float32(factor) * w)
    fan_in = shape[0] if name.endswith("visual.proj") else math.prod(shape[1:])
    return torch.from_numpy(w * np.float32(1.5 / math.sqrt(fan_in)))


@pytest.fixture(scope="module")
def fixture() -> dict[str, Any]:
    return json.loads((GOLDEN / "fixture.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "expected.npz"))


@pytest.fixture(scope="module")
def model(fixture: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> VisionLanguageModel:
    folder = tmp_path_factory.mktemp("golden")
    config = fixture["config"] | {"model_type": "qwen"}
    (folder / "config.json").write_text(json.dumps(config))
    names = list(fixture["tensors"])
    weight_map = {}
    for i in range(3):
        shard = f"pytorch_model-{i + 1:05d}-of-00003.bin"
        part = names[i::3]
        torch.save({name: weight(name, fixture["tensors"][name]) for name in part}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    model = load_model(folder).eval()
    for file in folder.glob("*.bin"):
        file.unlink()
    return model


def prompt(case: int, expected: dict[str, np.ndarray], extra: list[int] | None = None) -> Batch:
    pictures = [square_patches(GOLDEN / name) for name in PICTURES[case]]
    return batch_from_ids([expected[f"ids/{case}"].tolist() + (extra or [])], pictures)


def worst(ours: torch.Tensor, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float((ours - torch.from_numpy(theirs)).abs().max())


@pytest.mark.parametrize("name", ["a.png", "b.png"])
def test_pixels(name: str, expected: dict[str, np.ndarray]) -> None:
    """The pictures as these tests cut them up."""
    rows = square_patches(GOLDEN / name).view(32, 32, 3, 14, 14)
    pixels = rows.permute(2, 0, 3, 1, 4).reshape(3, 448, 448)
    assert worst(pixels[:, ::16, ::16], expected[f"pixels/{name}"]) < 1e-6


def test_vision(model: VisionLanguageModel, expected: dict[str, np.ndarray]) -> None:
    batch = prompt(1, expected)
    tokens = model.see(batch, PackedContext(batch)).split(256)
    for name, ours in zip(PICTURES[1], tokens, strict=True):
        assert worst(ours, expected[f"vision/{name}"]) < CLOSE


@pytest.mark.parametrize("case", [0, 1])
def test_logits(
    case: int, model: VisionLanguageModel, fixture: dict[str, Any], expected: dict[str, np.ndarray]
) -> None:
    logits = model(prompt(case, expected))
    assert worst(logits[:, fixture["columns"]], expected[f"logits/{case}"]) < CLOSE
    assert logits.argmax(-1).tolist() == expected[f"argmax/{case}"].tolist()


def test_both_prompts_in_one_batch(model: VisionLanguageModel, expected: dict[str, np.ndarray]) -> None:
    ids = [expected[f"ids/{case}"].tolist() for case in PICTURES]
    names = [name for case in PICTURES for name in PICTURES[case]]
    batch = batch_from_ids(ids, [square_patches(GOLDEN / name) for name in names])
    both = np.concatenate([expected[f"argmax/{case}"] for case in PICTURES])
    assert model(batch).argmax(-1).tolist() == both.tolist()


@pytest.mark.parametrize("case", [0, 1])
def test_greedy_tokens(case: int, model: VisionLanguageModel, expected: dict[str, np.ndarray]) -> None:
    """With the cache, and by computing everything again for every token."""
    wanted = expected[f"greedy_no_cache/{case}"].tolist()
    batch = prompt(case, expected)
    rows, held = PagedRows(model), Held(batch.seq_lens[0])
    tokens = [int(model(batch, rows.context(batch, [held]), rows=batch.last_rows).argmax())]
    while len(tokens) < len(wanted):
        step = replace(batch_from_ids([tokens[-1:]], []), positions_RT=torch.tensor([[held.tokens]]))
        tokens.append(int(model(step, rows.context(step, [held])).argmax()))
    assert tokens == wanted
    again: list[int] = []
    for _ in wanted[:4]:
        whole = prompt(case, expected, again)
        again.append(int(model(whole, rows=whole.last_rows).argmax()))
    assert again == wanted[:4]


def test_beyond_the_trained_length(
    model: VisionLanguageModel, fixture: dict[str, Any], expected: dict[str, np.ndarray]
) -> None:
    """Alone, and beside a short prompt that must not get the long one's angles."""
    long, short = expected["long/ids"].tolist(), expected["ids/0"].tolist()
    batch = batch_from_ids([long], [])
    rows = torch.arange(len(long) - 8, len(long))
    columns = fixture["columns"]
    assert worst(model(batch, rows=rows)[:, columns], expected["long/logits_last8"]) < CLOSE
    both = batch_from_ids([short, long], [square_patches(GOLDEN / "a.png")])
    packed = model(both, rows=torch.cat((torch.arange(len(short)), rows + len(short))))[:, columns]
    assert worst(packed[len(short) :], expected["long/logits_last8"]) < CLOSE
    assert worst(packed[: len(short)], expected["logits/0"]) < CLOSE


def test_sft_loss(model: VisionLanguageModel, fixture: dict[str, Any], expected: dict[str, np.ndarray]) -> None:
    ids, labels = [], []
    for row, row_labels in zip(expected["sft/input_ids"].tolist(), expected["sft/labels"].tolist(), strict=True):
        end = max(i for i, token in enumerate(row) if token != 151643) + 1
        ids.append(row[:end])
        labels += [*row_labels[1:end], IGNORE]
    batch = batch_from_ids(ids, [square_patches(GOLDEN / "a.png")])
    target = torch.tensor(labels)
    rows = (target != IGNORE).nonzero().squeeze(1)
    loss = F.cross_entropy(model(batch, rows=rows), target[rows])
    assert abs(float(loss) - fixture["sft_loss"]) < CLOSE
