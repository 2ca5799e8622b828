"""Who holds which page of the key/value cache, and which pages can be used again.

Knows: free pages, references, pages with known content. Does not know: tensors, requests, what a key is made of.

A page is in one of three states::

    free       nothing of worth in it
    held       one or several requests read it; only a page with one holder and no key is ever written
    kept       nobody holds it, but its content has a key: the next prompt that begins so takes it back

`take` uses free pages first, lowest number first (so that a lone request's pages lie side by side), then the kept page
that was let go longest ago.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from typing import final


@final
class PagePool:
    def __init__(self, pages: int) -> None:
        self.pages = pages
        self._free = list(range(pages))  # a heap
        self._holders: dict[int, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()  # let go longest ago first
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def used(self) -> int:
        """Pages that somebody holds."""
        return len(self._holders)

    @property
    def available(self) -> int:
        """Pages that `take` can still give."""
        return len(self._free) + len(self._kept)

    def take(self) -> int | None:
        """A page to write into, held once; None if all are held."""
        if self._free:
            page = heapq.heappop(self._free)
        elif self._kept:
            page, _ = self._kept.popitem(last=False)
            self._forget(page)
        else:
            return None
        self._holders[page] = 1
        return page

    def holders(self, page: int) -> int:
        """How many requests read the page."""
        return self._holders.get(page, 0)

    def find(self, key: bytes) -> int | None:
        """The page whose content has this key."""
        return self._page_of.get(key)

    def share(self, page: int) -> None:
        """One more holder of a page that was found."""
        self._kept.pop(page, None)
        self._holders[page] = self._holders.get(page, 0) + 1

    def publish(self, page: int, key: bytes) -> None:
        """From now on the page is found by `key` and never written again. The first page of a key keeps it."""
        assert page in self._holders, f"page {page} is published by nobody"
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def release(self, page: int) -> None:
        """One holder less; the last one leaves the page kept if it has a key, else free."""
        self._holders[page] -= 1
        if self._holders[page]:
            return
        del self._holders[page]
        if page in self._key_of:
            self._kept[page] = None
        else:
            heapq.heappush(self._free, page)

    def discard(self, page: int) -> None:
        """The content of a held page is worthless: nobody finds it any more."""
        assert page in self._holders, f"page {page} is held by nobody"
        self._forget(page)

    def _forget(self, page: int) -> None:
        key = self._key_of.pop(page, None)
        if key is not None:
            del self._page_of[key]
