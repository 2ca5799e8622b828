"""What was computed once is not computed again, what had to go is computed again, and no answer changes for it."""

from __future__ import annotations

import sys
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from tiny_vlm import clip, picture, user

from qvl.engine.api import Request, Sampling
from qvl.engine.generate import Engine
from qvl.engine.limits import Limits
from qvl.engine.session import Session
from qvl.engine.vision_cache import VisionCache

CLOSE = 5e-5
"""Of log-probabilities; measured worst over eight random models 1.5e-5: sums of other lengths in another order."""


def ask(*parts: object, tokens: int = 12) -> Request:
    return Request(user(*parts), Sampling(max_new_tokens=tokens))


def same(a, b) -> None:
    assert a.token_ids == b.token_ids
    assert a.text == b.text
    assert a.logprobs == pytest.approx(b.logprobs, abs=CLOSE)


@pytest.fixture
def fresh(model, processor):
    return lambda **limits: Engine(model, processor, Limits(page_tokens=8, **limits))


def test_a_second_question_about_a_picture_costs_no_vision_time(fresh):
    engine, seen = fresh(), picture(120, 90)
    first = engine.generate([ask(seen, "what is it?")])[0]
    assert first.usage.milliseconds["vision"] > 0
    assert (first.usage.cache_hits, first.usage.cached_tokens) == (0, 0)
    second = engine.generate([ask(seen.copy(), "and where?")])[0]
    assert second.usage.milliseconds["vision"] == 0
    assert second.usage.cache_hits == 1
    assert second.usage.cached_tokens >= second.usage.vision_tokens
    same(second, fresh().generate([ask(seen, "and where?")])[0])
    assert (engine.stats().vision_hits, engine.stats().prefix_hits) == (1, 1)


def test_one_grey_level_makes_another_picture(fresh):
    engine, seen = fresh(), picture(56, 56)
    other = seen.copy()
    other[0, 0, 0] ^= 1
    engine.generate([ask(seen, "a")])
    reply = engine.generate([ask(other, "a")])[0]
    assert reply.usage.cache_hits == 0
    same(reply, fresh().generate([ask(other, "a")])[0])


def test_pixels_of_another_shape_are_another_picture(fresh):
    """The same bytes, seen as 2 x 8 and as 8 x 2 tokens."""
    engine = fresh()
    white = [picture(56, 224) * 0, picture(224, 56) * 0]
    replies = engine.generate([ask(p, "a") for p in white])
    assert [r.usage.cache_hits for r in replies] == [0, 0]
    for reply, p in zip(replies, white, strict=True):
        same(reply, fresh().generate([ask(p, "a")])[0])


def test_vectors_are_found_where_the_prompt_before_them_differs(fresh):
    engine, seen = fresh(), picture(90, 120)
    engine.generate([ask(seen, "a")])
    reply = engine.generate([ask("this time the words come first, and they are many: ", seen, "a")])[0]
    assert reply.usage.cache_hits == 1
    assert reply.usage.milliseconds["vision"] == 0
    assert reply.usage.cached_tokens < reply.usage.prompt_tokens - reply.usage.vision_tokens
    same(reply, fresh().generate([ask("this time the words come first, and they are many: ", seen, "a")])[0])


def test_questions_that_come_together_look_once(fresh, model, monkeypatch):
    seen, looks = picture(90, 90), []
    see = type(model).see
    monkeypatch.setattr(
        type(model), "see", lambda self, b, attn: (looks.append(len(b.patches_PC)), see(self, b, attn))[1]
    )
    requests = [ask(seen, f"question {i}") for i in range(6)] + [ask("first words", seen)]
    replies = fresh().generate(requests)
    assert looks == [36]
    assert [r.usage.cached_tokens > 0 for r in replies] == [False] + [True] * 6
    assert sorted(r.usage.cache_hits for r in replies) == [0] + [1] * 6


def test_a_conversation_goes_on_from_what_was_said(fresh):
    engine = fresh()
    opening = user(picture(60, 60), "tell me")
    first = engine.generate([Request(opening, Sampling(max_new_tokens=24))])[0]
    ids = engine.processor.tokenizer.encode(first.text)
    if tuple(ids) != first.token_ids:
        pytest.skip("what a random model says is seldom spelled in the tokenizer's own way")
    following = [*opening, {"role": "assistant", "content": first.text}, *user("go on")]
    second = engine.generate([Request(following, Sampling(max_new_tokens=5))])[0]
    assert second.usage.cached_tokens >= first.usage.prompt_tokens + 24 - 8


def test_generated_tokens_have_the_keys_they_would_have_in_a_prompt(fresh, processor):
    from qvl.engine.content import Content, looks_of

    prompt = processor.sequence(user(picture(60, 60), "tell me"), generation_prompt=True)
    looks = looks_of(prompt)
    said = Content(prompt, looks, 8)
    said.generated += [7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
    tokens_T, positions_RT = said.rows(0, len(prompt.tokens_T) + 10)
    given = Content(replace(prompt, tokens_T=tokens_T, positions_RT=positions_RT), looks, 8)
    last = len(tokens_T) // 8 - 1
    assert said.page_key(last) == given.page_key(last)
    given.generated[:] = []
    other = replace(prompt, tokens_T=tokens_T, positions_RT=positions_RT + 1)
    assert Content(other, looks, 8).page_key(0) != given.page_key(0)
    assert Content(prompt, looks, 8, b"salt").page_key(0) != given.page_key(0)


@pytest.mark.parametrize("tokens", [1, 5, 13])
def test_prompts_in_pieces_equal_prompts_at_once(fresh, tokens):
    """Pieces end in the middle of pictures and clips too."""
    requests = [
        ask(picture(90, 120), "red"),
        ask(clip(6, 60, 90), "blue"),
        ask("the square " * 5),
        ask(picture(60, 60)),
    ]
    pieces = fresh(max_batch_tokens=tokens, max_batch_patches=24).generate(requests)
    for reply, request in zip(pieces, requests, strict=True):
        same(reply, fresh().generate([request])[0])


def test_moments_of_a_clip_are_seen_one_by_one_if_need_be(fresh, model, monkeypatch):
    looks = []
    see = type(model).see
    monkeypatch.setattr(type(model), "see", lambda self, b, attn: (looks.append(b.segment_lens), see(self, b, attn))[1])
    reply = fresh(max_batch_patches=50).generate([ask(clip(6, 60, 90), "what happens?")])[0]
    assert looks == [(24, 24), (24,)]
    assert reply.usage.cache_hits == 0


@pytest.mark.parametrize("vision_mib", [0, 256])
def test_a_full_cache_lets_the_youngest_wait_and_no_answer_changes(fresh, vision_mib):
    requests = [ask(picture(90, 90, i), "red" * i, tokens=40) for i in range(6)]
    engine = fresh(cache_tokens=200, vision_cache_mib=vision_mib)
    replies = engine.generate(requests)
    stats = engine.stats()
    assert stats.preemptions > 0
    assert (stats.pages_used, stats.pages_total) == (0, 25)
    for reply, request in zip(replies, requests, strict=True):
        same(reply, fresh().generate([request])[0])


def test_what_never_fits_is_refused_at_once(fresh):
    with pytest.raises(ValueError, match=r"needs a cache of \d+ tokens .* it has 64: raise cache_tokens"):
        fresh(cache_tokens=64).generate([ask("a", tokens=60)])


def test_other_weights_make_everything_be_forgotten(model, processor):
    changed = deepcopy(model)
    engine, request = Engine(changed, processor), ask(picture(60, 60), "red")
    before = engine.generate([request])[0]
    with torch.no_grad():
        changed.decoder.layers[0].mlp_norm.weight.mul_(3)
        changed.visual.merger.fc2.weight.mul_(-1)
    after = engine.generate([request])[0]
    assert (after.usage.cached_tokens, after.usage.cache_hits) == (0, 0)
    assert after.token_ids != before.token_ids
    same(after, Engine(changed, processor).generate([request])[0])
    changed.to(torch.bfloat16)
    assert len(engine.generate([request])[0].token_ids) == 12


def test_the_vision_cache_keeps_what_was_used_last():
    cache, (a, b, c) = VisionCache(900), (torch.zeros(10, 10) for _ in range(3))
    cache.put(b"a", a)
    cache.put(b"b", b)
    assert cache.get(b"a") is a
    cache.put(b"c", c)
    assert [key in cache for key in (b"a", b"b", b"c")] == [True, False, True]
    assert cache.bytes == 800
    cache.put(b"huge", torch.zeros(1000))
    assert b"huge" not in cache
    assert cache.get(b"a") is a


def calls_of(step) -> int:
    """Python and C calls made by `step()`: what a step costs in interpreter time, free of the machine's noise."""
    count = 0

    def tally(frame, event, arg) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(tally)
    try:
        step()
    finally:
        sys.setprofile(None)
    return count


def test_a_step_costs_the_same_after_many_requests_and_in_a_long_context(model, processor):
    session = Session(model, processor, Limits(page_tokens=16))

    def start(request: Request) -> None:
        session.add(session.prepare(request), lambda item: None)

    def cost(steps: int = 1) -> int:
        # The cheapest of some steps: one whose token ends a piece of text makes 13 calls more than one whose does not.
        return min(calls_of(session.step) for _ in range(steps))

    start(ask("one", tokens=300))
    session.step()
    session.step()
    early = cost(20)
    for number in range(40):
        start(ask(f"and another {number}", tokens=2))
        session.step()
        session.step()
    assert session.stats().running == 1
    for _ in range(150):
        session.step()
    late = cost(40)
    assert session.stats().requests == 40
    # measured 602 and 604: pages that do not lie side by side are gathered, not viewed
    assert late <= early + 10, f"{early} calls in a step at first, {late} later"
