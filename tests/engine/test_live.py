"""An engine under fire: callers in many threads, some of whom go away, and a cache that is too small for them."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import replace
from itertools import chain, islice

import pytest
from tiny_vlm import clip, picture, user

from qvl.engine.api import Delta, LiveEngine, QueueFull, Reply, Request, Sampling
from qvl.engine.generate import Engine
from qvl.engine.limits import Limits
from qvl.engine.live import Live
from qvl.engine.runner import Runner


@pytest.fixture
def live(model, processor):
    engine = Live(model, processor, Limits(max_rows=4, page_tokens=8), model_name="tiny")
    yield engine
    engine.close(drain_s=0)


def whole(ticket) -> Reply:
    *deltas, reply = ticket
    assert all(isinstance(d, Delta) for d in deltas)
    assert isinstance(reply, Reply)
    assert "".join(d.text for d in deltas) == reply.text
    return reply


def long(text: str = "go on") -> Request:
    return Request(user(text), Sampling(max_new_tokens=400, stop_on_repetition=False))


def test_it_is_what_the_server_expects(live):
    engine: LiveEngine = live
    assert engine.model_name == "tiny"
    request = Request(user(picture(60, 60), "red"), Sampling(max_new_tokens=9, top_logprobs=2))
    *deltas, reply = engine.submit(request)
    assert [t for d in deltas for t in d.logprobs] == list(reply.token_logprobs)
    assert [t.token_id for t in reply.token_logprobs] == list(reply.token_ids)
    assert [t.logprob for t in reply.token_logprobs] == list(reply.logprobs)
    assert all(t.top[0][2] == t.logprob and t.top[0][1] == t.data for t in reply.token_logprobs)
    assert set(reply.usage.milliseconds) == {"queue", "decode", "resize", "vision", "prefill", "generate"}
    stats = engine.stats()
    assert (stats.requests, stats.running, stats.pages_used) == (1, 0, 0)
    assert stats.completion_tokens == reply.usage.completion_tokens == len(reply.token_ids)


def test_the_reply_can_be_asked_for_again(live):
    ticket = live.submit(Request(user("red"), Sampling(max_new_tokens=3)))
    reply = whole(ticket)
    assert list(ticket) == [reply]


def test_cancelling_ends_the_iterator_and_frees_the_pages(live):
    ticket, other = live.submit(long()), live.submit(Request(user("red"), Sampling(max_new_tokens=5)))
    items = iter(ticket)
    next(items)
    ticket.cancel()
    ticket.cancel()
    reply = list(items)[-1]
    assert reply.finish_reason == "cancelled"
    assert reply.problem == ""
    assert reply.text
    assert whole(other).finish_reason == "length"
    ticket.cancel()
    assert (live.stats().pages_used, live.stats().cancelled) == (0, 1)


def test_a_reply_that_is_called_off_keeps_nothing_back(live, model, processor):
    """Neither what might have become a stop string nor what was measured of tokens that made no text yet."""
    request = long()
    text = Engine(model, processor).generate([request])[0].text
    at = next(i for i in range(3, 200) if text[i] not in text[:i])
    sampling = replace(request.sampling, stop=(text[at:] + "never said",), top_logprobs=1)
    ticket = live.submit(replace(request, sampling=sampling))
    while len(ticket.answer.content.generated) < at + 30:
        time.sleep(0.001)
    ticket.cancel()
    *deltas, reply = ticket
    assert reply.finish_reason == "cancelled"
    assert "".join(d.text for d in deltas) == reply.text
    assert len(reply.text) > at
    assert [t for d in deltas for t in d.logprobs] == list(reply.token_logprobs)
    assert len(reply.token_logprobs) == len(reply.token_ids)


def test_what_can_never_be_answered_is_refused_by_submit(live):
    with pytest.raises(ValueError, match="the model's context is 512"):
        live.submit(Request(user("a"), Sampling(max_new_tokens=600)))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        live.submit(Request([{"role": "user", "content": [{"type": "image", "image": "nowhere.png"}]}]))
    assert whole(live.submit(Request(user("a"), Sampling(max_new_tokens=2)))).usage.completion_tokens == 2


def test_too_many_are_turned_away_and_later_let_in(model, processor):
    live = Live(model, processor, Limits(max_rows=1, max_waiting=1))
    tickets = [live.submit(long()), live.submit(long())]
    with pytest.raises(QueueFull, match=r"2 requests .*max_waiting=1"):
        live.submit(long())
    tickets[0].cancel()
    whole(tickets[0])
    third = live.submit(Request(user("red"), Sampling(max_new_tokens=2)))
    tickets[1].cancel()
    assert whole(third).finish_reason == "length"
    live.close(drain_s=10)


def test_requests_about_the_same_are_let_in_together_or_not_at_all(model, processor):
    live = Live(model, processor, Limits(max_rows=1, max_waiting=2))
    messages = user(picture(60, 60), "red")
    asked = [Request(messages, Sampling(max_new_tokens=4, temperature=1.0, seed=s)) for s in range(4)]
    with pytest.raises(ValueError, match=r"4 replies .* only 3 requests .*max_waiting=2"):
        live.submit_all(asked)
    before = live.submit(long())
    with pytest.raises(QueueFull, match=r"3 requests"):
        live.submit_all(asked[:3])
    before.cancel()
    whole(before)
    replies = [whole(ticket) for ticket in live.submit_all(asked[:3])]
    assert [r.token_ids for r in replies] == [r.token_ids for r in Engine(model, processor).generate(asked[:3])]
    assert live.stats().pages_used == 0
    live.close(drain_s=10)


def test_pixels_that_wait_are_bounded(model, processor):
    """One request may always come; a second that would not fit beside it is told to come again."""
    live = Live(model, processor, Limits(max_rows=1, max_held_mib=1))
    running, big = live.submit(long()), [user(picture(280, 280, seed), "red") for seed in range(3)]
    first = live.submit(Request(big[0], Sampling(max_new_tokens=2)))  # 400 patches: 1.8 MiB, and nothing else waits
    with pytest.raises(QueueFull, match=r"take 1 MiB, those of requests before it 1 MiB \(max_held_mib=1\)"):
        live.submit(Request(big[1], Sampling(max_new_tokens=2)))
    running.cancel()
    assert whole(first).finish_reason == "length"
    assert whole(live.submit(Request(big[2], Sampling(max_new_tokens=2)))).finish_reason == "length"
    live.close(drain_s=10)


def test_closing_finishes_what_runs_and_takes_nothing_new(model, processor):
    live = Live(model, processor)
    ticket = live.submit(Request(user("red"), Sampling(max_new_tokens=30)))
    live.close(drain_s=30)
    assert whole(ticket).finish_reason == "length"
    with pytest.raises(QueueFull, match="the engine is closed"):
        live.submit(long())
    live.close(drain_s=0)


def test_closing_without_patience_still_answers_everybody(model, processor):
    live = Live(model, processor, Limits(max_rows=1))
    tickets = [live.submit(long()) for _ in range(3)]
    live.close(drain_s=0)
    for ticket in tickets:
        reply = whole(ticket)
        assert reply.finish_reason == "cancelled"
        assert "closed before the reply was finished" in reply.problem


def test_an_error_in_a_step_fails_those_it_belongs_to(live, model, processor, monkeypatch):
    """One request makes the model fail, another makes its logits no numbers; the third goes on."""
    run = Runner.run

    def broken(self, work):
        if any(answer.sampling.seed == 13 for answer, _ in work):
            raise RuntimeError("no memory left for seed 13")
        last, logits_BV = run(self, work)
        for row, i in enumerate(last):
            if work[i][0].sampling.seed == 14 and len(work[i][0].content.generated) == 3:
                logits_BV[row] = float("nan")
        return last, logits_BV

    good = Request(user("red"), Sampling(max_new_tokens=20))
    wanted = Engine(model, processor).generate([good])[0]
    monkeypatch.setattr(Runner, "run", broken)
    tickets = [live.submit(Request(user("red"), Sampling(max_new_tokens=20, seed=s))) for s in (13, 14)]
    fine = live.submit(good)
    replies = [whole(t) for t in tickets]
    assert [r.problem.split(":")[0] for r in replies] == ["RuntimeError", "ValueError"]
    assert "seed 13" in replies[0].problem
    assert "not finite" in replies[1].problem
    assert [r.usage.completion_tokens for r in replies] == [0, 3]
    assert whole(fine).token_ids == wanted.token_ids
    assert live.stats().pages_used == 0
    assert whole(live.submit(good)).token_ids == wanted.token_ids


def test_an_error_of_the_engines_own_loses_nobody(live, monkeypatch):
    """Bookkeeping itself fails: everybody under way is told, and the next request is answered."""
    from qvl.engine.scheduler import Scheduler

    ticket = live.submit(long())
    next(iter(ticket))
    plan = Scheduler.plan
    monkeypatch.setattr(Scheduler, "plan", lambda self: 1 / 0)
    assert "ZeroDivisionError" in last(ticket).problem
    monkeypatch.setattr(Scheduler, "plan", plan)
    assert whole(live.submit(Request(user("red"), Sampling(max_new_tokens=2)))).problem == ""


def last(items) -> Reply:
    return list(items)[-1]


def requests(rng: random.Random, count: int) -> list[Request]:
    """Text, pictures (some of them again and again), clips; greedy and sampled."""
    made = []
    for i in range(count):
        words = " ".join(rng.choices(["red", "blue", "circle", "left", "of", "the"], k=rng.randint(1, 12)))
        two = [picture(30, 60, i), picture(60, 30, i % 2)]
        parts: list = rng.choice([[], [], [picture(60, 90, i % 3)], two, [clip(4, 56, 56, i % 2)]])
        temperature = rng.choice([0.0, 0.0, 1.0])
        sampling = Sampling(rng.randint(1, 60), temperature, seed=i, stop_on_repetition=False)
        made.append(Request(user(*parts, words), sampling))
    return made


@pytest.mark.parametrize(("count", "seed"), [(24, 0), pytest.param(120, 1, marks=pytest.mark.slow)])
def test_nothing_is_lost_leaked_or_changed_under_random_traffic(model, processor, count, seed):
    rng = random.Random(seed)
    asked = requests(rng, count)
    alone = [Engine(model, processor).generate([request])[0] for request in asked]
    limits = Limits(max_rows=5, max_batch_tokens=40, max_batch_patches=40, cache_tokens=144, page_tokens=8)
    live = Live(model, processor, limits)
    replies: dict[int, Reply] = {}
    leave = {i for i in range(count) if rng.random() < 0.2}
    pauses = [rng.random() * 0.02 for _ in range(count)]

    def call(numbers: range) -> None:
        for i in numbers:
            time.sleep(pauses[i])
            ticket = live.submit(asked[i])
            if i in leave:
                items = iter(ticket)
                pieces = list(islice(items, i % 4))
                ticket.cancel()
                replies[i] = last(chain(pieces, items))
            else:
                replies[i] = whole(ticket)

    callers = [threading.Thread(target=call, args=(range(first, count, 8),), daemon=True) for first in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert sorted(replies) == list(range(count)), "a reply was lost"
    live.close(drain_s=30)
    stats = live.stats()
    assert (stats.running, stats.waiting, stats.pages_used, stats.requests) == (0, 0, 0, count)
    assert stats.preemptions > 0, "the cache was meant to be too small"
    for i, reply in replies.items():
        assert reply.problem == ""
        if reply.finish_reason == "cancelled":
            assert i in leave
            assert reply.token_ids == alone[i].token_ids[: len(reply.token_ids)]
        else:
            assert reply.token_ids == alone[i].token_ids
            assert reply.text == alone[i].text
