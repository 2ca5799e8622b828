"""Attention with a cache equals attention over everything at once."""

from __future__ import annotations

import pytest
import torch
from tiny_vlm import picture, user

from qvl.batch import Batch
from qvl.engine.forward import Forward
from qvl.engine.kv_cache import KVCache
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


@torch.no_grad()
def test_rows_that_go_on_in_pieces_equal_whole_sequences(model):
    """Prefill, several tokens more for some rows, one more for all, a row leaving, a new one: all by the naive twin."""
    generator = torch.Generator().manual_seed(0)
    whole = [torch.randint(0, 300, (90,), generator=generator) for _ in range(4)]
    cache = Forward(model).new_cache()
    rows: list[int] = []  # sequence living in each cache row
    done = [0, 0, 0, 0]

    def feed(cache_rows: list[int], lens: list[int]) -> None:
        who = [rows[r] for r in cache_rows]
        tokens = torch.cat([whole[s][done[s] : done[s] + n] for s, n in zip(who, lens, strict=True)])
        batch = _text_batch(lens, [done[s] for s in who], tokens)
        parts = _run(model, batch, cache.context(batch, cache_rows)).split(lens)
        for s, n, part in zip(who, lens, parts, strict=True):
            done[s] += n
            alone = _run(model, _text_batch([done[s]], [0], whole[s][: done[s]]))[-n:]
            torch.testing.assert_close(part, alone, atol=_TOLERANCE, rtol=0)

    for s in (0, 1, 2):
        rows.append(s)
        cache.add_row()
    feed([0, 1, 2], [5, 17, 9])
    feed([0, 1, 2], [1, 1, 1])
    feed([2, 0], [1, 60])  # the cache grows beyond its first capacity; the order is not the rows'
    cache.drop_row(0)
    rows[0] = rows.pop()  # sequence 2 moved into row 0
    feed([0, 1], [1, 1])
    rows.append(3)
    cache.add_row()
    feed([2], [7])
    feed([0, 1, 2], [1, 1, 1])
    feed([1], [1])
    assert cache.lens == (done[2], done[1], done[3])


@torch.no_grad()
def test_prefill_is_bitwise_that_of_packed_attention(model, processor):
    batch = processor([user(picture(60, 90), "hi"), user("red circle")], generation_prompt=True)
    forward = Forward(model)
    cache = forward.new_cache()
    logits_SV, ms = forward.prefill(batch, cache, [cache.add_row(), cache.add_row()])
    assert torch.equal(logits_SV, model(batch, rows=batch.last_rows))
    assert set(ms) == {"vision", "prefill"}


def test_what_a_mask_hides_is_never_garbage():
    """Rows of other lengths share a slice; unwritten memory in it has to be finite."""
    cache = KVCache(1, 1, 4, torch.float32, torch.device("cpu"))
    rows = [cache.add_row(), cache.add_row()]
    cache.context(_text_batch([3, 70], [0, 0], torch.zeros(73, dtype=torch.long)), rows)
    k, v = cache.read(0, slice(0, 2), 70)
    assert bool(torch.cat([k, v]).isfinite().all())


def test_a_row_cannot_be_named_twice(model):
    cache = Forward(model).new_cache()
    cache.add_row()
    with pytest.raises(AssertionError, match="repeat"):
        cache.context(_text_batch([1, 1], [0, 0], torch.zeros(2, dtype=torch.long)), [0, 0])
