"""Attention over pages equals attention over everything at once."""

from __future__ import annotations

import resource

import numpy as np
import pytest
import torch
from parity.paged_rows import Held, PagedRows
from tiny_vlm import picture, user

from qvl.batch import Batch
from qvl.engine.paged import Block, PagedStore, Row, similar
from qvl.layers.attention import PackedContext

# Worst seen 6.2e-6 on logits of up to 6.5: sums of other lengths in another order.
_TOLERANCE = 2e-5


def _text_batch(lens: list[int], begins: list[int], tokens: torch.Tensor) -> Batch:
    """Text only: sequence s has `lens[s]` tokens at positions from `begins[s]`."""
    positions = torch.cat([torch.arange(b, b + n) for b, n in zip(begins, lens, strict=True)])
    none = torch.zeros(0, dtype=torch.long)
    return Batch(tokens, positions.expand(3, -1), tuple(lens), torch.zeros(0, 0), none.expand(2, 0), (), (), none)


def _run(model, batch: Batch, attn=None) -> torch.Tensor:
    """Logits [T, V] of a batch without pictures."""
    attn = attn or PackedContext(batch)
    return model.head(model.hidden(batch, torch.zeros(0, model.config.text.width), attn))


@pytest.mark.parametrize("scattered", [True, False])
@torch.no_grad()
def test_rows_that_go_on_in_pieces_equal_whole_sequences(model, scattered):
    """Prefill, several tokens more for some rows, one more for all, a row leaving, a new one: all by the naive twin."""
    generator = torch.Generator().manual_seed(0)
    whole = [torch.randint(0, 300, (90,), generator=generator) for _ in range(4)]
    rows = PagedRows(model, scattered=scattered)
    held = [Held(first) for first in (5, 17, 9, 7)]

    def feed(who: list[int], lens: list[int]) -> None:
        order = rows.ordered([held[s] for s in who], lens)
        who, lens = [who[i] for i in order], [lens[i] for i in order]
        done = [held[s].tokens for s in who]
        tokens = torch.cat([whole[s][d : d + n] for s, d, n in zip(who, done, lens, strict=True)])
        batch = _text_batch(lens, done, tokens)
        parts = _run(model, batch, rows.context(batch, [held[s] for s in who])).split(lens)
        for s, n, part in zip(who, lens, parts, strict=True):
            alone = _run(model, _text_batch([held[s].tokens], [0], whole[s][: held[s].tokens]))[-n:]
            torch.testing.assert_close(part, alone, atol=_TOLERANCE, rtol=0)

    feed([0, 1, 2], [5, 17, 9])
    feed([0, 1, 2], [1, 1, 1])
    feed([2, 0], [1, 60])
    rows.drop(held[1])
    feed([0, 2], [1, 1])
    feed([3, 0, 2], [7, 1, 5])  # begins, one more, several more: all in one pass
    feed([0, 2, 3], [1, 1, 1])
    feed([2], [1])
    assert [h.tokens for h in held] == [5 + 60 + 4, 18, 9 + 1 + 1 + 1 + 5 + 1 + 1, 8]


@torch.no_grad()
def test_prefill_is_bitwise_that_of_packed_attention(model, processor):
    batch = processor([user(picture(60, 90), "hi"), user("red circle")], generation_prompt=True)
    attn = PagedRows(model).context(batch, [Held(n) for n in batch.seq_lens])
    logits = model(batch, attn, rows=batch.last_rows)
    assert torch.equal(logits, model(batch, rows=batch.last_rows))


def test_a_cache_is_zeros_and_costs_nothing_until_it_is_written(model):
    """What a mask hides is multiplied by 0, and unwritten memory has to be finite for that."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    store = PagedStore(model.config.text, 1 << 17, 16, torch.bfloat16, torch.device("cpu"))
    assert PagedStore.page_bytes(model.config.text, 16, torch.bfloat16) << 17 == 384 << 20
    k, v = store.read(1, Block.of([Row(np.arange(3), 0, 40, 40)], 16, torch.device("cpu")))
    assert k.shape == v.shape == (1, 2, 48, 12)
    assert not bool(torch.cat([k, v]).any())
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 60 << 10


def test_scrubbed_pages_are_numbers_again(model):
    store = PagedStore(model.config.text, 4, 2, torch.float32, torch.device("cpu"))
    nan = torch.full((2, 2, 12), float("nan"))
    for layer in range(2):
        store.write(layer, torch.tensor([4, 5]), nan, nan)
    block = Block.of([Row(np.arange(4), 0, 8, 8)], 2, torch.device("cpu"))
    assert bool(store.read(1, block)[0].isnan().any())
    store.scrub([2])
    assert all(bool(part.isfinite().all()) for layer in range(2) for part in store.read(layer, block))


def test_rows_of_like_length_share_a_product():
    def runs(*tokens: int) -> list[int]:
        return [len(r) for r in similar([Row(np.zeros(0, np.int64), n - 1, 1, 1) for n in tokens], 16)]

    assert runs(100, 90, 20, 5) == [4]
    assert runs(16000, 15000, 300, 200) == [2, 2]
    assert runs(16000) == [1]
