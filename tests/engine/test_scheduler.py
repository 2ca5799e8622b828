"""The laws of scheduling, without a model: what was planned counts as computed, tokens come from nowhere."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from qvl.engine.kv_pool import PagePool
from qvl.engine.limits import Limits
from qvl.engine.scheduler import Look, Piece, Scheduler, Track

SIZE = 4


def limits(**changes: int) -> Limits:
    return Limits(**{"max_rows": 4, "max_batch_tokens": 16, "max_batch_patches": 50, "page_tokens": SIZE} | changes)


def made(pages: int, **changes: int) -> tuple[Scheduler, PagePool, set[bytes]]:
    pool, seen = PagePool(pages), set()
    return Scheduler(limits(**changes), pool, seen.__contains__), pool, seen


def track(number: int, prompt: int, reply: int = 1, looks: tuple[Look, ...] = (), text: str | None = None) -> Track:
    """A request whose pages are those of every other request with the same `text`."""
    name = text if text is not None else f"request {number}"
    return Track(number, prompt, prompt + reply - 1, lambda page: f"{name}, page {page}".encode(), looks)


def counts(pieces: list[Piece]) -> dict[int, tuple[int, int]]:
    return {p.track.number: (p.begin, p.end) for p in pieces}


def play(scheduler: Scheduler, pieces: list[Piece], seen: set[bytes]) -> list[Track]:
    """Computes the pieces and gives a token to each that wants one. Returns the requests that are whole."""
    ready = [p.track for p in pieces if p.last]
    for piece in pieces:
        seen |= {look.digest for look in piece.track.looks if look.row < piece.end}
    scheduler.done(pieces)
    whole = []
    for t in ready:
        t.known += 1
        if t.known == t.most + 1:
            scheduler.drop(t)
            whole.append(t)
    return whole


def test_a_prompt_is_cut_to_the_step_and_decoding_goes_on_beside_it():
    scheduler, _, seen = made(40)
    scheduler.add(track(0, 6, reply=9))
    assert counts(scheduler.plan()) == {0: (0, 6)}
    play(scheduler, scheduler.plan(), seen)
    scheduler.add(track(1, 40))
    steps = []
    for _ in range(4):
        pieces = scheduler.plan()
        steps.append(counts(pieces))
        play(scheduler, pieces, seen)
    assert steps == [{0: (6, 7), 1: (0, 15)}, {0: (7, 8), 1: (15, 30)}, {0: (8, 9), 1: (30, 40)}, {0: (9, 10)}]


def test_pictures_of_a_step_are_bounded_but_any_picture_is_seen_alone():
    scheduler, _, seen = made(40, max_batch_tokens=99)
    looks = (Look(b"a", 2, 3, 30), Look(b"b", 6, 3, 30), Look(b"c", 10, 3, 70), Look(b"a", 14, 3, 30))
    scheduler.add(track(0, 20, looks=looks))
    steps = []
    while scheduler.running or scheduler.waiting:
        pieces = scheduler.plan()
        steps.append(counts(pieces)[0])
        play(scheduler, pieces, seen)
    assert steps == [(0, 6), (6, 10), (10, 20)]  # b does not fit beside a, c only alone, the second a is known


def test_the_youngest_gives_way_and_comes_back():
    scheduler, pool, seen = made(5)
    for number in range(2):
        scheduler.add(track(number, 7, reply=8))
    ended, steps = [], []
    while scheduler.running or scheduler.waiting:
        pieces = scheduler.plan()
        steps.append(counts(pieces))
        ended += play(scheduler, pieces, seen)
    assert [t.number for t in ended] == [0, 1]
    assert scheduler.preemptions == 1
    assert {1: (4, 9)} in steps, "its first page was still there, the second went to the older one"
    assert pool.used == 0


def test_somebody_elses_prompt_is_waited_for_and_shared():
    scheduler, pool, seen = made(40, max_batch_tokens=8)
    for number in range(3):
        scheduler.add(track(number, 14, reply=3, text="the same"))
    scheduler.add(track(3, 5, reply=3))
    first = scheduler.plan()
    assert counts(first) == {0: (0, 8)}
    play(scheduler, first, seen)
    second = scheduler.plan()
    assert counts(second) == {0: (8, 14), 3: (0, 2)}  # 1 and 2 find two pages, and 0 computes the third
    play(scheduler, second, seen)
    third = scheduler.plan()
    assert counts(third) == {0: (14, 15), 3: (2, 5), 1: (12, 14), 2: (12, 14)}
    assert pool.used == 4 + 2 + 1 + 1


def test_what_never_fits_is_refused_with_the_number_to_change():
    scheduler, _, _ = made(3)
    scheduler.add(track(0, 4, reply=9))
    with pytest.raises(ValueError, match=r"cache of 13 tokens \(4 of prompt.*has 12: raise cache_tokens"):
        scheduler.add(track(1, 4, reply=10))


def test_dropped_requests_leave_nothing_behind():
    scheduler, pool, seen = made(20)
    tracks = [track(n, 9, reply=5) for n in range(6)]
    for t in tracks:
        scheduler.add(t)
    play(scheduler, scheduler.plan(), seen)
    for t in tracks:
        scheduler.drop(t)
        scheduler.drop(t)
    assert (pool.used, pool.available, scheduler.running, scheduler.waiting) == (0, 20, [], [])


@pytest.mark.parametrize("seed", range(40))
def test_laws_hold_for_random_traffic(seed):
    """Budgets are kept, nobody is lost or starves, pages of different content never mix, none leaks."""
    rng = random.Random(seed)
    pages, rows = rng.randint(6, 30), rng.randint(1, 6)
    scheduler, pool, seen = made(pages, max_rows=rows, max_batch_tokens=rng.randint(1, 24))
    content: dict[int, bytes] = {}
    todo, live, ended, cancelled = 30, {}, set(), set()
    number = steps = 0
    while todo or live:
        steps += 1
        assert steps < 5000, "somebody starves"
        while todo and rng.random() < 0.4:
            prompt, reply = rng.randint(1, 12), rng.randint(1, 12)
            looks = (Look(bytes([rng.randrange(4)]), 0, 1, rng.randint(1, 80)),) if rng.random() < 0.3 else ()
            live[number] = track(number, prompt, reply, looks, text=rng.choice(["a", "b", None]))
            scheduler.add(live[number])
            number, todo = number + 1, todo - 1
        if live and rng.random() < 0.05:
            gone = live.pop(rng.choice(list(live)))
            scheduler.drop(gone)
            cancelled.add(gone.number)
        oldest = min((t.number for t in scheduler.running), default=None)
        pieces = scheduler.plan()
        assert bool(pieces) == bool(live), "work is left, but nothing is planned"
        assert oldest is None or oldest in {t.number for t in scheduler.running}, "the oldest gave way"
        _check_step(scheduler, pieces, content, rows)
        for t in play(scheduler, pieces, seen):
            ended.add(live.pop(t.number).number)
        held = Counter(p for t in scheduler.running for p in t.pages)
        assert pool.used == len(held)
        assert pool.used + pool.available == pages
    assert ended | cancelled == set(range(30))
    assert pool.used == 0


def _check_step(scheduler: Scheduler, pieces: list[Piece], content: dict[int, bytes], rows: int) -> None:
    assert len({p.track for p in pieces}) == len(pieces)
    assert len(scheduler.running) <= rows
    assert [t.number for t in scheduler.running] == sorted(t.number for t in scheduler.running)
    prompts = [p for p in pieces if p.end - p.begin > 1]
    most = scheduler._limits.max_batch_tokens
    assert sum(p.end - p.begin for p in pieces) <= max(most, len(pieces) - len(prompts))
    for piece in pieces:
        t = piece.track
        assert t.running
        assert piece.begin == t.computed < piece.end <= t.known <= SIZE * len(t.pages)
        for page in range(piece.begin // SIZE):  # what it reads is what it would have written
            assert content[t.pages[page]] == t.page_key(page)
    for piece in pieces:
        for page in range(piece.begin // SIZE, -(-piece.end // SIZE)):
            content[piece.track.pages[page]] = piece.track.page_key(page)
