"""Who computes what in the next step: many requests, one cache, one model pass at a time.

Knows: how many tokens each request has, how many of them are computed, the pages they lie in, the limits.
Does not know: tensors, models, text, sampling. It is plain bookkeeping and is tested without a model.

One step, in the words of `plan`::

    1. Every request that is being answered needs a page for its newest token. If none is left, the youngest gives up
       all of its pages and waits again; what it said is not lost, only computed once more.
    2. Those rows get their one token each.
    3. What is left of the step's tokens and patches goes to prompts, oldest first, in pieces where need be.
    4. While there is still something left, waiting requests come in, in the order they came. One waits a step longer
       if somebody is just now computing the page it needs next: then it will find that page and share it.

The oldest request never gives anything up and one request alone always fits (`add` sees to that), so all of them end.
"""

from __future__ import annotations

from array import array
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import final

from qvl.engine.kv_pool import PagePool
from qvl.engine.limits import Limits


@dataclass(frozen=True)
class Look:
    """What the vision tower sees at one go: a picture, or one moment of a clip."""

    digest: bytes
    """Of the pixels and their shape."""
    row: int
    """First of the prompt's rows that its vision tokens fill."""
    rows: int
    patches: int


@dataclass(eq=False)
class Track:
    """One request as the scheduler sees it."""

    number: int
    """Requests are numbered as they come: lower is older."""
    prompt: int
    """Tokens of the prompt."""
    most: int
    """Tokens whose keys and values it can need at most."""
    page_key: Callable[[int], bytes]
    """Key of the content of page i and of everything before it; asked only for pages that are full."""
    looks: tuple[Look, ...] = ()
    known: int = 0
    """Tokens there are: the prompt and what was generated."""
    computed: int = 0
    """Tokens whose keys and values lie in `pages`."""
    pages: array[int] = field(default_factory=lambda: array("q"))
    running: bool = False
    cached: int | None = None
    """Tokens it found in the cache when it first came in; None before that."""
    seen: set[bytes] = field(default_factory=set)
    """Digests of looks whose vision vectors it holds."""

    def __post_init__(self) -> None:
        self.known = self.known or self.prompt


@dataclass(frozen=True)
class Piece:
    """Tokens `begin` to `end` of a request are computed in this step."""

    track: Track
    begin: int
    end: int

    @property
    def last(self) -> bool:
        """The token after `end` is wanted: it is not known yet."""
        return self.end == self.track.known


@dataclass
class _Budget:
    """What is left of a step."""

    tokens: int
    patches: int
    untouched: bool = True
    """No picture is seen in this step so far: the next may be of any size."""


@final
class Scheduler:
    def __init__(self, limits: Limits, pool: PagePool, is_seen: Callable[[bytes], bool]) -> None:
        """`is_seen`: the vision vectors of the look with this digest are there already."""
        self._limits = limits
        self._pool = pool
        self._is_seen = is_seen
        self.running: list[Track] = []
        """Oldest first."""
        self.waiting: list[Track] = []
        """Oldest first."""
        self.preemptions = 0

    def check(self, track: Track) -> None:
        """
        Raises:
            ValueError: the request would not fit even if it were alone.
        """
        room = self._pool.pages * self._limits.page_tokens
        if track.most > room:
            raise ValueError(
                f"the request needs a cache of {track.most} tokens ({track.prompt} of prompt, the rest for the reply), "
                f"but it has {room}: raise cache_tokens, or lower max_new_tokens or the size of the pictures"
            )

    def add(self, track: Track) -> None:
        """Lets a request wait for its turn. Raises as `check`."""
        self.check(track)
        insort(self.waiting, track, key=_age)

    def drop(self, track: Track) -> None:
        """Finished or called off: its pages are free at once."""
        if track.running:
            self.running.remove(track)
            self._let_go(track)
        elif track in self.waiting:
            self.waiting.remove(track)

    def plan(self) -> list[Piece]:
        """What to compute now; call `done` afterwards. Empty only if nothing waits or runs."""
        self._make_room()
        budget = _Budget(self._limits.max_batch_tokens, self._limits.max_batch_patches)
        steps = [Piece(t, t.computed, t.known) for t in self.running if t.known - t.computed == 1]
        budget.tokens -= len(steps)
        prompts = [self._piece(t, budget) for t in self.running if t.known - t.computed > 1]
        return steps + [p for p in prompts + self._admit(budget) if p.end > p.begin]

    def done(self, pieces: list[Piece]) -> None:
        """The pieces were computed: pages that became full can be shared from now on."""
        size = self._limits.page_tokens
        for piece in pieces:
            track = piece.track
            for page in range(piece.begin // size, piece.end // size):
                self._pool.publish(track.pages[page], track.page_key(page))
            track.computed = piece.end

    def discard(self, track: Track) -> list[int]:
        """What the request computed is worthless: nobody shall find its pages. Returns those that nobody else reads."""
        alone = [page for page in track.pages if self._pool.holders(page) == 1]
        for page in alone:
            self._pool.discard(page)
        return alone

    # ------------------------------------------------------------------ pages

    def _make_room(self) -> None:
        """A page for every running request's newest token; the youngest give theirs up if there are too few."""
        for track in tuple(self.running):
            while track.running and len(track.pages) < self._pages(track.known):
                page = self._pool.take()
                if page is not None:
                    track.pages.append(page)
                else:
                    self._preempt(self.running[-1])

    def _preempt(self, track: Track) -> None:
        self.running.remove(track)
        self._let_go(track)
        insort(self.waiting, track, key=_age)
        self.preemptions += 1

    def _let_go(self, track: Track) -> None:
        for page in reversed(track.pages):  # so that the end of a prompt is used up before its beginning
            self._pool.release(page)
        track.pages = array("q")
        track.computed = 0
        track.running = False

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self._limits.page_tokens)

    # ------------------------------------------------------------------ prompts

    def _piece(self, track: Track, budget: _Budget) -> Piece:
        """As much of the request as the budget allows, possibly nothing."""
        begin = track.computed
        end = min(track.known, begin + max(0, budget.tokens))
        for look in track.looks:
            if look.row >= end:
                break
            if look.row + look.rows <= begin or look.digest in track.seen or self._is_seen(look.digest):
                continue
            if look.patches > budget.patches and not budget.untouched:
                end = max(begin, look.row)
                break
            budget.patches -= look.patches
            budget.untouched = False
        budget.tokens -= end - begin
        return Piece(track, begin, end)

    def _admit(self, budget: _Budget) -> list[Piece]:
        pieces: list[Piece] = []
        if not self.waiting:
            return pieces
        being_computed = {key for t in self.running if (key := self._next_key(t)) is not None}
        for track in list(islice(self.waiting, self._limits.max_rows)):
            if len(self.running) == self._limits.max_rows or budget.tokens <= 0:
                break
            found = self._found(track)
            following = self._full_page_key(track, len(found))
            if following in being_computed:
                continue
            if not self._enter(track, found):
                break
            pieces.append(self._piece(track, budget))
            if following is not None:
                being_computed.add(following)
        return pieces

    def _enter(self, track: Track, found: list[int]) -> bool:
        """Gives the request pages for all of its tokens, if every running one can still grow by a page."""
        for page in found:
            self._pool.share(page)
        missing = self._pages(track.known) - len(found)
        if missing + len(self.running) > self._pool.available:
            for page in reversed(found):
                self._pool.release(page)
            return False
        track.pages.extend(found)
        for _ in range(missing):
            page = self._pool.take()
            assert page is not None, "available pages cannot be taken"
            track.pages.append(page)
        track.computed = len(found) * self._limits.page_tokens
        track.cached = track.computed if track.cached is None else track.cached
        track.running = True
        self.waiting.remove(track)
        insort(self.running, track, key=_age)
        return True

    def _found(self, track: Track) -> list[int]:
        """Pages of the request's beginning that are there already. The last token is always computed: what follows it
        is what one wants to know."""
        found: list[int] = []
        for number in range((track.known - 1) // self._limits.page_tokens):
            page = self._pool.find(track.page_key(number))
            if page is None:
                break
            found.append(page)
        return found

    def _next_key(self, track: Track) -> bytes | None:
        """The page that a running request fills next, if it is still at its prompt."""
        return self._full_page_key(track, track.computed // self._limits.page_tokens)

    def _full_page_key(self, track: Track, page: int) -> bytes | None:
        return track.page_key(page) if page < (track.known - 1) // self._limits.page_tokens else None


def _age(track: Track) -> int:
    return track.number
