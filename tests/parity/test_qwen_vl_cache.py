"""Qwen-VL decoded with a cache, beyond its trained length too: the angles are those of the prompt's length for good."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from parity import naive_qwen_vl
from parity.handmade import relative
from parity.handmade_qwen_vl import batch_of, made, sequence, small_config
from parity.paged_rows import Held, PagedRows
from parity.test_qwen_vl_naive import official
from qvl.inputs.sequence import Sequence
from qvl.layers.attention import PackedContext, Span

CONFIG = small_config(trained_len=16)
CLOSE = 1e-5  # of the largest magnitude; measured worst over eight random models: 2.1e-6


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
    rows = PagedRows(model)
    held = [Held(n) for n in prompts]

    def feed(who: list[int], count: list[int]) -> None:
        order = rows.ordered([held[i] for i in who], count)
        who, count = [who[i] for i in order], [count[i] for i in order]
        done = [held[i].tokens for i in who]
        pieces = [
            replace(tail(whole[i], d), tokens_T=whole[i].tokens_T[d : d + n])
            if d
            else replace(whole[i], tokens_T=whole[i].tokens_T[:n])
            for i, d, n in zip(who, done, count, strict=True)
        ]
        pieces = [replace(p, positions_RT=p.positions_RT[:, : len(p.tokens_T)]) for p in pieces]
        batch = batch_of(pieces, CONFIG)
        logits = model(batch, rows.context(batch, [held[i] for i in who])).split(count)
        for i, d, n, ours in zip(who, done, count, logits, strict=True):
            assert relative(ours, wanted[i][d : d + n]) < CLOSE, (i, d)

    feed([0, 1, 2, 3], [5, 14, 25, 21])
    feed([2], [15])  # a long prompt in two pieces: the angles are those of all of it from the beginning
    for _ in range(4):
        feed([0, 1, 2, 3], [1, 1, 1, 1])
    feed([1], [2])
    rows.drop(held[0])
    feed([1, 2, 3], [1, 1, 1])
    feed([4], prompts[4:])
    for _ in range(2):
        feed([1, 2, 3, 4], [1, 1, 1, 1])
    assert held[1].tokens == 14 + 4 + 2 + 1 + 2 == len(whole[1].tokens_T)


def test_greedy_with_and_without_the_cache() -> None:
    """Within one step of the rule (17 to 32 tokens) both ways give the same tokens."""
    model = made(CONFIG, seed=3)
    prompt = sequence(7, [3, (4, 4), 2], CONFIG)  # 23 tokens
    rows, held = PagedRows(model), Held(len(prompt.tokens_T))
    cached: list[int] = []
    piece = prompt
    while len(cached) < 8:
        batch = batch_of([piece], CONFIG)
        cached.append(int(model(batch, rows.context(batch, [held]), rows=batch.last_rows).argmax()))
        positions = np.array([[held.tokens]])
        piece = replace(tail(prompt, 0), tokens_T=np.array(cached[-1:]), positions_RT=positions)
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
    rows = PagedRows(made(CONFIG))
    a, b = Held(6), Held(4)
    first = batch_of([sequence(0, [6], CONFIG), sequence(1, [2], CONFIG)], CONFIG)
    assert rows.context(first, [a, b]).spans == (Span(6, 6), Span(2, 4))
    step = batch_of([sequence(2, [1], CONFIG), sequence(3, [2], CONFIG)], CONFIG)
    assert rows.context(step, [a, b]).spans == (Span(1, 6), Span(2, 4))
