"""One request at a time behind the interface of many."""

from __future__ import annotations

import threading

import pytest
from tiny_vlm import picture, user

from qvl.engine.api import Delta, LiveEngine, QueueFull, Reply, Request, Sampling
from qvl.engine.generate import Engine
from qvl.engine.serial import SerialEngine


def finished(items: list) -> tuple[str, Reply]:
    *deltas, reply = items
    assert all(isinstance(d, Delta) for d in deltas)
    assert isinstance(reply, Reply)
    return "".join(d.text for d in deltas), reply


def test_a_ticket_brings_what_the_engine_streams(engine: Engine):
    live: LiveEngine = SerialEngine(engine, "tiny")
    request = Request(user(picture(56, 84), "the red circle"), Sampling(max_new_tokens=8))
    text, reply = finished(list(live.submit(request)))
    expected = engine.generate([request])[0]
    assert (text, reply.text, reply.token_ids) == (expected.text, expected.text, expected.token_ids)
    stats = live.stats()
    assert (stats.requests, stats.completion_tokens, stats.running, stats.waiting) == (1, 8, 0, 0)
    assert stats.vision_tokens == expected.usage.vision_tokens


def test_a_cancelled_ticket_ends_and_frees_its_turn(engine: Engine):
    live = SerialEngine(engine, "tiny")
    request = Request(user("the red circle"), Sampling(max_new_tokens=300))
    running, waiting = live.submit(request), live.submit(request)
    items = iter(running)
    next(items)
    waiting_items: list = []
    thread = threading.Thread(target=lambda: waiting_items.extend(waiting))
    thread.start()
    waiting.cancel()
    thread.join(60)
    assert finished(waiting_items)[1].finish_reason == "cancelled"
    running.cancel()
    running.cancel()
    *_, reply = items
    assert isinstance(reply, Reply)
    assert reply.finish_reason == "cancelled"
    assert live.stats().cancelled == 2
    assert finished(list(live.submit(Request(user("the"), Sampling(max_new_tokens=2)))))[1].finish_reason != "cancelled"


def test_what_cannot_be_answered(engine: Engine):
    live = SerialEngine(engine, "tiny", max_waiting=1)
    for sampling in (Sampling(json_schema="{}"), Sampling(logprobs=True)):
        with pytest.raises(ValueError, match="not supported by this engine"):
            live.submit(Request(user("hi"), sampling))
    with pytest.raises(ValueError, match="the model's context is 512"):
        live.submit(Request(user("hi"), Sampling(max_new_tokens=9999)))
    live.submit(Request(user("hi")))
    with pytest.raises(QueueFull, match="1 requests wait"):
        live.submit(Request(user("hi")))
    live.close(drain_s=1.0)
    with pytest.raises(QueueFull, match="closed"):
        live.submit(Request(user("hi")))
