"""What a request gets: the same alone, in a crowd, streamed, and computed the slow way."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from tiny_vlm import picture, user

from qvl.batch import Batch
from qvl.engine import session
from qvl.engine.api import Request, Sampling
from qvl.engine.generate import Engine
from qvl.engine.limits import Limits
from qvl.engine.runner import Runner
from qvl.engine.sampler import Choice
from qvl.engine.seeing import looks_in
from qvl.engine.session import Session
from qvl.inputs.processor import Processor, ProcessorConfig
from qvl.models.qwen2_vl.model import Qwen2VL

REQUESTS = [
    Request(user(picture(90, 140), "red circle"), Sampling(max_new_tokens=12)),
    Request(user("blue"), Sampling(max_new_tokens=3)),
    Request(user(picture(60, 60, 1), picture(30, 200, 2), "left of"), Sampling(max_new_tokens=25)),
    Request(user("the square is red " * 6), Sampling(max_new_tokens=1)),
    Request(user("sampled"), Sampling(max_new_tokens=20, temperature=1.0, top_k=20, top_p=0.9, seed=5)),
    Request(user(picture(56, 56, 3)), Sampling(max_new_tokens=9, repetition_penalty=1.3)),
    Request(user("the"), Sampling(max_new_tokens=30, temperature=0.7, seed=6)),
    Request(user(picture(200, 120, 4), "blue"), Sampling(max_new_tokens=7)),
]


def naive(model, processor, request: Request) -> tuple[list[int], list[float]]:
    """Greedy generation the slow way: every step computes everything again, with no cache."""
    sequence = processor.sequence(request.messages, generation_prompt=True)
    prompt = processor.pack([sequence])
    ids: list[int] = []
    logprobs: list[float] = []
    stop_ids = processor.chat().stop_ids
    while len(ids) < request.sampling.max_new_tokens and not (ids and ids[-1] in stop_ids):
        following = sequence.next_position + torch.arange(len(ids))
        batch = Batch(
            tokens_T=torch.cat([prompt.tokens_T, torch.tensor(ids, dtype=torch.long)]),
            positions_RT=torch.cat([prompt.positions_RT, following.expand(len(prompt.positions_RT), -1)], dim=1),
            seq_lens=(prompt.seq_lens[0] + len(ids),),
            patches_PC=prompt.patches_PC,
            patch_hw_2P=prompt.patch_hw_2P,
            segment_lens=prompt.segment_lens,
            grids=prompt.grids,
            vision_rows_M=prompt.vision_rows_M,
        )
        with torch.no_grad():
            logprobs_V = model(batch)[-1].log_softmax(-1)
        ids.append(int(logprobs_V.argmax()))
        logprobs.append(float(logprobs_V[ids[-1]]))
    return ids, logprobs


@pytest.mark.slow
@pytest.mark.parametrize("request_", [r for r in REQUESTS if r.sampling == Sampling(r.sampling.max_new_tokens)])
def test_cached_decoding_equals_computing_everything_again(engine, request_):
    reply = engine.generate([request_])[0]
    ids, logprobs = naive(engine.model, engine.processor, request_)
    assert list(reply.token_ids) == ids
    assert len(set(ids)) > len(ids) // 2, "the model is too dull for this test"
    # worst seen 3.6e-6
    assert reply.logprobs == pytest.approx(logprobs, abs=1e-5)


@pytest.mark.parametrize("limits", [Limits(), Limits(max_rows=3, max_batch_tokens=60), Limits(max_rows=1)])
def test_a_crowd_gets_what_each_would_get_alone(model, processor, limits):
    """Greedy and sampled, with and without pictures, rows leaving and others taking their place."""
    together = Engine(model, processor, limits).generate(REQUESTS)
    backwards = Engine(model, processor, limits).generate(REQUESTS[::-1])[::-1]
    for request, a, b in zip(REQUESTS, together, backwards, strict=True):
        alone = Engine(model, processor).generate([request])[0]
        assert a.token_ids == b.token_ids == alone.token_ids
        assert a.text == b.text == alone.text
        # worst seen 3.8e-6
        assert a.logprobs == pytest.approx(alone.logprobs, abs=1e-5)
        assert b.logprobs == pytest.approx(alone.logprobs, abs=1e-5)


def test_limits_bound_rows_tokens_and_patches(model, processor, monkeypatch):
    steps = []
    run = Runner.run
    monkeypatch.setattr(Runner, "run", lambda self, work: (steps.append([p for _, p in work]), run(self, work))[1])
    Engine(model, processor, Limits(max_rows=3, max_batch_tokens=20, max_batch_patches=100)).generate(REQUESTS)
    assert max(map(len, steps)) == 3
    assert max(sum(p.end - p.begin for p in step) for step in steps) == 20
    for step in steps:
        looks = {look for p in step for look, _, _ in looks_in(p)}
        assert len(looks) == 1 or sum(look.patches for look in looks) <= 100
    assert any({p.end - p.begin for p in step} > {1} for step in steps), "prompts are computed beside decoding"


@pytest.mark.parametrize("request_", REQUESTS)
def test_streaming_equals_not_streaming(engine, request_):
    *pieces, reply = engine.stream(request_)
    whole = engine.generate([request_])[0]
    assert "".join(pieces) == reply.text == whole.text
    assert reply.token_ids == whole.token_ids
    assert "" not in pieces


def test_a_stop_string_ends_the_reply_and_is_left_out(engine):
    request = REQUESTS[2]
    text = engine.generate([request])[0].text
    stop = text[4:7]
    cut = Request(request.messages, Sampling(max_new_tokens=25, stop=(stop,)))
    *pieces, reply = engine.stream(cut)
    assert reply.text == "".join(pieces) == text[: text.index(stop)]
    assert reply.finish_reason == "stop"
    assert reply.usage.completion_tokens < 25


def test_the_formats_own_token_ends_the_reply(model, processor, tokenizer, monkeypatch):
    """The third token is made the end: it is counted and listed, but not part of the text."""
    end = tokenizer.special("<|im_end|>")
    choose, calls = session.choose_tokens, []

    def third_is_end(logits_BV, samplers):
        calls.append(1)
        choices = choose(logits_BV, samplers)
        return [Choice(end, c.logprob) for c in choices] if len(calls) == 3 else choices

    monkeypatch.setattr(session, "choose_tokens", third_is_end)
    reply = Engine(model, processor).generate([REQUESTS[0]])[0]
    assert (reply.finish_reason, reply.usage.completion_tokens, reply.token_ids[-1]) == ("stop", 3, end)
    assert reply.text == tokenizer.decode(reply.token_ids[:2])


@pytest.mark.parametrize(("stops", "finish", "count"), [(True, "repetition", 128), (False, "length", 200)])
def test_a_reply_that_goes_round_in_circles_ends(model, processor, monkeypatch, stops, finish, count):
    monkeypatch.setattr(session, "choose_tokens", lambda logits_BV, samplers: [Choice(65, -1.0)] * len(samplers))
    request = Request(user("a table"), Sampling(max_new_tokens=200, stop_on_repetition=stops))
    reply = Engine(model, processor).generate([request])[0]
    assert (reply.finish_reason, reply.usage.completion_tokens) == (finish, count)


def test_usage_adds_up(engine):
    replies = engine.generate(REQUESTS[:3])
    for request, reply in zip(REQUESTS, replies, strict=False):
        batch = engine.processor([request.messages], generation_prompt=True)
        usage = reply.usage
        assert usage.prompt_tokens == len(batch.tokens_T)
        assert usage.vision_tokens == len(batch.vision_rows_M)
        assert usage.completion_tokens == len(reply.token_ids) == len(reply.logprobs)
        assert set(usage.milliseconds) == {"queue", "decode", "resize", "vision", "prefill", "generate"}
        assert usage.milliseconds["prefill"] > 0
    assert replies[2].usage.resized_to == ((56, 56), (28, 196))
    assert replies[0].usage.milliseconds["resize"] > 0
    assert replies[1].usage.milliseconds["resize"] == 0


def test_cancelled_requests_leave_the_others_alone(model, processor):
    running = Session(model, processor, Limits(max_rows=3))
    answers = [running.prepare(request) for request in REQUESTS[:5]]
    items: list[list] = [[] for _ in answers]
    for answer, into in zip(answers, items, strict=True):
        running.add(answer, into.append)
    running.step()
    running.cancel(answers[0])  # in a row
    running.cancel(answers[3])  # waiting
    running.cancel(answers[3])
    held = running.stats()
    assert (held.running, held.waiting, held.cancelled) == (2, 1, 2)
    while running.busy:
        running.step()
    running.cancel(answers[1])  # finished
    assert [into[-1].finish_reason == "cancelled" for into in items] == [True, False, False, True, False]
    for i in (1, 2, 4):
        assert items[i][-1].token_ids == Engine(model, processor).generate([REQUESTS[i]])[0].token_ids
    assert running.stats().pages_used == 0
    assert running.stats().requests == 5


def test_a_bad_request_leaves_nothing_of_its_neighbours_behind(model, processor):
    engine = Engine(model, processor)
    bad = Request([{"role": "user", "content": [{"type": "image", "image": "nowhere.png"}]}])
    with pytest.raises(FileNotFoundError, match=r"request 2: .*nowhere\.png"):
        engine.generate([REQUESTS[0], REQUESTS[1], bad])
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)
    assert engine.generate([REQUESTS[1]])[0].finish_reason == "length"


def test_a_stream_that_nobody_reads_on_gives_its_pages_back(model, processor):
    engine = Engine(model, processor)
    stream = engine.stream(REQUESTS[2])
    next(stream)
    assert engine.stats().running == 1
    other = engine.generate([REQUESTS[1]])[0]
    assert other.token_ids == Engine(model, processor).generate([REQUESTS[1]])[0].token_ids
    stream.close()
    assert (engine.stats().running, engine.stats().pages_used) == (0, 0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Request(user("a"), Sampling(max_new_tokens=510)), r"max_new_tokens is 510: together \d+, .*context is 512"),
        (Request(user(picture(700, 700)), Sampling()), r"625 of them pictures.*smaller max_pixels"),
        (Request([]), "at least one message"),
    ],
)
def test_requests_that_cannot_be_answered_say_why_and_which(engine, bad, message):
    with pytest.raises(ValueError, match=f"^request 1: .*({message})"):
        engine.generate([REQUESTS[1], bad])
    with pytest.raises(ValueError, match=message):
        list(engine.stream(bad))


def test_an_empty_raw_prompt_is_refused(model, raw_processor):
    with pytest.raises(ValueError, match="nothing to go on from"):
        Engine(model, raw_processor).generate([Request(user(""))])


def test_the_request_may_choose_the_chat_format(model, processor, raw_processor):
    request = Request(user("red circle"), Sampling(max_new_tokens=4), chat_format="raw")
    as_raw = Engine(model, processor).generate([request])[0]
    assert (
        as_raw.token_ids
        == Engine(model, raw_processor).generate([Request(request.messages, request.sampling)])[0].token_ids
    )
    assert as_raw.usage.prompt_tokens == len(processor.tokenizer.encode("red circle"))


def test_no_requests_no_replies(engine):
    assert engine.generate([]) == []


def test_limits_are_positive():
    with pytest.raises(ValueError, match="at least 1, got max_rows=0"):
        Limits(max_rows=0)
    with pytest.raises(ValueError, match="at least 0, got max_waiting=-1"):
        Limits(max_waiting=-1)


def test_models_with_one_rope_axis_and_of_other_dtypes_generate(model, tokenizer):
    """The 1-D ablation, and bfloat16 (whose cache is bfloat16 too)."""
    config = replace(model.config, text=replace(model.config.text, rope_sections=()))
    flat = Qwen2VL(config).eval()
    flat.load_state_dict(model.state_dict())
    one_axis = Engine(flat, Processor(tokenizer, ProcessorConfig(rope_axes=1)))
    reply = one_axis.generate([REQUESTS[0]])[0]
    assert list(reply.token_ids) == naive(flat, one_axis.processor, REQUESTS[0])[0]
    short = Engine(deepcopy(model).to(torch.bfloat16), Processor(tokenizer)).generate(REQUESTS[:3])
    assert [r.usage.completion_tokens for r in short] == [12, 3, 25]
