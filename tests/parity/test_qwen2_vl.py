"""Qwen2-VL against transformers: positions, vision vectors, logits, greedy tokens, batches, folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from parity.conftest import Pair
from parity.handmade import batch_of, oracle_inputs, relative, sequence, small_config
from qvl.checkpoint.folder import load_model, save_model
from qvl.inputs.sequence import Sequence
from qvl.layers.attention import PackedContext
from qvl.models.qwen2_vl.model import Qwen2VL

transformers = pytest.importorskip("transformers")

# transformers 5 advances a video by max(height, width) only, where 4.x (and the paper) take time too. So videos here
# are no longer than they are high or wide, and `test_positions_of_long_videos` has the rest.
PROMPTS = {
    "text": [9],
    "picture": [3, ("image", (1, 4, 6)), 5],
    "pictures": [2, ("image", (1, 2, 2)), 3, ("image", (1, 8, 4)), ("image", (1, 4, 4)), 4],
    "video": [2, ("video", (3, 6, 4)), 6],
    "mixed": [1, ("video", (2, 4, 4)), 2, ("image", (1, 6, 2)), ("video", (2, 2, 6)), 3],
}
CLOSE = 2e-5
"""Of the largest magnitude. Measured worst cases over all configurations and prompts: logits alone 2.8e-6, in a batch
2.9e-6, vision vectors 1.4e-6. For scale: 1-D positions give 0.4, swapped patch rows and columns 0.4."""
GREEDY_TOKENS = 20


def sequences_for(pair: Pair) -> dict[str, Sequence]:
    return {name: sequence(i, parts, pair.config) for i, (name, parts) in enumerate(PROMPTS.items())}


def our_rows(pair: Pair, sequences: list[Sequence]) -> list[Tensor]:
    batch = batch_of(sequences, pair.config)
    return list(pair.ours(batch).split(batch.seq_lens))


def their_rows(pair: Pair, sequences: list[Sequence]) -> list[Tensor]:
    inputs = oracle_inputs(sequences)
    logits = pair.theirs(**inputs.arguments).logits
    return [row[pad:] for row, pad in zip(logits, inputs.pads, strict=True)]


@pytest.mark.parametrize("name", PROMPTS)
def test_logits(pair: Pair, name: str) -> None:
    s = sequences_for(pair)[name]
    assert relative(our_rows(pair, [s])[0], their_rows(pair, [s])[0]) < CLOSE


def test_positions(pair: Pair) -> None:
    for name, s in sequences_for(pair).items():
        if name == "text":
            continue
        arguments = oracle_inputs([s]).arguments
        grids = {k: v for k, v in arguments.items() if k.endswith("grid_thw")}
        positions, delta = pair.theirs.model.get_rope_index(
            arguments["input_ids"], mm_token_type_ids=arguments["mm_token_type_ids"], **grids
        )
        assert (positions[:, 0].numpy() == s.positions_RT).all(), name
        assert int(delta) == s.next_position - len(s.tokens_T), name


def test_positions_of_long_videos() -> None:
    """Videos with more time steps than rows or columns, as transformers 4.57.1 numbers them (kept in a file)."""
    for case in json.loads((Path(__file__).parent / "positions_4_57.json").read_text()):
        parts = [p if isinstance(p, int) else (p[0], tuple(p[1])) for p in case["parts"]]
        s = sequence(0, parts, small_config())
        assert s.positions_RT.tolist() == case["positions"]
        assert s.next_position - len(s.tokens_T) == case["delta"]


def test_long_video_logits(pairs: dict[str, Pair]) -> None:
    """With those positions handed to it, today's transformers agrees on the rest."""
    pair = pairs["like-7b"]
    s = sequence(8, [2, ("video", (5, 2, 4)), 4], pair.config)
    arguments = oracle_inputs([s]).arguments
    positions = torch.from_numpy(s.positions_RT)[:, None]
    theirs = pair.theirs(**arguments, position_ids=positions).logits[0]
    assert relative(our_rows(pair, [s])[0], theirs) < CLOSE


def test_vision_vectors(pair: Pair) -> None:
    every = [s for name, s in sequences_for(pair).items() if name != "text"]
    batch = batch_of(every, pair.config)
    ours = pair.ours.see(batch, PackedContext(batch))
    theirs = pair.theirs.model.visual(batch.patches_PC, grid_thw=torch.tensor(batch.grids)).pooler_output
    assert relative(ours, theirs) < CLOSE


def test_mixed_batch_against_left_padding(pair: Pair) -> None:
    every = list(sequences_for(pair).values())
    for ours, theirs in zip(our_rows(pair, every), their_rows(pair, every), strict=True):
        assert relative(ours, theirs) < CLOSE


def test_batch_gives_each_row_what_it_gets_alone(pair: Pair) -> None:
    every = list(sequences_for(pair).values())
    for together, s in zip(our_rows(pair, every), every, strict=True):
        assert relative(together, our_rows(pair, [s])[0]) < 1e-5  # measured: 0


def greedy(model: Qwen2VL, pair: Pair, s: Sequence, count: int) -> list[int]:
    """The slow twin of an engine: the whole sequence again for every token."""
    for _ in range(count):
        batch = batch_of([s], pair.config)
        token = int(model(batch, rows=batch.last_rows).argmax())
        s = Sequence(
            np.append(s.tokens_T, token),
            np.append(s.positions_RT, np.full((3, 1), s.next_position), axis=1),
            s.vision_rows_M,
            s.visuals,
            s.next_position + 1,
        )
    return s.tokens_T[-count:].tolist()


@pytest.mark.slow
def test_greedy_tokens(pair: Pair) -> None:
    every = list(sequences_for(pair).values())
    for s in every:
        arguments = oracle_inputs([s]).arguments
        theirs = pair.theirs.generate(
            **arguments, max_new_tokens=GREEDY_TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        assert greedy(pair.ours, pair, s, GREEDY_TOKENS) == theirs[0, -GREEDY_TOKENS:].tolist()


def test_our_folder_in_transformers(pair: Pair, tmp_path: Path) -> None:
    save_model(pair.ours, tmp_path / "ours", max_shard_bytes=100_000)
    theirs, info = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
        tmp_path / "ours", output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values()), info
    every = list(sequences_for(pair).values())
    for s in every:
        arguments = oracle_inputs([s]).arguments
        assert relative(theirs(**arguments).logits, pair.theirs(**arguments).logits) == 0
    again = load_model(tmp_path / "ours")
    for (name, a), (_, b) in zip(again.named_parameters(), pair.ours.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_configuration_from_their_folder(pair: Pair) -> None:
    """`save_pretrained` writes the nested generation; the model read from it has every field of the original."""
    nested = json.loads((pair.folder / "config.json").read_text())
    assert "text_config" in nested
    assert pair.ours.config.text == pair.config.text
    assert pair.ours.config.vision == pair.config.vision
    assert pair.ours.config.ids == pair.config.ids
    assert pair.ours.config.tie_embeddings == pair.config.tie_embeddings
