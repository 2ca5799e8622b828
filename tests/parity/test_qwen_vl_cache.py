"""Qwen-VL decoded with a cache, beyond its trained length too: the angles are those of the prompt's length for good."""

from __future__ import annotations

from dataclasses import replace

import torch

from parity import naive_qwen_vl
from parity.handmade import relative
from parity.handmade_qwen_vl import batch_of, made, sequence, small_config
from parity.test_qwen_vl_naive import official
from qvl.engine.forward import Forward
from qvl.inputs.sequence import Sequence
from qvl.layers.attention import PackedContext, Span

CONFIG = small_config(trained_len=16)
CLOSE = 1e-5  # of the largest magnitude; measured worst: 9.3e-7


def tail(s: Sequence, start: int) -> Sequence:
    return replace(
        s,
        tokens_T=s.tokens_T[start:],
        positions_RT=s.positions_RT[:, start:],
        vision_rows_M=s.vision_rows_M[:0],
        visuals=(),
    )


def test_rows_of_other_lengths_decoded_together() -> None:
    """Prompts of 5, 14 (crosses the trained 16 while it is decoded), 40 and, with a picture, 21 tokens; 9 tokens more.

    Rows leave and enter in between, and one goes on by several tokens at once.
    """
    model = made(CONFIG)
    weights = official(model)
    prompts = [5, 14, 40, 21, 30]
    parts = [[14], [23], [49], [2, (3, 5), 10], [39]]
    whole = [sequence(i, p, CONFIG) for i, p in enumerate(parts)]
    wanted = [naive_qwen_vl.logits(weights, CONFIG, s, length=n) for s, n in zip(whole, prompts, strict=True)]
    forward = Forward(model)
    cache = forward.new_cache()
    rows, done = [], [0] * len(whole)

    def feed(cache_rows: list[int], count: list[int]) -> None:
        who = [rows[r] for r in cache_rows]
        pieces = [
            replace(tail(whole[i], done[i]), tokens_T=whole[i].tokens_T[done[i] : done[i] + n])
            if done[i]
            else replace(whole[i], tokens_T=whole[i].tokens_T[:n])
            for i, n in zip(who, count, strict=True)
        ]
        pieces = [replace(p, positions_RT=p.positions_RT[:, : len(p.tokens_T)]) for p in pieces]
        batch = batch_of(pieces, CONFIG)
        attn = cache.context(batch, cache_rows)
        logits = model.head(model.hidden(batch, model.see(batch, attn), attn)).split(count)
        for i, n, ours in zip(who, count, logits, strict=True):
            assert relative(ours, wanted[i][done[i] : done[i] + n]) < CLOSE, (i, done[i])
            done[i] += n

    for i in range(4):
        rows.append(i)
        cache.add_row()
    feed([0, 1, 2, 3], prompts[:4])
    for _ in range(4):
        feed([0, 1, 2, 3], [1, 1, 1, 1])
    feed([1], [2])
    cache.drop_row(0)
    rows[0] = rows.pop()
    feed([0, 1, 2], [1, 1, 1])
    rows.append(4)
    cache.add_row()
    feed([3], [prompts[4]])
    for _ in range(2):
        feed([0, 1, 2, 3], [1, 1, 1, 1])
    assert done[1] == 14 + 4 + 2 + 1 + 2 == len(whole[1].tokens_T)


def test_greedy_with_and_without_the_cache() -> None:
    """Within one step of the rule (17 to 32 tokens) both ways give the same tokens."""
    model = made(CONFIG, seed=3)
    prompt = sequence(7, [3, (4, 4), 2], CONFIG)  # 23 tokens
    forward = Forward(model)
    cache = forward.new_cache()
    batch = batch_of([prompt], CONFIG)
    cached = [int(forward.prefill(batch, cache, [cache.add_row()])[0].argmax())]
    while len(cached) < 8:
        cached.append(int(forward.decode(cached[-1:], [len(prompt.tokens_T) + len(cached) - 1], cache).argmax()))
    again: list[int] = []
    while len(again) < 8:
        tokens_T = torch.cat((torch.from_numpy(prompt.tokens_T), torch.tensor(again, dtype=torch.long)))
        longer = replace(prompt, tokens_T=tokens_T.numpy(), positions_RT=torch.arange(len(tokens_T))[None].numpy())
        whole = batch_of([longer], CONFIG)
        again.append(int(model(whole, rows=whole.last_rows).argmax()))
    assert cached == again
    assert len({*cached}) > 2


def test_what_a_context_says_of_lengths() -> None:
    beginning = sequence(0, [6], CONFIG)
    branch = sequence(1, [3], CONFIG).after(beginning)
    packed = PackedContext(batch_of([beginning, branch, sequence(2, [4], CONFIG)], CONFIG))
    assert packed.spans == (Span(6, 6), Span(3, 9), Span(4, 4))
    cache = Forward(made(CONFIG)).new_cache()
    rows = [cache.add_row(), cache.add_row()]
    first = batch_of([sequence(0, [6], CONFIG), sequence(1, [2], CONFIG)], CONFIG)
    assert cache.context(first, rows).spans == (Span(6, 6), Span(2, 2))
    step = batch_of([sequence(2, [1], CONFIG), sequence(3, [4], CONFIG)], CONFIG)
    assert cache.context(step, rows).spans == (Span(1, 6), Span(4, 2))
    cache.drop_row(0)
    row = cache.add_row()
    again = batch_of([sequence(4, [1], CONFIG), sequence(5, [8], CONFIG)], CONFIG)
    assert cache.context(again, [0, row]).spans == (Span(1, 2), Span(8, 8))
